/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* encap, VXLAN (RFC 7348): the outer headers, for tc and XDP; and the next hop they go to. docs/pipeline.md, "encap". */
#ifndef HR_STAGES_ENCAP_VXLAN_H
#define HR_STAGES_ENCAP_VXLAN_H

#include "lib/parse.h"
#include "maps.h"

#define HR_VXLAN_VALID bpf_htonl(0x08000000) /* flag I */
#define HR_HOP_LIMIT 64

struct hr_vxlan {
	__be32 flags;
	__be32 vni;
};

/* The pad aligns the IP header on the stack; the packet begins at eth. */
struct hr_vxlan4 {
	__u16 pad;
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
	struct hr_vxlan vxlan;
};
#define HR_VXLAN4_LENGTH (sizeof(struct hr_vxlan4) - offsetof(struct hr_vxlan4, eth))

struct hr_vxlan6 {
	__u16 pad;
	struct ethhdr eth;
	struct ipv6hdr ip;
	struct udphdr udp;
	struct hr_vxlan vxlan;
};
#define HR_VXLAN6_LENGTH (sizeof(struct hr_vxlan6) - offsetof(struct hr_vxlan6, eth))

static __always_inline __u32 hr_path(__u32 vtep, __u32 hash)
{
	return vtep * HR_PATHS + (hash >> 16) % HR_PATHS;
}

/* All flows of a path carry the path in their source port, so that the FIB's answer for one is right for all. */
static __always_inline __be16 hr_entropy(__u32 hash)
{
	return bpf_htons(49152 + ((hash >> 16) & 0x3fff));
}

/* Outer TOS or traffic class: DSCP copied; ECN as RFC 6040 section 4.1's compatibility mode, not-ECT, since nothing merges marks
 * when the outer header comes off.
 */
static __always_inline __u8 hr_outer_tos(const struct hr_packet *packet)
{
	return packet->kind == HR_KIND_IPV4 || packet->kind == HR_KIND_IPV6 ? packet->tos & 0xfc : 0;
}

static __always_inline void hr_ipv4_checksum(struct iphdr *ip)
{
	const __u16 *words = (const __u16 *)ip;
	__u32 sum = 0;
	int i;

	ip->check = 0;
#pragma unroll
	for (i = 0; i < 10; i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~sum;
}

/* `length`: of the inner frame. */
static __always_inline void hr_vxlan4_fill(struct hr_vxlan4 *outer, const struct hr_adjacency *adjacency, __u32 vni,
					   __u32 hash, __u8 tos, __u32 length)
{
	__builtin_memset(outer, 0, sizeof(*outer));
	__builtin_memcpy(&outer->eth, adjacency->eth_dst, 12);
	outer->eth.h_proto = bpf_htons(ETH_P_IP);
	outer->ip.version = 4;
	outer->ip.ihl = 5;
	outer->ip.tos = tos;
	outer->ip.tot_len = bpf_htons(length + HR_VXLAN4_LENGTH - sizeof(outer->eth));
	outer->ip.frag_off = bpf_htons(0x4000);
	outer->ip.ttl = HR_HOP_LIMIT;
	outer->ip.protocol = IPPROTO_UDP;
	outer->ip.saddr = hr_addr_v4(adjacency->saddr);
	outer->ip.daddr = hr_addr_v4(adjacency->daddr);
	hr_ipv4_checksum(&outer->ip);
	outer->udp.source = hr_entropy(hash);
	outer->udp.dest = adjacency->port;
	outer->udp.len = bpf_htons(length + sizeof(outer->udp) + sizeof(outer->vxlan));
	outer->vxlan.flags = HR_VXLAN_VALID;
	outer->vxlan.vni = bpf_htonl(vni << 8);
}

/* The UDP checksum stays zero: RFC 6935, RFC 6936; what is inside has its own. */
static __always_inline void hr_vxlan6_fill(struct hr_vxlan6 *outer, const struct hr_adjacency *adjacency, __u32 vni,
					   __u32 hash, __u8 tos, __u32 length)
{
	__builtin_memset(outer, 0, sizeof(*outer));
	__builtin_memcpy(&outer->eth, adjacency->eth_dst, 12);
	outer->eth.h_proto = bpf_htons(ETH_P_IPV6);
	*(__be32 *)&outer->ip = bpf_htonl(6 << 28 | tos << 20);
	outer->ip.payload_len = bpf_htons(length + sizeof(outer->udp) + sizeof(outer->vxlan));
	outer->ip.nexthdr = IPPROTO_UDP;
	outer->ip.hop_limit = HR_HOP_LIMIT;
	__builtin_memcpy(&outer->ip.saddr, adjacency->saddr, 32);
	outer->udp.source = hr_entropy(hash);
	outer->udp.dest = adjacency->port;
	outer->udp.len = outer->ip.payload_len;
	outer->vxlan.flags = HR_VXLAN_VALID;
	outer->vxlan.vni = bpf_htonl(vni << 8);
}

/* What an outer packet is to us. */
enum hr_outer_kind {
	HR_OUTER_FOREIGN, /* not ours: the kernel's */
	HR_OUTER_OURS,
};

struct hr_outer {
	__u8 saddr[16];
	__u32 length; /* octets before the inner frame */
	__u32 vni;
	__u32 reason; /* why it cannot be taken */
};

/* Is it for our VTEP and tunnel port; then where does the inner frame begin. Anything odd that is not surely ours is not ours. */
static __always_inline int hr_vxlan_parse(void *data, void *data_end, const struct hr_config *config,
					  struct hr_outer *outer)
{
	struct ethhdr *eth = data;
	struct hr_vxlan *vxlan;
	struct udphdr *udp;

	outer->reason = HR_REASON_NONE;
	if ((void *)(eth + 1) > data_end)
		return HR_OUTER_FOREIGN;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > data_end || ip->version != 4 || ip->ihl != 5 || ip->protocol != IPPROTO_UDP ||
		    !hr_addr_is_v4(config->vtep4) || ip->daddr != hr_addr_v4(config->vtep4) ||
		    ip->frag_off & bpf_htons(0x1fff) || udp->dest != config->port)
			return HR_OUTER_FOREIGN;
		hr_addr_from_v4(outer->saddr, ip->saddr);
		outer->length = HR_VXLAN4_LENGTH;
		if (ip->frag_off & bpf_htons(0x2000)) {
			outer->reason = HR_REASON_OUTER_FRAGMENT;
			return HR_OUTER_OURS;
		}
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		udp = (void *)(ip + 1);
		if ((void *)(udp + 1) > data_end || ip->version != 6 || ip->nexthdr != IPPROTO_UDP ||
		    !hr_addr_equal(&ip->daddr, config->vtep6) || udp->dest != config->port)
			return HR_OUTER_FOREIGN;
		__builtin_memcpy(outer->saddr, &ip->saddr, 16);
		outer->length = HR_VXLAN6_LENGTH;
	} else {
		return HR_OUTER_FOREIGN;
	}
	vxlan = (void *)(udp + 1);
	if ((void *)(vxlan + 1) > data_end || !(vxlan->flags & HR_VXLAN_VALID)) {
		outer->reason = HR_REASON_MALFORMED_TUNNEL;
		return HR_OUTER_OURS;
	}
	outer->vni = bpf_ntohl(vxlan->vni) >> 8;
	return HR_OUTER_OURS;
}

#endif
