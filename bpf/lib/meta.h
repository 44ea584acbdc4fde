/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What XDP leaves beside a frame whose outer headers it took off, for tc: so that GRO rebuilds super-packets in between.
 *
 * The kernel merges only packets with equal metadata, and no packet from a wire can bring any.
 */
#ifndef HR_LIB_META_H
#define HR_LIB_META_H

#include "lib/base.h"

#define HR_META_MAGIC 0x4852a11e

struct hr_meta {
	__u32 magic;
	__u32 where; /* the segment */
	__u8 outer_saddr[16];
};

#endif
