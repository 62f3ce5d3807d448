/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Hook: tc, ingress of the bridge of bridged pods: what its ports sent to the host.
 * Reads: Ethernet and IP source addresses, the map of the pods' own. Changes: nothing. Verdict: IP packets go on that a pod
 * sends with an address and the MAC that are its own, and ARP, which the host answers for itself only; whatever else comes
 * is dropped, also what cannot be read. An Ethernet type that is neither may hide IP behind further VLAN tags.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "pod_source.h"

#define MAC_AT offsetof(struct ethhdr, h_source)
/* Of struct iphdr and struct ipv6hdr. */
#define SOURCE4_AT (ETH_HLEN + 12)
#define SOURCE6_AT (ETH_HLEN + 8)

/* Made by the agent, which says how large it is. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct pod_source);
	__type(value, __u32);
} tulle_sources SEC(".maps");

SEC("tc")
int tulle_source(struct __sk_buff *skb)
{
	/* As the kernel took it from the frame: by this it hands the packet on. */
	struct pod_source source = { .protocol = skb->protocol };
	long error;

	switch (source.protocol) {
	case bpf_htons(ETH_P_IP):
		error = bpf_skb_load_bytes(skb, SOURCE4_AT, source.address, 4);
		break;
	case bpf_htons(ETH_P_IPV6):
		error = bpf_skb_load_bytes(skb, SOURCE6_AT, source.address, 16);
		break;
	case bpf_htons(ETH_P_ARP):
		return TC_ACT_UNSPEC;
	default:
		return TC_ACT_SHOT;
	}
	if (error || bpf_skb_load_bytes(skb, MAC_AT, source.mac, ETH_ALEN))
		return TC_ACT_SHOT;
	return bpf_map_lookup_elem(&tulle_sources, &source) ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
