/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Hook: cgroup/sendmsg6, before a datagram socket of IPv6 sends to an address that it is given.
 * Reads: the destination. Changes: it, from a frontend to a backend. On failure: the call is refused.
 */
#include "service.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("cgroup/sendmsg6")
int tulle_sendmsg6(struct bpf_sock_addr *ctx)
{
	return translate6(ctx, false);
}
