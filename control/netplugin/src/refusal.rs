//! Why a CNI operation was refused or failed, and the code and words a runtime gets for it.

use cni_api::v1::{CniError, Code};
use prost::Message as _;
use tonic::Status;

use crate::attachment::BadAttachmentId;
use crate::given::Unfit;
use crate::links;
use crate::master::MasterError;
use crate::mtu::BadMtu;
use crate::ports::Exhausted;
use crate::published::{self, Mapping};
use crate::roster;

/// One refused or failed operation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(transparent)]
    Id(#[from] BadAttachmentId),
    #[error("{field}: {reason}")]
    Request { field: &'static str, reason: String },
    #[error(transparent)]
    Mtu(#[from] BadMtu),
    #[error(transparent)]
    Links(#[from] links::Error),
    #[error(transparent)]
    Unfit(#[from] Unfit),
    #[error(transparent)]
    Ports(#[from] Exhausted),
    #[error(transparent)]
    Master(#[from] MasterError),
    #[error(transparent)]
    Roster(#[from] roster::Error),
    #[error("{}: {mapping} is {holder}'s", published::FIELD)]
    Published { mapping: Mapping, holder: String },
    #[error("vrouterd refused {what}: {reason}")]
    Engine { what: &'static str, reason: String },
    #[error("ran out of time waiting for {0}")]
    Late(&'static str),
    #[error("an earlier {0} of this attachment is not undone yet: {1}")]
    Unfinished(&'static str, Box<Self>),
    #[error("no such attachment")]
    Unknown,
    #[error("{0}")]
    Differs(String),
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Self>),
    #[error("the task of this operation died: {0}")]
    Died(#[from] tokio::task::JoinError),
}

impl Refusal {
    fn code(&self) -> Code {
        match self {
            Self::Id(_) => Code::InvalidEnvironment,
            Self::Request { .. } | Self::Mtu(_) | Self::Unfit(_) | Self::Published { .. } => {
                Code::InvalidConfig
            }
            Self::Links(error) => match error {
                links::Error::Sandbox { .. } => Code::InvalidNetns,
                links::Error::Exists { .. } => Code::InvalidEnvironment,
                links::Error::OwnNamespace { .. }
                | links::Error::NoUplink { .. }
                | links::Error::Gone { .. }
                | links::Error::NotRunning { .. }
                | links::Error::Netlink(_)
                | links::Error::Sysctl(_) => Code::Io,
            },
            Self::Ports(_) => Code::PoolExhausted,
            Self::Master(MasterError::Unreachable(_)) | Self::Late(_) | Self::Unfinished(..) => {
                Code::TryAgain
            }
            Self::Master(MasterError::Refused(refusal)) => code_of(refusal),
            Self::Roster(_) => Code::Io,
            Self::Engine { .. } => Code::ProgrammingFailed,
            Self::Unknown => Code::UnknownContainer,
            Self::Differs(_) | Self::Died(_) => Code::Internal,
            Self::Several(all) => all.first().map_or(Code::Internal, Self::code),
        }
    }

    /// What to do about it.
    fn details(&self) -> String {
        match self {
            Self::Master(MasterError::Refused(refusal)) => refusal.detail.next_step.clone(),
            Self::Master(MasterError::Unreachable(_)) => "start netmaster, then retry".to_owned(),
            Self::Late("vrouterd") => "start vrouterd, then retry".to_owned(),
            Self::Late(_) => {
                "raise timeoutSeconds, or look at the log of what was waited for".to_owned()
            }
            Self::Links(links::Error::Exists { .. }) => {
                "choose another CNI_IFNAME, or remove the interface from the container".to_owned()
            }
            Self::Ports(_) => {
                "remove containers of this node, or wait until freed ids have rested".to_owned()
            }
            Self::Engine { what: "the tables", .. } => {
                "what it has taken before is in force; look at netplugin's log, which tries again \
                 each second"
                    .to_owned()
            }
            Self::Engine { .. } => "look at vrouterd's log, then DEL and ADD again".to_owned(),
            Self::Published { .. } => "choose another port of the node".to_owned(),
            Self::Unfinished(..) => "DEL again, then ADD".to_owned(),
            Self::Roster(roster::Error::Store(error)) if error.is_full() => {
                "make room where netplugin's --state-dir is, then retry".to_owned()
            }
            Self::Unfit(_) => {
                "put weir-cni first in the plugin list, or behind one that makes a veth \
                               pair with an address and the gateway of the network, such as ptp"
                    .to_owned()
            }
            Self::Id(_)
            | Self::Request { .. }
            | Self::Mtu(_)
            | Self::Links(_)
            | Self::Roster(_)
            | Self::Unknown
            | Self::Differs(_)
            | Self::Several(_)
            | Self::Died(_) => String::new(),
        }
    }
}

fn code_of(refusal: &crate::master::Refusal) -> Code {
    if refusal.code == tonic::Code::NotFound {
        return Code::NotFound;
    }
    if refusal.code == tonic::Code::ResourceExhausted {
        return Code::PoolExhausted;
    }
    if refusal.code == tonic::Code::InvalidArgument {
        return Code::InvalidConfig;
    }
    if matches!(refusal.detail.field.as_str(), "ipAddress" | "macAddress") {
        return Code::AddressInUse;
    }
    Code::Internal
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = refusal.code();
        let msg = refusal.to_string();
        let details = CniError { code: code as u32, msg: msg.clone(), details: refusal.details() };
        Self::with_details(status_code(code), msg, details.encode_to_vec().into())
    }
}

const fn status_code(code: Code) -> tonic::Code {
    match code {
        Code::InvalidEnvironment
        | Code::InvalidConfig
        | Code::InvalidNetns
        | Code::Decode
        | Code::UnsupportedField
        | Code::IncompatibleVersion => tonic::Code::InvalidArgument,
        Code::UnknownContainer | Code::NotFound => tonic::Code::NotFound,
        Code::TryAgain
        | Code::NotAvailable
        | Code::LimitedConnectivity
        | Code::DaemonUnreachable => tonic::Code::FailedPrecondition,
        Code::PoolExhausted => tonic::Code::ResourceExhausted,
        Code::AddressInUse => tonic::Code::AlreadyExists,
        Code::Unspecified | Code::Io | Code::ProgrammingFailed | Code::Internal => {
            tonic::Code::Internal
        }
    }
}

#[cfg(test)]
mod tests {
    use control_api::v1::ErrorDetail;

    use super::*;
    use crate::master::Refusal as MasterRefusal;

    fn cni_error(refusal: Refusal) -> CniError {
        CniError::decode(Status::from(refusal).details()).unwrap()
    }

    fn from_master(code: tonic::Code, field: &str) -> CniError {
        let detail = ErrorDetail {
            field: field.into(),
            value: "v".into(),
            reason: "r".into(),
            next_step: "create it first".into(),
            ..ErrorDetail::default()
        };
        let refusal = MasterRefusal { code, message: "m".into(), detail };
        cni_error(Refusal::Master(MasterError::Refused(Box::new(refusal))))
    }

    #[test]
    fn netmasters_refusals_get_the_documented_codes() {
        let unknown = from_master(tonic::Code::NotFound, "tenantName");
        assert_eq!(unknown.code, 102);
        assert_eq!(unknown.msg, "m (tenantName \"v\")");
        assert_eq!(unknown.details, "create it first");
        assert_eq!(from_master(tonic::Code::ResourceExhausted, "networkName").code, 101);
        assert_eq!(from_master(tonic::Code::AlreadyExists, "ipAddress").code, 104);
        assert_eq!(from_master(tonic::Code::InvalidArgument, "macAddress").code, 7);
        assert_eq!(from_master(tonic::Code::AlreadyExists, "endpointID").code, 999);
    }

    #[test]
    fn the_nodes_own_refusals_say_what_to_do() {
        for (refusal, code, msg) in [
            (
                Refusal::Ports(Exhausted { count: 4094 }),
                101,
                "all 4094 port ids of this node are in use or were freed less than 10s ago",
            ),
            (
                Refusal::Engine { what: "the port", reason: "no room".into() },
                103,
                "vrouterd refused the port: no room",
            ),
            (
                Refusal::Links(links::Error::Exists { ifname: "eth0".into() }),
                4,
                "interface eth0 exists in the container already",
            ),
        ] {
            let error = cni_error(refusal);
            assert_eq!((error.code, error.msg.as_str()), (code, msg));
            assert!(!error.details.is_empty(), "{msg}");
        }
    }

    #[test]
    fn what_a_retry_can_cure_is_try_again() {
        let away = Refusal::Master(MasterError::Unreachable("x".into()));
        assert_eq!(cni_error(away).code, 11);
        let late = cni_error(Refusal::Late("vrouterd"));
        assert_eq!(late.code, 11);
        assert_eq!(late.msg, "ran out of time waiting for vrouterd");
    }
}
