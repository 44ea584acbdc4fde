/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* encap: the outer headers of every wire, for tc and XDP; and whether a packet of the underlay is ours. docs/pipeline.md, "encap".
 *
 * A wire is one line of the lists below and one file encap_NAME.h (lib/wire.h). docs/adding-a-wire.md shows it.
 */
#ifndef HR_STAGES_ENCAP_H
#define HR_STAGES_ENCAP_H

#include "maps.h"
#include "stages/encap_geneve.h"
#include "stages/encap_gre.h"
#include "stages/encap_mpls.h"
#include "stages/encap_nsh.h"
#include "stages/encap_vxlan.h"

/* (enum hr_where, file's name, UDP port, words of header, over IPv6 the UDP checksum is computed) */
#define HR_WIRES_UDP(X)                           \
	X(HR_WHERE_GENEVE, geneve, 6081, 2, true) \
	X(HR_WHERE_MPLS_UDP, mpls, 6635, 1, true) \
	X(HR_WHERE_NSH_GPE, nsh_gpe, 4790, 4, false)
/* VXLAN's port is configured. */
#define HR_WIRES_VXLAN(X) X(HR_WHERE_VXLAN, vxlan, 0, 2, false)
/* (enum hr_where, file's name, protocol type, words of header with GRE's own) */
#define HR_WIRES_GRE(X)                    \
	X(HR_WHERE_GRE, gre, ETH_P_TEB, 2) \
	X(HR_WHERE_MPLS_GRE, mpls_gre, ETH_P_MPLS_UC, 2)
/* (enum hr_where, file's name, ethertype, words of header) */
#define HR_WIRES_ETHERNET(X) X(HR_WHERE_NSH_ETHERNET, nsh, ETH_P_NSH, 2)

#define HR_GRE_ODD bpf_htonl(0xc0070000) /* checksum, routing, version: such packets are none of ours */
#define HR_NO_FRAGMENT 0x4000
#define HR_OUTER_LONGEST (ETH_HLEN + sizeof(struct ipv6hdr) + 4 * (HR_SHIM_WORDS + HR_GENEVE_WORDS)) /* as taken */

/* Outer headers as they are sent. The pad aligns the IP header on the stack; the packet begins at eth. */
struct hr_head {
	__u16 pad;
	struct ethhdr eth;
	union {
		__be32 shim[HR_SHIM_WORDS];
		struct {
			struct iphdr ip;
			__be32 shim[HR_SHIM_WORDS];
		} v4;
		struct {
			struct ipv6hdr ip;
			__be32 shim[HR_SHIM_WORDS];
		} v6;
	};
};

static __always_inline bool hr_adjacency_is_v4(const struct hr_adjacency *adjacency)
{
	return hr_addr_is_v4(adjacency->daddr);
}

static __always_inline __u32 hr_path(__u32 vtep, __u32 hash)
{
	return vtep * HR_PATHS + (hash >> 16) % HR_PATHS;
}

/* All flows of a path carry the path in their source port, so that the FIB's answer for one is right for all. */
static __always_inline __be16 hr_entropy(__u32 hash)
{
	return bpf_htons(49152 + ((hash >> 16) & 0x3fff));
}

/* Outer TOS or traffic class: DSCP and ECN of an IP packet inside (RFC 6040 section 4.1, normal mode). */
static __always_inline __u8 hr_outer_tos(const struct hr_packet *packet)
{
	return packet->kind >= HR_KIND_IPV4 ? packet->tos : 0;
}

/* What carries a wire: IPPROTO_UDP, IPPROTO_GRE; 0: Ethernet alone. */
static __always_inline __u8 hr_carrier(__u32 segment)
{
	switch (hr_wire_of(segment)) {
#define X(where, ...) case where:
		HR_WIRES_UDP(X)
		HR_WIRES_VXLAN(X)
		return IPPROTO_UDP;
		HR_WIRES_GRE(X)
		return IPPROTO_GRE;
#undef X
	}
	return 0;
}

/* Octets of headers behind the outer IP header, or behind the outer Ethernet header where there is none. */
static __always_inline __u32 hr_shim_length(__u32 segment)
{
	switch (hr_wire_of(segment)) {
#define X(where, name, port, words, ...) \
	case where:                      \
		return 8 + 4 * words;
		HR_WIRES_UDP(X)
		HR_WIRES_VXLAN(X)
#undef X
#define X(where, name, type, words) \
	case where:                 \
		return 4 * words;
		HR_WIRES_GRE(X)
		HR_WIRES_ETHERNET(X)
#undef X
	}
	return 0;
}

/* Octets of outer headers before the inner frame. A segment of a physical network has tags instead. */
static __always_inline __u32 hr_outer_length(__u32 segment, bool v4)
{
	__u32 length = ETH_HLEN + hr_shim_length(segment);

	if (hr_carrier(segment))
		length += v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr);
	return length;
}

/* Whether the UDP checksum is computed, where the outer IP is IPv6. */
static __always_inline bool hr_wire_sums(__u32 segment)
{
	switch (hr_wire_of(segment)) {
#define X(where, name, port, words, sums) \
	case where:                       \
		return sums;
		HR_WIRES_UDP(X)
#undef X
	}
	return false;
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

static __always_inline void hr_udp_fill(__be32 *shim, __be16 port, __u32 hash, __u32 length)
{
	struct udphdr *udp = (struct udphdr *)shim;

	udp->source = hr_entropy(hash);
	udp->dest = port;
	udp->len = bpf_htons(length);
	udp->check = 0;
}

/* All behind the outer IP header; `length`: of the inner frame. */
static __always_inline void hr_shim_fill(__be32 *shim, const struct hr_adjacency *adjacency, __u32 segment, __u32 hash,
					 __u32 length)
{
	__u32 id = segment & HR_WHERE_ID;

	switch (hr_wire_of(segment)) {
#define X(where, name, number, words, ...)                                                                     \
	case where:                                                                                            \
		hr_udp_fill(shim, number ? bpf_htons(number) : adjacency->port, hash, length + 8 + 4 * words); \
		hr_##name##_fill(shim + 2, id);                                                                \
		break;
		HR_WIRES_VXLAN(X)
		HR_WIRES_UDP(X)
#undef X
#define X(where, name, type, words)         \
	case where:                         \
		hr_##name##_fill(shim, id); \
		break;
		HR_WIRES_GRE(X)
		HR_WIRES_ETHERNET(X)
#undef X
	}
}

/* `length`: of the inner frame. */
static __always_inline void hr_head_fill(struct hr_head *head, const struct hr_adjacency *adjacency, __u32 segment,
					 __u32 hash, __u8 tos, __u32 length)
{
	__u8 carrier = hr_carrier(segment);
	__u32 shim = hr_shim_length(segment);

	__builtin_memset(head, 0, sizeof(*head));
	__builtin_memcpy(&head->eth, adjacency->eth_dst, 12);
	if (!carrier) {
		head->eth.h_proto = bpf_htons(ETH_P_NSH);
		hr_shim_fill(head->shim, adjacency, segment, hash, length);
	} else if (hr_adjacency_is_v4(adjacency)) {
		head->eth.h_proto = bpf_htons(ETH_P_IP);
		head->v4.ip.version = 4;
		head->v4.ip.ihl = 5;
		head->v4.ip.tos = tos;
		head->v4.ip.tot_len = bpf_htons(sizeof(struct iphdr) + shim + length);
		head->v4.ip.frag_off = bpf_htons(HR_NO_FRAGMENT);
		head->v4.ip.ttl = HR_HOP_LIMIT;
		head->v4.ip.protocol = carrier;
		head->v4.ip.saddr = hr_addr_v4(adjacency->saddr);
		head->v4.ip.daddr = hr_addr_v4(adjacency->daddr);
		hr_ipv4_checksum(&head->v4.ip);
		hr_shim_fill(head->v4.shim, adjacency, segment, hash, length);
	} else {
		head->eth.h_proto = bpf_htons(ETH_P_IPV6);
		*(__be32 *)&head->v6.ip = bpf_htonl(6U << 28 | tos << 20 | (hash & 0xfffff));
		head->v6.ip.payload_len = bpf_htons(shim + length);
		head->v6.ip.nexthdr = carrier;
		head->v6.ip.hop_limit = HR_HOP_LIMIT;
		__builtin_memcpy(&head->v6.ip.saddr, adjacency->saddr, 32);
		hr_shim_fill(head->v6.shim, adjacency, segment, hash, length);
	}
}

static __always_inline bool hr_wire_used(const struct hr_config *config, __u32 where)
{
	return config->wires & 1U << where;
}

/* Behind UDP. */
static __always_inline int hr_udp_take(const struct udphdr *udp, const void *data_end, const struct hr_config *config,
				       struct hr_outer *outer)
{
	const __be32 *word = (const __be32 *)(udp + 1);

	outer->length += sizeof(*udp);
	if (udp->dest == config->port) {
		outer->where = HR_WHERE_VXLAN << HR_WHERE_SHIFT;
		outer->reason = hr_vxlan_take(word, data_end, outer);
		return HR_OUTER_OURS;
	}
#define X(wire, name, port, ...)                                          \
	if (udp->dest == bpf_htons(port) && hr_wire_used(config, wire)) { \
		outer->where = (__u32)wire << HR_WHERE_SHIFT;             \
		outer->reason = hr_##name##_take(word, data_end, outer);  \
		return HR_OUTER_OURS;                                     \
	}
	HR_WIRES_UDP(X)
#undef X
	return HR_OUTER_FOREIGN;
}

static __always_inline int hr_gre_packet_take(const __be32 *word, const void *data_end, const struct hr_config *config,
					      struct hr_outer *outer)
{
	if ((void *)(word + 1) > data_end || word[0] & HR_GRE_ODD)
		return HR_OUTER_FOREIGN;
#define X(wire, name, type, ...)                                                              \
	if ((word[0] & bpf_htonl(0xffff)) == bpf_htonl(type) && hr_wire_used(config, wire)) { \
		outer->where = (__u32)wire << HR_WHERE_SHIFT;                                 \
		outer->reason = hr_##name##_take(word, data_end, outer);                      \
		return HR_OUTER_OURS;                                                         \
	}
	HR_WIRES_GRE(X)
#undef X
	return HR_OUTER_FOREIGN;
}

static __always_inline int hr_carried_take(void *shim, void *data_end, __u8 protocol, const struct hr_config *config,
					   struct hr_outer *outer)
{
	if (protocol == IPPROTO_UDP) {
		struct udphdr *udp = shim;

		return (void *)(udp + 1) > data_end ? HR_OUTER_FOREIGN : hr_udp_take(udp, data_end, config, outer);
	}
	return protocol == IPPROTO_GRE ? hr_gre_packet_take(shim, data_end, config, outer) : HR_OUTER_FOREIGN;
}

/* NSH straight over Ethernet: whose MAC says who sent it. The caller knows whether the frame is for us. */
static __always_inline int hr_ethernet_take(struct ethhdr *eth, void *data_end, const struct hr_config *config,
					    struct hr_outer *outer)
{
	if (!hr_wire_used(config, HR_WHERE_NSH_ETHERNET))
		return HR_OUTER_FOREIGN;
	outer->saddr[0] = HR_VTEP_MAC;
	__builtin_memcpy(outer->saddr + 10, eth->h_source, 6);
	outer->where = (__u32)HR_WHERE_NSH_ETHERNET << HR_WHERE_SHIFT;
	outer->reason = hr_nsh_take((void *)(eth + 1), data_end, outer);
	return HR_OUTER_OURS;
}

/* Is it for our VTEP and a wire of ours; then where does the inner frame begin. Anything odd that is not surely ours is not ours. */
static __always_inline int hr_outer_parse(void *data, void *data_end, const struct hr_config *config,
					  struct hr_outer *outer)
{
	struct ethhdr *eth = data;
	int kind;

	__builtin_memset(outer, 0, sizeof(*outer));
	if ((void *)(eth + 1) > data_end)
		return HR_OUTER_FOREIGN;
	outer->length = sizeof(*eth);
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > data_end || ip->version != 4 || ip->ihl != 5 || !hr_addr_is_v4(config->vtep4) ||
		    ip->daddr != hr_addr_v4(config->vtep4) || ip->frag_off & bpf_htons(0x1fff))
			return HR_OUTER_FOREIGN;
		hr_addr_from_v4(outer->saddr, ip->saddr);
		outer->length += sizeof(*ip);
		outer->tos = ip->tos;
		kind = hr_carried_take(ip + 1, data_end, ip->protocol, config, outer);
		if (kind == HR_OUTER_OURS && ip->frag_off & bpf_htons(0x2000))
			outer->reason = HR_REASON_OUTER_FRAGMENT;
		return kind;
	}
	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > data_end || ip->version != 6 || !hr_addr_equal(&ip->daddr, config->vtep6))
			return HR_OUTER_FOREIGN;
		/* Not legal as a source on a wire, but what hr_vteps has others by: so nobody's. */
		if (!hr_addr_is_v4(&ip->saddr) && ip->saddr.s6_addr[0] != HR_VTEP_MAC)
			__builtin_memcpy(outer->saddr, &ip->saddr, 16);
		outer->length += sizeof(*ip);
		outer->tos = bpf_ntohs(*(__be16 *)ip) >> 4;
		return hr_carried_take(ip + 1, data_end, ip->nexthdr, config, outer);
	}
	if (eth->h_proto == bpf_htons(ETH_P_NSH))
		return hr_ethernet_take(eth, data_end, config, outer);
	return HR_OUTER_FOREIGN;
}

#endif
