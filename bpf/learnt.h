/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How much was learnt, and where. A place is a struct hr_learnt as one word: it is read whole, and moved by compare-and-swap.
 *
 * Who writes an entry has counted it before; who takes it from a place, by swapping it for another or for 0, takes it off that
 * place's count; all VTEPs are one place of a segment. So counts are exact, and above no limit. An entry that is 0 is only ever deleted.
 */
#ifndef HR_LEARNT_H
#define HR_LEARNT_H

#include "maps.h"

#define HR_LEARNT_WORD(endpoint, vtep) ((__u64)(vtep) << 32 | (endpoint))
#define HR_LEARNT_ENDPOINT(word) ((__u32)(word))
#define HR_LEARNT_VTEP(word) ((__u32)((word) >> 32) & 0xffff)
#define HR_LEARNT_SEEN(seconds) ((__u64)(__u16)(seconds) << 48)
#define HR_LEARNT_FRESH \
	(48 + 4) /* a bit of the word: seen is written again once it differs from here on, within 16 s */
#define HR_LEARNT_PLACE(word) ((word) & ~(0xffffULL << 48))

_Static_assert(sizeof(struct hr_learnt) == sizeof(__u64) && offsetof(struct hr_learnt, vtep) == 4,
	       "a word, low part first");
_Static_assert(HR_VTEPS <= 1 << 16, "the index of a VTEP fits");

static __always_inline __u32 *hr_learnt_count(__u64 place, __u32 segment)
{
	__u32 where = HR_LEARNT_VTEP(place) ? segment : HR_LEARNT_ENDPOINT(place);

	return bpf_map_lookup_elem(&hr_learnt_counts, &where);
}

/* Take one off the count of a place. */
static __always_inline void hr_learnt_release(__u64 place, __u32 segment)
{
	__u32 *count = hr_learnt_count(place, segment);

	if (count)
		__sync_fetch_and_add(count, -1);
}

/* Count one more at a place; false if it has as many as it may have. */
static __always_inline bool hr_learnt_reserve(__u64 place, __u32 segment)
{
	__u32 most = HR_LEARNT_VTEP(place) ? HR_LEARNT_SEGMENT : HR_LEARNT_PORT, none = 0;
	__u32 where = HR_LEARNT_VTEP(place) ? segment : HR_LEARNT_ENDPOINT(place);
	__u32 *count = bpf_map_lookup_elem(&hr_learnt_counts, &where);

	if (!count) {
		bpf_map_update_elem(&hr_learnt_counts, &where, &none, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&hr_learnt_counts, &where);
	}
	if (!count || READ_ONCE(*count) >= most)
		return false;
	if (__sync_fetch_and_add(count, 1) < most)
		return true;
	__sync_fetch_and_add(count, -1);
	return false;
}

#endif
