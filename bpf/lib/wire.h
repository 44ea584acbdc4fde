/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What a wire's own file is given and gives: its header, from the words behind the outer IP and UDP headers.
 *
 * hr_NAME_fill writes the header of a segment; hr_NAME_take reads one, adds its octets to outer->length and the segment's id to
 * outer->where, and says why it cannot be taken. stages/encap.h lists the wires.
 */
#ifndef HR_LIB_WIRE_H
#define HR_LIB_WIRE_H

#include "lib/parse.h"

#define HR_HOP_LIMIT 64
#define HR_SHIM_WORDS 6 /* of outer headers behind the outer IP header, at most */

/* What an outer packet is to us. */
enum hr_outer_kind {
	HR_OUTER_FOREIGN, /* not ours: the kernel's */
	HR_OUTER_OURS,
};

struct hr_outer {
	__u8 saddr[16]; /* as hr_vtep_key has it */
	__u32 length; /* octets before the inner frame */
	__u32 where; /* the segment */
	__u32 reason; /* why it cannot be taken */
	__u8 tos;
};

static __always_inline __u32 hr_wire_of(__u32 segment)
{
	return segment >> HR_WHERE_SHIFT;
}

#endif
