/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Hook: cgroup/getpeername4, when a socket of IPv4 is asked for its peer.
 * Reads: the peer. Changes: it, from a backend to the frontend that was meant. On failure: the peer stays.
 */
#include "service.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("cgroup/getpeername4")
int tulle_getpeername4(struct bpf_sock_addr *ctx)
{
	return reverse4(ctx, false);
}
