//! How large a container's packets may be: the underlay's MTU less what the encapsulation adds.

use std::net::IpAddr;

/// Used where no uplink gives a limit.
pub(crate) const MTU_WITHOUT_UPLINK: u32 = 1500;
/// The engine's packet buffers have 2,048 bytes with headroom: no packet is larger than this, however
/// large the underlay's may be.
const ENGINE_MTU: u32 = 1500;

/// What a network's packets are wrapped in on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrapping {
    /// A VLAN tag, which is outside the MTU.
    Vlan,
    /// VXLAN in UDP between VTEPs of this address' family (RFC 7348, section 5).
    Vxlan(IpAddr),
}

impl Wrapping {
    /// Bytes of the underlay's MTU the wrapping takes: inner Ethernet 14, VXLAN 8, UDP 8 and the
    /// outer IP header.
    const fn overhead(self) -> u32 {
        match self {
            Self::Vlan => 0,
            Self::Vxlan(IpAddr::V4(_)) => 14 + 8 + 8 + 20,
            Self::Vxlan(IpAddr::V6(_)) => 14 + 8 + 8 + 40,
        }
    }
}

/// What a container's interface carries, which says how small its packets may be at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carried {
    /// IPv4 alone.
    Ipv4,
    /// Also IPv6.
    Ipv6,
}

impl Carried {
    /// Of an interface with these addresses.
    pub(crate) fn of(mut addresses: impl Iterator<Item = IpAddr>) -> Self {
        if addresses.any(|address| address.is_ipv6()) { Self::Ipv6 } else { Self::Ipv4 }
    }

    /// The smallest MTU a link may have (RFC 791, section 3.2; RFC 8200, section 5).
    const fn mtu_min(self) -> u32 {
        match self {
            Self::Ipv4 => 68,
            Self::Ipv6 => 1280,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }
}

/// What bounds the packets of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// Bytes of the underlay's MTU.
    pub(crate) underlay: u32,
    pub(crate) wrapping: Wrapping,
    pub(crate) carried: Carried,
}

/// Why a container cannot get the MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadMtu {
    #[error("mtu {wanted} does not fit: the underlay's {underlay} leaves {limit}")]
    TooLarge { wanted: u32, underlay: u32, limit: u32 },
    #[error("mtu {wanted} does not fit the engine's packet buffers: they take {ENGINE_MTU}")]
    AboveEngine { wanted: u32 },
    #[error(
        "the underlay's MTU {underlay} leaves {limit}, less than the {} {} needs",
        carried.mtu_min(), carried.name()
    )]
    UnderlayTooSmall { underlay: u32, limit: u32, carried: Carried },
    #[error("mtu {wanted} is less than the {} {} needs", carried.mtu_min(), carried.name())]
    TooSmall { wanted: u32, carried: Carried },
}

/// The MTU in bytes of a container's interface; `wanted` 0 is "as large as fits".
pub(crate) const fn container_mtu(wanted: u32, room: Room) -> Result<u32, BadMtu> {
    let Room { underlay, wrapping, carried } = room;
    let limit = underlay.saturating_sub(wrapping.overhead());
    if limit < carried.mtu_min() {
        return Err(BadMtu::UnderlayTooSmall { underlay, limit, carried });
    }
    if wanted == 0 {
        return Ok(if limit > ENGINE_MTU { ENGINE_MTU } else { limit });
    }
    if wanted > ENGINE_MTU {
        return Err(BadMtu::AboveEngine { wanted });
    }
    if wanted > limit {
        return Err(BadMtu::TooLarge { wanted, underlay, limit });
    }
    if wanted < carried.mtu_min() {
        return Err(BadMtu::TooSmall { wanted, carried });
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const V4: Wrapping = Wrapping::Vxlan(IpAddr::V4(Ipv4Addr::LOCALHOST));
    const V6: Wrapping = Wrapping::Vxlan(IpAddr::V6(Ipv6Addr::LOCALHOST));

    fn over(underlay: u32, wrapping: Wrapping) -> Room {
        Room { underlay, wrapping, carried: Carried::Ipv4 }
    }

    #[test]
    fn d20_vxlan_takes_50_bytes_over_ipv4_70_over_ipv6_and_vlan_none() {
        assert_eq!(container_mtu(0, over(1500, V4)), Ok(1450));
        assert_eq!(container_mtu(0, over(1500, V6)), Ok(1430));
        assert_eq!(container_mtu(0, over(1500, Wrapping::Vlan)), Ok(1500));
    }

    #[test]
    fn a_large_underlay_gives_what_the_engines_buffers_take() {
        assert_eq!(container_mtu(0, over(1550, V4)), Ok(1500));
        assert_eq!(container_mtu(0, over(9000, V4)), Ok(1500));
        assert_eq!(container_mtu(0, over(9000, Wrapping::Vlan)), Ok(1500));
        assert_eq!(container_mtu(1500, over(9000, V4)), Ok(1500));
        assert_eq!(container_mtu(1501, over(9000, V4)), Err(BadMtu::AboveEngine { wanted: 1501 }));
    }

    #[test]
    fn a_smaller_wish_is_granted_and_a_larger_one_refused() {
        assert_eq!(container_mtu(1400, over(1500, V4)), Ok(1400));
        assert_eq!(container_mtu(1450, over(1500, V4)), Ok(1450));
        let refused = container_mtu(1451, over(1500, V4));
        assert_eq!(refused, Err(BadMtu::TooLarge { wanted: 1451, underlay: 1500, limit: 1450 }));
        assert_eq!(
            container_mtu(67, over(1500, V4)),
            Err(BadMtu::TooSmall { wanted: 67, carried: Carried::Ipv4 })
        );
    }

    #[test]
    fn an_underlay_too_small_for_the_wrapping_is_named() {
        let refused = container_mtu(0, over(100, V4));
        let carried = Carried::Ipv4;
        assert_eq!(refused, Err(BadMtu::UnderlayTooSmall { underlay: 100, limit: 50, carried }));
    }

    #[test]
    fn an_interface_with_ipv6_has_its_1280_bytes() {
        let both = ["10.1.1.5", "2016::5"].map(|text| text.parse::<IpAddr>().unwrap());
        let carried = Carried::of(both.into_iter());
        assert_eq!(
            (carried, Carried::of(both.into_iter().take(1))),
            (Carried::Ipv6, Carried::Ipv4)
        );
        let room = |underlay| Room { underlay, wrapping: V4, carried };
        assert_eq!(container_mtu(1280, room(1500)), Ok(1280));
        assert_eq!(
            container_mtu(1279, room(1500)).unwrap_err().to_string(),
            "mtu 1279 is less than the 1280 IPv6 needs"
        );
        assert_eq!(
            container_mtu(0, room(1300)).unwrap_err().to_string(),
            "the underlay's MTU 1300 leaves 1250, less than the 1280 IPv6 needs"
        );
    }
}
