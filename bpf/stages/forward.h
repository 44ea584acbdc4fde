/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* forward: where the destination is; learning what no object names. docs/pipeline.md, "forward".
 *
 * Epoch order: an index is found first, its epoch read next, and only then the tables that the decision stands on. So both
 * sides are resolved (hr_resolve) before any stage, and forward looks the destination up again.
 */
#ifndef HR_STAGES_FORWARD_H
#define HR_STAGES_FORWARD_H

#include "learnt.h"
#include "stages/encap.h"
#include "walk.h"

struct hr_place {
	__u32 endpoint;
	__u32 vtep; /* 0: here */
};

/* What is not here is on the wire of a physical network. */
static __always_inline bool hr_on_wire(__u32 segment, struct hr_place *place)
{
	struct hr_wire *wire;

	if (hr_wire_of(segment) != HR_WHERE_PHYSICAL)
		return false;
	wire = bpf_map_lookup_elem(&hr_wires, &segment);
	if (!wire)
		return false;
	place->endpoint = wire->endpoint;
	place->vtep = wire->vtep;
	return true;
}

static __always_inline bool hr_locate(__u32 segment, const __u8 *mac, struct hr_place *place)
{
	struct hr_fdb_key key = { .segment = segment };
	__u64 *learnt, word;
	struct hr_fdb *fdb;

	__builtin_memcpy(key.mac, mac, 6);
	fdb = bpf_map_lookup_elem(&hr_fdbs, &key);
	if (fdb) {
		place->endpoint = fdb->endpoint;
		place->vtep = fdb->vtep;
		return true;
	}
	learnt = bpf_map_lookup_elem(&hr_learnt, &key);
	word = learnt ? READ_ONCE(*learnt) : 0;
	if (!word)
		return hr_on_wire(segment, place);
	place->endpoint = HR_LEARNT_ENDPOINT(word);
	place->vtep = HR_LEARNT_VTEP(word);
	return true;
}

/* A MAC that was behind a local port is on a wire that has no room for more: without an entry it is there anyway. */
static __always_inline void hr_unlearn_here(__u64 *known, __u64 before, const struct hr_fdb_key *key)
{
	if (HR_LEARNT_VTEP(before) || __sync_val_compare_and_swap(known, before, 0) != before)
		return;
	hr_learnt_release(before, key->segment);
	hr_epoch_raise(HR_LEARNT_ENDPOINT(before));
	bpf_map_delete_elem(&hr_learnt, key);
}

/* A MAC that no port owns was seen behind a local port (vtep 0), a VTEP or on a wire. A move re-decides what went to the old place. Of
 * CPUs that see it at once one writes the entry; the others have it from that one, or from their next frame. On a wire it ages.
 */
static __always_inline void hr_learn(struct hr_walk *walk)
{
	__u64 now = HR_LEARNT_WORD(walk->from_port ? walk->from_port : walk->vtep_endpoint, walk->vtep), before = 0,
	      *known, seen = 0;
	bool wire = !walk->from_port && hr_wire_of(walk->segment) == HR_WHERE_PHYSICAL;
	struct hr_fdb_key key = { .segment = walk->segment };
	struct hr_place place;
	bool done, within; /* behind another VTEP of the segment: as many as before */

	__builtin_memcpy(key.mac, walk->packet.eth_src, 6);
	if (hr_dry || !now || bpf_map_lookup_elem(&hr_fdbs, &key))
		return;
	if (wire)
		seen = HR_LEARNT_SEEN(hr_now() / NSEC_PER_SEC);
	known = bpf_map_lookup_elem(&hr_learnt, &key);
	if (known) {
		before = READ_ONCE(*known);
		if (!before)
			return;
		if (HR_LEARNT_PLACE(before) == now) {
			if ((before ^ seen) >> HR_LEARNT_FRESH)
				__sync_val_compare_and_swap(known, before, now | seen);
			return;
		}
	}
	within = HR_LEARNT_VTEP(before) && HR_LEARNT_VTEP(now);
	if (!within && !hr_learnt_reserve(now, walk->segment)) {
		if (known && wire)
			hr_unlearn_here(known, before, &key);
		return;
	}
	now |= seen;
	if (known)
		done = __sync_val_compare_and_swap(known, before, now) == before;
	else
		done = !bpf_map_update_elem(&hr_learnt, &key, &now, BPF_NOEXIST);
	if (!within && (!done || before))
		hr_learnt_release(done ? before : now, walk->segment);
	if (!done)
		return;
	if (before)
		hr_epoch_raise(HR_LEARNT_ENDPOINT(before));
	else if (!wire && hr_on_wire(walk->segment, &place)) /* as what nobody knew */
		hr_epoch_raise(place.endpoint);
}

/* Find both sides' indices and read their epochs, before any table that the decision stands on. */
static __always_inline void hr_resolve(struct hr_walk *walk)
{
	struct hr_place place = {};

	if (!walk->from_port) {
		walk->from_index =
			hr_locate(walk->segment, walk->packet.eth_src, &place) ? place.endpoint : walk->vtep_endpoint;
		walk->from_epoch = hr_epoch(walk->from_index);
	}
	if (walk->packet.eth_dst[0] & 1 || !hr_locate(walk->segment, walk->packet.eth_dst, &place))
		return;
	walk->to_index = place.endpoint;
	walk->to_port = place.vtep ? 0 : place.endpoint;
	walk->to_vtep = place.vtep;
	walk->to_epoch = hr_epoch(walk->to_index);
}

/* As if hr_learn had written what the dry walk was not to: it matters to a frame that is for its own sender's MAC. */
static __always_inline bool hr_locate_taught(const struct hr_walk *walk, struct hr_place *place)
{
	struct hr_fdb_key key = { .segment = walk->segment };

	__builtin_memcpy(key.mac, walk->packet.eth_src, 6);
	if (!hr_dry || !hr_mac_equal(walk->packet.eth_src, walk->packet.eth_dst) || bpf_map_lookup_elem(&hr_fdbs, &key))
		return hr_locate(walk->segment, walk->packet.eth_dst, place);
	place->endpoint = walk->from_port ? walk->from_port : walk->vtep_endpoint;
	place->vtep = walk->vtep;
	return true;
}

static __always_inline int hr_forward(struct hr_walk *walk)
{
	struct hr_place place = {};
	struct hr_port *port;

	if (!hr_locate_taught(walk, &place))
		return HR_REASON_UNKNOWN_MAC;
	if (place.vtep && walk->flags & HR_WALK_TUNNEL)
		return HR_REASON_TUNNEL_LOOP;
	if (!place.vtep && place.endpoint == walk->from_port)
		return HR_REASON_HAIRPIN;
	if (place.endpoint != walk->to_index || place.vtep != walk->to_vtep)
		return HR_REASON_BUSY; /* it moved under our feet; the sender will try again */
	if (place.vtep)
		return HR_REASON_NONE;
	port = bpf_map_lookup_elem(&hr_ports, &walk->to_port);
	if (port && port->segment && port->segment != walk->segment)
		return HR_REASON_UNKNOWN_MAC; /* learnt before the port moved to another network */
	if (!port || !(port->flags & HR_PORT_UP))
		return HR_REASON_PORT_DOWN;
	return HR_REASON_NONE;
}

#endif
