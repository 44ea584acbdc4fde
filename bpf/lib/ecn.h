/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Congestion marks of outer headers, brought into what was inside (RFC 6040 section 4.2). */
#ifndef HR_LIB_ECN_H
#define HR_LIB_ECN_H

#include "lib/parse.h"

#define HR_ECN 3 /* the ECN field of TOS and of the traffic class */
#define HR_ECN_ECT1 1
#define HR_ECN_ECT0 2
#define HR_ECN_CE 3

/* Whether the packet must be dropped: it met congestion, and its ends do not know such marks. */
static __always_inline bool hr_ecn_lost(__u8 outer, const struct hr_packet *packet)
{
	return packet->kind >= HR_KIND_IPV4 && (outer & HR_ECN) == HR_ECN_CE && !(packet->tos & HR_ECN);
}

/* What to add to the inner field by exclusive or; 0: it stays. */
static __always_inline __u8 hr_ecn_change(__u8 outer, const struct hr_packet *packet)
{
	__u8 inner = packet->tos & HR_ECN;

	outer &= HR_ECN;
	if (packet->kind < HR_KIND_IPV4 || !inner || inner == HR_ECN_CE)
		return 0;
	if (outer == HR_ECN_CE || (outer == HR_ECN_ECT1 && inner == HR_ECN_ECT0))
		return inner ^ outer;
	return 0;
}

#endif
