/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Room in the table of connections: quotas, and who gives way when there is none. docs/pipeline.md, "A full table".
 *
 * A port's ring holds indices only, and is read and written without a lock: what it names may have ended since, be somebody
 * else's by now, or be established. So a candidate is judged by its connection alone - whose port, dispensable, not cut - and
 * retired by the id it had before it was judged: had it ended or been reborn meanwhile, the compare-and-swap fails.
 */
#ifndef HR_ROOM_H
#define HR_ROOM_H

#include "connections.h"
#include "lib/connection.h"

#define HR_EVICT_TRIES 16
#define HR_ROOM_TRIES 4 /* what gave way may be taken by another CPU first */
/* A table or a quota is tight when more than 7/8 of it are in use. */
#define HR_TIGHT(number) ((number) * 7ULL / 8)

/* How many connections there may be; the agent sets it, and sizes hr_conns and hr_conn_free for some more. */
const volatile __u32 hr_connections = 258048;

/* Remember a new connection of a port: it may have to give way before it is answered. */
static __always_inline void hr_half_open_note(__u32 port, __u32 index)
{
	struct hr_half_open *ring = bpf_map_lookup_elem(&hr_half_open, &port);
	__u32 slot;

	if (!ring)
		return;
	slot = __sync_fetch_and_add(&ring->head, 1);
	HR_BOUND(slot, HR_HALF_OPEN);
	WRITE_ONCE(ring->conn[slot], index);
}

/* What to look at first: a ring that went round has forgotten what is older. */
static __always_inline __u32 hr_oldest(__u32 tail, __u32 head)
{
	return head - tail > HR_HALF_OPEN ? head - HR_HALF_OPEN : tail;
}

/* `id`: as it was read before the rest. */
static __always_inline bool hr_gives_way(const struct hr_conn *conn, __u64 id, __u32 port)
{
	return id && !(id & HR_CONN_DEAD) && conn->port == port && hr_dispensable(READ_ONCE(conn->state)) &&
	       READ_ONCE(conn->timeout) != HR_CUT_TIMEOUT;
}

struct hr_eviction {
	__u32 port;
	__u32 done;
};

/* Take the oldest that is remembered; it gives way if it is half-open yet, or over. */
static long hr_evict_one(__u32 step, struct hr_eviction *eviction)
{
	__u32 port = eviction->port, head, tail, slot, index;
	struct hr_half_open *ring = bpf_map_lookup_elem(&hr_half_open, &port);
	struct hr_conn_count *count;
	struct hr_conn *conn;
	__u64 id;

	if (!ring)
		return 1;
	tail = READ_ONCE(ring->tail);
	barrier();
	head = READ_ONCE(ring->head);
	if (head == tail)
		return 1;
	slot = hr_oldest(tail, head);
	if (__sync_val_compare_and_swap(&ring->tail, tail, slot + 1) != tail)
		return 0;
	HR_BOUND(slot, HR_HALF_OPEN);
	index = READ_ONCE(ring->conn[slot]);
	conn = bpf_map_lookup_elem(&hr_conns, &index);
	if (!conn)
		return 0;
	id = READ_ONCE(conn->id);
	barrier();
	if (!hr_gives_way(conn, id, port) || !hr_retire(index, id))
		return 0;
	count = bpf_map_lookup_elem(&hr_conn_counts, &port);
	if (count)
		__sync_fetch_and_add(&count->evicted, 1);
	eviction->done = 1;
	return 1;
}

static __noinline int hr_evict(__u32 port)
{
	struct hr_eviction eviction = { .port = port };

	bpf_loop(HR_EVICT_TRIES, hr_evict_one, &eviction, 0);
	return eviction.done;
}

/* A port's share of so many connections. One port more is counted than have any: else of ports that fill the table together
 * none would have more than its share.
 */
static __always_inline __u64 hr_share(__u64 used)
{
	__u64 *owners = hr_cursor(HR_CURSOR_OWNERS), ports = owners ? READ_ONCE(*owners) : 0;

	return used / (ports ? ports + 1 : 2);
}

/* Whether a port, once it has given back so many, still has more than its share of a tight table: the last eighth is for others. */
static __always_inline bool hr_crowds(__u32 port, __u32 back)
{
	__u64 *used = hr_cursor(HR_CURSOR_USED), all = used ? READ_ONCE(*used) - back : 0;
	struct hr_conn_count *count;

	if (all <= HR_TIGHT(hr_connections))
		return false;
	count = bpf_map_lookup_elem(&hr_conn_counts, &port);
	return count && READ_ONCE(count->live) - back > hr_share(all);
}

/* False: the port has as many connections as it may. */
static __always_inline bool hr_quota_take(__u32 port)
{
	struct hr_conn_count *count = bpf_map_lookup_elem(&hr_conn_counts, &port);
	__u32 zero = 0;
	struct hr_config *config = bpf_map_lookup_elem(&hr_configs, &zero);

	if (!count || !config)
		return false;
	if (__sync_fetch_and_add(&count->live, 1) < config->quota || !config->quota)
		return true;
	__sync_fetch_and_add(&count->live, -1);
	return false;
}

static __always_inline __s64 hr_conn_fresh(__u64 *fresh)
{
	__u64 next = __sync_fetch_and_add(fresh, 1);
	__u32 index = next;

	if (next < 0x7fffffff && bpf_map_lookup_elem(&hr_conns, &index))
		return index;
	__sync_fetch_and_add(fresh, -1);
	return -1;
}

/* An index nobody uses, or -1. One that was used comes only after others that rest: whoever has just found its connection,
 * and is about to count a packet, has done so before somebody else's is there.
 */
static __always_inline __s64 hr_conn_index(void)
{
	__u64 *fresh = hr_cursor(HR_CURSOR_FRESH), *used = hr_cursor(HR_CURSOR_USED), before;
	__s64 found = -1;
	__u32 index;

	if (!fresh || !used)
		return -1;
	before = __sync_fetch_and_add(used, 1);
	if (before < hr_connections) {
		if (READ_ONCE(*fresh) <= before + hr_connections / HR_CONN_REST)
			found = hr_conn_fresh(fresh);
		if (found < 0 && !bpf_map_pop_elem(&hr_conn_free, &index))
			found = index;
		if (found < 0)
			found = hr_conn_fresh(fresh);
	}
	if (found < 0)
		__sync_fetch_and_add(used, -1);
	return found;
}

/* Make room in a full table: a port that has more than its share takes of its own first, another of the port that has most. */
static __always_inline bool hr_evict_any(__u32 port)
{
	__u64 *hog = hr_cursor(HR_CURSOR_HOG), *used = hr_cursor(HR_CURSOR_USED);
	struct hr_conn_count *count = bpf_map_lookup_elem(&hr_conn_counts, &port);
	__u32 first = port, second = port;

	if (!hog || !used || !count)
		return false;
	if (READ_ONCE(count->live) > hr_share(READ_ONCE(*used)))
		second = READ_ONCE(*hog);
	else
		first = READ_ONCE(*hog);
	return hr_evict(first) || hr_evict(second);
}

/* Room for one more connection of a port: quota and an index are taken, if need be from one that gives way. A port with more than
 * its share of a tight table has to give one for one.
 */
static __always_inline int hr_room(__u32 port, __u32 *index)
{
	struct hr_conn_count *count;
	__s64 found;
	int i;

	if (hr_crowds(port, 0) && !hr_evict(port))
		return HR_REASON_QUOTA;
	/* Not loops: Linux 6.1 takes none whose head follows the call of a function (kernel/bpf/verifier.c, visit_func_insn). */
#pragma unroll
	for (i = 0; i <= HR_ROOM_TRIES; i++) {
		if (hr_quota_take(port))
			break;
		if (i == HR_ROOM_TRIES || !hr_evict(port))
			return HR_REASON_QUOTA;
	}
#pragma unroll
	for (i = 0; i <= HR_ROOM_TRIES; i++) {
		found = hr_conn_index();
		if (found >= 0 || i == HR_ROOM_TRIES || !hr_evict_any(port))
			break;
	}
	if (found >= 0) {
		*index = found;
		return HR_REASON_NONE;
	}
	count = bpf_map_lookup_elem(&hr_conn_counts, &port);
	if (count)
		__sync_fetch_and_add(&count->live, -1);
	return HR_REASON_TABLE_FULL;
}

/* As hr_evict_one, of the nth that is remembered, but it stays. */
static long hr_would_evict_one(__u32 step, struct hr_eviction *eviction)
{
	__u32 port = eviction->port, head, tail, slot, index;
	struct hr_half_open *ring = bpf_map_lookup_elem(&hr_half_open, &port);
	struct hr_conn *conn;
	__u64 id;

	if (!ring)
		return 1;
	tail = READ_ONCE(ring->tail);
	barrier();
	head = READ_ONCE(ring->head);
	slot = hr_oldest(tail, head) + step;
	if (slot == head)
		return 1;
	HR_BOUND(slot, HR_HALF_OPEN);
	index = READ_ONCE(ring->conn[slot]);
	conn = bpf_map_lookup_elem(&hr_conns, &index);
	if (!conn)
		return 0;
	id = READ_ONCE(conn->id);
	eviction->done = hr_gives_way(conn, id, port);
	return eviction->done;
}

static __noinline int hr_would_evict(__u32 port)
{
	struct hr_eviction eviction = { .port = port };

	bpf_loop(HR_EVICT_TRIES, hr_would_evict_one, &eviction, 0);
	return eviction.done;
}

/* As hr_room once the port has given back so many, but nothing is taken and nobody gives way. */
static __always_inline int hr_room_left(__u32 port, __u32 back)
{
	struct hr_conn_count *count = bpf_map_lookup_elem(&hr_conn_counts, &port);
	__u64 *hog = hr_cursor(HR_CURSOR_HOG), *used = hr_cursor(HR_CURSOR_USED);
	__u32 zero = 0;
	struct hr_config *config = bpf_map_lookup_elem(&hr_configs, &zero);
	bool quota;

	if (!count || !config || !hog || !used)
		return HR_REASON_QUOTA;
	quota = (!config->quota || READ_ONCE(count->live) - back < config->quota) && !hr_crowds(port, back);
	if ((quota && READ_ONCE(*used) - back < hr_connections) || hr_would_evict(port))
		return HR_REASON_NONE;
	if (!quota)
		return HR_REASON_QUOTA;
	if (hr_would_evict(READ_ONCE(*hog)))
		return HR_REASON_NONE;
	return HR_REASON_TABLE_FULL;
}

#endif
