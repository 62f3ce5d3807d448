/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Hook: iter/bpf_sk_storage_map, once for each socket that the other programs connected, when the agent reads.
 * Reads: the socket's addresses and what was stored in it. Changes: nothing. On failure: the reader gets an error.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/stddef.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

#define AF_INET 2

/* What is needed of the kernel's own structures; where it lies is found when the object is loaded. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct in6_addr {
	__u8 bytes[16];
};

typedef struct {
	__s64 counter;
} atomic64_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	int skc_bound_dev_if;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
};

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
};

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct sock *sk;
	void *value;
};
#pragma clang attribute pop

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Of a socket of IPv4 only the first four bytes of each address. A function by itself, so that the BTF has the row. */
static __noinline void read_addresses(struct sock *sk, struct socket_row *row)
{
	if (row->family == AF_INET) {
		bpf_core_read(row->own, 4, &sk->__sk_common.skc_rcv_saddr);
		bpf_core_read(row->other, 4, &sk->__sk_common.skc_daddr);
	} else {
		bpf_core_read(row->own, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_core_read(row->other, 16, &sk->__sk_common.skc_v6_daddr);
	}
}

SEC("iter/bpf_sk_storage_map")
int tulle_peers_iter(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct socket_row row = {};
	struct sock *sk = ctx->sk;
	struct peer *peer = ctx->value;

	/* At the end it is called once without any. */
	if (!sk || !peer || sk->sk_protocol != IPPROTO_UDP)
		return 0;
	row.peer = *peer;
	row.cookie = sk->__sk_common.skc_cookie.counter;
	row.netns = sk->__sk_common.skc_net.net->ns.inum;
	row.link = sk->__sk_common.skc_bound_dev_if;
	row.family = sk->__sk_common.skc_family;
	row.own_port = bpf_htons(sk->__sk_common.skc_num);
	row.other_port = sk->__sk_common.skc_dport;
	read_addresses(sk, &row);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}
