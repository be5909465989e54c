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
