//! The routes: prefixes of four lengths that overlap, each to a MAC of its own, and a slow oracle
//! for the longest match.

use std::ops::Range;

use flowtable::ids::Mac;

use super::DESTINATIONS;

/// A prefix and the MAC behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// First address.
    pub address: u32,
    /// Number of fixed bits.
    pub len: u8,
    /// The receiver.
    pub mac: Mac,
}

impl Route {
    fn contains(&self, ip: u32) -> bool {
        (ip ^ self.address).checked_shr(32 - u32::from(self.len)).is_none_or(|rest| rest == 0)
    }
}

/// All routes of a tenant, in the order of the peers' measurements.
#[derive(Debug, Clone)]
pub struct Routes(Vec<Route>);

impl Routes {
    /// The 1,000 routes that the flows use, and as many more that they don't as `count` asks for.
    #[must_use]
    pub fn new(count: u32) -> Self {
        let block = |shift: u32, len: u8, base: u32| move |p: u32| (base + (p << shift), len);
        let run = |range: Range<u32>| range.step_by(1);
        let used = run(0..900)
            .map(block(8, 24, DESTINATIONS))
            .chain(run(0..60).map(block(12, 20, DESTINATIONS)))
            .chain((0..150).step_by(5).map(block(8, 28, DESTINATIONS)))
            .chain(run(0..4).map(block(16, 16, DESTINATIONS)))
            .chain(run(0..6).map(block(16, 16, 0xac80_0000)));
        let more = run(0..count.saturating_sub(1000)).map(block(8, 24, 0xc000_0000));
        let route = |(number, (address, len)): (u32, (u32, u8))| {
            let [_, _, high, low] = number.to_be_bytes();
            Route { address, len, mac: Mac([2, 1, 0, 0, high, low]) }
        };
        Self((0..).zip(used.chain(more)).map(route).collect())
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Route] {
        &self.0
    }

    /// The MAC of the longest prefix that holds `ip`, by looking at all that flows use.
    #[must_use]
    pub fn mac(&self, ip: u32) -> Option<Mac> {
        let used = self.0.iter().take(1000).filter(|route| route.contains(ip));
        used.max_by_key(|route| route.len).map(|route| route.mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::flow;

    #[test]
    fn routes_and_their_longest_matches_are_those_of_the_peers() {
        let routes = Routes::new(1000);
        let place = |k: usize| (routes.all()[k].address, routes.all()[k].len);
        assert_eq!((routes.all().len(), place(0)), (1000, (0xac10_0000, 24)));
        assert_eq!((place(899), place(959)), ((0xac13_8300, 24), (0xac13_b000, 20)));
        assert_eq!((place(989), place(993)), ((0xac10_9100, 28), (0xac13_0000, 16)));
        assert_eq!(place(999), (0xac85_0000, 16));
        let number = |i: u32| {
            let Mac([.., high, low]) = routes.mac(flow(i).dst).unwrap();
            u64::from(u16::from_be_bytes([high, low]))
        };
        let of = [0, 1, 5, 20_000, 899, 900, 950, 975].map(number);
        assert_eq!(of, [960, 1, 961, 0, 899, 956, 959, 993]);
        // A sum over 20,000 flows, as pbl.py's prefixes give it.
        let sum: u64 = (0..20_000).map(|i| number(i) * (u64::from(i) + 1)).sum();
        assert_eq!(sum, 104_906_580_520);
    }

    #[test]
    fn more_routes_change_no_match() {
        let (few, many) = (Routes::new(1000), Routes::new(3000));
        assert_eq!((many.all().len(), few.mac(0x0808_0808)), (3000, None));
        assert!((0..2000).all(|i| many.mac(flow(i).dst) == few.mac(flow(i).dst)));
    }
}
