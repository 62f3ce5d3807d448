/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which backend of a frontend's set a client gets: the one that it had, as long as the set has it and, for affinity, as
 * long as that lasts; otherwise any.
 */
#ifndef TULLE_CHOOSE_H
#define TULLE_CHOOSE_H

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "seal.h"

/* Sets of up to 65,535 backends are searched; in a larger one a choice holds only until the set changes. */
#define SEARCH_STEPS 16
#define NS_PER_SECOND 1000000000ull

static __always_inline bool read_backend(const struct frontend *frontend, __u32 slot, struct backend *backend)
{
	struct backend_key key = {};
	const struct backend *found;

	__builtin_memcpy(key.set, frontend->set, sizeof(key.set));
	key.slot = slot;
	found = bpf_map_lookup_elem(&tulle_backends, &key);
	if (!found)
		return false;
	*backend = *found;
	return is_sealed(&key, backend);
}

/* As memcmp of address and port. */
static __always_inline int compare(const struct endpoint *a, const struct endpoint *b)
{
#pragma unroll
	for (int i = 0; i < 4; i++) {
		if (a->address[i] != b->address[i])
			return bpf_ntohl(a->address[i]) < bpf_ntohl(b->address[i]) ? -1 : 1;
	}
	if (a->port != b->port)
		return bpf_ntohs(a->port) < bpf_ntohs(b->port) ? -1 : 1;
	return 0;
}

/* Whether the set has the backend of the choice; its slot is corrected. */
static __always_inline bool has_backend(const struct frontend *frontend, struct choice *choice)
{
	__u32 low = 0, high = frontend->count;
	struct backend backend;

	if (choice->slot < high && read_backend(frontend, choice->slot, &backend) &&
	    compare(&backend.at, &choice->backend) == 0)
		return true;
	for (int step = 0; step < SEARCH_STEPS && low < high; step++) {
		__u32 middle = low + (high - low) / 2;
		int order;

		if (!read_backend(frontend, middle, &backend))
			return false;
		order = compare(&backend.at, &choice->backend);
		if (order == 0) {
			choice->slot = middle;
			return true;
		}
		if (order < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return false;
}

/* `lifetime_ns` 0: for ever. */
static __always_inline bool recall(void *map, const struct client_key *key, const struct frontend *frontend,
				   __u64 lifetime_ns, struct choice *choice)
{
	const struct choice *found = bpf_map_lookup_elem(map, key);

	if (!found)
		return false;
	*choice = *found;
	if (lifetime_ns && bpf_ktime_get_ns() - choice->last_ns > lifetime_ns)
		return false;
	return has_backend(frontend, choice);
}

static __always_inline void remember(void *map, const struct client_key *key, struct choice *choice)
{
	choice->last_ns = bpf_ktime_get_ns();
	if (bpf_map_update_elem(map, key, choice, BPF_ANY))
		count(COUNTER_NOT_REMEMBERED);
}

static __always_inline bool choose_any(const struct frontend *frontend, struct choice *choice)
{
	struct backend backend;

	if (!frontend->count)
		return false;
	choice->slot = bpf_get_prandom_u32() % frontend->count;
	if (!read_backend(frontend, choice->slot, &backend))
		return false;
	choice->backend = backend.at;
	return true;
}

static __always_inline bool choose_with_affinity(struct bpf_sock_addr *ctx, const struct frontend_key *key,
						 const struct frontend *frontend, struct choice *choice)
{
	struct client_key client = { .cookie = bpf_get_netns_cookie(ctx), .frontend = *key };
	__u64 lifetime_ns = frontend->affinity_seconds * NS_PER_SECOND;

	if (recall(&tulle_affinity, &client, frontend, lifetime_ns, choice))
		count(COUNTER_AFFINITY);
	else if (!choose_any(frontend, choice))
		return false;
	remember(&tulle_affinity, &client, choice);
	return true;
}

/* False: the set is not, or no longer, in the maps. */
static __always_inline bool choose(struct bpf_sock_addr *ctx, const struct frontend_key *key,
				   const struct frontend *frontend, bool sticky, struct choice *choice)
{
	struct client_key client = { .frontend = *key };

	if (sticky) {
		client.cookie = bpf_get_socket_cookie(ctx);
		if (recall(&tulle_sticky, &client, frontend, 0, choice)) {
			count(COUNTER_STICKY);
			return true;
		}
	}
	if (frontend->affinity_seconds ? !choose_with_affinity(ctx, key, frontend, choice)
				       : !choose_any(frontend, choice))
		return false;
	if (sticky)
		remember(&tulle_sticky, &client, choice);
	return true;
}

#endif
