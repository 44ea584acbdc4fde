/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* budget: what a port may spend on walks that leave no flow entry. docs/pipeline.md, "budget".
 *
 * A purse is a token bucket in one word: the moment until which the port has spent what it earns (GCRA, ITU-T I.371 annex A).
 */
#ifndef HR_STAGES_BUDGET_H
#define HR_STAGES_BUDGET_H

#include "dry.h"
#include "maps.h"

#define HR_BUDGET_COST (1000000000ULL / 20000) /* ns that earn one walk */
#define HR_BUDGET_SAVED 1000000000ULL /* ns that can be saved up */

#define HR_BUDGET_PUNT 400 /* walks that the agent's attention is worth: 50 a second */

/* A port has two purses, so that what it begins in vain does not keep it from answering. `known`: of packets that have an entry. */
static __always_inline __u32 hr_purse(__u32 port, bool known)
{
	return known ? port + HR_PORTS : port;
}

static __always_inline void hr_budget_charge(__u32 purse, __u32 walks)
{
	__u64 *spent = bpf_map_lookup_elem(&hr_budgets, &purse), now = hr_now();
	__u64 cost = walks * HR_BUDGET_COST, before;

	if (hr_dry || !purse || !spent)
		return;
	before = READ_ONCE(*spent);
	if (before >= now || __sync_val_compare_and_swap(spent, before, now + cost) != before)
		__sync_fetch_and_add(spent, cost);
}

static __always_inline bool hr_budget_left(__u32 purse, __u64 now)
{
	__u64 *spent = bpf_map_lookup_elem(&hr_budgets, &purse);

	return !spent || READ_ONCE(*spent) + HR_BUDGET_COST <= now + HR_BUDGET_SAVED;
}

#endif
