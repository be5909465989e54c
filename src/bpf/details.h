/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Optional counters: SYNs of each VIP, and the packets of each of its reals. send.h calls this for
 * VIPs whose flags ask for it, in bits that it tests anyway, so no other packet pays.
 */
#pragma once

#include "config.h"
#include "counters.h"
#include "maps.h"
#include "verifier.h"

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* Of this many packets without a pair one tries to make it: in a full map that takes locks and a
 * search of all CPUs' free places. A power of two. */
enum { UNPAIRED_TRIES = 256 };

/* The counters of a VIP with one of its reals, which the first packet makes; NULL: the map is full,
 * or was when another packet last tried. */
static __always_inline struct vip_real_counters *counters_of_pair(const struct vip_real *pair,
								  __u64 unpaired)
{
	const struct vip_real_counters none = {};
	struct vip_real_counters *found = bpf_map_lookup_elem(&vip_reals, pair);

	if (likely(found) || (unpaired & (UNPAIRED_TRIES - 1)))
		return found;
	/* If another CPU makes it meanwhile, this update fails, and the lookup finds the other
	 * one. */
	bpf_map_update_elem(&vip_reals, pair, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&vip_reals, pair);
}

/* Counts a packet that is forwarded or delivered. A global function, so the verifier checks it
 * once. */
LOOKED_AT_ONCE int count_in_detail(__u32 vip, __u32 real, __u32 bytes, __u32 opens)
{
	struct vip_details *of_vip;

	/* Before Linux 6.8 the verifier checks this even if nothing calls it. */
	if (!in_detail)
		return 0;
	of_vip = bpf_map_lookup_elem(&vip_details, &vip);
	if (!of_vip)
		return 0;
	opens = !!opens;
	of_vip->syns += opens;
	if (max_vip_reals) {
		const struct vip_real pair = { .vip = vip, .real = real };
		struct vip_real_counters *of_pair = counters_of_pair(&pair, of_vip->unpaired);

		if (of_pair) {
			count_frame(&of_pair->forwarded, bytes);
			of_pair->syns += opens;
		} else {
			of_vip->unpaired++;
		}
	}
	return 0;
}
