/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Ends tunnels at the balancer: packets from other balancers, or for a backend on this host. It
 * runs before the rest of the walk, which then treats the inner packet like any other. Fragments
 * and IPv4 options are left to the walk, which drops them.
 */
#pragma once

#include "config.h"
#include "counters.h"
#include "csum.h"
#include "cursor.h"
#include "ecn.h"
#include "extensions.h"
#include "headers.h"
#include "icmp.h"
#include "lookup.h"
#include "parse.h"
#include "strip.h"
#include "tunnel.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>

/* Result of a search for a tunnel: the packet's contents cannot be found. */
#define NOT_WALKED (-1)

/* Whether the tunnel ends at an address of this host. */
static __always_inline bool ends_here(const struct tunnel *tunnel)
{
	return is_own_address(own_addresses(), tunnel->destination, tunnel->outer_v6);
}

/* Whether the IPv6 packet at the cursor, which has extension headers, is tunnelled. NOT_WALKED if
 * those cannot be skipped, so that they hide the contents. */
static __always_inline int find_behind_extensions(const struct run *run, struct tunnel *tunnel,
						  struct cursor cursor)
{
	const int skipped =
		skip_extensions(run->ctx, cursor.position - (void *)(long)run->ctx->data);
	const __u32 bytes = extension_bytes(skipped);
	const struct ipv6hdr *ip = cursor_take(&cursor, sizeof(*ip));

	if (!ip || skipped < 0 || bytes > bpf_ntohs(ip->payload_len))
		return NOT_WALKED;
	cursor.position += bytes;
	return find_tunnel_behind_v6(tunnel, ip, cursor, bytes, skipped, gue_port);
}

/* Whether the IPv6 packet at the cursor has extension headers. */
static __always_inline bool begins_with_extensions(struct cursor cursor)
{
	const struct ipv6hdr *ip = cursor_take(&cursor, sizeof(*ip));

	return ip && has_extensions(ip);
}

/* Whether the inner packet is, or may be, in a tunnel itself. */
static __always_inline bool is_nested(const struct run *run, const struct tunnel *tunnel)
{
	struct tunnel nested;

	if (!tunnel->inner_v6)
		return find_tunnel_v4(&nested, tunnel->inner, gue_port);
	if (begins_with_extensions(tunnel->inner))
		return find_behind_extensions(run, &nested, tunnel->inner);
	return find_tunnel_v6(&nested, tunnel->inner, gue_port);
}

/* Whether the inner packet's own lengths are possible: an IPv4 packet must hold its whole
 * header. */
static __always_inline bool inner_holds_its_header(const struct tunnel *tunnel)
{
	struct cursor cursor = tunnel->inner;
	const struct iphdr *ip;

	if (tunnel->inner_v6)
		return true;
	ip = cursor_take(&cursor, sizeof(*ip));
	return ip && ip->ihl >= sizeof(*ip) / 4 && bpf_ntohs(ip->tot_len) >= ip->ihl * 4;
}

/* Decrements the inner packet's time to live. */
static __always_inline enum drop_reason age_inner(const struct tunnel *tunnel)
{
	struct cursor cursor = tunnel->inner;

	if (tunnel->inner_v6) {
		struct ipv6hdr *ip = cursor_take(&cursor, sizeof(*ip));

		if (!ip)
			return DROP_INNER_TRUNCATED;
		if (ip->hop_limit <= 1)
			return DROP_INNER_EXPIRED;
		ip->hop_limit--;
	} else {
		struct iphdr *ip = cursor_take(&cursor, sizeof(*ip));
		__u16 *ttl_and_protocol;
		__u16 before;

		if (!ip)
			return DROP_INNER_TRUNCATED;
		if (ip->ttl <= 1)
			return DROP_INNER_EXPIRED;
		ttl_and_protocol = (__u16 *)&ip->ttl;
		before = *ttl_and_protocol;
		ip->ttl--;
		ip->check = csum_replace(ip->check, before, *ttl_and_protocol);
	}
	return DROP_NONE;
}

/* Whether the inner packet may continue. If so, this has made the changes due at a tunnel's end. */
static __always_inline enum drop_reason check_inner(const struct run *run, const struct tunnel *tunnel,
						    bool egress)
{
	enum drop_reason reason;

	if (!inner_header_is_whole(tunnel))
		return DROP_INNER_TRUNCATED;
	if (!inner_is_ip(tunnel))
		return DROP_INNER_VERSION;
	if (!inner_is_whole(tunnel))
		return DROP_INNER_TRUNCATED;
	/* The walk or the host checks this for packets that they get. */
	if (egress && !inner_holds_its_header(tunnel))
		return DROP_INNER_TRUNCATED;
	/* A packet that leaves may return, with one header less each time. */
	if (egress && is_nested(run, tunnel))
		return DROP_NESTED_TUNNEL;
	if (egress && limit_egress_sources &&
	    !inner_is_covered(tunnel, &egress_sources, INNER_SOURCE))
		return DROP_EGRESS_SOURCE;
	reason = age_inner(tunnel);
	if (reason)
		return reason;
	return hand_on_ecn(run->ctx, tunnel) ? DROP_NONE : DROP_ECN;
}

/* Removes the outer headers, and updates the run's view of the frame. */
static __always_inline bool strip(struct run *run, struct cursor *cursor, __be16 *type,
				  const struct tunnel *tunnel)
{
	run->eth = strip_outer(run->ctx, run->eth, tunnel, cursor);
	if (!run->eth)
		return false;
	*type = inner_type(tunnel);
	run->length -= tunnel->outer_bytes;
	run->unwrapped = true;
	return true;
}

/* Counts a GUE packet that goes to the host, for its VIP. */
static __always_inline void count_for_vip(struct cursor inner, enum family family)
{
	struct packet packet = {};
	struct vip_counters *of_vip;
	struct udphdr *ports;
	struct vip vip = {};
	__u32 number = 0;

	if (family == FAMILY_V6) {
		struct ipv6hdr *ip = cursor_take(&inner, sizeof(*ip));

		if (!ip || bpf_ntohs(ip->payload_len) < sizeof(*ports))
			return;
		packet.flow.family = FAMILY_V6;
		packet.flow.protocol = ip->nexthdr;
		copy_v6(packet.flow.destination, &ip->daddr);
	} else {
		struct iphdr *ip = cursor_take(&inner, sizeof(*ip));

		/* Fragments other than the first have no ports. */
		if (!ip || ip->ihl != sizeof(*ip) / 4 ||
		    ip->frag_off & bpf_htons(IPV4_FRAGMENT_MASK) ||
		    bpf_ntohs(ip->tot_len) < sizeof(*ip) + sizeof(*ports))
			return;
		packet.flow.family = FAMILY_V4;
		packet.flow.protocol = ip->protocol;
		copy_v4(packet.flow.destination, ip->daddr);
	}
	if (packet.flow.protocol != IPPROTO_TCP && packet.flow.protocol != IPPROTO_UDP)
		return;
	ports = cursor_take(&inner, sizeof(*ports));
	if (!ports)
		return;
	packet.flow.destination_port = ports->dest;
	if (!find_vip_once(&packet, family, &number, &vip))
		return;
	of_vip = bpf_map_lookup_elem(&vip_counters, &number);
	if (of_vip)
		of_vip->decap++;
}

/* Whether the outer packet at the cursor has the right version and is all there. If not, the walk
 * decides what happens to it. */
static __always_inline bool outer_is_whole(const struct run *run, const struct tunnel *tunnel,
					   struct cursor cursor)
{
	return ip_version(cursor) == (tunnel->outer_v6 ? 6 : 4) && tunnel->carried >= 0 &&
	       tunnel->length + sizeof(struct ethhdr) <= run->length;
}

/* Whether the IPv6 packet at the cursor is tunnelled and may be stripped. Only the program for rare
 * frames looks behind extension headers. */
static __always_inline bool find_outer_v6(const struct run *run, struct tunnel *tunnel,
					  struct cursor cursor)
{
	if (is(run, RARE) && begins_with_extensions(cursor))
		return find_behind_extensions(run, tunnel, cursor) > 0;
	return find_tunnel_v6(tunnel, cursor, gue_port);
}

/* Section 3 of the walk. CONTINUE: there was no tunnel, or the walk should take the inner packet,
 * at `cursor` and with its `type`. Otherwise the verdict. */
static __always_inline int inline_decap(struct run *run, struct cursor *cursor, __be16 *type)
{
	struct inline_decap_counters *count = &run->cpu->counters.decap;
	struct decap_destination end = {};
	enum drop_reason reason;
	struct tunnel tunnel;
	__u32 *mode;

	if (*type == bpf_htons(ETH_P_IP)) {
		if (!find_tunnel_v4(&tunnel, *cursor, gue_port) || tunnel.options || tunnel.fragment)
			return CONTINUE;
		end.family = FAMILY_V4;
		copy_v4(end.address, *(const __be32 *)tunnel.destination);
	} else if (*type == bpf_htons(ETH_P_IPV6)) {
		if (!find_outer_v6(run, &tunnel, *cursor))
			return CONTINUE;
		end.family = FAMILY_V6;
		copy_v6(end.address, tunnel.destination);
	} else {
		return CONTINUE;
	}
	if (!outer_is_whole(run, &tunnel, *cursor))
		return CONTINUE;
	mode = bpf_map_lookup_elem(&decap_destinations, &end);
	if (mode)
		count->remote++;
	else if (feature(FEATURE_STRICT_DESTINATION) && !ends_here(&tunnel))
		return pass(run, STEP_DECAP_FOREIGN);
	if (limit_outer_sources && !is_covered(&allowed_sources, tunnel.source, outer_family(&tunnel)))
		return drop(run, DROP_OUTER_SOURCE);
	if (tunnel.outer_v6)
		count->v6++;
	else
		count->v4++;
	reason = check_inner(run, &tunnel, mode && *mode == DECAP_EGRESS);
	if (reason)
		return drop(run, reason);
	if (!strip(run, cursor, type, &tunnel))
		return drop(run, DROP_DECAP_FAILED);
	if (!mode) {
		if (tunnel.gue)
			count_for_vip(*cursor, inner_family(&tunnel));
		return pass(run, STEP_DECAP_TO_HOST);
	}
	if (*mode == DECAP_EGRESS) {
		if (tunnel.inner_v6)
			count->egress_v6++;
		else
			count->egress_v4++;
		note_step(run, STEP_DECAP_EGRESS);
		swap_macs(run->eth);
		return XDP_TX;
	}
	if (tunnel.inner_v6)
		count->walked_v6++;
	else
		count->walked_v4++;
	return CONTINUE;
}
