// SPDX-License-Identifier: GPL-2.0-only
/*
 * Moves a CPU's counts from one map to another when a balancer is replaced; the library runs it
 * once per CPU. The sum of both maps is right at any moment, even if the process dies meanwhile. No
 * packet counts in the first map any more, except in a program whose descriptor was handed out.
 */
#include "shared.h"

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

const volatile struct {
	/* Counter words at the beginning of each element. */
	__u32 words;
	/* Elements that both maps have. */
	__u32 elements;
} counted_by = { 1, 1 };

/* The library sets the size of the values before load. */
struct counters_of {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, 8);
};

struct counters_of carried_from SEC(".maps");
struct counters_of carried_to SEC(".maps");

static long carry_element(__u32 element, const __u32 *cpu)
{
	__u64 *from = bpf_map_lookup_percpu_elem(&carried_from, &element, *cpu);
	__u64 *to = bpf_map_lookup_elem(&carried_to, &element);

	if (!from || !to)
		return 1;
	for (__u32 word = 0; word < counted_by.words; word++) {
		/* A packet on this CPU may interrupt this, but not the other way round. */
		const __u64 counted = __sync_lock_test_and_set(&from[word], 0);

		if (counted)
			__sync_fetch_and_add(&to[word], counted);
	}
	return 0;
}

/* The frame holds a CPU's number; that CPU's counts are added to the current one's. */
SEC("xdp")
int carry(struct xdp_md *ctx)
{
	const void *end = (const void *)(long)ctx->data_end;
	const __u32 *number = (const void *)(long)ctx->data;
	__u32 cpu;

	if ((const void *)(number + 1) > end)
		return XDP_ABORTED;
	cpu = *number;
	bpf_loop(counted_by.elements, carry_element, &cpu, 0);
	return XDP_PASS;
}
