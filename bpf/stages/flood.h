/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* flood: broadcast and multicast to every place of the segment (head-end replication). docs/pipeline.md, "forward". */
#ifndef HR_STAGES_FLOOD_H
#define HR_STAGES_FLOOD_H

#include "lib/tunnel.h"
#include "stages/acl.h"
#include "stages/decide.h"

#define HR_FLOOD_SLOTS 65536

struct hr_flooding {
	struct __sk_buff *skb;
	struct hr_walk *walk;
	__u32 hash;
	__u32 pushed; /* octets of outer headers that are on */
	__u32 v6; /* this round's VTEPs are those of IPv6; those of IPv4, and wires, come first */
	__u32 more; /* there are some of IPv6 */
	__u32 copies;
	__u32 taker; /* the first local port that took one */
};

static __always_inline struct hr_flood *hr_flood_slot(const struct hr_walk *walk, __u32 slot)
{
	struct hr_flood_key key = { .segment = walk->segment, .slot = slot };

	return bpf_map_lookup_elem(&hr_floods, &key);
}

/* One local receiver; the to side is judged for each. */
static long hr_flood_port(__u32 slot, struct hr_flooding *flooding)
{
	struct hr_walk *walk = flooding->walk;
	struct hr_flood *place = hr_flood_slot(walk, slot);
	struct hr_port *port;
	__u32 index;
	int reason;

	if (!place)
		return 1;
	index = place->port;
	if (!index || index == walk->from_port)
		return 0;
	port = bpf_map_lookup_elem(&hr_ports, &index);
	if (!port || port->segment != walk->segment)
		return 0;
	reason = port->flags & HR_PORT_UP ? hr_acl(walk, port, HR_TO_PORT, &walk->rule.to_side) : HR_REASON_PORT_DOWN;
	if (reason) {
		hr_leave_out(flooding->skb, walk, index, reason);
		return 0;
	}
	if (!hr_tag(flooding->skb, port)) {
		hr_leave_out(flooding->skb, walk, index, HR_REASON_INTERNAL);
		return 0;
	}
	flooding->skb->mark = HR_MARK;
	flooding->copies++;
	if (!flooding->taker)
		flooding->taker = index;
	if (!hr_dry && !bpf_clone_redirect(flooding->skb, port->ifindex, 0))
		hr_count_to_port(index, walk->weight);
	return port->vlan && bpf_skb_vlan_pop(flooding->skb);
}

/* Outer headers for this VTEP, over those of the one before. */
static __always_inline int hr_flood_push(struct hr_flooding *flooding, const struct hr_adjacency *adjacency)
{
	struct hr_walk *walk = flooding->walk;
	struct __sk_buff *skb = flooding->skb;

	if (!flooding->pushed)
		return hr_outer_push(skb, adjacency, &walk->packet, walk->segment, flooding->hash, true);
	if (flooding->pushed < hr_outer_length(walk->segment, !flooding->v6)) { /* there is more to IPv6's */
		if (skb->gso_size)
			return HR_REASON_NESTED_SUPERPACKET;
		if (bpf_skb_change_head(skb, sizeof(struct ipv6hdr) - sizeof(struct iphdr), 0))
			return HR_REASON_INTERNAL;
	}
	return hr_outer_write(skb, adjacency, walk->segment, flooding->hash, hr_outer_tos(&walk->packet));
}

static long hr_flood_vtep(__u32 slot, struct hr_flooding *flooding)
{
	struct hr_walk *walk = flooding->walk;
	struct hr_flood *place = hr_flood_slot(walk, slot);
	struct hr_adjacency *adjacency = &walk->adjacency, *known;
	__u32 path;
	int hop;

	if (!place)
		return 1;
	if (!place->vtep)
		return 0;
	path = hr_path(place->vtep, flooding->hash);
	known = bpf_map_lookup_elem(&hr_adjacencies, &path);
	if (!known)
		return 0;
	if (!(known->flags & HR_ADJACENCY_WIRE) && hr_adjacency_is_v4(known) == flooding->v6) {
		flooding->more = 1;
		return 0;
	}
	hop = hr_next_hop(flooding->skb, walk, path, flooding->hash, adjacency);
	if (!hop && hr_exceeds(walk, hr_path_mtu(walk, adjacency)))
		hop = HR_REASON_TOO_BIG;
	if (hop) {
		hr_leave_out(flooding->skb, walk, walk->from_port, hop);
		return 0;
	}
	hop = hr_flood_push(flooding, adjacency);
	if (hop) {
		hr_leave_out(flooding->skb, walk, walk->from_port, hop);
		return 1;
	}
	flooding->pushed = walk->outer = hr_outer_length(walk->segment, !flooding->v6);
	flooding->copies++;
	if (!hr_dry)
		bpf_clone_redirect(flooding->skb, adjacency->ifindex, 0);
	return 0;
}

static __always_inline int hr_flood(struct __sk_buff *skb, struct hr_walk *walk)
{
	struct hr_flooding flooding = { .skb = skb, .walk = walk, .hash = hr_hash(&walk->packet.key) };

	bpf_loop(HR_FLOOD_SLOTS, hr_flood_port, &flooding, 0);
	skb->mark = 0; /* what leaves by the underlay, or is the kernel's too, may not pass the guard of a port */
	if (!(walk->flags & HR_WALK_TUNNEL)) {
		hr_count_from_port(walk->from_port, walk->weight);
		bpf_loop(HR_FLOOD_SLOTS, hr_flood_vtep, &flooding, 0);
		if (flooding.more) {
			flooding.v6 = 1;
			bpf_loop(HR_FLOOD_SLOTS, hr_flood_vtep, &flooding, 0);
		}
	}
	if (flooding.copies)
		hr_fragment_keep(walk, walk->from_port ? walk->from_port : flooding.taker);
	hr_budget_charge(walk->purse, 1 + flooding.copies);
	hr_conclude(HR_REASON_FLOODED, hr_shared(walk) ? (__u32)TC_ACT_UNSPEC : TC_ACT_SHOT, 0, &walk->packet.key,
		    &walk->rule);
	hr_conclude_copies(flooding.copies);
	return hr_consume(skb, walk, HR_REASON_FLOODED);
}

#endif
