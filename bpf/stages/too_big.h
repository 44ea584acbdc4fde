/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* too_big: tell the sender of a packet how long it may be. docs/pipeline.md, "too_big". */
#ifndef HR_STAGES_TOO_BIG_H
#define HR_STAGES_TOO_BIG_H

#include "lib/checksum.h"
#include "stages/encap.h"
#include "walk.h"

#define HR_NOTICE4 576 /* octets of the answer at most: RFC 1812 section 4.3.2.3 */
#define HR_NOTICE6 1280 /* RFC 4443 section 2.4 (c) */
#define HR_QUOTE4 (HR_NOTICE4 - sizeof(struct iphdr) - sizeof(struct hr_icmp))
#define HR_QUOTE6 (HR_NOTICE6 - sizeof(struct ipv6hdr) - sizeof(struct hr_icmp))
#define HR_LEAST_MTU6 1280 /* RFC 8200 section 5 */
#define HR_CSUM_DIFF 512 /* octets that bpf_csum_diff takes at once, up to Linux 6.12 */

/* What follows the Ethernet header; the quotes end in room for what bounds their length. */
struct hr_notice4 {
	struct iphdr ip;
	struct hr_icmp icmp;
	__u8 quote[1024 + sizeof(struct iphdr)];
};
struct hr_notice6 {
	struct ipv6hdr ip;
	struct hr_icmp icmp;
	__u8 quote[2048 + sizeof(struct ipv6hdr)];
};
struct hr_notice {
	__u16 pad; /* aligns the IP header */
	struct ethhdr eth;
	union {
		struct hr_notice4 v4;
		struct hr_notice6 v6;
	};
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct hr_notice);
	__uint(max_entries, 1);
} hr_notices SEC(".maps");

static __always_inline bool hr_exceeds(const struct hr_walk *walk, __u32 mtu)
{
	return walk->packet.kind >= HR_KIND_IPV4 && walk->length > mtu;
}

static __always_inline bool hr_addr_is_group(const __u8 *addr)
{
	return hr_addr_is_v4(addr) ? addr[12] >= 224 : addr[0] == 0xff;
}

static __always_inline bool hr_addr_is_unspecified(const __u8 *addr)
{
	const __u32 *words = (const __u32 *)addr;

	return !words[0] && !words[1] && !words[3] && (!words[2] || words[2] == bpf_htonl(0xffff));
}

/* Whether anybody may be told (RFC 1812 section 4.3.2.7, RFC 4443 section 2.4 (e)). */
static __always_inline bool hr_may_tell(const struct hr_packet *packet)
{
	__u8 type = packet->icmp_type;

	if (packet->eth_dst[0] & 1 || packet->fragment == HR_FRAGMENT_LATER || hr_addr_is_group(packet->key.daddr) ||
	    hr_addr_is_unspecified(packet->key.saddr) || hr_addr_is_unspecified(packet->key.daddr))
		return false;
	if (!hr_is_icmp(packet))
		return true;
	if (packet->kind == HR_KIND_IPV6)
		return type >= 128 && type != 137;
	return type != 3 && type != 4 && type != 5 && type != 11 && type != 12;
}

static __always_inline void hr_notice_clear(void *from, __u32 octets)
{
	__u64 *words = from;
	__u32 i;

#pragma clang loop unroll(disable)
	for (i = 0; i < octets / sizeof(*words); i++)
		WRITE_ONCE(words[i], 0);
}

/* Octets of the answer from IP on; 0: none is due. */
static __always_inline __u32 hr_notice4_fill(struct __sk_buff *skb, struct hr_notice4 *notice,
					     const struct hr_packet *packet, __u32 mtu)
{
	__u32 rest = (packet->ip_length < HR_QUOTE4 ? packet->ip_length : HR_QUOTE4) - sizeof(struct iphdr), length;
	__s64 sum;

	HR_BOUND(rest, 1024);
	hr_notice_clear(notice, HR_NOTICE4);
	if (bpf_skb_load_bytes(skb, packet->l3, notice->quote, rest + sizeof(struct iphdr)) ||
	    !(notice->quote[6] & 0x40)) /* DF */
		return 0;
	length = rest + 2 * sizeof(struct iphdr) + sizeof(struct hr_icmp);
	notice->icmp.type = 3;
	notice->icmp.code = 4;
	notice->icmp.sequence = bpf_htons(mtu < 0xffff ? mtu : 0xffff);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&notice->icmp, HR_CSUM_DIFF, 0);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&notice->icmp + HR_CSUM_DIFF / 4,
			    HR_NOTICE4 - sizeof(struct iphdr) - HR_CSUM_DIFF, sum);
	notice->icmp.checksum = hr_checksum(sum);
	notice->ip.version = 4;
	notice->ip.ihl = 5;
	notice->ip.tot_len = bpf_htons(length);
	notice->ip.frag_off = bpf_htons(0x4000);
	notice->ip.ttl = HR_HOP_LIMIT;
	notice->ip.protocol = IPPROTO_ICMP;
	notice->ip.saddr = hr_addr_v4(packet->key.daddr);
	notice->ip.daddr = hr_addr_v4(packet->key.saddr);
	hr_ipv4_checksum(&notice->ip);
	return length;
}

static __always_inline __u32 hr_notice6_fill(struct __sk_buff *skb, struct hr_notice6 *notice,
					     const struct hr_packet *packet, __u32 mtu)
{
	__u32 rest = (packet->ip_length < HR_QUOTE6 ? packet->ip_length : HR_QUOTE6) - sizeof(struct ipv6hdr), length;
	__be32 *words = (__be32 *)&notice->icmp;
	__s64 sum;

	HR_BOUND(rest, 2048);
	hr_notice_clear(notice, HR_NOTICE6);
	if (bpf_skb_load_bytes(skb, packet->l3, notice->quote, rest + sizeof(struct ipv6hdr)))
		return 0;
	length = rest + sizeof(struct ipv6hdr) + sizeof(struct hr_icmp);
	*(__be32 *)&notice->ip = bpf_htonl(6 << 28);
	notice->ip.payload_len = bpf_htons(length);
	notice->ip.nexthdr = IPPROTO_ICMPV6;
	notice->ip.hop_limit = HR_HOP_LIMIT;
	__builtin_memcpy(&notice->ip.saddr, packet->key.daddr, 16);
	__builtin_memcpy(&notice->ip.daddr, packet->key.saddr, 16);
	notice->icmp.type = 2;
	words[1] = bpf_htonl(mtu < HR_LEAST_MTU6 ? HR_LEAST_MTU6 : mtu);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&notice->ip.saddr, 32, bpf_htonl(length));
	sum = bpf_csum_diff(NULL, 0, words, HR_CSUM_DIFF, sum);
	sum = bpf_csum_diff(NULL, 0, words + HR_CSUM_DIFF / 4, HR_CSUM_DIFF, sum);
	sum = bpf_csum_diff(NULL, 0, words + 2 * HR_CSUM_DIFF / 4,
			    HR_NOTICE6 - sizeof(struct ipv6hdr) - 2 * HR_CSUM_DIFF, sum);
	notice->icmp.checksum = hr_checksum(sum + bpf_htonl(IPPROTO_ICMPV6));
	return length + sizeof(struct ipv6hdr);
}

#define HR_KEPT (ETH_HLEN + sizeof(struct ipv6hdr)) /* bpf_skb_adjust_room leaves no less */
#define HR_TAKEN 4000 /* it takes no more than 4,095 octets at once */

/* Make the frame an ordinary one of `length` octets. bpf_skb_change_tail, which is there for such answers, ends a super-packet and
 * refuses what is marked as a tunnel. Its front is then taken off: a checksum left to the device goes where its place does
 * (skb_postpull_rcsum); a place beyond what is left would have been refused before.
 */
static __always_inline bool hr_renew(struct __sk_buff *skb, __u32 length)
{
	__u32 cut = skb->len - 1 < HR_KEPT + HR_TAKEN ? skb->len - 1 : HR_KEPT + HR_TAKEN;

	return !bpf_skb_change_tail(skb, cut, 0) &&
	       !bpf_skb_adjust_room(skb, (__s32)HR_KEPT - (__s32)cut, BPF_ADJ_ROOM_MAC, 0) &&
	       !bpf_skb_adjust_room(skb, (__s32)length - (__s32)HR_KEPT, BPF_ADJ_ROOM_MAC, 0);
}

/* True: the frame is now the answer, and goes back where it came from. `mtu`: what it exceeds. */
static __always_inline bool hr_too_big(struct __sk_buff *skb, const struct hr_walk *walk, __u32 mtu)
{
	const struct hr_packet *packet = &walk->packet;
	__u32 zero = 0, length;
	struct hr_notice *notice = bpf_map_lookup_elem(&hr_notices, &zero);

	if (!notice || !hr_may_tell(packet))
		return false;
	if (packet->kind == HR_KIND_IPV4)
		length = hr_notice4_fill(skb, &notice->v4, packet, mtu);
	else
		length = hr_notice6_fill(skb, &notice->v6, packet, mtu);
	if (!length || !hr_renew(skb, ETH_HLEN + length))
		return false;
	__builtin_memcpy(notice->eth.h_dest, packet->eth_src, 6);
	__builtin_memcpy(notice->eth.h_source, packet->eth_dst, 6);
	notice->eth.h_proto = bpf_htons(packet->ethertype);
	HR_BOUND(length, 2048);
	return !bpf_skb_store_bytes(skb, 0, &notice->eth, ETH_HLEN + length, 0);
}

#endif
