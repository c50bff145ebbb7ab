// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// The XDP programs that put frames into AF_XDP sockets. Loaded by program.rs.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define VXLAN_PORT 4789 // RFC 7348, section 5
#define PUBLISHED 65536 // vrouter::validate
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

struct address {
	__u8 byte[16]; // IPv6, or IPv4 as ::ffff:a.b.c.d
};

// A port of the node that leads to a container.
struct node_port {
	struct address to;
	__be16 port;
	__u8 protocol;
	__u8 zero;
};

struct l4_ports {
	__be16 src;
	__be16 dst;
};

struct vlan_tag {
	__be16 tci;
	__be16 protocol;
};

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct address);
	__type(value, __u8);
} vteps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, PUBLISHED);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct node_port);
	__type(value, __u8);
} published SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u8);
} vids SEC(".maps");

// What is taken of a VLAN. A second device to the same network hears what is flooded once more.
enum { NOTHING, ALL, UNICAST };

enum { REDIRECTED, PASSED, COUNTS };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

static __always_inline void count(__u32 kind)
{
	__u64 *value = bpf_map_lookup_elem(&counts, &kind);

	if (value)
		*value += 1;
}

// Without a socket on the queue `otherwise` happens.
static __always_inline int take(struct xdp_md *ctx, int otherwise)
{
	int verdict = bpf_redirect_map(&xsks, ctx->rx_queue_index, otherwise);

	count(verdict == XDP_REDIRECT ? REDIRECTED : PASSED);
	return verdict;
}

static __always_inline int pass(void)
{
	count(PASSED);
	return XDP_PASS;
}

// VXLAN to a tunnel end point, or a published port.
static __always_inline int is_ours_at(struct l4_ports *l4, void *end, struct node_port *node)
{
	if (node->protocol != IPPROTO_UDP && node->protocol != IPPROTO_TCP)
		return 0;
	if ((void *)(l4 + 1) > end)
		return 0;
	if (node->protocol == IPPROTO_UDP && l4->dst == bpf_htons(VXLAN_PORT))
		return bpf_map_lookup_elem(&vteps, &node->to) != 0;
	node->port = l4->dst;
	return bpf_map_lookup_elem(&published, node) != 0;
}

static __always_inline int is_ours4(struct iphdr *ip, void *end)
{
	struct node_port node = { .to.byte = { [10] = 0xff, [11] = 0xff } };

	// Options and fragments are the host's: the engine would need them whole.
	if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5)
		return 0;
	if (ip->frag_off & bpf_htons(IP_MF | IP_OFFSET))
		return 0;
	__builtin_memcpy(&node.to.byte[12], &ip->daddr, 4);
	node.protocol = ip->protocol;
	return is_ours_at((struct l4_ports *)(ip + 1), end, &node);
}

static __always_inline int is_ours6(struct ipv6hdr *ip, void *end)
{
	struct node_port node = {};

	if ((void *)(ip + 1) > end || ip->version != 6)
		return 0;
	__builtin_memcpy(&node.to, &ip->daddr, 16);
	node.protocol = ip->nexthdr;
	return is_ours_at((struct l4_ports *)(ip + 1), end, &node);
}

static __always_inline int is_our_vlan(struct ethhdr *eth, void *end)
{
	struct vlan_tag *tag = (struct vlan_tag *)(eth + 1);
	__u32 vid;
	__u8 *taken;

	if ((void *)(tag + 1) > end)
		return 0;
	vid = bpf_ntohs(tag->tci) & 0xfff;
	taken = bpf_map_lookup_elem(&vids, &vid);
	if (!taken)
		return 0;
	return *taken == ALL || (*taken == UNICAST && !(eth->h_dest[0] & 1));
}

// A trunk pair carries nothing but the engine's frames.
SEC("xdp")
int trunk(struct xdp_md *ctx)
{
	return take(ctx, XDP_DROP);
}

// A device given to the engine whole, with the host as the fall-back.
SEC("xdp")
int all(struct xdp_md *ctx)
{
	return take(ctx, XDP_PASS);
}

// A node's uplink: our VXLAN, our VLANs and published ports; everything else stays the host's.
SEC("xdp")
int uplink(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	int ours = 0;

	if ((void *)(eth + 1) > end)
		return pass();
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		ours = is_ours4((struct iphdr *)(eth + 1), end);
	else if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		ours = is_ours6((struct ipv6hdr *)(eth + 1), end);
	else if (eth->h_proto == bpf_htons(ETH_P_8021Q))
		ours = is_our_vlan(eth, end);
	return ours ? take(ctx, XDP_PASS) : pass();
}

char _license[] SEC("license") = "GPL";
