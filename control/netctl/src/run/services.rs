//! Services, application profiles and BGP settings.

use control_api::v1;
use control_api::v1::object::Kind;

use super::{Done, Runner, confirm};
use crate::args::{
    AppProfileArgs, AppProfileGroupsArgs, AppProfileVerb, BgpCreateArgs, BgpVerb,
    ServiceCreateArgs, ServiceVerb,
};
use crate::session::{Selection, Session};
use crate::view::{self, AppProfileView, BgpView, GroupView, ServiceView, View as _};

impl Runner {
    pub(super) async fn service(&self, verb: ServiceVerb) -> Done {
        match verb {
            ServiceVerb::Create(args) => {
                let line =
                    format!("Creating ServiceLB {}:{}\n", args.named.tenant, args.named.name);
                let format = self.format(&args.named.output);
                self.create::<ServiceView>(Kind::ServiceLb(service_of(args)), format, line).await
            }
            ServiceVerb::Rm(args) => {
                let line = format!("Deleting Service  {},{}\n", args.name, args.tenant);
                self.remove(v1::Kind::ServiceLb, args.key(), self.format(&args.output), line).await
            }
            ServiceVerb::Ls(args) => self.list_scoped::<ServiceView>(args).await,
            ServiceVerb::Inspect(args) => {
                self.inspect::<ServiceView>(&args.key(), &args.output).await
            }
        }
    }

    pub(super) async fn app_profile(&self, verb: AppProfileVerb) -> Done {
        match verb {
            AppProfileVerb::Create(args) => {
                let line =
                    format!("Creating AppProfile {}:{}\n", args.named.tenant, args.named.name);
                let format = self.format(&args.named.output);
                let kind = Kind::AppProfile(app_profile_of(args));
                self.create::<AppProfileView>(kind, format, line).await
            }
            AppProfileVerb::Update(args) => {
                let line =
                    format!("Updating AppProfile {}:{}\n", args.named.tenant, args.named.name);
                let format = self.format(&args.named.output);
                let kind = Kind::AppProfile(app_profile_of(args));
                let written = Session::open(&self.global).await?.update(kind).await?;
                confirm::<AppProfileView>(written, format, line)
            }
            AppProfileVerb::Rm(args) => {
                let line = format!("Deleting AppProfile {}:{}\n", args.tenant, args.name);
                self.remove(v1::Kind::AppProfile, args.key(), self.format(&args.output), line).await
            }
            AppProfileVerb::Ls(args) => self.list_scoped::<AppProfileView>(args).await,
            AppProfileVerb::Inspect(args) => {
                self.inspect::<AppProfileView>(&args.key(), &args.output).await
            }
            AppProfileVerb::GroupLs(args) => self.app_profile_groups(args).await,
        }
    }

    async fn app_profile_groups(&self, args: AppProfileGroupsArgs) -> Done {
        let form = args.list.form(&self.output);
        let mut session = Session::open(&self.global).await?;
        let key = format!("{}:{}", args.tenant, args.name);
        let (profile, _) = session.view::<AppProfileView>(&key).await?;
        let selection = Selection { tenant: Some(args.tenant), ..Selection::default() };
        let mut groups = session.list::<GroupView>(selection).await?.views;
        groups.retain(|group| profile.endpoint_groups.iter().any(|name| name == group.name()));
        Ok(view::list(&groups, form)?.into())
    }

    pub(super) async fn bgp(&self, verb: BgpVerb) -> Done {
        match verb {
            BgpVerb::Create(args) => {
                let line = format!("Creating Bgp router config: {}\n", args.name);
                let format = self.format(&args.output);
                self.create::<BgpView>(Kind::Bgp(bgp_of(args)), format, line).await
            }
            BgpVerb::Rm(args) => {
                let line = format!("Deleting Bgp router config: {}\n", args.name);
                self.remove(v1::Kind::Bgp, args.name, self.format(&args.output), line).await
            }
            BgpVerb::Ls(args) => self.list::<BgpView>(None, &args).await,
            BgpVerb::Inspect(args) => self.inspect::<BgpView>(&args.name, &args.output).await,
        }
    }
}

fn service_of(args: ServiceCreateArgs) -> v1::ServiceLb {
    v1::ServiceLb {
        tenant_name: args.named.tenant,
        service_name: args.named.name,
        network_name: args.network,
        ip_address: args.preferred_ip,
        selectors: args.selector,
        ports: args.port,
        service_vip: String::new(),
    }
}

fn app_profile_of(args: AppProfileArgs) -> v1::AppProfile {
    v1::AppProfile {
        tenant_name: args.named.tenant,
        app_profile_name: args.named.name,
        endpoint_groups: args.group,
    }
}

fn bgp_of(args: BgpCreateArgs) -> v1::Bgp {
    v1::Bgp {
        hostname: args.name,
        routerip: args.router_ip,
        as_number: args.as_number,
        neighbor_as: args.neighbor_as,
        neighbor: args.neighbor,
    }
}

#[cfg(test)]
mod tests {
    use control_api::v1;

    use super::{app_profile_of, bgp_of, service_of};
    use crate::args::{AppProfileVerb, BgpVerb, Noun, ServiceVerb};
    use crate::run::tests::noun;

    #[test]
    fn cli_1_contivs_service_flags_land_in_their_fields() {
        let line = "netctl service create -t blue -s web -l app=shop -l tier=front \
                    -p 80:8080:TCP -p 53:53:UDP -ip 10.1.1.9 shop";
        let Noun::Service(ServiceVerb::Create(args)) = noun(line) else { panic!() };
        let want = v1::ServiceLb {
            tenant_name: "blue".into(),
            service_name: "shop".into(),
            network_name: "web".into(),
            ip_address: "10.1.1.9".into(),
            selectors: vec!["app=shop".into(), "tier=front".into()],
            ports: vec!["80:8080:TCP".into(), "53:53:UDP".into()],
            service_vip: String::new(),
        };
        assert_eq!(service_of(args), want);
    }

    #[test]
    fn cli_1_contivs_app_profile_flags_land_in_their_fields() {
        let want = v1::AppProfile {
            tenant_name: "blue".into(),
            app_profile_name: "shop".into(),
            endpoint_groups: vec!["front".into(), "back".into()],
        };
        let line = "netctl app-profile create -t blue -g front,back shop";
        let Noun::AppProfile(AppProfileVerb::Create(args)) = noun(line) else { panic!() };
        assert_eq!(app_profile_of(args), want);
        let line = "netctl app-profile update -t blue -g front,back shop";
        let Noun::AppProfile(AppProfileVerb::Update(args)) = noun(line) else { panic!() };
        assert_eq!(app_profile_of(args), want);
    }

    #[test]
    fn cli_1_contivs_bgp_flags_land_in_their_fields() {
        let line = "netctl bgp create leaf --router-ip 10.9.0.1/24 --as 65001 \
                    --neighbor-as 65002 --neighbor 10.9.0.2";
        let Noun::Bgp(BgpVerb::Create(args)) = noun(line) else { panic!() };
        let want = v1::Bgp {
            hostname: "leaf".into(),
            routerip: "10.9.0.1/24".into(),
            as_number: "65001".into(),
            neighbor_as: "65002".into(),
            neighbor: "10.9.0.2".into(),
        };
        assert_eq!(bgp_of(args), want);
    }
}
