/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* What the source says for the verifier's sake alone. */
#pragma once

#include <bpf/bpf_helpers.h>

/*
 * A function that the verifier looks at once and not at each call. It takes such a function to return any
 * number. The compiler must do so, too: one that concludes from the function's body that a result is small
 * drops the mask after the call, without which the verifier refuses the access (clang 22 does). It cannot
 * conclude anything about a weak function, which another definition might replace.
 */
#define LOOKED_AT_ONCE __weak __noinline

/* 0, of which the verifier does not know that it is. Ways through the walk that differ in nothing but a
 * number which each of them knows are looked at one by one; those that know no number are one. */
static __always_inline __u64 unknown_zero(__u64 any)
{
	__u64 same = any;

	barrier_var(same);
	return same - any;
}

/* All ones if the highest bit is set, else 0. Without the barriers compilers take either half for a comparison, and
 * make branches of it: they see before the shift what the sign says, and after it that there are two values. */
static __always_inline __u64 sign_mask(__u64 number)
{
	__s64 mask = number;

	barrier_var(mask);
	mask >>= 63;
	barrier_var(mask);
	return mask;
}

/* Keeps what a rare branch sets in that branch: compilers set a number before they branch if nothing else is done there. */
#define stay_aside() asm volatile("" : : "i"(__COUNTER__))

/* Follows a call in each of two branches, so that the compiler does not make one call of both, with a map that it
 * chooses: the verifier puts loads, or a direct call, in the place of a lookup only if it knows the map. The number
 * makes each place another, so that nothing takes the ends of both branches for the same. */
#define stay_apart(result) asm volatile("" : "+r"(result) : "i"(__COUNTER__))
