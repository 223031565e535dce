//! A client of the Network Block Device protocol over any stream of bytes.
//!
//! It speaks the fixed newstyle handshake with `NBD_OPT_EXPORT_NAME` and simple replies (NetworkBlockDevice/nbd,
//! `doc/proto.md`), one request at a time, and only reads. It trusts nothing that the server answers: numbers that do
//! not fit are errors, and the memory that it needs is what the caller asked for.

use std::io::{self, Read, Write};

use crate::blocks::{Blocks, check_range};

/// Largest request, well under what every server takes (32 MiB).
const MAX_REQUEST: usize = 1 << 20;

const INIT_MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const FIXED_NEWSTYLE_NO_ZEROES: u16 = 0b11;
const OPT_EXPORT_NAME: u32 = 1;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

#[derive(Clone, Copy)]
#[repr(u16)]
enum Request {
    Read = 0,
    Disconnect = 2,
}

/// The export with the empty name of the server at the other end of a stream, as blocks that can be read.
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    size: u64,
    cookie: u64,
}

impl<S: Read + Write> Client<S> {
    /// Shakes hands and selects the export.
    ///
    /// # Errors
    /// `InvalidData` for a server that speaks otherwise, and what the stream returns.
    pub fn connect(stream: S) -> io::Result<Self> {
        let mut client = Self { stream, size: 0, cookie: 0 };
        let greeting: [u8; 18] = client.receive()?;
        let flags = u16::from_be_bytes([greeting[16], greeting[17]]);
        if &greeting[..8] != INIT_MAGIC
            || &greeting[8..16] != OPTION_MAGIC
            || flags & FIXED_NEWSTYLE_NO_ZEROES != FIXED_NEWSTYLE_NO_ZEROES
        {
            return Err(protocol("unexpected greeting"));
        }
        let mut out = Vec::with_capacity(20);
        out.extend_from_slice(&u32::from(FIXED_NEWSTYLE_NO_ZEROES).to_be_bytes());
        out.extend_from_slice(OPTION_MAGIC);
        out.extend_from_slice(&OPT_EXPORT_NAME.to_be_bytes());
        // The export's name is empty.
        out.extend_from_slice(&0u32.to_be_bytes());
        client.stream.write_all(&out)?;
        let answer: [u8; 10] = client.receive()?;
        let [size @ .., _, _] = answer;
        client.size = u64::from_be_bytes(size);
        Ok(client)
    }

    /// Tells the server that nothing more is wanted; it does not answer.
    ///
    /// # Errors
    /// What the stream returns.
    pub fn disconnect(&mut self) -> io::Result<()> {
        self.send(Request::Disconnect, 0, 0)
    }

    fn send(&mut self, request: Request, offset: u64, length: u32) -> io::Result<()> {
        self.cookie = self.cookie.wrapping_add(1);
        let mut out = Vec::with_capacity(28);
        out.extend_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out.extend_from_slice(&0u16.to_be_bytes());
        out.extend_from_slice(&(request as u16).to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        self.stream.write_all(&out)
    }

    fn reply(&mut self) -> io::Result<()> {
        let reply: [u8; 16] = self.receive()?;
        let [m0, m1, m2, m3, e0, e1, e2, e3, cookie @ ..] = reply;
        if u32::from_be_bytes([m0, m1, m2, m3]) != REPLY_MAGIC || u64::from_be_bytes(cookie) != self.cookie {
            return Err(protocol("unexpected reply"));
        }
        match i32::from_be_bytes([e0, e1, e2, e3]) {
            0 => Ok(()),
            // NBD's error numbers are Linux's.
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    fn receive<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0u8; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl<S: Read + Write> Blocks for Client<S> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, mut offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_range(self.size, offset, buf.len())?;
        for piece in buf.chunks_mut(MAX_REQUEST) {
            self.send(Request::Read, offset, piece.len() as u32)?;
            self.reply()?;
            self.stream.read_exact(piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn write_at(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn protocol(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What a server sends, and nobody listening to what it is sent.
    struct Answers(&'static [u8]);

    impl Read for Answers {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.0.read(buf)
        }
    }

    impl Write for Answers {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn read(answers: &'static [u8]) -> io::Result<[u8; 2]> {
        let mut bytes = [0; 2];
        Client::connect(Answers(answers))?.read_at(6, &mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn only_the_answer_to_this_request_counts() {
        const GOOD: &[u8] = b"NBDMAGICIHAVEOPT\0\x03\0\0\0\0\0\0\0\x08\0\0gDf\x98\0\0\0\0\0\0\0\0\0\0\0\x01ok";
        assert_eq!(read(GOOD).unwrap(), *b"ok");
        let changed = |at: usize, byte| {
            let mut bytes = GOOD.to_vec();
            bytes[at] = byte;
            read(bytes.leak()).unwrap_err()
        };
        // Greeting, flags, magic of the reply, cookie.
        for at in [0, 8, 17, 28, 43] {
            assert_eq!(changed(at, 0).kind(), io::ErrorKind::InvalidData, "byte {at}");
        }
        assert_eq!(changed(25, 7).kind(), io::ErrorKind::InvalidInput, "past the end of a smaller disk");
        assert_eq!(changed(35, 5).raw_os_error(), Some(5));
        assert_eq!(read(&GOOD[..45]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
