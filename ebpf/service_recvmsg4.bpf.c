/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Hook: cgroup/recvmsg4, after a datagram socket of IPv4 has received.
 * Reads: the source. Changes: it, from a backend to the frontend that was meant. On failure: the source stays.
 */
#include "service.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("cgroup/recvmsg4")
int tulle_recvmsg4(struct bpf_sock_addr *ctx)
{
	return reverse4(ctx, true);
}
