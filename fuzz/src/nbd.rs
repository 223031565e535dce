//! What an NBD server answers: `qemu-nbd` after it has read an image that came back, or a garage's QEMU.

use std::io::{self, Read, Write};

use image::blocks::Blocks;
use image::nbd::Client;

use crate::Target;
use crate::world::World;

pub(crate) const TARGETS: &[Target] = &[Target { name: "nbd_answers", seeds: conversations, run: answers }];

const SECTOR: u64 = 512;
/// Bytes of the greeting, and of that and the answer to the choice of an export.
const GREETING: usize = 18;
const HANDSHAKE: usize = GREETING + 10;
const REPLY: usize = 16;
/// Bytes that a client sends: to choose the export, and for each request.
const CHOICE: usize = 20;
const REQUEST: usize = 28;

/// A server that says what it says, whatever it is asked.
struct Server<'a> {
    answers: &'a [u8],
    asked: Vec<u8>,
}

impl Read for Server<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.answers.read(buf)
    }
}

impl Write for Server<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.asked.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The first and the last sector are read of disks of these sizes.
fn conversations(_: &World) -> Vec<Vec<u8>> {
    [SECTOR, 1 << 30]
        .map(|size| {
            let mut answers = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
            answers.extend_from_slice(&size.to_be_bytes());
            answers.extend_from_slice(&[0, 0]);
            for cookie in 1..=2_u64 {
                answers.extend_from_slice(&0x6744_6698_u32.to_be_bytes());
                answers.extend_from_slice(&[0; 4]);
                answers.extend_from_slice(&cookie.to_be_bytes());
                answers.extend_from_slice(&[cookie as u8; SECTOR as usize]);
            }
            answers
        })
        .to_vec()
}

fn answers(_: &World, bytes: &[u8]) -> bool {
    let mut server = Server { answers: bytes, asked: Vec::new() };
    let Ok(mut client) = Client::connect(&mut server) else { return false };
    let size = client.size();
    assert_eq!(size.to_be_bytes(), bytes[GREETING..GREETING + 8]);
    let last = size.saturating_sub(SECTOR);
    let mut sectors = [[0; SECTOR as usize]; 2];
    let read = [0, last].into_iter().zip(&mut sectors).all(|(at, sector)| client.read_at(at, sector).is_ok());
    for (at, length) in [(size, 1), (last, 513), (u64::MAX, 2)] {
        assert!(client.read_at(at, &mut vec![0; length]).is_err(), "read past the end");
    }
    assert!(client.write_at(0, &[0]).is_err(), "written");
    let (choice, requests) = server.asked.split_at(CHOICE);
    assert!(choice.ends_with(b"IHAVEOPT\0\0\0\x01\0\0\0\0"));
    assert!(requests.len().is_multiple_of(REQUEST) && requests.len() <= 2 * REQUEST, "asked for more");
    for request in requests.chunks_exact(REQUEST) {
        assert_eq!(request[4..8], [0; 4], "something else than a read");
        let offset = u64::from_be_bytes(request[16..24].try_into().unwrap());
        let length = u32::from_be_bytes(request[24..].try_into().unwrap());
        assert!(offset.checked_add(length.into()).is_some_and(|end| end <= size), "asked for what does not exist");
    }
    if read {
        let replies = bytes[HANDSHAKE..].chunks(REPLY + SECTOR as usize);
        assert!(replies.zip(&sectors).all(|(reply, sector)| reply[REPLY..] == *sector), "other bytes than were sent");
    }
    read
}
