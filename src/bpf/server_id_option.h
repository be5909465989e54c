/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* The TCP options that carry a server id: kind, length, and the id in four bytes, little-endian.
 * The balancer reads them, the sockets' program writes them. Clients use another kind than servers,
 * so that a server's option can never route a packet. */
#pragma once

#define TCP_OPTION_OWN_ID 0xb6 /* a server's own id */
#define TCP_OPTION_SERVER_ID 0xb7 /* sent by a client, its server's id: balancers read it */
#define TCP_OPTION_SERVER_ID_BYTES 6
