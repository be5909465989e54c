// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * The wrapper that an XDP program is measured in. A program that encapsulates leaves its frame
 * longer, so running one frame again and again would measure the encapsulated frame from the
 * second run on. The wrapper puts the pristine frame back, makes it one of the next flow, and
 * tail-calls the program under test. Beside it two programs to compare with: one that does
 * nothing, and one that does one lookup in a hash map.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Restored before each run: all that any program here rewrites. */
#define HEAD 80
/* Flows differ in the low bits of the port, then in those of the address. */
#define PORT_BITS 14
#define FIRST_PORT 1024

char LICENSE[] SEC("license") = "Dual MIT/GPL";

const volatile __u32 frame_length = 0;
const volatile __u32 flows = 1;
const volatile __u8 v6 = 0;

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

SEC("xdp")
int wrapper(struct xdp_md *ctx)
{
	const int grown = (int)(ctx->data_end - ctx->data) - (int)frame_length;
	const __u32 zero = 0;
	__u32 flow = next_flow;
	struct head *original;
	struct head *head;
	struct udphdr *ports;
	void *end;

	if (grown && bpf_xdp_adjust_head(ctx, grown))
		return XDP_ABORTED;
	head = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	original = bpf_map_lookup_elem(&pristine, &zero);
	if (!original || (void *)(head + 1) > end)
		return XDP_ABORTED;
	*head = *original;

	next_flow = flow + 1 == flows ? 0 : flow + 1;
	if (v6) {
		struct ipv6hdr *ip = (void *)head + ETH_HLEN;

		ip->saddr.in6_u.u6_addr32[3] = bpf_htonl(flow >> PORT_BITS);
		ports = (void *)(ip + 1);
	} else {
		struct iphdr *ip = (void *)head + ETH_HLEN;

		/* 100.64.0.0/10 has room for more flows than there are. */
		ip->saddr = bpf_htonl(0x64400000 | flow >> PORT_BITS);
		ports = (void *)(ip + 1);
	}
	ports->source = bpf_htons(FIRST_PORT + (flow & ((1 << PORT_BITS) - 1)));
	bpf_tail_call(ctx, &under_test, 0);
	return XDP_ABORTED;
}

SEC("xdp")
int nothing(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("xdp")
int one_lookup(struct xdp_md *ctx)
{
	const __u32 key = 7;
	__u64 *value = bpf_map_lookup_elem(&one_map, &key);

	return value && *value ? XDP_PASS : XDP_ABORTED;
}
