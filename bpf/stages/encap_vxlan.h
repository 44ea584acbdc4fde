/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* encap, VXLAN (RFC 7348): flags and VNI behind UDP. docs/pipeline.md, "encap". */
#ifndef HR_STAGES_ENCAP_VXLAN_H
#define HR_STAGES_ENCAP_VXLAN_H

#include "lib/wire.h"

#define HR_VXLAN_VALID bpf_htonl(0x08000000) /* flag I */

static __always_inline void hr_vxlan_fill(__be32 *word, __u32 vni)
{
	word[0] = HR_VXLAN_VALID;
	word[1] = bpf_htonl(vni << 8);
}

static __always_inline int hr_vxlan_take(const __be32 *word, const void *data_end, struct hr_outer *outer)
{
	if ((void *)(word + 2) > data_end || !(word[0] & HR_VXLAN_VALID))
		return HR_REASON_MALFORMED_TUNNEL;
	outer->where |= bpf_ntohl(word[1]) >> 8;
	outer->length += 8;
	return HR_REASON_NONE;
}

#endif
