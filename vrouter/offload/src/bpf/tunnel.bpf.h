// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Offloaded flows from other nodes, included by offload.bpf.c. What comes to a shared uplink for one of
// them goes on to the host's stack, which takes the tunnel off and hands it to the vxlan device of ours;
// everything else of Weir's goes to the engine. The device has no other use: what comes out of it without
// the uplink's word is dropped.

#define VXLAN_HLEN 8
#define OUTER4 (ETH_HLEN + sizeof(struct iphdr) + sizeof(struct udphdr) + VXLAN_HLEN)
#define OUTER6 (ETH_HLEN + sizeof(struct ipv6hdr) + sizeof(struct udphdr) + VXLAN_HLEN)
#define HEADERS_MAX (OUTER6 + ETH_HLEN + sizeof(struct ipv6hdr) + 20)
#define VXLAN_FLAGS 0x08000000 // RFC 7348, section 5: a VNI, and nothing else
#define ECN_CE 3
#define KNOWN_HERE 0x5752 // in tc_index: the uplink's program has found an entry
#define TUNNEL_KEY_BYTES __builtin_offsetof(struct bpf_tunnel_key, local_ipv4)

// The headers that a program reads lie in one piece behind this. They mostly do before: to pull them
// copies the headers of what a sender still has a hold of.
static __always_inline int has_headers(struct __sk_buff *skb)
{
	__u32 wanted = skb->len < HEADERS_MAX ? skb->len : HEADERS_MAX;

	return (void *)(long)skb->data + wanted <= (void *)(long)skb->data_end ||
	       !bpf_skb_pull_data(skb, wanted);
}

// The VNI, and the type of the frame inside. What the stack or the engine would look at twice is a miss.
static __always_inline int read_vxlan(struct __sk_buff *skb, __u32 base, struct flow_key *key, __be16 *type)
{
	__u32 *vxlan = (void *)(long)skb->data + base - VXLAN_HLEN;
	struct ethhdr *inner = (void *)(vxlan + 2);

	if ((void *)(inner + 1) > (void *)(long)skb->data_end || vxlan[0] != bpf_htonl(VXLAN_FLAGS))
		return 0;
	key->vni = bpf_ntohl(vxlan[1]) >> 8;
	*type = inner->h_proto;
	return 1;
}

static __always_inline int read_outer4(struct __sk_buff *skb, struct flow_key *key)
{
	struct iphdr *ip = (void *)(long)skb->data + ETH_HLEN;

	if ((void *)(ip + 1) > (void *)(long)skb->data_end || (ip->tos & ECN_CE) == ECN_CE ||
	    !has_good_checksum(ip))
		return 0;
	((__u32 *)key->vtep)[2] = bpf_htonl(0xffff);
	((__u32 *)key->vtep)[3] = ip->saddr;
	return 1;
}

static __always_inline int read_outer6(struct __sk_buff *skb, struct flow_key *key)
{
	struct ipv6hdr *ip = (void *)(long)skb->data + ETH_HLEN;

	if ((void *)(ip + 1) > (void *)(long)skb->data_end || (ip->flow_lbl[0] >> 4 & ECN_CE) == ECN_CE)
		return 0;
	__builtin_memcpy(key->vtep, &ip->saddr, 16);
	return 1;
}

// Whether a VXLAN packet to one of our tunnel end points, seen at the uplink with port `id`, is one of an
// offloaded flow.
static __always_inline int is_known(struct __sk_buff *skb, __u32 id, __u32 base)
{
	struct flow_end *in = bpf_map_lookup_elem(&flow_ends, &id);
	struct flow_packet packet = {};
	struct flow_found found = {};
	struct flow_key key = {};
	__be16 type;

	if (!in || !in->ifindex || !has_headers(skb))
		return 0;
	if (base == OUTER4 ? !read_outer4(skb, &key) : !read_outer6(skb, &key))
		return 0;
	if (!read_vxlan(skb, base, &key, &type))
		return 0;
	key.port = id;
	key.life = in->life;
	if (!find(skb, base, type, &key, &packet, &found))
		return 0;
	sample(skb, in, id << 16 | found.out_port, segments(skb), found.wire + base);
	return 1;
}

static __always_inline int get_tunnel(struct __sk_buff *skb, struct flow_key *key)
{
	struct bpf_tunnel_key tunnel = {};

	if (!bpf_skb_get_tunnel_key(skb, &tunnel, TUNNEL_KEY_BYTES, 0)) {
		((__u32 *)key->vtep)[2] = bpf_htonl(0xffff);
		((__u32 *)key->vtep)[3] = bpf_htonl(tunnel.remote_ipv4);
	} else if (!bpf_skb_get_tunnel_key(skb, &tunnel, TUNNEL_KEY_BYTES, BPF_F_TUNINFO_IPV6)) {
		__builtin_memcpy(key->vtep, tunnel.remote_ipv6, 16);
	} else {
		return 0;
	}
	key->vni = tunnel.tunnel_id;
	return 1;
}

// Ingress of the vxlan device. An entry that ended since the uplink's program saw it: the packet is too
// late, as one that its sender sent a moment later would be.
SEC("tc")
int from_tunnel(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	__u32 *found_id = bpf_map_lookup_elem(&ids, &ifindex);
	__u32 id = found_id ? *found_id : 0;
	struct flow_packet packet = {};
	struct flow_found found = {};
	struct flow_key key = {};
	struct flow_end *in;

	if (!settings.forwards || !found_id)
		return drop_stray(skb, UNKNOWN_PORT);
	in = bpf_map_lookup_elem(&flow_ends, &id);
	if (!in || skb->tc_index != KNOWN_HERE || !get_tunnel(skb, &key) || !has_headers(skb))
		return drop_stray(skb, UNKNOWN_PORT);
	key.port = id;
	key.life = in->life;
	if (!find(skb, 0, skb->protocol, &key, &packet, &found))
		return drop(skb, id, NO_TRUNK);
	return follow(skb, id, &key, &packet, &found);
}
