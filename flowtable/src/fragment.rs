//! What became of the first fragment of a datagram, for the fragments without ports that follow.
//!
//! One for all workers, behind a lock: a later fragment has no ports, so it may come to another
//! worker than the first. Of a fixed number of datagrams, all memory reserved at the start. Entries
//! are kept in the order in which they were noted, all together and by sender. When the table is
//! full the oldest goes; when a sender (a source address within a VRF) has a quarter of the table,
//! its own oldest goes, so that no sender pushes out the others. Lookup is by a keyed hash.
//!
//! Nothing expires by itself: the dead are the oldest, so they are the first to be overwritten.

use std::net::IpAddr;

use rapidhash::v3::{RapidSecrets, rapidhash_v3_inline};

use crate::ids::Vrf;
use crate::key::stored;

/// How long a datagram is remembered, seconds. RFC 791, section 3.2 starts at 15 s and RFC 8200,
/// section 4.5 ends reassembly at 60 s; that is the receiver's time. A forwarder sees the fragments
/// milliseconds apart, and the 16-bit IPv4 identification of a busy pair of hosts comes round
/// within seconds (RFC 6864), so the shorter the safer; 30 s is what Linux grants an IPv4 datagram.
pub const LIFETIME_S: u64 = 30;

/// What the fragments of a datagram have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FragKey {
    vrf: Vrf,
    protocol: u8,
    src: IpAddr,
    dst: IpAddr,
    id: u32,
}

impl FragKey {
    /// The datagram from `src` to `dst` with this identification. Over IPv4 the protocol tells
    /// datagrams apart (RFC 791, section 3.2). Over IPv6 it is ignored: the Next Header values of
    /// the fragments of one packet may differ (RFC 8200, section 4.5).
    #[must_use]
    pub const fn new(vrf: Vrf, protocol: u8, (src, dst): (IpAddr, IpAddr), id: u32) -> Self {
        let protocol = if src.is_ipv6() { 0 } else { protocol };
        Self { vrf, protocol, src, dst, id }
    }

    /// The routing instance.
    #[must_use]
    pub const fn vrf(&self) -> Vrf {
        self.vrf
    }

    /// The sender.
    #[must_use]
    pub const fn src(&self) -> IpAddr {
        self.src
    }

    fn hash(&self, secrets: &RapidSecrets) -> u64 {
        let mut bytes = [0; 41];
        bytes[..16].copy_from_slice(&stored(self.src));
        bytes[16..32].copy_from_slice(&stored(self.dst));
        bytes[32..36].copy_from_slice(&self.id.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.vrf.get().to_le_bytes());
        bytes[40] = self.protocol;
        rapidhash_v3_inline::<true, true, true>(&bytes, secrets)
    }

    fn sender_hash(&self, secrets: &RapidSecrets) -> u64 {
        let mut bytes = [0; 20];
        bytes[..16].copy_from_slice(&stored(self.src));
        bytes[16..].copy_from_slice(&self.vrf.get().to_le_bytes());
        rapidhash_v3_inline::<true, true, true>(&bytes, secrets)
    }
}

/// No entry.
const NIL: u32 = u32::MAX;

/// Neighbours in a doubly linked list.
#[derive(Debug, Clone, Copy)]
struct Links {
    older: u32,
    newer: u32,
}

/// A list in the order of noting.
#[derive(Debug, Clone, Copy)]
struct Ends {
    oldest: u32,
    newest: u32,
}

const EMPTY: Ends = Ends { oldest: NIL, newest: NIL };

/// Which of an entry's two lists.
#[derive(Debug, Clone, Copy)]
enum List {
    All = 0,
    OfSender = 1,
}

#[derive(Debug, Clone, Copy)]
struct Entry<V> {
    key: FragKey,
    value: V,
    noted_s: u64,
    /// Next entry in the bucket.
    chain: u32,
    bucket: u32,
    sender: u32,
    links: [Links; 2],
}

/// A source address that has entries; lives in a slab as large as the table.
#[derive(Debug, Clone, Copy)]
struct Sender {
    vrf: Vrf,
    src: IpAddr,
    /// Next sender in the bucket, or next free one.
    chain: u32,
    bucket: u32,
    count: u32,
    entries: Ends,
}

/// The datagrams whose first fragment was seen, with what was decided about it.
#[derive(Debug)]
pub struct FragTable<V: Copy> {
    secrets: Secrets,
    /// Grows to its reserved capacity, then entries are reused.
    entries: Vec<Entry<V>>,
    capacity: usize,
    /// First entry and first sender by hash; a power of two, twice the capacity.
    entry_buckets: Box<[u32]>,
    sender_buckets: Box<[u32]>,
    senders: Vec<Sender>,
    free_entries: u32,
    free_senders: u32,
    all: Ends,
    evicted_count: u64,
}

/// The key of the hash, not to be printed: who knows it can choose datagrams that collide.
struct Secrets(RapidSecrets);

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets")
    }
}

impl<V: Copy> FragTable<V> {
    /// A table of `capacity` datagrams, rounded into 4..=2^20, with a hash keyed by `seed`, which
    /// senders must not know. Reserves about 200 bytes a datagram.
    #[must_use]
    pub fn new(capacity: usize, seed: u64) -> Self {
        let capacity = capacity.clamp(4, 1 << 20);
        let buckets = || vec![NIL; capacity.next_power_of_two() * 2].into_boxed_slice();
        Self {
            secrets: Secrets(RapidSecrets::seed(seed)),
            entries: Vec::with_capacity(capacity),
            capacity,
            entry_buckets: buckets(),
            sender_buckets: buckets(),
            senders: Vec::with_capacity(capacity),
            free_entries: NIL,
            free_senders: NIL,
            all: EMPTY,
            evicted_count: 0,
        }
    }

    /// Most datagrams it can hold.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Most datagrams of one sender: a quarter.
    #[must_use]
    pub const fn sender_capacity(&self) -> usize {
        self.capacity / 4
    }

    /// How many datagrams were pushed out by others before their time.
    #[must_use]
    pub const fn evicted_count(&self) -> u64 {
        self.evicted_count
    }

    /// What was noted for this datagram within the last [`LIFETIME_S`].
    #[must_use]
    pub fn find(&self, key: &FragKey, now_s: u64) -> Option<V> {
        let entry = &self.entries[self.position(self.bucket_of(key), key)? as usize];
        entry.is_alive(now_s).then_some(entry.value)
    }

    /// Notes a datagram, or notes it anew: it is the youngest then, with this value.
    pub fn note(&mut self, key: FragKey, value: V, now_s: u64) {
        let bucket = self.bucket_of(&key);
        if let Some(known) = self.position(bucket, &key) {
            self.remove(known);
        }
        let sender = self.sender_position(&key);
        let full = self.entries.len() == self.capacity && self.free_entries == NIL;
        let victim = match sender.map(|at| &self.senders[at as usize]) {
            Some(sender) if sender.count as usize >= self.sender_capacity() => {
                sender.entries.oldest
            }
            Some(_) | None if full => self.all.oldest,
            Some(_) | None => NIL,
        };
        if victim != NIL {
            self.evicted_count += u64::from(self.entries[victim as usize].is_alive(now_s));
            self.remove(victim);
        }
        // Looked for again: with its only entry, a sender goes.
        let sender = self.sender_position(&key).unwrap_or_else(|| self.add_sender(&key));
        let links = [Links { older: NIL, newer: NIL }; 2];
        let chain = self.entry_buckets[bucket as usize];
        let at = self.place(Entry { key, value, noted_s: now_s, chain, bucket, sender, links });
        self.entry_buckets[bucket as usize] = at;
        self.append(List::All, at);
        self.append(List::OfSender, at);
        self.senders[sender as usize].count += 1;
    }

    /// Forgets all datagrams, as when what was decided about them may no longer hold.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.senders.clear();
        self.entry_buckets.fill(NIL);
        self.sender_buckets.fill(NIL);
        (self.free_entries, self.free_senders, self.all) = (NIL, NIL, EMPTY);
    }

    fn bucket_of(&self, key: &FragKey) -> u32 {
        key.hash(&self.secrets.0) as u32 & (self.entry_buckets.len() - 1) as u32
    }

    fn position(&self, bucket: u32, key: &FragKey) -> Option<u32> {
        let mut at = self.entry_buckets[bucket as usize];
        while at != NIL {
            let entry = &self.entries[at as usize];
            if entry.key == *key {
                return Some(at);
            }
            at = entry.chain;
        }
        None
    }

    fn sender_bucket_of(&self, key: &FragKey) -> u32 {
        key.sender_hash(&self.secrets.0) as u32 & (self.sender_buckets.len() - 1) as u32
    }

    fn sender_position(&self, key: &FragKey) -> Option<u32> {
        let mut at = self.sender_buckets[self.sender_bucket_of(key) as usize];
        while at != NIL {
            let sender = &self.senders[at as usize];
            if (sender.vrf, sender.src) == (key.vrf, key.src) {
                return Some(at);
            }
            at = sender.chain;
        }
        None
    }

    /// Stores an entry in a free place; there is one.
    fn place(&mut self, entry: Entry<V>) -> u32 {
        let at = self.free_entries;
        if at == NIL {
            self.entries.push(entry);
            return (self.entries.len() - 1) as u32;
        }
        self.free_entries = self.entries[at as usize].chain;
        self.entries[at as usize] = entry;
        at
    }

    /// A sender without entries; there is room, as every other sender has at least one entry.
    fn add_sender(&mut self, key: &FragKey) -> u32 {
        let bucket = self.sender_bucket_of(key);
        let chain = self.sender_buckets[bucket as usize];
        let sender = Sender { vrf: key.vrf, src: key.src, chain, bucket, count: 0, entries: EMPTY };
        let at = self.free_senders;
        let at = if at == NIL {
            self.senders.push(sender);
            (self.senders.len() - 1) as u32
        } else {
            self.free_senders = self.senders[at as usize].chain;
            self.senders[at as usize] = sender;
            at
        };
        self.sender_buckets[bucket as usize] = at;
        at
    }

    fn remove(&mut self, at: u32) {
        self.unlink(List::All, at);
        self.unlink(List::OfSender, at);
        let Entry { chain, bucket, sender, .. } = self.entries[at as usize];
        let (mut before, mut seen) = (NIL, self.entry_buckets[bucket as usize]);
        while seen != at {
            (before, seen) = (seen, self.entries[seen as usize].chain);
        }
        if before == NIL {
            self.entry_buckets[bucket as usize] = chain;
        } else {
            self.entries[before as usize].chain = chain;
        }
        self.entries[at as usize].chain = self.free_entries;
        self.free_entries = at;
        self.senders[sender as usize].count -= 1;
        if self.senders[sender as usize].count == 0 {
            self.remove_sender(sender);
        }
    }

    fn remove_sender(&mut self, at: u32) {
        let Sender { chain, bucket, .. } = self.senders[at as usize];
        let (mut before, mut seen) = (NIL, self.sender_buckets[bucket as usize]);
        while seen != at {
            (before, seen) = (seen, self.senders[seen as usize].chain);
        }
        if before == NIL {
            self.sender_buckets[bucket as usize] = chain;
        } else {
            self.senders[before as usize].chain = chain;
        }
        self.senders[at as usize].chain = self.free_senders;
        self.free_senders = at;
    }

    fn ends(&mut self, list: List, at: u32) -> &mut Ends {
        match list {
            List::All => &mut self.all,
            List::OfSender => {
                let sender = self.entries[at as usize].sender;
                &mut self.senders[sender as usize].entries
            }
        }
    }

    /// Puts an entry at the young end of a list.
    fn append(&mut self, list: List, at: u32) {
        let ends = self.ends(list, at);
        let older = ends.newest;
        ends.newest = at;
        if older == NIL {
            ends.oldest = at;
        } else {
            self.entries[older as usize].links[list as usize].newer = at;
        }
        self.entries[at as usize].links[list as usize] = Links { older, newer: NIL };
    }

    fn unlink(&mut self, list: List, at: u32) {
        let Links { older, newer } = self.entries[at as usize].links[list as usize];
        if older == NIL {
            self.ends(list, at).oldest = newer;
        } else {
            self.entries[older as usize].links[list as usize].newer = newer;
        }
        if newer == NIL {
            self.ends(list, at).newest = older;
        } else {
            self.entries[newer as usize].links[list as usize].older = older;
        }
    }
}

impl<V> Entry<V> {
    /// An entry from the future is from before the clock stepped back, and counts as new.
    const fn is_alive(&self, now_s: u64) -> bool {
        now_s.saturating_sub(self.noted_s) < LIFETIME_S
    }
}
