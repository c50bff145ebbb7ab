//! What clients are told without asking.

use std::hash::{BuildHasher as _, RandomState};

use datapath_api::v1;
use datapath_api::v1::event::Kind;
use flowtable::ids::PortId;
use tokio::sync::broadcast;

/// Events that a slow client may be behind; one that is further behind is cut off and reads anew.
const BACKLOG: usize = 256;

/// The identity of this process and its announcements.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    instance: String,
    sender: broadcast::Sender<v1::Event>,
}

impl Events {
    /// Draws a new identity.
    pub(crate) fn new() -> Self {
        let instance = format!("{:016x}", RandomState::new().hash_one(std::process::id()));
        Self { instance, sender: broadcast::Sender::new(BACKLOG) }
    }

    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    /// The first event of every stream.
    pub(crate) fn ready(&self) -> v1::Event {
        v1::Event { kind: Kind::Ready.into(), instance: self.instance.clone(), port: 0 }
    }

    pub(crate) fn port_gone(&self, port: PortId) {
        let instance = self.instance.clone();
        let event = v1::Event { kind: Kind::PortGone.into(), instance, port: port.get().into() };
        // It fails when nobody listens, which is no failure.
        self.sender.send(event).ok();
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<v1::Event> {
        self.sender.subscribe()
    }
}
