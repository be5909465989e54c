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
enum family {
	FAMILY_V4 = 4,
	FAMILY_V6 = 6,
};

/* VIP flags that the program acts on; the bits of the library's VipFlags. */
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
	/* Set by the library if more is counted of the VIP than packets and bytes. */
	VIP_IN_DETAIL = 1 << 26,
	/* Set by the library while tables of the program before may know more of the VIP's flows than those of this one. */
	VIP_HANDS_BACK = 1 << 27,
	/* Set by the library if tables are asked for the VIP's flows only where slots are unsettled. */
	VIP_TRACKS_CHANGES = 1 << 28,
	/* Set by the library while entries of the VIP's flows may be void: `down_reals` says which. */
	VIP_VOID_FLOWS = 1 << 29,
	/* Set by the library while a VIP has no reals at all: its flows' entries are not looked at. */
	VIP_NO_REALS = 1 << 30,
};

enum real_flag {
	REAL_IPV6 = 1 << 0,
	REAL_LOCAL = 1 << 1,
};

/* Load-time constants; the bits of the library's Features. */
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
	/* Rings in one inner map of `rings`; ring r is element r % RINGS_PER_CHUNK of chunk
	 * r / RINGS_PER_CHUNK. */
	RINGS_PER_CHUNK = 8,
	/* The ring of a VIP that has none: no real takes new flows. */
	RING_NONE = 0x7fffffff,
};

/* What a slot's word says where only what changed is tracked, and the words of its past. */
enum slot_constant {
	SLOT_REAL = (1 << 15) - 1, /* the number of the real that the ring names; 0: none */
	SLOT_UNSETTLED = 1 << 15,
	BASE_REAL = (1 << 15) - 1, /* the base's number; 0: none */
	BASE_TAKES_NEW = 1 << 15, /* its weight is not 0 */
	MOMENT_BIT = 1, /* of moments: not the program's */
	/* Slot s of a ring has its past in record s / PLANES of plane s % PLANES. */
	PLANES = 4,
};

/* What an unsettled slot was before. */
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

/* Behind the slots of a ring: in which places of rings their pasts lie. */
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
	/* The low bits of a fingerprint: the number of the flow's VIP, plus one. */
	VIP_NUMBER_BITS = 16,
	VIP_NUMBER_MASK = (1 << VIP_NUMBER_BITS) - 1,
	/* What a flow_value says beside the time, in the low bits of its ticks, which are that much
	 * coarser: more than one packet of the flow has been seen; no id in a packet has made the
	 * entry. So the stamp of nearly all packets is the time with all bits set. With neither the flow is over, where
	 * only changed flows are remembered. */
	USED_AGAIN = 1 << 0,
	USED_NO_ID = 1 << 1,
	USED_BITS = USED_AGAIN | USED_NO_ID,
};

enum server_id_constant {
	/* Entries of a line of the server-id table: a cache line. */
	SERVER_IDS_PER_LINE = 8,
	SERVER_ID_TABLE = 1 << 30,
	/* Parts of the array of chunks, of which a table takes one. */
	SERVER_ID_PARTS = 3,
	/* Lines of a chunk of the table, each chunk a map of its own: so many that the largest table
	 * takes 256 of them, which is as many as are put into their places side by side. */
	SERVER_ID_CHUNK_LINES = 16384,
};

/* What becomes of the packets in tunnels that end at an address of `decap_destinations`. */
enum decap_mode {
	DECAP_INLINE = 1, /* they are walked like packets that come without a tunnel */
	DECAP_EGRESS, /* they are sent back out */
};

/* What the control side may be told of. */
enum event_kind {
	EVENT_TCP_NON_SYN_MISS,
	EVENT_TOO_BIG,
	EVENT_QUIC_REAL_GONE,
	EVENT_KINDS,
};

#define EVENT_BYTES 128

/* An event, with the beginning of the frame that made it. */
struct event {
	__u64 time; /* nanoseconds of the monotonic clock */
	__u32 kind;
	__u32 interface; /* that the frame came in on */
	__u32 length; /* of the frame, bytes */
	__u32 captured; /* bytes of `data` */
	__u8 data[EVENT_BYTES];
};
_Static_assert(sizeof(struct event) == 24 + EVENT_BYTES, "events are copied as they are");

/* What identifies a VIP. IPv4 addresses take the first four bytes of 16. */
struct vip_key {
	__u8 address[ADDRESS_BYTES];
	__be16 port;
	__u8 protocol;
	__u8 family;
};
_Static_assert(sizeof(struct vip_key) == VIP_WORDS * 4, "vip_key is hashed and compared by words");

/* The key of `prefix_vips` and `vip_addresses`: all but the address's tail has to match. */
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
	/* The number of its VIP, plus one, so that entries can be told by VIP, and none is a later
	 * VIP's with this address. */
	__u16 vip;
};
_Static_assert(sizeof(struct flow_key) == FLOW_WORDS * 4, "flow_key is hashed as a whole");

/* What a flow table remembers of a flow; the LRU hash's value. */
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

/* A server id and its real; id 0 of the real: an empty entry. Read and written as one word. */
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

/* A real to which no flow of a VIP goes any more, whatever tables remember. */
struct down_real {
	__u32 vip; /* number */
	__u32 real; /* id, as in struct real: a later owner of the number is not meant */
};

/* Why. */
enum void_reason {
	VOID_DOWN = 1, /* it is down for the VIP */
	VOID_REMOVED, /* the VIP has it no more */
};

/* The key of tries of prefixes that addresses are looked for in, of both families. */
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

/* What is counted of a VIP if the settings say so. */
struct vip_details {
	__u64 syns; /* TCP packets with SYN that went on */
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
	__u64 initial; /* initial and 0-RTT packets: their ids are the client's */
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
	__u64 walked_v4; /* by the inner family: from here on */
	__u64 walked_v6;
	__u64 egress_v4;
	__u64 egress_v6;
};

/* The programs that a walk goes on in by a tail call: the one that looks for ids; then the one that
 * sends by an id, or the walk for special VIPs, of the balancer itself or of its explaining twin. And the
 * walk of rare frames; and the one for QUIC, which looks for ids and sends by them. The last one is the main program of the
 * balancer that this one has replaced, while packets are handed back. */
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

/* What a walk tells those programs of its packet, so that none of them has to parse it again, and the
 * answer of the first one. */
struct id_query {
	struct flow_key flow;
	__u64 arrived; /* bytes of the frame as it came in */
	struct vip vip;
	__u32 vip_number;
	/* The real's number, and above it the step; or a reason to drop, negative; or 0: no id led
	 * anywhere. */
	__s32 routed;
	__u8 tcp_flags;
	__u8 tcp_options;
	__u8 icmp;
	__u8 icmp_ignored_by_quic;
	__u32 hash_ports; /* the flow's ports as ring and outer header have them */
	__u16 l3_length;
	__u8 tos;
	__u8 unchecked;
	__u8 explain;
	__u8 untagged;
	/* Of no query, but where there was room: the outer VLAN tag of the last frame that left with any. No frame takes it
	 * away. */
	__be16 sent_tag;
};

/* What a walk tells the program for rare frames. */
struct rare_frame {
	__u64 arrived; /* bytes of the frame as it came in */
	/* VLAN tags that have been taken off and will be put back: identifier and tag, as they lie in the
	 * frame. */
	__u32 tags[2];
	__u32 tag_bytes; /* of all tags: 0, 4 or 8 */
	__u32 unwrapped; /* it came in a tunnel that ended here */
};

/* All counters that belong to no VIP or real. Each has a row in src/counters/table.rs. */
struct counters {
	struct count tx;
	struct count pass;
	struct count drop;
	__u64 settled; /* packets in settled slots, for which no table was asked */
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
	__u64 orphaned; /* frames passed, as nobody has given a sign of life for too long */
};

/* The flood guard's present window. */
struct flood_window {
	__u64 start; /* ticks */
	__u64 new_flows; /* that were to be remembered */
	__u64 until; /* ticks: the guard acts before */
};

/* How many sets of a CPU's flow table are in use, and a mask for their numbers: 2^n - 1, at least the
 * last one's and less than twice that. */
struct active_sets {
	__u32 count;
	__u32 mask;
};

/* How many events of each kind there have been in the rate limit's present window. */
struct event_window {
	__u64 start; /* ticks */
	__u64 events[EVENT_KINDS];
};

/* What a program leaves for the one that the walk goes on in: nothing else outlives a tail call. */
struct scratch {
	struct id_query query;
	struct rare_frame rare;
};

/* All that a CPU has for itself: one record, found by one lookup a packet. */
struct cpu {
	struct counters counters;
	struct flood_window flood;
	struct active_sets sets;
	struct event_window limit;
	struct scratch scratch;
};

/* This host's own addresses, words as they lie in memory. */
struct own_addresses {
	__u32 v4;
	__u32 v6[4];
};

/* Ethernet addresses of interfaces that frames come in by. An address is six bytes as in a frame, above
 * STATION_SHIFT bits that are 0, where a frame's source begins in the same word. */
enum station_constant {
	STATIONS = 64,
	/* Of an interface: its own, its bond's, its bridge's. */
	STATION_MACS = 3,
	STATION_SHIFT = 16,
	/* By so much a frame's word is shifted if nothing but the bit of groups is looked at. */
	STATION_GROUP_SHIFT = 63,
	/* The bit of groups in a frame's word. */
	STATION_GROUP = 1,
};

/* What frames that come in by an interface may be for. */
struct station {
	__u64 macs[STATION_MACS]; /* 0: none */
	__u32 interface; /* index; 0: none. Written last, and first when it goes */
	__u32 reserved;
};

/* What the control side changes while packets flow; everything else is a load-time constant. What every
 * packet reads lies in the first cache line. */
struct live {
	__u64 gateway_mac; /* six bytes as in a frame, then two zero bytes: one load, one store */
	__u32 watched_vip; /* the number of the VIP whose misses count per real, plus one; 0: none */
	__u32 any_port_vips; /* how many there are: none, no lookup */
	__u32 prefix_vips;
	__u32 any_port_prefix_vips;
	__u32 max_frame; /* the longest frame that is forwarded, Ethernet header included */
	/* The outer sources of GUE, and what strict destination goes by. The second of the two is
	 * written while packets read the first, and the other way round. */
	__u32 own_in_force;
	struct own_addresses own[2];
	__u64 gateway_mac_v6; /* the same for reals with IPv6 addresses */
	__u32 events; /* a bit for each kind that is listened to */
	__u32 event_limit; /* events of each kind a second and CPU */
	/* The server-id table in force: its part times SERVER_ID_TABLE, and the number of its
	 * lines minus one, a mask. One word, so that both are of one table. */
	__u32 server_ids;
	/* A frame is for this station if the first eight bytes, shifted by so much, are `station`: an
	 * address if all interfaces have one, or 0 if only groups can be told. Of others `stations` decide. */
	__u32 station_shift;
	__u64 station;
	/* By the interface's index, modulo. */
	struct station stations[STATIONS];
	__u64 alive; /* ticks: when the owner gave its last sign of life */
};

/* Where packets for a real go: six bytes of Ethernet address, and above them the number of the port
 * that they leave by. One word, so that both are of one moment. 0: not known. */
enum hop_constant {
	HOP_PORT_SHIFT = 48,
	/* Ports that there can be; number 0 is the interface that the frame came in on. */
	PORTS = 64,
};

/* Entries of a root program: as many as it has if nobody says, and the most that it can have. */
enum root_constant {
	ROOT_ENTRIES = 3,
	ROOT_MOST_ENTRIES = 16,
};

/* An interface that packets may be sent out of. */
struct port {
	__u64 mac; /* its own, as in a frame */
	__u32 interface; /* index */
	__u32 reserved;
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
	/* TCP connections of probes that are remembered, for what the kernel sends after their end. */
	PROBE_FLOWS = 16384,
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

/* The ends of TCP connections with a server id. */
struct server_id_counters {
	__u64 served; /* connections that the server's end has accepted */
	__u64 heard; /* connections whose client's end has heard an id */
	__u64 written; /* packets with the option */
};

/* What a connection writes: the server's own id, or the one that the client has heard. */
struct server_id_connection {
	__u32 id;
	__u32 server; /* which end the socket is: not 0 for the one that accepted */
};

/* Where health checks go. A key with port 0 matches any port. */
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

/* How a real is reached where reals have next hops of their own. */
struct probe_way {
	__u32 interface; /* that leads to it; 0: that of all probes */
	__u32 by_gateway; /* by the gateway's Ethernet address, not by the neighbour table */
};

/* What the control side tells the health checks' program while packets flow. */
struct probe_settings {
	__u64 gateway_mac; /* as in struct live */
	__u64 gateway_mac_v6;
	__u64 own_mac; /* of the interface that probes leave by */
	__u32 interface; /* its index; 0: probes leave by whatever interface they were sent on */
	__u32 destinations; /* how many of these matches there are: none, no lookup */
	__u32 sources;
	__u32 own_current; /* which of the two, as in struct live */
	struct own_addresses own[2];
	__u32 marked; /* there has been a mark: connections of marked packets are known */
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
