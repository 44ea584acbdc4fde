/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* flood: broadcast and multicast to every place of the segment (head-end replication). docs/pipeline.md, "forward". */
#ifndef HR_STAGES_FLOOD_H
#define HR_STAGES_FLOOD_H

#include "lib/tunnel.h"
#include "stages/acl.h"
#include "stages/decide.h"
#include "stages/seam.h"

#define HR_FLOOD_SLOTS 65536

struct hr_flooding {
	struct __sk_buff *skb;
	struct hr_walk *walk;
	__u32 pushed; /* octets of outer headers that are on */
	__u32 v6; /* this round's VTEPs are those of IPv6; those of IPv4, and wires, have the other */
	__u32 more; /* there are some for the other round */
	__u32 seam; /* ifindex; 0: none */
	__u32 cut; /* all copies to VTEPs of IPv6 go by the seam, before outer headers are on */
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

/* Outer headers for this VTEP, over the `pushed` octets of those of the one before. A global function: the verifier looks at it once,
 * and not in every turn of the loop.
 */
__noinline int hr_flood_push(struct __sk_buff *skb, __u32 pushed)
{
	struct hr_walk *walk = hr_walk_get();
	struct hr_adjacency *adjacency;

	if (!walk)
		return HR_REASON_INTERNAL;
	adjacency = &walk->adjacency;
	if (!pushed)
		return hr_outer_push(skb, adjacency, &walk->packet, walk->segment, walk->hash, true, walk->sum);
	if (pushed < hr_outer_length(walk->segment, hr_adjacency_is_v4(adjacency))) { /* there is more to IPv6's */
		if (skb->gso_size)
			return HR_REASON_NESTED_SUPERPACKET;
		if (bpf_skb_change_head(skb, sizeof(struct ipv6hdr) - sizeof(struct iphdr), 0))
			return HR_REASON_INTERNAL;
	}
	return hr_outer_write(skb, adjacency, walk->segment, walk->hash, hr_outer_tos(&walk->packet), walk->sum);
}

static __always_inline void hr_flood_seam(struct hr_flooding *flooding, __u32 path)
{
	struct __sk_buff *skb = flooding->skb;

	hr_seam_mark(skb, flooding->walk->from_port, path, flooding->walk->hash);
	flooding->copies++;
	if (!hr_dry)
		bpf_clone_redirect(skb, flooding->seam, 0);
	skb->mark = 0;
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
	path = hr_path(place->vtep, walk->hash);
	known = bpf_map_lookup_elem(&hr_adjacencies, &path);
	if (!known)
		return 0;
	if (!(known->flags & HR_ADJACENCY_WIRE) && hr_adjacency_is_v4(known) == flooding->v6) {
		flooding->more = 1;
		return 0;
	}
	hop = hr_next_hop(flooding->skb, walk, path, walk->hash, adjacency);
	if (!hop && hr_exceeds(walk, hr_path_mtu(walk, adjacency)))
		hop = HR_REASON_TOO_BIG;
	if (hop) {
		hr_leave_out(flooding->skb, walk, walk->from_port, hop);
		return 0;
	}
	if (flooding->cut && flooding->v6) {
		hr_flood_seam(flooding, path);
		return 0;
	}
	hop = hr_flood_push(flooding->skb, flooding->pushed);
	if (hop == HR_REASON_NESTED_SUPERPACKET && flooding->seam && !flooding->pushed) {
		hr_flood_seam(flooding, path);
		return 0;
	}
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

/* Without a seam the frame is summed as it is, once for all copies. */
static __always_inline bool hr_flood_sums(const struct hr_walk *walk)
{
	return hr_wire_sums(walk->segment) && walk->sum == HR_SUM_UNKNOWN && !(walk->flags & HR_WALK_TUNNEL) &&
	       !hr_seam();
}

/* Where a copy would need to be cut, or summed, when those to VTEPs of IPv4 have had their outer headers. */
static __always_inline bool hr_flood_cuts(const struct __sk_buff *skb, const struct hr_walk *walk)
{
	__u32 zero = 0;
	struct hr_config *config = bpf_map_lookup_elem(&hr_configs, &zero);

	return hr_wire_sums(walk->segment) ||
	       (skb->gso_size && config && hr_addr_is_v4(config->vtep4) && !hr_addr_is_unspecified(config->vtep6));
}

static __always_inline int hr_flood(struct __sk_buff *skb, struct hr_walk *walk)
{
	struct hr_flooding flooding = { .skb = skb, .walk = walk };

	walk->hash = hr_hash(&walk->packet.key);
	bpf_loop(HR_FLOOD_SLOTS, hr_flood_port, &flooding, 0);
	skb->mark = 0; /* what leaves by the underlay, or is the kernel's too, may not pass the guard of a port */
	if (!(walk->flags & HR_WALK_TUNNEL)) {
		hr_count_from_port(walk->from_port, walk->weight);
		flooding.seam = hr_seam();
		flooding.v6 = flooding.cut = flooding.seam && hr_flood_cuts(skb, walk);
		bpf_loop(HR_FLOOD_SLOTS, hr_flood_vtep, &flooding, 0);
		if (flooding.more) {
			flooding.v6 = !flooding.v6;
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
