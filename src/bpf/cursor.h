/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* A position in the packet that is checked against the packet's end each time it moves. Every
 * program reads headers through it, so no access goes past the end. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* The program's context: XDP's, unless the program defines another before. */
#ifndef CONTEXT
#define CONTEXT struct xdp_md
#endif

struct cursor {
	void *position;
	void *end;
};

static __always_inline struct cursor cursor_of(CONTEXT *ctx)
{
	return (struct cursor){
		.position = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
	};
}

/* The next `size` bytes, or NULL if the packet has fewer left. */
static __always_inline void *cursor_take(struct cursor *cursor, const __u32 size)
{
	void *taken = cursor->position;

	if (taken + size > cursor->end)
		return NULL;
	cursor->position = taken + size;
	/* Spares callers a branch for their NULL test where the bounds have just been checked. */
	__builtin_assume(taken != NULL);
	return taken;
}
