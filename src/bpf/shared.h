/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Every type that both the programs and the Rust side see, and nothing else. The Rust side gets
 * them from the object's BTF, so there is no second definition to keep in step; the sizes are
 * asserted here and there.
 */
#pragma once

#include <linux/types.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the flow hash and the outer source address are written for little-endian machines"
#endif

#define ADDRESS_BYTES 16

/* A large odd number without a pattern, to mix hashes: 2^64 divided by the golden ratio. */
#define HASH_MIX 0x9e3779b97f4a7c15ull

/* Address families, in keys. */
#define FAMILY_V4 4
#define FAMILY_V6 6

/* VIP flags that the program acts on; the bits of the library's VipFlags. */
enum vip_flag {
	VIP_NO_SRC_PORT = 1 << 0,
	VIP_LRU_BYPASS = 1 << 1,
	VIP_DPORT_HASH = 1 << 3,
	VIP_LOCAL = 1 << 5,
	VIP_SRC_DST_PORT = 1 << 7,
	/* Set by the library while a VIP has no reals at all: its flows' entries are not looked at. */
	VIP_NO_REALS = 1 << 30,
};

enum real_flag {
	REAL_IPV6 = 1 << 0,
	REAL_LOCAL = 1 << 1,
};

/* Load-time constants; the bits of the library's Features. */
enum feature {
	FEATURE_ICMP_TOO_BIG = 1 << 3,
	FEATURE_LOCAL_DELIVERY = 1 << 7,
};

enum ring_constant {
	/* Rings in one inner map of `rings`; ring r is element r % RINGS_PER_CHUNK of chunk
	 * r / RINGS_PER_CHUNK. */
	RINGS_PER_CHUNK = 8,
	/* The ring of a VIP that has none: no real takes new flows. */
	RING_NONE = 0x7fffffff,
};

enum vip_constant {
	/* VIPs whose keys may have the same hash. */
	VIP_CHAIN = 16,
	/* 32-bit words of a vip_key. */
	VIP_WORDS = 5,
};

enum flow_table_constant {
	/* Kinds of flow tables. */
	FLOW_TABLE_SETS = 0,
	FLOW_TABLE_LRU = 1,
	/* Entries of a set. */
	FLOW_WAYS = 8,
	/* 32-bit words of a flow_key. */
	FLOW_WORDS = 10,
	/* Sets of the table that CPUs without one of their own share. */
	FALLBACK_SETS = 1024,
	/* Sets that a table has in use from the start. */
	FIRST_SETS = 256,
	REAL_NUMBER_BITS = 16,
	REAL_NUMBER_MASK = (1 << REAL_NUMBER_BITS) - 1,
};

/* What identifies a VIP. IPv4 addresses take the first four bytes of 16. */
struct vip_key {
	__u8 address[ADDRESS_BYTES];
	__be16 port;
	__u8 protocol;
	__u8 family;
};
_Static_assert(sizeof(struct vip_key) == VIP_WORDS * 4, "vip_key is hashed and compared by words");

/* The key of `prefix_vips`: all but the address's tail has to match. */
struct vip_prefix_key {
	__u32 prefix_length; /* bits after this field: 32 and the address prefix's length */
	__be16 port;
	__u8 protocol;
	__u8 family;
	__u8 address[ADDRESS_BYTES];
};
_Static_assert(sizeof(struct vip_prefix_key) == 24, "vip_prefix_key is copied byte by byte");

/* What packets need to know of a VIP. Both halves are read and written as one word, so that a
 * packet sees flags and ring of the same moment. */
struct vip {
	__u32 flags;
	__u32 ring;
} __attribute__((aligned(8)));
_Static_assert(sizeof(struct vip) == 8, "a vip is switched by one store");

/* A VIP as packets find it. Key and `next` are written before the number can be found, and the
 * key stays until no packet can have the number in its hands. */
struct vip_info {
	struct vip_key key;
	__u32 next; /* in the chain of its hash: number + 1; 0: the last */
	struct vip vip;
};
_Static_assert(sizeof(struct vip_info) == 32, "a cache line holds two VIPs");

struct real {
	__u8 address[ADDRESS_BYTES];
	/* The number, and above it which of the number's owners this is: no two reals ever have
	 * the same. 0: nobody has this number. Written last when a number is given out, first when
	 * it is taken back. */
	__u32 id;
	__u8 flags;
	__u8 reserved[3];
};
_Static_assert(sizeof(struct real) == 24, "a real is an array element");

struct flow_key {
	__u8 source[ADDRESS_BYTES];
	__u8 destination[ADDRESS_BYTES];
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 family;
	__u8 reserved[2];
};
_Static_assert(sizeof(struct flow_key) == FLOW_WORDS * 4, "flow_key is hashed as a whole");

/* What a flow table remembers of a flow; the LRU hash's value. */
struct flow_mark {
	__u32 id; /* of the real */
	__u32 used; /* ticks; the LRU hash keeps it for UDP only */
};
_Static_assert(sizeof(struct flow_mark) == 8, "flow_mark is a map value");

/* An entry of the set-associative table. */
struct flow_entry {
	__u64 tag; /* the flow's fingerprint ^ id, so that a torn entry matches no flow */
	struct flow_mark mark; /* id 0: empty */
};
_Static_assert(sizeof(struct flow_entry) == 16, "four entries fill a cache line");

struct flow_set {
	struct flow_entry entries[FLOW_WAYS];
};

struct count {
	__u64 packets;
	__u64 bytes;
};

struct vip_counters {
	struct count forwarded;
};

struct real_counters {
	struct count forwarded;
	__u64 misses;
};

/* Why a frame was dropped. The library has a name for each. */
enum drop_reason {
	DROP_NONE,
	DROP_FRAME_TRUNCATED,
	DROP_IPV4_TRUNCATED,
	DROP_IPV4_OPTIONS,
	DROP_IPV4_FRAGMENT,
	DROP_IPV6_TRUNCATED,
	DROP_IPV6_FRAGMENT,
	DROP_ICMP_TRUNCATED,
	DROP_QUOTE_TRUNCATED,
	DROP_QUOTE_OPTIONS,
	DROP_TRANSPORT_TRUNCATED,
	DROP_TOO_BIG,
	DROP_RING_EMPTY,
	DROP_RING_UNKNOWN_REAL,
	DROP_ENCAP_V4,
	DROP_ENCAP_V6,
	DROP_REPLY_FAILED,
	DROP_REASONS,
};

/* All counters that belong to no VIP or real: one record a CPU, found by one lookup a packet. */
struct counters {
	struct count tx;
	struct count pass;
	struct count drop;
	__u64 flow_packets;
	__u64 flow_misses;
	__u64 flow_miss_syn;
	__u64 flow_miss_non_syn;
	__u64 flow_fallback;
	__u64 local;
	__u64 echo_v4;
	__u64 echo_v6;
	__u64 too_big_v4;
	__u64 too_big_v6;
	__u64 ptb_v4;
	__u64 ptb_v4_small;
	__u64 ptb_v6;
	__u64 ptb_v6_small;
	__u64 drops[DROP_REASONS];
	/* The flood guard's present window. */
	__u64 window_start; /* ticks */
	__u64 window_flows;
	/* How many sets of this CPU's flow table are in use, and a mask for their numbers: 2^n - 1,
	 * at least the last one's and less than twice that. */
	__u32 active_sets;
	__u32 set_mask;
};

/* What the control side changes while packets flow; everything else is a load-time constant. */
struct live {
	__u64 gateway_mac; /* six bytes as in a frame, then two zero bytes: one load, one store */
	__u32 watched_vip; /* the number of the VIP whose misses count per real, plus one; 0: none */
	__u32 any_port_vips; /* how many there are: none, no lookup */
	__u32 prefix_vips;
	__u32 any_port_prefix_vips;
};

/* Which step decided, for the explaining twin of the program. */
enum step {
	STEP_NONE,
	STEP_NOT_IP,
	STEP_ICMP_ECHO,
	STEP_ICMP_OTHER,
	STEP_NOT_TRANSPORT,
	STEP_NO_VIP,
	STEP_TOO_BIG,
	STEP_FLOW_TABLE,
	STEP_RING,
};

/* What the explaining twin found out about its last frame. */
struct explanation {
	__u32 vip; /* plus one; 0: none */
	__u32 real; /* 0: none */
	enum step step;
	enum drop_reason drop;
};

/* Brings what no map or variable shows into the object's BTF, and so to the Rust side. */
struct constants {
	struct flow_key flow_key;
	struct flow_set flow_set;
	enum vip_flag vip;
	enum real_flag real;
	enum feature feature;
	enum ring_constant ring;
	enum vip_constant vip_table;
	enum flow_table_constant flow_table;
};

/* The backend's decapsulator. */
struct decap_counters {
	__u64 total;
	__u64 ipip_v4; /* outer IPv4 */
	__u64 ipip_v6; /* outer IPv6 */
	__u64 drop_truncated;
	__u64 drop_options;
	__u64 drop_fragment;
	__u64 drop_head;
	__u64 foreign; /* tunnelled, but to another destination: passed, strict destination */
};
