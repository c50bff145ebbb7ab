//! Two tenants use the same addresses at the same time, and nobody can pretend to be another.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kit::frame::{Addresses, udp};
use kit::{Container, capture, wait_until};

use crate::check::Check;
use crate::world::{Who, World};

const PORT: u16 = 7000;
const QUESTIONS: u32 = 1000;
const SPOOFED: u64 = 25;
const BOUND: Duration = Duration::from_secs(5);

pub(crate) const CHECK: Check = Check {
    number: 2,
    title: "two tenants share addresses and never packets; spoofed sources are dropped and counted",
    run,
    sabotage: |world| world.unplug(Who::RedB),
};

fn run(world: &mut World) -> Result<String> {
    let (blue, red) = (world.container(Who::A)?, world.container(Who::RedA)?);
    let (blue_server, red_server) = (world.container(Who::B)?, world.container(Who::RedB)?);
    ensure!(blue.address() == red.address(), "{} and {}", blue.address(), red.address());
    ensure!(blue_server.address() == red_server.address(), "the servers' addresses differ");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let servers = [(blue_server, "blue"), (red_server, "red")];
        let servers = servers.map(|(at, name)| Ok((bind(at, PORT)?, name)));
        for server in servers.into_iter().collect::<Result<Vec<_>>>()? {
            let stop = &stop;
            scope.spawn(move || answer(&server.0, server.1, stop));
        }
        let to = SocketAddr::from((blue_server.address(), PORT));
        let clients = [(blue, "blue"), (red, "red")];
        let asked = clients.map(|(at, name)| scope.spawn(move || ask(at, to, name)));
        let results = asked.map(thread::ScopedJoinHandle::join);
        stop.store(true, Ordering::Relaxed);
        for result in results {
            result.map_err(|_panic| anyhow::anyhow!("a client panicked"))??;
        }
        anyhow::Ok(())
    })?;
    let by_ip = spoof(world, "spoofed-ip")?;
    let by_mac = spoof(world, "spoofed-mac")?;
    Ok(format!(
        "{} both: {QUESTIONS} questions each at the same time, 0 crossed; \
         {by_ip} spoofed-ip and {by_mac} spoofed-mac dropped, as many as sent",
        blue.address()
    ))
}

fn bind(container: &Container, port: u16) -> Result<UdpSocket> {
    let address = SocketAddr::from((container.address(), port));
    let socket = container.namespace().run(|| UdpSocket::bind(address))?;
    let socket = socket.with_context(|| format!("binding {address}"))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    Ok(socket)
}

fn answer(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut question = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, from)) = socket.recv_from(&mut question) {
            // A lost answer shows at the client.
            drop(socket.send_to(name.as_bytes(), from));
        }
    }
}

fn ask(container: &Container, to: SocketAddr, name: &str) -> Result<()> {
    let socket = bind(container, 0)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut answer = [0; 64];
    for question in 0..QUESTIONS {
        socket.send(&question.to_be_bytes())?;
        match socket.recv(&mut answer) {
            Ok(len) => ensure!(
                &answer[..len] == name.as_bytes(),
                "{name} was answered by {:?}",
                String::from_utf8_lossy(&answer[..len])
            ),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                anyhow::bail!("{name}: question {question} was not answered in 2 s")
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Sends frames with a source that is not the container's; every one must be counted, none arrive.
fn spoof(world: &World, reason: &str) -> Result<u64> {
    let (sender, victim) = (world.container(Who::A)?, world.container(Who::B)?);
    let mut addresses = Addresses {
        src_mac: sender.mac()?,
        dst_mac: victim.mac()?,
        src: sender.address(),
        dst: victim.address(),
    };
    match reason {
        "spoofed-ip" => addresses.src = victim.address(),
        _ => addresses.src_mac = victim.mac()?,
    }
    let before = World::drops(&world.nodes.one, reason)?;
    let received = bind(victim, PORT + 1)?;
    let socket = capture(sender.namespace(), kit::CONTAINER_IFNAME)?;
    for _ in 0..SPOOFED {
        socket.send(&udp(addresses, PORT, PORT + 1, b"spoofed")?)?;
    }
    let counted = || World::drops(&world.nodes.one, reason).ok().filter(|n| *n >= before + SPOOFED);
    let after = wait_until(BOUND, format!("{SPOOFED} more {reason} drops"), counted)?;
    ensure!(after == before + SPOOFED, "{} {reason} drops for {SPOOFED} frames", after - before);
    let mut buffer = [0; 64];
    ensure!(received.recv(&mut buffer).is_err(), "a {reason} packet arrived");
    Ok(after - before)
}
