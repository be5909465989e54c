/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Parses any packet into the flow it belongs to: IP header, extension headers, ICMP with the header
 * it quotes, transport header. The program for rare frames calls it. A packet for the host ends
 * here with a verdict. One that cannot be forwarded gets a drop reason, which applies only if it is
 * for a VIP's address.
 */
#pragma once

#include "config.h"
#include "counters.h"
#include "cursor.h"
#include "extensions.h"
#include "headers.h"
#include "icmp.h"
#include "ours.h"
#include "parse.h"
#include "tunnel.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>

#define QUOTED_TRANSPORT_BYTES 8 /* what RFC 792 promises of the quoted packet */

/* A reason why a packet cannot be forwarded, in place of a verdict. */
#define UNFIT(reason) (CONTINUE - (int)(reason))
#define UNFIT_REASON(verdict) ((enum drop_reason)(CONTINUE - (verdict)))

/* The next `size` bytes; NULL if the frame has fewer, or if the IP header's length leaves fewer. */
static __always_inline void *take_of(__u32 *left, struct cursor *cursor, const __u32 size)
{
	if (*left < size)
		return NULL;
	*left -= size;
	return cursor_take(cursor, size);
}

/* Whether the IP header's length cuts off the 8 bytes of a quoted transport header. */
static __always_inline bool cuts_quote(__u8 protocol, __u32 left)
{
	return (protocol == IPPROTO_TCP || protocol == IPPROTO_UDP) &&
	       left < QUOTED_TRANSPORT_BYTES;
}

/* The quoted packet went from the VIP to the client, so its flow is the reverse. The error returns
 * to that packet's source; an error to any other address is not about a balanced flow. */
static __always_inline int parse_quote_v4(const struct run *run, struct cursor *cursor,
					  struct packet *packet, __u32 left)
{
	struct iphdr *quoted = take_of(&left, cursor, sizeof(*quoted));

	if (!quoted)
		return UNFIT(DROP_QUOTE_TRUNCATED);
	if (quoted->ihl != sizeof(*quoted) / 4)
		return UNFIT(DROP_QUOTE_OPTIONS);
	if (quoted->saddr != *(const __be32 *)packet->flow.destination)
		return pass(run, STEP_ICMP_OTHER);
	if (cuts_quote(quoted->protocol, left))
		return UNFIT(DROP_QUOTE_TRUNCATED);
	packet->icmp = true;
	packet->flow.protocol = quoted->protocol;
	copy_v4(packet->flow.source, quoted->daddr);
	return CONTINUE;
}

static __always_inline int parse_quote_v6(const struct run *run, struct cursor *cursor,
					  struct packet *packet, __u32 left)
{
	struct ipv6hdr *quoted = take_of(&left, cursor, sizeof(*quoted));

	if (!quoted)
		return UNFIT(DROP_QUOTE_TRUNCATED);
	if (!same_address(&quoted->saddr, (struct in6_addr *)packet->flow.destination))
		return pass(run, STEP_ICMP_OTHER);
	if (cuts_quote(quoted->nexthdr, left))
		return UNFIT(DROP_QUOTE_TRUNCATED);
	packet->icmp = true;
	packet->flow.protocol = quoted->nexthdr;
	copy_v6(packet->flow.source, &quoted->daddr);
	return CONTINUE;
}

static __always_inline int parse_icmp_v4(const struct run *run, struct cursor *cursor,
					 struct iphdr *ip, struct packet *packet, __u32 left)
{
	struct icmp_header *icmp = take_of(&left, cursor, sizeof(*icmp));

	if (!icmp)
		return UNFIT(DROP_ICMP_TRUNCATED);
	switch (icmp->type) {
	case ICMPV4_ECHO_REQUEST:
		return echo_v4(run, ip, icmp);
	case ICMPV4_UNREACHABLE:
		if (icmp->code == ICMPV4_CODE_FRAGMENTATION_NEEDED) {
			run->cpu->counters.ptb_v4++;
			if (bpf_ntohs(icmp->v4.mtu) < IPV6_MIN_MTU)
				run->cpu->counters.ptb_v4_small++;
		}
		packet->icmp_ignored_by_quic = icmp->code == ICMPV4_CODE_HOST_UNREACHABLE ||
					       icmp->code == ICMPV4_CODE_PORT_UNREACHABLE;
		break;
	case ICMPV4_TIME_EXCEEDED:
	case ICMPV4_PARAMETER_PROBLEM:
		break;
	default:
		return pass(run, STEP_ICMP_OTHER);
	}
	return parse_quote_v4(run, cursor, packet, left);
}

static __always_inline int parse_icmp_v6(const struct run *run, struct cursor *cursor,
					 struct ipv6hdr *ip, struct packet *packet, __u32 left)
{
	struct icmp_header *icmp = take_of(&left, cursor, sizeof(*icmp));

	if (!icmp)
		return UNFIT(DROP_ICMP_TRUNCATED);
	switch (icmp->type) {
	case ICMPV6_ECHO_REQUEST:
		return echo_v6(run, ip, icmp);
	case ICMPV6_UNREACHABLE:
		packet->icmp_ignored_by_quic = icmp->code == ICMPV6_CODE_ADDRESS_UNREACHABLE ||
					       icmp->code == ICMPV6_CODE_PORT_UNREACHABLE;
		break;
	case ICMPV6_TOO_BIG:
		run->cpu->counters.ptb_v6++;
		if (bpf_ntohl(icmp->mtu_v6) < IPV6_MIN_MTU)
			run->cpu->counters.ptb_v6_small++;
		break;
	case ICMPV6_TIME_EXCEEDED:
	case ICMPV6_PARAMETER_PROBLEM:
		break;
	default:
		return pass(run, STEP_ICMP_OTHER);
	}
	return parse_quote_v6(run, cursor, packet, left);
}

/* Walks the extension headers behind the IP header. `left`: bytes of the packet behind them. */
static __always_inline int parse_extensions(const struct run *run, struct cursor *cursor,
					    struct packet *packet, __u32 *left)
{
	const int skipped = skip_extensions(run->ctx, sizeof(struct ethhdr));
	const __u32 bytes = extension_bytes(skipped);

	if (skipped < 0 || bytes > *left)
		return UNFIT(DROP_EXTENSION_HEADERS);
	*left -= bytes;
	packet->flow.protocol = skipped;
	if ((packet->flow.protocol == IPPROTO_TCP && *left < sizeof(struct tcphdr)) ||
	    (packet->flow.protocol == IPPROTO_UDP && *left < sizeof(struct udphdr)))
		return UNFIT(DROP_TRANSPORT_TRUNCATED);
	cursor->position += bytes;
	return CONTINUE;
}

/* Sets `left` to the bytes of the packet behind its headers. */
static __always_inline int parse_v4(const struct run *run, struct cursor *cursor,
				    struct packet *packet, __u32 *left)
{
	struct iphdr *ip = cursor_take(cursor, sizeof(*ip));
	__u8 first;

	if (!ip)
		return drop(run, DROP_IPV4_TRUNCATED);
	packet->l3_length = bpf_ntohs(ip->tot_len);
	packet->tos = ip->tos;
	packet->flow.family = FAMILY_V4;
	packet->flow.protocol = ip->protocol;
	copy_v4(packet->flow.source, ip->saddr);
	copy_v4(packet->flow.destination, ip->daddr);
	first = *(__u8 *)ip;
	if (first != IPV4_PLAIN)
		return first >> 4 == 4 ? UNFIT(DROP_IPV4_OPTIONS) : pass(run, STEP_NOT_IP);
	if (ip->frag_off & bpf_htons(IPV4_FRAGMENT_MASK))
		return UNFIT(DROP_IPV4_FRAGMENT);
	if (packet->l3_length + sizeof(struct ethhdr) > run->length)
		return UNFIT(DROP_LENGTH);
	*left = packet->l3_length - sizeof(*ip);
	if (ip->protocol != IPPROTO_ICMP)
		return CONTINUE;
	if (packet->l3_length < sizeof(*ip))
		return UNFIT(DROP_LENGTH);
	return parse_icmp_v4(run, cursor, ip, packet, *left);
}

static __always_inline int parse_v6(const struct run *run, struct cursor *cursor,
				    struct packet *packet, __u32 *left)
{
	struct ipv6hdr *ip = cursor_take(cursor, sizeof(*ip));
	__u8 first;

	if (!ip)
		return drop(run, DROP_IPV6_TRUNCATED);
	first = *(__u8 *)ip;
	packet->l3_length = bpf_ntohs(ip->payload_len);
	packet->tos = first << 4 | ip->flow_lbl[0] >> 4;
	packet->flow.family = FAMILY_V6;
	packet->flow.protocol = ip->nexthdr;
	copy_v6(packet->flow.source, &ip->saddr);
	copy_v6(packet->flow.destination, &ip->daddr);
	if (first >> 4 != 6)
		return pass(run, STEP_NOT_IP);
	if (packet->l3_length + sizeof(struct ethhdr) + sizeof(*ip) > run->length)
		return UNFIT(DROP_LENGTH);
	*left = packet->l3_length;
	if (has_extensions(ip)) {
		const int verdict = parse_extensions(run, cursor, packet, left);

		if (verdict != CONTINUE)
			return verdict;
	}
	if (packet->flow.protocol == IPV6_NEXT_FRAGMENT)
		return UNFIT(DROP_IPV6_FRAGMENT);
	if (packet->flow.protocol == IPPROTO_ICMPV6)
		return parse_icmp_v6(run, cursor, ip, packet, *left);
	return CONTINUE;
}

/* Ports are at the same place in TCP and UDP. Those of a quoted packet are reversed like its
 * addresses. `left`: bytes of the packet from here on, by its IP header. */
static __always_inline int parse_transport(const struct run *run, struct cursor *cursor,
					   struct packet *packet, enum family family, __u32 left)
{
	/* The part of l3_length that is the IP header. */
	const __u32 ip_header = family == FAMILY_V6 ? 0 : sizeof(struct iphdr);
	const __u8 protocol = packet->flow.protocol;
	struct udphdr *ports;

	if (!packet->icmp && packet->l3_length < ip_header)
		return UNFIT(DROP_LENGTH);
	if (rare_feature(run, FEATURE_INLINE_DECAP) && run->unwrapped && !packet->icmp &&
	    (protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6))
		return pass(run, STEP_TUNNEL_IN_TUNNEL);
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return pass(run, STEP_NOT_TRANSPORT);
	if (packet->icmp) {
		ports = cursor_take(cursor, QUOTED_TRANSPORT_BYTES);
		if (!ports)
			return UNFIT(DROP_QUOTE_TRUNCATED);
		packet->flow.source_port = ports->dest;
		packet->flow.destination_port = ports->source;
		return CONTINUE;
	}
	if (protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = cursor_take(cursor, sizeof(*tcp));

		if (!tcp || packet->l3_length < ip_header + sizeof(*tcp))
			return UNFIT(DROP_TRANSPORT_TRUNCATED);
		read_tcp(run, packet, tcp);
		ports = (struct udphdr *)tcp;
	} else {
		ports = cursor_take(cursor, sizeof(*ports));
		if (!ports || packet->l3_length < ip_header + sizeof(*ports))
			return UNFIT(DROP_TRANSPORT_TRUNCATED);
		if (gue_is_on(run) && !ports->check)
			packet->unchecked = true;
		if (rare_feature(run, FEATURE_INLINE_DECAP) && run->unwrapped &&
		    ports->dest == bpf_htons(gue_port) &&
		    is_in_gue(*cursor, bytes_in_udp(ports, left)))
			return pass(run, STEP_TUNNEL_IN_TUNNEL);
	}
	packet->flow.source_port = ports->source;
	packet->flow.destination_port = ports->dest;
	return CONTINUE;
}

/* Drops a packet that cannot be forwarded; passes it if it is for the host. */
static __always_inline int refuse(const struct run *run, const struct packet *packet,
				  enum drop_reason reason, enum family family)
{
	const __u64 *half = (const __u64 *)packet->flow.destination;
	const bool ours = is_vip_address(half[0], half[1], family);

	return ours ? drop(run, reason) : pass(run, STEP_NO_VIP);
}

static __always_inline int parse(const struct run *run, struct cursor *cursor,
				 struct packet *packet, enum family family)
{
	__u32 left = 0;
	int verdict = family == FAMILY_V6 ? parse_v6(run, cursor, packet, &left) :
					    parse_v4(run, cursor, packet, &left);

	if (verdict == CONTINUE)
		verdict = parse_transport(run, cursor, packet, family, left);
	return verdict < CONTINUE ? refuse(run, packet, UNFIT_REASON(verdict), family) : verdict;
}
