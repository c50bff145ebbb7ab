//! The request to add a port, read and checked.

use std::net::IpAddr;
use std::time::Duration;

use datapath_api::convert::{ConvertError, Field, ip_from_proto};
use datapath_api::v1;
use flowtable::ids::{OutOfRange, PortId, Vid};
use tonic::Status;

use crate::ports::{NewKind, NewPort};
use crate::status::{invalid, range};
use crate::uplink::{Mode, NewUplink, Trial, UplinkTraffic};

/// An hour: nobody waits that long for a network that is gone.
const CONFIRM_SECONDS_MAX: u32 = 3600;
/// Longest device name (`IFNAMSIZ` without the zero).
const IFNAME_BYTES_MAX: usize = 15;
/// Devices of an uplink that can take over.
const STANDBY_MAX: usize = 3;

pub(crate) fn new_port(request: v1::AddPortRequest) -> Result<NewPort, Status> {
    let id = PortId::new(request.port).map_err(|e| range("port", e))?;
    let kind = match request.kind() {
        v1::PortKind::Container => NewKind::Container,
        v1::PortKind::Uplink => NewKind::Uplink(new_uplink(&request)?),
        v1::PortKind::Unspecified => {
            return Err(Status::invalid_argument("kind: want CONTAINER or UPLINK"));
        }
    };
    let of_uplinks = !request.vtep.is_empty()
        || !request.vid.is_empty()
        || !request.standby.is_empty()
        || request.confirm_seconds != 0
        || request.uplink_mode != 0;
    if kind == NewKind::Container && of_uplinks {
        return Err(Status::invalid_argument(
            "vtep, vid, confirm_seconds, uplink_mode, standby: only with kind UPLINK",
        ));
    }
    device_name("name", &request.name)?;
    Ok(NewPort { id, name: request.name, kind })
}

fn device_name(field: &str, name: &str) -> Result<(), Status> {
    if name.is_empty() || name.len() > IFNAME_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "{field}: {name:?} is no device name of 1 to {IFNAME_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}

fn new_uplink(request: &v1::AddPortRequest) -> Result<NewUplink, Status> {
    let mode = match v1::UplinkMode::try_from(request.uplink_mode) {
        Ok(v1::UplinkMode::Dedicated) => Mode::Dedicated,
        Ok(v1::UplinkMode::Shared) => Mode::Shared,
        Err(_unknown) => {
            return Err(Status::invalid_argument("uplink_mode: want DEDICATED or SHARED"));
        }
    };
    if request.standby.len() > STANDBY_MAX {
        let count = request.standby.len();
        return Err(Status::invalid_argument(format!(
            "standby: {count} devices are too many: want at most {STANDBY_MAX}"
        )));
    }
    for (place, name) in request.standby.iter().enumerate() {
        device_name("standby", name)?;
        if *name == request.name || request.standby[..place].contains(name) {
            return Err(Status::invalid_argument(format!("standby: {name:?} is given twice")));
        }
    }
    let (standby, traffic) = (request.standby.clone(), uplink_traffic(request)?);
    Ok(NewUplink { mode, standby, traffic, trial: trial(request)? })
}

fn trial(request: &v1::AddPortRequest) -> Result<Trial, Status> {
    match request.confirm_seconds {
        0 => Ok(Trial::None),
        seconds @ 1..=CONFIRM_SECONDS_MAX => Ok(Trial::For(Duration::from_secs(seconds.into()))),
        wrong => Err(Status::invalid_argument(format!(
            "confirm_seconds: {wrong} is too long: want at most {CONFIRM_SECONDS_MAX}"
        ))),
    }
}

fn uplink_traffic(request: &v1::AddPortRequest) -> Result<UplinkTraffic, Status> {
    let at = Field { message: "add_port", field: "vtep" };
    let vteps = request.vtep.iter().map(|bytes| ip_from_proto(bytes, at));
    let vteps = vteps.collect::<Result<Vec<IpAddr>, ConvertError>>().map_err(|e| invalid(&e))?;
    let vids = request.vid.iter().map(|vid| Vid::new(*vid));
    let vids = vids.collect::<Result<Vec<Vid>, OutOfRange>>().map_err(|e| range("vid", e))?;
    Ok(UplinkTraffic { vteps, vids })
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn request() -> v1::AddPortRequest {
        let kind = v1::PortKind::Uplink.into();
        v1::AddPortRequest { port: 1, name: "eth1".into(), kind, ..v1::AddPortRequest::default() }
    }

    #[test]
    fn an_uplink_is_parsed() {
        let vtep = vec![vec![192, 0, 2, 1]];
        let parsed = new_port(v1::AddPortRequest { vtep, vid: vec![7], ..request() }).unwrap();
        let traffic =
            UplinkTraffic { vteps: vec![[192, 0, 2, 1].into()], vids: vec![Vid::new(7).unwrap()] };
        let (mode, standby) = (Mode::Dedicated, Vec::new());
        let expected = NewUplink { mode, standby, traffic, trial: Trial::None };
        assert_eq!(parsed.kind, NewKind::Uplink(expected.clone()));
        assert_eq!((parsed.id, parsed.name.as_str()), (PortId::MIN, "eth1"));
        let vtep = vec![vec![192, 0, 2, 1]];
        let tried = v1::AddPortRequest {
            vtep,
            vid: vec![7],
            confirm_seconds: 5,
            uplink_mode: v1::UplinkMode::Shared.into(),
            standby: vec!["eth2".into()],
            ..request()
        };
        let expected = NewUplink {
            mode: Mode::Shared,
            standby: vec!["eth2".to_owned()],
            trial: Trial::For(Duration::from_secs(5)),
            ..expected
        };
        assert_eq!(new_port(tried).unwrap().kind, NewKind::Uplink(expected));
    }

    #[test]
    fn wrong_ports_are_refused_by_field() {
        let container = v1::PortKind::Container.into();
        for (wrong, field) in [
            (v1::AddPortRequest { port: 0, ..request() }, "port: "),
            (v1::AddPortRequest { port: 4095, ..request() }, "port: "),
            (v1::AddPortRequest { name: String::new(), ..request() }, "name: "),
            (v1::AddPortRequest { name: "x".repeat(16), ..request() }, "name: "),
            (v1::AddPortRequest { kind: 0, ..request() }, "kind: "),
            (v1::AddPortRequest { vid: vec![4095], ..request() }, "vid: "),
            (v1::AddPortRequest { vtep: vec![vec![1; 5]], ..request() }, "add_port.vtep: "),
            (
                v1::AddPortRequest { kind: container, vid: vec![1], ..request() },
                "vtep, vid, confirm",
            ),
            (v1::AddPortRequest { confirm_seconds: 3601, ..request() }, "confirm_seconds: "),
            (v1::AddPortRequest { uplink_mode: 2, ..request() }, "uplink_mode: "),
            (v1::AddPortRequest { standby: vec!["eth1".into()], ..request() }, "standby: "),
            (v1::AddPortRequest { standby: vec!["x".repeat(16)], ..request() }, "standby: "),
            (v1::AddPortRequest { standby: vec!["a".into(); 4], ..request() }, "standby: "),
        ] {
            let refused = new_port(wrong).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument);
            assert!(refused.message().starts_with(field), "{}", refused.message());
        }
    }
}
