//! Standard output.

use std::io::{self, Write as _};

/// Whether somebody reads on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    /// The text went out.
    There,
    /// The reader has seen enough: `netctl net ls | head -1`.
    Gone,
}

/// Writes a text and sees it off.
pub(crate) fn write(text: &str) -> io::Result<Reader> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(error),
    }
}
