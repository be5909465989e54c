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
