/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* encap, physical networks: no tag, 802.1Q, or 802.1ad with 802.1Q within. docs/pipeline.md, "encap". */
#ifndef HR_STAGES_ENCAP_VLAN_H
#define HR_STAGES_ENCAP_VLAN_H

#include "lib/parse.h"

#define HR_TAG_LENGTH 4

/* The tags of a frame as they came, priority and all: ethertype << 16 | TCI each; 0: none. */
struct hr_tags {
	__u32 outer;
	__u32 inner;
};

static __always_inline __u32 hr_segment_vid(__u32 segment)
{
	return segment & HR_VID;
}

static __always_inline __u32 hr_segment_service(__u32 segment)
{
	return segment >> HR_SERVICE_SHIFT & HR_VID;
}

/* Octets of tags on a segment. */
static __always_inline __u32 hr_tags_length(__u32 segment)
{
	return (hr_segment_vid(segment) ? HR_TAG_LENGTH : 0) + (hr_segment_service(segment) ? HR_TAG_LENGTH : 0);
}

static __always_inline int hr_tags_push(struct __sk_buff *skb, __u32 segment)
{
	__u32 vid = hr_segment_vid(segment), service = hr_segment_service(segment);

	if (vid && bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), vid))
		return HR_REASON_INTERNAL;
	if (service && bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021AD), service))
		return HR_REASON_INTERNAL;
	return HR_REASON_NONE;
}

/* The segment that a frame's tags name, as hr_where has it, but for the physical network; HR_WHERE_NONE: none. The kernel has taken
 * the outer tag off before tc sees the frame.
 */
static __always_inline __u32 hr_tags_read(struct __sk_buff *skb, struct hr_tags *tags)
{
	struct {
		__be16 proto;
		__be16 tci;
	} inner;
	__u32 vid;

	if (!skb->vlan_present)
		return 0;
	tags->outer = bpf_ntohs(skb->vlan_proto) << 16 | (skb->vlan_tci & 0xffff);
	vid = skb->vlan_tci & HR_VID;
	if (skb->vlan_proto == bpf_htons(ETH_P_8021Q))
		return vid;
	if (bpf_skb_load_bytes(skb, 2 * ETH_ALEN, &inner, sizeof(inner)) || inner.proto != bpf_htons(ETH_P_8021Q) ||
	    !vid || !(inner.tci & bpf_htons(HR_VID)))
		return HR_WHERE_NONE;
	tags->inner = ETH_P_8021Q << 16 | bpf_ntohs(inner.tci);
	return vid << HR_SERVICE_SHIFT | (bpf_ntohs(inner.tci) & HR_VID);
}

/* All tags off. */
static __always_inline int hr_tags_pop(struct __sk_buff *skb, __u32 segment)
{
	if (skb->vlan_present && bpf_skb_vlan_pop(skb))
		return HR_REASON_INTERNAL;
	return hr_segment_service(segment) && bpf_skb_vlan_pop(skb) ? HR_REASON_INTERNAL : HR_REASON_NONE;
}

static __always_inline int hr_tag_restore(struct __sk_buff *skb, __u32 tag)
{
	return tag ? bpf_skb_vlan_push(skb, bpf_htons(tag >> 16), tag & 0xffff) : 0;
}

/* All tags on again, as they came. */
static __always_inline int hr_tags_restore(struct __sk_buff *skb, const struct hr_tags *tags)
{
	return hr_tag_restore(skb, tags->inner) ?: hr_tag_restore(skb, tags->outer);
}

#endif
