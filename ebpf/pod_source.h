/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a bridged pod may send with, as the agent writes it: agent/kernel/bpf/pod-sources.ts. */
#ifndef TULLE_POD_SOURCE_H
#define TULLE_POD_SOURCE_H

#include <linux/types.h>

struct pod_source {
	__u8 mac[6];
	__be16 protocol;   /* ETH_P_IP, ETH_P_IPV6 */
	__be32 address[4]; /* an IPv4 one is the first */
};

#endif
