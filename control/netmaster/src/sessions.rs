//! Who is connected: for each node its stream, what it has acknowledged, and the counters it was
//! asked for. Nothing here outlives the process, and nothing here is intent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use control_api::v1::{AckRequest, RuleCounter};
use control_model::NodeName;
use tokio::sync::{mpsc, watch};

/// How long a write or a list waits for nodes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
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
}

impl Default for Shared {
    fn default() -> Self {
        Self { table: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

#[derive(Debug, Default)]
struct Table {
    nodes: BTreeMap<NodeName, Node>,
    polls: BTreeMap<u64, Poll>,
    last_id: u64,
}

#[derive(Debug, Default)]
struct Node {
    acked: u64,
    stream: Option<OpenStream>,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Standing {
    pub(crate) acked: u64,
    pub(crate) connected: bool,
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
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut table = self.sessions.lock();
        if let Some(node) = table.nodes.get_mut(&self.node) {
            node.stream.take_if(|stream| stream.id == self.id);
        }
        drop(table);
        self.sessions.shared.changed.send_replace(());
    }
}

impl Sessions {
    /// A node's new stream; an older one of the node ends.
    pub(crate) fn open(&self, node: NodeName) -> Session {
        let (sender, questions) = mpsc::channel(QUESTIONS_MAX);
        let mut table = self.lock();
        table.last_id += 1;
        let id = table.last_id;
        let stream = OpenStream { id, questions: sender };
        // What it had in force in an earlier life says nothing of this one: it tells soon.
        table.nodes.insert(node.clone(), Node { acked: 0, stream: Some(stream) });
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
            table.nodes.entry(node).or_default().acked = ack.revision;
        }
        drop(table);
        self.shared.changed.send_replace(());
    }

    /// Is woken whenever a node comes, goes or acknowledges.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }

    pub(crate) fn standing(&self, node: &NodeName) -> Standing {
        let table = self.lock();
        let standing =
            |node: &Node| Standing { acked: node.acked, connected: node.stream.is_some() };
        table.nodes.get(node).map(standing).unwrap_or_default()
    }

    /// Forgets a node that is not connected.
    pub(crate) fn forget(&self, node: &NodeName) {
        let mut table = self.lock();
        if table.nodes.get(node).is_some_and(|known| known.stream.is_none()) {
            table.nodes.remove(node);
        }
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
        connected.filter(move |(_, node)| node.acked < revision).map(|(name, _)| name)
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

    #[tokio::test(start_paused = true)]
    async fn only_connected_nodes_are_waited_for_and_late_ones_named() {
        let sessions = Sessions::default();
        assert_eq!(sessions.wait_for(5).await, Vec::<String>::new());
        let _first = sessions.open(node("a"));
        let second = sessions.open(node("b"));
        sessions.acknowledge(node("a"), &ack(5));
        assert_eq!(sessions.wait_for(5).await, ["b"]);
        let (late, ()) = tokio::join!(sessions.wait_for(5), async { drop(second) });
        assert_eq!(late, Vec::<String>::new(), "one that goes is not waited for");
        assert_eq!(sessions.standing(&node("a")), Standing { acked: 5, connected: true });
    }

    #[tokio::test(start_paused = true)]
    async fn a_newer_stream_of_a_node_ends_the_older() {
        let sessions = Sessions::default();
        let mut old = sessions.open(node("a"));
        let new = sessions.open(node("a"));
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
        let mut streams = ["a", "b", "c", "d"].map(|name| sessions.open(node(name)));
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
        let _silent = sessions.open(node("a"));
        let asking = tokio::time::timeout(PATIENCE / 2, sessions.rule_counters());
        assert!(asking.await.is_err());
        assert!(sessions.lock().polls.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn counters_that_overtake_an_acknowledgement_take_nothing_back() {
        let sessions = Sessions::default();
        let _stream = sessions.open(node("a"));
        sessions.acknowledge(node("a"), &ack(5));
        sessions.acknowledge(node("a"), &AckRequest { stats_id: 9, ..ack(4) });
        assert_eq!(sessions.wait_for(5).await, Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_node_had_in_force_in_an_earlier_life_does_not_count() {
        let sessions = Sessions::default();
        drop(sessions.open(node("a")));
        sessions.acknowledge(node("a"), &ack(5));
        let _again = sessions.open(node("a"));
        assert_eq!(sessions.wait_for(5).await, ["a"]);
    }
}
