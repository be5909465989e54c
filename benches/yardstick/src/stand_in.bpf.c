// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * For tests of `Peer`: a small balancer with the maps that it fills, which treats packets as they
 * say. A TCP packet's slot is its source port, and a QUIC VIP's datagrams start with a server id of
 * two bytes. Compiled three times: unchanged, without one of the maps, and so that no kernel
 * accepts it.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define SLOTS 65537
#define VIPS 3
#define REALS 8
#define VIP_IS_QUIC 4
#define REAL_IS_V6 1

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct vip_key {
	__be32 address[4];
	__be16 port;
	__u8 protocol;
	__u8 nothing;
};

struct vip {
	__u32 flags;
	__u32 number;
};

struct real {
	__be32 address[4];
	__u8 flags;
	__u8 nothing[3];
};

struct count {
	__u64 packets;
	__u64 bytes;
};

struct flow_table {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__uint(key_size, 40);
	__uint(value_size, 16);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 128);
	__type(key, __u32);
	__array(values, struct flow_table);
} lru_mapping SEC(".maps");

#define MAP(name, kind, entries, key_type, value_type) \
	struct { \
		__uint(type, BPF_MAP_TYPE_##kind); \
		__uint(max_entries, entries); \
		__type(key, key_type); \
		__type(value, value_type); \
	} name SEC(".maps")

MAP(ctl_array, ARRAY, 16, __u32, __u64);
MAP(vip_map, HASH, VIPS, struct vip_key, struct vip);
MAP(ch_rings, ARRAY, VIPS * SLOTS, __u32, __u32);
MAP(reals, ARRAY, REALS, __u32, struct real);
MAP(server_id_map, ARRAY, 1024, __u32, __u32);
MAP(stats, PERCPU_ARRAY, 2 * VIPS, __u32, struct count);
#ifndef LACKS_A_MAP
MAP(reals_stats, PERCPU_ARRAY, REALS, __u32, struct count);
#endif

static __always_inline void count(void *counts, __u32 number)
{
	struct count *count = bpf_map_lookup_elem(counts, &number);

	if (count)
		count->packets++;
}

static __always_inline int send(struct xdp_md *ctx, const struct real *real, __u64 mac)
{
	const int outer = real->flags & REAL_IS_V6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	struct ethhdr *ethernet;
	void *end;

	if (bpf_xdp_adjust_head(ctx, -outer))
		return XDP_ABORTED;
	ethernet = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if ((void *)ethernet + ETH_HLEN + sizeof(struct ipv6hdr) > end)
		return XDP_ABORTED;
	__builtin_memcpy(ethernet->h_dest, &mac, ETH_ALEN);
	if (real->flags & REAL_IS_V6) {
		struct ipv6hdr *ip = (void *)(ethernet + 1);

		ethernet->h_proto = bpf_htons(ETH_P_IPV6);
		__builtin_memcpy(&ip->daddr, real->address, sizeof(ip->daddr));
	} else {
		struct iphdr *ip = (void *)(ethernet + 1);

		ethernet->h_proto = bpf_htons(ETH_P_IP);
		ip->daddr = real->address[0];
	}
	return XDP_TX;
}

SEC("xdp")
int balancer_ingress(struct xdp_md *ctx)
{
	const __u32 zero = 0;
	const __u32 cpu = bpf_get_smp_processor_id();
	struct ethhdr *ethernet = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = (void *)(ethernet + 1);
	struct udphdr *ports = (void *)(ip + 1);
	__be16 *id = (void *)(ports + 1);
	struct vip_key key = {};
	const __u32 *number;
	const struct real *real;
	const struct vip *vip;
	const __u64 *mac;
	__u32 at;

	if ((void *)(id + 1) > end || ethernet->h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	key.address[0] = ip->daddr;
	key.port = ports->dest;
	key.protocol = ip->protocol;
	vip = bpf_map_lookup_elem(&vip_map, &key);
	if (!vip)
		return XDP_PASS;
	count(&stats, vip->number);
	/* Each CPU that packets arrive on has a flow table. */
	if (!bpf_map_lookup_elem(&lru_mapping, &cpu))
		return XDP_DROP;
	if (vip->flags & VIP_IS_QUIC) {
		at = bpf_ntohs(*id);
		number = bpf_map_lookup_elem(&server_id_map, &at);
	} else {
		at = vip->number * SLOTS + bpf_ntohs(ports->source);
		number = bpf_map_lookup_elem(&ch_rings, &at);
	}
	mac = bpf_map_lookup_elem(&ctl_array, &zero);
	if (!number || !mac)
		return XDP_DROP;
#ifdef REFUSED
	real = (void *)(long)*number;
#else
	real = bpf_map_lookup_elem(&reals, number);
#endif
	if (!real)
		return XDP_DROP;
#ifndef LACKS_A_MAP
	count(&reals_stats, *number);
#endif
	return send(ctx, real, *mac);
}
