/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From octets to struct hr_packet. The checks and their order are docs/pipeline.md, "admit" 1-8. */
#ifndef HR_LIB_PARSE_H
#define HR_LIB_PARSE_H

#include "lib/base.h"

enum hr_kind {
	HR_KIND_OTHER, /* an ethertype without a flow key */
	HR_KIND_ARP,
	HR_KIND_IPV4,
	HR_KIND_IPV6,
};

enum hr_fragment_place {
	HR_WHOLE,
	HR_FRAGMENT_FIRST,
	HR_FRAGMENT_LATER,
};

#define HR_TCP_FIN 0x01
#define HR_TCP_SYN 0x02
#define HR_TCP_RST 0x04
#define HR_TCP_ACK 0x10

#define HR_IPV6_EXTENSIONS 6
#define HR_PARSE_PULL 0xff /* headers lie beyond the linear part: pull and parse again */

struct hr_packet {
	__u32 l3; /* offset of the IP or ARP header in the frame */
	__u32 l4; /* offset of the transport header */
	__u32 part; /* offset of what fragments are parts of (RFC 8200 section 4.5) */
	__u32 header; /* octets before the payload */
	__u32 ip_length; /* of the IP packet with its header */
	__u32 fragment_offset; /* octets */
	__u32 fragment_id;
	__u32 tcp_seq; /* host order */
	__u32 tcp_end; /* the sequence number after its last octet; SYN and FIN count as one */
	__u32 tcp_ack; /* host order; where tcp_flags has ACK */
	__u16 ethertype; /* host order */
	__u8 kind; /* enum hr_kind */
	__u8 fragment; /* enum hr_fragment_place */
	__u8 tcp_flags;
	__u8 icmp_type; /* ICMP and ICMPv6 only */
	__u8 icmp_code;
	__u8 tos; /* TOS or traffic class */
	__u8 eth_dst[6];
	__u8 eth_src[6];
	struct hr_flow_key key; /* where is left to the caller */
};

struct hr_icmp {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be16 id;
	__be16 sequence;
};

/* The type that answers a query of this type, or 0xff where it is no query (RFC 792, RFC 4443). */
static __always_inline __u8 hr_icmp_inverse(__u8 proto, __u8 type)
{
	if (proto == IPPROTO_ICMPV6)
		return type == 128 ? 129 : type == 129 ? 128 : 0xff;
	switch (type) {
	case 0:
		return 8;
	case 8:
		return 0;
	case 13:
	case 15:
	case 17:
		return type + 1;
	case 14:
	case 16:
	case 18:
		return type - 1;
	}
	return 0xff;
}

static __always_inline bool hr_icmp_is_question(__u8 proto, __u8 type)
{
	return proto == IPPROTO_ICMPV6 ? type == 128 : type == 8 || type == 13 || type == 15 || type == 17;
}

static __always_inline bool hr_is_icmp(const struct hr_packet *packet)
{
	return (packet->kind == HR_KIND_IPV4 && packet->key.proto == IPPROTO_ICMP) ||
	       (packet->kind == HR_KIND_IPV6 && packet->key.proto == IPPROTO_ICMPV6);
}

/* Octets at `offset` from data, if they are in the linear part; else why not. `end` is where the packet ends. */
#define HR_NEED(pointer, offset, size, end, reason)      \
	do {                                             \
		if ((offset) + (size) > (end))           \
			return reason;                   \
		pointer = data + (offset);               \
		if ((void *)pointer + (size) > data_end) \
			return HR_PARSE_PULL;            \
	} while (0)

/* `offset`: transport header; `end`: where the IP packet ends. A first fragment must hold its header only. */
static __always_inline int hr_parse_l4(void *data, void *data_end, __u32 offset, __u32 end, struct hr_packet *packet)
{
	const int malformed = packet->fragment ? HR_REASON_FRAGMENT_TINY : HR_REASON_MALFORMED_L4;

	packet->l4 = offset;
	packet->header = offset;
	if (packet->key.proto == IPPROTO_TCP) {
		struct tcphdr *tcp;
		__u32 length;
		__u8 flags;

		HR_NEED(tcp, offset, sizeof(*tcp), end, malformed);
		length = tcp->doff * 4;
		if (length < sizeof(*tcp) || offset + length > end)
			return malformed;
		flags = ((__u8 *)tcp)[13];
		packet->key.sport = tcp->source;
		packet->key.dport = tcp->dest;
		packet->header = offset + length;
		packet->tcp_flags = flags;
		packet->tcp_seq = bpf_ntohl(tcp->seq);
		packet->tcp_ack = bpf_ntohl(tcp->ack_seq);
		packet->tcp_end =
			packet->tcp_seq + end - packet->header + !!(flags & HR_TCP_SYN) + (flags & HR_TCP_FIN);
		if (((flags & HR_TCP_SYN) && (flags & (HR_TCP_FIN | HR_TCP_RST))) ||
		    ((flags & HR_TCP_FIN) && (flags & HR_TCP_RST)) ||
		    !(flags & (HR_TCP_SYN | HR_TCP_ACK | HR_TCP_RST | HR_TCP_FIN)))
			return HR_REASON_TCP_INVALID;
	} else if (packet->key.proto == IPPROTO_UDP) {
		struct udphdr *udp;
		__u32 length;

		HR_NEED(udp, offset, sizeof(*udp), end, malformed);
		length = bpf_ntohs(udp->len);
		if (length < sizeof(*udp) || (!packet->fragment && offset + length > end))
			return malformed;
		packet->key.sport = udp->source;
		packet->key.dport = udp->dest;
		packet->header = offset + sizeof(*udp);
	} else if (packet->key.proto == IPPROTO_SCTP) {
		struct udphdr *sctp; /* the ports are where UDP has them */

		HR_NEED(sctp, offset, 12, end, malformed);
		packet->key.sport = sctp->source;
		packet->key.dport = sctp->dest;
		packet->header = offset + 12;
	} else if (hr_is_icmp(packet)) {
		struct hr_icmp *icmp;

		HR_NEED(icmp, offset, sizeof(*icmp), end, malformed);
		packet->icmp_type = icmp->type;
		packet->icmp_code = icmp->code;
		packet->key.dport = bpf_htons(icmp->type << 8 | icmp->code);
		if (hr_icmp_inverse(packet->key.proto, icmp->type) != 0xff)
			packet->key.sport = icmp->id;
		packet->header = offset + sizeof(*icmp);
	}
	return HR_REASON_NONE;
}

static __always_inline int hr_parse_ipv4(void *data, void *data_end, __u32 offset, __u32 end, struct hr_packet *packet)
{
	struct iphdr *ip;
	__u32 header, length, place;

	HR_NEED(ip, offset, sizeof(*ip), end, HR_REASON_MALFORMED_IPV4);
	header = ip->ihl * 4;
	length = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || header < sizeof(*ip) || length < header || offset + length > end)
		return HR_REASON_MALFORMED_IPV4;
	if ((ip->saddr & bpf_htonl(0xe0000000)) == bpf_htonl(0xe0000000))
		return HR_REASON_MULTICAST_SOURCE;
	packet->ip_length = length;
	packet->tos = ip->tos;
	packet->key.proto = ip->protocol;
	hr_addr_from_v4(packet->key.saddr, ip->saddr);
	hr_addr_from_v4(packet->key.daddr, ip->daddr);
	packet->part = offset + header;
	place = bpf_ntohs(ip->frag_off);
	if (place & 0x3fff) {
		packet->fragment_id = ip->id;
		packet->fragment_offset = (place & 0x1fff) * 8;
		packet->fragment = packet->fragment_offset ? HR_FRAGMENT_LATER : HR_FRAGMENT_FIRST;
	}
	if (packet->fragment == HR_FRAGMENT_LATER) {
		packet->l4 = packet->header = offset + header;
		return HR_REASON_NONE;
	}
	return hr_parse_l4(data, data_end, offset + header, offset + length, packet);
}

static __always_inline int hr_parse_ipv6(void *data, void *data_end, __u32 offset, __u32 end, struct hr_packet *packet)
{
	struct ipv6hdr *ip;
	__u32 next;
	bool fragmented = false;
	__u8 proto;
	int i;

	HR_NEED(ip, offset, sizeof(*ip), end, HR_REASON_MALFORMED_IPV6);
	packet->ip_length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	if (ip->version != 6 || offset + packet->ip_length > end)
		return HR_REASON_MALFORMED_IPV6;
	/* The tables use ::ffff:0:0/96 for IPv4; on a wire it is not legal and must not be taken for it. */
	if (hr_addr_is_v4(&ip->saddr) || hr_addr_is_v4(&ip->daddr))
		return HR_REASON_MALFORMED_IPV6;
	if (ip->saddr.s6_addr[0] == 0xff)
		return HR_REASON_MULTICAST_SOURCE;
	end = offset + packet->ip_length;
	packet->tos = bpf_ntohs(*(__be16 *)ip) >> 4;
	__builtin_memcpy(packet->key.saddr, &ip->saddr, 16);
	__builtin_memcpy(packet->key.daddr, &ip->daddr, 16);
	proto = ip->nexthdr;
	next = offset + sizeof(*ip);
	for (i = 0; i <= HR_IPV6_EXTENSIONS; i++) {
		__u8 *extension;
		__u32 length;

		if (proto != IPPROTO_HOPOPTS && proto != IPPROTO_ROUTING && proto != IPPROTO_DSTOPTS &&
		    proto != IPPROTO_FRAGMENT && proto != IPPROTO_AH)
			break;
		if (i == HR_IPV6_EXTENSIONS || (proto == IPPROTO_FRAGMENT && fragmented))
			return HR_REASON_MALFORMED_IPV6;
		HR_BOUND(next, 16384);
		HR_NEED(extension, next, 8, end, HR_REASON_MALFORMED_IPV6);
		length = proto == IPPROTO_AH	   ? (extension[1] + 2) * 4 :
			 proto == IPPROTO_FRAGMENT ? 8 :
						     (extension[1] + 1) * 8;
		if (next + length > end)
			return HR_REASON_MALFORMED_IPV6;
		next += length;
		if (proto == IPPROTO_FRAGMENT) {
			__u32 place = bpf_ntohs(*(__be16 *)(extension + 2));

			fragmented = true;
			packet->part = next;
			packet->fragment_id = *(__u32 *)(extension + 4);
			packet->fragment_offset = place & 0xfff8;
			packet->fragment = packet->fragment_offset ? HR_FRAGMENT_LATER :
					   place & 1		   ? HR_FRAGMENT_FIRST :
								     HR_WHOLE;
		}
		proto = extension[0];
		if (packet->fragment == HR_FRAGMENT_LATER)
			break;
	}
	packet->key.proto = proto;
	HR_BOUND(next, 16384);
	if (packet->fragment == HR_FRAGMENT_LATER) {
		packet->l4 = packet->header = next;
		return HR_REASON_NONE;
	}
	return hr_parse_l4(data, data_end, next, end, packet);
}

/* Parse the frame that starts at `base` and is `length` octets long. Returns HR_REASON_NONE, why it is malformed,
 * or HR_PARSE_PULL. `tagged`: the NIC took a VLAN tag off.
 */
static __always_inline int hr_parse(void *data, void *data_end, __u32 base, __u32 length, bool tagged,
				    struct hr_packet *packet)
{
	struct ethhdr *eth;
	__u32 end = base + length;

	HR_NEED(eth, base, sizeof(*eth), end, HR_REASON_MALFORMED_ETHERNET);
	__builtin_memcpy(packet->eth_dst, eth->h_dest, 12);
	packet->ethertype = bpf_ntohs(eth->h_proto);
	packet->l3 = sizeof(*eth);
	packet->kind = HR_KIND_OTHER;
	if (packet->eth_src[0] & 1)
		return HR_REASON_MULTICAST_SOURCE;
	if (tagged || packet->ethertype == ETH_P_8021Q || packet->ethertype == ETH_P_8021AD)
		return HR_REASON_VLAN_TAGGED;
	base += sizeof(*eth);
	if (packet->ethertype == ETH_P_IP) {
		packet->kind = HR_KIND_IPV4;
		return hr_parse_ipv4(data, data_end, base, end, packet);
	}
	if (packet->ethertype == ETH_P_IPV6) {
		packet->kind = HR_KIND_IPV6;
		return hr_parse_ipv6(data, data_end, base, end, packet);
	}
	if (packet->ethertype == ETH_P_ARP) {
		struct arphdr *arp;

		packet->kind = HR_KIND_ARP;
		HR_NEED(arp, base, 28, end, HR_REASON_MALFORMED_ARP);
		if (arp->ar_hrd != bpf_htons(ARPHRD_ETHER) || arp->ar_pro != bpf_htons(ETH_P_IP) || arp->ar_hln != 6 ||
		    arp->ar_pln != 4 || (arp->ar_op != bpf_htons(1) && arp->ar_op != bpf_htons(2)))
			return HR_REASON_MALFORMED_ARP;
	}
	return HR_REASON_NONE;
}

#endif
