/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Load-time constants of the balancer, which the library sets before the verifier checks the
 * program. The verifier knows their values and removes the code that they turn off.
 */
#pragma once

#include "shared.h"

#include <stdbool.h>
#include <bpf/bpf_helpers.h>

const volatile __u32 features = 0;
/* Identifies the object that the programs come from; no packet reads it. */
const volatile __u64 digest = 0;
/* Whether the attached program is katran_full. */
const volatile __u8 full = 0;
const volatile __u32 ring_size = 65537;
/* Start values of the flow hash: max_vips * ring_size, and max_vips. */
const volatile __u32 hash_seed = 0;
const volatile __u32 hash_seed_v6 = 0;
/* Ticks of the kernel's clock (jiffies). */
const volatile __u32 ticks_per_second = 1000;
const volatile __u32 udp_timeout = 30000; /* ticks */
const volatile __u32 max_vips = 1;
const volatile __u32 max_reals = 1;
/* The VIP table's hash: a key for each word of a vip_key, then the sum's start value. The sum
 * shifted right by `vip_shift` is the place of the chain's head. */
const volatile __u64 vip_keys[VIP_WORDS + 1] = {};
const volatile __u32 vip_shift = 63;
const volatile __u32 flow_table_kind = FLOW_TABLE_SETS;
/* Of enum flow_tracking. */
const volatile __u32 flow_tracking = TRACK_ALL;
/* The offset of struct ring_planes in a ring's element, and the shifts that turn ticks into
 * moments. */
const volatile __u32 ring_planes_at = 0;
const volatile __u32 tcp_moment_shift = 15;
const volatile __u32 udp_moment_shift = 8;
/* Sets of each forwarding CPU's table. */
const volatile __u32 flow_sets = 1;
/* Random keys of the flow's fingerprint: one for each of its words, then the sum's start value. */
const volatile __u64 flow_keys[FLOW_WORDS + 1] = {};
/* A SYN follows its flow's entry if that was used within this many ticks. */
const volatile __u32 syn_follows = 5000;
const volatile __u64 flood_threshold = 125000; /* new flows per second on each CPU */
const volatile __u32 encapsulation = ENCAPSULATION_IPIP;
const volatile __u16 gue_port = 6080;
/* The server-id table's hash: an odd multiplier and a start value. */
const volatile __u64 server_id_key = 1;
const volatile __u64 server_id_start = 0;
/* Elements of `server_ids` in each of its parts. */
const volatile __u32 server_id_chunks = 1;
/* Whether outer IPv4 headers copy the inner packet's DF bit, and carry an identification if it is
 * clear. */
const volatile __u8 inherit_dont_fragment = 0;
/* Outer IPIP source prefixes, as words in memory order: the first half of an IPv4 address, the
 * first three quarters of an IPv6 address. */
const volatile __u16 ipip_source_v4 = 0;
const volatile __u32 ipip_source_v6[3] = {};
/* Whether the outer sources of tunnels that end here must be in `allowed_sources`, and the sources
 * of packets that leave an egress address in `egress_sources`. */
const volatile __u8 limit_outer_sources = 0;
const volatile __u8 limit_egress_sources = 0;
/* Whether frames may arrive in several buffers, so that data_end is not the frame's end. */
const volatile __u8 frags = 0;
/* Ticks after the owner's last sign of life until all frames pass; 0: never. */
const volatile __u64 orphan_limit = 0;

/* Whether each real has its own next hop, and whether that may be behind another interface. */
const volatile __u8 next_hops = 0;
const volatile __u8 redirect = 0;

/* Whether VIPs may have VIP_IN_DETAIL, and how many pairs of a VIP and a real may be counted. */
const volatile __u8 in_detail = 0;
const volatile __u32 max_vip_reals = 0;

/* Written by the control side at any time. */
struct live live SEC(".data.live") = { .station_shift = STATION_GROUP_SHIFT };

const volatile struct constants constants = {};

static __always_inline bool feature(__u32 bit)
{
	return features & bit;
}

static __always_inline const struct own_addresses *own_addresses(void)
{
	return &live.own[live.own_in_force & 1];
}
