//! How a store lies in etcd: under one root `data/KEY`, `head`, which every write touches, and
//! `leader`.

/// The names of one root.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    root: String,
}

impl Keys {
    pub(super) fn new(root: &str) -> Self {
        Self { root: root.to_owned() }
    }

    pub(super) fn root(&self) -> Vec<u8> {
        self.root.clone().into_bytes()
    }

    /// Its revision is the store's.
    pub(super) fn head(&self) -> Vec<u8> {
        format!("{}head", self.root).into_bytes()
    }

    /// Bound to the leader's lease; who made it leads.
    pub(super) fn leader(&self) -> Vec<u8> {
        format!("{}leader", self.root).into_bytes()
    }

    pub(super) fn data(&self, key: &[u8]) -> Vec<u8> {
        let mut full = format!("{}data/", self.root).into_bytes();
        full.extend(key);
        full
    }

    /// The store's name of an item's key.
    pub(super) fn strip<'a>(&self, full: &'a [u8]) -> Option<&'a [u8]> {
        full.strip_prefix(self.root.as_bytes())?.strip_prefix(b"data/")
    }
}
