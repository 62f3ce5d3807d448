/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Services at the socket, for all programs: a destination that is a frontend becomes one of its backends before the
 * socket connects or sends, and a backend that answers is shown as the frontend that was meant. No packet is touched.
 */
#ifndef TULLE_SERVICE_H
#define TULLE_SERVICE_H

#include <asm-generic/errno.h>
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/stddef.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "choose.h"
#include "maps.h"
#include "seal.h"

/* What the kernel makes of a program's result (bpf_prog_run_array_cg): 0 is an error, EPERM unless another was set. */
enum result { RESULT_ERROR = 0, RESULT_GO_ON = 1 };

enum verdict { VERDICT_LEAVE, VERDICT_REWRITE, VERDICT_REFUSE };

enum lookup { LOOKUP_NONE, LOOKUP_EXACT, LOOKUP_ADDRESS, LOOKUP_TORN };

/* The set of a frontend may be replaced and removed between two lookups; for that to happen so often in a row it would
 * have to be replaced every few hundred nanoseconds. */
#define ATTEMPTS 4

static __always_inline bool is_mapped(const __be32 address[4])
{
	return address[0] == 0 && address[1] == 0 && address[2] == bpf_htonl(0xffff);
}

static __always_inline struct endpoint endpoint4(const struct bpf_sock_addr *ctx)
{
	struct endpoint at = {};

	at.address[2] = bpf_htonl(0xffff);
	at.address[3] = ctx->user_ip4;
	at.port = (__be16)ctx->user_port;
	return at;
}

static __always_inline struct endpoint endpoint6(const struct bpf_sock_addr *ctx)
{
	struct endpoint at = {};

	at.address[0] = ctx->user_ip6[0];
	at.address[1] = ctx->user_ip6[1];
	at.address[2] = ctx->user_ip6[2];
	at.address[3] = ctx->user_ip6[3];
	at.port = (__be16)ctx->user_port;
	return at;
}

static __always_inline void set_endpoint4(struct bpf_sock_addr *ctx, const struct endpoint *at)
{
	ctx->user_ip4 = at->address[3];
	ctx->user_port = at->port;
}

static __always_inline void set_endpoint6(struct bpf_sock_addr *ctx, const struct endpoint *at)
{
	ctx->user_ip6[0] = at->address[0];
	ctx->user_ip6[1] = at->address[1];
	ctx->user_ip6[2] = at->address[2];
	ctx->user_ip6[3] = at->address[3];
	ctx->user_port = at->port;
}

/* The caller's error is ECONNREFUSED where the kernel lets a program say so (Linux 5.18), EPERM elsewhere. */
static __always_inline enum result refuse(void)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_set_retval))
		bpf_set_retval(-ECONNREFUSED);
	return RESULT_ERROR;
}

static __always_inline bool is_outside_scope(struct bpf_sock_addr *ctx)
{
	__u32 zero = 0;
	const struct settings *settings = bpf_map_lookup_elem(&tulle_settings, &zero);

	return settings && settings->flags & SETTINGS_HOST_ONLY &&
	       bpf_get_netns_cookie(ctx) != settings->host_netns;
}

static __always_inline enum lookup read_frontend(const struct frontend_key *key, struct frontend *frontend)
{
	const struct frontend *found = bpf_map_lookup_elem(&tulle_frontends, key);

	if (!found)
		return LOOKUP_NONE;
	*frontend = *found;
	return is_sealed(key, frontend) ? LOOKUP_EXACT : LOOKUP_TORN;
}

/* The frontend of the address and port, else the one of the whole address. */
static __always_inline enum lookup find_frontend(const struct frontend_key *key, struct frontend *frontend)
{
	enum lookup result = read_frontend(key, frontend);
	struct frontend_key whole = *key;

	if (result != LOOKUP_NONE)
		return result;
	whole.port = 0;
	whole.protocol = 0;
	result = read_frontend(&whole, frontend);
	return result == LOOKUP_EXACT ? LOOKUP_ADDRESS : result;
}

static __always_inline struct endpoint endpoint_of(const struct frontend_key *key)
{
	struct endpoint at = { .port = key->port };

	__builtin_memcpy(at.address, key->address, sizeof(at.address));
	return at;
}

/* An older and a newer program may both be attached for a moment: what the first did is not done again. */
static __always_inline bool is_translated(struct bpf_sock_addr *ctx, const struct frontend_key *key, bool connected)
{
	struct endpoint to = endpoint_of(key);

	if (connected) {
		const struct peer *peer = bpf_sk_storage_get(&tulle_peers, ctx->sk, 0, 0);

		return peer && compare(&peer->backend, &to) == 0;
	}
	struct peer_key key_of_peer = { .socket = bpf_get_socket_cookie(ctx), .backend = to };

	return bpf_map_lookup_elem(&tulle_udp_peers, &key_of_peer);
}

static __always_inline bool remember_connected(struct bpf_sock_addr *ctx, const struct endpoint *frontend,
					       const struct endpoint *backend)
{
	struct peer *peer = bpf_sk_storage_get(&tulle_peers, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

	if (!peer)
		return false;
	peer->frontend = *frontend;
	peer->backend = *backend;
	return true;
}

static __always_inline bool remember_unconnected(struct bpf_sock_addr *ctx, const struct endpoint *frontend,
						 const struct endpoint *backend)
{
	struct peer_key key = { .socket = bpf_get_socket_cookie(ctx), .backend = *backend };
	const struct endpoint *known = bpf_map_lookup_elem(&tulle_udp_peers, &key);

	if (known && compare(known, frontend) == 0)
		return true;
	return bpf_map_update_elem(&tulle_udp_peers, &key, frontend, BPF_ANY) == 0;
}

static __always_inline void remember_peer(struct bpf_sock_addr *ctx, const struct frontend_key *key,
					  const struct endpoint *backend, bool connected)
{
	struct endpoint frontend = endpoint_of(key);

	if (!(connected ? remember_connected(ctx, &frontend, backend) : remember_unconnected(ctx, &frontend, backend)))
		count(COUNTER_NOT_REMEMBERED);
}

/* Rewrites `to`, the destination of a socket that connects, or else sends without being connected. */
static __always_inline enum verdict translate(struct bpf_sock_addr *ctx, struct endpoint *to, bool connected)
{
	struct frontend_key key = { .port = to->port, .protocol = ctx->protocol, .scope = SCOPE_INTERNAL };
	struct frontend frontend;
	struct choice choice = {};

	if (ctx->protocol != IPPROTO_TCP && ctx->protocol != IPPROTO_UDP) {
		count(COUNTER_OTHER_PROTOCOL);
		return VERDICT_LEAVE;
	}
	if (is_outside_scope(ctx)) {
		count(COUNTER_OTHER_NETNS);
		return VERDICT_LEAVE;
	}
	__builtin_memcpy(key.address, to->address, sizeof(key.address));

	for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
		enum lookup result = find_frontend(&key, &frontend);

		if (result == LOOKUP_NONE) {
			count(COUNTER_NOT_A_SERVICE);
			return VERDICT_LEAVE;
		}
		if (result == LOOKUP_TORN) {
			count(COUNTER_CHANGED_MEANWHILE);
			continue;
		}
		if (is_translated(ctx, &key, connected)) {
			count(COUNTER_ALREADY_TRANSLATED);
			return VERDICT_LEAVE;
		}
		if (frontend.flags & FRONTEND_SOURCE_RANGES) {
			count(COUNTER_PASSED);
			return VERDICT_LEAVE;
		}
		if (frontend.target != TARGET_SET) {
			count(result == LOOKUP_ADDRESS ? COUNTER_REFUSED_PORT : COUNTER_REFUSED);
			return VERDICT_REFUSE;
		}
		if (choose(ctx, &key, &frontend, !connected, &choice)) {
			remember_peer(ctx, &key, &choice.backend, connected);
			*to = choice.backend;
			return VERDICT_REWRITE;
		}
		count(COUNTER_CHANGED_MEANWHILE);
	}
	count(COUNTER_NO_BACKEND);
	return VERDICT_REFUSE;
}

/* The bodies of connect and sendmsg, one a family. */
static __always_inline int translate4(struct bpf_sock_addr *ctx, bool connected)
{
	struct endpoint to = endpoint4(ctx);
	enum verdict verdict = translate(ctx, &to, connected);

	if (verdict == VERDICT_LEAVE)
		return RESULT_GO_ON;
	if (verdict == VERDICT_REWRITE && !is_mapped(to.address)) {
		count(COUNTER_WRONG_FAMILY);
		return refuse();
	}
	if (verdict == VERDICT_REFUSE)
		return refuse();
	set_endpoint4(ctx, &to);
	count(COUNTER_TRANSLATED);
	return RESULT_GO_ON;
}

static __always_inline int translate6(struct bpf_sock_addr *ctx, bool connected)
{
	struct endpoint from = endpoint6(ctx), to = from;
	enum verdict verdict = translate(ctx, &to, connected);

	if (verdict == VERDICT_LEAVE)
		return RESULT_GO_ON;
	/* The kernel has already decided by which protocol the socket speaks. */
	if (verdict == VERDICT_REWRITE && is_mapped(from.address) != is_mapped(to.address)) {
		count(COUNTER_WRONG_FAMILY);
		return refuse();
	}
	if (verdict == VERDICT_REFUSE)
		return refuse();
	set_endpoint6(ctx, &to);
	count(COUNTER_TRANSLATED);
	return RESULT_GO_ON;
}

/*
 * Whether `from`, who answers a socket or is connected with it, is a backend; rewritten to the frontend. Only who answers
 * may be one that the socket is not connected with.
 */
static __always_inline bool reverse(struct bpf_sock_addr *ctx, struct endpoint *from, bool answers)
{
	const struct peer *peer = bpf_sk_storage_get(&tulle_peers, ctx->sk, 0, 0);
	const struct endpoint *frontend = NULL;

	if (peer && compare(&peer->backend, from) == 0) {
		frontend = &peer->frontend;
	} else if (answers) {
		struct peer_key key = { .socket = bpf_get_socket_cookie(ctx), .backend = *from };

		frontend = bpf_map_lookup_elem(&tulle_udp_peers, &key);
	}
	if (!frontend) {
		count(COUNTER_NOT_REVERSED);
		return false;
	}
	*from = *frontend;
	count(COUNTER_REVERSED);
	return true;
}

/* The bodies of recvmsg and getpeername. Their result must be 1. */
static __always_inline int reverse4(struct bpf_sock_addr *ctx, bool answers)
{
	struct endpoint from = endpoint4(ctx);

	if (reverse(ctx, &from, answers))
		set_endpoint4(ctx, &from);
	return RESULT_GO_ON;
}

static __always_inline int reverse6(struct bpf_sock_addr *ctx, bool answers)
{
	struct endpoint from = endpoint6(ctx);

	if (reverse(ctx, &from, answers))
		set_endpoint6(ctx, &from);
	return RESULT_GO_ON;
}

#endif
