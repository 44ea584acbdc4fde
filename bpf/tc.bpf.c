// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The tc hook: replay what is known, walk what is not. One program a stage; docs/pipeline.md has the order. */
#include "lib/meta.h"
#include "lib/tunnel.h"
#include "replay.h"
#include "stages/acl.h"
#include "stages/anti_spoof.h"
#include "stages/decide.h"
#include "stages/flood.h"
#include "stages/forward.h"
#include "stages/respond.h"
#include "stages/seam.h"
#include "stages/too_big.h"
#include "stages/track.h"

#define HR_PULL 512 /* octets made linear when headers are not */

/* Longest IP packet that the frame stands for: a super-packet's segments count, not itself. */
static __always_inline __u32 hr_longest(const struct __sk_buff *skb, const struct hr_packet *packet, __u32 base)
{
	__u32 segment = packet->header - base - ETH_HLEN + skb->gso_size;

	return skb->gso_size && segment < packet->ip_length ? segment : packet->ip_length;
}

static __always_inline int hr_parse_skb(struct __sk_buff *skb, __u32 base, struct hr_packet *packet)
{
	int reason;

	__builtin_memset(packet, 0, sizeof(*packet));
	reason = hr_parse((void *)(long)skb->data, (void *)(long)skb->data_end, base, skb->len - base,
			  skb->vlan_present, packet);
	if (reason != HR_PARSE_PULL)
		return reason;
	bpf_skb_pull_data(skb, skb->len < HR_PULL ? skb->len : HR_PULL);
	__builtin_memset(packet, 0, sizeof(*packet));
	return hr_parse((void *)(long)skb->data, (void *)(long)skb->data_end, base, skb->len - base, skb->vlan_present,
			packet);
}

/* Tells the walk what the replay has looked up already. */
static __always_inline __u32 hr_unknown(const struct hr_replay *replay)
{
	return replay->known ? 0 : HR_WALK_UNKNOWN;
}

#define HR_BY_ENCAP 0x100 /* no verdict: the stage encap has what it needs, and does the rest */

/* A replay that needs more than outer headers; the adjacency is there already. */
static __always_inline int hr_leave_to_encap(struct hr_walk *walk, const struct hr_packet *packet,
					     const struct hr_flow *flow)
{
	walk->packet = *packet;
	walk->flags = HR_WALK_REPLAYED;
	walk->segment = flow->segment;
	walk->from_port = packet->key.where;
	walk->to_port = walk->purse = walk->outer = 0;
	walk->hash = flow->hash;
	walk->out = flow->out;
	walk->rule = (struct hr_conn_rule){};
	walk->sum = HR_SUM_UNKNOWN;
	walk->hop = HR_REASON_NONE;
	return HR_BY_ENCAP;
}

/* -1: it must be walked. */
static __always_inline int hr_carry_out(struct __sk_buff *skb, const struct hr_packet *packet,
					const struct hr_replay *replay, struct hr_weight weight,
					const struct hr_outer *outer)
{
	struct hr_adjacency *adjacency;
	struct hr_port *port;
	int reason;

	if (replay->flow.flags & HR_FLOW_TUNNEL) {
		const struct hr_flow *flow = &replay->flow;
		struct hr_walk *walk = hr_walk_get();
		struct hr_adjacency *copy;

		adjacency = bpf_map_lookup_elem(&hr_adjacencies, &replay->flow.out);
		if (!adjacency || !walk || outer) /* nothing goes from tunnel to tunnel */
			return -1;
		copy = &walk->adjacency;
		*copy = *adjacency;
		barrier();
		if (copy->state != HR_ADJACENCY_RESOLVED || READ_ONCE(adjacency->state) != HR_ADJACENCY_RESOLVED)
			return -1;
		if (!(flow->flags & HR_FLOW_WHOLE))
			copy->flags &= ~HR_ADJACENCY_WHOLE;
		if (hr_outer_sums(flow->segment, hr_adjacency_is_v4(copy)))
			return hr_leave_to_encap(walk, packet, flow);
		reason = hr_outer_push(skb, copy, packet, flow->segment, flow->hash, true, HR_SUM_UNKNOWN);
		if (reason == HR_REASON_NESTED_SUPERPACKET)
			return hr_leave_to_encap(walk, packet, flow);
		if (reason)
			return hr_drop_at(skb, flow->from_index, reason);
		hr_conclude(HR_REASON_NONE, TC_ACT_REDIRECT, copy->ifindex, &packet->key, NULL);
		return bpf_redirect(copy->ifindex, 0);
	}
	port = bpf_map_lookup_elem(&hr_ports, &replay->flow.out);
	if (!port)
		return -1;
	if (outer && hr_outer_pop(skb, outer, packet))
		return hr_drop_at(skb, 0, HR_REASON_INTERNAL);
	hr_count_to_port(replay->flow.out, weight);
	hr_conclude(HR_REASON_NONE, TC_ACT_REDIRECT, port->ifindex, &packet->key, NULL);
	return hr_deliver(skb, port);
}

/* The sub-port that a tagged frame from a trunk's device belongs to; 0: none, and the frame is as it was. Its tag comes off. */
static __always_inline __u32 hr_subport(struct __sk_buff *skb, __u32 trunk)
{
	struct hr_subport_key key = { .port = trunk };
	struct hr_subport *subport;
	struct {
		__be16 proto;
		__be16 tci;
	} tag;

	if (skb->vlan_present) {
		tag.proto = skb->vlan_proto;
		key.vid = skb->vlan_tci & HR_VID;
	} else {
		if (bpf_skb_load_bytes(skb, 2 * ETH_ALEN, &tag, sizeof(tag)))
			return 0;
		key.vid = bpf_ntohs(tag.tci) & HR_VID;
	}
	if (tag.proto != bpf_htons(ETH_P_8021Q))
		return 0;
	subport = bpf_map_lookup_elem(&hr_subports, &key);
	return subport && !bpf_skb_vlan_pop(skb) ? subport->port : 0;
}

/* Frames from a workload. Never returns "go on to the host's stack". */
SEC("tc")
int hr_from_port(struct __sk_buff *skb)
{
	__u64 now = hr_now();
	__u32 ifindex = skb->ifindex, length, from, subport;
	struct hr_device *device = bpf_map_lookup_elem(&hr_devices, &ifindex);
	struct hr_replay replay;
	struct hr_weight weight;
	struct hr_packet packet;
	struct hr_walk *walk;
	struct hr_port *port;
	int reason, verdict;

	if (!device)
		return hr_drop_at(skb, 0, HR_REASON_NO_PORT);
	replay.known = true;
	from = device->port;
	reason = hr_parse_skb(skb, 0, &packet);
	if (reason == HR_REASON_VLAN_TAGGED) {
		subport = hr_subport(skb, from);
		if (subport) {
			from = subport;
			reason = hr_parse_skb(skb, 0, &packet);
		}
	}
	packet.key.where = from;
	weight = hr_weigh(skb->len, packet.header, skb->gso_size);
	length = hr_longest(skb, &packet, 0);
	if (!reason && packet.kind >= HR_KIND_IPV4 && !packet.fragment &&
	    hr_replay(&packet, length, NULL, &replay, now)) {
		verdict = hr_carry_out(skb, &packet, &replay, weight, NULL);
		if (verdict >= 0) {
			hr_count_from_port(from, weight);
			hr_replay_done(&replay, &packet, weight, now);
			if (verdict != HR_BY_ENCAP)
				return verdict;
			bpf_tail_call(skb, &hr_stages, HR_STAGE_ENCAP);
			return hr_drop_at(skb, from, HR_REASON_INTERNAL);
		}
	}
	walk = hr_walk_get();
	if (!walk)
		return hr_drop_at(skb, 0, HR_REASON_INTERNAL);
	__builtin_memset(walk, 0, HR_WALK_FRESH);
	walk->from_index = from;
	walk->from_epoch = hr_epoch(from); /* before any table that the decision stands on */
	barrier();
	port = bpf_map_lookup_elem(&hr_ports, &from);
	if (!port)
		return hr_drop_at(skb, 0, HR_REASON_INTERNAL);
	walk->packet = packet;
	walk->purse = hr_purse(from, !reason && packet.kind >= HR_KIND_IPV4 && !packet.fragment && replay.known &&
					     !hr_tcp_opens(&packet));
	if (!hr_budget_left(walk->purse, now)) {
		hr_conclude(HR_REASON_BUDGET, TC_ACT_SHOT, 0, &walk->packet.key, &walk->rule);
		return hr_drop_at(skb, walk->from_index, HR_REASON_BUDGET);
	}
	walk->weight = weight;
	walk->length = length;
	walk->flags = hr_unknown(&replay) | (port->flags & HR_PORT_PEER ? HR_WALK_PEER : 0);
	walk->from_port = from;
	walk->segment = port->segment;
	walk->mtu = port->mtu;
	hr_count_walk(walk->from_port, weight);
	if (reason == HR_REASON_MALFORMED_ETHERNET)
		return hr_drop(skb, walk, reason);
	if (!(port->flags & HR_PORT_UP))
		return hr_drop(skb, walk, HR_REASON_PORT_DOWN);
	if (reason)
		return hr_drop(skb, walk, reason == HR_PARSE_PULL ? HR_REASON_INTERNAL : reason);
	hr_resolve(walk);
	return hr_next(skb, walk, HR_STAGE_ANTI_SPOOF);
}

/* XDP may have taken the outer headers off. */
static __always_inline bool hr_uncovered(struct __sk_buff *skb, struct hr_outer *outer)
{
	struct hr_meta *meta = (void *)(long)skb->data_meta;

	if ((void *)(meta + 1) > (void *)(long)skb->data || meta->magic != HR_META_MAGIC)
		return false;
	__builtin_memset(outer, 0, sizeof(*outer));
	outer->where = meta->where;
	__builtin_memcpy(outer->saddr, meta->outer_saddr, 16);
	return true;
}

/* A frame of a physical network, and for somebody here: its tags come off. Else it is the kernel's, as is what is for the device's own
 * MAC: a workload that sends from that one takes nothing from the host.
 */
static __always_inline bool hr_from_wire(struct __sk_buff *skb, __u32 physical, struct hr_outer *outer)
{
	struct hr_walk *walk = hr_walk_get();
	struct hr_place place = {};
	__u8 mac[6];
	__u32 tags;

	if (!physical || !walk)
		return false;
	walk->tags = (struct hr_tags){};
	tags = hr_tags_read(skb, &walk->tags);
	if (tags == HR_WHERE_NONE || bpf_skb_load_bytes(skb, 0, mac, sizeof(mac)))
		return false;
	__builtin_memset(outer, 0, sizeof(*outer));
	outer->where = (__u32)HR_WHERE_PHYSICAL << HR_WHERE_SHIFT | physical << HR_PHYSICAL_SHIFT | tags;
	if (!bpf_map_lookup_elem(&hr_wires, &outer->where))
		return false;
	if (!(mac[0] & 1) && (skb->pkt_type == PACKET_HOST || !hr_locate(outer->where, mac, &place) || place.vtep))
		return false;
	outer->reason = hr_tags_pop(skb, outer->where);
	return true;
}

/* Outer headers off, if any are on: what counts next is how many there were. False: it is the kernel's, untouched. */
static __always_inline bool hr_uncover(struct __sk_buff *skb, struct hr_outer *outer)
{
	__u32 zero = 0, ifindex = skb->ifindex;
	struct hr_config *config = bpf_map_lookup_elem(&hr_configs, &zero);
	struct hr_uplink *uplink = bpf_map_lookup_elem(&hr_uplinks, &ifindex);

	if (!config || !uplink)
		return false;
	if (uplink->tunnels && hr_uncovered(skb, outer))
		return true;
	if (uplink->tunnels && !skb->vlan_present) {
		if ((void *)(long)skb->data + HR_OUTER_LONGEST > (void *)(long)skb->data_end &&
		    (long)skb->data_end - (long)skb->data < skb->len)
			bpf_skb_pull_data(skb, skb->len < HR_OUTER_LONGEST ? skb->len : HR_OUTER_LONGEST);
		if (hr_outer_parse((void *)(long)skb->data, (void *)(long)skb->data_end, config, outer) ==
			    HR_OUTER_OURS &&
		    (hr_carrier(outer->where) || skb->pkt_type == PACKET_HOST))
			return true;
	}
	return hr_from_wire(skb, uplink->physical, outer);
}

/* Who sent it: of a tunnel the VTEP, of a physical network its wire. HR_REASON_NONE: somebody known. */
static __always_inline int hr_source(struct hr_walk *walk)
{
	struct hr_fdb_key mac = { .segment = walk->segment };
	struct hr_vtep_key key;
	struct hr_config *config;
	struct hr_wire *wire;
	struct hr_vtep *vtep;
	struct hr_fdb *fdb;
	__u32 zero = 0;

	if (hr_wire_of(walk->segment) == HR_WHERE_PHYSICAL) {
		wire = bpf_map_lookup_elem(&hr_wires, &walk->segment);
		if (!wire)
			return HR_REASON_UNKNOWN_SEGMENT;
		walk->vtep = wire->vtep;
		walk->vtep_endpoint = wire->endpoint;
		__builtin_memcpy(mac.mac, walk->packet.eth_src, 6);
		fdb = bpf_map_lookup_elem(&hr_fdbs, &mac);
		return fdb && !fdb->vtep ? HR_REASON_SPOOFED_MAC : HR_REASON_NONE;
	}
	__builtin_memcpy(key.addr, walk->outer_saddr, 16);
	vtep = bpf_map_lookup_elem(&hr_vteps, &key);
	if (!vtep) {
		config = bpf_map_lookup_elem(&hr_configs, &zero);
		walk->vtep = walk->vtep_endpoint = 0;
		return config && config->flags & HR_CONFIG_ANY_VTEP ? HR_REASON_NONE : HR_REASON_UNKNOWN_VTEP;
	}
	walk->vtep = vtep->vtep;
	walk->vtep_endpoint = vtep->endpoint;
	return HR_REASON_NONE;
}

/* Frames from the underlay and from physical networks. What is for nobody here is the kernel's, untouched. */
SEC("tc")
int hr_from_uplink(struct __sk_buff *skb)
{
	__u64 now = hr_now();
	struct hr_replay replay;
	struct hr_weight weight;
	struct hr_packet packet;
	struct hr_outer outer;
	struct hr_walk *walk;
	int reason, verdict, source;
	__u32 length, vtep;

	if (!hr_uncover(skb, &outer))
		return TC_ACT_UNSPEC;
	if (outer.reason)
		return hr_drop_at(skb, 0, outer.reason);
	HR_BOUND(outer.length, 512);
	replay.known = true;
	reason = hr_parse_skb(skb, outer.length, &packet);
	packet.key.where = outer.where;
	weight = hr_weigh(skb->len - outer.length, packet.header - outer.length, skb->gso_size);
	length = hr_longest(skb, &packet, outer.length);
	if (!reason && packet.kind >= HR_KIND_IPV4 && !packet.fragment && !hr_ecn_lost(outer.tos, &packet) &&
	    hr_replay(&packet, length, outer.saddr, &replay, now)) {
		verdict = hr_carry_out(skb, &packet, &replay, weight, &outer);
		if (verdict >= 0) {
			hr_replay_done(&replay, &packet, weight, now);
			return verdict;
		}
	}
	walk = hr_walk_get();
	if (!walk)
		return hr_drop_at(skb, 0, HR_REASON_INTERNAL);
	__builtin_memset(walk, 0, HR_WALK_FRESH);
	walk->packet = packet;
	walk->packet.l3 = ETH_HLEN;
	walk->packet.l4 -= outer.length;
	walk->packet.part -= outer.length;
	walk->packet.header -= outer.length;
	walk->weight = weight;
	walk->length = length;
	walk->outer = outer.length;
	walk->flags = HR_WALK_TUNNEL | hr_unknown(&replay);
	walk->segment = outer.where;
	if (hr_wire_of(outer.where) == HR_WHERE_PHYSICAL && packet.eth_dst[0] & 1)
		walk->flags |= HR_WALK_SHARED;
	__builtin_memcpy(walk->outer_saddr, outer.saddr, 16);
	hr_count_walk(0, weight);
	hr_source(walk);
	vtep = walk->vtep;
	hr_resolve(walk);
	source = hr_source(walk); /* again: what the decision stands on comes after the epochs */
	if (source == HR_REASON_UNKNOWN_VTEP || walk->vtep != vtep)
		return hr_drop(skb, walk, HR_REASON_UNKNOWN_VTEP);
	if (!hr_flood_slot(walk, 0))
		return hr_drop(skb, walk, HR_REASON_UNKNOWN_SEGMENT);
	if (reason)
		return hr_drop(skb, walk, reason == HR_PARSE_PULL ? HR_REASON_INTERNAL : reason);
	if (source)
		return hr_drop(skb, walk, source);
	if (hr_ecn_lost(outer.tos, &packet))
		return hr_drop(skb, walk, HR_REASON_ECN);
	walk->rule.from_side = HR_RULE_REMOTE;
	if (hr_outer_pop(skb, &outer, &packet))
		return hr_drop(skb, walk, HR_REASON_INTERNAL);
	walk->outer = 0;
	return hr_next(skb, walk, HR_STAGE_TRACK);
}

SEC("tc")
HR_STAGE(hr_stage_anti_spoof)
{
	struct hr_walk *walk = hr_walk_get();
	struct hr_port *port = walk ? bpf_map_lookup_elem(&hr_ports, &walk->from_port) : NULL;
	int reason;

	if (!port)
		return hr_drop_at(skb, 0, HR_REASON_INTERNAL);
	reason = hr_anti_spoof(skb, walk, port);
	return reason ? hr_drop(skb, walk, reason) : hr_next(skb, walk, HR_STAGE_RESPOND);
}

SEC("tc")
HR_STAGE(hr_stage_respond)
{
	struct hr_walk *walk = hr_walk_get();
	struct hr_port *port = walk ? bpf_map_lookup_elem(&hr_ports, &walk->from_port) : NULL;
	int reason;

	if (!port)
		return hr_drop_at(skb, 0, HR_REASON_INTERNAL);
	if (!hr_respond(skb, walk)) {
		reason = hr_punt(skb, walk, port);
		if (reason == HR_REASON_PUNTED) {
			hr_budget_charge(walk->purse, HR_BUDGET_PUNT);
			hr_conclude(HR_REASON_PUNTED, TC_ACT_SHOT, 0, &walk->packet.key, &walk->rule);
			return hr_consume(skb, walk, HR_REASON_PUNTED);
		}
		if (reason) {
			hr_budget_charge(walk->purse, HR_BUDGET_PUNT - 1);
			return hr_drop(skb, walk, reason);
		}
		return hr_next(skb, walk, hr_exceeds(walk, walk->mtu) ? HR_STAGE_TOO_BIG : HR_STAGE_TRACK);
	}
	hr_budget_charge(walk->purse, 1);
	hr_count_reason(walk->from_port, HR_REASON_ANSWERED);
	return hr_return(skb, walk, port, HR_REASON_ANSWERED);
}

/* Called where a packet exceeds walk->mtu. It is shown to those who watch before it becomes the answer to itself. */
SEC("tc")
HR_STAGE(hr_stage_too_big)
{
	struct hr_walk *walk = hr_walk_get();
	struct hr_port *port = walk ? bpf_map_lookup_elem(&hr_ports, &walk->from_port) : NULL;

	if (!port)
		return hr_drop_at(skb, 0, HR_REASON_INTERNAL);
	hr_budget_charge(walk->purse, 1);
	hr_leave_out(skb, walk, walk->from_port, HR_REASON_TOO_BIG);
	if (hr_too_big(skb, walk, walk->mtu))
		return hr_return(skb, walk, port, HR_REASON_TOO_BIG);
	hr_conclude(HR_REASON_TOO_BIG, TC_ACT_SHOT, 0, &walk->packet.key, &walk->rule);
	return hr_drop_sampled();
}

SEC("tc")
HR_STAGE(hr_stage_track)
{
	struct hr_walk *walk = hr_walk_get();
	int reason;

	if (!walk)
		return hr_drop_at(skb, 0, HR_REASON_INTERNAL);
	reason = hr_track(skb, walk);
	return reason ? hr_drop(skb, walk, reason) : hr_next(skb, walk, HR_STAGE_ACL_FROM);
}

static __always_inline int hr_deny(struct __sk_buff *skb, struct hr_walk *walk, int reason)
{
	if (reason == HR_REASON_CONNECTION_CUT && !hr_dry)
		hr_cut(walk->conn, walk->conn_id);
	return hr_drop(skb, walk, reason);
}

SEC("tc")
HR_STAGE(hr_stage_acl_from)
{
	struct hr_walk *walk = hr_walk_get();
	struct hr_port *port;
	int reason;

	if (!walk)
		return hr_drop_at(skb, 0, HR_REASON_INTERNAL);
	if (walk->from_port) {
		port = bpf_map_lookup_elem(&hr_ports, &walk->from_port);
		if (!port)
			return hr_drop(skb, walk, HR_REASON_INTERNAL);
		reason = hr_acl(walk, port, HR_FROM_PORT, &walk->rule.from_side);
		if (reason)
			return hr_deny(skb, walk, reason);
	}
	return hr_next(skb, walk, HR_STAGE_FORWARD);
}

SEC("tc")
HR_STAGE(hr_stage_forward)
{
	struct hr_walk *walk = hr_walk_get();
	int reason;

	if (!walk)
		return hr_drop_at(skb, 0, HR_REASON_INTERNAL);
	hr_learn(walk);
	if (walk->packet.eth_dst[0] & 1)
		return hr_next(skb, walk, HR_STAGE_FLOOD);
	reason = hr_forward(walk);
	return reason ? hr_drop(skb, walk, reason) : hr_next(skb, walk, HR_STAGE_ACL_TO);
}

SEC("tc")
HR_STAGE(hr_stage_acl_to)
{
	struct hr_walk *walk = hr_walk_get();
	struct hr_port *port;
	int reason;

	if (!walk)
		return hr_drop_at(skb, 0, HR_REASON_INTERNAL);
	walk->rule.to_side = HR_RULE_REMOTE;
	if (walk->to_port) {
		port = bpf_map_lookup_elem(&hr_ports, &walk->to_port);
		if (!port)
			return hr_drop(skb, walk, HR_REASON_INTERNAL);
		reason = hr_acl(walk, port, HR_TO_PORT, &walk->rule.to_side);
		if (reason)
			return hr_deny(skb, walk, reason);
	}
	return hr_next(skb, walk, HR_STAGE_DECIDE);
}

SEC("tc")
HR_STAGE(hr_stage_decide)
{
	struct hr_walk *walk = hr_walk_get();
	int reason;

	if (!walk)
		return hr_drop_at(skb, 0, HR_REASON_INTERNAL);
	reason = hr_path_find(skb, walk);
	if (reason == HR_REASON_TOO_BIG)
		return hr_next(skb, walk, HR_STAGE_TOO_BIG);
	return reason ? hr_drop(skb, walk, reason) : hr_decide(skb, walk);
}

static __always_inline const struct hr_conn_rule *hr_rule_concluded(const struct hr_walk *walk)
{
	return walk->flags & HR_WALK_REPLAYED ? NULL : &walk->rule;
}

/* To the seam, as it is. */
static __always_inline int hr_to_seam(struct __sk_buff *skb, const struct hr_walk *walk, __u32 seam)
{
	hr_seam_mark(skb, walk->from_port, walk->out, walk->hash);
	hr_conclude(HR_REASON_NONE, TC_ACT_REDIRECT, seam, &walk->packet.key, hr_rule_concluded(walk));
	return bpf_redirect(seam, 0);
}

/* By tunnel or wire, as was decided. What must be cut first, or may have a checksum that is left to the device, takes the seam. */
SEC("tc")
HR_STAGE(hr_stage_encap)
{
	struct hr_walk *walk = hr_walk_get();
	__u32 ifindex, seam;
	int reason;

	if (!walk)
		return hr_drop_at(skb, 0, HR_REASON_INTERNAL);
	ifindex = walk->adjacency.ifindex;
	seam = walk->flags & HR_WALK_SEAMED ? 0 : hr_seam();
	if (hr_outer_sums(walk->segment, hr_adjacency_is_v4(&walk->adjacency)) && !skb->gso_size &&
	    walk->sum == HR_SUM_UNKNOWN) {
		walk->sum =
			hr_sum_by_inner((void *)(long)skb->data, (void *)(long)skb->data_end, &walk->packet, skb->len);
		if (walk->sum == HR_SUM_UNKNOWN)
			return seam ? hr_to_seam(skb, walk, seam) : hr_next(skb, walk, HR_STAGE_SUM);
	}
	reason = hr_outer_push(skb, &walk->adjacency, &walk->packet, walk->segment, walk->hash,
			       walk->hop == HR_REASON_NONE, walk->sum);
	if (reason == HR_REASON_NESTED_SUPERPACKET && seam)
		return hr_to_seam(skb, walk, seam);
	if (reason)
		return hr_drop(skb, walk, reason);
	hr_conclude(HR_REASON_NONE, TC_ACT_REDIRECT, ifindex, &walk->packet.key, hr_rule_concluded(walk));
	/* The kernel asks for the neighbour and keeps the packet until it answers. */
	if (walk->hop == HR_REASON_NO_NEIGHBOUR)
		return bpf_redirect_neigh(ifindex, NULL, 0, 0);
	return bpf_redirect(ifindex, 0);
}

/* Every octet of a frame that must have its sum in the outer headers. */
SEC("tc")
HR_STAGE(hr_stage_sum)
{
	struct hr_walk *walk = hr_walk_get();

	if (!walk)
		return hr_drop_at(skb, 0, HR_REASON_INTERNAL);
	walk->sum = hr_sum_whole(skb);
	if (walk->sum == HR_SUM_UNKNOWN)
		return hr_drop(skb, walk, HR_REASON_INTERNAL);
	if (walk->packet.eth_dst[0] & 1 && !(walk->flags & HR_WALK_SEAMED))
		return hr_next(skb, walk, HR_STAGE_FLOOD);
	return hr_next(skb, walk, HR_STAGE_ENCAP);
}

/* The far end of the seam. It was judged and counted before: only outer headers are missing. Whatever else comes is the host's own. */
SEC("tc")
int hr_from_seam(struct __sk_buff *skb)
{
	struct hr_walk *walk = hr_walk_get();
	int reason;

	if (!walk)
		return hr_drop_at(skb, 0, HR_REASON_INTERNAL);
	__builtin_memset(walk, 0, HR_WALK_FRESH);
	reason = hr_seam_leave(skb, walk);
	if (reason)
		return hr_drop_at(skb, 0, reason);
	reason = hr_parse_skb(skb, 0, &walk->packet);
	walk->packet.key.where = walk->from_port;
	if (reason)
		return hr_drop(skb, walk, reason == HR_PARSE_PULL ? HR_REASON_INTERNAL : reason);
	walk->hop = hr_next_hop(skb, walk, walk->out, walk->hash, &walk->adjacency);
	if (walk->hop == HR_REASON_NO_ROUTE)
		return hr_drop(skb, walk, HR_REASON_NO_ROUTE);
	if (!walk->hop && !skb->gso_size) /* it needs no marks any more: all its checksums are there */
		walk->adjacency.flags |= HR_ADJACENCY_WHOLE;
	return hr_next(skb, walk, HR_STAGE_ENCAP);
}

SEC("tc")
HR_STAGE(hr_stage_flood)
{
	struct hr_walk *walk = hr_walk_get();

	if (!walk)
		return hr_drop_at(skb, 0, HR_REASON_INTERNAL);
	if (hr_flood_sums(walk))
		return hr_next(skb, walk, HR_STAGE_SUM);
	return hr_flood(skb, walk);
}

/* Where a drop ends while somebody watches. */
SEC("tc")
HR_STAGE(hr_stage_sample)
{
	struct hr_walk *walk = hr_walk_get();

	if (!walk)
		return hr_drop_sampled();
	hr_sample(skb, &walk->dropped);
	return hr_end(skb, walk->dropped.shared);
}

/* On a port's egress: only the datapath may send to a workload. */
SEC("tc")
int hr_guard(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct hr_device *device;

	if (skb->mark == HR_MARK) {
		skb->mark = 0;
		return TC_ACT_UNSPEC;
	}
	device = bpf_map_lookup_elem(&hr_devices, &ifindex);
	return hr_drop_at(skb, device ? device->port : 0, HR_REASON_FROM_HOST);
}

char _license[] SEC("license") = "Dual BSD/GPL";
