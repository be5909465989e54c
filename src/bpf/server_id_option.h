/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* The TCP option that carries a server id: kind, length, and the id in four bytes, little-endian. */
#pragma once

#define TCP_OPTION_SERVER_ID 0xb7
#define TCP_OPTION_SERVER_ID_BYTES 6
