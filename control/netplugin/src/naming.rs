//! Names and addresses that follow from an attachment's identity alone, so that a DEL without any
//! stored state still finds what an ADD left behind.

use flowtable::ids::Mac;

use crate::attachment::AttachmentId;

/// Host ends of containers begin like this, followed by [`HEX_DIGITS`] hexadecimal digits.
const PREFIX: &str = "wr";
const HEX_DIGITS: usize = 10;

/// Name of the host end of an attachment's veth pair: 12 bytes, within the kernel's 15.
pub(crate) fn host_ifname(id: &AttachmentId) -> String {
    let hash = hash64(id);
    let folded = (hash ^ (hash >> 40)) & 0xff_ffff_ffff;
    format!("{PREFIX}{folded:0HEX_DIGITS$x}")
}

/// Whether a link is called like a host end. Trunks (`wr-t0.0`) are not.
pub(crate) fn is_host_ifname(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|digits| {
        digits.len() == HEX_DIGITS
            && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// Address of the host end. Fixed, because udev replaces a random one after the fact; locally
/// administered, unicast.
pub(crate) fn host_mac(id: &AttachmentId) -> Mac {
    let hash = hash64(id).to_be_bytes();
    let mut bytes = [0x06; 6];
    bytes[1..].copy_from_slice(&hash[3..]);
    Mac(bytes)
}

/// FNV-1a: the names outlive the process, so the hash must never change with a library.
fn hash64(id: &AttachmentId) -> u64 {
    let bytes = id.container_id().bytes().chain([0]).chain(id.ifname().bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(container: &str, ifname: &str) -> AttachmentId {
        AttachmentId::new(container, ifname).unwrap()
    }

    #[test]
    fn the_host_end_is_named_the_same_in_every_version() {
        assert_eq!(host_ifname(&id("c1", "eth0")), "wrb3bf1c7640");
        assert_eq!(host_mac(&id("c1", "eth0")).to_string(), "06:b3:bf:e9:49:42");
    }

    #[test]
    fn names_are_recognised_and_trunks_are_not() {
        for (container, ifname) in [("c1", "eth0"), ("c1", "eth1"), ("default-t1", "net0")] {
            assert!(is_host_ifname(&host_ifname(&id(container, ifname))));
        }
        for other in ["wr-t0.0", "wr-t1.0", "wr", "wr0123456789a", "wrABCDEF0123", "wlan0", "eth0"]
        {
            assert!(!is_host_ifname(other), "{other}");
        }
    }

    #[test]
    fn the_boundary_between_id_and_interface_counts() {
        assert_ne!(host_ifname(&id("c1e", "th0")), host_ifname(&id("c1", "eth0")));
    }

    #[test]
    fn host_addresses_are_unicast_and_locally_administered() {
        let mac = host_mac(&id("c1", "eth0"));
        assert_eq!(mac.0[0] & 0b11, 0b10);
        assert_ne!(mac, Mac::GATEWAY);
    }
}
