/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The UDP checksum of outer headers over IPv6, which covers all that is inside (RFC 8926 section 4.3.1, RFC 7510 section 3.1). */
#ifndef HR_LIB_OUTER_SUM_H
#define HR_LIB_OUTER_SUM_H

#include "lib/checksum.h"
#include "lib/parse.h"
#include "stages/encap.h"

#define HR_SUM_UNKNOWN 0 /* no frame has this sum: its octets are not all zero */

/* Whether the outer headers hold such a checksum. */
static __always_inline bool hr_outer_sums(__u32 segment, bool v4)
{
	return hr_wire_sums(segment) && !v4;
}

/* Where a transport checksum is in force the sum of what it covers is known without looking at it: the complement of its pseudo
 * header's. That holds too while the kernel leaves the checksum to the device ("local checksum offload", Linux
 * Documentation/networking/checksum-offloads.rst). HR_SUM_UNKNOWN: the frame is of another kind. `length`: of the frame.
 */
static __always_inline __u32 hr_sum_by_inner(void *data, void *data_end, const struct hr_packet *packet, __u32 length)
{
	const bool v4 = packet->kind == HR_KIND_IPV4;
	const __u32 header = v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	__u32 rest = packet->ip_length - header, sum = 0;
	__u8 proto = packet->key.proto;
	struct ethhdr *eth = data;
	struct udphdr *udp;

	if (packet->kind < HR_KIND_IPV4 || packet->fragment || packet->l4 != ETH_HLEN + header ||
	    length != ETH_HLEN + packet->ip_length)
		return HR_SUM_UNKNOWN;
	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP && !hr_is_icmp(packet))
		return HR_SUM_UNKNOWN;
	if (!v4 || proto != IPPROTO_ICMP) /* ICMP of IPv4 has no pseudo header */
		sum = ~((__u32)bpf_htons(rest) + bpf_htons(proto));
	if (v4) {
		struct iphdr *ip = (void *)(eth + 1);

		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > data_end)
			return HR_SUM_UNKNOWN;
		if (proto == IPPROTO_ICMP)
			sum = bpf_csum_diff(NULL, 0, (void *)ip, sizeof(*ip), 0);
		else
			sum = bpf_csum_diff((void *)&ip->saddr, 8, (void *)ip, sizeof(*ip), sum);
	} else {
		struct ipv6hdr *ip = (void *)(eth + 1);

		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > data_end)
			return HR_SUM_UNKNOWN;
		sum = bpf_csum_diff(NULL, 0, (void *)ip, 8, sum); /* the addresses are in both, and cancel */
	}
	if (proto == IPPROTO_UDP && (!udp->check || udp->len != bpf_htons(rest)))
		return HR_SUM_UNKNOWN;
	return bpf_csum_diff(NULL, 0, (void *)eth, 2 * ETH_ALEN,
			     sum + eth->h_proto < sum ? sum + eth->h_proto + 1 : sum + eth->h_proto);
}

/* Into headers that are filled; `sum`: of the inner frame. */
static __always_inline void hr_outer_sum_fill(struct hr_head *head, __u32 sum)
{
	struct udphdr *udp = (struct udphdr *)head->v6.shim;
	__u64 all = bpf_csum_diff(NULL, 0, (__be32 *)&head->v6.ip.saddr,
				  sizeof(*head) - offsetof(struct hr_head, v6.ip.saddr), 0);

	udp->check = hr_checksum((all & 0xffffffff) + sum + udp->len + bpf_htons(IPPROTO_UDP)) ?: 0xffff;
}

#endif
