// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/* The decapsulator as a tc program at ingress, for hosts where XDP is not to be had. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>

#define CONTEXT struct __sk_buff
/* What other programs there are have their say, too. */
#define PASS TC_ACT_UNSPEC
#define DROP TC_ACT_SHOT
/* The kernel may know what the packet adds up to, if the device has told it. */
#define SUM_CHANGED(ctx, from, to) bpf_csum_update(ctx, (__u16)~(from) + (__u32)(__u16)(to))
#include "decap.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* All headers that are looked at: Ethernet, outer IPv6 and UDP, inner IPv6, TCP with options. */
#define HEADERS (14 + 40 + 8 + 40 + 60)

/* BPF_F_ADJ_ROOM_DECAP_L3_IPV4 and _IPV6 of Linux 6.3, which older headers have not: what is left is
 * of this family. */
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
	/* Segments stay as long as they were: it is not their headers that go. */
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;

	/* GUE packets that the kernel has merged behind one outer header (ethtool's
	 * rx-udp-gro-forwarding) cannot be taken apart here, and the stack would lose them silently. */
	if (tunnel->gue && skb->gso_size)
		return false;
	if (tunnel->inner_v6 != tunnel->outer_v6)
		flags |= tunnel->inner_v6 ? DECAP_TO_IPV6 : DECAP_TO_IPV4;
	if (bpf_skb_adjust_room(skb, -(__s32)tunnel->outer_bytes, BPF_ADJ_ROOM_MAC, flags))
		return false;
	/* The Ethernet header has been moved, and is otherwise as it was. */
	return tunnel->inner_v6 == tunnel->outer_v6 ||
	       !bpf_skb_store_bytes(skb, 2 * ETH_ALEN, &type, sizeof(type), 0);
}

SEC("tc")
int decap_tc(struct __sk_buff *skb)
{
	/* What follows reads headers where they lie, and that may be in several pieces. */
	if (skb->data_end - skb->data < HEADERS)
		bpf_skb_pull_data(skb, skb->len < HEADERS ? skb->len : HEADERS);
	return take_out(skb);
}
