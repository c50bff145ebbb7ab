//! The crate against the running kernel, each test in private namespaces.
//!
//! Without root every test shows as ignored, with the reason.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use netdev::ethtool::{self, Feature, State};
use netdev::packet::PacketSocket;
use netdev::{
    Arp, Event, Link, Monitor, Namespace, NeighbourState, Netlink, RouteSpec, VethSpec,
    set_disable_ipv6, take_only_given_ipv6,
};

const BOUND: Duration = Duration::from_secs(10);
const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));
const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2));
const NEAR_MAC: [u8; 6] = [2, 0, 0, 9, 0, 1];
const FAR_MAC: [u8; 6] = [2, 0, 0, 9, 0, 2];

/// Name and body.
type Test = (&'static str, fn() -> Result<()>);

fn main() {
    let arguments = Arguments::from_args();
    let tests: [Test; 13] = [
        ("both_ends_of_a_veth_are_made_where_asked", both_ends_of_a_veth_are_made_where_asked),
        (
            "a_link_tells_where_its_peer_is_and_what_it_is_a_port_of",
            a_link_tells_where_its_peer_is_and_what_it_is_a_port_of,
        ),
        ("udp_crosses_a_veth_between_namespaces", udp_crosses_a_veth_between_namespaces),
        ("a_taken_name_is_refused_by_name", a_taken_name_is_refused_by_name),
        ("a_link_is_changed_renamed_and_moved", a_link_is_changed_renamed_and_moved),
        ("routes_are_added_listed_and_followed", routes_are_added_listed_and_followed),
        ("a_neighbour_is_resolved_on_request", a_neighbour_is_resolved_on_request),
        ("a_permanent_neighbour_needs_no_answer", a_permanent_neighbour_needs_no_answer),
        ("the_monitor_sees_changes_and_deletion", the_monitor_sees_changes_and_deletion),
        ("offloads_read_back_as_set", offloads_read_back_as_set),
        (
            "ipv6_is_turned_off_and_on_in_the_named_namespace",
            ipv6_is_turned_off_and_on_in_the_named_namespace,
        ),
        (
            "a_named_namespace_is_made_found_and_removed",
            a_named_namespace_is_made_found_and_removed,
        ),
        ("a_packet_socket_shows_the_vlan_tag", a_packet_socket_shows_the_vlan_tag),
    ];
    let root = nix::unistd::geteuid().is_root();
    let trials = tests.into_iter().map(|(name, test)| {
        let trial = Trial::test(name, move || test().map_err(|e| Failed::from(format!("{e:#}"))));
        if root { trial } else { trial.with_kind("needs root").with_ignored_flag(true) }
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

/// Two namespaces joined by a veth pair, up and with addresses.
struct Pair {
    near: Namespace,
    far: Namespace,
    near_netlink: Netlink,
    far_netlink: Netlink,
    near_link: Link,
    far_link: Link,
}

impl Pair {
    fn new() -> Result<Self> {
        let (near, far) = (Namespace::anonymous()?, Namespace::anonymous()?);
        let (near_netlink, far_netlink) = (Netlink::open_in(&near)?, Netlink::open_in(&far)?);
        let near_link = near_netlink.create_veth(&spec(Some(&far)))?;
        let far_link = far_netlink.link_by_name("far0")?.context("no far0")?;
        for (netlink, link, ip) in
            [(&near_netlink, &near_link, NEAR), (&far_netlink, &far_link, FAR)]
        {
            netlink.add_address(link.index, ip, 24)?;
            netlink.set_up(link.index)?;
        }
        for (netlink, link) in [(&near_netlink, &near_link), (&far_netlink, &far_link)] {
            wait_until("a running link", || {
                Ok(netlink.link_by_index(link.index)?.filter(|link| link.running))
            })?;
        }
        Ok(Self { near, far, near_netlink, far_netlink, near_link, far_link })
    }
}

const fn spec(peer_netns: Option<&Namespace>) -> VethSpec<'_> {
    VethSpec {
        name: "near0",
        mac: Some(NEAR_MAC),
        mtu: 1450,
        peer_name: "far0",
        peer_mac: Some(FAR_MAC),
        peer_mtu: 1400,
        peer_netns,
    }
}

fn wait_until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + BOUND;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what}: not within {BOUND:?}");
        std::thread::yield_now();
    }
}

fn both_ends_of_a_veth_are_made_where_asked() -> Result<()> {
    let pair = Pair::new()?;
    let near = pair.near_netlink.link_by_name("near0")?.context("no near0")?;
    assert_eq!((near.mac, near.mtu, near.up), (NEAR_MAC, 1450, true));
    assert_eq!(near.kind.as_deref(), Some("veth"));
    assert_eq!(near.peer_index, Some(pair.far_link.index));
    assert!(near.peer_netns_id.is_some());
    assert_eq!((pair.far_link.mac, pair.far_link.mtu), (FAR_MAC, 1400));
    assert_eq!(pair.near_netlink.link_by_name("far0")?, None);
    assert_eq!(pair.near_netlink.link_by_index(near.index)?, Some(near.clone()));
    assert_eq!(pair.near_netlink.link_by_index(9999)?, None);
    let names: Vec<String> = pair.near_netlink.links()?.into_iter().map(|link| link.name).collect();
    assert!(names.contains(&"lo".to_owned()) && names.contains(&"near0".to_owned()), "{names:?}");
    let addresses = pair.near_netlink.addresses(near.index)?;
    assert!(addresses.iter().any(|address| address.ip == NEAR && address.prefix_len == 24));
    pair.near_netlink.delete_link(near.index)?;
    assert_eq!(pair.far_netlink.link_by_name("far0")?, None);
    Ok(())
}

fn a_link_tells_where_its_peer_is_and_what_it_is_a_port_of() -> Result<()> {
    let (pair, stranger) = (Pair::new()?, Namespace::anonymous()?);
    let netlink = &pair.near_netlink;
    let near = netlink.link_by_name("near0")?.context("no near0")?;
    assert_eq!(netlink.namespace_id(&pair.far)?, near.peer_netns_id);
    assert_eq!(netlink.namespace_id(&stranger)?, None);
    assert_eq!((near.controller, near.alias.as_deref()), (None, None));
    netlink.set_alias(near.index, "of c1:eth0")?;
    let bridge = |line: &str| {
        let mut ip = std::process::Command::new("ip");
        pair.near.run(|| ip.args(line.split_whitespace()).status())
    };
    for line in ["link add br0 type bridge", "link set near0 master br0"] {
        assert!(bridge(line)??.success(), "{line}");
    }
    let bridge = netlink.link_by_name("br0")?.context("no br0")?;
    let near = netlink.link_by_index(near.index)?.context("gone")?;
    assert_eq!((near.controller, near.alias.as_deref()), (Some(bridge.index), Some("of c1:eth0")));
    let own = netlink.addresses(near.index)?;
    let own = own.into_iter().find(|address| address.ip == NEAR).context("no address")?;
    netlink.remove_address(near.index, own)?;
    assert!(!netlink.addresses(near.index)?.contains(&own));
    Ok(())
}

fn udp_crosses_a_veth_between_namespaces() -> Result<()> {
    let pair = Pair::new()?;
    let near = pair.near.run(|| UdpSocket::bind((NEAR, 0)))??;
    let far = pair.far.run(|| UdpSocket::bind((FAR, 0)))??;
    for socket in [&near, &far] {
        socket.set_read_timeout(Some(BOUND))?;
    }
    near.send_to(b"ping", far.local_addr()?)?;
    let mut buffer = [0; 16];
    let (len, from) = far.recv_from(&mut buffer)?;
    assert_eq!((&buffer[..len], from), (&b"ping"[..], near.local_addr()?));
    far.send_to(b"pong", from)?;
    let (len, from) = near.recv_from(&mut buffer)?;
    assert_eq!((&buffer[..len], from), (&b"pong"[..], far.local_addr()?));
    Ok(())
}

fn a_taken_name_is_refused_by_name() -> Result<()> {
    let namespace = Namespace::anonymous()?;
    let netlink = Netlink::open_in(&namespace)?;
    netlink.create_veth(&spec(None))?;
    let Err(error) = netlink.create_veth(&spec(None)) else { bail!("made twice") };
    assert!(error.is_existing(), "{error:?}");
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(text.starts_with("creating veth near0: File exists"), "{text}");
    let Err(error) = netlink.delete_link(9999) else { bail!("deleted what is not there") };
    assert!(error.is_missing(), "{error:?}");
    Ok(())
}

fn a_link_is_changed_renamed_and_moved() -> Result<()> {
    let pair = Pair::new()?;
    let (netlink, index) = (&pair.near_netlink, pair.near_link.index);
    netlink.set_down(index)?;
    netlink.set_mtu(index, 1300)?;
    netlink.set_mac(index, [2, 0, 0, 0, 0, 7])?;
    netlink.set_arp(index, Arp::Off)?;
    netlink.rename(index, "other0")?;
    let link = netlink.link_by_index(index)?.context("gone")?;
    assert_eq!((link.name.as_str(), link.mtu, link.up), ("other0", 1300, false));
    assert_eq!(link.mac, [2, 0, 0, 0, 0, 7]);
    netlink.set_up(index)?;
    let resolving = netlink.neighbour(index, FAR)?;
    assert_eq!(resolving, None);
    netlink.probe_neighbour(index, FAR)?;
    let state = netlink.neighbour(index, FAR)?.map(|neighbour| neighbour.state);
    assert_eq!(state, Some(NeighbourState::NoArp));
    netlink.set_netns(index, &pair.far)?;
    assert_eq!(netlink.link_by_name("other0")?, None);
    let moved = pair.far_netlink.link_by_name("other0")?.context("did not arrive")?;
    assert!(!moved.up);
    Ok(())
}

fn routes_are_added_listed_and_followed() -> Result<()> {
    let pair = Pair::new()?;
    let (netlink, oif) = (&pair.near_netlink, pair.near_link.index);
    let beyond: IpAddr = [192, 0, 2, 1].into();
    let Err(error) = netlink.route_to(beyond) else { bail!("a route from nowhere") };
    assert!(error.is_unreachable(), "{error:?}");
    let default = RouteSpec { dst: None, gateway: Some(FAR), oif, mtu: Some(1350) };
    netlink.add_route(&default)?;
    let Err(error) = netlink.add_route(&default) else { bail!("added twice") };
    assert!(error.is_existing(), "{error:?}");
    let via = netlink.route_to(beyond)?;
    assert_eq!((via.oif, via.gateway, via.source), (oif, Some(FAR), Some(NEAR)));
    let direct = netlink.route_to(FAR)?;
    assert_eq!((direct.oif, direct.gateway), (oif, None));
    let on_link = (IpAddr::from([198, 51, 100, 0]), 24);
    netlink.add_route(&RouteSpec { dst: Some(on_link), gateway: None, oif, mtu: None })?;
    let routes = netlink.routes()?;
    let default = routes.iter().find(|route| route.dst.is_none()).context("no default")?;
    assert_eq!((default.gateway, default.oif, default.mtu), (Some(FAR), Some(oif), Some(1350)));
    assert!(routes.iter().any(|route| route.dst == Some(on_link) && route.gateway.is_none()));
    Ok(())
}

fn a_neighbour_is_resolved_on_request() -> Result<()> {
    let pair = Pair::new()?;
    let (netlink, oif) = (&pair.near_netlink, pair.near_link.index);
    let mut monitor = Monitor::open_in(&pair.near)?;
    assert_eq!(netlink.neighbour(oif, FAR)?, None);
    netlink.probe_neighbour(oif, FAR)?;
    let announced = wait_until("the announcement", || {
        Ok(match monitor.next(BOUND)? {
            Some(Event::NeighbourChanged { ip, neighbour: Some(neighbour), .. }) if ip == FAR => {
                neighbour.resolved()
            }
            Some(_) | None => None,
        })
    })?;
    assert_eq!(announced, FAR_MAC);
    let known = netlink.neighbour(oif, FAR)?.context("no entry")?;
    assert_eq!(known.resolved(), Some(FAR_MAC));
    Ok(())
}

fn a_permanent_neighbour_needs_no_answer() -> Result<()> {
    let pair = Pair::new()?;
    let (netlink, oif) = (&pair.near_netlink, pair.near_link.index);
    let absent: IpAddr = [10, 9, 0, 77].into();
    netlink.add_neighbour(oif, absent, [2, 0, 0, 0, 0, 77])?;
    let known = netlink.neighbour(oif, absent)?.context("no entry")?;
    assert_eq!(known.state, NeighbourState::Permanent);
    assert_eq!(known.resolved(), Some([2, 0, 0, 0, 0, 77]));
    Ok(())
}

fn the_monitor_sees_changes_and_deletion() -> Result<()> {
    let pair = Pair::new()?;
    let mut monitor = Monitor::open_in(&pair.near)?;
    let index = pair.near_link.index;
    pair.near_netlink.set_mtu(index, 1234)?;
    wait_until("the change", || {
        let event = monitor.next(BOUND)?;
        let seen = matches!(&event, Some(Event::LinkChanged(link)) if link.mtu == 1234);
        Ok(seen.then_some(()))
    })?;
    // The near end goes because its peer does.
    pair.far_netlink.delete_link(pair.far_link.index)?;
    let gone = Event::LinkGone { index, name: "near0".into() };
    wait_until("the deletion", || Ok((monitor.next(BOUND)? == Some(gone.clone())).then_some(())))?;
    while monitor.next(Duration::ZERO)?.is_some() {}
    assert_eq!(monitor.next(Duration::from_millis(1))?, None);
    Ok(())
}

fn offloads_read_back_as_set() -> Result<()> {
    let pair = Pair::new()?;
    pair.near.run(|| {
        let features = [
            Feature::TxVlan,
            Feature::RxVlan,
            Feature::Gro,
            Feature::Tso,
            Feature::Gso,
            Feature::ScatterGather,
            Feature::TxChecksum,
        ];
        for feature in features {
            for state in [State::Off, State::On, State::Off] {
                ethtool::set("near0", feature, state)?;
                assert_eq!(ethtool::get("near0", feature)?, state, "{feature:?}");
            }
        }
        anyhow::Ok(())
    })?
}

fn ipv6_is_turned_off_and_on_in_the_named_namespace() -> Result<()> {
    let pair = Pair::new()?;
    set_disable_ipv6(Some(&pair.far), "far0")?;
    let path = "/proc/sys/net/ipv6/conf/far0/disable_ipv6";
    let value = pair.far.run(|| std::fs::read_to_string(path))??;
    assert_eq!(value.trim(), "1");
    take_only_given_ipv6(&pair.far, "far0")?;
    for (switch, expected) in [("disable_ipv6", "0"), ("accept_ra", "0")] {
        let path = format!("/proc/sys/net/ipv6/conf/far0/{switch}");
        let value = pair.far.run(|| std::fs::read_to_string(path))??;
        assert_eq!(value.trim(), expected, "{switch}");
    }
    let Err(error) = set_disable_ipv6(Some(&pair.far), "none0") else { bail!("no such device") };
    assert!(error.to_string().contains("none0"), "{error}");
    pair.near.run(|| set_disable_ipv6(None, "near0"))??;
    let seen =
        pair.near.run_with_sysfs(|| std::path::Path::new("/sys/class/net/near0").exists())?;
    assert!(seen, "a fresh sysfs shows the namespace's devices");
    Ok(())
}

fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("wt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn a_named_namespace_is_made_found_and_removed() -> Result<()> {
    let name = unique_name();
    let mine = Namespace::current()?;
    let made = Namespace::create_named(&name)?;
    let outcome = check_named(&name, &made, &mine);
    Namespace::delete_named(&name)?;
    outcome?;
    ensure!(Namespace::open_named(&name).is_err(), "the name is still there");
    ensure!(Namespace::delete_named(&name).is_err(), "deleted twice");
    // Held open, the namespace itself lives on.
    made.run(|| ())?;
    assert_eq!(Namespace::current()?.inode(), mine.inode());
    Ok(())
}

fn check_named(name: &str, made: &Namespace, mine: &Namespace) -> Result<()> {
    ensure!(Namespace::create_named(name).is_err(), "made twice");
    let found = Namespace::open_named(name)?;
    assert_eq!(found.inode(), made.inode());
    assert_eq!(made.run(Namespace::current)??.inode(), made.inode());
    let cookies = HashSet::from([made.cookie()?, mine.cookie()?, found.cookie()?]);
    assert_eq!(cookies.len(), 2);
    Ok(())
}

fn a_packet_socket_shows_the_vlan_tag() -> Result<()> {
    let pair = Pair::new()?;
    let near = pair.near.run(|| PacketSocket::open("near0"))??;
    let far = pair.far.run(|| PacketSocket::open("far0"))??;
    let mut frame = [FAR_MAC, NEAR_MAC].concat();
    frame.extend([0x81, 0, 0x20, 0x64, 0x88, 0xb5]);
    frame.extend([0x5a; 46]);
    near.send(&frame)?;
    wait_until("the frame", || Ok((far.receive(BOUND)? == Some(frame.clone())).then_some(())))?;
    assert_ne!(near.receive(Duration::from_millis(1))?, Some(frame), "its own frame came back");
    Ok(())
}
