/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the programs and the agent share: the layouts of keys and values, and the meaning of their numbers. The agent's
 * side is agent/kernel/bpf/layout.ts, which a test compares with the BTF of the object. Every change here needs another
 * number for the layout of the map that it changes, see agent/kernel/bpf/store.ts.
 *
 * Addresses are 16 bytes in network order; IPv4 ones are mapped (::ffff:a.b.c.d), so that both families have one path.
 */
#ifndef TULLE_TYPES_H
#define TULLE_TYPES_H

#include <linux/types.h>
#include <stdbool.h>

struct endpoint {
	__be32 address[4];
	__be16 port;
	__u16 unused;
};

/* Who means something by an address; the programs at the socket ask for what sockets of this node mean. */
enum scope { SCOPE_INTERNAL = 0, SCOPE_EXTERNAL = 1 };

/* Port 0 and protocol 0: whatever of the address has no frontend of its own. */
struct frontend_key {
	__be32 address[4];
	__be16 port;
	__u8 protocol; /* IPPROTO_* */
	__u8 scope;    /* enum scope */
};

enum target { TARGET_SET = 0, TARGET_REFUSE = 1, TARGET_DROP = 2 };
/* Source ranges: only a packet has a source, sockets leave such a frontend alone. */
enum frontend_flag { FRONTEND_MASQUERADE = 1, FRONTEND_SOURCE_RANGES = 2 };

struct frontend {
	__u32 set[4]; /* hash of the set's content; 0 without a set */
	__u32 count;  /* backends of the set, in slots 0 to count - 1 */
	__u32 affinity_seconds; /* 0: none */
	__u8 target; /* enum target */
	__u8 kind;   /* what the address is to the Service, for people */
	__u8 flags;  /* enum frontend_flag */
	__u8 unused;
	__u32 seal;  /* over the key and the words before, see seal.h */
};

/* Slots are sorted by address and port (memcmp), so that a backend is found by halving. */
struct backend_key {
	__u32 set[4];
	__u32 slot;
};

struct backend {
	struct endpoint at;
	__u32 seal; /* over the key and the endpoint */
};

/* A client of a frontend: the cookie of a network namespace (affinity), or of a socket (datagrams). */
struct client_key {
	__u64 cookie;
	struct frontend_key frontend;
	__u32 unused;
};

/* The backend that a client was given. Believed only while the frontend's set has it. */
struct choice {
	struct endpoint backend;
	__u32 slot;    /* where it was in the set that it came from */
	__u64 last_ns; /* bpf_ktime_get_ns() of the last connection */
};

/* Of a socket that is connected: whom its program knows, and whom it really speaks with. */
struct peer {
	struct endpoint frontend;
	struct endpoint backend;
};

/* Of a socket that sends without being connected, perhaps to many: the value is the frontend. */
struct peer_key {
	__u64 socket; /* cookie */
	struct endpoint backend;
	__u32 unused;
};

/* A connected datagram socket, as the agent reads it: what names it to the kernel, and what was stored in it. */
struct socket_row {
	struct peer peer;
	__u64 cookie; /* 0: none was ever asked for */
	__u32 netns;  /* inode */
	__u32 link;   /* index of the one that it is bound to; 0: none */
	__be32 own[4];
	__be32 other[4];
	__be16 own_port;
	__be16 other_port;
	__u16 family; /* AF_* */
	__u16 unused;
};

enum settings_flag { SETTINGS_HOST_ONLY = 1 };

struct settings {
	__u64 host_netns; /* cookie */
	__u32 flags;      /* enum settings_flag */
	__u32 unused;
};

/* Every way out of a program. Names in layout.ts. */
enum counter {
	COUNTER_TRANSLATED = 0,
	COUNTER_NOT_A_SERVICE,
	COUNTER_OTHER_PROTOCOL,
	COUNTER_OTHER_NETNS,
	COUNTER_PASSED,
	COUNTER_REFUSED,
	COUNTER_REFUSED_PORT,
	COUNTER_ALREADY_TRANSLATED,
	COUNTER_AFFINITY,
	COUNTER_STICKY,
	COUNTER_CHANGED_MEANWHILE, /* read again: the set was replaced between two lookups */
	COUNTER_NO_BACKEND,        /* refused: it stayed so */
	COUNTER_WRONG_FAMILY,
	COUNTER_NOT_REMEMBERED,    /* a map had no room for what should be remembered */
	COUNTER_REVERSED,
	COUNTER_NOT_REVERSED,
	COUNTERS,
};

_Static_assert(sizeof(struct endpoint) == 20, "endpoint");
_Static_assert(sizeof(struct frontend_key) == 20, "frontend_key");
_Static_assert(sizeof(struct frontend) == 32, "frontend");
_Static_assert(sizeof(struct backend_key) == 20, "backend_key");
_Static_assert(sizeof(struct backend) == 24, "backend");
_Static_assert(sizeof(struct client_key) == 32, "client_key");
_Static_assert(sizeof(struct choice) == 32, "choice");
_Static_assert(sizeof(struct peer) == 40, "peer");
_Static_assert(sizeof(struct peer_key) == 32, "peer_key");
_Static_assert(sizeof(struct settings) == 16, "settings");
_Static_assert(sizeof(struct socket_row) == 96, "socket_row");

#endif
