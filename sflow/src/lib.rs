//! sFlow version 5: what an agent says to its collectors, and when.
//!
//! [`Exporter`] is a state machine without a socket, a thread or a clock: samples and the time go
//! in, datagrams come out. It owns what the protocol asks of one agent: a sequence number for every
//! data source and kind of sample, one for the datagrams, the uptime, the one second that a sample
//! may wait, and the moment at which an interface's counters are due.
//!
//! ```
//! use std::time::Duration;
//! # use sflow::{Config, Exporter, FlowSample, IfIndex, Output};
//! let mut exporter = Exporter::new(Config::new([192, 0, 2, 1].into()))?;
//! let (port, now) = (IfIndex::new(7)?, Duration::from_secs(3));
//! exporter.add_source(port, now)?;
//! exporter.flow_sample(now, &FlowSample {
//!     source: port, rate: 400, pool: 400, output: Output::Dropped(258),
//!     frame_len: 60, vlan_in: 0, vlan_out: 0, header: &[0; 60],
//! })?;
//! assert!(exporter.poll(now).is_none(), "it waits for more samples");
//! let datagram = exporter.poll(now + Duration::from_secs(1)).expect("it waited long enough");
//! assert_eq!(datagram.len(), 28 + 8 + 32 + 8 + 16 + 60 + 8 + 16);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Section numbers in the comments are those of the sFlow version 5 specification (sflow.org, 2004).

mod exporter;
mod sample;
mod xdr;

pub use exporter::{Config, ConfigError, Exporter, SOURCES_MAX, SampleError, SourcesFull};
pub use sample::{
    BadIfIndex, CounterSample, EthernetCounters, FlowSample, IfIndex, InterfaceCounters,
    NAME_BYTES_MAX, Output, Traffic,
};
