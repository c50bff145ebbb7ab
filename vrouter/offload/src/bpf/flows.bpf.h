// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// The table of flows that the kernel forwards by itself, included by offload.bpf.c. Entries are
// written by flows.rs alone, whose structs mirror those of this file. What is not plainly one of an
// entry's packets is a miss, and the engine's.

#define FLOW_PORTS 4096	// as PORTS
#define FLOW_SETS 128	// sets of the engine's sections
#define FLOW_MISS (-1)
#define TCP_TELLING 0x17 // FIN, SYN, RST, ACK: what says how a connection goes on
#define FLOW_ROUTED 1
#define FLOW_MARKED 2
#define FLOW_TUNNELLED 4
#define SAMPLE_BYTES 128
#define SAMPLE_RING_BYTES (1 << 18) // a power of two, about 1,500 samples

// In-port with its life, so that neither tenants nor uses of a port id meet, and the tunnel that a packet
// came through; then what packets say.
struct flow_key {
	__u8 source[16]; // IPv4 as ::ffff:a.b.c.d
	__u8 target[16];
	__u8 vtep[16];	 // of the sender; 0: no tunnel
	__u32 vni;
	__u32 ports; // as on the wire: source, then target
	__u32 life;
	__u16 port;
	__u8 family; // 4 or 6
	__u8 protocol;
};

struct flow_ref {
	__u32 slot;
	__u32 incarnation;
};

// Mapped by the engine. A slot that is given up gets another incarnation, and is written again only
// after a grace period: what is read behind a matching incarnation is of one flow.
struct flow_slot {
	__u32 incarnation;
	__u32 out_life;
	__u16 out_port;
	__u8 set;      // of sections that the decision depends on
	__u8 rewrites; // FLOW_ROUTED, FLOW_MARKED, FLOW_TUNNELLED
	__u8 dscp;
	__u8 way; // the engine's note
	__u16 frame_max;
	__u8 expected[12];  // target and source MAC of its packets
	__u8 rewritten[12]; // what a routed packet gets instead
	__u64 revision;	    // of the tables it was decided on
	__u64 packets;	    // on the wire
	__u64 bytes;
};

// Beside the slot of a flow that leaves in a tunnel: its ends.
struct flow_tunnel {
	__u8 remote[16]; // IPv4 as ::ffff:a.b.c.d
	__u8 local[16];
	__u32 vni;
	__u32 is_v6;
};

struct flow_words {
	__u64 alive_until; // the engine's last word that it lives, in CLOCK_MONOTONIC's nanoseconds
	__u64 valid_since[FLOW_SETS];
	__u64 samples_lost; // the ring was full
};

// The host end of a port, which of its lives this is, and how many of its packets are sampled.
struct flow_end {
	__u32 ifindex;
	__u32 life;
	__u32 sample_rate; // one in so many; 0: none
	__u32 unused;
	__u64 sampled_from; // packets on the wire that were forwarded here while it was not 0
	__u64 unused_too;   // two to a cache line
};

// What is told of a sampled packet, as it came.
struct flow_sample {
	__u64 pool;	 // `sampled_from` with this packet
	__u32 rate;
	__u32 count;	 // samples that it stands for: it may be cut into many packets
	__u32 frame_len; // of one packet on the wire
	__u16 in_port;
	__u16 out_port;
	__u32 header_len;
	__u32 unused;
	__u8 header[SAMPLE_BYTES];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); // set at load
	__type(key, struct flow_key);
	__type(value, struct flow_ref);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); // set at load
	__type(key, __u32);
	__type(value, struct flow_slot);
} flow_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); // set at load
	__type(key, __u32);
	__type(value, struct flow_tunnel);
} flow_tunnels SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_words);
} flow_words SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, FLOW_PORTS);
	__type(key, __u32); // port id
	__type(value, struct flow_end);
} flow_ends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, SAMPLE_RING_BYTES);
} flow_samples SEC(".maps");

// What is known of a packet besides its key.
struct flow_packet {
	__u32 headers; // bytes up to the payload
	__u32 word;    // of the IPv4 header or the IPv6 header that a rewrite changes: TTL, protocol
	__u32 class_word;
};

// One that a connection could end or begin with is the engine's. `room` is what the IP packet has
// behind its header. 0: not forwarded here.
static __always_inline __u32 read_transport(void *at, void *end, __u32 room, struct flow_key *key)
{
	__u8 *byte = at;
	__u32 header;

	if (at + sizeof(struct flow_ref) > end)
		return 0;
	key->ports = *(__u32 *)at;
	if (key->protocol == IPPROTO_UDP) {
		__u32 len = bpf_ntohs(*(__u16 *)(at + 4));

		return len < 8 || len > room ? 0 : 8;
	}
	if (key->protocol != IPPROTO_TCP || at + 20 > end)
		return 0;
	header = (byte[12] >> 4) * 4;
	if ((byte[13] & TCP_TELLING) != TCP_ACK || header < 20 || header > room)
		return 0;
	return header;
}

static __always_inline int has_good_checksum(struct iphdr *ip)
{
	__u32 *word = (__u32 *)ip;
	__u64 sum = (__u64)word[0] + word[1] + word[2] + word[3] + word[4];

	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ((sum & 0xffff) + (sum >> 16)) == 0xffff;
}

// `base`: where the Ethernet header is.
static __always_inline int read_v4(struct __sk_buff *skb, __u32 base, struct flow_key *key,
				   struct flow_packet *packet)
{
	void *end = (void *)(long)skb->data_end;
	struct iphdr *ip = (void *)(long)skb->data + base + ETH_HLEN;
	__u32 len, transport;

	if ((void *)(ip + 1) > end || *(__u8 *)ip != 0x45)
		return 0;
	len = bpf_ntohs(ip->tot_len);
	// Larger than the field can say: the length is written when the packet is cut.
	if (!len && skb->gso_size)
		len = skb->len - base - ETH_HLEN;
	if (len < sizeof(*ip) || len + base + ETH_HLEN > skb->len || ip->ttl <= 1 ||
	    ip->frag_off & bpf_htons(IP_MF | IP_OFFSET) || !has_good_checksum(ip))
		return 0;
	key->family = 4;
	key->protocol = ip->protocol;
	((__u32 *)key->source)[2] = bpf_htonl(0xffff);
	((__u32 *)key->source)[3] = ip->saddr;
	((__u32 *)key->target)[2] = bpf_htonl(0xffff);
	((__u32 *)key->target)[3] = ip->daddr;
	packet->word = ((__u16 *)ip)[4];
	packet->class_word = ((__u16 *)ip)[0];
	transport = read_transport(ip + 1, end, len - sizeof(*ip), key);
	packet->headers = ETH_HLEN + sizeof(*ip) + transport;
	return transport != 0;
}

static __always_inline int read_v6(struct __sk_buff *skb, __u32 base, struct flow_key *key,
				   struct flow_packet *packet)
{
	void *end = (void *)(long)skb->data_end;
	struct ipv6hdr *ip = (void *)(long)skb->data + base + ETH_HLEN;
	__u32 len, transport;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return 0;
	len = bpf_ntohs(ip->payload_len);
	if (!len && skb->gso_size)
		len = skb->len - base - ETH_HLEN - sizeof(*ip);
	if (len + sizeof(*ip) + base + ETH_HLEN > skb->len || ip->hop_limit <= 1)
		return 0;
	key->family = 6;
	key->protocol = ip->nexthdr;
	__builtin_memcpy(key->source, &ip->saddr, 16);
	__builtin_memcpy(key->target, &ip->daddr, 16);
	packet->word = ((__u16 *)ip)[3];
	packet->class_word = ((__u16 *)ip)[0];
	transport = read_transport(ip + 1, end, len, key);
	packet->headers = ETH_HLEN + sizeof(*ip) + transport;
	return transport != 0;
}

// One 16-bit word of the IP header, and of IPv4 its checksum.
static __always_inline long put_word(struct __sk_buff *skb, __u8 family, __u32 at, __u16 old,
				     __u16 new)
{
	long failed = 0;

	if (family == 4)
		failed = bpf_l3_csum_replace(skb, ETH_HLEN + 10, old, new, 2);
	return failed ?: bpf_skb_store_bytes(skb, ETH_HLEN + at, &new, 2, BPF_F_RECOMPUTE_CSUM);
}

static __always_inline long route(struct __sk_buff *skb, struct flow_slot *slot, __u8 family,
				  __u16 word)
{
	// The TTL is the first byte of its word, the hop limit the second of its.
	__u16 less = bpf_htons(bpf_ntohs(word) - (family == 4 ? 0x100 : 1));
	__u8 macs[12];

	__builtin_memcpy(macs, slot->rewritten, sizeof(macs));
	return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), BPF_F_RECOMPUTE_CSUM) ?:
	       put_word(skb, family, family == 4 ? 8 : 6, word, less);
}

// The six bits of the class (RFC 2474); the two of ECN stay.
static __always_inline long mark(struct __sk_buff *skb, struct flow_slot *slot, __u8 family,
				 __u16 word)
{
	__u16 host = bpf_ntohs(word), dscp = slot->dscp;

	host = family == 4 ? (host & 0xff03) | dscp << 2 : (host & 0xf03f) | dscp << 6;
	return put_word(skb, family, 0, word, bpf_htons(host));
}

static __always_inline struct flow_slot *find_flow(struct flow_key *key, __u32 *place)
{
	struct flow_ref *ref = bpf_map_lookup_elem(&flows, key);
	struct flow_slot *slot;

	if (!ref)
		return 0;
	*place = ref->slot;
	slot = bpf_map_lookup_elem(&flow_slots, place);
	if (!slot || *(volatile __u32 *)&slot->incarnation != ref->incarnation)
		return 0;
	return slot;
}

// Whether the engine lives, and no table that the decision rests on has changed since.
static __always_inline int is_valid(struct flow_slot *slot)
{
	__u32 only = 0;
	struct flow_words *words = bpf_map_lookup_elem(&flow_words, &only);

	if (!words || *(volatile __u64 *)&words->alive_until < bpf_ktime_get_ns())
		return 0;
	return *(volatile __u64 *)&slot->revision >=
	       *(volatile __u64 *)&words->valid_since[slot->set & (FLOW_SETS - 1)];
}

static __always_inline int has_macs(struct __sk_buff *skb, __u32 base, __u8 *expected)
{
	__u16 *macs = (void *)(long)skb->data + base, *wanted = (__u16 *)expected;
	void *end = (void *)(long)skb->data_end;

	if ((void *)(macs + 6) > end)
		return 0;
	return macs[0] == wanted[0] && macs[1] == wanted[1] && macs[2] == wanted[2] &&
	       macs[3] == wanted[3] && macs[4] == wanted[4] && macs[5] == wanted[5];
}

static __always_inline void lose_samples(__u32 count)
{
	__u32 only = 0;
	struct flow_words *words = bpf_map_lookup_elem(&flow_words, &only);

	if (words)
		__sync_fetch_and_add(&words->samples_lost, count);
}

// Samples one in so many of the port's packets on the wire. Of a large packet each of those that it
// is cut into may be one: as many as the rate says on average, told at once.
static __always_inline void sample(struct __sk_buff *skb, struct flow_end *in, __u32 ports,
				   __u32 cut, __u32 wire)
{
	__u32 rate = *(volatile __u32 *)&in->sample_rate, len = skb->len, count;
	struct flow_sample *sample;
	__u64 pool;

	if (!rate)
		return;
	pool = __sync_fetch_and_add(&in->sampled_from, cut) + cut;
	count = cut / rate + ((__u64)bpf_get_prandom_u32() * rate >> 32 < cut % rate);
	if (!count)
		return;
	sample = bpf_ringbuf_reserve(&flow_samples, sizeof(*sample), 0);
	if (!sample)
		return lose_samples(count);
	if (len > SAMPLE_BYTES)
		len = SAMPLE_BYTES;
	if (len < ETH_HLEN || bpf_skb_load_bytes(skb, 0, sample->header, len)) {
		bpf_ringbuf_discard(sample, BPF_RB_NO_WAKEUP);
		return lose_samples(count);
	}
	sample->pool = pool;
	sample->rate = rate;
	sample->count = count;
	sample->frame_len = wire;
	sample->in_port = ports >> 16;
	sample->out_port = ports;
	sample->header_len = len;
	// The engine looks now and then.
	bpf_ringbuf_submit(sample, BPF_RB_NO_WAKEUP);
}

// A packet's valid entry, where its decision leads, and how long it is on the wire.
struct flow_found {
	struct flow_slot *slot;
	struct flow_end *out;
	__u32 place;
	__u32 out_port;
	__u32 wire;
};

// Looks up the frame at `base`, whose in-port and tunnel the key has already. The target's host end is
// looked up for every packet: a port that is gone has none, and an id that was given to another
// container has another life.
static __always_inline int find(struct __sk_buff *skb, __u32 base, __be16 protocol, struct flow_key *key,
				struct flow_packet *packet, struct flow_found *found)
{
	struct flow_slot *slot;
	__u32 good = 0;

	if (protocol == bpf_htons(ETH_P_IP))
		good = read_v4(skb, base, key, packet);
	else if (protocol == bpf_htons(ETH_P_IPV6))
		good = read_v6(skb, base, key, packet);
	if (!good)
		return 0;
	slot = find_flow(key, &found->place);
	if (!slot || !is_valid(slot) || !has_macs(skb, base, slot->expected))
		return 0;
	found->slot = slot;
	found->wire = skb->gso_size ? packet->headers + skb->gso_size : skb->len - base;
	found->out_port = slot->out_port;
	found->out = bpf_map_lookup_elem(&flow_ends, &found->out_port);
	return found->wire <= slot->frame_max && found->out && found->out->ifindex &&
	       found->out->life == slot->out_life;
}

// The tunnel that the vxlan device is to put the packet into. The outer header carries the packet's
// class; the device copies ECN (RFC 6040). 0: done.
static __always_inline long set_tunnel(struct __sk_buff *skb, __u32 place, __u8 dscp)
{
	struct flow_tunnel *tunnel = bpf_map_lookup_elem(&flow_tunnels, &place);
	struct bpf_tunnel_key key = {};
	__u64 flags = BPF_F_ZERO_CSUM_TX | BPF_F_DONT_FRAGMENT;

	if (!tunnel)
		return -1;
	key.tunnel_id = tunnel->vni;
	key.tunnel_ttl = 64;
	key.tunnel_tos = dscp << 2;
	if (tunnel->is_v6) {
		flags |= BPF_F_TUNINFO_IPV6;
		__builtin_memcpy(key.remote_ipv6, tunnel->remote, 16);
		__builtin_memcpy(key.local_ipv6, tunnel->local, 16);
	} else {
		key.remote_ipv4 = bpf_ntohl(*(__u32 *)&tunnel->remote[12]);
		key.local_ipv4 = bpf_ntohl(*(__u32 *)&tunnel->local[12]);
	}
	return bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags);
}

// The class of a packet once its entry's rewriting is done.
static __always_inline __u8 class_of(struct flow_slot *slot, __u8 family, __u16 word)
{
	__u16 host = bpf_ntohs(word);

	if (slot->rewrites & FLOW_MARKED)
		return slot->dscp;
	return family == 4 ? host >> 2 & 0x3f : host >> 6 & 0x3f;
}

// Does what the entry says to a packet that came in by port `id`.
static __always_inline int follow(struct __sk_buff *skb, __u32 id, struct flow_key *key,
				  struct flow_packet *packet, struct flow_found *found)
{
	struct flow_slot *slot = found->slot;
	__u8 rewrites = slot->rewrites;
	__u32 cut = segments(skb);

	if (rewrites & FLOW_ROUTED && route(skb, slot, key->family, packet->word))
		return drop(skb, id, NO_MEMORY);
	if (rewrites & FLOW_MARKED && mark(skb, slot, key->family, packet->class_word))
		return drop(skb, id, NO_MEMORY);
	__sync_fetch_and_add(&slot->packets, cut);
	__sync_fetch_and_add(&slot->bytes, skb->len + (cut - 1) * packet->headers);
	if (rewrites & FLOW_TUNNELLED)
		return bpf_redirect(found->out->ifindex, 0);
	return bpf_redirect_peer(found->out->ifindex, 0);
}

// Forwards a packet of port `id` as its entry says; FLOW_MISS: the engine decides.
static __always_inline int forward_flow(struct __sk_buff *skb, __u32 id)
{
	struct flow_end *in = bpf_map_lookup_elem(&flow_ends, &id);
	struct flow_found found = {};
	struct flow_packet packet = {};
	struct flow_key key = {};

	if (!in)
		return FLOW_MISS;
	key.port = id;
	key.life = in->life;
	if (!find(skb, 0, skb->protocol, &key, &packet, &found))
		return FLOW_MISS;
	if (found.slot->rewrites & FLOW_TUNNELLED &&
	    set_tunnel(skb, found.place, class_of(found.slot, key.family, packet.class_word)))
		return FLOW_MISS;
	sample(skb, in, id << 16 | found.out_port, segments(skb), found.wire);
	return follow(skb, id, &key, &packet, &found);
}
