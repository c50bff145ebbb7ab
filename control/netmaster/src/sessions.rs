//! Who is connected: for each node its stream, what it has acknowledged, and the counters it was
//! asked for. Nothing here outlives the process, and nothing here is intent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control_api::v1::{AckRequest, RuleCounter};
use control_model::{EndpointId, NodeName};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// How long a write or a list waits for nodes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// A node that has not been connected for so long is dead: addresses are given out again without its
/// word. Were it only cut off, its containers would still treat such an address as its last holder's,
/// until it is back and has the newest intent. Without a bound one broken machine would keep every
/// address that is given back from being used.
pub(crate) const DEAD_AFTER: Duration = Duration::from_mins(1);
/// How long addresses are not chosen when a term begins, unless all nodes are in step before: time for
/// nodes to register what they run that a restored store does not have. Their longest pause between two
/// attempts, and then some.
pub(crate) const HOLD: Duration = Duration::from_secs(4);
/// Questions for counters a node may owe answers to; more are not asked.
const QUESTIONS_MAX: usize = 16;

/// The connected nodes. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    /// Woken whenever someone might wait no longer.
    changed: watch::Sender<()>,
    /// Nodes not seen yet may have been there until now.
    started: Instant,
}

impl Default for Shared {
    fn default() -> Self {
        let started = Instant::now();
        Self { table: Mutex::default(), changed: watch::Sender::new(()), started }
    }
}

impl From<Table> for Shared {
    fn from(table: Table) -> Self {
        Self { table: Mutex::new(table), ..Self::default() }
    }
}

#[derive(Debug, Default)]
struct Table {
    nodes: BTreeMap<NodeName, Node>,
    polls: BTreeMap<u64, Poll>,
    last_id: u64,
    /// Nodes of the store that may run what it does not have: it may have been restored.
    unheard: BTreeSet<NodeName>,
}

#[derive(Debug)]
struct Node {
    acked: u64,
    /// The last revision of which its stream has sent anything.
    sent: u64,
    /// Its stream has sent everything of its concern up to here.
    position: u64,
    stream: Option<OpenStream>,
    /// When it was heard of last, unless it is connected.
    seen: Instant,
    /// Endpoints that its last inventory did not list.
    missing: BTreeSet<EndpointId>,
}

impl Node {
    fn seen_now() -> Self {
        Self {
            acked: 0,
            sent: 0,
            position: 0,
            stream: None,
            seen: Instant::now(),
            missing: BTreeSet::new(),
        }
    }

    /// All intent of its concern up to this revision is in force on it. What was not sent, because it
    /// is none of its concern, needs no acknowledgement.
    const fn in_force(&self) -> u64 {
        if self.acked >= self.sent { self.position } else { self.acked }
    }
}

#[derive(Debug)]
struct OpenStream {
    id: u64,
    questions: mpsc::Sender<u64>,
}

/// Counters being collected.
#[derive(Debug, Default)]
struct Poll {
    waiting: BTreeSet<NodeName>,
    failed: BTreeSet<NodeName>,
    /// Packets and bytes by cookie.
    sums: BTreeMap<u64, (u64, u64)>,
}

/// What a node's session looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    /// All intent of its concern up to this revision is in force on it.
    pub(crate) in_force: u64,
    pub(crate) connected: bool,
    /// Not connected for [`DEAD_AFTER`].
    pub(crate) dead: bool,
}

/// A node's open stream; it is connected until this is dropped.
#[derive(Debug)]
pub(crate) struct Session {
    sessions: Sessions,
    node: NodeName,
    id: u64,
    questions: mpsc::Receiver<u64>,
}

impl Session {
    /// The id of the next question for counters; `None` when a newer stream has taken over.
    pub(crate) async fn question(&mut self) -> Option<u64> {
        self.questions.recv().await
    }

    /// Whose stream it is.
    pub(crate) const fn node(&self) -> &NodeName {
        &self.node
    }

    /// The stream has sent everything up to `position`; `sent` is the last revision with something to
    /// send.
    pub(crate) fn advance(&self, position: u64, sent: u64) {
        let mut table = self.sessions.lock();
        let node = table.nodes.get_mut(&self.node);
        let ours = |stream: &OpenStream| stream.id == self.id;
        if let Some(node) = node.filter(|node| node.stream.as_ref().is_some_and(ours)) {
            (node.position, node.sent) = (position, sent);
        }
        drop(table);
        self.sessions.shared.changed.send_replace(());
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut table = self.sessions.lock();
        if let Some(node) = table.nodes.get_mut(&self.node)
            && node.stream.take_if(|stream| stream.id == self.id).is_some()
        {
            node.seen = Instant::now();
        }
        drop(table);
        self.sessions.shared.changed.send_replace(());
    }
}

impl Sessions {
    /// Of a term that begins with these nodes in its store.
    pub(crate) fn begin(nodes: BTreeSet<NodeName>) -> Self {
        let table = Table { unheard: nodes, ..Table::default() };
        Self { shared: Arc::new(table.into()) }
    }

    /// A node's new stream, which has everything up to `position`; an older one of the node ends.
    pub(crate) fn open(&self, node: NodeName, position: u64) -> Session {
        let (sender, questions) = mpsc::channel(QUESTIONS_MAX);
        let mut table = self.lock();
        table.last_id += 1;
        let id = table.last_id;
        let stream = OpenStream { id, questions: sender };
        // What it had in force in an earlier life says nothing of this one: it tells soon.
        let known = Node { sent: position, position, stream: Some(stream), ..Node::seen_now() };
        table.nodes.insert(node.clone(), known);
        drop(table);
        Session { sessions: self.clone(), node, id, questions }
    }

    /// What a node has acknowledged, and counters if it was asked for them.
    pub(crate) fn acknowledge(&self, node: NodeName, ack: &AckRequest) {
        let mut table = self.lock();
        if let Some(poll) = table.polls.get_mut(&ack.stats_id) {
            poll.take(&node, ack);
        }
        // An answer with counters is sent beside the acknowledgements and may overtake them.
        if ack.stats_id == 0 {
            // A node whose engine was replaced may fall back: its word counts.
            if ack.revision > 0 && ack.error.is_empty() {
                table.unheard.remove(&node);
            }
            table.nodes.entry(node).or_insert_with(Node::seen_now).acked = ack.revision;
        }
        drop(table);
        self.shared.changed.send_replace(());
    }

    /// What a node's inventory lacks; what the one before lacked, too.
    pub(crate) fn missing(
        &self,
        node: &NodeName,
        missing: BTreeSet<EndpointId>,
    ) -> BTreeSet<EndpointId> {
        let mut table = self.lock();
        let known = table.nodes.entry(node.clone()).or_insert_with(Node::seen_now);
        let confirmed = missing.intersection(&known.missing).cloned().collect();
        known.missing = missing;
        confirmed
    }

    /// Whether a node's last inventory lacked an endpoint.
    pub(crate) fn is_missing(&self, node: &NodeName, endpoint: &EndpointId) -> bool {
        self.lock().nodes.get(node).is_some_and(|node| node.missing.contains(endpoint))
    }

    /// A node has registered; it opens its stream next.
    pub(crate) fn saw(&self, node: &NodeName) {
        let mut table = self.lock();
        table.nodes.entry(node.clone()).or_insert_with(Node::seen_now).seen = Instant::now();
    }

    pub(crate) fn standing(&self, node: &NodeName) -> Standing {
        let table = self.lock();
        self.standing_in(&table, node)
    }

    fn standing_in(&self, table: &Table, name: &NodeName) -> Standing {
        let known = table.nodes.get(name);
        let connected = known.is_some_and(|node| node.stream.is_some());
        let seen = known.map_or(self.shared.started, |node| node.seen);
        // Of one that is away nobody knows what it has in force.
        let in_force = known.filter(|_| connected).map_or(0, Node::in_force);
        Standing { in_force, connected, dead: !connected && seen.elapsed() >= DEAD_AFTER }
    }

    /// Those of `nodes` that live and may lack intent of `revision`.
    pub(crate) fn may_lack<'a>(
        &self,
        revision: u64,
        nodes: impl Iterator<Item = &'a NodeName>,
    ) -> Vec<&'a NodeName> {
        let table = self.lock();
        let lacks = |name: &&NodeName| {
            let standing = self.standing_in(&table, name);
            !standing.dead && standing.in_force < revision
        };
        nodes.filter(lacks).collect()
    }

    /// Sees every acknowledgement and every node that comes or goes.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }

    /// Forgets a node that is not connected.
    pub(crate) fn forget(&self, node: &NodeName) {
        let mut table = self.lock();
        if table.nodes.get(node).is_some_and(|known| known.stream.is_none()) {
            table.nodes.remove(node);
        }
        table.unheard.remove(node);
        drop(table);
        self.shared.changed.send_replace(());
    }

    /// What the node knows is part of the store's history.
    pub(crate) fn is_in_step(&self, node: &NodeName) {
        self.lock().unheard.remove(node);
        self.shared.changed.send_replace(());
    }

    /// Waits until addresses may be chosen: every node is in step, or has taken over what this store
    /// says, or [`HOLD`] is over.
    pub(crate) async fn wait_for_nodes_in_step(&self) {
        let mut changed = self.shared.changed.subscribe();
        let done = changed.wait_for(|()| self.lock().unheard.is_empty());
        // A node that does not come must not keep all addresses from being given out.
        drop(tokio::time::timeout_at(self.shared.started + HOLD, done).await);
    }

    /// Waits until every connected node has acknowledged `revision`, at most [`PATIENCE`]; the names
    /// of those that have not.
    pub(crate) async fn wait_for(&self, revision: u64) -> Vec<String> {
        self.wait(|table| table.behind(revision).next().is_none()).await;
        self.lock().behind(revision).map(ToString::to_string).collect()
    }

    /// Asks every connected node for its rule counters and adds them up, at most [`PATIENCE`]; and
    /// the names of nodes whose counters are missing.
    pub(crate) async fn rule_counters(&self) -> (BTreeMap<u64, RuleCounter>, Vec<String>) {
        let asked = Asked { sessions: self, id: self.lock().ask() };
        let id = asked.id;
        self.wait(|table| table.polls.get(&id).is_none_or(|poll| poll.waiting.is_empty())).await;
        let poll = asked.end();
        let sums = poll.sums.into_iter();
        let counters = sums
            .map(|(cookie, (packets, bytes))| (cookie, RuleCounter { cookie, packets, bytes }))
            .collect();
        let late = poll.waiting.union(&poll.failed).map(ToString::to_string).collect();
        (counters, late)
    }

    async fn wait(&self, is_done: impl Fn(&Table) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        let done = changed.wait_for(|()| is_done(&self.lock()));
        // Running out of patience is an answer too: the caller looks at who is late.
        drop(tokio::time::timeout(PATIENCE, done).await);
    }

    // No code that can panic runs while it is held.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.shared.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A poll under way. It ends with this, also when the client that asked goes away.
struct Asked<'a> {
    sessions: &'a Sessions,
    id: u64,
}

impl Asked<'_> {
    /// What has been collected.
    fn end(&self) -> Poll {
        self.sessions.lock().polls.remove(&self.id).unwrap_or_default()
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        drop(self.end());
    }
}

impl Table {
    fn behind(&self, revision: u64) -> impl Iterator<Item = &NodeName> {
        let connected = self.nodes.iter().filter(|(_, node)| node.stream.is_some());
        connected.filter(move |(_, node)| node.in_force() < revision).map(|(name, _)| name)
    }

    fn ask(&mut self) -> u64 {
        self.last_id += 1;
        let id = self.last_id;
        let mut poll = Poll::default();
        for (name, node) in &self.nodes {
            let Some(stream) = &node.stream else { continue };
            // One that owes so many answers is named late at once.
            match stream.questions.try_send(id) {
                Ok(()) => poll.waiting.insert(name.clone()),
                Err(_full_or_closed) => poll.failed.insert(name.clone()),
            };
        }
        self.polls.insert(id, poll);
        id
    }
}

impl Poll {
    fn take(&mut self, node: &NodeName, ack: &AckRequest) {
        if !self.waiting.remove(node) {
            return;
        }
        if !ack.error.is_empty() {
            self.failed.insert(node.clone());
        }
        for counter in &ack.counters {
            let sum = self.sums.entry(counter.cookie).or_default();
            sum.0 = sum.0.saturating_add(counter.packets);
            sum.1 = sum.1.saturating_add(counter.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeName {
        NodeName::parse("nodeName", name).unwrap()
    }

    fn ack(revision: u64) -> AckRequest {
        AckRequest { revision, ..AckRequest::default() }
    }

    fn connected(in_force: u64) -> Standing {
        Standing { in_force, connected: true, dead: false }
    }

    #[tokio::test(start_paused = true)]
    async fn only_connected_nodes_are_waited_for_and_late_ones_named() {
        let sessions = Sessions::default();
        assert_eq!(sessions.wait_for(5).await, Vec::<String>::new());
        let first = sessions.open(node("a"), 0);
        first.advance(5, 5);
        let second = sessions.open(node("b"), 0);
        second.advance(5, 5);
        sessions.acknowledge(node("a"), &ack(5));
        assert_eq!(sessions.wait_for(5).await, ["b"]);
        let (late, ()) = tokio::join!(sessions.wait_for(5), async { drop(second) });
        assert_eq!(late, Vec::<String>::new(), "one that goes is not waited for");
        assert_eq!(sessions.standing(&node("a")), connected(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_stream_of_a_node_ends_the_older() {
        let sessions = Sessions::default();
        let mut old = sessions.open(node("a"), 0);
        let new = sessions.open(node("a"), 0);
        assert_eq!(old.question().await, None);
        drop(old);
        assert!(sessions.standing(&node("a")).connected, "the newer one still is");
        drop(new);
        assert!(!sessions.standing(&node("a")).connected);
    }

    /// Answers the next question, twice: the second time must not count.
    async fn answer(stream: &mut Session, counters: Vec<RuleCounter>, error: &str) {
        let stats_id = stream.question().await.unwrap();
        let answer = AckRequest { stats_id, counters, error: error.into(), ..ack(1) };
        stream.sessions.acknowledge(stream.node.clone(), &answer);
        stream.sessions.acknowledge(stream.node.clone(), &answer);
    }

    #[tokio::test(start_paused = true)]
    async fn counters_of_all_nodes_are_added_up_and_missing_ones_named() {
        let sessions = Sessions::default();
        let mut streams = ["a", "b", "c", "d"].map(|name| sessions.open(node(name), 0));
        let counted = || vec![RuleCounter { cookie: 7, packets: 2, bytes: 100 }];
        let [first, second, _silent, broken] = &mut streams;
        let answers = async {
            answer(first, counted(), "").await;
            answer(second, counted(), "").await;
            answer(broken, vec![], "vrouterd is away").await;
        };
        let ((sums, late), ()) = tokio::join!(sessions.rule_counters(), answers);
        assert_eq!(sums[&7], RuleCounter { cookie: 7, packets: 4, bytes: 200 });
        assert_eq!(late, ["c", "d"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_poll_ends_with_the_client_that_asked() {
        let sessions = Sessions::default();
        let _silent = sessions.open(node("a"), 0);
        let asking = tokio::time::timeout(PATIENCE / 2, sessions.rule_counters());
        assert!(asking.await.is_err());
        assert!(sessions.lock().polls.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn counters_that_overtake_an_acknowledgement_take_nothing_back() {
        let sessions = Sessions::default();
        let stream = sessions.open(node("a"), 0);
        stream.advance(5, 5);
        sessions.acknowledge(node("a"), &ack(5));
        sessions.acknowledge(node("a"), &AckRequest { stats_id: 9, ..ack(4) });
        assert_eq!(sessions.wait_for(5).await, Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_node_had_in_force_in_an_earlier_life_does_not_count() {
        let sessions = Sessions::default();
        drop(sessions.open(node("a"), 0));
        sessions.acknowledge(node("a"), &ack(5));
        let _again = sessions.open(node("a"), 5);
        assert_eq!(sessions.wait_for(5).await, ["a"]);
        sessions.acknowledge(node("a"), &ack(5));
        assert_eq!(sessions.standing(&node("a")), connected(5));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_none_of_a_nodes_concern_needs_no_acknowledgement() {
        let sessions = Sessions::default();
        let stream = sessions.open(node("a"), 5);
        sessions.acknowledge(node("a"), &ack(5));
        stream.advance(9, 5);
        assert_eq!(sessions.standing(&node("a")), connected(9));
        stream.advance(11, 10);
        assert_eq!(sessions.standing(&node("a")), connected(5), "10 is, and not acknowledged");
        sessions.acknowledge(node("a"), &ack(10));
        assert_eq!(sessions.standing(&node("a")), connected(11));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_waited_for_until_it_has_been_away_long_enough_to_be_dead() {
        let sessions = Sessions::default();
        let (unseen, seen) = (node("a"), node("b"));
        let lacking = || sessions.may_lack(5, [&unseen, &seen].into_iter()).len();
        let stream = sessions.open(seen.clone(), 5);
        assert_eq!(lacking(), 2, "one that netmaster has not seen since it started may come back");
        tokio::time::advance(DEAD_AFTER).await;
        assert_eq!(lacking(), 1, "one that is connected and silent lives");
        sessions.acknowledge(seen.clone(), &ack(5));
        assert_eq!(lacking(), 0);
        drop(stream);
        assert_eq!(lacking(), 1, "nobody knows what it has now");
        tokio::time::advance(DEAD_AFTER).await;
        assert_eq!(lacking(), 0);
        assert!(sessions.standing(&seen).dead);
    }
}
