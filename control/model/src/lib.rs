//! Objects of the control plane, their checks, allocation, and the compilation of intent into one
//! node's tables.
//!
//! Pure and synchronous: no I/O, no clock, no wire format. Text enters once, through the `parse`
//! functions, and is a type that cannot be wrong afterwards. [`Intent`] holds stored objects and is
//! all a node needs; [`Ledger`] adds what only the master needs: reference checks, address pools,
//! tag pools and id counters. [`compile`] turns intent and placement into table entries.

mod app_profile;
mod bgp;
mod compile;
mod endpoint;
mod explain;
mod global;
mod group;
mod intent;
mod key;
mod ledger;
mod name;
mod network;
mod pool;
mod profile;
mod range;
mod ranges;
mod rate;
mod refusal;
mod rule;
mod service;
mod subnet;
mod subnet6;
mod tag;
mod tenant;

pub use app_profile::AppProfile;
pub use bgp::{AsNumber, Bgp, Neighbor};
pub use compile::{Placement, PortLimits, PublishedPort, compile};
pub use endpoint::{
    AddressLease, Endpoint, EndpointSpec, Host, LeaseSpec, Node, Served, Ttl, WantedAddress,
    WantedAddresses, mac_for,
};
pub use explain::{End, Explained, Explanation, Party, Question, Side, Way, explain};
pub use flowtable::entry::{Direction, Offload, OnDeny, Permit, Tracking};
pub use flowtable::ids::{Bd, Dscp, Group, Mac, PortId, RuleId, Vrf};
pub use global::{ArpMode, FwdMode, Global, GlobalSpec, PrivateSubnet};
pub use group::{EndpointGroup, GroupSpec};
pub use intent::{Intent, Object, Spec};
pub use key::{
    AppProfileKey, GroupKey, Key, Kind, LeaseKey, NetworkKey, PolicyKey, ProfileKey, RuleKey,
    ServiceKey,
};
pub use ledger::{
    AT_ONCE, Action, Applied, Batch, CLOCK_STEP_SECONDS, Change, Counters, Damaged, Holdings,
    Ledger, Outcome, RefusedObject,
};
pub use name::{
    AppProfileName, CfgdTag, EndpointId, GroupName, HostName, Label, NetworkName, NodeName, Owner,
    PolicyName, ProfileName, RuleName, ServiceName, TenantName,
};
pub use network::{Encap, Network, NetworkSpec, NwType, Tag};
pub use pool::{AddressPool, Claim, Departed, Holder, Order, Unavailable};
pub use profile::{NetProfile, Scope};
pub use range::{Address, AddressRange};
pub use ranges::Ranges;
pub use rate::{Bandwidth, Burst, RateLimit, default_burst_bytes};
pub use refusal::{Class, Reason, Refused};
pub use rule::{AddressMatch, Peer, Protocol, Rule, RuleSpec, RuleText};
pub use service::{ContainerLabel, Service, ServicePort, ServiceSpec, Transport};
pub use subnet::Subnet;
pub use subnet6::Subnet6;
pub use tag::{TagPool, TagRange};
pub use tenant::{Tenant, TenantChange, TenantSettings, TenantSpec, parse_offload};
