/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The balancer's maps. Sizes given as 1 are placeholders: the library sets them before load.
 * Maps marked mappable are written by the control side through shared memory, one aligned word
 * at a time, without a system call.
 */
#pragma once

#include "shared.h"

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* (address, port, protocol) to the VIP's number. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct vip_key);
	__type(value, __u32);
} vips SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct vip_prefix_key);
	__type(value, __u32);
} prefix_vips SEC(".maps");

/* By the VIP's number; mappable. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vip);
} vip_info SEC(".maps");

/* By the real's number; number 0 stays unused; mappable. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct real);
} reals SEC(".maps");

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
