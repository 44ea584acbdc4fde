/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* TCP's states and everybody's timeouts: no tables, no policy. docs/pipeline.md, "track". */
#ifndef HR_LIB_CONNECTION_H
#define HR_LIB_CONNECTION_H

#include "lib/parse.h"

/* Silence after which a connection is expired, ms: mostly nf_conntrack's defaults (net/netfilter/nf_conntrack_proto_*.c). */
static __always_inline __u32 hr_timeout(__u8 state, __u8 proto)
{
	bool short_lived = proto == IPPROTO_UDP || proto == IPPROTO_ICMP || proto == IPPROTO_ICMPV6;

	switch (state) {
	case HR_STATE_SYN_SENT:
	case HR_STATE_TIME_WAIT:
		return 120000;
	case HR_STATE_CLOSING: /* one side may still have much to say: RFC 5382 REQ-5 */
		return 240000;
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

/* What may give way: nobody has answered yet, or it is over. A stateless one is no more than a decision: the next packet makes
 * it again.
 */
static __always_inline bool hr_dispensable(__u8 state)
{
	return state != HR_STATE_ASSURED && state != HR_STATE_ESTABLISHED && state != HR_STATE_CLOSING;
}

/* Silence after which a connection of a pressed port is expired, ms, unless it expires sooner. */
static __always_inline __u32 hr_timeout_pressed(__u8 state)
{
	return state == HR_STATE_ESTABLISHED ? 300000 : state == HR_STATE_ASSURED ? 60000 : 5000;
}

#define HR_TCP_REACH (1 << 24) /* how far a segment of a connection may be from what is known of it */
#define HR_TCP_LEEWAY (1 << 16) /* how far a reset may be from an edge: one super-packet, lost or overtaken */

/* How far `number` is beyond `from`, modulo 2^32 (RFC 9293 section 3.4). */
static __always_inline __s32 hr_beyond(__u32 number, __u32 from)
{
	return number - from;
}

/* Whether a segment fits what is known of its side and of the other. */
static __always_inline bool hr_tcp_plausible(const struct hr_tcp_side *own, const struct hr_tcp_side *other,
					     const struct hr_packet *packet)
{
	__u32 edge;

	if (own->known & HR_TCP_EDGE && packet->tcp_seq - READ_ONCE(own->edge) + HR_TCP_REACH > (__u32)2 * HR_TCP_REACH)
		return false;
	if (!(packet->tcp_flags & HR_TCP_ACK) || !(other->known & HR_TCP_EDGE))
		return true;
	edge = READ_ONCE(other->edge);
	return hr_beyond(edge, packet->tcp_ack) >= 0 &&
	       hr_beyond(own->known & HR_TCP_ACKED ? READ_ONCE(own->ack) : edge, packet->tcp_ack) <= HR_TCP_REACH;
}

/* Move a number on, never back. Several CPUs may do so at once: without the compare-and-swap the later segment's number could
 * be lost to an earlier one's, and what follows it would look implausible. One that fails four times was overtaken by later ones.
 */
static __always_inline void hr_tcp_raise(struct hr_tcp_side *side, __u32 *number, enum hr_tcp_known which, __u32 to)
{
	__u32 before = READ_ONCE(*number), found;
	int i;

	if (!(READ_ONCE(side->known) & which)) {
		WRITE_ONCE(*number, to);
		barrier(); /* whoever sees the bit sees the number */
		__sync_fetch_and_or(&side->known, which);
		return;
	}
	for (i = 0; i < 4; i++) {
		if (hr_beyond(to, before) <= 0)
			return;
		found = __sync_val_compare_and_swap(number, before, to);
		if (found == before)
			return;
		before = found;
	}
}

static __always_inline void hr_tcp_move(struct hr_tcp_side *own, const struct hr_packet *packet)
{
	hr_tcp_raise(own, &own->edge, HR_TCP_EDGE, packet->tcp_end);
	if (packet->tcp_flags & HR_TCP_ACK)
		hr_tcp_raise(own, &own->ack, HR_TCP_ACKED, packet->tcp_ack);
}

/* What was known of a side is of no use any more: it opens anew, or tells that it still remembers another connection. */
static __always_inline void hr_tcp_anew(struct hr_tcp_side *own, const struct hr_packet *packet)
{
	WRITE_ONCE(own->edge, packet->tcp_end);
	WRITE_ONCE(own->ack, packet->tcp_ack);
	barrier();
	WRITE_ONCE(own->known, HR_TCP_EDGE | (packet->tcp_flags & HR_TCP_ACK ? HR_TCP_ACKED : 0));
}

enum hr_tcp_reset {
	HR_TCP_REFUSED, /* nobody would believe it */
	HR_TCP_DOUBTED, /* its receiver will ask for another */
	HR_TCP_BELIEVED,
};

/* Whether a reset's receiver would believe it (RFC 5961 section 3, RFC 9293 section 3.10.7.3). */
static __always_inline enum hr_tcp_reset hr_tcp_judge_reset(const struct hr_conn *conn, const struct hr_packet *packet,
							    bool reply)
{
	const struct hr_tcp_side *own = &conn->tcp[reply], *other = &conn->tcp[!reply];
	bool sent = own->known & HR_TCP_EDGE, acked = other->known & HR_TCP_ACKED;
	__u32 seq = packet->tcp_seq, edge = READ_ONCE(own->edge), ack = READ_ONCE(other->ack);

	if (conn->state == HR_STATE_STATELESS)
		return HR_TCP_BELIEVED;
	if (acked && (seq == ack || (sent && hr_beyond(edge, ack) > 0 && seq - ack <= edge - ack)))
		return HR_TCP_BELIEVED;
	if (!acked && sent && edge - seq <= HR_TCP_LEEWAY)
		return HR_TCP_BELIEVED;
	if (!sent && packet->tcp_flags & HR_TCP_ACK && other->known & HR_TCP_EDGE &&
	    READ_ONCE(other->edge) - packet->tcp_ack <= HR_TCP_LEEWAY)
		return HR_TCP_BELIEVED;
	return sent && seq - edge <= HR_TCP_LEEWAY ? HR_TCP_DOUBTED : HR_TCP_REFUSED;
}

/* The state that a plausible segment without RST leads to. */
static __always_inline __u8 hr_tcp_next(__u8 state, __u8 *flags, bool reply, __u8 tcp)
{
	const __u8 fins = HR_CONN_FIN_ORIGINAL | HR_CONN_FIN_REPLY;

	if (state == HR_STATE_CLOSED)
		return state;
	if (tcp & HR_TCP_FIN) {
		*flags |= reply ? HR_CONN_FIN_REPLY : HR_CONN_FIN_ORIGINAL;
		return (*flags & fins) == fins ? HR_STATE_TIME_WAIT : HR_STATE_CLOSING;
	}
	if (state == HR_STATE_SYN_SENT && reply)
		return tcp & HR_TCP_SYN		? HR_STATE_SYN_RECEIVED :
		       *flags & HR_CONN_ADOPTED ? HR_STATE_ESTABLISHED :
						  state;
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

static __always_inline void hr_enter(struct hr_conn *conn, __u8 state, __u8 next, __u8 proto)
{
	if (next == state)
		return;
	WRITE_ONCE(conn->timeout, hr_timeout(next, proto));
	WRITE_ONCE(conn->state, next);
}

static __always_inline void hr_tcp_enter(struct hr_conn *conn, const struct hr_packet *packet, __u8 state, bool reply)
{
	__u8 flags = conn->flags, next = hr_tcp_next(state, &flags, reply, packet->tcp_flags);

	if (flags != conn->flags)
		conn->flags = flags;
	hr_enter(conn, state, next, IPPROTO_TCP);
}

static __always_inline bool hr_tcp_opens(const struct hr_packet *packet)
{
	return (packet->tcp_flags & (HR_TCP_SYN | HR_TCP_ACK)) == HR_TCP_SYN;
}

/* What must be walked: a reset is judged before anything changes, and a SYN may open anew. */
static __always_inline bool hr_tcp_walks(const struct hr_packet *packet)
{
	return packet->tcp_flags & (HR_TCP_SYN | HR_TCP_RST);
}

/* A replayed packet takes its connection on. */
static __always_inline void hr_go_on(struct hr_conn *conn, const struct hr_packet *packet, bool reply)
{
	__u8 state = READ_ONCE(conn->state);

	if (packet->key.proto != IPPROTO_TCP) {
		if (state == HR_STATE_NEW && reply)
			hr_enter(conn, state, HR_STATE_ASSURED, packet->key.proto);
		return;
	}
	if (state == HR_STATE_STATELESS || !hr_tcp_plausible(&conn->tcp[reply], &conn->tcp[!reply], packet))
		return;
	hr_tcp_move(&conn->tcp[reply], packet);
	if (state != HR_STATE_ESTABLISHED || packet->tcp_flags & HR_TCP_FIN)
		hr_tcp_enter(conn, packet, state, reply);
}

/* A walked packet that is forwarded takes its connection on. */
static __always_inline void hr_advance(struct hr_conn *conn, const struct hr_packet *packet, bool reply)
{
	__u8 state = READ_ONCE(conn->state), syn = packet->tcp_flags & HR_TCP_SYN;
	struct hr_tcp_side *own = &conn->tcp[reply];

	if (packet->key.proto == IPPROTO_TCP && (packet->fragment == HR_FRAGMENT_LATER || state == HR_STATE_STATELESS))
		return;
	if (packet->tcp_flags & HR_TCP_RST) {
		if (hr_tcp_judge_reset(conn, packet, reply) == HR_TCP_BELIEVED)
			hr_enter(conn, state, HR_STATE_CLOSED, IPPROTO_TCP);
	} else if (packet->key.proto == IPPROTO_TCP && state == HR_STATE_SYN_SENT &&
		   (reply || (packet->tcp_flags & (HR_TCP_SYN | HR_TCP_ACK)) == HR_TCP_SYN)) {
		hr_tcp_anew(own, packet);
		hr_tcp_enter(conn, packet, state, reply);
	} else if (!syn || state == HR_STATE_SYN_SENT || state == HR_STATE_SYN_RECEIVED) {
		hr_go_on(conn, packet, reply);
	}
}

#endif
