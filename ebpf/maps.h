/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Every map, once. The agent makes and pins them, in the size that its settings say, and has the programs loaded with
 * those: types and layouts must be the same here, the sizes need not. Without pinning attribute: libbpf would pin
 * outside the agent's directory.
 */
#ifndef TULLE_MAPS_H
#define TULLE_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "types.h"

/* Written by the agent alone. Not preallocated: memory follows what is in them, whatever they may hold. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
} tulle_frontends __weak SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct backend_key);
	__type(value, struct backend);
} tulle_backends __weak SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} tulle_settings __weak SEC(".maps");

/* Written by the programs. Full ones forget who was not heard of for longest. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct client_key);
	__type(value, struct choice);
} tulle_affinity __weak SEC(".maps");

/* Sockets that send datagrams without being connected: QUIC, SIP and TFTP want one backend for a conversation. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct client_key);
	__type(value, struct choice);
} tulle_sticky __weak SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct peer_key);
	__type(value, struct endpoint);
} tulle_udp_peers __weak SEC(".maps");

/*
 * In the sockets themselves: gone with them and never forgotten before. An entry in an LRU map would cost each connection
 * some 0.7 us more (measured), as its memory is never in a cache.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct peer);
} tulle_peers __weak SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} tulle_counters __weak SEC(".maps");

static __always_inline void count(enum counter which)
{
	__u32 index = which;
	__u64 *value = bpf_map_lookup_elem(&tulle_counters, &index);

	if (value)
		(*value)++;
}

#endif
