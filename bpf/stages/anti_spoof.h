/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* anti_spoof: may this port send from this MAC and address. docs/pipeline.md, "anti_spoof". */
#ifndef HR_STAGES_ANTI_SPOOF_H
#define HR_STAGES_ANTI_SPOOF_H

#include "walk.h"

#define HR_ND_ROUTER_SOLICIT 133
#define HR_ND_ROUTER_ADVERT 134
#define HR_ND_SOLICIT 135
#define HR_ND_ADVERT 136
#define HR_ND_REDIRECT 137

struct hr_arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender_addr[4];
	__u8 target_mac[6];
	__u8 target_addr[4];
};

/* RFC 4861 sections 4.3 and 4.4, with the first option. */
struct hr_nd {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 flags;
	__u8 target[16];
	__u8 option_type;
	__u8 option_length;
	__u8 option_mac[6];
};
#define HR_ND_BARE 24

static __always_inline __u32 hr_source_of(__u32 port, const __u8 *mac, const void *addr)
{
	struct hr_source_key key = { .prefixlen = HR_SOURCE_PREFIX + 128, .port = port };
	__u32 *source;

	__builtin_memcpy(key.mac, mac, 6);
	__builtin_memcpy(key.addr, addr, 16);
	source = bpf_map_lookup_elem(&hr_sources, &key);
	return source ? *source : 0;
}

static __always_inline int hr_spoof_arp(struct __sk_buff *skb, struct hr_walk *walk)
{
	struct hr_arp arp;
	__u8 sender[16];
	__be32 addr;

	if (bpf_skb_load_bytes(skb, walk->packet.l3, &arp, sizeof(arp)))
		return HR_REASON_MALFORMED_ARP;
	__builtin_memcpy(&addr, arp.sender_addr, 4);
	hr_addr_from_v4(sender, addr);
	if (!hr_mac_equal(arp.sender_mac, walk->packet.eth_src) ||
	    !hr_source_of(walk->from_port, walk->packet.eth_src, sender))
		return HR_REASON_SPOOFED_ARP;
	return HR_REASON_NONE;
}

/* Reads an NS or NA; false where RFC 4861 section 7.1 or RFC 6980 tells to discard it. */
static __always_inline bool hr_nd_load(struct __sk_buff *skb, const struct hr_packet *packet, struct hr_nd *nd)
{
	__u32 length = packet->l3 + packet->ip_length - packet->l4;
	__u8 hop_limit = 0;

	__builtin_memset(nd, 0, sizeof(*nd));
	bpf_skb_load_bytes(skb, packet->l3 + offsetof(struct ipv6hdr, hop_limit), &hop_limit, 1);
	if (packet->fragment || length < HR_ND_BARE || bpf_skb_load_bytes(skb, packet->l4, nd, HR_ND_BARE))
		return false;
	if (hop_limit != 255 || nd->code || nd->target[0] == 0xff || hr_addr_is_v4(nd->target))
		return false;
	if (length >= sizeof(*nd))
		bpf_skb_load_bytes(skb, packet->l4 + HR_ND_BARE, &nd->option_type, sizeof(*nd) - HR_ND_BARE);
	return true;
}

static __always_inline int hr_spoof_nd(struct __sk_buff *skb, struct hr_walk *walk)
{
	struct hr_packet *packet = &walk->packet;
	__u8 option = packet->icmp_type == HR_ND_SOLICIT ? 1 : 2;
	struct hr_nd nd;

	if (!hr_nd_load(skb, packet, &nd))
		return HR_REASON_MALFORMED_ND;
	if (packet->icmp_type == HR_ND_ADVERT &&
	    hr_source_of(walk->from_port, packet->eth_src, nd.target) != HR_SOURCE_ADDRESS)
		return HR_REASON_SPOOFED_ND;
	if (nd.option_type == option && !hr_mac_equal(nd.option_mac, packet->eth_src))
		return HR_REASON_SPOOFED_ND;
	return HR_REASON_NONE;
}

static __always_inline bool hr_udp_is(const struct hr_packet *packet, __u16 sport, __u16 dport)
{
	return packet->key.proto == IPPROTO_UDP && packet->key.sport == bpf_htons(sport) &&
	       packet->key.dport == bpf_htons(dport);
}

static __always_inline int hr_spoof_ip(struct __sk_buff *skb, struct hr_walk *walk, const struct hr_port *port,
				       __u32 source)
{
	struct hr_packet *packet = &walk->packet;
	bool ipv6 = packet->kind == HR_KIND_IPV6;
	bool icmp6 = ipv6 && packet->key.proto == IPPROTO_ICMPV6 && packet->fragment != HR_FRAGMENT_LATER;
	__u8 type = packet->icmp_type;

	if (ipv6 ? hr_udp_is(packet, 547, 546) : hr_udp_is(packet, 67, 68))
		return HR_REASON_ROGUE_DHCP;
	if (icmp6 && (type == HR_ND_ROUTER_ADVERT || type == HR_ND_REDIRECT) && !(port->flags & HR_PORT_ROUTER))
		return HR_REASON_ROGUE_RA;
	if (source == HR_SOURCE_UNSPECIFIED &&
	    (ipv6 ? icmp6 && (type == 131 || type == 132 || type == HR_ND_SOLICIT || type == 143) :
		    hr_udp_is(packet, 68, 67)))
		source = HR_SOURCE_ADDRESS;
	if (source != HR_SOURCE_ADDRESS)
		return HR_REASON_SPOOFED_ADDRESS;
	if (icmp6 && (type == HR_ND_SOLICIT || type == HR_ND_ADVERT))
		return hr_spoof_nd(skb, walk);
	return HR_REASON_NONE;
}

/* Every MAC that a port may use is a source with 0.0.0.0 as well; an allowed address of a MAC says that the MAC is. */
static __always_inline int hr_anti_spoof(struct __sk_buff *skb, struct hr_walk *walk, const struct hr_port *port)
{
	__u8 unspecified[16];
	__u32 source = 0;

	if (!(port->flags & HR_PORT_SECURITY))
		return HR_REASON_NONE;
	if (walk->packet.kind >= HR_KIND_IPV4)
		source = hr_source_of(walk->from_port, walk->packet.eth_src, walk->packet.key.saddr);
	hr_addr_from_v4(unspecified, 0);
	if (!source && !hr_source_of(walk->from_port, walk->packet.eth_src, unspecified))
		return HR_REASON_SPOOFED_MAC;
	if (walk->packet.kind == HR_KIND_ARP)
		return hr_spoof_arp(skb, walk);
	if (walk->packet.kind == HR_KIND_OTHER)
		return HR_REASON_ETHERTYPE;
	return hr_spoof_ip(skb, walk, port, source);
}

#endif
