// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * The wrapper for measuring an XDP program. A program that encapsulates leaves its frame longer, so
 * running one frame repeatedly would measure the encapsulated frame from the second run on. The
 * wrapper restores the pristine frame, turns it into the next flow's, by number or from a sequence,
 * and tail-calls the program under test. There are also programs to compare with: one that does
 * nothing, one that sends every frame back, and one with a single lookup in a hash map; and one for
 * the other end of a wire, which counts arrivals.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Restored before each run: everything that a program here rewrites. */
#define HEAD 80
/* Flows differ in the low bits of the port, then in the last 16 bits of the source address, which
 * are 0 in the pristine frame. The Rust side makes the same frames to check the results. */
#define PORT_BITS 14
#define FIRST_PORT 1024
/* In a sequence, with the flow's number: the packet is a SYN, or an RST. */
#define SEQUENCE_SYN (1u << 31)
#define SEQUENCE_RST (1u << 30)
#define TCP_FLAGS 13 /* the offset in a TCP header */
#define TCP_SYN 0x02
#define TCP_RST 0x04

char LICENSE[] SEC("license") = "Dual MIT/GPL";

const volatile __u32 frame_length = 0;
const volatile __u32 flows = 1;
const volatile __u8 v6 = 0;
/* The number of destinations, a power of two, which flows use in turn. If there are several, they
 * differ in the last 16 bits of the address, which are 0 in the pristine frame. */
const volatile __u32 destinations = 1;

struct head {
	__u64 words[HEAD / 8];
};

__u32 next_flow = 0;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct head);
} pristine SEC(".maps");

/* The sequence that `sequence_wrapper` plays. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sequence SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} under_test SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64);
} one_map SEC(".maps");

/* The counters of `arrivals` on one CPU; the Rust side reads them as two words. */
struct arrived {
	__u64 tunnelled;
	__u64 others;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct arrived);
} arrived SEC(".maps");

/* The checksum of an IPv4 header in which a word of 0 became `word` (RFC 1624, equation 3). */
static __always_inline __u16 check_with(__u16 check, __u16 word)
{
	__u32 sum = (__u16)~check + (__u32)word;

	return ~((sum & 0xffff) + (sum >> 16));
}

/* Compiled twice, so that runs by number pay nothing for sequences. */
static __always_inline int wrap(struct xdp_md *ctx, const bool in_sequence)
{
	__u64 length = (long)ctx->data_end - (long)ctx->data;
	const __u32 zero = 0;
	const __u32 place = next_flow;
	__u32 flow = place;
	__be16 destination;
	__be16 tail;
	struct head *original;
	struct head *head;
	struct udphdr *ports;
	void *end;

	/* The verifier wants packet pointers subtracted in 64 bits; compilers see no need. */
	asm volatile("" : "+r"(length));
	/* Also by 0 bytes: the call is part of the wrapper's cost, whatever the program did. */
	if (bpf_xdp_adjust_head(ctx, (int)length - (int)frame_length))
		return XDP_ABORTED;
	head = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	original = bpf_map_lookup_elem(&pristine, &zero);
	if (!original || (void *)(head + 1) > end)
		return XDP_ABORTED;
	*head = *original;

	next_flow = place + 1 == flows ? 0 : place + 1;
	if (in_sequence) {
		const __u32 *packet = bpf_map_lookup_elem(&sequence, &place);

		if (!packet)
			return XDP_ABORTED;
		flow = *packet;
	}
	tail = bpf_htons(flow >> PORT_BITS);
	destination = bpf_htons(flow & (destinations - 1));
	if (v6) {
		struct ipv6hdr *ip = (void *)head + ETH_HLEN;

		ip->saddr.in6_u.u6_addr16[7] = tail;
		if (destinations > 1)
			ip->daddr.in6_u.u6_addr16[7] = destination;
		ports = (void *)(ip + 1);
	} else {
		struct iphdr *ip = (void *)head + ETH_HLEN;

		((__be16 *)&ip->saddr)[1] = tail;
		ip->check = check_with(ip->check, tail);
		if (destinations > 1) {
			((__be16 *)&ip->daddr)[1] = destination;
			ip->check = check_with(ip->check, destination);
		}
		ports = (void *)(ip + 1);
	}
	ports->source = bpf_htons(FIRST_PORT + (flow & ((1 << PORT_BITS) - 1)));
	if (in_sequence && flow & SEQUENCE_SYN)
		((__u8 *)ports)[TCP_FLAGS] = TCP_SYN;
	if (in_sequence && flow & SEQUENCE_RST)
		((__u8 *)ports)[TCP_FLAGS] = TCP_RST;
	bpf_tail_call(ctx, &under_test, 0);
	return XDP_ABORTED;
}

SEC("xdp")
int wrapper(struct xdp_md *ctx)
{
	return wrap(ctx, false);
}

SEC("xdp")
int sequence_wrapper(struct xdp_md *ctx)
{
	return wrap(ctx, true);
}

SEC("xdp")
int nothing(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("xdp")
int send_back(struct xdp_md *ctx)
{
	return XDP_TX;
}

/* Counts an arriving frame, by whether it has an IP packet in an IP packet, and drops it. */
SEC("xdp")
int arrivals(struct xdp_md *ctx)
{
	const __u32 zero = 0;
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct arrived *counted = bpf_map_lookup_elem(&arrived, &zero);
	struct ethhdr *ethernet = data;
	__u8 protocol = 0;

	if (!counted)
		return XDP_ABORTED;
	if (data + ETH_HLEN + sizeof(struct ipv6hdr) <= end) {
		if (ethernet->h_proto == bpf_htons(ETH_P_IP))
			protocol = ((struct iphdr *)(ethernet + 1))->protocol;
		else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6))
			protocol = ((struct ipv6hdr *)(ethernet + 1))->nexthdr;
	}
	if (protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6)
		counted->tunnelled++;
	else
		counted->others++;
	return XDP_DROP;
}

SEC("xdp")
int one_lookup(struct xdp_md *ctx)
{
	const __u32 key = 7;
	__u64 *value = bpf_map_lookup_elem(&one_map, &key);

	return value && *value ? XDP_PASS : XDP_ABORTED;
}
