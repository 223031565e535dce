//! `make demo`: one whole recovery, told step by step. The result is in `target/demo/report.json`.

use std::path::Path;
use std::process::ExitCode;

use drydock_tests::report::Report;
use drydock_tests::story::Recovery;
use drydock_tests::world;

fn main() -> ExitCode {
    if let Err(error) = stop_on_signals() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = home.parent().unwrap_or(home).join("target/demo/report.json");
    eprintln!("A shielded VM, its owner's mistake, and the way back in. Nobody else gets in on the way.\n");
    eprintln!("preparing: guest images, a fabric, two shielded VMs");
    let (mut report, outcome) = match Recovery::prepare() {
        Err(error) => (Report::default(), Err(error)),
        Ok(mut recovery) => {
            let told = recovery.run();
            if told.is_err() {
                eprintln!("{}", recovery.world.agent_log());
            }
            let report = std::mem::take(&mut recovery.report);
            (report, told.and(recovery.close()))
        }
    };
    report.close();
    if let Err(error) = &outcome {
        report.ok = false;
        eprintln!("\nthe demo failed: {error:#}");
    }
    eprintln!("{}", report.table());
    if let Err(error) = report.write(&target) {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    eprintln!("written to {}", target.display());
    if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ctrl-C ends the demo with everything in it.
fn stop_on_signals() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut terminate = {
        let _inside = runtime.enter();
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        });
        eprintln!("\nstopped; taking everything down");
        world::reap_ours();
        std::process::exit(130);
    });
    Ok(())
}
