//! One page of a daemon over HTTP/1.0, for `version` and the support bundle.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::Deserialize;

use crate::target::Target;

/// Longest page that is kept, in bytes.
const PAGE_BYTES_MAX: u64 = 16 << 20;

/// What a daemon answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    /// The first line.
    status: String,
    body: String,
}

impl Page {
    /// Both, for whoever reads the bundle.
    pub(crate) fn text(self) -> String {
        format!("{}\n{}", self.status, self.body)
    }

    /// What it says if it is the page `version`.
    pub(crate) fn version(&self) -> Option<String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Versions {
            version: String,
        }
        let versions: Versions = serde_json::from_str(&self.body).ok()?;
        Some(versions.version)
    }
}

/// A page of the first address of `target`, each wait bounded by `timeout`.
pub(crate) fn page(target: &Target, name: &str, timeout: Duration) -> io::Result<Page> {
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

fn get(mut stream: impl Read + Write, host: &str, name: &str) -> io::Result<Page> {
    let request = format!("GET /{name} HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.take(PAGE_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    let status = head.lines().next().unwrap_or_default();
    Ok(Page { status: status.to_owned(), body: body.to_owned() })
}

#[cfg(test)]
pub(crate) mod stand_in {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};

    /// A daemon that gives these answers, one a request, and then the first lines it was asked by.
    pub(crate) fn daemon(answers: Vec<&'static str>) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let answer = move |text: &str| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 256];
            let length = stream.read(&mut asked).unwrap();
            write!(stream, "HTTP/1.0 {text}").unwrap();
            let asked = String::from_utf8_lossy(&asked[..length]);
            asked.lines().next().unwrap_or_default().to_owned()
        };
        (address, thread::spawn(move || answers.into_iter().map(answer).collect()))
    }
}
