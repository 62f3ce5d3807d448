/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Hook: cgroup/connect4, before a socket of IPv4 connects.
 * Reads: the destination. Changes: it, from a frontend to a backend. On failure: the call is refused.
 */
#include "service.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("cgroup/connect4")
int tulle_connect4(struct bpf_sock_addr *ctx)
{
	return translate4(ctx, true);
}
