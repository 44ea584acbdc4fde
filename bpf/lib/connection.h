/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* TCP's states and everybody's timeouts: no tables, no policy. docs/pipeline.md, "track". */
#ifndef HR_LIB_CONNECTION_H
#define HR_LIB_CONNECTION_H

#include "lib/parse.h"

/* Silence after which a connection is expired, ms: nf_conntrack's defaults (net/netfilter/nf_conntrack_proto_*.c). */
static __always_inline __u32 hr_timeout(__u8 state, __u8 proto)
{
	bool short_lived = proto == IPPROTO_UDP || proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6;

	switch (state) {
	case HR_STATE_SYN_SENT:
	case HR_STATE_CLOSING:
	case HR_STATE_TIME_WAIT:
		return 120000;
	case HR_STATE_SYN_RECEIVED:
		return 60000;
	case HR_STATE_ESTABLISHED:
		return 432000000;
	case HR_STATE_CLOSED:
		return 10000;
	case HR_STATE_STATELESS:
		return 30000;
	case HR_STATE_ASSURED:
		return proto == IPPROTO_UDP ? 180000 : short_lived ? 30000 : 600000;
	}
	return short_lived ? 30000 : 600000;
}

/* The state a TCP segment of an existing connection leads to. */
static __always_inline __u8 hr_tcp_next(__u8 state, __u8 *flags, bool reply, __u8 tcp)
{
	const __u8 fins = HR_CONN_FIN_ORIGINAL | HR_CONN_FIN_REPLY;

	if (state == HR_STATE_CLOSED || state == HR_STATE_STATELESS)
		return state;
	if (tcp & HR_TCP_RST)
		return HR_STATE_CLOSED;
	if (tcp & HR_TCP_FIN) {
		*flags |= reply ? HR_CONN_FIN_REPLY : HR_CONN_FIN_ORIGINAL;
		return (*flags & fins) == fins ? HR_STATE_TIME_WAIT : HR_STATE_CLOSING;
	}
	if (state == HR_STATE_SYN_SENT && reply)
		return tcp & HR_TCP_SYN ? HR_STATE_SYN_RECEIVED : HR_STATE_ESTABLISHED;
	if (state == HR_STATE_SYN_RECEIVED && !(tcp & HR_TCP_SYN) && !reply)
		return HR_STATE_ESTABLISHED;
	return state;
}

/* A SYN that may only open a new connection in place of a finished one. */
static __always_inline bool hr_tcp_reopens(__u8 state, __u8 tcp)
{
	return (tcp & (HR_TCP_SYN | HR_TCP_ACK)) == HR_TCP_SYN &&
	       (state == HR_STATE_TIME_WAIT || state == HR_STATE_CLOSED);
}

static __always_inline bool hr_expired(const struct hr_conn *conn, __u64 now, __u64 grace)
{
	__u64 limit = conn->timeout * NSEC_PER_MSEC + grace;
	__u64 original = READ_ONCE(conn->counter[0].seen), reply = READ_ONCE(conn->counter[1].seen);
	__u64 last = original > reply ? original : reply;

	return now > last && now - last > limit;
}

/* The state after a packet; says whether anything had to change. */
static __always_inline void hr_advance(struct hr_conn *conn, const struct hr_packet *packet, bool reply)
{
	__u8 state = READ_ONCE(conn->state), flags = conn->flags, next = state;

	if (packet->key.proto == IPPROTO_TCP) {
		if (state == HR_STATE_ESTABLISHED && !(packet->tcp_flags & (HR_TCP_FIN | HR_TCP_RST)))
			return;
		if (packet->fragment == HR_FRAGMENT_LATER)
			return;
		next = hr_tcp_next(state, &flags, reply, packet->tcp_flags);
		if (flags != conn->flags)
			conn->flags = flags;
	} else if (state == HR_STATE_NEW && reply) {
		next = HR_STATE_ASSURED;
	}
	if (next != state) {
		WRITE_ONCE(conn->timeout, hr_timeout(next, packet->key.proto));
		WRITE_ONCE(conn->state, next);
	}
}

#endif
