//! One page of a daemon over HTTP/1.0, for the support bundle.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::target::Target;

/// Longest page that is kept, in bytes.
const PAGE_BYTES_MAX: u64 = 16 << 20;

/// Status line and body of a page, each wait bounded by `timeout`.
pub(crate) fn page(target: &Target, name: &str, timeout: Duration) -> io::Result<String> {
    if let Some(path) = target.socket() {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(timeout))?;
        return get(stream, "localhost", name);
    }
    let authority = target.authority().ok_or(io::ErrorKind::InvalidInput)?;
    let address = authority.to_socket_addrs()?.next().ok_or(io::ErrorKind::NotFound)?;
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    get(stream, &authority, name)
}

fn get(mut stream: impl Read + Write, host: &str, name: &str) -> io::Result<String> {
    write!(stream, "GET /{name} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.take(PAGE_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    let status = head.lines().next().unwrap_or_default();
    Ok(format!("{status}\n{body}"))
}
