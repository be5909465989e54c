/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* The end of the walk (step 9): counts the packet for VIP and real, and sends it. katran.bpf.c,
 * ids.h and quic_walk.h call it with the real that they have chosen. */
#pragma once

#include "config.h"
#include "counters.h"
#include "details.h"
#include "encap.h"
#include "lookup.h"
#include "maps.h"
#include "parse.h"
#include "route.h"

#include <linux/bpf.h>

/* Sends the packet to the chosen real, or hands it to the host if that is the real. */
static __always_inline int send_out(const struct run *run, const struct packet *packet,
				    const struct choice *choice, const struct real *real,
				    enum family family)
{
	/* Detailed counters read from memory: a number whose address a lookup took, or the record
	 * of a packet that was handed over. So other packets lose no registers to them. */
	const struct id_query *query = &run->cpu->scratch.query;
	__u32 vip_number = choice->vip_number;
	struct vip_counters *of_vip;
	struct real_counters *of_real;

	if (is(run, EXPLAINS))
		run->explanation->real = choice->number;
	of_vip = is(run, SPECIAL) ? counters_of_vip(choice->vip_number) :
				    bpf_map_lookup_elem(&vip_counters, &vip_number);
	if (of_vip)
		count_frame(&of_vip->forwarded, packet->l3_length);
	of_real = counters_of_real(choice->number);
	if (of_real)
		count_frame(&of_real->forwarded, packet->l3_length);
	if (unlikely(choice->vip.flags & (VIP_LOCAL | VIP_IN_DETAIL))) {
		if (choice->vip.flags & VIP_IN_DETAIL)
			count_in_detail(is(run, SPECIAL) ? query->vip_number : vip_number, real->id,
					packet->l3_length,
					(is(run, SPECIAL) ? query->tcp_flags : packet->tcp_flags) &
						TCP_SYN);
		if ((choice->vip.flags & VIP_LOCAL) && feature(FEATURE_LOCAL_DELIVERY) &&
		    (real->flags & REAL_LOCAL)) {
			run->cpu->counters.local++;
			return XDP_PASS;
		}
	}
	return encap_and_send(run, packet, real, choice->number, family);
}
