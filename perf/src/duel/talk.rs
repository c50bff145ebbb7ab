//! What two containers say to each other, measured at the one who receives or asks.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hdrhistogram::Histogram;

use super::node::Pair;
use super::{Transport, float};

/// Before a measurement: TCP finds its window, flows their place.
const WARM_UP: Duration = Duration::from_millis(500);
/// A silence after which a measurement is given up.
const PATIENCE: Duration = Duration::from_secs(10);
const CHUNK_BYTES: usize = 128 << 10;
/// Of Ethernet, IPv4 and UDP.
const HEADER_BYTES: usize = 42;
/// One datagram in so many is answered.
const ANSWERED: u64 = 1000;
/// Of a short request, and of its answer.
const REQUEST_BYTES: usize = 64;

/// Bytes of payload that arrive in `length` over so many connections.
pub(super) fn bulk(pair: &Pair, streams: u32, length: Duration) -> Result<f64> {
    let listener = pair.to.run(|| TcpListener::bind(SocketAddr::from((pair.address, 0))))??;
    let address = listener.local_addr()?;
    let (received, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..streams {
            let client = pair.from.run(|| TcpStream::connect(address))??;
            let (server, _) = listener.accept()?;
            client.set_write_timeout(Some(PATIENCE))?;
            server.set_read_timeout(Some(PATIENCE))?;
            scope.spawn(|| send(client, &stop));
            scope.spawn(|| receive(server, &received));
        }
        std::thread::sleep(WARM_UP);
        let (start, before) = (Instant::now(), received.load(Ordering::Relaxed));
        std::thread::sleep(length);
        let bytes = received.load(Ordering::Relaxed) - before;
        let took = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        // As if the sleep had been exact.
        Ok(float(bytes) * length.as_secs_f64() / took.as_secs_f64())
    })
}

/// Ends by closing.
fn send(mut stream: TcpStream, stop: &AtomicBool) {
    let chunk = vec![0x5a; CHUNK_BYTES];
    // An error ends it too; that nothing arrives any more is seen at the other end.
    while !stop.load(Ordering::Relaxed) && stream.write_all(&chunk).is_ok() {}
}

fn receive(mut stream: TcpStream, received: &AtomicU64) {
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(bytes @ 1..) = stream.read(&mut chunk) {
        received.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Datagrams that arrive in `length` of one sender that sends as fast as its kernel takes them, one
/// by one. The frames have so many bytes.
pub(super) fn flood(pair: &Pair, frame: usize, length: Duration) -> Result<f64> {
    let server = pair.to.run(|| UdpSocket::bind(SocketAddr::from((pair.address, 0))))??;
    let client = pair.from.run(|| UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], 0))))??;
    client.connect(server.local_addr()?)?;
    server.set_read_timeout(Some(PATIENCE / 10))?;
    let (received, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let payload = vec![0x5a; frame.saturating_sub(HEADER_BYTES)];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // A full queue is the sender's limit, not an error of the way.
                client.send(&payload).ok();
            }
        });
        scope.spawn(|| drain(&server, &received));
        std::thread::sleep(WARM_UP);
        let (start, before) = (Instant::now(), received.load(Ordering::Relaxed));
        std::thread::sleep(length);
        let datagrams = received.load(Ordering::Relaxed) - before;
        let took = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        Ok(float(datagrams) * length.as_secs_f64() / took.as_secs_f64())
    })
}

/// Counts datagrams until none comes any more.
fn drain(server: &UdpSocket, received: &AtomicU64) {
    let mut buffer = [0; 2048];
    while let Ok((len, from)) = server.recv_from(&mut buffer) {
        let count = received.fetch_add(1, Ordering::Relaxed);
        // Without an answer now and then it is no conversation.
        if count.is_multiple_of(ANSWERED) {
            server.send_to(&buffer[..len], from).ok();
        }
    }
}

/// Connections that were opened, used for one request and its answer and closed in `length`, one
/// after the other.
pub(super) fn requests(pair: &Pair, length: Duration) -> Result<f64> {
    let listener = pair.to.run(|| TcpListener::bind(SocketAddr::from((pair.address, 0))))??;
    let address = listener.local_addr()?;
    let stop = Arc::new(AtomicBool::new(false));
    // Nobody joins it: it may wait for a connection that never comes.
    std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(Ordering::Relaxed)
                && let Ok((server, _)) = listener.accept()
            {
                // It closes first: the client's port is free again at once.
                serve(server).ok();
            }
        }
    });
    let counted = pair.from.run(|| {
        let (mut count, start) = (0, Instant::now());
        while start.elapsed() < WARM_UP + length {
            request(address)?;
            count += u64::from(start.elapsed() >= WARM_UP);
        }
        stop.store(true, Ordering::Relaxed);
        // Wakes the thread, which ends then.
        request(address).ok();
        anyhow::Ok(count)
    });
    stop.store(true, Ordering::Relaxed);
    counted?.map(float)
}

fn serve(mut server: TcpStream) -> std::io::Result<()> {
    let mut message = [0; REQUEST_BYTES];
    server.read_exact(&mut message)?;
    server.write_all(&message)
}

fn request(address: SocketAddr) -> Result<()> {
    let mut client = TcpStream::connect_timeout(&address, PATIENCE)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.write_all(&[0x5a; REQUEST_BYTES])?;
    let mut answer = Vec::with_capacity(REQUEST_BYTES);
    client.read_to_end(&mut answer).context("no answer")?;
    Ok(())
}

/// The 50th and the 99th percentile of round trips in microseconds.
pub(super) fn echo(
    pair: &Pair,
    transport: Transport,
    bytes: usize,
    length: Duration,
) -> Result<[f64; 2]> {
    let here = SocketAddr::from((pair.address, 0));
    match transport {
        Transport::Tcp => {
            let listener = pair.to.run(|| TcpListener::bind(here))??;
            let address = listener.local_addr()?;
            let mut client = pair.from.run(|| TcpStream::connect(address))??;
            let (mut server, _) = listener.accept()?;
            for end in [&client, &server] {
                end.set_nodelay(true)?;
                end.set_read_timeout(Some(PATIENCE))?;
            }
            let answer = move || {
                let mut message = vec![0; bytes];
                while server.read_exact(&mut message).is_ok() && server.write_all(&message).is_ok()
                {
                }
            };
            let ask = move |message: &mut [u8]| {
                client.write_all(message)?;
                client.read_exact(message)
            };
            measure(answer, ask, (bytes, length))
        }
        Transport::Udp => {
            let server = pair.to.run(|| UdpSocket::bind(here))??;
            let address = server.local_addr()?;
            let client =
                pair.from.run(|| UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], 0))))??;
            client.connect(address)?;
            client.set_read_timeout(Some(PATIENCE))?;
            // Shorter than the client's: it ends when nobody asks any more.
            server.set_read_timeout(Some(PATIENCE / 10))?;
            let answer = move || {
                let mut message = vec![0; bytes];
                while let Ok((len, from)) = server.recv_from(&mut message)
                    && server.send_to(&message[..len], from).is_ok()
                {}
            };
            let ask = move |message: &mut [u8]| {
                client.send(message)?;
                client.recv(message).map(drop)
            };
            measure(answer, ask, (bytes, length))
        }
    }
}

fn measure(
    answer: impl FnOnce() + Send,
    mut ask: impl FnMut(&mut [u8]) -> std::io::Result<()>,
    (bytes, length): (usize, Duration),
) -> Result<[f64; 2]> {
    std::thread::scope(|scope| {
        scope.spawn(answer);
        let mut message = vec![0x5a; bytes];
        let mut times = Histogram::<u64>::new_with_bounds(1, 10_000_000_000, 3)?;
        let start = Instant::now();
        while start.elapsed() < WARM_UP + length {
            let asked = Instant::now();
            ask(&mut message).context("no answer")?;
            if start.elapsed() >= WARM_UP {
                times.record(u64::try_from(asked.elapsed().as_nanos())?)?;
            }
        }
        // The connection closes with it, and the other thread ends.
        drop(ask);
        Ok([0.5, 0.99].map(|quantile| float(times.value_at_quantile(quantile)) / 1000.0))
    })
}
