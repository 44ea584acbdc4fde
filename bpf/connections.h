/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The table of connections: ids, indices, and the end of a connection.
 *
 * Ownership. A connection's keys in hr_flows belong to it from the moment it is made until its owner removes them.
 * To retire a connection is to win a compare-and-swap of hr_conn.id from id to id|HR_CONN_DEAD; only the winner removes
 * the keys and frees the index. An expired connection is a miss to everybody at its timeout, and the sweeper takes it only
 * a grace later, so nobody can be refreshing it by then: ageing cannot kill a live connection.
 */
#ifndef HR_CONNECTIONS_H
#define HR_CONNECTIONS_H

#include "lib/clock.h"
#include "maps.h"

#define HR_CUT_TIMEOUT 300000 /* ms; Linux's TCP pauses at most 120 s between two tries (TCP_RTO_MAX) */

static __always_inline __u64 hr_conn_new_id(void)
{
	__u32 zero = 0;
	__u64 *last = bpf_map_lookup_elem(&hr_conn_ids, &zero);

	if (!last)
		return 0;
	*last += 1;
	return *last << 12 | (bpf_get_smp_processor_id() & 0xfff);
}

/* Copy an entry that the kernel may be giving to another key meanwhile. False: the copy may be torn. */
static __always_inline bool hr_flow_read(const struct hr_flow *flow, struct hr_flow *copy)
{
	__u32 last = READ_ONCE(flow->last);

	barrier();
	__builtin_memcpy(copy, flow, sizeof(*copy));
	barrier();
	return READ_ONCE(flow->first) == last;
}

/* An entry that names a connection which is no more, nor being retired, was written while its owner removed it: nobody's. */
static __always_inline bool hr_flow_orphan(const struct hr_flow_key *key, __u64 id)
{
	struct hr_flow *flow = bpf_map_lookup_elem(&hr_flows, key);
	struct hr_conn *conn;
	__u32 last, index;
	__u64 owner;

	if (!flow)
		return false;
	last = READ_ONCE(flow->last);
	barrier();
	index = READ_ONCE(flow->conn);
	owner = READ_ONCE(flow->conn_id);
	barrier();
	if (READ_ONCE(flow->first) != last || owner != id)
		return false;
	conn = bpf_map_lookup_elem(&hr_conns, &index);
	if (!conn || (READ_ONCE(conn->id) & ~HR_CONN_DEAD) == id)
		return false;
	return !bpf_map_delete_elem(&hr_flows, key);
}

/* Remove a key's entry if it is this connection's: it may have been given to another one. */
static __always_inline void hr_disown(const struct hr_flow_key *key, __u64 id)
{
	struct hr_flow *flow = bpf_map_lookup_elem(&hr_flows, key);

	if (flow && READ_ONCE(flow->conn_id) == id)
		bpf_map_delete_elem(&hr_flows, key);
}

static __always_inline __u64 *hr_cursor(__u32 which)
{
	return bpf_map_lookup_elem(&hr_cursors, &which);
}

/* Give an index back, which nothing names any more. */
static __always_inline void hr_conn_release(__u32 index, __u32 port)
{
	struct hr_conn_count *count = bpf_map_lookup_elem(&hr_conn_counts, &port);
	__u64 *used = hr_cursor(HR_CURSOR_USED);

	if (count)
		__sync_fetch_and_add(&count->live, -1);
	bpf_map_push_elem(&hr_conn_free, &index, BPF_ANY);
	if (used) /* after the index is there again */
		__sync_fetch_and_add(used, -1);
}

/* False: somebody else is retiring it. */
static __always_inline bool hr_retire(__u32 index, __u64 id)
{
	struct hr_conn *conn = bpf_map_lookup_elem(&hr_conns, &index);
	__u32 port;

	if (!conn || __sync_val_compare_and_swap(&conn->id, id, id | HR_CONN_DEAD) != id)
		return false;
	hr_disown(&conn->key[0], id);
	if (conn->key[1].where != HR_WHERE_NONE)
		hr_disown(&conn->key[1], id);
	port = conn->port;
	WRITE_ONCE(conn->id, 0);
	hr_conn_release(index, port);
	return true;
}

/* End a connection that is no longer allowed. TCP's is kept for a while, to be denied again: its other side tries on for
 * minutes, and a segment of no connection would be adopted as a new one in its own direction, which may well be allowed.
 */
static __always_inline void hr_cut(__u32 index, __u64 id)
{
	struct hr_conn *conn = bpf_map_lookup_elem(&hr_conns, &index);

	if (!conn || READ_ONCE(conn->id) != id)
		return;
	if (conn->key[0].proto != IPPROTO_TCP) {
		hr_retire(index, id);
		return;
	}
	WRITE_ONCE(conn->counter[0].seen, hr_now());
	WRITE_ONCE(conn->timeout, HR_CUT_TIMEOUT);
}

#endif
