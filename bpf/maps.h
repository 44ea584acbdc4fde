/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every table. Pinned by name: programs of several objects, and of the next version, share them.
 *
 * Hash maps, not LRU maps, hold flows: LRU evicts live connections. Sizes are defaults; the agent sets its own before loading.
 */
#ifndef HR_MAPS_H
#define HR_MAPS_H

#include "lib/base.h"

#define HR_TABLE(map_name, map_type, key_type, value_type, size, flags) \
	struct {                                                        \
		__uint(type, map_type);                                 \
		__type(key, key_type);                                  \
		__type(value, value_type);                              \
		__uint(max_entries, size);                              \
		__uint(map_flags, flags);                               \
		__uint(pinning, LIBBPF_PIN_BY_NAME);                    \
	} map_name SEC(".maps")

/* Written by the agent. */
HR_TABLE(hr_configs, BPF_MAP_TYPE_ARRAY, __u32, struct hr_config, 1, 0);
HR_TABLE(hr_devices, BPF_MAP_TYPE_HASH, __u32, struct hr_device, HR_PORTS, 0);
HR_TABLE(hr_ports, BPF_MAP_TYPE_ARRAY, __u32, struct hr_port, HR_PORTS, 0);
HR_TABLE(hr_subports, BPF_MAP_TYPE_HASH, struct hr_subport_key, struct hr_subport, HR_PORTS, 0);
HR_TABLE(hr_uplinks, BPF_MAP_TYPE_HASH, __u32, struct hr_uplink, HR_UPLINKS, 0);
HR_TABLE(hr_wires, BPF_MAP_TYPE_HASH, __u32, struct hr_wire, HR_PORTS, 0);
HR_TABLE(hr_sources, BPF_MAP_TYPE_LPM_TRIE, struct hr_source_key, __u32, 262144, BPF_F_NO_PREALLOC);
HR_TABLE(hr_neighbours, BPF_MAP_TYPE_HASH, struct hr_neighbour_key, struct hr_neighbour, 262144, BPF_F_NO_PREALLOC);
HR_TABLE(hr_fdbs, BPF_MAP_TYPE_HASH, struct hr_fdb_key, struct hr_fdb, 262144, BPF_F_NO_PREALLOC);
HR_TABLE(hr_floods, BPF_MAP_TYPE_HASH, struct hr_flood_key, struct hr_flood, 65536, BPF_F_NO_PREALLOC);
HR_TABLE(hr_vteps, BPF_MAP_TYPE_HASH, struct hr_vtep_key, struct hr_vtep, HR_VTEPS, 0);
HR_TABLE(hr_acl_services, BPF_MAP_TYPE_LPM_TRIE, struct hr_acl_service_key, struct hr_acl_service, 1048576,
	 BPF_F_NO_PREALLOC);
HR_TABLE(hr_acl_addresses, BPF_MAP_TYPE_HASH, struct hr_acl_address_key, struct hr_acl_remote, 1048576,
	 BPF_F_NO_PREALLOC);
HR_TABLE(hr_acl_remotes, BPF_MAP_TYPE_LPM_TRIE, struct hr_acl_remote_key, struct hr_acl_remote, 1048576,
	 BPF_F_NO_PREALLOC);
HR_TABLE(hr_acl_matches, BPF_MAP_TYPE_HASH, struct hr_acl_match_key, struct hr_acl_match, 1048576, BPF_F_NO_PREALLOC);

HR_TABLE(hr_names, BPF_MAP_TYPE_HASH, struct hr_name_key, struct hr_name, 524288, BPF_F_NO_PREALLOC);

/* 1 while the agent writes: one that died meanwhile may have raised no epochs. */
HR_TABLE(hr_applying, BPF_MAP_TYPE_ARRAY, __u32, __u32, 1, 0);

/* Written by those who watch drops, each its slot; the last: not 0 while anybody does. */
HR_TABLE(hr_watches, BPF_MAP_TYPE_ARRAY, __u32, struct hr_watch, HR_WATCHERS, 0);
HR_TABLE(hr_watched_until, BPF_MAP_TYPE_ARRAY, __u32, __u64, 1, 0);

/* Addresses by the agent, next hops by the walk. */
HR_TABLE(hr_adjacencies, BPF_MAP_TYPE_ARRAY, __u32, struct hr_adjacency, HR_VTEPS *HR_PATHS, 0);

/* Written by the datapath alone. */
HR_TABLE(hr_epochs, BPF_MAP_TYPE_ARRAY, __u32, __u32, HR_ENDPOINTS, 0);
HR_TABLE(hr_learnt, BPF_MAP_TYPE_HASH, struct hr_fdb_key, struct hr_learnt, 131072, BPF_F_NO_PREALLOC);
/* By local port index, or by segment: what was learnt behind its VTEPs. */
HR_TABLE(hr_learnt_counts, BPF_MAP_TYPE_HASH, __u32, __u32, HR_PORTS + 65536, BPF_F_NO_PREALLOC);
HR_TABLE(hr_flows, BPF_MAP_TYPE_HASH, struct hr_flow_key, struct hr_flow, 524288, 0);
HR_TABLE(hr_conns, BPF_MAP_TYPE_ARRAY, __u32, struct hr_conn, 262144, 0);
HR_TABLE(hr_conn_counts, BPF_MAP_TYPE_ARRAY, __u32, struct hr_conn_count, HR_PORTS, 0);
HR_TABLE(hr_half_open, BPF_MAP_TYPE_ARRAY, __u32, struct hr_half_open, HR_PORTS, 0);
HR_TABLE(hr_budgets, BPF_MAP_TYPE_ARRAY, __u32, __u64, 2 * HR_PORTS, 0);
HR_TABLE(hr_fragments, BPF_MAP_TYPE_HASH, struct hr_fragment_key, struct hr_fragment, HR_PORTS *HR_FRAGMENTS_PORT,
	 BPF_F_NO_PREALLOC);
HR_TABLE(hr_fragment_slots, BPF_MAP_TYPE_HASH, struct hr_fragment_slot, struct hr_fragment_key,
	 HR_PORTS *HR_FRAGMENTS_PORT, BPF_F_NO_PREALLOC);
HR_TABLE(hr_fragment_heads, BPF_MAP_TYPE_ARRAY, __u32, __u32, HR_PORTS, 0);
HR_TABLE(hr_port_counts, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct hr_port_counters, HR_PORTS, 0);
HR_TABLE(hr_reasons, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, HR_PORTS *HR_REASONS, 0);
HR_TABLE(hr_conclusions, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct hr_conclusion, 1, 0);

HR_TABLE(hr_watch_states, BPF_MAP_TYPE_ARRAY, __u32, struct hr_watch_state, HR_WATCHERS, 0);

/* A ring buffer for each watcher, which makes it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, HR_WATCHERS);
	__type(key, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_RINGBUF);
			__uint(max_entries, 262144);
		});
} hr_samples SEC(".maps");

/* Indices of hr_conns that were used and are free: first in, first out, and there are some more than there may be
 * connections (HR_CONN_REST), so that an index rests before it is used again.
 */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(key_size, 0);
	__uint(value_size, sizeof(__u32));
	__uint(max_entries, 262144);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} hr_conn_free SEC(".maps");

/* struct hr_punt: what the agent answers. It holds some 170 of them. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 262144);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} hr_punts SEC(".maps");

/* Where never used indices of hr_conns begin, the sweeper's place, and the last connection id of each CPU. */
enum hr_cursor {
	HR_CURSOR_FRESH,
	HR_CURSOR_USED, /* connections there are */
	HR_CURSOR_SWEEP,
	HR_CURSOR_HOG, /* the port that has most connections, as the sweeper counted lately */
	HR_CURSOR_OWNERS, /* ports that have any */
	HR_CURSOR_SPENT, /* ns that the sweeper has run */
};
#define HR_CURSORS 6
HR_TABLE(hr_cursors, BPF_MAP_TYPE_ARRAY, __u32, __u64, HR_CURSORS, 0);
HR_TABLE(hr_conn_ids, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, __u64, 1, 0);

static __always_inline __u32 hr_epoch(__u32 index)
{
	__u32 *epoch = bpf_map_lookup_elem(&hr_epochs, &index);

	return epoch ? READ_ONCE(*epoch) : 0;
}

static __always_inline void hr_epoch_raise(__u32 index)
{
	__u32 *epoch = bpf_map_lookup_elem(&hr_epochs, &index);

	if (epoch)
		__sync_fetch_and_add(epoch, 1);
}

#endif
