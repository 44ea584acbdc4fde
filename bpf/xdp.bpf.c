// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The XDP hook replays, and only that: whatever has no decision yet, or none that XDP can carry out, goes on to tc. */
#include "lib/ecn.h"
#include "lib/meta.h"
#include "lib/outer_sum.h"
#include "replay.h"
#include "stages/encap.h"
#include "stages/encap_vlan.h"

const volatile __u32 hr_observe = 0;

static __always_inline void hr_xdp_conclude(const struct hr_packet *packet, __u32 ifindex)
{
	struct hr_conclusion *conclusion;
	__u32 zero = 0;

	if (!hr_observe)
		return;
	conclusion = bpf_map_lookup_elem(&hr_conclusions, &zero);
	if (!conclusion)
		return;
	conclusion->reason = HR_REASON_NONE;
	conclusion->verdict = XDP_REDIRECT;
	conclusion->ifindex = ifindex;
	conclusion->replayed = 1;
	conclusion->key = packet->key;
}

/* A copy of a constant length, of those that outer headers have. */
#define HR_XDP_WRITE(octets)                               \
	case octets:                                       \
		if (data + (octets) > data_end)            \
			return false;                      \
		__builtin_memcpy(data, &head.eth, octets); \
		return true

static __always_inline bool hr_xdp_push(struct xdp_md *xdp, const struct hr_adjacency *adjacency, __u8 tos,
					__u32 segment, __u32 hash, __u32 length, __u32 sum)
{
	__u32 octets = hr_outer_length(segment, hr_adjacency_is_v4(adjacency));
	void *data, *data_end;
	struct hr_head head;

	if (bpf_xdp_adjust_head(xdp, -(int)octets))
		return false;
	data = (void *)(long)xdp->data;
	data_end = (void *)(long)xdp->data_end;
	hr_head_fill(&head, adjacency, segment, hash, tos, length);
	if (sum != HR_SUM_UNKNOWN)
		hr_outer_sum_fill(&head, sum);
	switch (octets) {
		HR_XDP_WRITE(50);
		HR_XDP_WRITE(70);
		HR_XDP_WRITE(42);
		HR_XDP_WRITE(62);
		HR_XDP_WRITE(46);
		HR_XDP_WRITE(66);
		HR_XDP_WRITE(58);
		HR_XDP_WRITE(78);
		HR_XDP_WRITE(22);
	}
	return false;
}

/* Tags on, behind the addresses; the outer one first. */
static __always_inline bool hr_xdp_tag(struct xdp_md *xdp, __u32 segment)
{
	__u32 service = hr_segment_service(segment), vid = hr_segment_vid(segment);
	__be16 *words;
	int i;

	if (!vid)
		return true;
	if (bpf_xdp_adjust_head(xdp, service ? -2 * HR_TAG_LENGTH : -HR_TAG_LENGTH))
		return false;
	words = (void *)(long)xdp->data;
	if ((void *)words + ETH_HLEN + 2 * HR_TAG_LENGTH > (void *)(long)xdp->data_end)
		return false;
	for (i = 0; i < ETH_ALEN; i++)
		words[i] = words[i + (service ? HR_TAG_LENGTH : HR_TAG_LENGTH / 2)];
	words += ETH_ALEN;
	if (service) {
		*words++ = bpf_htons(ETH_P_8021AD);
		*words++ = bpf_htons(service);
	}
	*words++ = bpf_htons(ETH_P_8021Q);
	*words = bpf_htons(vid);
	return true;
}

/* The only drop: a frame that was half rewritten when the kernel refused room, which cannot go on. */
static __always_inline int hr_xdp_drop(__u32 port)
{
	hr_count_reason(port, HR_REASON_INTERNAL);
	return XDP_DROP;
}

SEC("xdp.frags")
int hr_xdp_from_port(struct xdp_md *xdp)
{
	__u32 ifindex = xdp->ingress_ifindex, length = bpf_xdp_get_buff_len(xdp), hash, sum = HR_SUM_UNKNOWN;
	struct hr_device *device = bpf_map_lookup_elem(&hr_devices, &ifindex);
	__u64 now = hr_now();
	struct hr_adjacency *adjacency, copy;
	struct hr_packet packet = {};
	struct hr_replay replay;
	struct hr_weight weight;
	struct hr_port *port;

	if (!device)
		return XDP_PASS;
	if (hr_parse((void *)(long)xdp->data, (void *)(long)xdp->data_end, 0, length, false, &packet) ||
	    packet.kind < HR_KIND_IPV4 || packet.fragment)
		return XDP_PASS;
	packet.key.where = device->port;
	if (!hr_replay(&packet, packet.ip_length, NULL, &replay, now))
		return XDP_PASS;
	weight = hr_weigh(length, packet.header, 0);
	if (!(replay.flow.flags & HR_FLOW_TUNNEL)) {
		port = bpf_map_lookup_elem(&hr_ports, &replay.flow.out);
		if (!port || !(port->flags & HR_PORT_XDP))
			return XDP_PASS;
		hr_count_from_port(device->port, weight);
		hr_count_to_port(replay.flow.out, weight);
		hr_replay_done(&replay, &packet, weight, now);
		hr_xdp_conclude(&packet, port->ifindex);
		return bpf_redirect(port->ifindex, 0);
	}
	adjacency = bpf_map_lookup_elem(&hr_adjacencies, &replay.flow.out);
	if (!adjacency)
		return XDP_PASS;
	copy = *adjacency;
	barrier();
	if (copy.state != HR_ADJACENCY_RESOLVED || READ_ONCE(adjacency->state) != HR_ADJACENCY_RESOLVED)
		return XDP_PASS;
	hash = replay.flow.hash;
	if (hr_outer_sums(replay.flow.segment, hr_adjacency_is_v4(&copy))) {
		sum = hr_sum_by_inner((void *)(long)xdp->data, (void *)(long)xdp->data_end, &packet, length);
		if (sum == HR_SUM_UNKNOWN) /* tc looks at every octet */
			return XDP_PASS;
	}
	if (copy.flags & HR_ADJACENCY_WIRE ?
		    !hr_xdp_tag(xdp, replay.flow.segment) :
		    !hr_xdp_push(xdp, &copy, hr_outer_tos(&packet), replay.flow.segment, hash, length, sum))
		return hr_xdp_drop(device->port);
	hr_count_from_port(device->port, weight);
	hr_replay_done(&replay, &packet, weight, now);
	hr_xdp_conclude(&packet, copy.ifindex);
	return bpf_redirect(copy.ifindex, 0);
}

/* Outer headers off, and where they came from beside the frame, for tc. */
static __always_inline int hr_xdp_to_tc(struct xdp_md *xdp, const struct hr_outer *outer)
{
	struct hr_meta *meta;

	if (bpf_xdp_adjust_head(xdp, outer->length))
		return XDP_PASS;
	if (bpf_xdp_adjust_meta(xdp, -(int)sizeof(*meta)))
		return hr_xdp_drop(0);
	meta = (void *)(long)xdp->data_meta;
	if ((void *)(meta + 1) > (void *)(long)xdp->data)
		return hr_xdp_drop(0);
	meta->magic = HR_META_MAGIC;
	meta->where = outer->where;
	__builtin_memcpy(meta->outer_saddr, outer->saddr, 16);
	return XDP_PASS;
}

SEC("xdp.frags")
int hr_xdp_from_uplink(struct xdp_md *xdp)
{
	__u32 zero = 0, ifindex = xdp->ingress_ifindex, length = bpf_xdp_get_buff_len(xdp);
	__u64 now = hr_now();
	struct hr_packet packet = {};
	struct hr_replay replay;
	struct hr_config *config;
	struct hr_uplink *uplink;
	struct hr_weight weight;
	struct hr_outer outer;
	struct hr_port *port;

	config = bpf_map_lookup_elem(&hr_configs, &zero);
	uplink = bpf_map_lookup_elem(&hr_uplinks, &ifindex);
	if (!config || !uplink || !uplink->tunnels)
		return XDP_PASS;
	if (hr_outer_parse((void *)(long)xdp->data, (void *)(long)xdp->data_end, config, &outer) == HR_OUTER_FOREIGN ||
	    outer.reason || !hr_carrier(outer.where))
		return XDP_PASS;
	HR_BOUND(outer.length, 512);
	if (hr_parse((void *)(long)xdp->data, (void *)(long)xdp->data_end, outer.length, length - outer.length, false,
		     &packet) ||
	    packet.kind < HR_KIND_IPV4 || packet.fragment || hr_ecn_lost(outer.tos, &packet) ||
	    hr_ecn_change(outer.tos, &packet))
		return XDP_PASS;
	packet.key.where = outer.where;
	if (!hr_replay(&packet, packet.ip_length, outer.saddr, &replay, now))
		return XDP_PASS;
	port = bpf_map_lookup_elem(&hr_ports, &replay.flow.out);
	if (!port || replay.flow.flags & HR_FLOW_TUNNEL)
		return XDP_PASS;
	if (!(port->flags & HR_PORT_XDP))
		return hr_xdp_to_tc(xdp, &outer);
	weight = hr_weigh(length - outer.length, packet.header - outer.length, 0);
	if (bpf_xdp_adjust_head(xdp, outer.length))
		return XDP_PASS;
	hr_count_to_port(replay.flow.out, weight);
	hr_replay_done(&replay, &packet, weight, now);
	hr_xdp_conclude(&packet, port->ifindex);
	return bpf_redirect(port->ifindex, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
