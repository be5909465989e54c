/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* Helpers that only serve the verifier: they shape what compilers generate so that the verifier
 * accepts it, in reasonable time. All programs use them. */
#pragma once

#include <bpf/bpf_helpers.h>

/*
 * A function that the verifier checks once and not at each call. It assumes that such a function
 * returns any number. The compiler must assume so too: one that infers from the body that a result
 * is small drops the mask after the call, without which the verifier refuses the access (clang 22
 * does). It can infer nothing about a weak function, which another definition might replace.
 */
#define LOOKED_AT_ONCE __weak __noinline

/* 0, without the verifier knowing. The verifier checks paths separately if a number that it knows
 * differs between them; this makes them the same. */
static __always_inline __u64 unknown_zero(__u64 any)
{
	__u64 same = any;

	barrier_var(same);
	return same - any;
}

/* All ones if the highest bit is set, else 0. Without the barriers compilers turn either half into
 * a comparison and a branch: they see before the shift what the sign means, and after it that there
 * are two values. */
static __always_inline __u64 sign_mask(__u64 number)
{
	__s64 mask = number;

	barrier_var(mask);
	mask >>= 63;
	barrier_var(mask);
	return mask;
}

/* Keeps an assignment in its rare branch. Otherwise compilers may assign before they branch, for
 * every packet. */
#define stay_aside() asm volatile("" : : "i"(__COUNTER__))

/* Follows a call in each of two branches, to keep the compiler from merging them into one call with
 * a variable map: the verifier replaces a lookup by loads, or a direct call, only if it knows the
 * map. The number makes each place unique, so nothing merges the ends of both branches. */
#define stay_apart(result) asm volatile("" : "+r"(result) : "i"(__COUNTER__))
