/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* encap, GRE with a key (RFC 2784, RFC 2890) that carries Ethernet. docs/pipeline.md, "encap". */
#ifndef HR_STAGES_ENCAP_GRE_H
#define HR_STAGES_ENCAP_GRE_H

#include "lib/wire.h"

#define HR_GRE_KEY bpf_htonl(0x20000000)
#define HR_GRE_SEQUENCE bpf_htonl(0x10000000)
#define HR_GRE_FLAGS bpf_htonl(0xffff0000)

static __always_inline void hr_gre_fill(__be32 *word, __u32 key)
{
	word[0] = HR_GRE_KEY | bpf_htonl(ETH_P_TEB);
	word[1] = bpf_htonl(key);
}

static __always_inline int hr_gre_take(const __be32 *word, const void *data_end, struct hr_outer *outer)
{
	if ((void *)(word + 2) > data_end || (word[0] & HR_GRE_FLAGS & ~HR_GRE_SEQUENCE) != HR_GRE_KEY)
		return HR_REASON_MALFORMED_TUNNEL;
	outer->length += word[0] & HR_GRE_SEQUENCE ? 12 : 8;
	if (bpf_ntohl(word[1]) > HR_WHERE_ID)
		return HR_REASON_UNKNOWN_SEGMENT;
	outer->where |= bpf_ntohl(word[1]);
	return HR_REASON_NONE;
}

#endif
