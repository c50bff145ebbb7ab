//! What two containers say to each other, measured at the one who receives or asks.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
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
