//! What a command asks the person at the terminal: passphrases, and whether to do what cannot be undone.

use std::io::{IsTerminal, Read};

use outcome::{Context, Error, Kind, Result};
use zeroize::Zeroizing;

/// The longest passphrase that is read from a descriptor, in bytes.
const MAX_PASSPHRASE: u64 = 4096;

/// Reads a passphrase from a descriptor, or asks on the terminal. Never from an argument or the environment.
///
/// # Errors
/// `BadInput` when there is no terminal, or the descriptor cannot be read.
pub(crate) fn passphrase(prompt: &str, fd: Option<i32>) -> Result<Zeroizing<String>> {
    if let Some(fd) = fd {
        let path = format!("/dev/fd/{fd}");
        let mut text = Zeroizing::new(String::new());
        std::fs::File::open(&path)
            .and_then(|file| file.take(MAX_PASSPHRASE).read_to_string(&mut text))
            .context(Kind::BadInput, || format!("cannot read a passphrase from descriptor {fd}"))?;
        return Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()));
    }
    if !std::io::stdin().is_terminal() {
        return Err(Error::new(Kind::BadInput, "a passphrase is needed, and standard input is not a terminal")
            .remedy("pass it on a file descriptor: --passphrase-fd N"));
    }
    rpassword::prompt_password(prompt).map(Zeroizing::new).context(Kind::BadInput, || "cannot read a passphrase".into())
}

/// The same for a passphrase that something is going to be encrypted under: of a minimum length, and typed twice.
///
/// # Errors
/// As [`passphrase`], and `BadInput` when it is shorter than `least` characters or the two differ.
pub(crate) fn new_passphrase(what: &str, fd: Option<i32>, least: usize) -> Result<Zeroizing<String>> {
    let first = passphrase(&format!("New passphrase for {what}: "), fd)?;
    if first.chars().count() < least {
        return Err(Error::new(Kind::BadInput, format!("the passphrase is shorter than {least} characters"))
            .remedy("choose a longer one; four random words are good"));
    }
    if fd.is_none() && *first != *passphrase("Again: ", None)? {
        return Err(Error::new(Kind::BadInput, "the two passphrases differ").remedy("run the command again"));
    }
    Ok(first)
}

/// Asks a yes-or-no question; anything but `yes` is no.
///
/// # Errors
/// `Interrupted` after a no, `BadInput` when there is no terminal to ask on.
pub(crate) fn confirm(question: &str) -> Result<()> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::new(Kind::BadInput, format!("{question} Standard input is not a terminal"))
            .remedy("to answer yes without being asked, add --yes"));
    }
    eprint!("{question} Type 'yes': ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context(Kind::BadInput, || "cannot read an answer".into())?;
    if answer.trim() == "yes" { Ok(()) } else { Err(Error::new(Kind::Interrupted, "not confirmed; nothing was done")) }
}
