// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* The decapsulator as a tc program at ingress, for hosts without XDP. decap.h does the work. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#define CONTEXT struct __sk_buff
/* Lets other tc programs decide too. */
#define PASS TC_ACT_UNSPEC
#define DROP TC_ACT_SHOT
/* The kernel may hold a sum of the packet that the device computed. */
#define SUM_CHANGED(ctx, from, to) bpf_csum_update(ctx, (__u16)~(from) + (__u32)(__u16)(to))
#include "decap.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* All headers that the program reads: Ethernet, outer IPv6 and UDP, inner IPv6, TCP with
 * options. */
#define HEADERS (14 + 40 + 8 + 40 + 60)

/* BPF_F_ADJ_ROOM_DECAP_L3_IPV4 and _IPV6 of Linux 6.3, which older headers lack: the family of the
 * remaining packet. */
#define DECAP_TO_IPV4 (1 << 7)
#define DECAP_TO_IPV6 (1 << 8)

static __always_inline __u32 frame_length(const struct __sk_buff *skb)
{
	return skb->len;
}

static __always_inline bool strip(struct __sk_buff *skb, struct ethhdr *eth __attribute__((unused)),
				  const struct tunnel *tunnel)
{
	const __be16 type = inner_type(tunnel);
	/* Segments keep their length: the headers that go are not theirs. */
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;

	/* The kernel has merged GUE packets behind one outer header (ethtool's
	 * rx-udp-gro-forwarding). They cannot be split here, and the stack would lose them
	 * silently. */
	if (tunnel->gue && skb->gso_size)
		return false;
	if (tunnel->inner_v6 != tunnel->outer_v6)
		flags |= tunnel->inner_v6 ? DECAP_TO_IPV6 : DECAP_TO_IPV4;
	if (bpf_skb_adjust_room(skb, -(__s32)tunnel->outer_bytes, BPF_ADJ_ROOM_MAC, flags))
		return false;
	/* The kernel has moved the Ethernet header, which only needs a new type. */
	return tunnel->inner_v6 == tunnel->outer_v6 ||
	       !bpf_skb_store_bytes(skb, 2 * ETH_ALEN, &type, sizeof(type), 0);
}

SEC("tc")
int decap_tc(struct __sk_buff *skb)
{
	/* The code below reads headers in place, and they may be in several pieces. */
	if (skb->data_end - skb->data < HEADERS)
		bpf_skb_pull_data(skb, skb->len < HEADERS ? skb->len : HEADERS);
	return take_out(skb);
}
