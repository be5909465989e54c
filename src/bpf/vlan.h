/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Frames with one or two VLAN tags (IEEE 802.1Q and 802.1ad). The walk removes the tags, the
 * program for rare frames walks the rest, and the frame gets its tags back when it leaves. So
 * untagged frames pay nothing, and no other code knows about tags.
 */
#pragma once

#include "config.h"
#include "counters.h"
#include "cursor.h"
#include "headers.h"
#include "maps.h"
#include "ours.h"
#include "rare.h"

#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>

/* What follows a tag's identifier, which is where the EtherType would be. */
struct vlan_header {
	__be16 tag;
	__be16 type; /* of what follows */
};

/* The VLAN's number in a tag; the bits above it are its priority. */
#define VLAN_NUMBER 0x0fff

static __always_inline bool is_tag(__be16 type)
{
	return type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD);
}

static __always_inline __u32 tag_word(__be16 identifier, const struct vlan_header *header)
{
	return identifier | (__u32)header->tag << 16;
}

/* Removes the tags and continues in the program for rare frames. Returns only if the walk ends
 * here, with the verdict; the frame is untouched unless it is dropped. */
static __always_inline int walk_untagged(const struct run *run, struct cursor cursor, __be16 type,
					 __u64 arrived)
{
	struct rare_frame *rare = &run->cpu->scratch.rare;
	const __u64 destination = mac_load(run->eth->h_dest);
	const __u64 source = mac_load(run->eth->h_source);
	struct vlan_header *header;
	struct ethhdr *eth;
	__u32 bytes;

	if (!is_tag(type))
		return pass(run, STEP_NOT_IP);
	if (is_for_others(run))
		return pass(run, STEP_OTHER_STATION);
	header = cursor_take(&cursor, sizeof(*header));
	if (!header)
		return drop(run, DROP_FRAME_TRUNCATED);
	rare->tags[0] = tag_word(type, header);
	bytes = sizeof(*header);
	type = header->type;
	if (is_tag(type)) {
		header = cursor_take(&cursor, sizeof(*header));
		if (!header)
			return drop(run, DROP_FRAME_TRUNCATED);
		rare->tags[1] = tag_word(type, header);
		bytes = 2 * sizeof(*header);
		type = header->type;
	}
	if (type != bpf_htons(ETH_P_IP) && type != bpf_htons(ETH_P_IPV6))
		return pass(run, STEP_NOT_IP);
	if (bpf_xdp_adjust_head(run->ctx, bytes))
		return drop(run, DROP_VLAN_FAILED);
	cursor = cursor_of(run->ctx);
	eth = cursor_take(&cursor, sizeof(*eth));
	if (!eth)
		return drop(run, DROP_VLAN_FAILED);
	/* The EtherType is already in place. */
	mac_store(eth->h_dest, destination);
	mac_store(eth->h_source, source);
	return walk_rarely(run, arrived, bytes);
}

/* Remembers the VLAN of a frame that leaves. The bits above its number count such frames. */
static __always_inline void mark_vlan(const struct run *run, __be16 tag)
{
	__be16 *mark = &run->cpu->scratch.query.sent_tag;
	const __u16 vlan = bpf_ntohs(tag) & VLAN_NUMBER;
	const __u16 count = bpf_ntohs(*mark) + VLAN_NUMBER + 1;

	*mark = bpf_htons((count & ~VLAN_NUMBER) | vlan);
}

/* Puts the tags back, unless the frame goes nowhere. Returns the verdict, which changes if that
 * fails. */
static __always_inline int tag_again(const struct run *run, int verdict)
{
	const struct rare_frame *rare = &run->cpu->scratch.rare;
	struct cursor cursor = cursor_of(run->ctx);
	const bool two = rare->tag_bytes == 2 * sizeof(struct vlan_header);
	__u64 destination, source;
	struct ethhdr *eth;
	__u32 *word;

	if (verdict == XDP_DROP || verdict == XDP_ABORTED)
		return verdict;
	eth = cursor_take(&cursor, sizeof(*eth));
	if (!eth)
		return drop(run, DROP_VLAN_FAILED);
	destination = mac_load(eth->h_dest);
	source = mac_load(eth->h_source);
	if (bpf_xdp_adjust_head(run->ctx, two ? -8 : -4))
		return drop(run, DROP_VLAN_FAILED);
	cursor = cursor_of(run->ctx);
	/* There are always bytes for two tags: an IP header is longer than one. */
	eth = cursor_take(&cursor, sizeof(*eth) + 2 * sizeof(struct vlan_header));
	if (!eth)
		return drop(run, DROP_VLAN_FAILED);
	mac_store(eth->h_dest, destination);
	mac_store(eth->h_source, source);
	word = (void *)eth + 2 * ETH_ALEN;
	word[0] = rare->tags[0];
	if (two)
		word[1] = rare->tags[1];
	/* Frames for the host may have any VLAN, and a simulated frame goes nowhere. */
	if (verdict != XDP_PASS && !is(run, EXPLAINS))
		mark_vlan(run, rare->tags[0] >> 16);
	return verdict;
}
