/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/*
 * Every type that both the BPF programs and the Rust side use, and nothing else. The Rust side
 * generates its types from the object's BTF, so there is no second definition to keep in step; both
 * sides assert the sizes.
 */
#pragma once

#include <linux/types.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the flow hash and the outer source address are written for little-endian machines"
#endif

#define ADDRESS_BYTES 16

/* An odd number without a pattern, to mix hashes: 2^64 divided by the golden ratio. */
#define HASH_MIX 0x9e3779b97f4a7c15ull

/* Address families, in keys. */
enum family {
	FAMILY_V4 = 4,
	FAMILY_V6 = 6,
};

/* VIP flags that the program acts on, with the same bits as the library's VipFlags. */
enum vip_flag {
	VIP_NO_SRC_PORT = 1 << 0,
	VIP_LRU_BYPASS = 1 << 1,
	VIP_QUIC = 1 << 2,
	VIP_DPORT_HASH = 1 << 3,
	VIP_SRC_ROUTING = 1 << 4,
	VIP_LOCAL = 1 << 5,
	VIP_GLOBAL_LRU = 1 << 6,
	VIP_SRC_DST_PORT = 1 << 7,
	VIP_UDP_STABLE_ROUTING = 1 << 8,
	VIP_UDP_FLOW_MIGRATION = 1 << 9,
	/* Set by the library if it wants more than packets and bytes counted for the VIP. */
	VIP_IN_DETAIL = 1 << 26,
	/* Set by the library while the replaced program's tables may have entries of the VIP that
	 * this program's lack. */
	VIP_HANDS_BACK = 1 << 27,
	/* Set by the library if only unsettled slots look up the VIP's flows in tables. */
	VIP_TRACKS_CHANGES = 1 << 28,
	/* Set by the library while entries of the VIP's flows may be void: `down_reals` says
	 * which. */
	VIP_VOID_FLOWS = 1 << 29,
	/* Set by the library while a VIP has no reals at all: the program ignores its flows'
	 * entries. */
	VIP_NO_REALS = 1 << 30,
};

enum real_flag {
	REAL_IPV6 = 1 << 0,
	REAL_LOCAL = 1 << 1,
};

/* Load-time constants, with the same bits as the library's Features. */
enum feature {
	FEATURE_SOURCE_ROUTING = 1 << 0,
	FEATURE_INLINE_DECAP = 1 << 1,
	FEATURE_STRICT_DESTINATION = 1 << 2,
	FEATURE_ICMP_TOO_BIG = 1 << 3,
	FEATURE_TCP_SERVER_ID = 1 << 4,
	FEATURE_UDP_STABLE_ROUTING = 1 << 5,
	FEATURE_GLOBAL_FLOW_TABLE = 1 << 6,
	FEATURE_LOCAL_DELIVERY = 1 << 7,
	FEATURE_INTROSPECTION = 1 << 8,
};

enum encapsulation {
	ENCAPSULATION_IPIP,
	ENCAPSULATION_GUE,
};

enum ring_constant {
	/* Rings in one inner map of `rings`. Ring r is element r % RINGS_PER_CHUNK of chunk r /
	 * RINGS_PER_CHUNK. */
	RINGS_PER_CHUNK = 8,
	/* The ring of a VIP that has none: no real takes new flows. */
	RING_NONE = 0x7fffffff,
};

/* A slot's word, and the words of its past, where tables track only changed flows. */
enum slot_constant {
	SLOT_REAL = (1 << 15) - 1, /* number of the ring's real; 0: none */
	SLOT_UNSETTLED = 1 << 15,
	BASE_REAL = (1 << 15) - 1, /* the base's number; 0: none */
	BASE_TAKES_NEW = 1 << 15, /* the base's weight is not 0 */
	MOMENT_BIT = 1, /* of moments; for the control side only */
	/* Slot s of a ring has its past in record s / PLANES of plane s % PLANES. */
	PLANES = 4,
};

/* The past of an unsettled slot. */
struct slot_past {
	__u16 base; /* a real's number, and BASE_TAKES_NEW */
	__u16 since; /* a moment */
	__u16 deviated; /* a moment */
	__u16 reserved;
};
_Static_assert(sizeof(struct slot_past) == PLANES * sizeof(__u16), "pasts of a ring's slots fill its planes");

/* Which flows the tables remember. */
enum flow_tracking {
	TRACK_ALL,
	TRACK_CHANGED,
};

/* Follows a ring's slots: the places of rings that hold their pasts. */
struct ring_planes {
	__u32 numbers[PLANES];
};

enum vip_constant {
	/* VIPs whose keys may have the same hash. */
	VIP_CHAIN = 16,
	/* 32-bit words of a vip_key. */
	VIP_WORDS = 5,
};

enum flow_table_constant {
	/* Flow table types. */
	FLOW_TABLE_SETS = 0,
	FLOW_TABLE_LRU = 1,
	/* Entries of a set. */
	FLOW_WAYS = 8,
	/* 32-bit words of a flow_key. */
	FLOW_WORDS = 10,
	/* Sets of the table shared by CPUs without a table. */
	FALLBACK_SETS = 1024,
	/* Sets in use when a table starts. */
	FIRST_SETS = 256,
	REAL_NUMBER_BITS = 16,
	REAL_NUMBER_MASK = (1 << REAL_NUMBER_BITS) - 1,
	/* The low bits of a fingerprint: the number of the flow's VIP, plus one. */
	VIP_NUMBER_BITS = 16,
	VIP_NUMBER_MASK = (1 << VIP_NUMBER_BITS) - 1,
	/* Flags in the low bits of flow_value.used, whose ticks are that much coarser: more than
	 * one packet of the flow was seen; no id in a packet made the entry. So most packets stamp
	 * the time with all bits set. Where tables track only changed flows, neither bit set means
	 * that the flow is over. */
	USED_AGAIN = 1 << 0,
	USED_NO_ID = 1 << 1,
	USED_BITS = USED_AGAIN | USED_NO_ID,
};

enum server_id_constant {
	/* Entries in a line of the server-id table: a cache line. */
	SERVER_IDS_PER_LINE = 8,
	SERVER_ID_TABLE = 1 << 30,
	/* Parts of the array of chunks; a table takes one. */
	SERVER_ID_PARTS = 3,
	/* Lines of a chunk, which is a map. The largest table takes 256 chunks: as many as the
	 * library inserts side by side. */
	SERVER_ID_CHUNK_LINES = 16384,
};

/* How the program treats packets in tunnels that end at an address of `decap_destinations`. */
enum decap_mode {
	DECAP_INLINE = 1, /* walk them like packets that arrive without a tunnel */
	DECAP_EGRESS, /* send them back out */
};

/* Events for the control side. */
enum event_kind {
	EVENT_TCP_NON_SYN_MISS,
	EVENT_TOO_BIG,
	EVENT_QUIC_REAL_GONE,
	EVENT_KINDS,
};

#define EVENT_BYTES 128

/* An event, with the beginning of the frame that caused it. */
struct event {
	__u64 time; /* nanoseconds of the monotonic clock */
	__u32 kind;
	__u32 interface; /* where the frame arrived */
	__u32 length; /* of the frame, in bytes */
	__u32 captured; /* bytes of `data` */
	__u8 data[EVENT_BYTES];
};
_Static_assert(sizeof(struct event) == 24 + EVENT_BYTES, "events are copied as they are");

/* A VIP's identity. IPv4 addresses take the first four of 16 bytes. */
struct vip_key {
	__u8 address[ADDRESS_BYTES];
	__be16 port;
	__u8 protocol;
	__u8 family;
};
_Static_assert(sizeof(struct vip_key) == VIP_WORDS * 4, "vip_key is hashed and compared by words");

/* The key of `prefix_vips` and `vip_addresses`: all but the address's tail must match. */
struct vip_prefix_key {
	__u32 prefix_length; /* bits after this field: 32 and the address prefix's length */
	__be16 port;
	__u8 protocol;
	__u8 family;
	__u8 address[ADDRESS_BYTES];
};
_Static_assert(sizeof(struct vip_prefix_key) == 24, "vip_prefix_key is copied byte by byte");

/* The part of a VIP that packets need. Both halves are read and written as one word, so that a
 * packet sees flags and ring that match. */
struct vip {
	__u32 flags;
	__u32 ring;
} __attribute__((aligned(8)));
_Static_assert(sizeof(struct vip) == 8, "a vip is switched by one store");

/* A VIP as packets find it. The library writes key and `next` before it publishes the number, and
 * keeps the key until no packet can hold the number any more. */
struct vip_info {
	struct vip_key key;
	__u32 next; /* in the chain of its hash: number + 1; 0: the last */
	struct vip vip;
};
_Static_assert(sizeof(struct vip_info) == 32, "a cache line holds two VIPs");

struct real {
	__u8 address[ADDRESS_BYTES];
	/* The number, and above it a count of the number's owners: no two reals ever have the same
	 * id. 0: the number is free. The library writes it last when it gives a number out, and
	 * first when it takes it back. */
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
	/* The VIP's number, plus one. It assigns entries to VIPs, and keeps a later VIP with this
	 * address from inheriting them. */
	__u16 vip;
};
_Static_assert(sizeof(struct flow_key) == FLOW_WORDS * 4, "flow_key is hashed as a whole");

/* A flow table's record of a flow; the LRU hash's value. */
struct flow_value {
	__u32 id; /* of the real */
	__u32 used; /* ticks, and USED_BITS */
};
_Static_assert(sizeof(struct flow_value) == 8, "flow_value is a map value");

/* An entry of the set-associative table. */
struct flow_entry {
	__u64 tag; /* the flow's fingerprint ^ id, so that a torn entry matches no flow */
	struct flow_value value; /* id 0: empty */
};
_Static_assert(sizeof(struct flow_entry) == 16, "four entries fill a cache line");

struct flow_set {
	struct flow_entry entries[FLOW_WAYS];
};

/* A server id and its real, read and written as one word. Real 0: an empty entry. */
struct server_id {
	__u32 id;
	__u32 real; /* its id, as in struct real */
} __attribute__((aligned(8)));
_Static_assert(sizeof(struct server_id) == 8, "a server id is switched by one store");

struct server_id_line {
	struct server_id entries[SERVER_IDS_PER_LINE];
};
_Static_assert(sizeof(struct server_id_line) == 64, "a line of server ids is a cache line");

/* Keys of the source-routing tries: a prefix of the client's address. */
struct source_prefix_v4 {
	__u32 prefix_length;
	__u8 address[4];
};

struct source_prefix_v6 {
	__u32 prefix_length;
	__u8 address[ADDRESS_BYTES];
};

/* A real that gets none of a VIP's flows any more, whatever tables remember. */
struct down_real {
	__u32 vip; /* number */
	__u32 real; /* id as in struct real, so a later owner of the number is not meant */
};

/* The reason. */
enum void_reason {
	VOID_DOWN = 1, /* it is down for the VIP */
	VOID_REMOVED, /* the VIP no longer has it */
};

/* The key of tries that look up an address, of either family, among prefixes. */
struct address_prefix {
	__u32 prefix_length; /* bits after this field: 32 and the address prefix's length */
	__u32 family;
	__u8 address[ADDRESS_BYTES];
};
_Static_assert(sizeof(struct address_prefix) == 24, "address_prefix is copied byte by byte");

struct decap_destination {
	__u8 address[ADDRESS_BYTES];
	__u32 family;
};

struct count {
	__u64 packets;
	__u64 bytes;
};

struct vip_counters {
	struct count forwarded;
	__u64 decap; /* GUE packets for the VIP that were unwrapped for the host */
	__u64 server_id_new; /* packets that open a connection, so that an id may follow */
	__u64 server_id_moved; /* flows that an id took from another real */
};

struct real_counters {
	struct count forwarded;
	__u64 misses;
};

/* Counters of a VIP that only some settings turn on. */
struct vip_details {
	__u64 syns; /* TCP packets with SYN that were forwarded or delivered */
	__u64 unpaired; /* packets for which `vip_reals` had no room */
};

struct vip_real {
	__u32 vip; /* number */
	__u32 real; /* id, as in struct real */
};
_Static_assert(sizeof(struct vip_real) == 8, "vip_real is hashed as a whole");

struct vip_real_counters {
	struct count forwarded;
	__u64 syns;
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
	DROP_LENGTH,
	DROP_EXTENSION_HEADERS,
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
	DROP_QUIC_REAL_GONE,
	DROP_STABLE_UDP_REAL_GONE,
	DROP_INNER_TRUNCATED,
	DROP_INNER_EXPIRED,
	DROP_DECAP_FAILED,
	DROP_INNER_VERSION,
	DROP_ECN,
	DROP_NESTED_TUNNEL,
	DROP_OUTER_SOURCE,
	DROP_EGRESS_SOURCE,
	DROP_VLAN_FAILED,
	DROP_NEXT_HOP_UNKNOWN,
	DROP_REDIRECT_FAILED,
	DROP_PROGRAM_MISSING,
	DROP_REASONS,
};

struct quic_counters {
	__u64 initial; /* initial and 0-RTT packets: the client chose their ids */
	__u64 no_id; /* ch_routed: no server id, or an unknown one */
	__u64 routed;
	__u64 versions[4];
	__u64 unknown_id;
	__u64 unknown_id_sample; /* the last one */
	__u64 real_gone;
	__u64 match;
	__u64 mismatch;
	__u64 not_found;
	__u64 icmp;
	__u64 icmp_ignored;
};

struct tcp_server_id_counters {
	__u64 no_id;
	__u64 routed;
	__u64 mismatch;
	__u64 syn;
};

struct stable_udp_counters {
	__u64 no_id;
	__u64 routed;
	__u64 unknown_id;
	__u64 real_gone;
	__u64 invalid_type;
};

struct inline_decap_counters {
	__u64 remote; /* to an address of the table */
	__u64 v4; /* by the outer family */
	__u64 v6;
	__u64 walked_v4; /* by the inner family from here */
	__u64 walked_v6;
	__u64 egress_v4;
	__u64 egress_v6;
};

/* The programs that continue a walk by tail call. One looks for ids, then one sends by an id or
 * walks special VIPs; one walks rare frames; one looks for and sends by QUIC ids. The explaining
 * twins have their own. The last one is the main program of the balancer that this one replaced,
 * while packets are handed back. */
enum program {
	PROGRAM_IDS,
	PROGRAM_SEND,
	PROGRAM_SPECIAL,
	PROGRAM_EXPLAIN_SPECIAL,
	PROGRAM_RARE,
	PROGRAM_EXPLAIN_RARE,
	PROGRAM_QUIC,
	PROGRAM_BEFORE,
	PROGRAMS,
};

/* What a walk passes to those programs about its packet, so that they need not parse it again, and
 * the id program's answer. */
struct id_query {
	struct flow_key flow;
	__u64 arrived; /* bytes of the frame as it arrived */
	struct vip vip;
	__u32 vip_number;
	/* The real's number, and above it the step; negative: a reason to drop; 0: no id led
	 * anywhere. */
	__s32 routed;
	__u8 tcp_flags;
	__u8 tcp_options;
	__u8 icmp;
	__u8 icmp_ignored_by_quic;
	__u32 hash_ports; /* the flow's ports as ring and outer header use them */
	__u16 l3_length;
	__u8 tos;
	__u8 unchecked;
	__u8 explain;
	__u8 untagged;
	/* Not part of the query, but here is room: the outer VLAN of the last tagged frame that
	 * left, and above it the number of such frames, modulo 16. No frame clears it. */
	__be16 sent_tag;
};

/* What a walk passes to the program for rare frames. */
struct rare_frame {
	__u64 arrived; /* bytes of the frame as it arrived */
	/* VLAN tags to put back when the frame leaves: identifier and tag, in frame byte order. */
	__u32 tags[2];
	__u32 tag_bytes; /* of all tags: 0, 4 or 8 */
	__u32 unwrapped; /* it came in a tunnel that ended here */
};

/* All counters that belong to no VIP or real. Each has a row in src/counters/table.rs. */
struct counters {
	struct count tx;
	struct count pass;
	struct count drop;
	__u64 settled; /* packets in settled slots, which no table was asked about */
	__u64 by_base;
	__u64 by_entry; /* in unsettled slots */
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
	__u64 source_unmatched;
	__u64 source_matched;
	__u64 global_no_table;
	__u64 global_hits;
	__u64 migrated;
	struct quic_counters quic;
	struct tcp_server_id_counters tcp_server_id;
	struct stable_udp_counters stable_udp;
	struct inline_decap_counters decap;
	/* Handed over; left out by the rate limit; left out because the buffer was full. */
	__u64 events[EVENT_KINDS];
	__u64 events_limited;
	__u64 events_lost;
	__u64 orphaned; /* frames passed because the owner gave no sign of life for too long */
};

/* The flood guard's current window. */
struct flood_window {
	__u64 start; /* ticks */
	__u64 new_flows; /* flows to remember */
	__u64 until; /* ticks: the guard acts until then */
};

/* How many sets of a CPU's flow table are in use, and a mask for their numbers: 2^n - 1, at least
 * the highest number and less than twice that. */
struct active_sets {
	__u32 count;
	__u32 mask;
};

/* Events of each kind in the rate limit's current window. */
struct event_window {
	__u64 start; /* ticks */
	__u64 events[EVENT_KINDS];
};

/* What a program leaves for the program that continues the walk: nothing else survives a tail
 * call. */
struct scratch {
	struct id_query query;
	struct rare_frame rare;
};

/* Everything a CPU keeps to itself: one record, found by one lookup per packet. */
struct cpu {
	struct counters counters;
	struct flood_window flood;
	struct active_sets sets;
	struct event_window limit;
	struct scratch scratch;
};

/* This host's own addresses, as words in memory order. */
struct own_addresses {
	__u32 v4;
	__u32 v6[4];
};

/* Ethernet addresses of interfaces where frames arrive. An address is the frame's six bytes above
 * STATION_SHIFT zero bits, where the frame has the beginning of its source. */
enum station_constant {
	STATIONS = 64,
	/* Of an interface: its own, its bond's, its bridge's. */
	STATION_MACS = 3,
	STATION_SHIFT = 16,
	/* Shifts all but the group bit out of a frame's word. */
	STATION_GROUP_SHIFT = 63,
	/* The group bit in a frame's word. */
	STATION_GROUP = 1,
};

/* The addresses that frames arriving on an interface may be for. */
struct station {
	__u64 macs[STATION_MACS]; /* 0: none */
	__u32 interface; /* index; 0: none. Written last, and first when it goes */
	__u32 reserved;
};

/* What the control side changes while packets flow; everything else is a load-time constant. The
 * first cache line holds what every packet reads. */
struct live {
	__u64 gateway_mac; /* six bytes as in a frame, then two zero bytes: one load, one store */
	__u32 watched_vip; /* number of the VIP whose misses count per real, plus one; 0: none */
	__u32 any_port_vips; /* how many there are; if 0, packets skip the lookup */
	__u32 prefix_vips;
	__u32 any_port_prefix_vips;
	__u32 max_frame; /* the longest frame that is forwarded, Ethernet header included */
	/* The outer sources of GUE, and the addresses for strict destination. The library writes
	 * one of the two while packets read the other. */
	__u32 own_in_force;
	struct own_addresses own[2];
	__u64 gateway_mac_v6; /* the same for reals with IPv6 addresses */
	__u32 events; /* a bit for each kind that a monitor listens to */
	__u32 event_limit; /* events of each kind per second on each CPU */
	/* The current server-id table: its part times SERVER_ID_TABLE, and a mask, the number of
	 * its lines minus one. One word, so that both describe the same table. */
	__u32 server_ids;
	/* A frame is for this station if its first eight bytes, shifted by `station_shift`, equal
	 * `station`: an address if all interfaces share one, or 0 if only the group bit can be
	 * compared. `stations` decides about other frames. */
	__u32 station_shift;
	__u64 station;
	/* By the interface's index, modulo STATIONS. */
	struct station stations[STATIONS];
	__u64 alive; /* ticks: when the owner gave its last sign of life */
};

/* Where packets for a real go: six bytes of Ethernet address, and above them the number of the port
 * to leave by. One word, so that both match. 0: not known. */
enum hop_constant {
	HOP_PORT_SHIFT = 48,
	/* Ports at most. Number 0 is the interface where the frame arrived. */
	PORTS = 64,
};

/* Entries of a root program: the default, and the maximum. */
enum root_constant {
	ROOT_ENTRIES = 3,
	ROOT_MOST_ENTRIES = 16,
};

/* An interface to send packets out of. */
struct port {
	__u64 mac; /* its own, as in a frame */
	__u32 interface; /* index */
	__u32 reserved;
};

/* Which step decided, for the explaining twin. */
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
	STEP_CONNECTION_ID,
	STEP_TCP_SERVER_ID,
	STEP_STABLE_UDP,
	STEP_GLOBAL_FLOWS,
	STEP_SOURCE_ROUTE,
	STEP_DECAP_FOREIGN,
	STEP_DECAP_TO_HOST,
	STEP_DECAP_EGRESS,
	STEP_TUNNEL_IN_TUNNEL,
	STEP_OTHER_STATION,
	STEP_SETTLED_SLOT,
	STEP_BASE,
	STEP_ORPHAN,
};

enum probe_constant {
	/* TCP connections of probes that are remembered for what the kernel sends after their
	 * end. */
	PROBE_FLOWS = 16384,
};

/* The explaining twin's account of its last frame. */
struct explanation {
	__u32 vip; /* plus one; 0: none */
	__u32 real; /* 0: none */
	enum step step;
	enum drop_reason drop;
};

/* Puts types that no map or variable shows into the object's BTF, and so on the Rust side. */
struct constants {
	struct flow_key flow_key;
	struct flow_set flow_set;
	enum vip_flag vip;
	enum real_flag real;
	enum feature feature;
	enum ring_constant ring;
	enum slot_constant slot;
	enum flow_tracking flow_tracking;
	struct ring_planes ring_planes;
	struct slot_past slot_past;
	enum vip_constant vip_table;
	enum flow_table_constant flow_table;
	enum encapsulation encapsulation;
	enum server_id_constant server_ids;
	enum decap_mode decap;
	enum void_reason void_reason;
	enum program program;
	enum event_kind event_kind;
	enum hop_constant hop;
	enum root_constant root;
	enum station_constant station;
	enum probe_constant probe;
	struct event event;
	struct source_prefix_v4 source_v4;
	struct source_prefix_v6 source_v6;
	struct down_real down_real;
	struct decap_destination decap_destination;
	struct address_prefix address_prefix;
	struct server_id_line server_id_line;
};

/* Both ends of TCP connections with a server id. */
struct server_id_counters {
	__u64 served; /* connections that the server's end has accepted */
	__u64 heard; /* connections whose client's end has received an id */
	__u64 written; /* packets with the option */
};

/* The id that a connection writes: the server's own, or the one that the client received. */
struct server_id_connection {
	__u32 id;
	__u32 server; /* not 0: the socket is the accepting end */
};

/* Destinations and sources of health checks. A key with port 0 matches any port. */
struct probe_match {
	__u8 address[ADDRESS_BYTES];
	__be16 port;
	__u16 family;
};
_Static_assert(sizeof(struct probe_match) == 20, "probe_match is hashed as a whole");

struct probe_real {
	__u8 address[ADDRESS_BYTES];
	__u32 v6;
};

/* How to reach a real if reals have their own next hops. */
struct probe_way {
	__u32 interface; /* the one that leads to it; 0: the one for all probes */
	__u32 by_gateway; /* by the gateway's Ethernet address, not by the neighbour table */
};

/* What the control side tells the health check program while packets flow. */
struct probe_settings {
	__u64 gateway_mac; /* as in struct live */
	__u64 gateway_mac_v6;
	__u64 own_mac; /* of the interface that probes leave by */
	__u32 interface; /* its index; 0: each probe leaves by the interface it was sent on */
	__u32 destinations; /* how many of these matches there are; if 0, probes skip the lookup */
	__u32 sources;
	__u32 own_current; /* which of the two, as in struct live */
	struct own_addresses own[2];
	__u32 marked; /* a mark was seen: connections of marked packets are known */
	__u32 reserved;
};

struct probe_totals {
	__u64 processed;
	__u64 dropped;
	__u64 skipped;
	__u64 too_big;
	__u64 dst_matched;
	__u64 src_matched;
	__u64 recalled;
};

/* The backend's decapsulator. */
struct decap_counters {
	__u64 total;
	__u64 ipip_v4; /* outer IPv4 */
	__u64 ipip_v6; /* outer IPv6 */
	__u64 gue_v4;
	__u64 gue_v6;
	__u64 drop_truncated;
	__u64 drop_options;
	__u64 drop_fragment;
	__u64 drop_head;
	__u64 drop_version;
	__u64 drop_ecn;
	__u64 drop_source;
	__u64 drop_destination;
	__u64 foreign; /* tunnelled, but to another destination: passed, strict destination */
	__u64 server_ids; /* packets that carry a TCP server id */
	__u64 other_server_ids; /* those meant for another server */
};
