/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* Corrects the outer addresses and ports that are made up per flow, where they would be invalid.
 * The balancer's encapsulation and the health checks call it. */
#pragma once

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

/* The made-up host part of an outer IPv4 source, in the upper half of a word in memory order. No
 * host has all zeros or all ones (RFC 1122, 3.2.1.3), so this flips their lowest bit. */
static __always_inline __u32 usable_host_v4(__u32 host)
{
	return host + (1 << 16) <= 1 << 16 ? host ^ 1 << 24 : host;
}

/* The same for the last word of an IPv6 address. */
static __always_inline __u32 usable_host_v6(__u32 host)
{
	return host + 1 <= 1 ? host ^ 1 << 24 : host;
}

/* A made-up UDP source port, without 0, which means none (RFC 768). */
static __always_inline __u16 usable_port(__u16 port)
{
	return port ? port : 0xffff;
}
