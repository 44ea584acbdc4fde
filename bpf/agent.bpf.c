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
