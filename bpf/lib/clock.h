/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The time of day of all timeouts: CLOCK_MONOTONIC as of the last tick or the next, in ns.
 *
 * The kernel moves jiffies and its coarse clock in one go, and the verifier makes of bpf_jiffies64 a plain load, where
 * bpf_ktime_get_coarse_ns is a call. The loader finds out how the two relate (headrace/datapath/clock.py).
 */
#ifndef HR_LIB_CLOCK_H
#define HR_LIB_CLOCK_H

#include "lib/base.h"

const volatile __u64 hr_tick = 0; /* ns of a jiffy; 0: not known, so the kernel is asked each time */
const volatile __u64 hr_tick_zero = 0; /* what the clock showed when jiffies were 0, modulo 2^64 */

static __always_inline __u64 hr_now(void)
{
	return hr_tick ? bpf_jiffies64() * hr_tick + hr_tick_zero : bpf_ktime_get_coarse_ns();
}

#endif
