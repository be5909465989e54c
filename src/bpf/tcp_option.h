/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* Finds the server id in a TCP option: a server puts it into its packets, and its client echoes it.
 * The balancer routes by it, and the decapsulator counts it. */
#pragma once

#include "cursor.h"
#include "server_id_option.h"
#include "verifier.h"

#include <linux/types.h>

#define TCP_OPTION_END 0
#define TCP_OPTION_NOP 1
/* How many options are examined, padding included. */
#define TCP_OPTIONS_WALKED 15
/* No option starts later in a frame. */
#define TCP_OPTION_LAST 0x3fff
/* In a step's result: this is the server id. */
#define TCP_OPTION_FOUND (1 << 16)

/*
 * From the option at `at` in the frame to the next one. Returns its place, or 0 if there is none
 * before `end`, or the place of the server id. A global function, so the verifier checks it once,
 * and not on every path through fifteen options.
 */
LOOKED_AT_ONCE int tcp_option_step(CONTEXT *ctx, __u32 at, __u32 end)
{
	struct cursor cursor = cursor_of(ctx);
	__u8 *option;

	if (at >= end || at > TCP_OPTION_LAST)
		return 0;
	cursor.position += at;
	option = cursor_take(&cursor, 1);
	if (!option || *option == TCP_OPTION_END)
		return 0;
	if (*option == TCP_OPTION_NOP)
		return at + 1;
	if (!cursor_take(&cursor, 1) || option[1] < 2)
		return 0;
	if (*option != TCP_OPTION_SERVER_ID)
		return at + option[1];
	if (option[1] != TCP_OPTION_SERVER_ID_BYTES || at + TCP_OPTION_SERVER_ID_BYTES > end)
		return 0;
	return at | TCP_OPTION_FOUND;
}

/* The place in the frame of the server id among options from `at` to `end`; 0: none. Global for the
 * same reason. */
LOOKED_AT_ONCE int tcp_option_find(CONTEXT *ctx, __u32 at, __u32 end)
{
	for (int i = 0; i < TCP_OPTIONS_WALKED; i++) {
		at = tcp_option_step(ctx, at, end);
		if (!at)
			return 0;
		if (at & TCP_OPTION_FOUND)
			return at & TCP_OPTION_LAST;
	}
	return 0;
}

/* The server id in the options that start at the cursor; 0: none. */
static __always_inline __u32 tcp_option_id(CONTEXT *ctx, struct cursor options, __u32 bytes)
{
	const __u32 start = options.position - (void *)(long)ctx->data;
	const __u32 at = tcp_option_find(ctx, start, start + bytes);
	struct cursor cursor = cursor_of(ctx);
	__u32 *id;

	if (!at)
		return 0;
	cursor.position += (at & TCP_OPTION_LAST) + 2;
	id = cursor_take(&cursor, sizeof(*id));
	/* Little-endian on the wire. */
	return id ? *id : 0;
}
