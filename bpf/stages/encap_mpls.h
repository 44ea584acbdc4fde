/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* encap, MPLS over UDP (RFC 7510) and over GRE (RFC 4023): one label, then Ethernet without control word (RFC 7432).
 * docs/pipeline.md, "encap".
 */
#ifndef HR_STAGES_ENCAP_MPLS_H
#define HR_STAGES_ENCAP_MPLS_H

#include "lib/wire.h"

/* A label stack entry: label 20, traffic class 3, S, TTL 8 (RFC 3032 section 2.1). */
#define HR_MPLS_BOTTOM 0x100
#define HR_MPLS_SHIFT 12
#define HR_MPLS_RESERVED 16 /* labels below have meanings of their own */

static __always_inline void hr_mpls_fill(__be32 *word, __u32 label)
{
	word[0] = bpf_htonl(label << HR_MPLS_SHIFT | HR_MPLS_BOTTOM | HR_HOP_LIMIT);
}

static __always_inline int hr_mpls_take(const __be32 *word, const void *data_end, struct hr_outer *outer)
{
	__u32 entry;

	if ((void *)(word + 1) > data_end)
		return HR_REASON_MALFORMED_TUNNEL;
	entry = bpf_ntohl(word[0]);
	if (!(entry & HR_MPLS_BOTTOM) || entry >> HR_MPLS_SHIFT < HR_MPLS_RESERVED)
		return HR_REASON_MALFORMED_TUNNEL;
	outer->where |= entry >> HR_MPLS_SHIFT;
	outer->length += 4;
	return HR_REASON_NONE;
}

static __always_inline void hr_mpls_gre_fill(__be32 *word, __u32 label)
{
	word[0] = bpf_htonl(ETH_P_MPLS_UC);
	hr_mpls_fill(word + 1, label);
}

static __always_inline int hr_mpls_gre_take(const __be32 *word, const void *data_end, struct hr_outer *outer)
{
	if ((void *)(word + 1) > data_end || word[0] != bpf_htonl(ETH_P_MPLS_UC))
		return HR_REASON_MALFORMED_TUNNEL;
	outer->length += 4;
	return hr_mpls_take(word + 1, data_end, outer);
}

#endif
