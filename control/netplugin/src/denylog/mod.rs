//! The deny log: packets that policy has ended, in the names that people gave.
//!
//! vrouterd tells of dropped packets by number; the names come from the intent known here. One line
//! a packet, ten a second of each tenant; how many had none is said by the tenant's next line. What
//! was dropped before this process began is left to `vrctl drops --log`.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use control_model::{Intent, Tenant};
use datapath_api::v1::DroppedPacket;
use flowtable::DropReason;
use flowtable::entry::Prefix;
use flowtable::text::FlowSpec;
use tracing::{debug, info, warn};

use crate::engine::{Engine, EngineError};
use crate::mirror::Mirror;
use crate::program::Programmer;

/// Lines of a tenant in any second.
const LINES_PER_SECOND: usize = 10;
/// Tenants with a budget of their own; the others share one.
const TENANTS_MAX: usize = 4096;
/// How soon a lost engine, or one that ended the stream, is asked again.
const AGAIN: Duration = Duration::from_millis(100);

/// What is written of one packet.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Denial {
    tenant: String,
    src_group: Option<String>,
    dst_group: Option<String>,
    policy: Option<String>,
    /// Id of the rule; "default" where the tenant's default decided; its number when it is gone.
    rule: Option<String>,
    protocol: Option<String>,
    src: Option<IpAddr>,
    src_port: Option<u16>,
    dst: Option<IpAddr>,
    dst_port: Option<u16>,
    reason: String,
    suppressed: u64,
}

/// Follows the engine's drop log for ever, whichever engine there is.
#[expect(clippy::infinite_loop, reason = "a task for the life of the process")]
pub(crate) async fn run(mirror: &Mirror, programmer: &Programmer) -> Infallible {
    let mut applied = programmer.watch();
    let mut log = Log { mirror, seen: None, lines: Lines::default() };
    let mut reported = String::new();
    loop {
        // It only fails without a programmer, which lives as long as this task.
        let engine = match applied.wait_for(|applied| applied.engine.is_some()).await {
            Ok(applied) => applied.engine.clone(),
            Err(_ended) => None,
        };
        if let Some(engine) = engine {
            match log.follow(&engine).await {
                EngineError::Refused(reason) if reason != reported => {
                    warn!(
                        reason,
                        "the deny log may lack packets here; it goes on: see `vrctl drops --log`"
                    );
                    reported = reason;
                }
                // The programmer says so when the engine is away.
                error @ (EngineError::Refused(_)
                | EngineError::Lost(_)
                | EngineError::Connect(_)) => {
                    debug!(%error, "the drop log ended");
                }
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

struct Log<'a> {
    mirror: &'a Mirror,
    /// Up to this number of this engine, packets are written or not to be; `None`: no engine was
    /// followed yet. Times are not compared: clocks are set back.
    seen: Option<(String, u64)>,
    lines: Lines,
}

impl Log<'_> {
    async fn follow(&mut self, engine: &Engine) -> EngineError {
        let mut stream = match engine.drop_log().await {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        let before = self.seen.clone();
        let mut seen = 0;
        let error = loop {
            let dropped = match stream.message().await {
                Ok(Some(dropped)) => dropped,
                Ok(None) => break tonic::Status::unavailable("the engine went away").into(),
                Err(status) => break status.into(),
            };
            seen = seen.max(dropped.number);
            if !is_news(before.as_ref(), engine.instance(), &dropped) {
                continue;
            }
            if let Some(suppressed) = self.lines.admit(&dropped, Instant::now()) {
                let denial = self.mirror.read(|intent| denial(intent, &dropped, suppressed));
                denial.log();
            }
        };
        self.note(engine.instance(), seen);
        error
    }

    fn note(&mut self, instance: &str, seen: u64) {
        match &mut self.seen {
            Some((known, last)) if known == instance => *last = seen.max(*last),
            other => *other = Some((instance.to_owned(), seen)),
        }
    }
}

/// Whether a packet has no line yet and is to have one, by the engine and the number of the last one.
fn is_news(seen: Option<&(String, u64)>, instance: &str, dropped: &DroppedPacket) -> bool {
    match seen {
        None => !dropped.history,
        // Engines of before have no numbers.
        Some((known, last)) if known == instance => dropped.number > *last || dropped.number == 0,
        // It began while its predecessor was followed.
        Some(_) => true,
    }
}

/// Whether policy ended the packet: a rule, a default, or that it belongs to nothing admitted.
fn is_denial(dropped: &DroppedPacket) -> bool {
    [DropReason::PolicyDeny, DropReason::NoConnection, DropReason::Fragment]
        .iter()
        .any(|reason| reason.name() == dropped.reason)
}

fn denial(intent: &Intent, dropped: &DroppedPacket, suppressed: u64) -> Denial {
    // vrouterd writes the text; one that can't be read leaves the packet without addresses.
    let flow: FlowSpec = dropped.flow.parse().unwrap_or_default();
    let [src, dst] = [flow.src, flow.dst].map(|prefix| prefix.map(Prefix::address));
    let tenant = intent.tenants().find(|tenant| tenant.vrf.get() == dropped.vrf);
    let group_at = |ip: Option<IpAddr>| tenant.zip(ip).and_then(|(t, ip)| group_of(intent, t, ip));
    let rule = intent.rules().find(|rule| rule.cookie.0 == dropped.rule && dropped.rule != 0);
    let is_default = dropped.reason == DropReason::PolicyDeny.name();
    Denial {
        tenant: tenant.map_or_else(|| format!("vrf {}", dropped.vrf), |t| t.name.to_string()),
        src_group: tenant
            .and_then(|tenant| group_named(intent, tenant, dropped.src_group))
            .or_else(|| group_at(src)),
        dst_group: group_at(dst),
        policy: rule.map(|rule| rule.spec.key.policy.to_string()),
        rule: match (rule, dropped.rule) {
            (Some(rule), _) => Some(rule.spec.key.rule.to_string()),
            (None, 0) => is_default.then(|| "default".to_owned()),
            (None, gone) => Some(gone.to_string()),
        },
        protocol: flow.proto.map(protocol),
        src,
        src_port: flow.src_port,
        dst,
        dst_port: flow.dst_port,
        reason: dropped.reason.clone(),
        suppressed,
    }
}

fn group_named(intent: &Intent, tenant: &Tenant, id: u32) -> Option<String> {
    let mut groups = intent.groups().filter(|group| group.spec.key.tenant == tenant.name);
    groups.find(|group| group.id.get() == id).map(|group| group.spec.key.group.to_string())
}

/// The group of the endpoint with an address.
fn group_of(intent: &Intent, tenant: &Tenant, ip: IpAddr) -> Option<String> {
    let mut endpoints = intent.endpoints().filter(|e| e.network.tenant == tenant.name);
    let endpoint = endpoints.find(|e| e.has(ip))?;
    intent.group_of(endpoint).map(|group| group.spec.key.group.to_string())
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmp6".to_owned(),
        other => other.to_string(),
    }
}

impl Denial {
    /// One event. Ports of ICMP are its type and code.
    fn log(&self) {
        info!(
            tenant = self.tenant,
            src_group = self.src_group,
            dst_group = self.dst_group,
            policy = self.policy,
            rule = self.rule,
            protocol = self.protocol,
            src = self.src.map(tracing::field::display),
            src_port = self.src_port,
            dst = self.dst.map(tracing::field::display),
            dst_port = self.dst_port,
            reason = self.reason,
            suppressed = self.suppressed,
            "packet denied"
        );
    }
}

/// Which packets are lines, by tenant.
#[derive(Debug, Default)]
struct Lines {
    tenants: BTreeMap<u32, Budget>,
}

#[derive(Debug, Default)]
struct Budget {
    /// When the last lines were written.
    recent: VecDeque<Instant>,
    /// Dropped packets without a line since the last one that has one.
    suppressed: u64,
}

impl Lines {
    /// `Some`: a line is to be written, with this number of packets before it that had none.
    fn admit(&mut self, dropped: &DroppedPacket, now: Instant) -> Option<u64> {
        // Packets of no tenant share what tenants beyond the bound share.
        let has_own = self.tenants.contains_key(&dropped.vrf) || self.tenants.len() < TENANTS_MAX;
        let owner = if has_own { dropped.vrf } else { 0 };
        let budget = self.tenants.entry(owner).or_default();
        budget.suppressed += dropped.suppressed;
        if !is_denial(dropped) {
            return None;
        }
        let second = Duration::from_secs(1);
        while budget.recent.front().is_some_and(|at| now.duration_since(*at) >= second) {
            budget.recent.pop_front();
        }
        if budget.recent.len() >= LINES_PER_SECOND {
            budget.suppressed += 1;
            return None;
        }
        budget.recent.push_back(now);
        Some(std::mem::take(&mut budget.suppressed))
    }
}

#[cfg(test)]
mod tests;
