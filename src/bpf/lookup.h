/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* Finds the VIP of a flow, and a real by its number; computes the flow hash that picks a ring's
 * slot. The walk calls it once a packet is parsed. */
#pragma once

#include "config.h"
#include "counters.h"
#include "maps.h"
#include "parse.h"
#include "verifier.h"

#include <linux/in.h>

/* The VIP with this number; NULL if the number is out of range. */
static __always_inline struct vip_info *vip_at(__u64 number)
{
	struct vip_info *infos = vip_infos;

	/* Otherwise the compiler assumes the section's declared length. */
	barrier_var(infos);
	__builtin_assume(infos != NULL);
	if (number >= max_vips)
		return NULL;
	/* Keeps the access after the comparison. */
	barrier_var(number);
	return &infos[number];
}

/* The same for a number that is also used later: see real_at(). */
static __always_inline struct vip_info *kept_vip_at(__u64 number)
{
	barrier_var(number);
	return vip_at(number);
}

/* A multilinear hash, mixed (see flow_sets.h), so that consecutive addresses and ports spread like
 * others. */
static __always_inline __u64 vip_hash(const __u32 *words, enum family family)
{
	__u64 sum = vip_keys[VIP_WORDS];

#pragma unroll
	for (int i = 0; i < VIP_WORDS; i++)
		if (family == FAMILY_V6 || i == 0 || i == 4)
			sum += vip_keys[i] * words[i];
	return (sum ^ sum >> 32) * HASH_MIX >> vip_shift;
}

static __always_inline bool same_vip(const struct vip_key *a, const struct vip_key *b,
				     enum family family)
{
	const __u32 *one = (const __u32 *)a;
	const __u32 *other = (const __u32 *)b;

	if (one[0] != other[0] || one[4] != other[4])
		return false;
	return family == FAMILY_V4 || (one[1] == other[1] && one[2] == other[2] && one[3] == other[3]);
}

/* The VIP with exactly this key, and its number; NULL: there is none. */
static __always_inline struct vip_info *find_exact_vip(const struct vip_key *key,
						       enum family family, __u32 *number)
{
	__u16 *heads = vip_heads;
	struct vip_info *info;
	__u32 next;

	barrier_var(heads);
	next = heads[vip_hash((const __u32 *)key, family)];
	if (!next)
		return NULL;
	*number = next - 1;
	info = vip_at(*number);
	/* Most chains have one element. */
	if (likely(info && same_vip(&info->key, key, family)))
		return info;
	for (int i = 1; i < VIP_CHAIN && info; i++) {
		next = info->next;
		if (!next)
			return NULL;
		*number = next - 1;
		info = vip_at(*number);
		if (info && same_vip(&info->key, key, family))
			return info;
	}
	return NULL;
}

/* The number of the prefix VIP that covers `key` best. */
static __always_inline bool find_prefix_vip(const struct vip_key *key, __u32 *number)
{
	struct vip_prefix_key prefix = {
		.prefix_length = 32 + (key->family == FAMILY_V4 ? 32 : 128),
		.port = key->port,
		.protocol = key->protocol,
		.family = key->family,
	};
	__u32 *found;

	__builtin_memcpy(prefix.address, key->address, sizeof(prefix.address));
	found = bpf_map_lookup_elem(&prefix_vips, &prefix);
	if (found)
		*number = *found;
	return found;
}

/* The VIP without an exact match: by prefix, then by any port, then by both. */
static __always_inline struct vip_info *find_inexact_vip(struct vip_key *key, enum family family,
							 __u32 *number)
{
	struct vip_info *info;

	if (live.prefix_vips && find_prefix_vip(key, number))
		return kept_vip_at(*number);
	key->port = 0;
	if (live.any_port_vips) {
		info = find_exact_vip(key, family, number);
		if (info)
			return info;
	}
	if (live.any_port_prefix_vips && find_prefix_vip(key, number))
		return kept_vip_at(*number);
	return NULL;
}

/* Makes a packet's source port not count. TCP flows keep it in their key, because tables
 * distinguish connections. */
static __always_inline void ignore_source(struct packet *packet, __u64 any)
{
	packet->hash_ports &= 0xffff0000;
	if (packet->flow.protocol == IPPROTO_UDP)
		packet->flow.source_port = unknown_zero(any);
}

static __always_inline void ignore_destination(struct packet *packet, __u64 any)
{
	packet->hash_ports &= 0xffff;
	if (packet->flow.protocol == IPPROTO_UDP)
		packet->flow.destination_port = unknown_zero(any);
}

/* The VIP of the packet's destination; false if there is none. If anything but address and port
 * matched, the destination port does not count, unless the VIP keeps both ports or hashes by it.
 * Where a port does not count, the ring treats all of a client's flows as one, and so do the tables
 * for UDP: that keeps them together. Tables still tell TCP connections apart, because those come
 * and go. */
static __always_inline bool find_vip(struct packet *packet,
				     enum family family, __u32 *number, struct vip *vip)
{
	struct vip_key key = {
		.port = packet->flow.destination_port,
		.protocol = packet->flow.protocol,
		.family = packet->flow.family,
	};
	struct vip_info *info;
	__u64 word;

	__builtin_memcpy(key.address, packet->flow.destination, sizeof(key.address));
	packet->hash_ports = packet->flow.source_port | (__u32)packet->flow.destination_port << 16;
	info = find_exact_vip(&key, family, number);
	if (likely(info)) {
		/* One load, so that flags and ring match. */
		word = *(volatile __u64 *)&info->vip;
	} else {
		info = find_inexact_vip(&key, family, number);
		if (!info)
			return false;
		word = *(volatile __u64 *)&info->vip;
		if (!(word & (VIP_DPORT_HASH | VIP_SRC_DST_PORT)))
			ignore_destination(packet, word);
	}
	vip->flags = word;
	vip->ring = word >> 32;
	if (vip->flags & VIP_NO_SRC_PORT)
		ignore_source(packet, word);
	return true;
}

/* The same as functions. The verifier checks each once, and after a call knows nothing about packet
 * and VIP, so it checks the code that follows once and not for each path that leads there. */
LOOKED_AT_ONCE int find_vip_v4(struct packet *packet, __u32 *number, struct vip *vip)
{
	return packet && number && vip && find_vip(packet, FAMILY_V4, number, vip);
}

LOOKED_AT_ONCE int find_vip_v6(struct packet *packet, __u32 *number, struct vip *vip)
{
	return packet && number && vip && find_vip(packet, FAMILY_V6, number, vip);
}

static __always_inline bool find_vip_once(struct packet *packet, enum family family, __u32 *number,
					  struct vip *vip)
{
	return family == FAMILY_V6 ? find_vip_v6(packet, number, vip) : find_vip_v4(packet, number, vip);
}

/* The real with this number; NULL if the number is out of range. The verifier must see the
 * comparison and then the access on one register: in Linux 6.1 it forgets the bounds of a spilled
 * register. */
static __always_inline struct real *real_at(__u64 number)
{
	struct real *first = reals;

	barrier_var(first);
	barrier_var(number);
	if (number > max_reals)
		return NULL;
	barrier_var(number);
	return &first[number];
}

/* The same, and NULL for 0: one comparison checks both ends of the range. */
static __always_inline struct real *real_numbered(__u64 number)
{
	struct real *first = reals + 1;
	struct real *real;

	/* As in real_at(). */
	barrier_var(first);
	number--;
	barrier_var(number);
	if (number >= max_reals)
		return NULL;
	barrier_var(number);
	real = &first[number];
	__builtin_assume(real != NULL);
	return real;
}

/* Whether a real has this id. The verifier checks this once. If it were inlined into a large
 * function, the compiler would spill the number, and the verifier of Linux 6.1 forgets the bounds
 * of a spilled register. */
LOOKED_AT_ONCE int is_real(__u32 id)
{
	const struct real *real = real_at(id & REAL_NUMBER_MASK);

	return real && real->id == id;
}

static __always_inline __u32 rotate(__u32 word, int bits)
{
	return word << bits | word >> (32 - bits);
}

/* Bob Jenkins' lookup3 (2006), as hashword() with `initval` added to every start value. */
struct lookup3 {
	__u32 a, b, c;
};

static __always_inline struct lookup3 lookup3_start(__u32 bytes, __u32 initval)
{
	const __u32 start = 0xdeadbeef + bytes + initval;

	return (struct lookup3){ start, start, start };
}

static __always_inline void lookup3_mix(struct lookup3 *s)
{
	s->a -= s->c, s->a ^= rotate(s->c, 4), s->c += s->b;
	s->b -= s->a, s->b ^= rotate(s->a, 6), s->a += s->c;
	s->c -= s->b, s->c ^= rotate(s->b, 8), s->b += s->a;
	s->a -= s->c, s->a ^= rotate(s->c, 16), s->c += s->b;
	s->b -= s->a, s->b ^= rotate(s->a, 19), s->a += s->c;
	s->c -= s->b, s->c ^= rotate(s->b, 4), s->b += s->a;
}

static __always_inline __u32 lookup3_finish(struct lookup3 *s)
{
	s->c ^= s->b, s->c -= rotate(s->b, 14);
	s->a ^= s->c, s->a -= rotate(s->c, 11);
	s->b ^= s->a, s->b -= rotate(s->a, 25);
	s->c ^= s->b, s->c -= rotate(s->b, 16);
	s->a ^= s->c, s->a -= rotate(s->c, 4);
	s->b ^= s->a, s->b -= rotate(s->a, 14);
	s->c ^= s->b, s->c -= rotate(s->b, 24);
	return s->c;
}

static __always_inline __u32 hash_two(__u32 first, __u32 second)
{
	struct lookup3 state = lookup3_start(8, hash_seed);

	state.a += first;
	state.b += second;
	return lookup3_finish(&state);
}

/* The specified flow hash, over the source address and both ports, the source port in the lower
 * half. */
static __always_inline __u32 hash_flow(const __u32 source[4], __u32 ports, enum family family)
{
	struct lookup3 state;

	if (family == FAMILY_V4)
		return hash_two(source[0], ports);
	state = lookup3_start(16, hash_seed_v6);
	state.a += source[0];
	state.b += source[1];
	state.c += source[2];
	lookup3_mix(&state);
	state.a += source[3];
	return hash_two(lookup3_finish(&state), ports);
}

/* The words of ring `ring`; NULL: there is none. */
static __always_inline __u16 *ring_at(__u32 ring)
{
	const __u32 chunk_number = ring / RINGS_PER_CHUNK;
	const __u32 element = ring % RINGS_PER_CHUNK;
	void *chunk = bpf_map_lookup_elem(&rings, &chunk_number);

	return chunk ? bpf_map_lookup_elem(chunk, &element) : NULL;
}

static __always_inline struct vip_counters *counters_of_vip(__u32 number)
{
	return bpf_map_lookup_elem(&vip_counters, &number);
}

static __always_inline struct real_counters *counters_of_real(__u32 number)
{
	return bpf_map_lookup_elem(&real_counters, &number);
}
