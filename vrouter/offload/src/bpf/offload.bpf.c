// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// The tc programs on containers' host veth ends, shared uplinks and trunk pairs. Loaded by object.rs, whose
// structs mirror those of this file.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define PORTS 4096	// VLAN tags are port ids
#define BUCKETS 256
#define TRUNKS 64 // vrouter::WORKERS_MAX
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff
#define TCP_FLAGS_AT 13
#define TCP_SYN 0x02
#define TCP_ACK 0x10
#define IPV6_NEXT_AT 6
#define STALE (1ULL << 50) // about 18 minutes of clock units

typedef unsigned long long u64;
typedef long long s64;

// Written at load, and constant to the verifier: what a setting rules out may need a kernel that has
// more than this one.
volatile const struct {
	__u64 hash_key[2]; // drawn: containers can't choose their worker
	__u64 forwards;	   // whether there is a table of flows
} settings = {};

// Costs and bursts are times in 1/1024 ns: what one packet or byte uses up of its rate, and how far
// ahead of the clock a port may be. A cost of 0 is no limit.
struct limits {
	__u64 packet_cost;
	__u64 packet_burst;
	__u64 byte_cost;
	__u64 byte_burst;
	__u64 opening_cost;
	__u64 opening_burst;
};

struct port {
	struct bpf_spin_lock lock;
	__u32 peer; // ifindex of the host end, or of the uplink's device in use; 0: no such port
	struct limits limits;
	// When the port has paid for what it sent (GCRA's theoretical arrival time).
	__u64 packets_paid;
	__u64 bytes_paid;
	__u64 openings_paid;
	__u64 kind; // enum port_kind
};

enum port_kind { CONTAINER, UPLINK };

enum kind { RX, TX, CONTAINER_TAG, RATE_LIMIT, NO_TRUNK, NO_MEMORY, FLOW_LIMIT, KINDS };

struct counts {
	__u64 packets[KINDS];
	__u64 bytes[KINDS];
};

enum stray { UNKNOWN_PORT, UNKNOWN_TAG, STRAYS };

struct total {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PORTS);
	__type(key, __u32); // ifindex of the host end
	__type(value, __u32); // port id
} ids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PORTS);
	__type(key, __u32);
	__type(value, struct port);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PORTS);
	__type(key, __u32);
	__type(value, struct counts);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, STRAYS);
	__type(key, __u32);
	__type(value, struct total);
} strays SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, BUCKETS);
	__type(key, __u32);
	__type(value, __u32); // worker
} buckets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TRUNKS);
	__type(key, __u32); // worker
	__type(value, __u32); // ifindex of wr-t0.N; 0: none
} trunks SEC(".maps");

// Wire packets: a GSO packet is what it will be cut into.
static __always_inline __u64 segments(struct __sk_buff *skb)
{
	if (skb->gso_segs)
		return skb->gso_segs;
	return skb->gso_size ? skb->len / skb->gso_size + 1 : 1;
}

static __always_inline void count(__u32 id, enum kind kind, __u64 packets, __u64 bytes)
{
	struct counts *of_port = bpf_map_lookup_elem(&counts, &id);

	if (!of_port)
		return;
	__sync_fetch_and_add(&of_port->packets[kind], packets);
	__sync_fetch_and_add(&of_port->bytes[kind], bytes);
}

static __always_inline int drop(struct __sk_buff *skb, __u32 id, enum kind kind)
{
	count(id, kind, segments(skb), skb->len);
	return TC_ACT_SHOT;
}

static __always_inline int drop_stray(struct __sk_buff *skb, __u32 kind)
{
	struct total *total = bpf_map_lookup_elem(&strays, &kind);

	if (total) {
		__sync_fetch_and_add(&total->packets, segments(skb));
		__sync_fetch_and_add(&total->bytes, skb->len);
	}
	return TC_ACT_SHOT;
}

// How far ahead of the clock a meter is. More than any burst and packet explain: the port was idle
// for so long that the clock, whose unit wraps after 208 days, has passed it.
static __always_inline u64 ahead(u64 paid, u64 now)
{
	s64 distance = (s64)(paid - now);

	return distance < 0 || distance > (s64)STALE ? 0 : (u64)distance;
}

// A packet dearer than the whole burst passes when nothing else was sent lately.
static __always_inline int conforms(u64 debt, u64 cost, u64 burst)
{
	return debt == 0 || debt + cost <= burst;
}

// GCRA on packets, bytes and, if the packet opens a connection, openings at once: it pays all or,
// refused, none. Returns the kind that refused it, or RX.
static __always_inline enum kind charge(struct port *port, u64 packets, u64 bytes, u64 openings)
{
	u64 now = bpf_ktime_get_ns() << 10;
	u64 packets_cost = packets * port->limits.packet_cost;
	u64 bytes_cost = bytes * port->limits.byte_cost;
	u64 openings_cost = openings * port->limits.opening_cost;
	u64 packets_debt, bytes_debt, openings_debt;
	enum kind kind = RX;

	bpf_spin_lock(&port->lock);
	packets_debt = ahead(port->packets_paid, now);
	bytes_debt = ahead(port->bytes_paid, now);
	openings_debt = ahead(port->openings_paid, now);
	if (!conforms(packets_debt, packets_cost, port->limits.packet_burst) ||
	    !conforms(bytes_debt, bytes_cost, port->limits.byte_burst))
		kind = RATE_LIMIT;
	else if (openings_cost &&
		 !conforms(openings_debt, openings_cost, port->limits.opening_burst))
		kind = FLOW_LIMIT;
	if (kind == RX) {
		port->packets_paid = now + packets_debt + packets_cost;
		port->bytes_paid = now + bytes_debt + bytes_cost;
		port->openings_paid = now + openings_debt + openings_cost;
	}
	bpf_spin_unlock(&port->lock);
	return kind;
}

// The flags of the TCP header behind `at`: SYN without ACK asks for a connection.
static __always_inline u64 is_syn(struct __sk_buff *skb, __u32 at)
{
	__u8 flags;

	if (bpf_skb_load_bytes(skb, at + TCP_FLAGS_AT, &flags, sizeof(flags)))
		return 0;
	return (flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

// How many connections a packet asks for, 0 or 1. TCP tells without a memory of flows; first packets
// of other protocols are told apart, and limited, by the engine.
static __always_inline u64 openings(struct __sk_buff *skb)
{
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
			return 0;
		if (ip.protocol != IPPROTO_TCP || ip.frag_off & bpf_htons(IP_OFFSET))
			return 0;
		return is_syn(skb, ETH_HLEN + ip.ihl * 4);
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		__u8 next;

		if (bpf_skb_load_bytes(skb, ETH_HLEN + IPV6_NEXT_AT, &next, sizeof(next)))
			return 0;
		return next == IPPROTO_TCP ? is_syn(skb, ETH_HLEN + sizeof(struct ipv6hdr)) : 0;
	}
	return 0;
}

#include "flows.bpf.h"

static __always_inline int has_tag(struct __sk_buff *skb)
{
	return skb->vlan_present || skb->protocol == bpf_htons(ETH_P_8021Q) ||
	       skb->protocol == bpf_htons(ETH_P_8021AD);
}

static __always_inline __u64 mix(__u64 a, __u64 b)
{
	a ^= settings.hash_key[0];
	b ^= settings.hash_key[1];
	a *= 0x9e3779b97f4a7c15ULL;
	a ^= a >> 32;
	a += b;
	a *= 0xd6e8feb86659fd93ULL;
	return a ^ (a >> 29);
}

struct ends {
	__u64 source[2];
	__u64 target[2];
	__u32 ports; // as on the wire: source, then target
	__u8 protocol;
};

// Both directions of a conversation give the same sum.
static __always_inline __u32 bucket(struct ends *ends)
{
	__u64 source_port = ends->ports & 0xffff, target_port = ends->ports >> 16;
	__u64 sum = mix(mix(ends->source[0], ends->source[1]), source_port) +
		    mix(mix(ends->target[0], ends->target[1]), target_port);

	sum = mix(sum, ends->protocol);
	return (sum >> 32) % BUCKETS;
}

static __always_inline int has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP;
}

// Fragments go without ports: only the first one has them. What is not IP is one conversation.
static __always_inline __u32 bucket_of(struct __sk_buff *skb)
{
	struct ends ends = {};
	__u32 ports_at = 0;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
			return 0;
		ends.source[0] = ip.saddr;
		ends.target[0] = ip.daddr;
		ends.protocol = ip.protocol;
		if (has_ports(ip.protocol) && !(ip.frag_off & bpf_htons(IP_MF | IP_OFFSET)))
			ports_at = ETH_HLEN + ip.ihl * 4;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
			return 0;
		__builtin_memcpy(ends.source, &ip.saddr, 16);
		__builtin_memcpy(ends.target, &ip.daddr, 16);
		ends.protocol = ip.nexthdr;
		if (has_ports(ip.nexthdr))
			ports_at = ETH_HLEN + sizeof(ip);
	}
	if (ports_at && bpf_skb_load_bytes(skb, ports_at, &ends.ports, sizeof(ends.ports)))
		ends.ports = 0;
	return bucket(&ends);
}

static __always_inline __u32 trunk_of(struct __sk_buff *skb)
{
	__u32 key = bucket_of(skb);
	__u32 *worker = bpf_map_lookup_elem(&buckets, &key);
	__u32 *trunk = worker ? bpf_map_lookup_elem(&trunks, worker) : 0;

	return trunk ? *trunk : 0;
}

// To the worker that the flow belongs to, with the id of its port as a tag.
static __always_inline int to_engine(struct __sk_buff *skb, __u32 id)
{
	__u64 packets = segments(skb), bytes = skb->len;
	__u32 trunk = trunk_of(skb);

	if (!trunk)
		return drop(skb, id, NO_TRUNK);
	if (bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), id))
		return drop(skb, id, NO_MEMORY);
	count(id, RX, packets, bytes);
	return bpf_redirect(trunk, 0);
}

// Ingress of a container's host end: forwarded if its flow is known here, else to the engine, with
// the port's id as a tag.
SEC("tc")
int from_port(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	__u32 *found = bpf_map_lookup_elem(&ids, &ifindex);
	__u32 id = found ? *found : 0;
	struct port *port = found ? bpf_map_lookup_elem(&ports, &id) : 0;
	enum kind refused;
	int verdict;

	if (!port || !port->peer)
		return drop_stray(skb, UNKNOWN_PORT);
	if (has_tag(skb))
		return drop(skb, id, CONTAINER_TAG);
	verdict = settings.forwards ? forward_flow(skb, id) : FLOW_MISS;
	if (verdict != FLOW_MISS)
		return verdict;
	refused = charge(port, segments(skb), skb->len, openings(skb));
	if (refused != RX)
		return drop(skb, id, refused);
	return to_engine(skb, id);
}

#include "tunnel.bpf.h"
#include "uplink.bpf.h"

// Ingress of wr-t0.N: from the engine to the container whose port the tag names, or to the wire.
SEC("tc")
int from_trunk(struct __sk_buff *skb)
{
	__u32 id = skb->vlan_present ? skb->vlan_tci & 0xfff : 0;
	struct port *port = bpf_map_lookup_elem(&ports, &id);

	if (!id || !port || !port->peer)
		return drop_stray(skb, UNKNOWN_TAG);
	if (bpf_skb_vlan_pop(skb))
		return drop(skb, id, NO_MEMORY);
	count(id, TX, segments(skb), skb->len);
	// Without peers the way crosses the host end's queue.
	if (port->kind == UPLINK || !settings.forwards)
		return bpf_redirect(port->peer, 0);
	return bpf_redirect_peer(port->peer, 0);
}

char _license[] SEC("license") = "GPL";
