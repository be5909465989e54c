/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* Lists of prefixes that addresses are checked against, for both families: the key begins with the
 * family. Programs that end tunnels use them for allowed sources and destinations. */
#pragma once

#include "shared.h"

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/in6.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

struct prefixes {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct address_prefix);
	__type(value, __u32);
};

/* Whether one of the prefixes covers an address. */
static __always_inline bool is_covered(struct prefixes *by, const void *address, enum family family)
{
	struct address_prefix key = {
		.prefix_length = 32 + (family == FAMILY_V6 ? 128 : 32),
		.family = family,
	};

	if (family == FAMILY_V6)
		__builtin_memcpy(key.address, address, sizeof(struct in6_addr));
	else
		__builtin_memcpy(key.address, address, sizeof(__be32));
	return bpf_map_lookup_elem(by, &key);
}
