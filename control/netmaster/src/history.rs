//! Whose history a store holds, so that a node can tell a store that was lost, restored from a backup
//! or swapped from the one its intent is of.
//!
//! `meta/cluster` is drawn once. `meta/term/NUMBER` is an instance, drawn by each netmaster that
//! begins to lead, and the store's revision before it began. What a node has heard from an instance
//! is part of this history if the instance is in it and its term came that far.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::str::FromStr;

use control_store::{Op, Value};

const CLUSTER: &[u8] = b"meta/cluster";
const TERM: &str = "meta/term/";
/// Terms that are kept: a node that was away for longer gets a snapshot.
const TERMS_MAX: usize = 64;

/// Identifies a store's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cluster(u64);

impl Cluster {
    pub(crate) const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Not the 16 hexadecimal digits of a cluster, or all of them 0.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("want the 16 hexadecimal digits that netmaster and netplugin log")]
pub(crate) struct BadCluster;

impl FromStr for Cluster {
    type Err = BadCluster;

    fn from_str(text: &str) -> Result<Self, BadCluster> {
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).ok().filter(|number| is_hex && *number != 0);
        number.map(Self).ok_or(BadCluster)
    }
}

/// What a node's intent is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) cluster: u64,
    pub(crate) instance: u64,
    pub(crate) revision: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Term {
    instance: u64,
    /// Where the term before it ended. A store that shares its revisions with others, as in etcd,
    /// has gaps: the revision that began this term says nothing of that.
    after: u64,
    /// The revision that began it.
    at: u64,
}

/// The identity of a store and its latest terms, by number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct History {
    cluster: Option<Cluster>,
    terms: BTreeMap<u64, Term>,
}

impl History {
    /// Takes in a stored item; false: it is none of a history.
    pub(crate) fn take(&mut self, key: &[u8], value: &Value) -> bool {
        let text = std::str::from_utf8(&value.bytes).unwrap_or_default();
        if key == CLUSTER {
            self.cluster = text.parse().ok();
            return self.cluster.is_some();
        }
        let key = std::str::from_utf8(key).unwrap_or_default();
        let number = key.strip_prefix(TERM).and_then(|number| number.parse().ok());
        let (Some(number), Some((instance, after))) = (number, text.split_once(' ')) else {
            return false;
        };
        let (Ok(instance), Ok(after)) = (instance.parse(), after.parse()) else { return false };
        self.terms.insert(number, Term { instance, after, at: value.revision });
        true
    }

    pub(crate) const fn cluster(&self) -> Option<Cluster> {
        self.cluster
    }

    /// What begins the term of `instance` in a store at revision `after`; one without identity becomes
    /// `cluster`.
    pub(crate) fn begin(&self, instance: u64, cluster: Cluster, after: u64) -> Vec<Op> {
        let last = self.terms.last_key_value().map_or(0, |(number, _)| *number);
        let key = |number| format!("{TERM}{number:020}").into_bytes();
        let mut ops = vec![Op::Put(key(last + 1), format!("{instance} {after}").into_bytes())];
        if self.cluster.is_none() {
            ops.push(Op::Put(CLUSTER.to_vec(), cluster.to_string().into_bytes()));
        }
        let surplus = (self.terms.len() + 1).saturating_sub(TERMS_MAX);
        ops.extend(self.terms.keys().take(surplus).map(|number| Op::Delete(key(*number))));
        ops
    }

    /// Where a store at `revision` was before terms began that nothing was written in: what a node can
    /// have in force. The beginning of a term is told to nobody.
    pub(crate) fn written(&self, revision: u64) -> u64 {
        let last = |revision, term: &Term| if term.at == revision { term.after } else { revision };
        self.terms.values().rev().fold(revision, last)
    }

    /// Whether what a node knows happened in this history, which has come to `revision`.
    pub(crate) fn has(&self, known: Known, revision: u64) -> bool {
        let mut terms = self.terms.values();
        let is_ours = self.cluster.map(Cluster::number) == Some(known.cluster);
        let is_there = terms.any(|term| term.instance == known.instance);
        let end = terms.next().map_or(revision, |next| next.after);
        is_ours && is_there && known.revision > 0 && known.revision <= end
    }
}

/// A number that no other process has.
pub(crate) fn draw() -> u64 {
    RandomState::new().build_hasher().finish().max(1)
}

/// An identity for a new store.
pub(crate) fn draw_cluster() -> Cluster {
    Cluster(draw())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(history: &mut History, ops: Vec<Op>, revision: u64) {
        for op in ops {
            match op {
                Op::Put(key, bytes) => assert!(history.take(&key, &Value { bytes, revision })),
                Op::Delete(key) => {
                    let number = std::str::from_utf8(&key[TERM.len()..]).unwrap();
                    history.terms.remove(&number.parse().unwrap());
                }
            }
        }
    }

    /// Instance 1 from revision 1 to 9, 2 from 12 to 19, 3 from 20.
    fn example() -> History {
        let mut history = History::default();
        for (instance, after, revision) in [(1, 0, 1), (2, 9, 12), (3, 19, 20)] {
            let ops = history.begin(instance, Cluster(7), after);
            written(&mut history, ops, revision);
        }
        history
    }

    #[test]
    fn what_was_heard_within_a_term_is_known_and_nothing_else() {
        let history = example();
        let has =
            |cluster, instance, revision| history.has(Known { cluster, instance, revision }, 25);
        assert!(has(7, 1, 5) && has(7, 1, 9) && has(7, 2, 19) && has(7, 3, 25));
        // An instance that goes on from what another one wrote.
        assert!(has(7, 3, 15));
        for (cluster, instance, revision, what) in [
            (8, 3, 22, "another cluster"),
            (7, 9, 22, "another instance"),
            (7, 1, 10, "after the term: the store was restored from a backup"),
            (7, 3, 26, "after everything"),
            (7, 3, 0, "nothing"),
        ] {
            assert!(!has(cluster, instance, revision), "{what}");
        }
    }

    #[test]
    fn a_node_is_not_behind_for_the_beginning_of_a_term() {
        let history = example();
        assert_eq!((history.written(25), history.written(20)), (25, 19));
        let mut idle = example();
        let ops = idle.begin(4, Cluster(7), 20);
        written(&mut idle, ops, 23);
        assert_eq!(idle.written(23), 19);
    }

    #[test]
    fn the_identity_stays_and_old_terms_go() {
        let mut history = example();
        for instance in 4..200 {
            let ops = history.begin(instance, Cluster(9), instance * 10 - 1);
            written(&mut history, ops, instance * 10);
        }
        assert_eq!(history.cluster(), Some(Cluster(7)));
        assert_eq!(history.terms.len(), TERMS_MAX);
        assert!(history.has(Known { cluster: 7, instance: 199, revision: 1990 }, 1990));
        assert!(!history.has(Known { cluster: 7, instance: 3, revision: 25 }, 1990));
    }

    #[test]
    fn a_cluster_is_sixteen_digits() {
        let cluster: Cluster = "00000000000000ff".parse().unwrap();
        assert_eq!((cluster.number(), cluster.to_string().as_str()), (255, "00000000000000ff"));
        for bad in ["", "ff", "0000000000000000", "00000000000000fg", "+0000000000000ff"] {
            assert_eq!(bad.parse::<Cluster>(), Err(BadCluster), "{bad}");
        }
    }

    #[test]
    fn what_is_no_part_of_a_history_is_not_taken() {
        let mut history = History::default();
        let value = |text: &str| Value { bytes: text.into(), revision: 1 };
        assert!(!history.take(b"meta/other", &value("1")));
        assert!(!history.take(b"meta/cluster", &value("x")));
        assert!(!history.take(b"meta/term/x", &value("1")));
        assert_eq!(history, History::default());
    }
}
