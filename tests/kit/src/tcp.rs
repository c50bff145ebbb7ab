//! TCP between namespaces, by the standard library's sockets.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use netdev::Namespace;

/// How long one read or write may block: past that the peer is gone.
const IO_BOUND: Duration = Duration::from_secs(10);
const CHUNK_BYTES: usize = 1 << 16;

/// A server that sends back what it gets, until dropped.
#[derive(Debug)]
pub struct TcpServer {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TcpServer {
    /// Listens in `namespace`. Port 0 takes a free one, see [`TcpServer::address`].
    ///
    /// # Errors
    /// When the address is in use or not there.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let listener = namespace.run(|| TcpListener::bind(address))?;
        let listener = listener.with_context(|| format!("listening on {address}"))?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("tcp-server".into())
            .spawn(move || serve(&listener, &seen))?;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in the server has shown as a failed connection already.
            drop(thread.join());
        }
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            // A connection that breaks is the client's to notice.
            Ok((stream, _)) => drop(thread::spawn(move || echo(&stream))),
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn echo(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(IO_BOUND))?;
    stream.set_write_timeout(Some(IO_BOUND))?;
    io::copy(&mut { stream }, &mut { stream })?;
    stream.shutdown(Shutdown::Write)
}

/// A server that counts what it gets and answers nothing, until dropped.
#[derive(Debug)]
pub struct TcpSink {
    address: SocketAddr,
    bytes: Arc<AtomicU64>,
}

impl TcpSink {
    /// Listens in `namespace` for one connection. Port 0 takes a free one, see [`TcpSink::address`].
    ///
    /// # Errors
    /// When the address is in use or not there.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let listener = namespace.run(|| TcpListener::bind(address))?;
        let listener = listener.with_context(|| format!("listening on {address}"))?;
        let address = listener.local_addr()?;
        let bytes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&bytes);
        let swallow = move || -> io::Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(IO_BOUND))?;
            let mut buffer = vec![0; CHUNK_BYTES];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    len => counted.fetch_add(len as u64, Ordering::Relaxed),
                };
            }
        };
        // It ends with its connection; one that breaks shows in the count.
        thread::Builder::new().name("tcp-sink".into()).spawn(move || drop(swallow()))?;
        Ok(Self { address, bytes })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes received so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Connects from `namespace`.
///
/// # Errors
/// The socket's: refused, or timed out where packets are dropped.
pub fn tcp_connect(
    namespace: &Namespace,
    server: SocketAddr,
    bound: Duration,
) -> Result<TcpStream> {
    let stream = namespace.run(|| TcpStream::connect_timeout(&server, bound))?;
    let stream = stream.with_context(|| format!("connecting to {server}"))?;
    stream.set_read_timeout(Some(IO_BOUND))?;
    stream.set_write_timeout(Some(IO_BOUND))?;
    Ok(stream)
}

/// Connects from `namespace`, sends `payload` and checks that the same comes back. Returns the
/// time from the first byte out to the last one in.
///
/// # Errors
/// When the connection, the transfer or the comparison fails.
pub fn tcp_echo(namespace: &Namespace, server: SocketAddr, payload: &[u8]) -> Result<Duration> {
    let mut stream = tcp_connect(namespace, server, IO_BOUND)?;
    let start = Instant::now();
    stream.write_all(payload)?;
    stream.shutdown(Shutdown::Write)?;
    let mut back = Vec::with_capacity(payload.len());
    stream.read_to_end(&mut back).context("reading the echo")?;
    ensure!(back == payload, "{} bytes came back, not the {} sent", back.len(), payload.len());
    Ok(start.elapsed())
}

/// Sends `bytes` bytes from `namespace` to an echo server while reading them back, and checks
/// every one. Returns the time it took, both ways.
///
/// # Errors
/// When the connection breaks or a byte differs.
pub fn tcp_transfer(namespace: &Namespace, server: SocketAddr, bytes: u64) -> Result<Duration> {
    let stream = tcp_connect(namespace, server, IO_BOUND)?;
    let start = Instant::now();
    thread::scope(|scope| {
        let sender = scope.spawn(|| send_pattern(&stream, bytes));
        let received = check_pattern(&stream, bytes);
        let sent = sender.join().map_err(|_panic| anyhow::anyhow!("the sender panicked"))?;
        // When both fail, the sender's error is the cause.
        sent.context("sending")?;
        received
    })?;
    Ok(start.elapsed())
}

/// Byte `n` of the pattern is the low byte of `n / 7`: no power of two hides a lost piece.
const fn pattern(position: u64) -> u8 {
    (position / 7) as u8
}

fn send_pattern(mut stream: &TcpStream, bytes: u64) -> io::Result<()> {
    let mut sent = 0;
    while sent < bytes {
        let len = (bytes - sent).min(CHUNK_BYTES as u64);
        let chunk: Vec<u8> = (sent..sent + len).map(pattern).collect();
        stream.write_all(&chunk)?;
        sent += len;
    }
    stream.shutdown(Shutdown::Write)
}

fn check_pattern(mut stream: &TcpStream, bytes: u64) -> Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut position = 0;
    loop {
        let len = stream.read(&mut buffer).context("reading the transfer back")?;
        if len == 0 {
            ensure!(position == bytes, "{position} of {bytes} bytes came back");
            return Ok(());
        }
        for byte in &buffer[..len] {
            if *byte != pattern(position) {
                bail!("byte {position} came back changed");
            }
            position += 1;
        }
    }
}
