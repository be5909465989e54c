/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Reads a packet that may be a probe: addresses, ports, and its sum. healthcheck.bpf.c calls it
 * first. A socket buffer may be in pieces, so this copies bytes out.
 */
#pragma once

#include "headers.h"
#include "inner_sum.h"
#include "shared.h"

#include <stdbool.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* A packet that may be a probe. */
struct probe {
	struct vip_key key; /* its destination */
	struct probe_match source;
	__u32 transport; /* where the header behind IP's begins */
	__u32 l3_length; /* of the inner packet, header included */
	__u32 sum; /* of the inner packet, for GUE's checksum */
	bool v6;
	bool ports; /* TCP or UDP with its ports */
	bool summed; /* `sum` is known */
	bool late; /* not a probe, but sent by the kernel for a probe's connection */
};

/* Reads bytes of the packet, in whichever piece they are. */
static __always_inline bool read(struct __sk_buff *skb, __u32 at, void *to, const __u32 size)
{
	return !bpf_skb_load_bytes(skb, at, to, size);
}

/* Whether a transport checksum covers all `length` bytes behind the IP header. It makes no
 * difference if it is still to be filled in. */
static __always_inline bool is_summed(struct __sk_buff *skb, const struct probe *probe, __u16 length)
{
	struct udphdr udp;

	/* The kernel cuts it into segments later, and gives each this checksum. */
	if (skb->gso_size)
		return false;
	switch (probe->key.protocol) {
	case IPPROTO_TCP:
		return true;
	case IPPROTO_UDP:
		return read(skb, probe->transport, &udp, sizeof(udp)) && udp.check &&
		       udp.len == bpf_htons(length);
	case IPPROTO_ICMP:
		return !probe->v6;
	case IPPROTO_ICMPV6:
		return probe->v6;
	}
	return false;
}

static __always_inline bool parse(struct __sk_buff *skb, struct probe *probe)
{
	__u32 transport = ETH_HLEN;
	__be16 ports[2] = {};

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (!read(skb, ETH_HLEN, &ip, sizeof(ip)))
			return false;
		transport += ip.ihl * 4;
		probe->key.family = FAMILY_V4;
		probe->key.protocol = ip.protocol;
		__builtin_memcpy(probe->key.address, &ip.daddr, sizeof(ip.daddr));
		__builtin_memcpy(probe->source.address, &ip.saddr, sizeof(ip.saddr));
		probe->ports = !(ip.frag_off & bpf_htons(0x1fff));
		probe->transport = transport;
		probe->summed = ip.ihl == sizeof(ip) / 4 &&
				!(ip.frag_off & bpf_htons(IPV4_FRAGMENT_MASK)) &&
				is_summed(skb, probe, bpf_ntohs(ip.tot_len) - sizeof(ip));
		probe->sum = inner_sum_v4(&ip, ip.protocol != IPPROTO_ICMP);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		if (!read(skb, ETH_HLEN, &ip, sizeof(ip)))
			return false;
		transport += sizeof(ip);
		probe->v6 = true;
		probe->key.family = FAMILY_V6;
		probe->key.protocol = ip.nexthdr;
		__builtin_memcpy(probe->key.address, &ip.daddr, sizeof(ip.daddr));
		__builtin_memcpy(probe->source.address, &ip.saddr, sizeof(ip.saddr));
		probe->ports = true;
		probe->transport = transport;
		probe->summed = is_summed(skb, probe, bpf_ntohs(ip.payload_len));
		probe->sum = inner_sum_v6(&ip);
	} else {
		return false;
	}
	probe->l3_length = skb->len - ETH_HLEN;
	probe->source.family = probe->key.family;
	probe->ports = probe->ports &&
		       (probe->key.protocol == IPPROTO_TCP || probe->key.protocol == IPPROTO_UDP) &&
		       read(skb, transport, ports, sizeof(ports));
	if (probe->ports) {
		probe->source.port = ports[0];
		probe->key.port = ports[1];
	}
	return true;
}
