/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The constants, settings and maps of the health check program. The library sizes each map, and
 * leaves out those that are not needed.
 */
#pragma once

#include "shared.h"

#include <bpf/bpf_helpers.h>

/* Load-time constants, like those of the balancer. */
const volatile __u32 encapsulation = ENCAPSULATION_IPIP;
const volatile __u16 gue_port = 6080;
/* The largest packet, Ethernet header included; 0: any. */
const volatile __u32 max_packet = 0;
/* Outer sources of IP in IP are made up like those of clients' packets, from these prefixes
 * (config.h). */
const volatile __u8 made_up_sources = 0;
const volatile __u16 ipip_source_v4 = 0;
const volatile __u32 ipip_source_v6[3] = {};
/* Reals have their own next hops: see `ways`. */
const volatile __u8 next_hops = 0;

/* Written by the control side at any time. */
struct probe_settings settings SEC(".data.settings") = {};

static __always_inline const struct own_addresses *own_addresses(void)
{
	return &settings.own[settings.own_current & 1];
}

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct probe_real);
} marks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct probe_match);
	__type(value, struct probe_real);
} destinations SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct probe_match);
	__type(value, struct probe_real);
} sources SEC(".maps");

/* Where TCP connections with marked packets went. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, PROBE_FLOWS);
	__type(key, struct flow_key);
	__type(value, struct probe_real);
} probe_flows SEC(".maps");

/* By the addresses of reals. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct probe_match);
	__type(value, struct probe_way);
} ways SEC(".maps");

/* Numbers of registered keys, and the probes counted for each number. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct vip_key);
	__type(value, __u32);
} probe_keys SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} probe_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct probe_totals);
} probe_totals SEC(".maps");
