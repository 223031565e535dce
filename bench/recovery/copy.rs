//! Copy mode beside what an administrator would do by hand with the same data: `qemu-img convert -O vhdx`, and `cp` with
//! a flush. All three write to the same file system; the source is in the page cache for all of them; each round does
//! the three in turn, beginning with another one than the last did, each starting with nothing left to write back.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use drydock_tests::process::run;
use garage::container;
use garage::{Bundle, Direction, Disk, Layout, Manifest, Mode};
use image::{Cancel, Format, Source};

use crate::{Figures, median, put};

/// So that each is the first, and each the last, as often as the others.
const ROUNDS: usize = 6;
const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(600);

pub(crate) fn measure(figures: &mut Figures) -> Result<()> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let work = tempfile::Builder::new().prefix("bench-").tempdir_in(base)?;
    for (name, size, step) in [("dense", 1024, 1), ("sparse", 8192, 32)] {
        let source = work.path().join("source.raw");
        fill(&source, size * MIB, step)?;
        let [ours, qemu_img, cp] = compare(work.path(), &source, [ours, qemu_img, cp])?;
        put(figures, &format!("copy_over_qemu_img_{name}"), qemu_img / ours);
        put(figures, &format!("copy_over_cp_{name}"), cp / ours);
        put(figures, &format!("copy_mib_per_s_{name}"), size as f64 / step as f64 / ours);
    }
    drop(work);
    reflink(figures)
}

/// The same on a file system that shares extents between files, made here: copying is then a matter of metadata.
fn reflink(figures: &mut Figures) -> Result<()> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let work = tempfile::Builder::new().prefix("bench-").tempdir_in(base)?;
    let (image, mount) = (work.path().join("xfs"), work.path().join("mount"));
    std::fs::File::create(&image)?.set_len(6 << 30)?;
    std::fs::create_dir(&mount)?;
    run(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image), b"", LIMIT)?.ok()?;
    run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount), b"", LIMIT)?.ok()?;
    let measured = (|| {
        let source = mount.join("source.raw");
        fill(&source, 1024 * MIB, 1)?;
        let [ours, qemu_img] = compare(&mount, &source, [ours, qemu_img])?;
        put(figures, "copy_over_qemu_img_reflink", qemu_img / ours);
        Ok(())
    })();
    run(Command::new("umount").arg(&mount), b"", LIMIT)?.ok()?;
    measured
}

/// One way to copy a source into a folder, and the seconds that it took.
type Way = fn(&Path, &Path) -> Result<f64>;

/// The median of each.
fn compare<const N: usize>(work: &Path, source: &Path, ways: [Way; N]) -> Result<[f64; N]> {
    let mut seconds = [const { Vec::new() }; N];
    // The first round fills the page cache.
    for round in 0..=ROUNDS {
        for turn in (0..N).map(|place| (round + place) % N) {
            let taken = ways[turn](work, source)?;
            if round > 0 {
                seconds[turn].push(taken);
            }
        }
    }
    Ok(seconds.map(median))
}

/// A file with a MiB of random bytes at every `step`th MiB.
pub(crate) fn fill(path: &Path, size: u64, step: u64) -> Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.set_len(size)?;
    let mut random = std::fs::File::open("/dev/urandom")?;
    let mut bytes = vec![0; usize::try_from(MIB)?];
    for offset in (0..size).step_by(usize::try_from(step * MIB)?) {
        random.read_exact(&mut bytes)?;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(&bytes)?;
    }
    Ok(file.sync_all()?)
}

/// Seconds of `work`, which makes `target` durable; nothing else is waiting to be written.
fn timed(target: &Path, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let _ = std::fs::remove_file(target);
    rustix::fs::sync();
    let start = Instant::now();
    work()?;
    let seconds = start.elapsed().as_secs_f64();
    std::fs::remove_file(target)?;
    Ok(seconds)
}

fn ours(work: &Path, source: &Path) -> Result<f64> {
    let target = work.join("ours.vhdx");
    let size = std::fs::metadata(source)?.len();
    let layout = Layout::plan(&[size])?;
    let bundle = Bundle::from_files([("record.sealed".to_owned(), vec![7; 1 << 16])])?;
    let disk = Disk { index: 0, name: garage::layout::disk_name(0), size, serial: "disk".into(), sha256: None };
    let manifest = Manifest {
        version: garage::manifest::VERSION,
        sequence: 1,
        recovery_id: uuid::Uuid::new_v4(),
        vm_id: uuid::Uuid::new_v4(),
        vm_name: "dvm".into(),
        direction: Direction::Outbound,
        mode: Mode::Copy,
        created: 0,
        disks: vec![disk],
        spec: "{}".into(),
        protector: b"none".to_vec(),
        state_sha256: bundle.sha256(),
        receipt: None,
    };
    let sources = [Source::new(source, Format::Raw)];
    timed(&target, || Ok(container::create(&target, &layout, &manifest, &bundle, &sources, &|_| {}, &Cancel::new())?))
}

fn qemu_img(work: &Path, source: &Path) -> Result<f64> {
    let target = work.join("qemu-img.vhdx");
    timed(&target, || {
        // It flushes at its end.
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-f", "raw", "-O", "vhdx"]).arg(source).arg(&target);
        run(&mut command, b"", LIMIT)?.ok()?;
        std::fs::File::open(&target)?.sync_all().context("flush")
    })
}

fn cp(work: &Path, source: &Path) -> Result<f64> {
    let target = work.join("cp.raw");
    timed(&target, || {
        let mut command = Command::new("cp");
        command.arg("--sparse=always").arg(source).arg(&target);
        run(&mut command, b"", LIMIT)?.ok()?;
        std::fs::File::open(&target)?.sync_all().context("flush")
    })
}
