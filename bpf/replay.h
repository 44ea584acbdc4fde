/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Replay: one lookup, and the decision of the first packet is carried out again - or the packet takes the walk.
 *
 * Whatever a walk would have judged about this very packet, and the key does not say, is compared here: the frame's
 * MACs, the VTEP it came from, its length, the epochs of both sides, the connection being alive. SYN and RST are never replayed.
 */
#ifndef HR_REPLAY_H
#define HR_REPLAY_H

#include "connections.h"
#include "lib/connection.h"
#include "stages/account.h"

struct hr_replay {
	struct hr_flow flow; /* a copy: the entry may be rewritten while we act on it */
	struct hr_conn *conn;
	bool known; /* there is an entry, be it one that cannot be replayed */
};

/* `length`: of the longest IP packet in it; `outer_saddr`: NULL from a port. True: act on replay->flow. */
static __always_inline bool hr_replay(const struct hr_packet *packet, __u32 length, const __u8 *outer_saddr,
				      struct hr_replay *replay, __u64 now)
{
	struct hr_flow *flow;
	struct hr_conn *conn;

	replay->known = true;
	if (hr_tcp_walks(packet))
		return false;
	flow = bpf_map_lookup_elem(&hr_flows, &packet->key);
	replay->known = flow;
	if (!flow)
		return false;
	if (!hr_flow_read(flow, &replay->flow))
		return false;
	/* The element may have been given to another key since it was found: an entry tells its key's hash. */
	if (replay->flow.hash != hr_hash(&packet->key))
		return false;
	if (!(replay->flow.flags & HR_FLOW_DECIDED) || !hr_mac_equal(packet->eth_dst, replay->flow.eth_dst) ||
	    !hr_mac_equal(packet->eth_src, replay->flow.eth_src))
		return false;
	if (replay->flow.mtu && length > replay->flow.mtu)
		return false;
	if (outer_saddr && !hr_addr_equal(outer_saddr, replay->flow.outer_saddr))
		return false;
	if (hr_epoch(replay->flow.from_index) != replay->flow.from_epoch ||
	    hr_epoch(replay->flow.to_index) != replay->flow.to_epoch)
		return false;
	conn = bpf_map_lookup_elem(&hr_conns, &replay->flow.conn);
	if (!conn || READ_ONCE(conn->id) != replay->flow.conn_id || hr_expired(conn, now, 0))
		return false;
	/* The first answer may set TCP's numbers anew. */
	if (conn->state == HR_STATE_SYN_SENT && replay->flow.flags & HR_FLOW_REPLY)
		return false;
	replay->conn = conn;
	return true;
}

/* The packet leaves: only then does it change its connection. */
static __always_inline void hr_replay_done(struct hr_replay *replay, const struct hr_packet *packet,
					   struct hr_weight weight, __u64 now)
{
	bool reply = replay->flow.flags & HR_FLOW_REPLY;

	if (hr_dry)
		return;
	hr_go_on(replay->conn, packet, reply);
	hr_count_connection(&replay->conn->counter[reply], weight, now);
}

#endif
