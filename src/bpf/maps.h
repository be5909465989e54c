/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The balancer's maps. Sizes given as 1 are placeholders: the library sets them before load.
 * Data sections and mappable maps are written by the control side through shared memory, one
 * aligned word at a time, without a system call.
 */
#pragma once

#include "shared.h"

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* The arrays below lie in data sections, so that packets read them without a lookup; the library
 * gives them their length. The VIP table: by hash, the number of the first VIP with that hash,
 * plus one; then by number. */
__u16 vip_heads[1] SEC(".data.vip_heads") = {};
struct vip_info vip_infos[1] SEC(".data.vip_infos") = {};

/* By the real's number; number 0 stays unused. */
struct real reals[1] SEC(".data.reals") = {};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct vip_prefix_key);
	__type(value, __u32);
} prefix_vips SEC(".maps");

/* Chunks of rings, made as VIPs come into use. A ring is one array element of 16-bit real
 * numbers; chunks are mappable. The inner map's value size is set at load. */
struct ring_chunk {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, RINGS_PER_CHUNK);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, 8);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct ring_chunk);
} rings SEC(".maps");

/* A flow table: an LRU hash of the kernel as here, or an array of sets. The library makes one for
 * each forwarding CPU, and sets type and sizes of the fallback to match. */
struct flow_table {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(struct flow_key));
	__uint(value_size, sizeof(struct flow_mark));
};

/* By CPU number; empty for a CPU that does not forward. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct flow_table);
} flow_tables SEC(".maps");

/* For frames that arrive on a CPU without a table of its own. */
struct flow_table fallback_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vip_counters);
} vip_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct real_counters);
} real_counters SEC(".maps");

/* Written by the explaining twin only. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct explanation);
} explanations SEC(".maps");
