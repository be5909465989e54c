/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * From a frame to the flow it belongs to: IP header, ICMP with the header it quotes, transport
 * header. What cannot be forwarded ends here, with a verdict.
 */
#pragma once

#include "config.h"
#include "counters.h"
#include "cursor.h"
#include "headers.h"
#include "icmp.h"
#include "tunnel.h"

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>

#define IPV6_NEXT_FRAGMENT 44
#define QUOTED_TRANSPORT_BYTES 8 /* what RFC 792 promises of the quoted packet */
#define TCP_FLAGS_BYTE 13
#define TCP_SYN 0x02
#define TCP_RST 0x04

/* What the walk knows of a packet. */
struct packet {
	struct flow_key flow;
	__u16 l3_length; /* IPv4 total length; IPv6 payload length: as in the header */
	__u8 tos;
	bool icmp; /* an ICMP error: the flow is that of the packet it quotes */
	bool icmp_ignored_by_quic; /* one that a QUIC server takes no notice of */
	__u8 tcp_flags; /* TCP_SYN and others as in the header; 0 if not TCP or quoted */
	__u8 tcp_options; /* bytes of TCP options, by the header's length field */
	bool unchecked; /* UDP without a checksum; for GUE only */
};

/* Parsing continues. Any other value is the frame's verdict. */
#define CONTINUE (-1)

static __always_inline void copy_v4(__u8 *to, __be32 address)
{
	__builtin_memcpy(to, &address, sizeof(address));
}

static __always_inline void copy_v6(__u8 *to, const struct in6_addr *address)
{
	__builtin_memcpy(to, address, sizeof(*address));
}

/* The quoted packet went from the VIP to the client, so its flow is the reverse. */
static __always_inline int parse_quote_v4(const struct run *run, struct cursor *cursor,
					  struct packet *packet)
{
	struct iphdr *quoted = cursor_take(cursor, sizeof(*quoted));

	if (!quoted)
		return drop(run, DROP_QUOTE_TRUNCATED);
	if (quoted->ihl != sizeof(*quoted) / 4)
		return drop(run, DROP_QUOTE_OPTIONS);
	packet->icmp = true;
	packet->flow.protocol = quoted->protocol;
	copy_v4(packet->flow.source, quoted->daddr);
	copy_v4(packet->flow.destination, quoted->saddr);
	return CONTINUE;
}

static __always_inline int parse_quote_v6(const struct run *run, struct cursor *cursor,
					  struct packet *packet)
{
	struct ipv6hdr *quoted = cursor_take(cursor, sizeof(*quoted));

	if (!quoted)
		return drop(run, DROP_QUOTE_TRUNCATED);
	packet->icmp = true;
	packet->flow.protocol = quoted->nexthdr;
	copy_v6(packet->flow.source, &quoted->daddr);
	copy_v6(packet->flow.destination, &quoted->saddr);
	return CONTINUE;
}

static __always_inline int parse_icmp_v4(const struct run *run, struct cursor *cursor,
					 struct iphdr *ip, struct packet *packet)
{
	struct icmp_header *icmp = cursor_take(cursor, sizeof(*icmp));

	if (!icmp)
		return drop(run, DROP_ICMP_TRUNCATED);
	if (icmp->type == ICMPV4_ECHO_REQUEST)
		return echo_reply_v4(run, ip, icmp);
	if (icmp->type != ICMPV4_UNREACHABLE)
		return pass(run, STEP_ICMP_OTHER);
	/* The first program has counted it. */
	if (icmp->code == ICMPV4_CODE_FRAGMENTATION_NEEDED && !is(run, SPECIAL)) {
		run->cpu->counters.ptb_v4++;
		if (bpf_ntohs(icmp->v4.mtu) < IPV6_MIN_MTU)
			run->cpu->counters.ptb_v4_small++;
	}
	packet->icmp_ignored_by_quic = icmp->code == ICMPV4_CODE_HOST_UNREACHABLE ||
				       icmp->code == ICMPV4_CODE_PORT_UNREACHABLE;
	return parse_quote_v4(run, cursor, packet);
}

static __always_inline int parse_icmp_v6(const struct run *run, struct cursor *cursor,
					 struct ipv6hdr *ip, struct packet *packet)
{
	struct icmp_header *icmp = cursor_take(cursor, sizeof(*icmp));

	if (!icmp)
		return drop(run, DROP_ICMP_TRUNCATED);
	if (icmp->type == ICMPV6_ECHO_REQUEST)
		return echo_reply_v6(run, ip, icmp);
	if (icmp->type != ICMPV6_UNREACHABLE && icmp->type != ICMPV6_TOO_BIG)
		return pass(run, STEP_ICMP_OTHER);
	if (icmp->type == ICMPV6_TOO_BIG && !is(run, SPECIAL)) {
		run->cpu->counters.ptb_v6++;
		if (bpf_ntohl(icmp->mtu_v6) < IPV6_MIN_MTU)
			run->cpu->counters.ptb_v6_small++;
	}
	packet->icmp_ignored_by_quic = icmp->type == ICMPV6_UNREACHABLE &&
				       (icmp->code == ICMPV6_CODE_ADDRESS_UNREACHABLE ||
					icmp->code == ICMPV6_CODE_PORT_UNREACHABLE);
	return parse_quote_v6(run, cursor, packet);
}

static __always_inline int parse_v4(const struct run *run, struct cursor *cursor,
				    struct packet *packet)
{
	struct iphdr *ip = cursor_take(cursor, sizeof(*ip));

	if (!ip)
		return drop(run, DROP_IPV4_TRUNCATED);
	if (ip->ihl != sizeof(*ip) / 4)
		return drop(run, DROP_IPV4_OPTIONS);
	if (ip->frag_off & bpf_htons(IPV4_FRAGMENT_MASK))
		return drop(run, DROP_IPV4_FRAGMENT);
	packet->l3_length = bpf_ntohs(ip->tot_len);
	packet->tos = ip->tos;
	packet->flow.family = FAMILY_V4;
	packet->flow.protocol = ip->protocol;
	if (ip->protocol == IPPROTO_ICMP)
		return parse_icmp_v4(run, cursor, ip, packet);
	copy_v4(packet->flow.source, ip->saddr);
	copy_v4(packet->flow.destination, ip->daddr);
	return CONTINUE;
}

static __always_inline int parse_v6(const struct run *run, struct cursor *cursor,
				    struct packet *packet)
{
	struct ipv6hdr *ip = cursor_take(cursor, sizeof(*ip));

	if (!ip)
		return drop(run, DROP_IPV6_TRUNCATED);
	if (ip->nexthdr == IPV6_NEXT_FRAGMENT)
		return drop(run, DROP_IPV6_FRAGMENT);
	packet->l3_length = bpf_ntohs(ip->payload_len);
	packet->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	packet->flow.family = FAMILY_V6;
	packet->flow.protocol = ip->nexthdr;
	if (ip->nexthdr == IPPROTO_ICMPV6)
		return parse_icmp_v6(run, cursor, ip, packet);
	copy_v6(packet->flow.source, &ip->saddr);
	copy_v6(packet->flow.destination, &ip->daddr);
	return CONTINUE;
}

/* Ports stand at the same place in TCP and UDP. Those of a quoted packet are reversed like its
 * addresses. */
static __always_inline int parse_transport(const struct run *run, struct cursor *cursor,
					   struct packet *packet)
{
	const __u8 protocol = packet->flow.protocol;
	struct udphdr *ports;

	if (rare_feature(run, FEATURE_INLINE_DECAP) && run->unwrapped && !packet->icmp &&
	    (protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6))
		return pass(run, STEP_TUNNEL_IN_TUNNEL);
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return pass(run, STEP_NOT_TRANSPORT);
	if (packet->icmp) {
		ports = cursor_take(cursor, QUOTED_TRANSPORT_BYTES);
		if (!ports)
			return drop(run, DROP_QUOTE_TRUNCATED);
		packet->flow.source_port = ports->dest;
		packet->flow.destination_port = ports->source;
		return CONTINUE;
	}
	if (protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = cursor_take(cursor, sizeof(*tcp));

		if (!tcp)
			return drop(run, DROP_TRANSPORT_TRUNCATED);
		packet->tcp_flags = ((__u8 *)tcp)[TCP_FLAGS_BYTE];
		if (rare_feature(run, FEATURE_TCP_SERVER_ID) && tcp->doff > sizeof(*tcp) / 4)
			packet->tcp_options = tcp->doff * 4 - sizeof(*tcp);
		ports = (struct udphdr *)tcp;
	} else {
		ports = cursor_take(cursor, sizeof(*ports));
		if (!ports)
			return drop(run, DROP_TRANSPORT_TRUNCATED);
		if (gue_is_on(run))
			packet->unchecked = !ports->check;
		if (rare_feature(run, FEATURE_INLINE_DECAP) && run->unwrapped &&
		    ports->dest == bpf_htons(gue_port) && is_in_gue(*cursor))
			return pass(run, STEP_TUNNEL_IN_TUNNEL);
	}
	packet->flow.source_port = ports->source;
	packet->flow.destination_port = ports->dest;
	return CONTINUE;
}
