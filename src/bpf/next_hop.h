/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* Next hops of single reals, for balancers whose reals are not all behind one router; encap.h looks
 * them up for each packet. The library discovers them. */
#pragma once

#include "config.h"
#include "counters.h"
#include "maps.h"

/* The next hop of the real with this number; 0: not known. */
static __always_inline __u64 hop_of(__u32 number)
{
	__u64 *first = hops;

	/* As in real_at(). One load, so that address and port match. */
	barrier_var(first);
	return number <= max_reals ? *(volatile __u64 *)&first[number] : 0;
}

/* The port with this number; NULL if packets leave by it anyway, because they arrived there. */
static __always_inline const struct port *other_port(const struct run *run, __u32 number)
{
	const struct port *port = &ports[number & (PORTS - 1)];

	return number && port->interface != run->ctx->ingress_ifindex ? port : NULL;
}
