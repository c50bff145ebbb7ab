//! `netctl ip`: reserved, used and leaving addresses. What is not free is no object of its own, so that
//! these commands have their own calls and their own row.

use std::net::IpAddr;
use std::time::Duration;

use clap::{Args, Subcommand};
use control_api::v1;
use serde::Serialize;

use crate::args::{Format, GlobalArgs, ListFormArgs, OutputArgs};
use crate::data::{Data, DataError};
use crate::failure::Failure;
use crate::run::Outcome;
use crate::session::Session;
use crate::table::{self, Column};
use crate::target::parse_duration;
use crate::view::ListForm;

#[derive(Debug, Subcommand)]
pub(crate) enum IpVerb {
    /// Lists addresses that are not free
    #[command(visible_alias = "list")]
    Ls(IpListArgs),
    /// Reserves an address; a container of its owner's name gets it, on any node
    Reserve(ReserveArgs),
    /// Ends a reservation; a container that uses the address keeps it for as long as it lives
    Release(ReleaseArgs),
    /// Lists addresses that look leaked: containers that their node no longer has, or of dead nodes
    Leaks(IpListArgs),
}

#[derive(Debug, Args)]
pub(crate) struct IpListArgs {
    /// Only of this network
    network: Option<String>,
    /// Name of the tenant
    #[arg(short, long, default_value = "default")]
    tenant: String,
    /// Of all tenants
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    list: ListFormArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ReserveArgs {
    /// The network
    network: String,
    /// Container name or endpoint id it is for; without one, whoever asks for this very address gets it
    owner: Option<String>,
    /// Name of the tenant
    #[arg(short, long, default_value = "default")]
    tenant: String,
    /// The wanted address; without one the next that is free
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<IpAddr>,
    /// An IPv6 address, when none is named
    #[arg(short = '6', long)]
    ipv6: bool,
    /// The group whose pool it comes from
    #[arg(short, long)]
    group: Option<String>,
    /// Ends when no container has used it for so long, for example 10m; without it, and with an owner,
    /// it does not end
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    ttl: Option<Duration>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ReleaseArgs {
    /// The network
    network: String,
    /// The address
    address: IpAddr,
    /// Name of the tenant
    #[arg(short, long, default_value = "default")]
    tenant: String,
    /// Whom it is reserved for
    #[arg(long, default_value = "", hide_default_value = true)]
    owner: String,
    #[command(flatten)]
    output: OutputArgs,
}

const COLUMNS: &[Column] = &[
    ("Tenant", 6),
    ("Network", 7),
    ("IpAddress", 9),
    ("State", 5),
    ("Owner", 5),
    ("EndpointID", 10),
    ("HomingHost", 10),
    ("Ends in", 7),
    ("Waiting for", 11),
];

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct AddressView {
    tenant_name: String,
    network_name: String,
    ip_address: String,
    state: String,
    owner: String,
    #[serde(rename = "endpointID")]
    endpoint_id: String,
    homing_host: String,
    ttl_seconds: u64,
    waiting_for: Vec<String>,
    leak: String,
}

impl From<v1::Address> for AddressView {
    fn from(a: v1::Address) -> Self {
        Self {
            tenant_name: a.tenant_name,
            network_name: a.network_name,
            ip_address: a.address,
            state: a.state,
            owner: a.owner,
            endpoint_id: a.endpoint_id,
            homing_host: a.homing_host,
            ttl_seconds: a.ttl_seconds,
            waiting_for: a.waiting_for,
            leak: a.leak,
        }
    }
}

impl AddressView {
    fn row(&self) -> Vec<String> {
        let ends =
            if self.ttl_seconds == 0 { String::new() } else { format!("{}s", self.ttl_seconds) };
        vec![
            self.tenant_name.clone(),
            self.network_name.clone(),
            self.ip_address.clone(),
            self.state.clone(),
            self.owner.clone(),
            self.endpoint_id.clone(),
            self.homing_host.clone(),
            ends,
            self.waiting_for.join(","),
        ]
    }
}

fn listed(views: &[AddressView], form: ListForm) -> Result<String, DataError> {
    match form {
        ListForm::Table => {
            Ok(table::render(COLUMNS, &views.iter().map(AddressView::row).collect::<Vec<_>>()))
        }
        ListForm::Names => Ok(views.iter().flat_map(|v| [v.ip_address.as_str(), "\n"]).collect()),
        ListForm::Data(data) => data.text(&views),
    }
}

/// Which addresses are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    All,
    Leaks,
}

/// Runs one command.
pub(crate) async fn run(
    verb: IpVerb,
    global: &GlobalArgs,
    outer: &OutputArgs,
) -> Result<Outcome, Failure> {
    match verb {
        IpVerb::Ls(args) => list(args, global, outer, Which::All).await,
        IpVerb::Leaks(args) => list(args, global, outer, Which::Leaks).await,
        IpVerb::Reserve(args) => reserve(args, global, outer).await,
        IpVerb::Release(args) => release(args, global, outer).await,
    }
}

async fn list(
    args: IpListArgs,
    global: &GlobalArgs,
    outer: &OutputArgs,
    which: Which,
) -> Result<Outcome, Failure> {
    let form = args.list.form(outer);
    let request = v1::ListAddressesRequest {
        tenant_name: if args.all { String::new() } else { args.tenant },
        network_name: args.network.unwrap_or_default(),
        leaks: which == Which::Leaks,
    };
    let addresses = Session::open(global).await?.addresses(request).await?;
    let views: Vec<_> = addresses.into_iter().map(AddressView::from).collect();
    let why = |view: &AddressView| format!("{}: {}", view.ip_address, view.leak);
    let warnings = if which == Which::Leaks && form == ListForm::Table {
        views.iter().map(why).collect()
    } else {
        Vec::new()
    };
    Ok(Outcome { text: listed(&views, form)?, warnings })
}

/// Of all tenants, as `ls -a -o yaml` and `leaks -a -o yaml` print them.
pub(crate) async fn everything(session: &mut Session, which: Which) -> Result<String, Failure> {
    let request = v1::ListAddressesRequest {
        leaks: which == Which::Leaks,
        ..v1::ListAddressesRequest::default()
    };
    let views: Vec<_> =
        session.addresses(request).await?.into_iter().map(AddressView::from).collect();
    Ok(listed(&views, ListForm::Data(Data::Yaml))?)
}

async fn reserve(
    args: ReserveArgs,
    global: &GlobalArgs,
    outer: &OutputArgs,
) -> Result<Outcome, Failure> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Reserved {
        ip_address: String,
        prefix_length: u32,
        gateway: String,
    }
    let format = args.output.format(outer);
    let request = v1::AllocateAddressRequest {
        tenant_name: args.tenant,
        network_name: args.network,
        endpoint_group: args.group.unwrap_or_default(),
        preferred_address: args.ip.map(|ip| ip.to_string()).unwrap_or_default(),
        owner: args.owner.unwrap_or_default(),
        // 0: that of the address.
        family: if args.ipv6 { 6 } else { 0 },
        // Part of a second is a second: 0 would be no end.
        ttl_seconds: args.ttl.map_or(0, |ttl| ttl.as_millis().div_ceil(1000) as u64),
    };
    let reply = Session::open(global).await?.reserve(request).await?;
    let v1::AllocateAddressReply { address: ip_address, prefix_length, gateway } = reply;
    let text = match format {
        Format::Table => format!("Reserving address {ip_address}/{prefix_length}\n"),
        Format::Data(data) => data.text(&Reserved { ip_address, prefix_length, gateway })?,
    };
    Ok(text.into())
}

async fn release(
    args: ReleaseArgs,
    global: &GlobalArgs,
    outer: &OutputArgs,
) -> Result<Outcome, Failure> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Released {
        ip_address: String,
    }
    let format = args.output.format(outer);
    let ip_address = args.address.to_string();
    let request = v1::ReleaseAddressRequest {
        tenant_name: args.tenant,
        network_name: args.network,
        address: ip_address.clone(),
        owner: args.owner,
    };
    Session::open(global).await?.release(request).await?;
    let text = match format {
        Format::Table => format!("Releasing address {ip_address}\n"),
        Format::Data(data) => data.text(&Released { ip_address })?,
    };
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> v1::Address {
        v1::Address {
            tenant_name: "blue".into(),
            network_name: "front".into(),
            address: "10.1.1.5".into(),
            state: "leaving".into(),
            waiting_for: vec!["n1".into(), "n2".into()],
            ..v1::Address::default()
        }
    }

    #[test]
    fn addresses_are_printed_with_who_keeps_them() {
        let reserved = v1::Address {
            address: "10.1.1.7".into(),
            state: "reserved".into(),
            owner: "web-1".into(),
            ttl_seconds: 600,
            waiting_for: vec![],
            ..address()
        };
        let views = [address().into(), reserved.into()];
        assert_eq!(
            listed(&views, ListForm::Table).unwrap(),
            "Tenant  Network  IpAddress  State     Owner  EndpointID  HomingHost  Ends in  Waiting for\n\
             ------  -------  ---------  -----     -----  ----------  ----------  -------  -----------\n\
             blue    front    10.1.1.5   leaving                                           n1,n2\n\
             blue    front    10.1.1.7   reserved  web-1                          600s     \n"
        );
        assert_eq!(listed(&views, ListForm::Names).unwrap(), "10.1.1.5\n10.1.1.7\n");
        let json = listed(&views[..1], ListForm::Data(Data::Json)).unwrap();
        assert!(json.contains("\"waitingFor\": [\n      \"n1\","), "{json}");
    }
}
