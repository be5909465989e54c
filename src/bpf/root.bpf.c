// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * The root program of an interface that several XDP programs share: the kernel runs it for each
 * frame, and it calls the first of its entries that is set. An entry that passes a frame on calls
 * the next one in the same way, through `programs`, starting after its own.
 */
#include "shared.h"

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* The library sets the number of entries. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, ROOT_MOST_ENTRIES);
	__type(key, __u32);
	__type(value, __u32);
} programs SEC(".maps");

const volatile __u32 entries = ROOT_ENTRIES;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} passed SEC(".maps");

SEC("xdp")
int katran_root(struct xdp_md *ctx)
{
	const __u32 zero = 0;
	__u64 *count;

	/* A tail call to an empty entry falls through. */
	for (__u32 i = 0; i < ROOT_MOST_ENTRIES && i < entries; i++)
		bpf_tail_call(ctx, &programs, i);
	count = bpf_map_lookup_elem(&passed, &zero);
	if (count)
		(*count)++;
	return XDP_PASS;
}
