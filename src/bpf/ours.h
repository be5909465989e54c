/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Tells the balancer's packets from the host's, for rare frames and other exceptions. Its functions
 * take numbers as arguments, so that ordinary packets keep theirs in registers.
 */
#pragma once

#include "counters.h"
#include "maps.h"
#include "verifier.h"

#include <stdbool.h>
#include <linux/in6.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* The first byte of an IPv4 address in memory order. */
#define V4_FIRST(address) ((address) & 0xff)
#define V4_LOOPBACK 127
#define V4_GROUPS 0xe0 /* 224.0.0.0/4 */
#define V4_BROADCAST 0xffffffff

static __always_inline __u64 v6_half(const struct in6_addr *address, int half)
{
	const __u32 *words = (const __u32 *)address + 2 * half;

	return words[0] | (__u64)words[1] << 32;
}

static __always_inline bool same_address(const struct in6_addr *a, const struct in6_addr *b)
{
	return !((v6_half(a, 0) ^ v6_half(b, 0)) | (v6_half(a, 1) ^ v6_half(b, 1)));
}

/* Whether a VIP has this address, whatever port and protocol: its own or one in its prefix. Both
 * halves are in memory order. A global function, so the verifier checks it once. */
LOOKED_AT_ONCE int is_vip_address(__u64 first, __u64 second, __u32 family)
{
	struct vip_prefix_key key = {
		.prefix_length = 32 + (family == FAMILY_V4 ? 32 : 128),
		.family = family,
	};

	__builtin_memcpy(key.address, &first, sizeof(first));
	__builtin_memcpy(key.address + sizeof(first), &second, sizeof(second));
	return bpf_map_lookup_elem(&vip_addresses, &key) != NULL;
}

static __always_inline bool is_vip_v4(__be32 address)
{
	return is_vip_address(address, 0, FAMILY_V4);
}

static __always_inline bool is_vip_v6(const struct in6_addr *address)
{
	return is_vip_address(v6_half(address, 0), v6_half(address, 1), FAMILY_V6);
}

/* Whether the address can belong to a single station: it is not a group, broadcast, loopback or
 * unspecified. */
static __always_inline bool is_station_v4(__be32 address)
{
	return address && V4_FIRST(address) != V4_LOOPBACK && address != V4_BROADCAST &&
	       (V4_FIRST(address) & 0xf0) != V4_GROUPS;
}

static __always_inline bool is_station_v6(const struct in6_addr *address)
{
	/* ::1 and :: */
	const bool none_or_loopback = !v6_half(address, 0) &&
				      !(v6_half(address, 1) & ~bpf_cpu_to_be64(1));

	return !none_or_loopback && address->s6_addr[0] != 0xff;
}

/* Whether the frame is for another station, or for a group. If the interface is not known, only
 * groups are recognised. */
static __always_inline bool is_for_others(const struct run *run)
{
	const __u64 destination = *(const __u64 *)run->eth;
	const struct station *station;
	__u64 whole;
	__u32 interface;

	if (likely(destination << live.station_shift == live.station))
		return false;
	if (destination & STATION_GROUP)
		return true;
	whole = destination << STATION_SHIFT;
	interface = run->ctx->ingress_ifindex;
	station = &live.stations[interface % STATIONS];
	return station->interface == interface && station->macs[0] != whole &&
	       station->macs[1] != whole && station->macs[2] != whole;
}
