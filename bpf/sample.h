/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Samples of drops, for whoever watches. Nobody does, usually: then a drop costs one look at an array.
 *
 * A watcher holds one of HR_WATCHERS slots: what it wants to see and until when it asked for it, a bucket that keeps samples to
 * its rate, and a ring buffer of its own. A watcher that dies asks no more, and its slot goes quiet by itself.
 */
#ifndef HR_SAMPLE_H
#define HR_SAMPLE_H

#include "dry.h"
#include "maps.h"

/* A drop as its sample will tell it; see struct hr_sample. */
struct hr_dropped {
	__u32 port;
	__u32 reason;
	__u32 where;
	__u32 outer;
	__u32 to;
	__u32 shared; /* 1: the kernel gets the frame all the same */
};

/* True: there is a token, and it is taken. A burst of one second's tokens may have been saved up. */
static __always_inline bool hr_watch_take(struct hr_watch_state *state, __u32 rate, __u64 now)
{
	__u64 next = READ_ONCE(state->next), start = now - NSEC_PER_SEC, due = next < start ? start : next;

	return rate && due <= now && __sync_val_compare_and_swap(&state->next, next, due + NSEC_PER_SEC / rate) == next;
}

static __always_inline bool hr_watch_wants(const struct hr_watch *watch, const struct hr_dropped *dropped, __u64 now)
{
	__u32 port = watch->port;

	return watch->until > now && watch->reasons & (1ULL << (dropped->reason & 63)) &&
	       (port == HR_WATCH_ALL || port == dropped->port || (port && port == dropped->to));
}

static __always_inline void hr_sample_for(struct __sk_buff *skb, __u32 slot, struct hr_watch_state *state,
					  const struct hr_dropped *dropped, __u64 now)
{
	void *ring = bpf_map_lookup_elem(&hr_samples, &slot);
	struct hr_sample *sample = ring ? bpf_ringbuf_reserve(ring, sizeof(*sample), 0) : NULL;
	__u32 captured = skb->len;

	if (!sample) {
		__sync_fetch_and_add(&state->missed, 1);
		return;
	}
	__builtin_memset(sample, 0, sizeof(*sample));
	sample->time = now;
	sample->reason = dropped->reason;
	sample->port = dropped->port;
	sample->where = dropped->where;
	sample->ifindex = skb->ifindex;
	sample->length = skb->len;
	sample->outer = dropped->outer;
	sample->to = dropped->to;
	if (captured > HR_SAMPLE_OCTETS)
		captured = HR_SAMPLE_OCTETS;
	if (bpf_skb_load_bytes(skb, 0, sample->frame, hr_at_least_one(captured, HR_SAMPLE_OCTETS)))
		captured = 0;
	sample->captured = captured;
	bpf_ringbuf_submit(sample, 0);
}

/* Show a dropped frame to those who watch. */
static __noinline int hr_sample(struct __sk_buff *skb, const struct hr_dropped *dropped)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 slot;

	for (slot = 0; slot < HR_WATCHERS; slot++) {
		__u32 key = slot;
		struct hr_watch *watch = bpf_map_lookup_elem(&hr_watches, &key);
		struct hr_watch_state *state = bpf_map_lookup_elem(&hr_watch_states, &key);

		if (!watch || !state || !hr_watch_wants(watch, dropped, now))
			continue;
		if (hr_watch_take(state, watch->rate, now))
			hr_sample_for(skb, key, state, dropped, now);
		else
			__sync_fetch_and_add(&state->missed, 1);
	}
	return 0;
}

static __always_inline bool hr_watched(void)
{
	__u32 zero = 0;
	__u64 *until = bpf_map_lookup_elem(&hr_watched_until, &zero);

	return !hr_dry && until && READ_ONCE(*until);
}

#endif
