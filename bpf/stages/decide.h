/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* decide: compose what the stages found into one decision, keep it with its connection, and carry it out. */
#ifndef HR_STAGES_DECIDE_H
#define HR_STAGES_DECIDE_H

#include "lib/mss.h"
#include "stages/encap.h"
#include "room.h"
#include "stages/too_big.h"
#include "stages/track.h"

#define HR_EEXIST (-17)
#define HR_CONN_SETTLED (1000 * NSEC_PER_MSEC) /* nobody is still making a connection this old */
#define HR_LOOPBACK 1 /* the FIB is asked as for a packet of the host's own; `lo` has forwarding on for that */
#define HR_FIB_ONE_IN 16
#define HR_AF_INET 2
#define HR_AF_INET6 10

/* What has no IP header reaches only who is on the link. */
static __always_inline int hr_reach(const struct hr_walk *walk, const struct hr_adjacency *adjacency)
{
	return adjacency->gateway && !hr_carrier(walk->segment) ? HR_REASON_NO_ROUTE : HR_REASON_NONE;
}

/* Ask the kernel for the next hop of a path, and write it if it is news. One walk in HR_FIB_ONE_IN asks though the next hop
 * is known, so that a moved one heals without the agent. HR_REASON_NO_NEIGHBOUR: routed, but nobody resolved the next hop yet;
 * adjacency->ifindex and mtu are right. The FIB is asked for a short packet: it would compare what is no outer packet yet.
 */
static __always_inline int hr_next_hop(struct __sk_buff *skb, const struct hr_walk *walk, __u32 index, __u32 hash,
				       struct hr_adjacency *copy)
{
	struct hr_adjacency *adjacency = bpf_map_lookup_elem(&hr_adjacencies, &index);
	struct bpf_fib_lookup fib = { .l4_protocol = IPPROTO_UDP, .tot_len = 1, .ifindex = HR_LOOPBACK };
	__u32 mtu = 0;
	long error;

	if (!adjacency || adjacency->state == HR_ADJACENCY_EMPTY)
		return HR_REASON_NO_ROUTE;
	*copy = *adjacency;
	if (copy->flags & HR_ADJACENCY_WIRE)
		return HR_REASON_NONE;
	if (!(walk->flags & HR_WALK_PEER))
		copy->flags = 0;
	if (copy->state == HR_ADJACENCY_RESOLVED && bpf_get_prandom_u32() % HR_FIB_ONE_IN)
		return hr_reach(walk, copy);
	fib.sport = hr_entropy(hash);
	fib.dport = copy->port;
	if (hr_adjacency_is_v4(copy)) {
		fib.family = HR_AF_INET;
		fib.ipv4_src = hr_addr_v4(copy->saddr);
		fib.ipv4_dst = hr_addr_v4(copy->daddr);
	} else {
		fib.family = HR_AF_INET6;
		__builtin_memcpy(fib.ipv6_src, copy->saddr, 32);
	}
	error = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	copy->ifindex = fib.ifindex;
	copy->gateway = hr_adjacency_is_v4(copy) ? fib.ipv4_dst != hr_addr_v4(copy->daddr) :
						   !hr_addr_equal(fib.ipv6_dst, copy->daddr);
	if ((error && error != BPF_FIB_LKUP_RET_NO_NEIGH) || bpf_check_mtu(skb, fib.ifindex, &mtu, 0, 0) < 0)
		return HR_REASON_NO_ROUTE;
	copy->mtu = mtu;
	if (error)
		return hr_reach(walk, copy) ?: HR_REASON_NO_NEIGHBOUR;
	__builtin_memcpy(copy->eth_dst, fib.dmac, 6);
	__builtin_memcpy(copy->eth_src, fib.smac, 6);
	copy->state = HR_ADJACENCY_RESOLVED;
	if (hr_dry)
		return hr_reach(walk, copy);
	if (adjacency->state == HR_ADJACENCY_RESOLVED && adjacency->ifindex == copy->ifindex && adjacency->mtu == mtu &&
	    adjacency->gateway == copy->gateway && hr_mac_equal(adjacency->eth_dst, copy->eth_dst) &&
	    hr_mac_equal(adjacency->eth_src, copy->eth_src))
		return hr_reach(walk, copy);
	WRITE_ONCE(adjacency->state, HR_ADJACENCY_UNRESOLVED);
	barrier();
	adjacency->ifindex = copy->ifindex;
	adjacency->mtu = mtu;
	adjacency->gateway = copy->gateway;
	__builtin_memcpy(adjacency->eth_dst, copy->eth_dst, 12);
	barrier();
	WRITE_ONCE(adjacency->state, HR_ADJACENCY_RESOLVED);
	barrier();
	/* The agent has raised epochs, then had this forgotten, since we asked: our answer may be the one of before. */
	if (hr_epoch(walk->from_index) != walk->from_epoch)
		WRITE_ONCE(adjacency->state, HR_ADJACENCY_UNRESOLVED);
	return hr_reach(walk, copy);
}

/* Longest IP packet that the path takes: the inner Ethernet header is as long as the outer one, which is not part of the MTU.
 * One tag is not part of it either.
 */
static __always_inline __u32 hr_path_mtu(const struct hr_walk *walk, const struct hr_adjacency *adjacency)
{
	__u32 outer = hr_outer_length(walk->segment, hr_adjacency_is_v4(adjacency));
	__u32 room;

	if (adjacency->flags & HR_ADJACENCY_WIRE)
		outer = hr_segment_service(walk->segment) ? HR_TAG_LENGTH : 0;
	room = adjacency->mtu > outer ? adjacency->mtu - outer : 0;
	return room < walk->mtu ? room : walk->mtu;
}

static __always_inline void hr_decision(struct hr_walk *walk, __u32 out)
{
	struct hr_flow *flow = &walk->flow;
	__u32 version = hr_conn_new_id();

	__builtin_memset(flow, 0, sizeof(*flow));
	flow->first = version;
	flow->flags = HR_FLOW_DECIDED | (walk->to_vtep ? HR_FLOW_TUNNEL : 0) |
		      (walk->flags & HR_WALK_REPLY ? HR_FLOW_REPLY : 0) |
		      (walk->flags & HR_WALK_PEER ? HR_FLOW_WHOLE : 0);
	flow->from_index = walk->from_index;
	flow->from_epoch = walk->from_epoch;
	flow->to_index = walk->to_index;
	flow->to_epoch = walk->to_epoch;
	flow->out = out;
	__builtin_memcpy(flow->eth_dst, walk->packet.eth_dst, 12);
	__builtin_memcpy(flow->outer_saddr, walk->outer_saddr, 16);
	flow->mtu = walk->mtu;
	flow->hash = walk->hash;
	flow->segment = walk->segment;
	flow->last = version;
}

static __always_inline bool hr_same_pair(const struct hr_flow_key *a, const struct hr_flow_key *b)
{
	return (hr_key_equal(&a[0], &b[0]) && hr_key_equal(&a[1], &b[1])) ||
	       (hr_key_equal(&a[0], &b[1]) && hr_key_equal(&a[1], &b[0]));
}

/* A connection that holds a key of a new one ends; but not one with the same two keys, which another CPU has just made
 * (unless nobody tracked that one: then a side has begun to, and it is not of the same make).
 * Keys and entries are read from the walk: once its id is written, a connection may give way to another at any time.
 */
static __noinline int hr_insert(const struct hr_walk *walk, bool reply)
{
	const struct hr_flow_key *key = reply ? &walk->keys[1] : &walk->keys[0];
	const struct hr_flow_key *other = reply ? &walk->keys[0] : &walk->keys[1];
	const struct hr_flow *flow = reply ? &walk->answer : &walk->flow;
	/* An int: until Linux 6.4 a map's error comes with the upper half of its register clear, and is no negative long. */
	int error = bpf_map_update_elem(&hr_flows, key, flow, BPF_NOEXIST);
	struct hr_flow *taken, *second;
	struct hr_conn *holder;
	__u32 last, index;
	__u64 id, owner;

	if (error != HR_EEXIST)
		return error;
	taken = bpf_map_lookup_elem(&hr_flows, key);
	if (!taken)
		return error;
	last = READ_ONCE(taken->last);
	barrier();
	index = READ_ONCE(taken->conn);
	id = READ_ONCE(taken->conn_id);
	barrier();
	if (READ_ONCE(taken->first) != last || id == walk->flow.conn_id)
		return error;
	holder = bpf_map_lookup_elem(&hr_conns, &index);
	if (!holder)
		return error;
	owner = READ_ONCE(holder->id);
	barrier();
	if (owner != id) {
		if (!hr_flow_orphan(key, id))
			return error;
	} else if (!hr_key_equal(&holder->key[0], key) && !hr_key_equal(&holder->key[1], key)) {
		return error; /* the element has just been given to another key */
	} else if (hr_same_pair(holder->key, walk->keys) &&
		   !(holder->state == HR_STATE_STATELESS && walk->flags & (HR_WALK_TRACK_FROM | HR_WALK_TRACK_TO))) {
		/* Made just now by another CPU - or long ago, and it has lost its other key to a race: then it is of no use. */
		second = bpf_map_lookup_elem(&hr_flows, other);
		if ((second && READ_ONCE(second->conn_id) != walk->flow.conn_id) ||
		    (__s64)(hr_now() - holder->created) < (__s64)HR_CONN_SETTLED || !hr_retire(index, id))
			return error;
	} else if (!hr_retire(index, id)) {
		return error;
	}
	return bpf_map_update_elem(&hr_flows, key, flow, BPF_NOEXIST);
}

static __always_inline __u8 hr_tracking(const struct hr_walk *walk)
{
	return (walk->flags & HR_WALK_TRACK_FROM ? HR_CONN_STATEFUL_FROM : 0) |
	       (walk->flags & HR_WALK_TRACK_TO ? HR_CONN_STATEFUL_TO : 0);
}

/* The receiver of the original direction is elsewhere now: answers will enter there. */
static __always_inline void hr_answer(struct hr_walk *walk)
{
	struct hr_flow *answer = &walk->answer;

	__builtin_memset(answer, 0, sizeof(*answer));
	answer->first = answer->last = walk->flow.first;
	answer->flags = HR_FLOW_REPLY;
	answer->conn = walk->flow.conn;
	answer->conn_id = walk->flow.conn_id;
}

static __always_inline void hr_move_reply(struct hr_walk *walk, struct hr_conn *conn)
{
	__u32 where = walk->to_port ? walk->to_port : walk->segment, before = conn->key[1].where;

	if (before == HR_WHERE_NONE || before == where)
		return;
	walk->keys[0] = conn->key[0];
	walk->keys[1] = conn->key[1];
	WRITE_ONCE(conn->key[1].where, where);
	conn->flags &= ~HR_CONN_STATEFUL_TO; /* the one before tracked it; this one's rules say for themselves */
	bpf_map_delete_elem(&hr_flows, &walk->keys[1]);
	walk->keys[1].where = where;
	hr_answer(walk);
	hr_insert(walk, true);
	if (READ_ONCE(conn->id) != walk->conn_id)
		hr_disown(&walk->keys[1], walk->conn_id);
}

/* A known connection: write the decision for this packet's key. */
static __always_inline int hr_redecide(struct hr_walk *walk)
{
	struct hr_conn *conn = bpf_map_lookup_elem(&hr_conns, &walk->conn);
	bool reply = walk->flags & HR_WALK_REPLY;
	__u64 now = hr_now();

	if (!conn || READ_ONCE(conn->id) != walk->conn_id)
		return HR_REASON_BUSY;
	hr_advance(conn, &walk->packet, reply);
	WRITE_ONCE(conn->timeout, hr_timeout(conn->state, walk->packet.key.proto)); /* it may have been cut meanwhile */
	hr_count_connection(&conn->counter[reply], walk->weight, now);
	conn->rule[reply] = walk->rule;
	walk->flow.conn = walk->conn;
	walk->flow.conn_id = walk->conn_id;
	if (!reply) {
		hr_move_reply(walk, conn);
		conn->flags |= hr_tracking(walk);
	}
	if (walk->packet.fragment || bpf_map_update_elem(&hr_flows, &walk->packet.key, &walk->flow, BPF_EXIST))
		return HR_REASON_NONE;
	/* Once it has ended the key may be another's, which then lacks it: better than a decision that nobody owns. */
	if (READ_ONCE(conn->id) != walk->conn_id)
		hr_disown(&walk->packet.key, walk->conn_id);
	return HR_REASON_NONE;
}

static __always_inline bool hr_key_before(const struct hr_flow_key *a, const struct hr_flow_key *b)
{
	const __u32 *x = (const __u32 *)a, *y = (const __u32 *)b;
	int i;

#pragma unroll
	for (i = 0; i < sizeof(*a) / 4; i++)
		if (x[i] != y[i])
			return x[i] < y[i];
	return false;
}

/* A segment in mid-stream opens as a SYN does: until it is answered it is remembered for short. */
static __always_inline __u8 hr_first_state(const struct hr_walk *walk)
{
	if (!(walk->flags & (HR_WALK_TRACK_FROM | HR_WALK_TRACK_TO)))
		return HR_STATE_STATELESS;
	return walk->packet.key.proto == IPPROTO_TCP ? HR_STATE_SYN_SENT : HR_STATE_NEW;
}

static __always_inline bool hr_adopts(const struct hr_walk *walk)
{
	return walk->packet.key.proto == IPPROTO_TCP && !(walk->packet.tcp_flags & HR_TCP_SYN);
}

static __always_inline void hr_conn_fill(struct hr_conn *conn, struct hr_walk *walk, __u32 port, __u64 id)
{
	__u64 now = hr_now();

	conn->state = hr_first_state(walk);
	conn->timeout = hr_timeout(conn->state, walk->packet.key.proto);
	conn->flags = hr_tracking(walk) | (conn->state == HR_STATE_SYN_SENT && hr_adopts(walk) ? HR_CONN_ADOPTED : 0);
	conn->port = port;
	__builtin_memset(conn->counter, 0, sizeof(conn->counter) + sizeof(conn->tcp));
	conn->counter[0].packets = walk->weight.packets;
	conn->counter[0].octets = walk->weight.octets;
	conn->counter[0].seen = now;
	walk->keys[0] = walk->packet.key;
	if (hr_key_reply(&walk->keys[0], &walk->keys[1]) && conn->state != HR_STATE_STATELESS)
		walk->keys[1].where = walk->to_port ? walk->to_port : walk->segment;
	else
		walk->keys[1].where = HR_WHERE_NONE;
	conn->key[0] = walk->keys[0];
	conn->key[1] = walk->keys[1];
	conn->created = now;
	__builtin_memset(conn->rule, 0, sizeof(conn->rule));
	conn->rule[0] = walk->rule;
	hr_advance(conn, &walk->packet, false);
	barrier();
	WRITE_ONCE(conn->id, id);
}

/* A new connection with both its keys, the smaller first: of two walks that race, one wins both. The loser's packet, which
 * the rules allow, goes on without an entry; so does one whose connection had to give way while it was made.
 */
static __always_inline int hr_connect(struct hr_walk *walk)
{
	__u32 port = walk->from_port ? walk->from_port : walk->to_port, index = 0;
	__u64 id = hr_conn_new_id();
	bool answered, reply_first;
	struct hr_conn *conn;
	int error;

	error = hr_room(port, &index);
	if (error)
		return error;
	conn = bpf_map_lookup_elem(&hr_conns, &index);
	if (!conn)
		return HR_REASON_INTERNAL;
	hr_conn_fill(conn, walk, port, id);
	walk->flow.conn = index;
	walk->flow.conn_id = id;
	hr_answer(walk);
	if (walk->packet.fragment)
		walk->flow.flags &= ~HR_FLOW_DECIDED;
	answered = walk->keys[1].where != HR_WHERE_NONE;
	reply_first = answered && !hr_key_before(&walk->keys[0], &walk->keys[1]);
	error = hr_insert(walk, reply_first);
	if (!error && answered)
		error = hr_insert(walk, !reply_first);
	if (!error && READ_ONCE(conn->id) == id) {
		hr_half_open_note(port, index);
		return HR_REASON_NONE;
	}
	hr_disown(&walk->keys[0], id);
	if (answered)
		hr_disown(&walk->keys[1], id);
	if (__sync_val_compare_and_swap(&conn->id, id, 0) == id)
		hr_conn_release(index, port);
	return !error || error == HR_EEXIST ? HR_REASON_NONE : HR_REASON_TABLE_FULL;
}

/* The path to the VTEP, if it goes to one, and whether it takes so long a packet. */
static __always_inline int hr_path_find(struct __sk_buff *skb, struct hr_walk *walk)
{
	walk->hash = hr_hash(&walk->packet.key);
	walk->out = walk->to_port;
	if (!walk->to_vtep)
		return HR_REASON_NONE;
	walk->out = hr_path(walk->to_vtep, walk->hash);
	walk->hop = hr_next_hop(skb, walk, walk->out, walk->hash, &walk->adjacency);
	if (walk->hop == HR_REASON_NO_ROUTE)
		return HR_REASON_NO_ROUTE;
	walk->mtu = hr_path_mtu(walk, &walk->adjacency);
	return hr_exceeds(walk, walk->mtu) ? HR_REASON_TOO_BIG : HR_REASON_NONE;
}

/* A workload's SYN promises no longer segments than the path takes, where the operator wants it so. */
static __always_inline void hr_clamp(struct __sk_buff *skb, const struct hr_walk *walk)
{
	__u32 headers = walk->packet.kind == HR_KIND_IPV4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr), zero = 0;
	struct hr_config *config = bpf_map_lookup_elem(&hr_configs, &zero);

	headers += sizeof(struct tcphdr);
	if (config && config->flags & HR_CONFIG_CLAMP)
		hr_mss_clamp(skb, &walk->packet, walk->mtu > headers ? walk->mtu - headers : 0);
}

/* What hr_connect would find, but for races. */
static __always_inline int hr_could_connect(const struct hr_walk *walk)
{
	return hr_room_left(walk->from_port ? walk->from_port : walk->to_port, walk->flags & HR_WALK_ROOM ? 1 : 0);
}

/* Keep the decision, with the packet's connection. */
static __always_inline int hr_keep(struct hr_walk *walk, __u32 out)
{
	if (walk->flags & HR_WALK_UNTRACKED)
		return HR_REASON_NONE;
	if (hr_dry)
		return walk->flags & HR_WALK_FOUND ? HR_REASON_NONE : hr_could_connect(walk);
	hr_decision(walk, out);
	return walk->flags & HR_WALK_FOUND ? hr_redecide(walk) : hr_connect(walk);
}

static __always_inline int hr_decide(struct __sk_buff *skb, struct hr_walk *walk)
{
	__u32 out = walk->out;
	struct hr_port *port;
	int reason;

	reason = hr_keep(walk, out);
	if (reason)
		return hr_drop(skb, walk, reason);
	hr_fragment_keep(walk, walk->from_port ? walk->from_port : walk->to_port);
	if (walk->from_port) {
		hr_count_from_port(walk->from_port, walk->weight);
		if (walk->packet.key.proto == IPPROTO_TCP && walk->packet.tcp_flags & HR_TCP_SYN)
			hr_clamp(skb, walk);
	}
	if (walk->to_vtep)
		return hr_next(skb, walk, HR_STAGE_ENCAP);
	port = bpf_map_lookup_elem(&hr_ports, &walk->to_port);
	if (!port)
		return hr_drop(skb, walk, HR_REASON_INTERNAL);
	hr_count_to_port(walk->to_port, walk->weight);
	hr_conclude(HR_REASON_NONE, TC_ACT_REDIRECT, port->ifindex, &walk->packet.key, &walk->rule);
	return hr_deliver(skb, port);
}

#endif
