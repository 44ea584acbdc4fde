/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* track: which connection a packet belongs to; making and retiring connections. docs/pipeline.md, "track".
 */
#ifndef HR_STAGES_TRACK_H
#define HR_STAGES_TRACK_H

#include "connections.h"
#include "walk.h"

#define HR_FRAGMENT_LIFE (30000 * NSEC_PER_MSEC)

/* The key that the answers to a new packet will have, but for `where`. False: nothing answers it; of ICMP only questions are
 * answered, or an answer would let questions back (nf_conntrack's valid_new).
 */
static __always_inline bool hr_key_reply(const struct hr_flow_key *key, struct hr_flow_key *reply)
{
	__builtin_memcpy(reply->saddr, key->daddr, 16);
	__builtin_memcpy(reply->daddr, key->saddr, 16);
	reply->sport = key->dport;
	reply->dport = key->sport;
	reply->proto = key->proto;
	__builtin_memset(reply->pad, 0, sizeof(reply->pad));
	if (key->proto == (hr_addr_is_v4(key->saddr) ? IPPROTO_ICMP : IPPROTO_ICMPV6)) {
		__u8 inverse = hr_icmp_inverse(key->proto, bpf_ntohs(key->dport) >> 8);

		reply->sport = key->sport;
		reply->dport = bpf_htons(inverse << 8) | (key->dport & bpf_htons(0xff));
		return hr_icmp_is_question(key->proto, bpf_ntohs(key->dport) >> 8);
	}
	return true;
}

/* What the fragments of a packet have in common. */
static __always_inline void hr_fragment_name(const struct hr_packet *packet, struct hr_fragment_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	__builtin_memcpy(key->saddr, packet->key.saddr, 32);
	key->where = packet->key.where;
	key->id = packet->fragment_id;
	key->proto = packet->key.proto;
}

/* Keep a first fragment that goes on, in the next slot of `port`; what was there is forgotten. */
static __always_inline void hr_fragment_keep(struct hr_walk *walk, __u32 port)
{
	const struct hr_packet *packet = &walk->packet;
	struct hr_fragment_slot slot = { .port = port };
	struct hr_fragment_key *key = &walk->fragment_key, *oldest;
	struct hr_fragment *first = &walk->fragment;
	__u32 *head;

	if (hr_dry || packet->fragment != HR_FRAGMENT_FIRST)
		return;
	hr_fragment_name(packet, key);
	__builtin_memset(first, 0, sizeof(*first));
	first->first = first->last = hr_conn_new_id();
	first->sport = packet->key.sport;
	first->dport = packet->key.dport;
	first->first_length = packet->l3 + packet->ip_length - packet->part;
	first->seen = hr_now();
	head = bpf_map_lookup_elem(&hr_fragment_heads, &slot.port);
	if (!bpf_map_update_elem(&hr_fragments, key, first, BPF_EXIST) || !head)
		return;
	slot.slot = __sync_fetch_and_add(head, 1) % HR_FRAGMENTS_PORT;
	oldest = bpf_map_lookup_elem(&hr_fragment_slots, &slot);
	if (oldest) {
		walk->fragment_gone = *oldest;
		bpf_map_delete_elem(&hr_fragments, &walk->fragment_gone);
	}
	if (!bpf_map_update_elem(&hr_fragment_slots, &slot, key, BPF_ANY))
		bpf_map_update_elem(&hr_fragments, key, first, BPF_ANY);
}

/* A later fragment takes the ports of the first. */
static __always_inline int hr_track_fragment(struct hr_packet *packet)
{
	struct hr_fragment *known, first;
	struct hr_fragment_key key;
	__u64 now = hr_now();

	hr_fragment_name(packet, &key);
	known = bpf_map_lookup_elem(&hr_fragments, &key);
	if (!known)
		return HR_REASON_FRAGMENT_ORPHAN;
	first = *known;
	barrier();
	known = bpf_map_lookup_elem(&hr_fragments, &key); /* was it the key's, and whole? */
	if (!known || READ_ONCE(known->first) != first.last || first.first != first.last)
		return HR_REASON_FRAGMENT_ORPHAN;
	/* The coarse clock may step back a little (timekeeping_advance after adjtimex). */
	if ((__s64)(now - first.seen) > (__s64)HR_FRAGMENT_LIFE)
		return HR_REASON_FRAGMENT_ORPHAN;
	if (packet->fragment_offset < first.first_length)
		return HR_REASON_FRAGMENT_OVERLAP;
	packet->key.sport = first.sport;
	packet->key.dport = first.dport;
	packet->tcp_flags = HR_TCP_ACK;
	if (hr_is_icmp(packet)) {
		packet->icmp_type = bpf_ntohs(first.dport) >> 8;
		packet->icmp_code = bpf_ntohs(first.dport);
	}
	return HR_REASON_NONE;
}

static __always_inline bool hr_icmp_is_error(const struct hr_packet *packet)
{
	__u8 type = packet->icmp_type;

	if (packet->kind == HR_KIND_IPV4)
		return packet->key.proto == IPPROTO_ICMP &&
		       (type == 3 || type == 4 || type == 5 || type == 11 || type == 12);
	return packet->key.proto == IPPROTO_ICMPV6 && type >= 1 && type <= 4;
}

/* The key of the packet that an ICMP error quotes, as it was when the error's receiver sent it. */
static __always_inline bool hr_quoted_key(struct __sk_buff *skb, struct hr_walk *walk, struct hr_flow_key *key)
{
	__u32 offset = walk->packet.l4 + sizeof(struct hr_icmp);
	__u32 end = walk->packet.l3 + walk->packet.ip_length;
	__u8 transport[8];

	__builtin_memset(key, 0, sizeof(*key));
	if (walk->packet.kind == HR_KIND_IPV4) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5 ||
		    ip.frag_off & bpf_htons(0x1fff))
			return false;
		key->proto = ip.protocol;
		hr_addr_from_v4(key->saddr, ip.saddr);
		hr_addr_from_v4(key->daddr, ip.daddr);
		offset += ip.ihl * 4;
	} else {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || ip.version != 6)
			return false;
		key->proto = ip.nexthdr;
		__builtin_memcpy(key->saddr, &ip.saddr, 32);
		offset += sizeof(ip);
	}
	/* Who gets the error sent what it quotes: else an error could speak of anybody's connection. */
	if (!hr_addr_equal(key->saddr, walk->packet.key.daddr) || offset + sizeof(transport) > end ||
	    bpf_skb_load_bytes(skb, offset, transport, sizeof(transport)))
		return false;
	if (key->proto == IPPROTO_TCP || key->proto == IPPROTO_UDP || key->proto == IPPROTO_SCTP) {
		key->sport = *(__be16 *)transport;
		key->dport = *(__be16 *)(transport + 2);
	} else if (key->proto == (walk->packet.kind == HR_KIND_IPV4 ? IPPROTO_ICMP : IPPROTO_ICMPV6)) {
		key->dport = bpf_htons(transport[0] << 8 | transport[1]);
		if (hr_icmp_inverse(key->proto, transport[0]) == 0xff)
			return false;
		key->sport = *(__be16 *)(transport + 4);
	}
	key->where = walk->to_port ? walk->to_port : walk->segment;
	return true;
}

/* Whether a local side's port is stateful by now. */
static __always_inline bool hr_tracks_now(const struct hr_walk *walk)
{
	__u32 from_index = walk->from_port, to_index = walk->to_port;
	struct hr_port *from = bpf_map_lookup_elem(&hr_ports, &from_index);
	struct hr_port *to = bpf_map_lookup_elem(&hr_ports, &to_index);

	return (from && from->flags & HR_PORT_STATEFUL) || (to && to->flags & HR_PORT_STATEFUL);
}

/* End the finished connection that the packet's key has. False: somebody else is at it. */
static __always_inline bool hr_track_end(struct hr_walk *walk, const struct hr_conn *conn, __u32 index, __u64 id)
{
	if (!hr_dry)
		return hr_retire(index, id);
	if (conn->port == (walk->from_port ? walk->from_port : walk->to_port))
		walk->flags |= HR_WALK_ROOM;
	return true;
}

/* Find the live connection that a key belongs to; fills walk->conn, original, flags. */
static __always_inline int hr_track_find(struct hr_walk *walk, const struct hr_flow_key *key, bool related)
{
	struct hr_flow *entry = bpf_map_lookup_elem(&hr_flows, key), flow;
	struct hr_conn *conn;

	if (!entry)
		return HR_REASON_NONE;
	if (!hr_flow_read(entry, &flow))
		return HR_REASON_BUSY;
	conn = bpf_map_lookup_elem(&hr_conns, &flow.conn);
	if (!conn)
		return HR_REASON_INTERNAL;
	if (READ_ONCE(conn->id) != flow.conn_id)
		return hr_dry || hr_flow_orphan(key, flow.conn_id) ? HR_REASON_NONE : HR_REASON_BUSY;
	if (!hr_key_equal(&conn->key[flow.flags & HR_FLOW_REPLY ? 1 : 0], key))
		return HR_REASON_BUSY; /* the element has just been given to another key */
	if (conn->state == HR_STATE_STATELESS && hr_tracks_now(walk))
		return HR_REASON_NONE; /* decided when nobody tracked; a new connection takes its keys */
	if (hr_expired(conn, hr_now(), 0) ||
	    (!related && key->proto == IPPROTO_TCP && hr_tcp_reopens(conn->state, walk->packet.tcp_flags)))
		return hr_track_end(walk, conn, flow.conn, flow.conn_id) ? HR_REASON_NONE : HR_REASON_BUSY;
	if (!related && walk->packet.tcp_flags & HR_TCP_RST &&
	    hr_tcp_judge_reset(conn, &walk->packet, flow.flags & HR_FLOW_REPLY) == HR_TCP_REFUSED)
		return HR_REASON_TCP_WINDOW;
	walk->conn = flow.conn;
	walk->conn_id = flow.conn_id;
	walk->conn_flags = conn->flags;
	walk->original = conn->key[0];
	walk->where[0] = conn->key[0].where;
	walk->where[1] = conn->key[1].where;
	walk->flags |= HR_WALK_FOUND;
	if (!(flow.flags & HR_FLOW_REPLY) == related)
		walk->flags |= HR_WALK_REPLY;
	if (related)
		walk->flags |= HR_WALK_RELATED;
	return HR_REASON_NONE;
}

/* Neighbour discovery and multicast listeners: no connection. */
static __always_inline bool hr_is_nd(const struct hr_packet *packet)
{
	__u8 type = packet->icmp_type;

	return packet->kind == HR_KIND_IPV6 && packet->key.proto == IPPROTO_ICMPV6 &&
	       ((type >= 130 && type <= 137) || type == 143);
}

static __always_inline int hr_track(struct __sk_buff *skb, struct hr_walk *walk)
{
	struct hr_packet *packet = &walk->packet;
	struct hr_flow_key quoted;
	int reason;

	if (packet->kind != HR_KIND_IPV4 && packet->kind != HR_KIND_IPV6) {
		walk->flags |= HR_WALK_UNTRACKED;
		return HR_REASON_NONE;
	}
	if (packet->fragment == HR_FRAGMENT_LATER) {
		reason = hr_track_fragment(packet);
		if (reason)
			return reason;
	}
	if (packet->eth_dst[0] & 1 || hr_is_nd(packet)) {
		walk->flags |= HR_WALK_UNTRACKED;
		return HR_REASON_NONE;
	}
	if (hr_icmp_is_error(packet)) {
		walk->flags |= HR_WALK_UNTRACKED | HR_WALK_ICMP_ERROR;
		if (packet->fragment == HR_FRAGMENT_LATER)
			return HR_REASON_NONE;
		return hr_quoted_key(skb, walk, &quoted) ? hr_track_find(walk, &quoted, true) : HR_REASON_NONE;
	}
	reason = walk->flags & HR_WALK_UNKNOWN ? HR_REASON_NONE : hr_track_find(walk, &packet->key, false);
	if (reason || walk->flags & HR_WALK_FOUND)
		return reason;
	if (packet->fragment == HR_FRAGMENT_LATER)
		walk->flags |= HR_WALK_UNTRACKED;
	if (packet->key.proto != IPPROTO_TCP)
		return HR_REASON_NONE;
	if ((packet->tcp_flags & (HR_TCP_SYN | HR_TCP_ACK)) == (HR_TCP_SYN | HR_TCP_ACK))
		walk->flags |= HR_WALK_STRAY;
	if (packet->tcp_flags & HR_TCP_RST)
		walk->flags |= HR_WALK_UNTRACKED;
	return HR_REASON_NONE;
}

#endif
