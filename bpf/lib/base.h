/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What every program includes: kernel types, helpers, byte order, and small words. */
#ifndef HR_LIB_BASE_H
#define HR_LIB_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_arp.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

#ifndef ETH_P_NSH
#define ETH_P_NSH 0x894f
#endif

#define NSEC_PER_MSEC 1000000ULL
#define NSEC_PER_SEC 1000000000ULL

#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))

/* Keep clang from reordering or merging accesses; x86 keeps the order of loads and of stores itself. */
#define barrier() asm volatile("" ::: "memory")

/* Tell the verifier (and clang, which must not undo it) that x is below a power of two. */
#define HR_BOUND(x, power) asm volatile("%0 &= %1" : "+r"(x) : "i"((power) - 1))

/* A number of octets from 1 to `most`. The verifier of Linux 6.1 learns that it is not 0 only from a comparison that clang would
 * turn into another.
 */
static __always_inline __u64 hr_at_least_one(__u64 octets, __u64 most)
{
	if (octets > most)
		octets = most;
	asm volatile("if %0 > 0 goto +1\n%0 = 1" : "+r"(octets));
	return octets;
}

static __always_inline bool hr_mac_equal(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const __u16 *)a, *y = (const __u16 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

static __always_inline bool hr_addr_equal(const void *a, const void *b)
{
	const __u32 *x = a, *y = b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3];
}

/* An IPv4 address as ::ffff:a.b.c.d */
static __always_inline void hr_addr_from_v4(void *to, __be32 addr)
{
	__u32 *words = to;

	words[0] = 0;
	words[1] = 0;
	words[2] = bpf_htonl(0xffff);
	words[3] = addr;
}

static __always_inline __be32 hr_addr_v4(const void *addr)
{
	return ((const __u32 *)addr)[3];
}

static __always_inline bool hr_addr_is_v4(const void *addr)
{
	const __u32 *words = addr;

	return !words[0] && !words[1] && words[2] == bpf_htonl(0xffff);
}

static __always_inline bool hr_key_equal(const struct hr_flow_key *a, const struct hr_flow_key *b)
{
	const __u32 *x = (const __u32 *)a, *y = (const __u32 *)b;
	__u32 differs = 0;
	int i;

#pragma unroll
	for (i = 0; i < sizeof(*a) / 4; i++)
		differs |= x[i] ^ y[i];
	return !differs;
}

/* Of all of a key: entropy for the underlay, and a check that a flow entry is the key's. */
static __always_inline __u32 hr_hash(const struct hr_flow_key *key)
{
	const __u32 *words = (const __u32 *)key;
	__u64 hash = key->proto;
	int i;

#pragma unroll
	for (i = 0; i < 10; i += 2) {
		hash = (hash ^ (words[i] | (__u64)words[i + 1] << 32)) * 0x9e3779b97f4a7c15ULL;
		hash ^= hash >> 32;
	}
	return hash;
}

#endif
