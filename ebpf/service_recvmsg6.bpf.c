/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Hook: cgroup/recvmsg6, after a datagram socket of IPv6 has received.
 * Reads: the source. Changes: it, from a backend to the frontend that was meant. On failure: the source stays.
 */
#include "service.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("cgroup/recvmsg6")
int tulle_recvmsg6(struct bpf_sock_addr *ctx)
{
	return reverse6(ctx, true);
}
