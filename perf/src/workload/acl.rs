//! The rules: mixed masks on the 5-tuples of the flows, all of them permits, the last one for what
//! the tenant's containers send over UDP.

use anyhow::Result;
use flowtable::entry::{Direction, Permit, PortRange, Prefix, RuleEntry};
use flowtable::ids::{RuleId, Vrf};

use super::{Flow, SOURCES, flow, v4};

/// Rules are made from the first 100,000 flows, in steps of this prime.
const STEP: u32 = 7919;
const FLOWS: u32 = 100_000;
/// Flows lie in 10.0.0.0/10: 4,194,304 addresses.
const SOURCES_LEN: u8 = 10;
/// Rules beyond this many share a priority; all of them are permits.
const PRIORITIES: u32 = 65_000;
const UDP: u8 = 17;

/// `count` rules in the order of their priorities.
pub(super) fn rules(count: u32, vrf: Vrf, direction: Direction) -> Result<Vec<RuleEntry>> {
    let last = count.checked_sub(1);
    let rule = |number| {
        let blank = blank(number, vrf, direction);
        if Some(number) == last {
            let src = Some(Prefix::new(v4(SOURCES), SOURCES_LEN)?);
            return Ok(RuleEntry { priority: 1, src, ..blank });
        }
        narrowed(number, blank)
    };
    (0..count).map(rule).collect()
}

fn blank(number: u32, vrf: Vrf, direction: Direction) -> RuleEntry {
    RuleEntry {
        priority: (PRIORITIES + 2 - number.min(PRIORITIES)) as u16,
        protocol: Some(UDP),
        ..RuleEntry::any(
            RuleId((u64::from(vrf.get()) << 32) + u64::from(number) + 1),
            vrf,
            direction,
            Permit::Allow,
        )
    }
}

fn narrowed(number: u32, mut rule: RuleEntry) -> Result<RuleEntry> {
    let Flow { src, dst, src_port, dst_port } = flow(number.wrapping_mul(STEP) % FLOWS);
    let block = |ip: u32, len: u8| Prefix::new(v4(ip), len).map(Some);
    let one = |port: u16| Some(PortRange { first: port, last: port });
    match number % 5 {
        0 => {
            (rule.src, rule.dst) = (block(src, 24)?, block(dst, 24)?);
            rule.dst_ports = one(dst_port);
        }
        1 => {
            (rule.src, rule.dst) = (block(src, 12)?, block(dst, 32)?);
            rule.dst_ports = one(dst_port);
        }
        2 => {
            rule.dst = block(dst, 20)?;
            rule.dst_ports = one((10_000 + number % 50_000) as u16);
        }
        3 => {
            (rule.src, rule.dst) = (block(src, 32)?, block(dst, 32)?);
            (rule.src_ports, rule.dst_ports) = (one(src_port), one(dst_port));
        }
        _ => {
            (rule.src, rule.dst) = (block(src, 28)?, block(dst, 16)?);
            rule.dst_ports = Some(PortRange { first: 8080, last: 8095 });
        }
    }
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_those_of_the_peers_in_their_order() {
        let rules = rules(1000, Vrf::new(10).unwrap(), Direction::Out).unwrap();
        assert_eq!(rules.len(), 1000);
        assert!(rules.windows(2).all(|pair| pair[0].priority > pair[1].priority));
        let prefix = |ip: u32, len| Some(Prefix::new(v4(ip), len).unwrap());
        let one = |port| Some(PortRange { first: port, last: port });
        let (first, second, third, fourth) = (&rules[0], &rules[1], &rules[777], &rules[998]);
        assert_eq!((first.src, first.dst), (prefix(167_772_160, 24), prefix(2_886_729_728, 24)));
        assert_eq!((second.src, second.dst), (prefix(167_772_160, 12), prefix(2_886_965_000, 32)));
        assert_eq!((third.src, third.dst), (None, prefix(2_886_742_016, 20)));
        assert_eq!((third.dst_ports, second.dst_ports), (one(10_777), one(443)));
        assert_eq!((fourth.src, fourth.dst), (prefix(167_775_322, 32), prefix(2_886_771_204, 32)));
        assert_eq!((fourth.src_ports, fourth.dst_ports), (one(15_669), one(443)));
        let last = &rules[999];
        assert_eq!((last.src, last.dst, last.protocol), (prefix(SOURCES, 10), None, Some(17)));
    }

    #[test]
    fn the_last_of_many_rules_is_below_all_others() {
        let rules = rules(100_000, Vrf::new(10).unwrap(), Direction::In).unwrap();
        let (last, others) = rules.split_last().unwrap();
        assert_eq!(last.priority, 1);
        assert!(others.iter().all(|rule| rule.priority > 1 && rule.src != last.src));
    }
}
