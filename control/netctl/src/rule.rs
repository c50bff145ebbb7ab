//! What netctl checks of a rule before it asks netmaster: the mixes of direction and peer that
//! Contiv's client refuses, with its texts. Everything else is netmaster's to judge.

use control_api::v1;

use crate::args::RuleAddArgs;

/// A rule that cannot be meant. The texts are Contiv's, to the letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RuleError {
    #[error("Cant specify to-group for incoming rule")]
    InToGroup,
    #[error("Cant specify to-network for incoming rule")]
    InToNetwork,
    #[error("Can't specify both from-group argument and -from-network ")]
    InGroupAndNetwork,
    #[error("Cant specify from-group for outgoing rule")]
    OutFromGroup,
    #[error("Cant specify from-network for outgoing rule")]
    OutFromNetwork,
    #[error("Cant specify from-ip-address for outgoing rule")]
    OutFromAddress,
    #[error("Can't specify both -to-group and -to-network")]
    OutGroupAndNetwork,
    #[error("Unknown direction")]
    Direction,
}

/// Checks the arguments and makes the rule of them.
pub(crate) fn rule_of(args: RuleAddArgs) -> Result<v1::Rule, RuleError> {
    check(&args)?;
    Ok(v1::Rule {
        tenant_name: args.tenant,
        policy_name: args.policy,
        rule_id: args.rule_id,
        direction: args.direction,
        priority: args.priority,
        from_endpoint_group: args.from_group,
        to_endpoint_group: args.to_group,
        from_network: args.from_network,
        to_network: args.to_network,
        from_ip_address: args.from_ip_address,
        to_ip_address: args.to_ip_address,
        protocol: args.protocol,
        port: args.port,
        action: args.action,
        cookie: 0,
    })
}

fn check(args: &RuleAddArgs) -> Result<(), RuleError> {
    let given = |value: &str| !value.is_empty();
    let refusals: &[(bool, RuleError)] = match args.direction.as_str() {
        "in" => &[
            (given(&args.to_group), RuleError::InToGroup),
            (given(&args.to_network), RuleError::InToNetwork),
            (given(&args.from_group) && given(&args.from_network), RuleError::InGroupAndNetwork),
        ],
        "out" => &[
            (given(&args.from_group), RuleError::OutFromGroup),
            (given(&args.from_network), RuleError::OutFromNetwork),
            (given(&args.from_ip_address), RuleError::OutFromAddress),
            (given(&args.to_group) && given(&args.to_network), RuleError::OutGroupAndNetwork),
        ],
        _ => &[(true, RuleError::Direction)],
    };
    match refusals.iter().find(|(refused, _)| *refused) {
        Some((_, error)) => Err(*error),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::{RuleError, rule_of};
    use crate::args::{Cli, Noun, PolicyVerb};

    fn rule(flags: &str) -> Result<control_api::v1::Rule, RuleError> {
        let line = format!("netctl policy rule-add p1 1 {flags}");
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        let Noun::Policy(PolicyVerb::RuleAdd(args)) = cli.noun else { panic!() };
        rule_of(*args)
    }

    #[test]
    fn contivs_defaults_are_priority_1_in_allow() {
        let rule = rule("").unwrap();
        assert_eq!(
            (rule.priority, rule.direction.as_str(), rule.action.as_str()),
            (1, "in", "allow")
        );
        assert_eq!((rule.tenant_name.as_str(), rule.port), ("default", 0));
    }

    #[test]
    fn every_flag_lands_in_its_field() {
        let rule =
            rule("-t blue -p 20 -d in -g web -i 10.1.1.0/24 -s 10.1.1.5 -l tcp -P 8001 -j deny");
        let want = control_api::v1::Rule {
            tenant_name: "blue".into(),
            policy_name: "p1".into(),
            rule_id: "1".into(),
            direction: "in".into(),
            priority: 20,
            from_endpoint_group: "web".into(),
            from_ip_address: "10.1.1.0/24".into(),
            to_ip_address: "10.1.1.5".into(),
            protocol: "tcp".into(),
            port: 8001,
            action: "deny".into(),
            ..Default::default()
        };
        assert_eq!(rule, Ok(want));
    }

    #[test]
    fn each_mix_that_contivs_client_refuses_is_refused() {
        for (flags, error) in [
            ("-d in -e g", RuleError::InToGroup),
            ("-d in -o n", RuleError::InToNetwork),
            ("-d in -g g -n n", RuleError::InGroupAndNetwork),
            ("-d out -g g", RuleError::OutFromGroup),
            ("-d out -n n", RuleError::OutFromNetwork),
            ("-d out -i 10.1.1.1", RuleError::OutFromAddress),
            ("-d out -e g -o n", RuleError::OutGroupAndNetwork),
            ("-d both", RuleError::Direction),
        ] {
            assert_eq!(rule(flags), Err(error), "{flags}");
        }
    }
}
