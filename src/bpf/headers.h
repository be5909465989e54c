/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* Helpers for Ethernet and IPv4 headers that all programs share. struct ethhdr is packed, so plain
 * accesses to its fields would go byte by byte; these are as wide as the fields. */
#pragma once

#include "shared.h"

#include <stdbool.h>
#include <linux/if_ether.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define IPV4_FRAGMENT_MASK 0x3fff /* more-fragments flag and offset */
#define IPV4_DONT_FRAGMENT 0x4000
#define IPV6_MIN_MTU 1280

/* A MAC address's six bytes in memory order. */
static __always_inline __u64 mac_load(const void *from)
{
	return *(const __u32 *)from | (__u64)*(const __u16 *)(from + 4) << 32;
}

static __always_inline void mac_store(void *to, __u64 mac)
{
	*(__u32 *)to = mac;
	*(__u16 *)(to + 4) = mac >> 32;
}

static __always_inline __be16 ether_type(const struct ethhdr *eth)
{
	return *(const __be16 *)((const void *)eth + 2 * ETH_ALEN);
}

static __always_inline void ether_write(struct ethhdr *eth, __u64 destination, __u64 source,
					__be16 type)
{
	mac_store(eth->h_dest, destination);
	mac_store(eth->h_source, source);
	*(__be16 *)((void *)eth + 2 * ETH_ALEN) = type;
}

/* Whether an address is one of this host's own. A family whose own address is all zeros has
 * none. */
static __always_inline bool is_own_address(const struct own_addresses *own, const __u32 *address,
					   bool v6)
{
	if (!v6)
		return own->v4 && address[0] == own->v4;
	return (own->v6[0] | own->v6[1] | own->v6[2] | own->v6[3]) && address[0] == own->v6[0] &&
	       address[1] == own->v6[1] && address[2] == own->v6[2] && address[3] == own->v6[3];
}
