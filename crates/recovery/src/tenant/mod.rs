//! The tenant host's side: files in, a file out.

pub mod grant;
