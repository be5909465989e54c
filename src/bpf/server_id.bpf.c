// SPDX-License-Identifier: (MIT OR GPL-2.0-only)
/*
 * Both ends of TCP connections that are routed by server id; the kernel calls it for the sockets of
 * a cgroup. The server's end writes its id into an option of its packets (kind 0xB6) until the
 * client has sent it back once. The client's end remembers the id and writes it into all its
 * packets (kind 0xB7). A host may be both: the side that opened a connection is the client.
 */
#include "server_id_option.h"
#include "shared.h"

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* This server's id; 0: this host is only a client. The control side may change it at any time. */
volatile __u32 own_id SEC(".data.own") = 0;

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct server_id_connection);
} connections SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct server_id_counters);
} server_id_counters SEC(".maps");

/* The option as it is in a packet. */
struct server_id_option {
	__u8 kind;
	__u8 length;
	__u8 id[4]; /* little-endian */
};

static __always_inline struct server_id_counters *counters_of_cpu(void)
{
	const __u32 zero = 0;

	return bpf_map_lookup_elem(&server_id_counters, &zero);
}

static __always_inline void ask_for(struct bpf_sock_ops *ops, int callbacks)
{
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | callbacks);
}

static __always_inline void no_more(struct bpf_sock_ops *ops, int callbacks)
{
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags & ~callbacks);
}

static __always_inline struct server_id_connection *connection_of(struct bpf_sock_ops *ops, __u64 flags)
{
	struct bpf_sock *sk = ops->sk;

	return sk ? bpf_sk_storage_get(&connections, sk, NULL, flags) : NULL;
}

/* The id in an option of the current packet; 0: none. */
static __always_inline __u32 heard(struct bpf_sock_ops *ops, __u8 kind)
{
	struct server_id_option option = { .kind = kind };
	const int length = bpf_load_hdr_opt(ops, &option, sizeof(option), 0);
	__u32 id;

	if (length != sizeof(option))
		return 0;
	__builtin_memcpy(&id, option.id, sizeof(id));
	return id;
}

/* The server's end of a new connection. */
static __always_inline void serve(struct bpf_sock_ops *ops)
{
	struct server_id_counters *count = counters_of_cpu();
	struct server_id_connection *connection;
	const __u32 id = own_id;

	if (!id)
		return;
	connection = connection_of(ops, BPF_SK_STORAGE_GET_F_CREATE);
	if (!connection)
		return;
	connection->id = id;
	connection->server = true;
	if (count)
		count->served++;
	ask_for(ops, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG |
			     BPF_SOCK_OPS_PARSE_UNKNOWN_HDR_OPT_CB_FLAG);
}

/* A packet with the server's id: from here the client's end repeats it. */
static __always_inline bool repeat(struct bpf_sock_ops *ops)
{
	struct server_id_counters *count = counters_of_cpu();
	const __u32 id = heard(ops, TCP_OPTION_OWN_ID);
	struct server_id_connection *connection;

	connection = id ? connection_of(ops, BPF_SK_STORAGE_GET_F_CREATE) : NULL;
	if (!connection)
		return false;
	connection->id = id;
	if (count)
		count->heard++;
	ask_for(ops, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
	return true;
}

/* A packet with an option that the kernel does not know. */
static __always_inline void parse(struct bpf_sock_ops *ops)
{
	const struct server_id_connection *connection = connection_of(ops, 0);

	if (connection && connection->server) {
		if (!heard(ops, TCP_OPTION_SERVER_ID))
			return;
		/* The client knows the id. */
		no_more(ops, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG |
				     BPF_SOCK_OPS_PARSE_UNKNOWN_HDR_OPT_CB_FLAG);
		return;
	}
	if (repeat(ops))
		no_more(ops, BPF_SOCK_OPS_PARSE_UNKNOWN_HDR_OPT_CB_FLAG);
}

static __always_inline void write(struct bpf_sock_ops *ops)
{
	struct server_id_option option = {
		.kind = TCP_OPTION_OWN_ID,
		.length = sizeof(option),
	};
	struct server_id_counters *count = counters_of_cpu();
	const struct server_id_connection *connection;
	__u32 id = own_id;

	/* Anything but a full socket is a connection request: the packet is the server's
	 * SYN-ACK. */
	if (ops->is_fullsock) {
		connection = connection_of(ops, 0);
		if (!connection)
			return;
		id = connection->id;
		if (!connection->server)
			option.kind = TCP_OPTION_SERVER_ID;
	}
	__builtin_memcpy(option.id, &id, sizeof(id));
	if (!bpf_store_hdr_opt(ops, &option, sizeof(option), 0) && count)
		count->written++;
}

SEC("sockops")
int server_id(struct bpf_sock_ops *ops)
{
	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		if (own_id)
			ask_for(ops, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		serve(ops);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		/* If the SYN-ACK lacks it, a later packet may have it. */
		if (!repeat(ops))
			ask_for(ops, BPF_SOCK_OPS_PARSE_UNKNOWN_HDR_OPT_CB_FLAG);
		break;
	case BPF_SOCK_OPS_PARSE_HDR_OPT_CB:
		parse(ops);
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		bpf_reserve_hdr_opt(ops, sizeof(struct server_id_option), 0);
		break;
	case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
		write(ops);
		break;
	}
	return 1;
}
