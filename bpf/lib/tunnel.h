/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Outer headers on and off an skb, super-packets kept whole. */
#ifndef HR_LIB_TUNNEL_H
#define HR_LIB_TUNNEL_H

#include "lib/ecn.h"
#include "lib/outer_sum.h"
#include "stages/encap.h"
#include "stages/encap_vlan.h"

#define HR_EALREADY (-114)
#define HR_ENCAP_ETHERNET (BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN) | BPF_F_ADJ_ROOM_ENCAP_L2_ETH)

/* Flags of bpf_skb_adjust_room for a wire inside IP. To the kernel all between the outer UDP or GRE header and the inner frame is opaque. */
static __always_inline __u64 hr_encap_flags(__u32 segment, bool v4)
{
	return HR_ENCAP_ETHERNET | (v4 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV6) |
	       (hr_carrier(segment) == IPPROTO_UDP ? BPF_F_ADJ_ROOM_ENCAP_L4_UDP : BPF_F_ADJ_ROOM_ENCAP_L4_GRE);
}

/* Room for `room` octets of outer headers in front of the frame.
 *
 * The ENCAP flags mark a super-packet for the NIC's tunnel segmentation. They want an IP packet, and one that has no such
 * marks yet: of those that have (a workload's own tunnel), only single packets can be pushed; nor do they take other super-packets than
 * TCP's and UDP's. `whole`: a veth hands the
 * skb itself to the other host, where nothing can take the marks off again (no helper does, up to Linux 6.18), so none
 * are put on. What a guest calls a super-packet the kernel checks by its marks; such ones are marked, and the agent has the
 * veth cut them. `routed`: the next hop is known; else the kernel will route the packet by its network header, which only the
 * ENCAP flags move to the outer one.
 */
static __always_inline int hr_push(struct __sk_buff *skb, bool ip, bool whole, bool routed, __u32 room, __u64 flags)
{
	__u8 inner[ETH_HLEN];
	long error;

	if (ip && !whole) {
		if (bpf_skb_load_bytes(skb, 0, inner, sizeof(inner)))
			return HR_REASON_INTERNAL;
		error = bpf_skb_adjust_room(skb, room, BPF_ADJ_ROOM_MAC, flags);
		if (!error)
			return bpf_skb_store_bytes(skb, room, inner, sizeof(inner), 0) ? HR_REASON_INTERNAL :
											 HR_REASON_NONE;
		if (skb->gso_size)
			return HR_REASON_NESTED_SUPERPACKET;
		if (error != HR_EALREADY)
			return HR_REASON_INTERNAL;
	}
	if (!routed)
		return HR_REASON_NO_NEIGHBOUR;
	return bpf_skb_change_head(skb, room, 0) ? HR_REASON_INTERNAL : HR_REASON_NONE;
}

/* Over what is there: room for it has been made. `sum`: of the inner frame, for what holds a checksum of it. */
static __always_inline int hr_outer_write(struct __sk_buff *skb, const struct hr_adjacency *adjacency, __u32 segment,
					  __u32 hash, __u8 tos, __u32 sum)
{
	bool v4 = hr_adjacency_is_v4(adjacency);
	__u64 length = hr_outer_length(segment, v4);
	struct hr_head head;

	hr_head_fill(&head, adjacency, segment, hash, tos, skb->len - length);
	if (sum != HR_SUM_UNKNOWN && hr_outer_sums(segment, v4))
		hr_outer_sum_fill(&head, sum);
	length = hr_at_least_one(length, sizeof(head) - offsetof(struct hr_head, eth));
	return bpf_skb_store_bytes(skb, 0, &head.eth, length, 0) ? HR_REASON_INTERNAL : HR_REASON_NONE;
}

/* Outer headers or tags on. Returns why not, or HR_REASON_NONE. HR_REASON_NESTED_SUPERPACKET: it must be cut first, and is as it was. */
static __always_inline int hr_outer_push(struct __sk_buff *skb, const struct hr_adjacency *adjacency,
					 const struct hr_packet *packet, __u32 segment, __u32 hash, bool routed,
					 __u32 sum)
{
	bool ip = packet->kind == HR_KIND_IPV4 || packet->kind == HR_KIND_IPV6, v4 = hr_adjacency_is_v4(adjacency);
	bool whole = adjacency->flags & HR_ADJACENCY_WHOLE;
	int reason;

	if (adjacency->flags & HR_ADJACENCY_WIRE)
		return hr_tags_push(skb, segment);
	if (skb->gso_size && (!hr_carrier(segment) || hr_outer_sums(segment, v4)))
		return HR_REASON_NESTED_SUPERPACKET;
	reason = hr_push(skb, ip && hr_carrier(segment), whole, routed, hr_outer_length(segment, v4),
			 hr_encap_flags(segment, v4));
	return reason ?: hr_outer_write(skb, adjacency, segment, hash, hr_outer_tos(packet), sum);
}

/* Have skb->protocol say what the inner frame is, not what the outer one was. The kernel cuts super-packets by it, and asks at
 * least that protocol's header of what bpf_skb_adjust_room leaves: IPv6's is longer than an ARP message. bpf_skb_adjust_room
 * itself changes it from Linux 6.3 on only; bpf_skb_change_proto always does, and moves 20 octets of headers that go anyway.
 * Returns how many there are then.
 */
static __always_inline long hr_reveal(struct __sk_buff *skb, __be16 inner, __u32 room)
{
	const __u32 moved = sizeof(struct ipv6hdr) - sizeof(struct iphdr);

	if (skb->protocol == bpf_htons(ETH_P_IP) && inner == bpf_htons(ETH_P_IPV6))
		return bpf_skb_change_proto(skb, bpf_htons(ETH_P_IPV6), 0) ?: room + moved;
	if (skb->protocol == bpf_htons(ETH_P_IPV6) && inner != bpf_htons(ETH_P_IPV6))
		return bpf_skb_change_proto(skb, bpf_htons(ETH_P_IP), 0) ?: room - moved;
	return room;
}

/* The same where the outer frame is not IP at all: bpf_skb_adjust_room refuses it. A tag that the kernel takes out of a frame leaves
 * behind what it says (vlan_set_encap_proto), so a tag is put in, made to say it, and taken out. A second one makes the kernel
 * put the first into the frame.
 */
static __always_inline long hr_relabel(struct __sk_buff *skb, __be16 inner)
{
	const __be16 proto = inner == bpf_htons(ETH_P_IPV6) ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	const __be16 tag = bpf_htons(ETH_P_8021Q);

	return bpf_skb_vlan_push(skb, tag, 1) ?:
	       bpf_skb_vlan_push(skb, tag, 1) ?:
	       bpf_skb_store_bytes(skb, 2 * ETH_ALEN + HR_TAG_LENGTH, &proto, sizeof(proto), 0) ?:
	       bpf_skb_vlan_pop(skb) ?: /* the second one, and the first takes its place */
	       bpf_skb_vlan_pop(skb);
}

/* Take `room` octets of outer headers off. A frame that is shorter than an IP header is lengthened first and cut after (the
 * latter fails where GRO has noted a transport header, which then lies before the frame; such frames carry neither IP nor ARP).
 */
static __always_inline long hr_pop(struct __sk_buff *skb, __u32 room)
{
	__u32 length = skb->len - room;
	struct ethhdr inner;
	long error;

	if (bpf_skb_load_bytes(skb, room, &inner, sizeof(inner)))
		return -1;
	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6)) {
		error = hr_relabel(skb, inner.h_proto);
		if (error)
			return error;
	}
	error = hr_reveal(skb, inner.h_proto, room);
	if (error < 0)
		return error;
	room = error;
	if (length <
	    ETH_HLEN + (inner.h_proto == bpf_htons(ETH_P_IPV6) ? sizeof(struct ipv6hdr) : sizeof(struct iphdr))) {
		error = bpf_skb_change_tail(skb, skb->len + sizeof(struct ipv6hdr), 0);
		if (error)
			return error;
	}
	error = bpf_skb_adjust_room(skb, -(__s32)room, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO);
	if (error)
		return error;
	if (skb->len > length) {
		error = bpf_skb_change_tail(skb, length, 0);
		if (error)
			return error;
	}
	return bpf_skb_store_bytes(skb, 0, &inner, sizeof(inner), 0);
}

/* Bring the outer header's congestion mark into the inner IP header; the frame begins with its Ethernet header. */
static __always_inline int hr_ecn_bring(struct __sk_buff *skb, __u8 change, const struct hr_packet *packet)
{
	__u8 was[2], now[2];

	if (!change)
		return 0;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, was, sizeof(was)))
		return -1;
	now[0] = was[0];
	now[1] = was[1] ^ (packet->kind == HR_KIND_IPV4 ? change : change << 4);
	if (packet->kind == HR_KIND_IPV4 && bpf_l3_csum_replace(skb, ETH_HLEN + offsetof(struct iphdr, check),
								*(__u16 *)was, *(__u16 *)now, sizeof(was)))
		return -1;
	/* An IPv4 header sums up to the same as before: what a NIC summed up of the frame still holds. */
	return bpf_skb_store_bytes(skb, ETH_HLEN, now, sizeof(now),
				   packet->kind == HR_KIND_IPV4 ? 0 : BPF_F_RECOMPUTE_CSUM);
}

/* Outer headers off, if any are on, and what they say of congestion brought inside. Tags are off already. */
static __always_inline int hr_outer_pop(struct __sk_buff *skb, const struct hr_outer *outer,
					const struct hr_packet *packet)
{
	if (outer->length && hr_pop(skb, outer->length))
		return -1;
	return hr_ecn_bring(skb, hr_ecn_change(outer->tos, packet), packet);
}

#endif
