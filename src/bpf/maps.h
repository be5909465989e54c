/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * The balancer's maps. Sizes given as 1 are placeholders: the library sets them before load.
 * Data sections and mappable maps are written by the control side through shared memory, one
 * aligned word at a time, without a system call.
 */
#pragma once

#include "prefixes.h"
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

/* Next hops by the real's number, and the interfaces that they are behind. */
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

/* The addresses that VIPs have, and the prefixes, whatever port and protocol: those are 0 in the keys. */
struct vip_prefixes vip_addresses SEC(".maps");

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
	__uint(value_size, sizeof(struct flow_value));
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

/* Reals by the ids that their servers put into packets: the lines of a table in chunks, which are all
 * of one size, so that the verifier turns lookups into loads. `live.server_ids` says in which part of
 * the elements the table is: when it fills up, a larger one is made in the next part. */
struct server_id_chunk {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SERVER_ID_CHUNK_LINES);
	/* Not by type: Linux 6.1 takes a map whose values are known to be structs for unlike one whose
	 * are not, as those are that the library makes. */
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

/* For CPUs without one of their own. */
struct global_flow_table global_fallback SEC(".maps");

/* Which entries of flow tables are void; values are of enum void_reason. Asked for VIPs with
 * VIP_VOID_FLOWS only. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct down_real);
	__type(value, __u32);
} down_reals SEC(".maps");

/* Where tunnels that end at this host may come from, and packets that egress addresses send out. */
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

/* What few balancers count: by the VIP's number, and by pairs of a VIP and a real, of which packets make the entries. */
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

/* The interfaces again, as the kernel wants them for a redirect; by the port's number. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, PORTS);
	__type(key, __u32);
	__type(value, __u32);
} devices SEC(".maps");

/* Events on their way to the control side. */
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
