//! What each command does: the calls it makes and the text it ends with.
//!
//! Contiv's confirmation lines are printed after netmaster has agreed, for deletes too, so that a
//! line on standard output always means that it was done. Commands that print nothing in Contiv
//! (`group rm`, `policy rule-add`, `policy rule-rm`, `global set`) print nothing here.

mod bundle;
mod explain;
mod manifest;
mod nodes;
mod services;
mod status;
mod version;
mod watch;

use control_api::v1;
use control_api::v1::object::Kind;
use serde::Serialize;

use crate::args::{
    Cli, EndpointVerb, Format, GlobalArgs, GlobalSetArgs, GlobalVerb, GroupCreateArgs, GroupVerb,
    ListArgs, NetworkCreateArgs, NetworkUpdateArgs, NetworkVerb, Noun, OutputArgs, PolicyVerb,
    ProfileCreateArgs, ProfileVerb, RuleAddArgs, RuleListArgs, ScopedListArgs, TenantArgs,
    TenantVerb,
};
use crate::failure::Failure;
use crate::ip;
use crate::pages;
use crate::rule::rule_of;
use crate::session::{Selection, Session, Written};
use crate::view::{
    self, EndpointView, GlobalView, GroupView, ListForm, NetworkView, PolicyView, ProfileView,
    RuleView, Stats, TenantView, View,
};

/// What a run prints.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Standard output.
    pub(crate) text: String,
    /// Standard error, one line each.
    pub(crate) warnings: Vec<String>,
}

impl From<String> for Outcome {
    fn from(text: String) -> Self {
        Self { text, warnings: Vec::new() }
    }
}

type Done = Result<Outcome, Failure>;

/// Runs one command.
pub(crate) async fn run(cli: Cli) -> Done {
    let runner = Runner { global: cli.global, output: cli.output };
    match cli.noun {
        Noun::Tenant(verb) => runner.tenant(verb).await,
        Noun::Network(verb) => runner.network(verb).await,
        Noun::Group(verb) => runner.group(verb).await,
        Noun::Netprofile(verb) => runner.profile(verb).await,
        Noun::Policy(verb) => runner.policy(verb).await,
        Noun::Endpoint(verb) => runner.endpoint(verb).await,
        Noun::Global(verb) => runner.global(verb).await,
        Noun::Node(verb) => runner.node(verb).await,
        Noun::Service(verb) => runner.service(verb).await,
        Noun::AppProfile(verb) => runner.app_profile(verb).await,
        Noun::Bgp(verb) => runner.bgp(verb).await,
        Noun::Get(args) => runner.get(args).await,
        Noun::Apply(args) => runner.apply(args).await,
        Noun::Diff(args) => runner.diff(args).await,
        Noun::Ip(verb) => ip::run(verb, &runner.global, &runner.output).await,
        Noun::Explain(args) => runner.explain(args).await,
        Noun::Status(args) => runner.status(&args.output).await,
        Noun::SupportBundle(args) => runner.bundle(args).await,
        Noun::Login => Err(Failure::NoLogin),
        Noun::Version(args) => runner.version(runner.format(&args.output)),
        Noun::Completion { shell } => Ok(pages::completion(shell).into()),
        Noun::Man { dir } => pages::manual(&dir).map(|()| Outcome::default()),
    }
}

struct Runner {
    global: GlobalArgs,
    output: OutputArgs,
}

impl Runner {
    async fn tenant(&self, verb: TenantVerb) -> Done {
        match verb {
            TenantVerb::Create(args) => {
                let line = format!("Creating tenant: {}\n", args.name);
                let format = self.format(&args.output);
                self.create::<TenantView>(Kind::Tenant(tenant_of(args)), format, line).await
            }
            TenantVerb::Update(args) => {
                let line = format!("Updating tenant: {}\n", args.name);
                let format = self.format(&args.output);
                let tenant = Kind::Tenant(tenant_of(args));
                let written = Session::open(&self.global).await?.update(tenant).await?;
                confirm::<TenantView>(written, format, line)
            }
            TenantVerb::Rm(args) => {
                let line = format!("Deleting tenant {}\n", args.name);
                self.remove(v1::Kind::Tenant, args.name, self.format(&args.output), line).await
            }
            TenantVerb::Ls(args) => self.list::<TenantView>(None, &args).await,
            TenantVerb::Inspect(args) => self.inspect::<TenantView>(&args.name, &args.output).await,
        }
    }

    async fn network(&self, verb: NetworkVerb) -> Done {
        match verb {
            NetworkVerb::Create(args) => {
                let line = format!("Creating network {}:{}\n", args.scope.tenant, args.scope.name);
                let format = self.format(&args.scope.output);
                self.create::<NetworkView>(Kind::Network(network_of(args)), format, line).await
            }
            NetworkVerb::Update(args) => self.update_network(args).await,
            NetworkVerb::Rm(args) => {
                let line = format!("Deleting network {}:{}\n", args.tenant, args.name);
                self.remove(v1::Kind::Network, args.key(), self.format(&args.output), line).await
            }
            NetworkVerb::Ls(args) => self.list_scoped::<NetworkView>(args).await,
            NetworkVerb::Inspect(args) => {
                self.inspect::<NetworkView>(&args.key(), &args.output).await
            }
        }
    }

    /// Everything else of a network stays as it was created, so that nobody changes it meanwhile.
    async fn update_network(&self, args: NetworkUpdateArgs) -> Done {
        let line = format!("Updating network {}:{}\n", args.scope.tenant, args.scope.name);
        let mut session = Session::open(&self.global).await?;
        let (found, _) = session.get(v1::Kind::Network, &args.scope.key()).await?;
        let Kind::Network(network) = found else { return Err(Failure::Reply("network")) };
        let network = v1::Network { offload: args.offload, ..network };
        let written = session.update(Kind::Network(network)).await?;
        confirm::<NetworkView>(written, self.format(&args.scope.output), line)
    }

    async fn group(&self, verb: GroupVerb) -> Done {
        match verb {
            GroupVerb::Create(args) => {
                let (tenant, name) = (&args.scope.tenant, &args.scope.name);
                let line = format!("Creating EndpointGroup {tenant}:{name}\n");
                let format = self.format(&args.scope.output);
                self.create::<GroupView>(Kind::EndpointGroup(group_of(args)), format, line).await
            }
            GroupVerb::Rm(args) => {
                let format = self.format(&args.output);
                self.remove(v1::Kind::EndpointGroup, args.key(), format, String::new()).await
            }
            GroupVerb::Ls(args) => self.list_scoped::<GroupView>(args).await,
            GroupVerb::Inspect(args) => self.inspect::<GroupView>(&args.key(), &args.output).await,
        }
    }

    async fn profile(&self, verb: ProfileVerb) -> Done {
        match verb {
            ProfileVerb::Create(args) => {
                let line =
                    format!("Creating netprofile {}:{}\n", args.named.tenant, args.named.name);
                let format = self.format(&args.named.output);
                self.create::<ProfileView>(Kind::NetProfile(profile_of(args)), format, line).await
            }
            ProfileVerb::Rm(args) => {
                let line = format!("Deleting netprofile {}:{}\n", args.tenant, args.name);
                self.remove(v1::Kind::NetProfile, args.key(), self.format(&args.output), line).await
            }
            ProfileVerb::Ls(args) => self.list_scoped::<ProfileView>(args).await,
            ProfileVerb::Inspect(args) => {
                self.inspect::<ProfileView>(&args.key(), &args.output).await
            }
        }
    }

    async fn policy(&self, verb: PolicyVerb) -> Done {
        match verb {
            PolicyVerb::Create(args) => {
                let line = format!("Creating policy {}:{}\n", args.tenant, args.name);
                let policy = v1::Policy { tenant_name: args.tenant, policy_name: args.name };
                let format = self.format(&args.output);
                self.create::<PolicyView>(Kind::Policy(policy), format, line).await
            }
            PolicyVerb::Rm(args) => {
                let line = format!("Deleting policy {}:{}\n", args.tenant, args.name);
                self.remove(v1::Kind::Policy, args.key(), self.format(&args.output), line).await
            }
            PolicyVerb::Ls(args) => self.list_scoped::<PolicyView>(args).await,
            PolicyVerb::Inspect(args) => {
                self.inspect::<PolicyView>(&args.key(), &args.output).await
            }
            PolicyVerb::RuleLs(args) => self.rules(args).await,
            PolicyVerb::RuleAdd(args) => self.add_rule(*args).await,
            PolicyVerb::RuleRm(args) => {
                let key = format!("{}:{}:{}", args.scope.tenant, args.policy, args.scope.name);
                let format = self.format(&args.scope.output);
                self.remove(v1::Kind::Rule, key, format, String::new()).await
            }
        }
    }

    async fn add_rule(&self, args: RuleAddArgs) -> Done {
        let format = args.output.unwrap_or_else(|| self.format(&OutputArgs::default()));
        let rule = rule_of(args)?;
        self.create::<RuleView>(Kind::Rule(rule), format, String::new()).await
    }

    async fn rules(&self, args: RuleListArgs) -> Done {
        let form = args.list.form(&self.output);
        let mut session = Session::open(&self.global).await?;
        // An unknown policy is an error, not an empty list.
        session.view::<PolicyView>(&format!("{}:{}", args.tenant, args.policy)).await?;
        if args.list.watch {
            let selection =
                Selection { tenant: Some(args.tenant), parent: args.policy, stats: false };
            return watch::watch::<RuleView>(&mut session, selection, form).await;
        }
        let selection = Selection {
            tenant: Some(args.tenant),
            parent: args.policy,
            stats: args.stats || matches!(form, ListForm::Data(_)),
        };
        let listed = session.list::<RuleView>(selection).await?;
        let rules = RuleView::sorted(RuleView::with_counters(listed.views, &listed.counters));
        let stats = if args.stats { Stats::Shown } else { Stats::Hidden };
        let text = match form {
            ListForm::Table => view::rule_tables(&rules, stats),
            ListForm::Names => view::names(&rules),
            ListForm::Data(data) => data.text(&rules)?,
        };
        Ok(Outcome { text, warnings: listed.warnings })
    }

    async fn endpoint(&self, verb: EndpointVerb) -> Done {
        match verb {
            EndpointVerb::Ls(args) => self.list_scoped::<EndpointView>(args).await,
            EndpointVerb::Inspect(args) => {
                self.inspect::<EndpointView>(&args.name, &args.output).await
            }
        }
    }

    async fn global(&self, verb: GlobalVerb) -> Done {
        match verb {
            GlobalVerb::Info(args) => {
                let mut session = Session::open(&self.global).await?;
                let (settings, _) = session.view::<GlobalView>(GLOBAL).await?;
                match self.format(&args.output) {
                    Format::Table => Ok(settings.lines().into()),
                    Format::Data(data) => Ok(data.text(&[settings])?.into()),
                }
            }
            GlobalVerb::Inspect(args) => self.inspect::<GlobalView>(GLOBAL, &args.output).await,
            GlobalVerb::Set(args) => self.set_global(args).await,
        }
    }

    async fn set_global(&self, args: GlobalSetArgs) -> Done {
        let format = self.format(&args.output);
        let named = Kind::Global(named_settings(args));
        let written = Session::open(&self.global).await?.update(named).await?;
        confirm::<GlobalView>(written, format, String::new())
    }

    fn format(&self, output: &OutputArgs) -> Format {
        output.format(&self.output)
    }

    async fn create<V: View>(&self, kind: Kind, format: Format, line: String) -> Done {
        let written = Session::open(&self.global).await?.create(kind).await?;
        confirm::<V>(written, format, line)
    }

    async fn remove(&self, kind: v1::Kind, key: String, format: Format, line: String) -> Done {
        let written = Session::open(&self.global).await?.delete(kind, &key).await?;
        removed(key, format, line, written.warnings)
    }

    async fn list_scoped<V: View>(&self, args: ScopedListArgs) -> Done {
        self.list::<V>((!args.all).then_some(args.tenant), &args.list).await
    }

    async fn list<V: View>(&self, tenant: Option<String>, args: &ListArgs) -> Done {
        let form = args.form(&self.output);
        let mut session = Session::open(&self.global).await?;
        if let Some(name) = &tenant {
            // An unknown tenant is an error, not an empty list.
            session.view::<TenantView>(name).await?;
        }
        let selection = Selection { tenant, ..Selection::default() };
        if args.watch {
            return watch::watch::<V>(&mut session, selection, form).await;
        }
        let listed = session.list::<V>(selection).await?;
        Ok(Outcome { text: view::list(&listed.views, form)?, warnings: listed.warnings })
    }

    async fn inspect<V: View>(&self, key: &str, output: &OutputArgs) -> Done {
        let (found, oper) = Session::open(&self.global).await?.view::<V>(key).await?;
        Ok(view::inspect(&found, oper, self.format(output).data())?.into())
    }
}

/// Key of the settings, of which there is one.
const GLOBAL: &str = "global";

/// The line for what is gone, or its key as data.
fn removed(key: String, format: Format, line: String, warnings: Vec<String>) -> Done {
    #[derive(Serialize)]
    struct Removed {
        key: String,
    }
    let text = match format {
        Format::Table => line,
        Format::Data(data) => data.text(&Removed { key })?,
    };
    Ok(Outcome { text, warnings })
}

fn confirm<V: View>(written: Written, format: Format, line: String) -> Done {
    let text = match format {
        Format::Table => line,
        Format::Data(data) => {
            let stored = written.object.and_then(V::from_kind);
            data.text(&stored.ok_or(Failure::Reply("object as stored"))?)?
        }
    };
    Ok(Outcome { text, warnings: written.warnings })
}

/// Only what is named: netmaster leaves the rest as it is.
fn tenant_of(args: TenantArgs) -> v1::Tenant {
    let settings = args.settings;
    let tracking = match (settings.stateful, settings.stateless) {
        (true, _) => "stateful",
        (false, true) => "stateless",
        (false, false) => "",
    };
    v1::Tenant {
        tenant_name: args.name,
        default_network: String::new(),
        default_verdict: settings.default_verdict.unwrap_or_default(),
        tracking: tracking.to_owned(),
        on_deny: settings.on_deny.unwrap_or_default(),
        max_connections: settings.max_connections,
        max_new_flows: settings.max_new_flows,
        offload: settings.offload.unwrap_or_default(),
        bandwidth: settings.bandwidth,
        burst: settings.burst,
        vrf: 0,
    }
}

fn profile_of(args: ProfileCreateArgs) -> v1::NetProfile {
    v1::NetProfile {
        tenant_name: args.named.tenant,
        profile_name: args.named.name,
        bandwidth: args.bandwidth,
        burst: args.burst,
        dscp: args.dscp,
        scope: args.scope,
    }
}

fn network_of(args: NetworkCreateArgs) -> v1::Network {
    v1::Network {
        tenant_name: args.scope.tenant,
        network_name: args.scope.name,
        nw_type: args.nw_type,
        encap: args.encap,
        pkt_tag: args.pkt_tag,
        subnet: args.subnet,
        gateway: args.gateway.map(|ip| ip.to_string()).unwrap_or_default(),
        ipv6_subnet: args.subnetv6.unwrap_or_default(),
        ipv6_gateway: args.gatewayv6.map(|ip| ip.to_string()).unwrap_or_default(),
        cfgd_tag: args.nw_tag.unwrap_or_default(),
        offload: args.offload.unwrap_or_default(),
        bd: 0,
    }
}

fn group_of(args: GroupCreateArgs) -> v1::EndpointGroup {
    v1::EndpointGroup {
        tenant_name: args.scope.tenant,
        group_name: args.scope.name,
        network_name: args.network,
        ip_pool: args.ip_pool.unwrap_or_default(),
        ipv6_pool: args.ipv6_pool.unwrap_or_default(),
        policies: args.policy,
        net_profile: args.networkprofile.unwrap_or_default(),
        cfgd_tag: args.epg_tag.unwrap_or_default(),
        group_id: 0,
    }
}

/// Only what is named: netmaster leaves the rest as it is, also what somebody else sets meanwhile.
fn named_settings(args: GlobalSetArgs) -> v1::Global {
    v1::Global {
        name: GLOBAL.to_owned(),
        network_infra_type: args.fabric_mode.unwrap_or_default(),
        vlans: args.vlan_range.unwrap_or_default(),
        vxlans: args.vxlan_range.unwrap_or_default(),
        fwd_mode: args.fwd_mode.unwrap_or_default(),
        arp_mode: args.arp_mode.unwrap_or_default(),
        pvt_subnet: args.private_subnet.unwrap_or_default(),
        allocation: args.ip_allocation.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use control_api::v1;

    use super::{group_of, named_settings, network_of, profile_of, tenant_of};
    use crate::args::{Cli, GlobalVerb, GroupVerb, NetworkVerb, Noun, ProfileVerb, TenantVerb};
    use crate::rewrite::contiv_flags;

    /// What a command line asks for.
    pub(super) fn noun(line: &str) -> Noun {
        let argv = contiv_flags(line.split(' ').map(Into::into).collect());
        Cli::try_parse_from(argv).unwrap().noun
    }

    #[test]
    fn contivs_network_flags_land_in_their_fields() {
        let line = "netctl net create -t blue -n infra -e vlan -p 100 -s 10.1.1.0/24 -g 10.1.1.254 \
                    -s6 2001:db8::/64 -g6 2001:db8::1 -tag web --offload off n1";
        let Noun::Network(NetworkVerb::Create(args)) = noun(line) else { panic!() };
        let want = v1::Network {
            tenant_name: "blue".into(),
            network_name: "n1".into(),
            nw_type: "infra".into(),
            encap: "vlan".into(),
            pkt_tag: 100,
            subnet: "10.1.1.0/24".into(),
            gateway: "10.1.1.254".into(),
            ipv6_subnet: "2001:db8::/64".into(),
            ipv6_gateway: "2001:db8::1".into(),
            cfgd_tag: "web".into(),
            offload: "off".into(),
            bd: 0,
        };
        assert_eq!(network_of(args), want);
    }

    #[test]
    fn a_network_is_vxlan_data_with_a_free_tag_unless_told_otherwise() {
        let Noun::Network(NetworkVerb::Create(args)) = noun("netctl net create -s 10.1.1.0/24 n1")
        else {
            panic!()
        };
        let network = network_of(args);
        assert_eq!((network.nw_type.as_str(), network.encap.as_str()), ("data", "vxlan"));
        assert_eq!((network.pkt_tag, network.tenant_name.as_str()), (0, "default"));
        assert_eq!(network.gateway, "");
    }

    #[test]
    fn contivs_group_flags_land_in_their_fields() {
        let line = "netctl group create -t blue n1 g1 -p p1 -p p2 -n gold -r 10.1.1.5-10.1.1.9 -tag web \
             --ipv6-pool 2001:db8::5-2001:db8::9";
        let Noun::Group(GroupVerb::Create(args)) = noun(line) else { panic!() };
        let want = v1::EndpointGroup {
            tenant_name: "blue".into(),
            group_name: "g1".into(),
            network_name: "n1".into(),
            ip_pool: "10.1.1.5-10.1.1.9".into(),
            ipv6_pool: "2001:db8::5-2001:db8::9".into(),
            policies: vec!["p1".into(), "p2".into()],
            net_profile: "gold".into(),
            cfgd_tag: "web".into(),
            group_id: 0,
        };
        assert_eq!(group_of(args), want);
    }

    #[test]
    fn contivs_netprofile_flags_land_in_their_fields() {
        let line = "netctl netprofile create -t blue -b 6Mbps -d 10 -s 80 --scope group gold";
        let Noun::Netprofile(ProfileVerb::Create(args)) = noun(line) else { panic!() };
        let want = v1::NetProfile {
            tenant_name: "blue".into(),
            profile_name: "gold".into(),
            bandwidth: "6Mbps".into(),
            burst: 80,
            dscp: 10,
            scope: "group".into(),
        };
        assert_eq!(profile_of(args), want);
        let Noun::Netprofile(ProfileVerb::Create(args)) = noun("netctl netprofile create p") else {
            panic!()
        };
        let want = v1::NetProfile {
            tenant_name: "default".into(),
            profile_name: "p".into(),
            scope: "endpoint".into(),
            ..Default::default()
        };
        assert_eq!(profile_of(args), want);
    }

    #[test]
    fn tenant_settings_that_are_not_named_are_not_sent() {
        let Noun::Tenant(TenantVerb::Create(args)) = noun("netctl tenant create red") else {
            panic!()
        };
        let red = v1::Tenant { tenant_name: "red".into(), ..Default::default() };
        assert_eq!(tenant_of(args), red);
        let line = "netctl tenant update red --default-verdict deny --stateless --on-deny finish \
                    --max-connections 1000 --max-new-flows 0 --bandwidth 1gbps --burst 1500 --offload off";
        let Noun::Tenant(TenantVerb::Update(args)) = noun(line) else { panic!() };
        let want = v1::Tenant {
            default_verdict: "deny".into(),
            tracking: "stateless".into(),
            on_deny: "finish".into(),
            max_connections: Some(1000),
            max_new_flows: Some(0),
            bandwidth: Some("1gbps".into()),
            burst: Some(1500),
            offload: "off".into(),
            ..red
        };
        assert_eq!(tenant_of(args), want);
        let Noun::Tenant(TenantVerb::Update(args)) =
            noun("netctl tenant update red --stateful --bandwidth=")
        else {
            panic!()
        };
        let tenant = tenant_of(args);
        assert_eq!((tenant.tracking.as_str(), tenant.bandwidth), ("stateful", Some(String::new())));
    }

    #[test]
    fn settings_that_are_not_named_are_not_sent() {
        let Noun::Global(GlobalVerb::Set(args)) = noun("netctl global set -v 100-200 -a flood")
        else {
            panic!()
        };
        let want = v1::Global {
            name: "global".into(),
            vlans: "100-200".into(),
            arp_mode: "flood".into(),
            ..Default::default()
        };
        assert_eq!(named_settings(args), want);
    }
}
