// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// A NIC that the host goes on using, included by offload.bpf.c: what is Weir's among its frames goes
// to the engine over the trunk, with the port's id as a tag. Everything else passes untouched, to
// other filters and then to the host, whether an engine runs or not.

#define VXLAN_PORT 4789 // RFC 7348, section 5
#define UPLINK_PICKS (1 << 18)

// One local tunnel end point, one published port of the node, or one VLAN, of one port.
struct pick {
	__u8 address[16]; // IPv4 as ::ffff:a.b.c.d; 0: a VLAN
	__u16 port;
	__u16 vid;	// 0: an address
	__be16 l4_port; // 0: a tunnel end point
	__u8 protocol;	// of a published port
	__u8 zero;
};

struct l4_ports {
	__be16 src;
	__be16 dst;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, UPLINK_PICKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct pick);
	__type(value, __u8);
} picks SEC(".maps");

static __always_inline int is_picked(struct pick *pick)
{
	return bpf_map_lookup_elem(&picks, pick) != 0;
}

// VXLAN to a tunnel end point: where the frame inside begins. A published port: 1.
static __always_inline __u32 is_ours_at(struct __sk_buff *skb, __u32 at, struct pick *pick, __u8 protocol)
{
	struct l4_ports l4;

	if (protocol != IPPROTO_UDP && protocol != IPPROTO_TCP)
		return 0;
	if (bpf_skb_load_bytes(skb, at, &l4, sizeof(l4)))
		return 0;
	if (protocol == IPPROTO_UDP && l4.dst == bpf_htons(VXLAN_PORT))
		return is_picked(pick) ? at + sizeof(struct udphdr) + VXLAN_HLEN : 0;
	pick->l4_port = l4.dst;
	pick->protocol = protocol;
	return l4.dst && is_picked(pick);
}

static __always_inline __u32 is_ours4(struct __sk_buff *skb, __u32 id)
{
	struct pick pick = { .address = { [10] = 0xff, [11] = 0xff }, .port = id };
	struct iphdr ip;

	// Options and fragments are the host's: the engine would need them whole.
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl != 5)
		return 0;
	if (ip.frag_off & bpf_htons(IP_MF | IP_OFFSET))
		return 0;
	__builtin_memcpy(&pick.address[12], &ip.daddr, 4);
	return is_ours_at(skb, ETH_HLEN + sizeof(ip), &pick, ip.protocol);
}

static __always_inline __u32 is_ours6(struct __sk_buff *skb, __u32 id)
{
	struct pick pick = { .port = id };
	struct ipv6hdr ip;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return 0;
	__builtin_memcpy(pick.address, &ip.daddr, 16);
	return is_ours_at(skb, ETH_HLEN + sizeof(ip), &pick, ip.nexthdr);
}

// Of two devices of one port the second hears what is flooded a second time: that is not taken.
static __always_inline int is_our_vlan(struct __sk_buff *skb, __u32 id, __u32 active)
{
	struct pick pick = { .port = id, .vid = skb->vlan_tci & 0xfff };
	__u8 first;

	if (skb->vlan_proto != bpf_htons(ETH_P_8021Q) || !pick.vid || !is_picked(&pick))
		return 0;
	if (skb->ifindex == active)
		return 1;
	return !bpf_skb_load_bytes(skb, 0, &first, sizeof(first)) && !(first & 1);
}

static __always_inline __u32 is_ours(struct __sk_buff *skb, __u32 id, __u32 active)
{
	if (skb->vlan_present)
		return is_our_vlan(skb, id, active);
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return is_ours4(skb, id);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return is_ours6(skb, id);
	return 0;
}

static __always_inline int is_offloaded(struct __sk_buff *skb, __u32 id, __u32 ours)
{
	if (ours == OUTER4)
		return is_known(skb, id, OUTER4);
	return ours == OUTER6 && is_known(skb, id, OUTER6);
}

// Ingress of a shared uplink. On a dedicated one with published ports it is a guard: those come by here
// only while no XDP program takes them, and then are not the host's to refuse.
SEC("tc")
int from_uplink(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	__u32 *found = bpf_map_lookup_elem(&ids, &ifindex);
	__u32 id = found ? *found : 0;
	struct port *port = found ? bpf_map_lookup_elem(&ports, &id) : 0;
	__u32 ours = port && port->peer ? is_ours(skb, id, port->peer) : 0;

	if (!ours)
		return TC_ACT_UNSPEC;
	if (settings.forwards && is_offloaded(skb, id, ours)) {
		skb->tc_index = KNOWN_HERE;
		return TC_ACT_UNSPEC;
	}
	return to_engine(skb, id);
}
