/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* respond: answer ARP and ND for the fixed addresses of a segment, and hand to the agent what configures a port.
 * docs/pipeline.md, "respond".
 */
#ifndef HR_STAGES_RESPOND_H
#define HR_STAGES_RESPOND_H

#include "lib/checksum.h"
#include "stages/anti_spoof.h"

/* The neighbour that has the address, unless it is the asker itself. */
static __always_inline struct hr_neighbour *hr_neighbour_of(struct hr_walk *walk, const void *addr)
{
	struct hr_neighbour_key key = { .segment = walk->segment };
	struct hr_neighbour *neighbour;

	__builtin_memcpy(key.addr, addr, 16);
	neighbour = bpf_map_lookup_elem(&hr_neighbours, &key);
	if (neighbour && hr_mac_equal(neighbour->mac, walk->packet.eth_src))
		return NULL;
	return neighbour;
}

static __always_inline bool hr_respond_arp(struct __sk_buff *skb, struct hr_walk *walk)
{
	struct hr_neighbour *neighbour;
	__u8 target[16], sender[4];
	struct hr_arp arp;
	__be32 addr;

	if (bpf_skb_load_bytes(skb, walk->packet.l3, &arp, sizeof(arp)))
		return false;
	if (arp.operation != bpf_htons(ARPOP_REQUEST) || *(__u32 *)arp.sender_addr == *(__u32 *)arp.target_addr)
		return false;
	__builtin_memcpy(&addr, arp.target_addr, 4);
	hr_addr_from_v4(target, addr);
	neighbour = hr_neighbour_of(walk, target);
	if (!neighbour)
		return false;
	arp.operation = bpf_htons(ARPOP_REPLY);
	__builtin_memcpy(sender, arp.sender_addr, 4);
	__builtin_memcpy(arp.sender_addr, arp.target_addr, 4);
	__builtin_memcpy(arp.target_addr, sender, 4);
	__builtin_memcpy(arp.target_mac, arp.sender_mac, 6);
	__builtin_memcpy(arp.sender_mac, neighbour->mac, 6);
	bpf_skb_store_bytes(skb, walk->packet.l3, &arp, sizeof(arp), 0);
	bpf_skb_store_bytes(skb, 0, walk->packet.eth_src, 6, 0);
	bpf_skb_store_bytes(skb, 6, neighbour->mac, 6, 0);
	return true;
}

/* The answer is as long as the question, so that nothing moves: NS + source option -> NA + target option. */
static __always_inline bool hr_respond_nd(struct __sk_buff *skb, struct hr_walk *walk)
{
	struct hr_packet *packet = &walk->packet;
	__u32 length = packet->l3 + packet->ip_length - packet->l4;
	const __u32 *asker = (const __u32 *)packet->key.saddr;
	struct hr_neighbour *neighbour;
	struct ethhdr eth;
	__u8 addrs[32];
	struct hr_nd nd;
	bool option;
	__s64 sum;

	if (packet->l4 != packet->l3 + sizeof(struct ipv6hdr) || !hr_nd_load(skb, packet, &nd))
		return false;
	if (!asker[0] && !asker[1] && !asker[2] && !asker[3])
		return false;
	option = length == sizeof(nd) && nd.option_type == 1 && nd.option_length == 1;
	if (!option && (length != HR_ND_BARE || packet->eth_dst[0] & 1))
		return false;
	neighbour = hr_neighbour_of(walk, nd.target);
	if (!neighbour)
		return false;
	__builtin_memcpy(addrs, nd.target, 16);
	__builtin_memcpy(addrs + 16, packet->key.saddr, 16);
	nd.type = HR_ND_ADVERT;
	nd.checksum = 0;
	nd.flags = bpf_htonl(0x60000000); /* solicited, override */
	if (option) {
		nd.option_type = 2;
		__builtin_memcpy(nd.option_mac, neighbour->mac, 6);
	}
	/* Without the option its eight octets are zero and add nothing to the sum. */
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&nd, sizeof(nd), bpf_htonl(length));
	sum = bpf_csum_diff(NULL, 0, (__be32 *)addrs, sizeof(addrs), sum);
	nd.checksum = hr_checksum(sum + bpf_htonl(IPPROTO_ICMPV6));
	__builtin_memcpy(eth.h_dest, packet->eth_src, 6);
	__builtin_memcpy(eth.h_source, neighbour->mac, 6);
	bpf_skb_store_bytes(skb, 0, &eth, 12, 0);
	bpf_skb_store_bytes(skb, packet->l3 + offsetof(struct ipv6hdr, saddr), addrs, sizeof(addrs), 0);
	if (option)
		bpf_skb_store_bytes(skb, packet->l4, &nd, sizeof(nd), 0);
	else
		bpf_skb_store_bytes(skb, packet->l4, &nd, HR_ND_BARE, 0);
	return true;
}

/* True: the frame is now the answer and goes back where it came from. */
static __always_inline bool hr_respond(struct __sk_buff *skb, struct hr_walk *walk)
{
	if (walk->packet.kind == HR_KIND_ARP)
		return hr_respond_arp(skb, walk);
	if (walk->packet.kind == HR_KIND_IPV6 && walk->packet.key.proto == IPPROTO_ICMPV6 && !walk->packet.fragment &&
	    walk->packet.icmp_type == HR_ND_SOLICIT)
		return hr_respond_nd(skb, walk);
	return false;
}

#define HR_RS 133 /* router solicitation, RFC 4861 section 4.1 */

/* Is it for the agent: DHCP, or a router solicitation. Flags of the port say what it answers. */
static __always_inline bool hr_puntable(const struct hr_packet *packet, const struct hr_port *port)
{
	const __u32 *to = (const __u32 *)packet->key.daddr;

	if (packet->fragment || !hr_mac_equal(packet->eth_src, port->mac))
		return false;
	if (packet->kind == HR_KIND_IPV4)
		return port->flags & HR_PORT_DHCP4 && packet->key.proto == IPPROTO_UDP &&
		       packet->key.sport == bpf_htons(68) && packet->key.dport == bpf_htons(67);
	if (packet->kind != HR_KIND_IPV6)
		return false;
	if (packet->key.proto == IPPROTO_ICMPV6)
		return port->flags & HR_PORT_RA && packet->icmp_type == HR_RS;
	return port->flags & HR_PORT_DHCP6 && packet->key.proto == IPPROTO_UDP && packet->key.sport == bpf_htons(546) &&
	       packet->key.dport == bpf_htons(547) && to[0] == bpf_htonl(0xff020000) && !to[1] && !to[2] &&
	       to[3] == bpf_htonl(0x00010002);
}

/* Hand the frame to the agent. Returns why it ends here, or 0: it goes on. */
static __always_inline int hr_punt(struct __sk_buff *skb, struct hr_walk *walk, const struct hr_port *port)
{
	__u32 length = skb->len;
	struct hr_punt *punt;

	if (!hr_puntable(&walk->packet, port))
		return 0;
	if (hr_dry)
		return HR_REASON_PUNTED;
	punt = bpf_ringbuf_reserve(&hr_punts, sizeof(*punt), 0);
	if (!punt)
		return HR_REASON_BUSY;
	if (length > sizeof(punt->octets))
		length = sizeof(punt->octets);
	if (bpf_skb_load_bytes(skb, 0, punt->octets, hr_at_least_one(length, sizeof(punt->octets)))) {
		bpf_ringbuf_discard(punt, 0);
		return HR_REASON_INTERNAL;
	}
	punt->port = walk->from_port;
	punt->ifindex = skb->ifindex;
	punt->length = length;
	bpf_ringbuf_submit(punt, 0);
	return HR_REASON_PUNTED;
}

#endif
