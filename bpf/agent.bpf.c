// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What the agent asks the kernel to do for it: raise epochs, forget where MACs were learnt, and start the sweeper, which then needs no agent. */
#include "learnt.h"
#include "room.h"

#define HR_CLOCK_MONOTONIC 1
#define HR_EPOCH_BATCH 63

/* 2,048 connections every 20 ms: a million in ten seconds. */
#define HR_SWEEP_BATCH 2048
#define HR_SWEEP_INTERVAL (20 * NSEC_PER_MSEC)
/* Nobody handles one packet this long, so nobody can still be refreshing what expired this long ago. */
#define HR_SWEEP_GRACE (1000 * NSEC_PER_MSEC)

/* Ports counted every 20 ms: all of them in 160 ms. */
#define HR_CENSUS_BATCH 512

struct hr_sweeper {
	struct bpf_timer timer;
	__u32 port; /* the next that the census counts */
	__u32 hog; /* of those counted so far */
	__u64 most; /* connections that it has */
	__u64 owners;
};
HR_TABLE(hr_sweepers, BPF_MAP_TYPE_ARRAY, __u32, struct hr_sweeper, 1, 0);

/* Raise epochs: the datapath alone writes them, so that none is ever lost between two writers. */
SEC("syscall")
int hr_raise(struct hr_bump *bump)
{
	__u32 count = bump->count, i;

#pragma unroll
	for (i = 0; i < HR_EPOCH_BATCH; i++) /* a context is read at constant offsets only */
		if (i < count)
			hr_epoch_raise(bump->index[i]);
	return 0;
}

/* Forget where a MAC was learnt: a walk may move it or count at this moment. Answers 1 if the entry is still there, as 0. */
SEC("syscall")
int hr_unlearn(struct hr_unlearning *asked)
{
	struct hr_fdb_key key = { .segment = asked->segment };
	__u64 *known, before;

	__builtin_memcpy(key.mac, asked->mac, sizeof(key.mac));
	known = bpf_map_lookup_elem(&hr_learnt, &key);
	if (!known)
		return 0;
	before = READ_ONCE(*known);
	if (!asked->aged)
		before = __sync_lock_test_and_set(known, 0);
	else if (before && (!HR_LEARNT_VTEP(before) || __sync_val_compare_and_swap(known, before, 0) != before))
		return 0; /* it is behind a port by now, or was seen again */
	if (before) {
		hr_learnt_release(before, key.segment);
		if (!asked->aged)
			hr_epoch_raise(HR_LEARNT_ENDPOINT(before));
	}
	return bpf_map_delete_elem(&hr_learnt, &key) ? 1 : 0;
}

static __always_inline void hr_carry_seen(__u64 *seen, __u64 since)
{
	if (READ_ONCE(*seen) < since)
		WRITE_ONCE(*seen, since);
}

static __always_inline void hr_carry_side(struct hr_tcp_side *side, __u32 known, __u32 edge, __u32 ack)
{
	if (known & HR_TCP_EDGE && (!(side->known & HR_TCP_EDGE) || (__s32)(edge - side->edge) > 0))
		WRITE_ONCE(side->edge, edge);
	if (known & HR_TCP_ACKED && (!(side->known & HR_TCP_ACKED) || (__s32)(ack - side->ack) > 0))
		WRITE_ONCE(side->ack, ack);
	if (known & ~side->known)
		WRITE_ONCE(side->known, side->known | known);
}

static __always_inline void hr_carry_counter(struct hr_counter *counter, __u64 packets, __u64 octets)
{
	__sync_fetch_and_add(&counter->packets, packets);
	__sync_fetch_and_add(&counter->octets, octets);
}

/* Add what tables of another ABI have counted, while programs count on in these: only the kernel can add to a live counter. */
SEC("syscall")
int hr_carry(struct hr_carry *more)
{
	__u32 index = more->conn, port = more->port, slot = more->port * HR_REASONS + more->reason;
	struct hr_port_counters *counters = bpf_map_lookup_elem(&hr_port_counts, &port);
	struct hr_conn *conn = bpf_map_lookup_elem(&hr_conns, &index);
	struct hr_conn_count *count = bpf_map_lookup_elem(&hr_conn_counts, &port);
	__u64 *packets = bpf_map_lookup_elem(&hr_reasons, &slot), *used = hr_cursor(HR_CURSOR_USED);

	if (more->id && conn && READ_ONCE(conn->id) == more->id) {
		__sync_fetch_and_add(&conn->counter[0].packets, more->counter[0].packets);
		__sync_fetch_and_add(&conn->counter[0].octets, more->counter[0].octets);
		__sync_fetch_and_add(&conn->counter[1].packets, more->counter[1].packets);
		__sync_fetch_and_add(&conn->counter[1].octets, more->counter[1].octets);
		hr_carry_seen(&conn->counter[0].seen, more->counter[0].seen);
		hr_carry_seen(&conn->counter[1].seen, more->counter[1].seen);
		hr_carry_side(&conn->tcp[0], more->tcp[0].known, more->tcp[0].edge, more->tcp[0].ack);
		hr_carry_side(&conn->tcp[1], more->tcp[1].known, more->tcp[1].edge, more->tcp[1].ack);
		if (conn->state == more->before && more->state != more->before) {
			WRITE_ONCE(conn->timeout, more->timeout);
			WRITE_ONCE(conn->state, more->state);
			conn->flags |= more->flags;
		}
	}
	if (counters) {
		hr_carry_counter(&counters->from_port, more->counters.from_port.packets,
				 more->counters.from_port.octets);
		hr_carry_counter(&counters->to_port, more->counters.to_port.packets, more->counters.to_port.octets);
		hr_carry_counter(&counters->walked, more->counters.walked.packets, more->counters.walked.octets);
	}
	if (count && used) {
		__sync_fetch_and_add(&count->live, more->connections);
		__sync_fetch_and_add(used, more->connections);
	}
	if (packets)
		__sync_fetch_and_add(packets, more->packets);
	return 0;
}

/* Count which port has most connections, and how many ports have any. */
static long hr_census_one(__u32 step, struct hr_sweeper **context)
{
	struct hr_sweeper *sweeper = *context;
	__u32 port = sweeper->port;
	struct hr_conn_count *count = bpf_map_lookup_elem(&hr_conn_counts, &port);
	__u64 *hog, *owners, live = count ? READ_ONCE(count->live) : 0;

	if (live)
		sweeper->owners++;
	if (live > sweeper->most) {
		sweeper->most = live;
		sweeper->hog = port;
	}
	sweeper->port = port + 1;
	if (sweeper->port < HR_PORTS)
		return 0;
	hog = hr_cursor(HR_CURSOR_HOG);
	owners = hr_cursor(HR_CURSOR_OWNERS);
	if (hog && owners) {
		*hog = sweeper->hog;
		*owners = sweeper->owners;
	}
	sweeper->port = sweeper->hog = 0;
	sweeper->most = sweeper->owners = 0;
	return 0;
}

/* How jiffies and CLOCK_MONOTONIC relate, but for less than a tick: for lib/clock.h. */
SEC("syscall")
int hr_clocks(struct hr_clocks *clocks)
{
	clocks->jiffies = bpf_jiffies64();
	clocks->monotonic = bpf_ktime_get_ns();
	return 0;
}

struct hr_sweep {
	__u64 start;
	__u64 fresh;
	__u64 now;
	__u64 quota; /* above it a port is pressed */
	__u64 share; /* the same while the table is tight, else none */
};

/* A port that has much of what is scarce: its silent connections expire sooner. All see the same timeout, so what expired is a
 * miss to everybody before it is swept; one that is expired by now gets a second more, lest it be swept while somebody who
 * read the old timeout is about to refresh it. A timeout that is odd is a pressed one; all others are even.
 */
static __always_inline void hr_press(struct hr_conn *conn, __u64 id, const struct hr_sweep *sweep)
{
	__u32 port = conn->port, timeout = READ_ONCE(conn->timeout), wanted;
	__u64 original = READ_ONCE(conn->counter[0].seen), reply = READ_ONCE(conn->counter[1].seen);
	struct hr_conn_count *count = bpf_map_lookup_elem(&hr_conn_counts, &port);
	__u64 last = original > reply ? original : reply, silence, live;

	if (!count || timeout == HR_CUT_TIMEOUT)
		return;
	live = READ_ONCE(count->live);
	silence = sweep->now > last ? (sweep->now - last) / NSEC_PER_MSEC : 0;
	if (live > sweep->quota || live > sweep->share) {
		wanted = hr_timeout_pressed(READ_ONCE(conn->state));
		if (wanted < silence + HR_SWEEP_GRACE / NSEC_PER_MSEC)
			wanted = silence + HR_SWEEP_GRACE / NSEC_PER_MSEC;
		wanted |= 1;
		if (wanted >= timeout)
			return;
	} else {
		if (!(timeout & 1) || silence > timeout)
			return;
		wanted = hr_timeout(READ_ONCE(conn->state), conn->key[0].proto);
	}
	if (__sync_val_compare_and_swap(&conn->timeout, timeout, wanted) == timeout && READ_ONCE(conn->id) != id)
		__sync_val_compare_and_swap(&conn->timeout, wanted, timeout); /* somebody else's by now */
}

static long hr_sweep_one(__u32 step, struct hr_sweep *sweep)
{
	__u64 at = sweep->start + step;
	__u32 index = at >= sweep->fresh ? at - sweep->fresh : at;
	struct hr_conn *conn = bpf_map_lookup_elem(&hr_conns, &index);
	__u64 id;

	if (!conn)
		return 1;
	id = READ_ONCE(conn->id);
	if (!id || id & HR_CONN_DEAD)
		return 0;
	if (hr_expired(conn, sweep->now, HR_SWEEP_GRACE))
		hr_retire(index, id);
	else
		hr_press(conn, id, sweep);
	return 0;
}

/* Above which number of connections a port is pressed. */
static __always_inline void hr_sweep_limits(struct hr_sweep *sweep)
{
	__u64 *used = hr_cursor(HR_CURSOR_USED);
	__u32 zero = 0;
	struct hr_config *config = bpf_map_lookup_elem(&hr_configs, &zero);

	sweep->quota = config && config->quota ? HR_TIGHT(config->quota) : ~0ULL;
	sweep->share = ~0ULL;
	if (used && *used > HR_TIGHT(hr_connections))
		sweep->share = hr_share(*used);
}

static int hr_sweep_round(void *map, __u32 *key, struct hr_sweeper *sweeper)
{
	__u64 *fresh = hr_cursor(HR_CURSOR_FRESH), *cursor = hr_cursor(HR_CURSOR_SWEEP);
	__u64 *spent = hr_cursor(HR_CURSOR_SPENT), began = bpf_ktime_get_ns();
	struct hr_sweep sweep;
	__u32 steps;

	if (!fresh || !cursor || !spent)
		return 0;
	bpf_loop(HR_CENSUS_BATCH, hr_census_one, &sweeper, 0);
	sweep.fresh = *fresh;
	sweep.start = *cursor < sweep.fresh ? *cursor : 0;
	sweep.now = hr_now();
	hr_sweep_limits(&sweep);
	steps = sweep.fresh < HR_SWEEP_BATCH ? sweep.fresh : HR_SWEEP_BATCH;
	bpf_loop(steps, hr_sweep_one, &sweep, 0);
	*cursor = sweep.start + steps >= sweep.fresh ? sweep.start + steps - sweep.fresh : sweep.start + steps;
	*spent += bpf_ktime_get_ns() - began;
	bpf_timer_start(&sweeper->timer, HR_SWEEP_INTERVAL, 0);
	return 0;
}

/* Run once by the agent after each load: from then on the pinned timer sweeps by itself. */
SEC("tc")
int hr_sweep_start(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct hr_sweeper *sweeper = bpf_map_lookup_elem(&hr_sweepers, &zero);

	if (!sweeper)
		return 1;
	bpf_timer_init(&sweeper->timer, &hr_sweepers, HR_CLOCK_MONOTONIC);
	if (bpf_timer_set_callback(&sweeper->timer, hr_sweep_round))
		return 2;
	return bpf_timer_start(&sweeper->timer, HR_SWEEP_INTERVAL, 0) ? 3 : 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
