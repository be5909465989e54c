/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Routes by QUIC connection ids (RFC 9000): servers choose ids that contain their server id, so
 * that a connection stays with its server when the client's address changes. ids.h and quic_walk.h
 * call it with the datagram's payload.
 */
#pragma once

#include "config.h"
#include "counters.h"
#include "cursor.h"
#include "events.h"
#include "icmp.h"
#include "server_ids.h"

#include <bpf/bpf_endian.h>

#define QUIC_LONG_HEADER 0x80
#define QUIC_TYPE_MASK 0x30
/* Types of long headers, by version: RFC 9000, section 17.2, and RFC 9369, section 3.2. */
#define QUIC_VERSION_1 0x00000001
#define QUIC_V1_INITIAL 0x00
#define QUIC_V1_ZERO_RTT 0x10
#define QUIC_VERSION_2 0x6b3343cf
#define QUIC_V2_INITIAL 0x10
#define QUIC_V2_ZERO_RTT 0x20
#define QUIC_ID_BYTES 8

/* A long header: the first byte, the version, the length of the destination's id. The id follows.
 * (RFC 8999, section 5.1) */
struct quic_long {
	__u8 first;
	__be32 version;
	__u8 id_length;
} __attribute__((packed));

struct quic_id {
	__u32 server; /* 0: none */
	__u8 version;
};

/* The server id in the connection id, whose version is in the two top bits. */
static __always_inline struct quic_id quic_id_of(const __u8 *id)
{
	const __u64 bytes = bpf_be64_to_cpu(*(const __u64 *)id);
	struct quic_id found = { .version = bytes >> 62 };

	switch (found.version) {
	case 1:
		found.server = bytes >> 46 & 0xffff;
		break;
	case 2:
		found.server = bytes >> 32 & 0xffffff;
		break;
	case 3:
		found.server = bytes >> 24;
		break;
	}
	return found;
}

/* The destination's connection id in the datagram; NULL if none can route it. */
static __always_inline const __u8 *quic_connection_id(const struct run *run, struct cursor payload,
						      __u32 vip_number, bool *initial)
{
	const struct cursor start = payload;
	const __u8 *first = cursor_take(&payload, 1);
	const struct quic_long *header;
	struct vip_counters *of_vip;
	bool of_client;
	__u8 type;

	if (!first)
		return NULL;
	if (!(*first & QUIC_LONG_HEADER))
		return cursor_take(&payload, QUIC_ID_BYTES);
	payload = start;
	header = cursor_take(&payload, sizeof(*header) + QUIC_ID_BYTES);
	if (!header)
		return NULL;
	type = header->first & QUIC_TYPE_MASK;
	if (header->version == bpf_htonl(QUIC_VERSION_1))
		of_client = type == QUIC_V1_INITIAL || type == QUIC_V1_ZERO_RTT;
	else if (header->version == bpf_htonl(QUIC_VERSION_2))
		of_client = type == QUIC_V2_INITIAL || type == QUIC_V2_ZERO_RTT;
	else
		/* An unknown version: its types and the owner of its id are unknown too. */
		return NULL;
	if (of_client) {
		run->cpu->counters.quic.initial++;
		of_vip = counters_of_vip(vip_number);
		if (of_vip)
			of_vip->server_id_new++;
		*initial = true;
		return NULL;
	}
	return header->id_length < QUIC_ID_BYTES ? NULL : (const __u8 *)(header + 1);
}

/* The real that the datagram's connection id names, by `find`. An id that is known without a real
 * has just lost it: the packet must be dropped. */
static __always_inline struct named quic_route(const struct run *run, struct cursor payload,
					       __u32 vip_number,
					       struct named (*const find)(__u32 id))
{
	struct quic_counters *count = &run->cpu->counters.quic;
	bool initial = false;
	const __u8 *bytes = quic_connection_id(run, payload, vip_number, &initial);
	struct named named = {};
	struct quic_id id = {};

	if (initial)
		return named;
	if (bytes) {
		id = quic_id_of(bytes);
		if (!id.version)
			count->versions[0]++;
	}
	if (!id.server) {
		count->no_id++;
		return named;
	}
	count->versions[id.version & 3]++;
	named = find(id.server);
	if (!named.known) {
		count->unknown_id++;
		count->unknown_id_sample = id.server;
		count->no_id++;
	} else if (!named.real) {
		count->real_gone++;
		tell(run, EVENT_QUIC_REAL_GONE);
	} else {
		count->routed++;
	}
	return named;
}

/* An ICMP error about a QUIC flow is not certain to quote a whole connection id, so it is only
 * counted. */
static __always_inline void quic_count_icmp(const struct run *run, bool ignored)
{
	run->cpu->counters.quic.icmp++;
	if (ignored)
		run->cpu->counters.quic.icmp_ignored++;
}
