/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Hook: cgroup/connect6, before a socket of IPv6 connects.
 * Reads: the destination. Changes: it, from a frontend to a backend. On failure: the call is refused.
 */
#include "service.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("cgroup/connect6")
int tulle_connect6(struct bpf_sock_addr *ctx)
{
	return translate6(ctx, true);
}
