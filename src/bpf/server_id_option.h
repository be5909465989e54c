/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* The TCP options that carry a server id: kind, length, and the id in four bytes, little-endian. What a
 * client sends has a kind of its own, so that what a server sends can never lead a packet. */
#pragma once

#define TCP_OPTION_OWN_ID 0xb6 /* a server's, of itself */
#define TCP_OPTION_SERVER_ID 0xb7 /* a client's, of the server that it talks to: balancers read it */
#define TCP_OPTION_SERVER_ID_BYTES 6
