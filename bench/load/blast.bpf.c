// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The packet-rate load: one program makes the packets, others count and drop them where the workloads are.
 *
 * blast runs under BPF_PROG_TEST_RUN with live frames. It writes the whole frame each time, because a live frame's
 * page comes back from the pool with whatever the path under test did to it. far sits on the receiving workload's
 * device. While warming up it sends packets back, and near, on the sender's device, notes which flows came back:
 * a firewall calls a flow established only when it has seen both directions. Afterwards far drops.
 * Both exist for XDP and for tc, since bpf_redirect_peer() delivers behind XDP.
 *
 * A flow is a pair of UDP ports: its low 14 bits are in the source port, the next 15 in the destination port, so
 * 2^29 flows come from one pair of addresses (anti-spoofing forbids a port to use more than its own).
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#ifndef NULL
#define NULL ((void *)0)
#endif

#define FRAME 64
#define SPORT_BITS 14
#define DPORT_BITS 15
#define PORT_BASE 0x4000
#define SEEN_WORDS (1 << 15) /* x 64 bits: one for each of 2^21 flows */
#define SKIP_LIMIT 32
#define WAIT_LIMIT (1 << 20) /* looks at the clock: far more than one batch's wait */
#define CATCH_UP 16 /* batches */
#define SPREAD 0x9E3779B1u /* odd, hence a permutation of any 2^k flows: neighbours in time are none in memory */

const volatile __u32 out_ifindex;
const volatile __u32 flows; /* a power of two; 0: every packet is a new flow */
const volatile __u32 l4_offset;
const volatile _Bool has_checksum;
const volatile __u64 batch_ns; /* 0: as fast as it goes; else a batch leaves this often */
const volatile __u32 batch_size;

/* In .bss, written by the loader, 8-octet words so that the copy is eight stores. */
__u64 frame[FRAME / 8];
__u32 next_flow;
__u32 warming; /* send back what arrives, and send only flows that have not come back yet */
__u64 sent;
__u64 due_ns;
__u64 waited_ns; /* CPU time burnt for the pace, to be taken off what was used */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} arrived SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, SEEN_WORDS);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

static __always_inline _Bool was_seen(__u32 flow)
{
	__u32 word = (flow >> 6) & (SEEN_WORDS - 1);
	__u64 *bits = bpf_map_lookup_elem(&seen, &word);

	return bits && (*bits >> (flow & 63)) & 1;
}

static __always_inline __u32 choose(void)
{
	__u32 flow = next_flow++;

	if (!flows)
		return flow;
	flow = (flow * SPREAD) & (flows - 1);
	if (!warming)
		return flow;
	for (int i = 0; i < SKIP_LIMIT && was_seen(flow); i++)
		flow = (next_flow++ * SPREAD) & (flows - 1);
	return flow;
}

static long look_at_clock(__u32 index, void *context)
{
	return bpf_ktime_get_ns() >= due_ns;
}

/* A program cannot sleep and a test run takes 20 ms to end, so the pace is kept by burning and counting time. */
static __always_inline void keep_pace(void)
{
	__u64 begin;

	if (!batch_ns || sent % batch_size)
		return;
	begin = bpf_ktime_get_ns();
	if (due_ns + CATCH_UP * batch_ns < begin) /* too late to catch up by a burst */
		due_ns = begin;
	if (begin < due_ns) {
		bpf_loop(WAIT_LIMIT, look_at_clock, NULL, 0);
		waited_ns += bpf_ktime_get_ns() - begin;
	}
	due_ns += batch_ns;
}

SEC("xdp")
int blast(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 *words = data;
	struct udphdr *udp;
	__u32 flow, sum;

	if (data + FRAME > end || l4_offset > FRAME - sizeof(*udp))
		return XDP_ABORTED;
	keep_pace();
	sent++;
#pragma unroll
	for (int i = 0; i < FRAME / 8; i++)
		words[i] = frame[i];
	udp = data + l4_offset;
	flow = choose();
	udp->source = bpf_htons(PORT_BASE | (flow & ((1 << SPORT_BITS) - 1)));
	udp->dest = bpf_htons(PORT_BASE + ((flow >> SPORT_BITS) & ((1 << DPORT_BITS) - 1)));
	if (has_checksum) { /* the template's is made with both ports 0 */
		sum = (__u16)~udp->check + udp->source + udp->dest;
		sum = (sum & 0xffff) + (sum >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		udp->check = sum == 0xffff ? 0xffff : ~sum;
	}
	return bpf_redirect(out_ifindex, 0);
}

/* The UDP header of what may be one of ours, else NULL; of a TCP segment the ports, which lie where UDP's do. */
static __always_inline struct udphdr *find_udp(void *data, void *end)
{
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	struct ipv6hdr *ip6 = data + sizeof(*eth);

	if (data + FRAME > end)
		return NULL;
	if (eth->h_proto == bpf_htons(ETH_P_IP) && (ip->protocol == IPPROTO_UDP || ip->protocol == IPPROTO_TCP))
		return (void *)(ip + 1);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6) && ip6->nexthdr == IPPROTO_UDP)
		return (void *)(ip6 + 1);
	return NULL;
}

static __always_inline void count(void)
{
	__u32 zero = 0;
	__u64 *counter = bpf_map_lookup_elem(&arrived, &zero);

	if (counter)
		*counter += 1;
}

#define SWAP(type, a, b)     \
	({                   \
		type t_ = a; \
		a = b;       \
		b = t_;      \
	})

/* Checksums stay right: they are sums. */
static __always_inline void turn_round(void *data, struct udphdr *udp)
{
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	struct ipv6hdr *ip6 = data + sizeof(*eth);
	__u8 mac[ETH_ALEN];

	__builtin_memcpy(mac, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, mac, ETH_ALEN);
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		SWAP(__be32, ip->saddr, ip->daddr);
	else
		SWAP(struct in6_addr, ip6->saddr, ip6->daddr);
	SWAP(__be16, udp->source, udp->dest);
}

/* A packet that has come back: its ports are the wrong way round. */
static __always_inline void note(struct udphdr *udp)
{
	__u32 flow = (bpf_ntohs(udp->dest) & ((1 << SPORT_BITS) - 1)) | (__u32)(bpf_ntohs(udp->source) - PORT_BASE)
										<< SPORT_BITS;
	__u32 word = (flow >> 6) & (SEEN_WORDS - 1);
	__u64 *bits = bpf_map_lookup_elem(&seen, &word);

	if (bits)
		__sync_fetch_and_or(bits, 1ull << (flow & 63));
}

SEC("xdp")
int far_xdp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct udphdr *udp = find_udp(data, end);

	if (!udp)
		return XDP_PASS;
	count();
	if (!warming)
		return XDP_DROP;
	turn_round(data, udp);
	/* Not XDP_TX: veth wakes the other end for that only if it has an XDP program too (Linux 6.18). */
	return bpf_redirect(ctx->ingress_ifindex, 0);
}

SEC("xdp")
int near_xdp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct udphdr *udp = find_udp(data, end);

	if (!udp)
		return XDP_PASS;
	note(udp);
	return XDP_DROP;
}

SEC("tc")
int far_tc(struct __sk_buff *skb)
{
	void *data;
	struct udphdr *udp;

	if (skb->data_end - skb->data < FRAME)
		bpf_skb_pull_data(skb, FRAME);
	data = (void *)(long)skb->data;
	udp = find_udp(data, (void *)(long)skb->data_end);
	if (!udp)
		return TC_ACT_OK;
	count();
	if (!warming)
		return TC_ACT_SHOT;
	turn_round(data, udp);
	return bpf_redirect(skb->ifindex, 0);
}

SEC("tc")
int near_tc(struct __sk_buff *skb)
{
	struct udphdr *udp;

	if (skb->data_end - skb->data < FRAME)
		bpf_skb_pull_data(skb, FRAME);
	udp = find_udp((void *)(long)skb->data, (void *)(long)skb->data_end);
	if (!udp)
		return TC_ACT_OK;
	note(udp);
	return TC_ACT_SHOT;
}

char _license[] SEC("license") = "Dual BSD/GPL";
