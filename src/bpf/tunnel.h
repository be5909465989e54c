/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Recognises tunnelled packets, for all programs: IP in IP (protocols 4 and 41) and GUE variant 1
 * (a UDP port, then the inner packet), with any mix of families. The calling program decides what
 * to do with such a packet.
 */
#pragma once

#include "cursor.h"
#include "headers.h"
#include "prefixes.h"

#include <stdbool.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>

/* A packet in a tunnel. */
struct tunnel {
	struct cursor inner; /* behind the outer headers */
	const void *source; /* the outer addresses, in the packet */
	const void *destination;
	__u32 outer_bytes; /* headers in front of the inner packet, without Ethernet's */
	__u32 length; /* of the outer packet, by its IP header */
	/* Bytes of the outer packet behind its headers; anything beyond is padding, whatever it
	 * looks like. Below 0: the outer packet ends within its headers. */
	__s32 carried;
	__u8 tos; /* of the outer header: type of service or traffic class */
	bool outer_v6;
	bool inner_v6;
	bool gue;
	/* The outer IPv4 header has options or is a fragment's, so nothing can be stripped. */
	bool options;
	bool fragment;
};

static __always_inline enum family outer_family(const struct tunnel *tunnel)
{
	return tunnel->outer_v6 ? FAMILY_V6 : FAMILY_V4;
}

static __always_inline enum family inner_family(const struct tunnel *tunnel)
{
	return tunnel->inner_v6 ? FAMILY_V6 : FAMILY_V4;
}

static __always_inline __be16 inner_type(const struct tunnel *tunnel)
{
	return tunnel->inner_v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
}

/* The IP version of the packet at the cursor; 0: nothing is there. */
static __always_inline __u8 ip_version(struct cursor cursor)
{
	const __u8 *first = cursor_take(&cursor, 1);

	return first ? *first >> 4 : 0;
}

/* Bytes of data in a UDP datagram whose packet holds `bytes`. The datagram may end before the
 * packet does; bytes between the two ends are not its data (RFC 9868). */
static __always_inline __s32 bytes_in_udp(const struct udphdr *udp, __s32 bytes)
{
	const __s32 length = bpf_ntohs(udp->len);

	return (length < bytes ? length : bytes) - (__s32)sizeof(*udp);
}

/* Whether `carried` bytes in a UDP datagram to GUE's port are a packet: they begin with version 4
 * or 6. */
static __always_inline bool is_in_gue(struct cursor behind, __s32 carried)
{
	const __u8 version = ip_version(behind);

	return carried > 0 && (version == 4 || version == 6);
}

static __always_inline bool is_gue(struct tunnel *tunnel, __u16 port)
{
	const struct udphdr *udp = cursor_take(&tunnel->inner, sizeof(*udp));

	if (!udp || udp->dest != bpf_htons(port))
		return false;
	tunnel->carried = bytes_in_udp(udp, tunnel->carried);
	if (!is_in_gue(tunnel->inner, tunnel->carried))
		return false;
	tunnel->inner_v6 = ip_version(tunnel->inner) == 6;
	tunnel->outer_bytes += sizeof(*udp);
	tunnel->gue = true;
	return true;
}

/* Whether the packet behind the outer IP header is tunnelled. */
static __always_inline bool is_tunnel_protocol(struct tunnel *tunnel, __u8 protocol, __u16 port)
{
	if (protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6) {
		tunnel->inner_v6 = protocol == IPPROTO_IPV6;
		return true;
	}
	/* UDP in fragments or behind options cannot be recognised as GUE. */
	return port && protocol == IPPROTO_UDP && !tunnel->options && !tunnel->fragment &&
	       is_gue(tunnel, port);
}

/* Whether the IPv4 packet at the cursor is tunnelled. `port`: where GUE arrives; 0: no GUE. */
static __always_inline bool find_tunnel_v4(struct tunnel *tunnel, struct cursor cursor, __u16 port)
{
	const struct iphdr *ip = cursor_take(&cursor, sizeof(*ip));

	if (!ip)
		return false;
	*tunnel = (struct tunnel){
		.inner = cursor,
		.source = &ip->saddr,
		.destination = &ip->daddr,
		.outer_bytes = sizeof(*ip),
		.length = bpf_ntohs(ip->tot_len),
		.carried = bpf_ntohs(ip->tot_len) - (__s32)sizeof(*ip),
		.tos = ip->tos,
		.options = ip->ihl != sizeof(*ip) / 4,
		.fragment = ip->frag_off & bpf_htons(IPV4_FRAGMENT_MASK),
	};
	return is_tunnel_protocol(tunnel, ip->protocol, port);
}

/* The same for an IPv6 packet; `protocol` is at the cursor, behind `extensions` bytes of extension
 * headers. */
static __always_inline bool find_tunnel_behind_v6(struct tunnel *tunnel, const struct ipv6hdr *ip,
						  struct cursor cursor, __u32 extensions,
						  __u8 protocol, __u16 port)
{
	*tunnel = (struct tunnel){
		.inner = cursor,
		.source = &ip->saddr,
		.destination = &ip->daddr,
		.outer_bytes = sizeof(*ip) + extensions,
		.length = sizeof(*ip) + bpf_ntohs(ip->payload_len),
		.carried = bpf_ntohs(ip->payload_len) - (__s32)extensions,
		.tos = bpf_ntohs(*(const __be16 *)ip) >> 4,
		.outer_v6 = true,
	};
	return is_tunnel_protocol(tunnel, protocol, port);
}

static __always_inline bool find_tunnel_v6(struct tunnel *tunnel, struct cursor cursor, __u16 port)
{
	const struct ipv6hdr *ip = cursor_take(&cursor, sizeof(*ip));

	return ip && find_tunnel_behind_v6(tunnel, ip, cursor, 0, ip->nexthdr, port);
}

/* Whether the outer packet holds the inner packet's whole header. */
static __always_inline bool inner_header_is_whole(const struct tunnel *tunnel)
{
	const __u32 header = tunnel->inner_v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	struct cursor cursor = tunnel->inner;

	return tunnel->carried >= (__s32)header && cursor_take(&cursor, header);
}

/* Whether it holds the whole inner packet, whose header is there. */
static __always_inline bool inner_is_whole(const struct tunnel *tunnel)
{
	struct cursor cursor = tunnel->inner;

	if (tunnel->inner_v6) {
		const struct ipv6hdr *ip = cursor_take(&cursor, sizeof(*ip));

		return ip && bpf_ntohs(ip->payload_len) + (__s32)sizeof(*ip) <= tunnel->carried;
	} else {
		const struct iphdr *ip = cursor_take(&cursor, sizeof(*ip));

		return ip && bpf_ntohs(ip->tot_len) <= tunnel->carried;
	}
}

/* Whether it is an IP packet of the family that the outer header names. */
static __always_inline bool inner_is_ip(const struct tunnel *tunnel)
{
	return ip_version(tunnel->inner) == (tunnel->inner_v6 ? 6 : 4);
}

enum inner_address { INNER_SOURCE, INNER_DESTINATION };

/* Whether one of the prefixes covers an address of the inner packet, whose header is there. */
static __always_inline bool inner_is_covered(const struct tunnel *tunnel, struct prefixes *by,
					     enum inner_address which)
{
	struct cursor cursor = tunnel->inner;

	if (tunnel->inner_v6) {
		const struct ipv6hdr *ip = cursor_take(&cursor, sizeof(*ip));

		return ip && is_covered(by, which == INNER_SOURCE ? &ip->saddr : &ip->daddr,
				       FAMILY_V6);
	} else {
		const struct iphdr *ip = cursor_take(&cursor, sizeof(*ip));

		return ip && is_covered(by, which == INNER_SOURCE ? &ip->saddr : &ip->daddr,
				       FAMILY_V4);
	}
}
