/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* Stable routing of UDP: by the server id in a header at the start of the datagram. ids.h calls it
 * for VIPs with the flag udp-stable-routing. */
#pragma once

#include "counters.h"
#include "cursor.h"
#include "server_ids.h"

#define STABLE_UDP_TYPE 0x52

struct stable_udp {
	__u8 type;
	__u8 server_id[3]; /* big-endian */
	__u8 reserved[4];
};

/* The real that the datagram's id names. An id that is known without a real has just lost it: the
 * packet must be dropped. */
static __always_inline struct named stable_udp_route(const struct run *run, struct cursor payload)
{
	struct stable_udp_counters *count = &run->cpu->counters.stable_udp;
	const struct stable_udp *header = cursor_take(&payload, sizeof(*header));
	struct named named = {};
	__u32 id = 0;

	if (header && header->type == STABLE_UDP_TYPE)
		id = (__u32)header->server_id[0] << 16 | (__u32)header->server_id[1] << 8 |
		     header->server_id[2];
	else
		count->invalid_type++;
	if (id)
		named = server_id_find(id);
	if (named.real) {
		count->routed++;
	} else if (named.known) {
		count->real_gone++;
	} else {
		count->no_id++;
		if (id)
			count->unknown_id++;
	}
	return named;
}
