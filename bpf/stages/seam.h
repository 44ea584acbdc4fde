/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* seam: an internal veth whose near end cuts super-packets, and completes checksums, that the kernel could not behind our outer headers.
 * Each segment gets them at its far end. docs/pipeline.md, "encap".
 */
#ifndef HR_STAGES_SEAM_H
#define HR_STAGES_SEAM_H

#include "lib/outer_sum.h"
#include "walk.h"

#define HR_SUM_OCTETS 512 /* that bpf_csum_diff takes at once, up to Linux 6.12 */
#define HR_SUM_PARTS 129 /* of a frame of 64 KiB with its Ethernet header */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64[HR_SUM_OCTETS / sizeof(__u64)]);
	__uint(max_entries, 1);
} hr_sum_buffers SEC(".maps");

/* ifindex of the near end; 0: there is no seam. */
static __always_inline __u32 hr_seam(void)
{
	__u32 zero = 0;
	struct hr_config *config = bpf_map_lookup_elem(&hr_configs, &zero);

	return config ? config->seam : 0;
}

/* All that the far end must know goes with the frame: the marks of an skb are its segments' too. */
static __always_inline void hr_seam_mark(struct __sk_buff *skb, __u32 port, __u32 path, __u32 hash)
{
	skb->mark = (__u32)HR_SEAM_MARK << HR_SEAM_MARK_SHIFT | port << HR_SEAM_SHIFT | path;
	bpf_set_hash(skb, hash);
}

struct hr_summing {
	struct __sk_buff *skb;
	__u64 *buffer;
	__u32 sum;
	__u32 failed;
};

static long hr_sum_part(__u32 number, struct hr_summing *summing)
{
	__u32 offset = number * HR_SUM_OCTETS, left = summing->skb->len - offset;
	__u64 *buffer = summing->buffer;
	long error;

	if (left >= HR_SUM_OCTETS) {
		error = bpf_skb_load_bytes(summing->skb, offset, buffer, HR_SUM_OCTETS);
	} else {
		__builtin_memset(buffer, 0, HR_SUM_OCTETS);
		error = bpf_skb_load_bytes(summing->skb, offset, buffer, hr_at_least_one(left, HR_SUM_OCTETS));
	}
	if (error) {
		summing->failed = 1;
		return 1;
	}
	summing->sum = bpf_csum_diff(NULL, 0, (__be32 *)buffer, HR_SUM_OCTETS, summing->sum);
	return 0;
}

/* Of the whole frame, octet by octet. */
static __always_inline __u32 hr_sum_whole(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct hr_summing summing = { .skb = skb, .buffer = bpf_map_lookup_elem(&hr_sum_buffers, &zero) };

	if (!summing.buffer)
		return HR_SUM_UNKNOWN;
	bpf_loop((skb->len + HR_SUM_OCTETS - 1) / HR_SUM_OCTETS, hr_sum_part, &summing, 0);
	return summing.failed ? HR_SUM_UNKNOWN : summing.sum;
}

/* At the far end. A walk that only lacks its outer headers; HR_REASON_NONE: to encap. */
static __always_inline int hr_seam_leave(struct __sk_buff *skb, struct hr_walk *walk)
{
	__u32 port = skb->mark >> HR_SEAM_SHIFT & (HR_PORTS - 1);
	struct hr_port *known = bpf_map_lookup_elem(&hr_ports, &port);

	if (skb->mark >> HR_SEAM_MARK_SHIFT != HR_SEAM_MARK)
		return HR_REASON_FROM_HOST;
	if (!known || !known->segment)
		return HR_REASON_NO_PORT;
	walk->flags = HR_WALK_SEAMED;
	walk->from_port = walk->from_index = port;
	walk->from_epoch = hr_epoch(port);
	walk->segment = known->segment;
	walk->out = skb->mark & ((1 << HR_SEAM_SHIFT) - 1);
	walk->hash = skb->hash;
	skb->mark = 0;
	return HR_REASON_NONE;
}

#endif
