/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* account: exact counters per flow direction, per port, and per (port, reason). */
#ifndef HR_STAGES_ACCOUNT_H
#define HR_STAGES_ACCOUNT_H

#include "dry.h"
#include "maps.h"

/* How a frame counts: a super-packet as the segments it stands for. */
struct hr_weight {
	__u32 packets;
	__u32 octets;
};

/* `length`: of the frame; `header`: octets before its payload; `gso_size`: payload of a segment, 0 if it is none.
 * A guest's super-packet has gso_segs 0, so the segments are computed.
 */
static __always_inline struct hr_weight hr_weigh(__u32 length, __u32 header, __u32 gso_size)
{
	struct hr_weight weight = { .packets = 1, .octets = length };

	if (gso_size && length > header + gso_size) {
		weight.packets = (length - header + gso_size - 1) / gso_size;
		weight.octets = length + (weight.packets - 1) * header;
	}
	return weight;
}

static __always_inline void hr_count_connection(struct hr_conn_counter *counter, struct hr_weight weight, __u64 now)
{
	if (hr_dry)
		return;
	__sync_fetch_and_add(&counter->packets, weight.packets);
	__sync_fetch_and_add(&counter->octets, weight.octets);
	if (counter->seen != now)
		WRITE_ONCE(counter->seen, now);
}

static __always_inline void hr_count(struct hr_counter *counter, struct hr_weight weight)
{
	if (hr_dry)
		return;
	counter->packets += weight.packets;
	counter->octets += weight.octets;
}

static __always_inline void hr_count_from_port(__u32 port, struct hr_weight weight)
{
	struct hr_port_counters *counters = bpf_map_lookup_elem(&hr_port_counts, &port);

	if (counters)
		hr_count(&counters->from_port, weight);
}

static __always_inline void hr_count_to_port(__u32 port, struct hr_weight weight)
{
	struct hr_port_counters *counters = bpf_map_lookup_elem(&hr_port_counts, &port);

	if (counters)
		hr_count(&counters->to_port, weight);
}

static __always_inline void hr_count_walk(__u32 port, struct hr_weight weight)
{
	struct hr_port_counters *counters = bpf_map_lookup_elem(&hr_port_counts, &port);

	if (counters)
		hr_count(&counters->walked, weight);
}

/* `port` 0: the uplink. */
static __always_inline void hr_count_reason(__u32 port, __u32 reason)
{
	__u32 slot = port * HR_REASONS + reason;
	__u64 *count = bpf_map_lookup_elem(&hr_reasons, &slot);

	if (count && !hr_dry)
		*count += 1;
}

#endif
