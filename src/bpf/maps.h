/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The balancer's maps. Sizes given as 1 are placeholders: the library sets them before load. It
 * writes data sections and mappable maps through shared memory, one aligned word at a time and
 * without a system call.
 */
#pragma once

#include "prefixes.h"
#include "shared.h"

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* These arrays are in data sections, so that packets read them without a lookup; the library sets
 * their length. The VIP table: by hash, the number of the first VIP with that hash, plus one; then
 * by number. */
__u16 vip_heads[1] SEC(".data.vip_heads") = {};
struct vip_info vip_infos[1] SEC(".data.vip_infos") = {};

/* By the real's number; number 0 stays unused. */
struct real reals[1] SEC(".data.reals") = {};

/* Next hops by the real's number, and the interfaces they are behind. */
__u64 hops[1] SEC(".data.hops") = {};
struct port ports[PORTS] SEC(".data.ports") = {};

struct vip_prefixes {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct vip_prefix_key);
	__type(value, __u32);
};

/* The VIPs that are prefixes, by number. */
struct vip_prefixes prefix_vips SEC(".maps");

/* The addresses and prefixes of VIPs, whatever port and protocol; those are 0 in the keys. */
struct vip_prefixes vip_addresses SEC(".maps");

/* Chunks of rings, made as VIPs come into use. A ring is one array element of 16-bit real numbers;
 * chunks are mappable. The library sets the inner map's value size at load. */
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
 * each forwarding CPU, and gives the fallback the same type. */
struct flow_table {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(struct flow_key));
	__uint(value_size, sizeof(struct flow_value));
};

/* By CPU number; empty for a CPU that does not forward. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct flow_table);
} flow_tables SEC(".maps");

/* For frames that arrive on a CPU without a table. */
struct flow_table fallback_flows SEC(".maps");

/* Reals by the ids that their servers put into packets: the lines of a table in chunks of equal
 * size, so that the verifier turns lookups into loads. `live.server_ids` says which part of the
 * elements holds the table; when that fills up, the library makes a larger table in the next
 * part. */
struct server_id_chunk {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SERVER_ID_CHUNK_LINES);
	/* Sizes, not types: Linux 6.1 finds a map with struct values unlike the maps that the
	 * library makes, whose values have no type. */
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct server_id_line));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct server_id_chunk);
} server_ids SEC(".maps");

/* Real numbers by prefixes of the client's address. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct source_prefix_v4);
	__type(value, __u32);
} source_routes_v4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct source_prefix_v6);
	__type(value, __u32);
} source_routes_v6 SEC(".maps");

/* The flow tables that the host application fills, by CPU number. */
struct global_flow_table {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct flow_key);
	__type(value, __u32); /* the real's id */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct global_flow_table);
} global_flows SEC(".maps");

/* For CPUs without one. */
struct global_flow_table global_fallback SEC(".maps");

/* Void entries of flow tables; values are of enum void_reason. Only packets of VIPs with
 * VIP_VOID_FLOWS look here. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct down_real);
	__type(value, __u32);
} down_reals SEC(".maps");

/* Allowed sources of tunnels that end at this host, and of packets that leave egress addresses. */
struct prefixes allowed_sources SEC(".maps");
struct prefixes egress_sources SEC(".maps");

/* Where tunnels may end at this host; values are of enum decap_mode. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct decap_destination);
	__type(value, __u32);
} decap_destinations SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cpu);
} cpus SEC(".maps");

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

/* Optional counters: by the VIP's number, and by pairs of a VIP and a real, whose entries packets
 * make. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct vip_details);
} vip_details SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1);
	__type(key, struct vip_real);
	__type(value, struct vip_real_counters);
} vip_reals SEC(".maps");

/* The interfaces again, in the form that a redirect needs; by the port's number. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, PORTS);
	__type(key, __u32);
	__type(value, __u32);
} devices SEC(".maps");

/* Events for the control side. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

/* Written by the explaining twin only. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct explanation);
} explanations SEC(".maps");

int katran_ids(struct xdp_md *ctx);
int katran_send(struct xdp_md *ctx);
int katran_special(struct xdp_md *ctx);
int katran_explain_special(struct xdp_md *ctx);
int katran_rare(struct xdp_md *ctx);
int katran_explain_rare(struct xdp_md *ctx);
int katran_quic(struct xdp_md *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, PROGRAMS);
	__uint(key_size, sizeof(__u32));
	__array(values, int(struct xdp_md *));
} special_programs SEC(".maps") = {
	.values = {
		[PROGRAM_IDS] = (void *)&katran_ids,
		[PROGRAM_SEND] = (void *)&katran_send,
		[PROGRAM_SPECIAL] = (void *)&katran_special,
		[PROGRAM_EXPLAIN_SPECIAL] = (void *)&katran_explain_special,
		[PROGRAM_RARE] = (void *)&katran_rare,
		[PROGRAM_EXPLAIN_RARE] = (void *)&katran_explain_rare,
		[PROGRAM_QUIC] = (void *)&katran_quic,
	},
};
