/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* encap, Geneve (RFC 8926): none of its options are sent, none that must be understood are taken. docs/pipeline.md, "encap". */
#ifndef HR_STAGES_ENCAP_GENEVE_H
#define HR_STAGES_ENCAP_GENEVE_H

#include "lib/wire.h"

/* The first word: version 2, octets of options / 4 6, O, C, reserved 6, protocol type 16 (section 3.4). */
#define HR_GENEVE_VERSION bpf_htonl(0xc0000000)
#define HR_GENEVE_CONTROL bpf_htonl(0x00800000)
#define HR_GENEVE_CRITICAL bpf_htonl(0x00400000)
#define HR_GENEVE_PROTOCOL bpf_htonl(0x0000ffff)
#define HR_GENEVE_WORDS 63 /* of options at most */

static __always_inline void hr_geneve_fill(__be32 *word, __u32 vni)
{
	word[0] = bpf_htonl(ETH_P_TEB);
	word[1] = bpf_htonl(vni << 8);
}

/* Options need no look where C says that none is critical (section 3.4). */
static __always_inline int hr_geneve_take(const __be32 *word, const void *data_end, struct hr_outer *outer)
{
	__u32 words;

	if ((void *)(word + 2) > data_end || word[0] & (HR_GENEVE_VERSION | HR_GENEVE_CONTROL) ||
	    (word[0] & HR_GENEVE_PROTOCOL) != bpf_htonl(ETH_P_TEB))
		return HR_REASON_MALFORMED_TUNNEL;
	words = 2 + (bpf_ntohl(word[0]) >> 24 & HR_GENEVE_WORDS);
	if ((void *)(word + words) > data_end)
		return HR_REASON_MALFORMED_TUNNEL;
	outer->where |= bpf_ntohl(word[1]) >> 8;
	outer->length += words * 4;
	return word[0] & HR_GENEVE_CRITICAL ? HR_REASON_GENEVE_OPTION : HR_REASON_NONE;
}

#endif
