//! What to write so that the engine's tables become the compiled ones.

use std::collections::BTreeMap;

use flowtable::entry::{Entry, EntryKey, Op};

/// Entries by identity.
pub(crate) type Tables = BTreeMap<EntryKey, Entry>;

/// Entries by identity; of two with the same key the later stays, as it would in the engine.
pub(crate) fn tables(entries: Vec<Entry>) -> Tables {
    entries.into_iter().map(|entry| (entry.key(), entry)).collect()
}

/// Turns `old` into `new`, with as few ops as possible.
pub(crate) fn delta(old: &Tables, new: &Tables) -> Vec<Op> {
    // What names others comes behind them in the order of keys: it goes first and comes last.
    let gone = old.keys().rev().filter(|key| !new.contains_key(key)).map(|key| Op::Delete(*key));
    let put = new.iter().filter(|(key, entry)| old.get(key) != Some(entry));
    gone.chain(put.map(|(_, entry)| Op::Put(entry.clone()))).collect()
}

/// Makes `new` whatever the engine holds.
pub(crate) fn replacement(new: &Tables) -> Vec<Op> {
    [Op::Clear].into_iter().chain(new.values().cloned().map(Op::Put)).collect()
}

#[cfg(test)]
mod tests {
    use flowtable::entry::{
        Band, MeterEntry, MeterUnit, Permit, QosEntry, TenantEntry, TunnelEntry,
    };
    use flowtable::ids::{Bd, MeterId, PortId, Vni, Vrf};

    use super::*;

    fn vrf(n: u32) -> Vrf {
        Vrf::new(n).unwrap()
    }

    fn tenant(n: u32, default: Permit) -> Entry {
        Entry::Tenant(TenantEntry::new(vrf(n), default))
    }

    fn tunnel(n: u32) -> Entry {
        let (vni, bd) = (Vni::new(n).unwrap(), Bd::new(n).unwrap());
        Entry::Tunnel(TunnelEntry { vni, bd, vrf: vrf(1) })
    }

    /// What an engine does with a batch.
    fn applied(tables: &Tables, ops: &[Op]) -> Tables {
        let mut tables = tables.clone();
        for op in ops {
            match op {
                Op::Put(entry) => drop(tables.insert(entry.key(), entry.clone())),
                Op::Delete(key) => drop(tables.remove(key)),
                Op::Clear => tables.clear(),
            }
        }
        tables
    }

    #[test]
    fn unchanged_tables_need_no_write() {
        let same = tables(vec![tenant(1, Permit::Allow), tunnel(5)]);
        assert_eq!(delta(&same, &same), []);
    }

    #[test]
    fn a_delta_names_only_what_changed() {
        let old = tables(vec![tenant(1, Permit::Allow), tunnel(5), tunnel(6)]);
        let new = tables(vec![tenant(1, Permit::Deny), tunnel(6), tunnel(7)]);
        let ops = delta(&old, &new);
        assert_eq!(
            ops,
            [Op::Delete(tunnel(5).key()), Op::Put(tunnel(7)), Op::Put(tenant(1, Permit::Deny)),]
        );
        assert_eq!(applied(&old, &ops), new);
    }

    fn meter(n: u32) -> Entry {
        let committed = Band { rate: 1000, burst: 1518 };
        let (meter, unit) = (MeterId::new(n).unwrap(), MeterUnit::Bits);
        Entry::Meter(MeterEntry { meter, unit, committed, peak: None, yellow_dscp: None })
    }

    fn qos(port: u32, meter: u32) -> Entry {
        let (port, meters) = (PortId::new(port).unwrap(), vec![MeterId::new(meter).unwrap()]);
        Entry::Qos(QosEntry { port, from: meters.clone(), to: meters, dscp: None })
    }

    #[test]
    fn meters_come_before_the_ports_that_name_them_and_go_after() {
        let limited = tables(vec![qos(5, 10), meter(10)]);
        let none = Tables::new();
        assert_eq!(delta(&none, &limited), [Op::Put(meter(10)), Op::Put(qos(5, 10))]);
        assert_eq!(
            delta(&limited, &none),
            [Op::Delete(qos(5, 10).key()), Op::Delete(meter(10).key())]
        );
        assert_eq!(replacement(&limited), [Op::Clear, Op::Put(meter(10)), Op::Put(qos(5, 10))]);
    }

    #[test]
    fn a_replacement_holds_whatever_was_there() {
        let unknown = tables(vec![tunnel(1), tunnel(2), tenant(9, Permit::Deny)]);
        let new = tables(vec![tenant(1, Permit::Allow), tunnel(2)]);
        let ops = replacement(&new);
        assert_eq!(ops[0], Op::Clear);
        assert_eq!(applied(&unknown, &ops), new);
    }

    #[test]
    fn of_two_entries_with_one_key_the_later_stays() {
        let both = tables(vec![tenant(1, Permit::Allow), tenant(1, Permit::Deny)]);
        assert_eq!(both.into_values().collect::<Vec<_>>(), [tenant(1, Permit::Deny)]);
    }
}
