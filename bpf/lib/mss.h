/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* TCP's maximum segment size, in a SYN (RFC 9293 section 3.7.1). */
#ifndef HR_LIB_MSS_H
#define HR_LIB_MSS_H

#include "lib/parse.h"

#define HR_TCP_OPTIONS 40 /* octets at most */
#define HR_OPTION_END 0
#define HR_OPTION_NOP 1
#define HR_OPTION_MSS 2

struct hr_mss {
	__u8 kind;
	__u8 length;
	__be16 size;
};

/* Lower the option to `most`; the checksum is mended (RFC 1624). One at an odd offset counts in it with its octets swapped. */
static __always_inline void hr_mss_clamp(struct __sk_buff *skb, const struct hr_packet *packet, __u16 most)
{
	__u32 at = packet->l4 + sizeof(struct tcphdr), end = packet->header, check;
	__be16 lower = bpf_htons(most), before, after;
	struct hr_mss option;
	int i;

	for (i = 0; i < HR_TCP_OPTIONS; i++) {
		if (at + sizeof(option) > end || bpf_skb_load_bytes(skb, at, &option, sizeof(option)))
			return;
		if (option.kind == HR_OPTION_MSS && option.length == sizeof(option))
			break;
		if (option.kind == HR_OPTION_END || (option.kind != HR_OPTION_NOP && option.length < 2))
			return;
		at += option.kind == HR_OPTION_NOP ? 1 : option.length;
	}
	if (i == HR_TCP_OPTIONS || bpf_ntohs(option.size) <= most)
		return;
	if (bpf_skb_store_bytes(skb, at + offsetof(struct hr_mss, size), &lower, sizeof(lower), 0))
		return;
	check = packet->l4 + offsetof(struct tcphdr, check);
	before = (at - packet->l4) & 1 ? __builtin_bswap16(option.size) : option.size;
	after = (at - packet->l4) & 1 ? __builtin_bswap16(lower) : lower;
	bpf_l4_csum_replace(skb, check, before, after, sizeof(before));
}

#endif
