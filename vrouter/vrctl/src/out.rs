//! Standard output: data only, as text or JSON.
//!
//! A result of several things is one JSON document, indented; a stream is one JSON object a line, so
//! that it can be read before it ends.

use std::io::{self, Write as _};

use serde::Serialize;

use crate::args::Format;
use crate::failure::Failure;

/// Whether anyone still reads what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    Present,
    /// It has seen enough: `vrctl flow ls | head`.
    Gone,
}

/// Prints a whole result.
pub(crate) fn show<T: Serialize>(
    format: Format,
    value: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    match format {
        Format::Table => print(&text(value)),
        Format::Json => print(&json(value)?),
    }
}

/// A document of its own.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<String, Failure> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// One line of a stream.
pub(crate) fn json_line<T: Serialize>(value: &T) -> Result<String, Failure> {
    Ok(serde_json::to_string(value)? + "\n")
}

/// Prints the last thing there is to print.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    // There is nothing to stop when the reader is gone.
    print_part(text).map(|_reader| ())
}

/// Prints a part, and tells whether more is wanted.
pub(crate) fn print_part(text: &str) -> Result<Reader, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(Reader::Present),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(Failure::Io(error)),
    }
}
