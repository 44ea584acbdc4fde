/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* encap, NSH (RFC 8300) over VXLAN-GPE and straight over Ethernet. docs/pipeline.md, "encap". */
#ifndef HR_STAGES_ENCAP_NSH_H
#define HR_STAGES_ENCAP_NSH_H

#include "lib/wire.h"

/* The base header: version 2, O, reserved 1, TTL 6, length in words 6, reserved 4, MD type 4, next protocol 8 (section 2.2). */
#define HR_NSH_FIXED 0xe0000000 /* version and O: zero */
#define HR_NSH_TTL (63 << 22)
#define HR_NSH_LENGTH(word) ((word) >> 16 & 0x3f)
#define HR_NSH_TYPE(word) ((word) >> 8 & 0xf)
#define HR_NSH_NEXT(word) ((word) & 0xff)
#define HR_NSH_NEXT_ETHERNET 3
#define HR_NSH_INDEX 255 /* service index: nobody has served it yet */

/* VXLAN-GPE: flags 8 of which version 2, I, P, O; reserved 16, next protocol 8; VNI 24, reserved 8 (draft-ietf-nvo3-vxlan-gpe). */
#define HR_GPE_FLAGS bpf_htonl(0x3d000000) /* version, I, P, O */
#define HR_GPE_VALID bpf_htonl(0x0c000000) /* I and P */
#define HR_GPE_NEXT bpf_htonl(0x000000ff)
#define HR_GPE_NEXT_NSH bpf_htonl(4)

static __always_inline void hr_nsh_fill(__be32 *word, __u32 path)
{
	word[0] = bpf_htonl(HR_NSH_TTL | 2 << 16 | 2 << 8 | HR_NSH_NEXT_ETHERNET);
	word[1] = bpf_htonl(path << 8 | HR_NSH_INDEX);
}

static __always_inline int hr_nsh_take(const __be32 *word, const void *data_end, struct hr_outer *outer)
{
	__u32 base, words, type;

	if ((void *)(word + 2) > data_end)
		return HR_REASON_MALFORMED_TUNNEL;
	base = bpf_ntohl(word[0]);
	words = HR_NSH_LENGTH(base);
	type = HR_NSH_TYPE(base);
	if (base & HR_NSH_FIXED || HR_NSH_NEXT(base) != HR_NSH_NEXT_ETHERNET ||
	    !((type == 1 && words == 6) || (type == 2 && words >= 2)))
		return HR_REASON_MALFORMED_TUNNEL;
	if ((void *)(word + words) > data_end)
		return HR_REASON_MALFORMED_TUNNEL;
	outer->where |= bpf_ntohl(word[1]) >> 8;
	outer->length += words * 4;
	return bpf_ntohl(word[1]) & 0xff ? HR_REASON_NONE : HR_REASON_NSH_EXHAUSTED;
}

static __always_inline void hr_nsh_gpe_fill(__be32 *word, __u32 path)
{
	word[0] = HR_GPE_VALID | HR_GPE_NEXT_NSH;
	word[1] = bpf_htonl(path << 8);
	hr_nsh_fill(word + 2, path);
}

static __always_inline int hr_nsh_gpe_take(const __be32 *word, const void *data_end, struct hr_outer *outer)
{
	if ((void *)(word + 4) > data_end || (word[0] & HR_GPE_FLAGS) != HR_GPE_VALID ||
	    (word[0] & HR_GPE_NEXT) != HR_GPE_NEXT_NSH || bpf_ntohl(word[1]) >> 8 != bpf_ntohl(word[3]) >> 8)
		return HR_REASON_MALFORMED_TUNNEL;
	outer->length += 8;
	return hr_nsh_take(word + 2, data_end, outer);
}

#endif
