/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The internet checksum (RFC 1071). */
#ifndef HR_LIB_CHECKSUM_H
#define HR_LIB_CHECKSUM_H

#include "lib/base.h"

/* What goes into a header for the sum of everything else. */
static __always_inline __u16 hr_checksum(__u64 sum)
{
	sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

#endif
