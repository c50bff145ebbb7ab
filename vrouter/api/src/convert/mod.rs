//! Between the messages of `datapath.v1` and the plain entries of `flowtable`.
//!
//! Parsing is where a peer's numbers become types that cannot be wrong: every length, range and
//! missing field is refused here, with the message and field named, so that the engine re-checks
//! nothing. Emitting cannot fail. A delete travels as an entry in which only the key fields are
//! set; what else it carries is ignored.

mod emit;
mod parse;

use std::fmt;

use flowtable::entry::{BadPrefix, Entry, EntryKey, Op};
use flowtable::ids::OutOfRange;

use crate::v1;

pub use emit::{entry_to_proto, ip_to_proto, key_to_proto, prefix_to_proto};
pub use parse::{entry_from_proto, ip_from_proto, key_from_proto, mac_from_proto};

/// A place in a message: `port.mac`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// The message, in the spelling of the proto's oneof.
    pub message: &'static str,
    /// The field, with dots for nested ones.
    pub field: &'static str,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.message, self.field)
    }
}

/// Why a message of `datapath.v1` is no entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A field without which the message means nothing.
    #[error("{0}: missing")]
    Missing(Field),
    /// A MAC address of the wrong length.
    #[error("{at}: {len} bytes, want 6")]
    MacLength {
        /// Where.
        at: Field,
        /// Its length in bytes.
        len: usize,
    },
    /// An IP address of the wrong length.
    #[error("{at}: {len} bytes, want 4 or 16")]
    AddressLength {
        /// Where.
        at: Field,
        /// Its length in bytes.
        len: usize,
    },
    /// A number outside its identifier's range.
    #[error("{at}: {source}")]
    Range {
        /// Where.
        at: Field,
        /// The number and the range.
        source: OutOfRange,
    },
    /// A prefix longer than its address.
    #[error("{at}: {source}")]
    Prefix {
        /// Where.
        at: Field,
        /// The prefix.
        source: BadPrefix,
    },
    /// An enum number that is unspecified or that this version does not know.
    #[error("{at}: {value} is not a value of this version")]
    Enum {
        /// Where.
        at: Field,
        /// The number.
        value: i32,
    },
    /// A marker that is only ever present as true.
    #[error("{0}: false; leave it out instead")]
    False(Field),
    /// A range of ports that ends before it starts.
    #[error("{at}: {first}..{last} ends before it starts")]
    PortRange {
        /// Where.
        at: Field,
        /// First port as given.
        first: u16,
        /// Last port as given.
        last: u16,
    },
    /// One op of a batch.
    #[error("ops[{index}]: {source}")]
    Op {
        /// Position in the batch, from 0.
        index: usize,
        /// What is wrong with it.
        source: Box<Self>,
    },
}

/// Parses a batch.
///
/// # Errors
/// The first op that is wrong, as [`ConvertError::Op`].
pub fn ops_from_proto(request: v1::WriteRequest) -> Result<Vec<Op>, ConvertError> {
    let ops = request.ops.into_iter().enumerate();
    ops.map(|(index, op)| {
        op_from_proto(op).map_err(|e| ConvertError::Op { index, source: Box::new(e) })
    })
    .collect()
}

/// Emits a batch.
#[must_use]
pub fn ops_to_proto(ops: &[Op]) -> v1::WriteRequest {
    v1::WriteRequest { ops: ops.iter().map(op_to_proto).collect() }
}

fn op_from_proto(op: v1::Op) -> Result<Op, ConvertError> {
    let at = |field| Field { message: "op", field };
    match op.kind.ok_or(ConvertError::Missing(at("kind")))? {
        v1::op::Kind::Put(entry) => entry_from_proto(entry).map(Op::Put),
        v1::op::Kind::Delete(entry) => key_from_proto(entry).map(Op::Delete),
        v1::op::Kind::Clear(true) => Ok(Op::Clear),
        v1::op::Kind::Clear(false) => Err(ConvertError::False(at("clear"))),
    }
}

fn op_to_proto(op: &Op) -> v1::Op {
    let kind = match op {
        Op::Put(entry) => v1::op::Kind::Put(entry_to_proto(entry)),
        Op::Delete(key) => v1::op::Kind::Delete(key_to_proto(key)),
        Op::Clear => v1::op::Kind::Clear(true),
    };
    v1::Op { kind: Some(kind) }
}

impl TryFrom<v1::Entry> for Entry {
    type Error = ConvertError;

    fn try_from(entry: v1::Entry) -> Result<Self, ConvertError> {
        entry_from_proto(entry)
    }
}

impl From<&Entry> for v1::Entry {
    fn from(entry: &Entry) -> Self {
        entry_to_proto(entry)
    }
}

impl From<&EntryKey> for v1::Entry {
    fn from(key: &EntryKey) -> Self {
        key_to_proto(key)
    }
}

#[cfg(test)]
mod tests;
