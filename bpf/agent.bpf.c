// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What the agent asks the kernel to do for it: raise epochs, and start the sweeper, which then needs no agent. */
#include "connections.h"
#include "lib/connection.h"

#define HR_CLOCK_MONOTONIC 1
#define HR_EPOCH_BATCH 63

/* 2,048 connections every 20 ms: a million in ten seconds. */
#define HR_SWEEP_BATCH 2048
#define HR_SWEEP_INTERVAL (20 * NSEC_PER_MSEC)
/* Nobody handles one packet this long, so nobody can still be refreshing what expired this long ago. */
#define HR_SWEEP_GRACE (1000 * NSEC_PER_MSEC)

struct hr_sweeper {
	struct bpf_timer timer;
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
	__u64 *connections = bpf_map_lookup_elem(&hr_conn_counts, &port);
	__u64 *packets = bpf_map_lookup_elem(&hr_reasons, &slot);

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
	if (connections)
		__sync_fetch_and_add(connections, more->connections);
	if (packets)
		__sync_fetch_and_add(packets, more->packets);
	return 0;
}

struct hr_sweep {
	__u64 start;
	__u64 fresh;
	__u64 now;
};

static long hr_sweep_one(__u32 step, struct hr_sweep *sweep)
{
	__u64 at = sweep->start + step;
	__u32 index = at >= sweep->fresh ? at - sweep->fresh : at;
	struct hr_conn *conn = bpf_map_lookup_elem(&hr_conns, &index);
	__u64 id;

	if (!conn)
		return 1;
	id = READ_ONCE(conn->id);
	if (id && !(id & HR_CONN_DEAD) && hr_expired(conn, sweep->now, HR_SWEEP_GRACE))
		hr_retire(index, id);
	return 0;
}

static int hr_sweep_round(void *map, __u32 *key, struct bpf_timer *timer)
{
	__u32 fresh_at = HR_CURSOR_FRESH, sweep_at = HR_CURSOR_SWEEP, steps;
	__u64 *fresh = bpf_map_lookup_elem(&hr_cursors, &fresh_at);
	__u64 *cursor = bpf_map_lookup_elem(&hr_cursors, &sweep_at);
	struct hr_sweep sweep;

	if (!fresh || !cursor)
		return 0;
	sweep.fresh = *fresh;
	sweep.start = *cursor < sweep.fresh ? *cursor : 0;
	sweep.now = bpf_ktime_get_coarse_ns();
	steps = sweep.fresh < HR_SWEEP_BATCH ? sweep.fresh : HR_SWEEP_BATCH;
	bpf_loop(steps, hr_sweep_one, &sweep, 0);
	*cursor = sweep.start + steps >= sweep.fresh ? sweep.start + steps - sweep.fresh : sweep.start + steps;
	bpf_timer_start(timer, HR_SWEEP_INTERVAL, 0);
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
