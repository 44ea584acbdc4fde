/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The walk: what its stages hand to one another, how one calls the next, and how it ends.
 *
 * Stages are programs that tail-call each other on the tc hook. Interrupts of the network softirq do not nest and
 * tc runs with bottom halves off, so one scratch a CPU is enough. Stages reach each other only through hr_stages, an
 * array of its own per load: a walk never mixes the stages of two versions.
 */
#ifndef HR_WALK_H
#define HR_WALK_H

#include "lib/connection.h"
#include "sample.h"
#include "stages/account.h"
#include "stages/budget.h"
#include "stages/encap_vlan.h"

enum hr_stage {
	HR_STAGE_ANTI_SPOOF,
	HR_STAGE_RESPOND,
	HR_STAGE_TOO_BIG,
	HR_STAGE_TRACK,
	HR_STAGE_ACL_FROM,
	HR_STAGE_FORWARD,
	HR_STAGE_ACL_TO,
	HR_STAGE_DECIDE,
	HR_STAGE_ENCAP,
	HR_STAGE_FLOOD,
	HR_STAGE_SUM,
	HR_STAGE_SAMPLE,
	HR_STAGES,
};

#define HR_STAGE(name) int name(struct __sk_buff *skb)

HR_STAGE(hr_stage_anti_spoof);
HR_STAGE(hr_stage_respond);
HR_STAGE(hr_stage_too_big);
HR_STAGE(hr_stage_track);
HR_STAGE(hr_stage_acl_from);
HR_STAGE(hr_stage_forward);
HR_STAGE(hr_stage_acl_to);
HR_STAGE(hr_stage_decide);
HR_STAGE(hr_stage_encap);
HR_STAGE(hr_stage_flood);
HR_STAGE(hr_stage_sum);
HR_STAGE(hr_stage_sample);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(max_entries, HR_STAGES);
	__array(values, int(void *));
} hr_stages SEC(".maps") = {
	.values = {
		[HR_STAGE_ANTI_SPOOF] = (void *)&hr_stage_anti_spoof,
		[HR_STAGE_RESPOND] = (void *)&hr_stage_respond,
		[HR_STAGE_TOO_BIG] = (void *)&hr_stage_too_big,
		[HR_STAGE_TRACK] = (void *)&hr_stage_track,
		[HR_STAGE_ACL_FROM] = (void *)&hr_stage_acl_from,
		[HR_STAGE_FORWARD] = (void *)&hr_stage_forward,
		[HR_STAGE_ACL_TO] = (void *)&hr_stage_acl_to,
		[HR_STAGE_DECIDE] = (void *)&hr_stage_decide,
		[HR_STAGE_ENCAP] = (void *)&hr_stage_encap,
		[HR_STAGE_FLOOD] = (void *)&hr_stage_flood,
		[HR_STAGE_SUM] = (void *)&hr_stage_sum,
		[HR_STAGE_SAMPLE] = (void *)&hr_stage_sample,
	},
};

enum hr_walk_flag {
	HR_WALK_TUNNEL = 1, /* it came by tunnel */
	HR_WALK_UNTRACKED = 2, /* makes no connection and has none */
	HR_WALK_FOUND = 4, /* it belongs to a connection */
	HR_WALK_REPLY = 8, /* ... in the reply direction */
	HR_WALK_RELATED = 16, /* an ICMP error about the connection */
	HR_WALK_ICMP_ERROR = 32,
	HR_WALK_TRACK_FROM = 64, /* the from side's port tracks */
	HR_WALK_TRACK_TO = 128,
	HR_WALK_STRAY = 256, /* a SYN+ACK that answers nothing known */
	HR_WALK_UNKNOWN = 512, /* the replay found no entry for its key */
	HR_WALK_PEER = 1024, /* it came from a veth: a super-packet is the kernel's own, and needs no checking */
	HR_WALK_SHARED = 4096, /* a multicast frame from a physical network's wire: the kernel gets it too */
	HR_WALK_REPLAYED = 8192, /* no walk: its decision was known */
	HR_WALK_SEAMED = 16384, /* it has been through the seam */
	HR_WALK_ROOM = 2048, /* the dry walk: ending the connection that its key has would have made room for another */
};

struct hr_walk {
	struct hr_packet packet;
	struct hr_flow_key original; /* with HR_WALK_FOUND: the connection's original key */
	struct hr_weight weight;
	__u32 flags; /* enum hr_walk_flag */
	__u32 segment;
	__u32 length; /* of the longest IP packet in it */
	__u32 mtu; /* the network's, then the path's; 0: not judged here */
	__u32 from_port; /* local port index, or 0 */
	__u32 from_index;
	__u32 from_epoch;
	__u32 to_port; /* local port index, or 0 */
	__u32 to_vtep; /* VTEP index, or 0 */
	__u32 to_index;
	__u32 to_epoch;
	__u32 purse; /* who pays if it ends without an entry: index in hr_budgets; 0: nobody */
	__u32 where[2]; /* with HR_WALK_FOUND: where the connection's original and reply keys enter */
	__u32 vtep; /* by tunnel: index of the VTEP it came from */
	__u32 vtep_endpoint;
	__u32 conn; /* with HR_WALK_FOUND */
	__u64 conn_id;
	__u32 conn_flags;
	__u32 hash;
	__u32 out; /* local port index, or adjacency with to_vtep */
	struct hr_conn_rule rule;
	__u8 outer_saddr[16];
	__u32 outer; /* octets of outer headers that are still on */
	__u32 sum; /* of the frame, for the outer checksum; HR_SUM_UNKNOWN: not looked at */
	struct hr_dropped dropped;
	/* From here on room for the decision, set when it is made. */
	struct hr_flow_key keys[2]; /* of the connection, original and reply, as it is to be */
	struct hr_flow flow;
	struct hr_flow answer;
	struct hr_adjacency adjacency;
	__u32 hop; /* enum hr_reason: how the next hop was found */
	struct hr_fragment_key fragment_key;
	struct hr_fragment_key fragment_gone; /* the one that gives way */
	struct hr_fragment fragment;
	/* Set before the walk begins. */
	struct hr_tags tags; /* with HR_WALK_SHARED */
};
#define HR_WALK_FRESH offsetof(struct hr_walk, keys) /* octets to clear before a walk */

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct hr_walk);
	__uint(max_entries, 1);
} hr_walks SEC(".maps");

/* Record every packet's conclusion in hr_conclusions. For tests and `headrace trace`. */
const volatile __u32 hr_observe = 0;

static __always_inline struct hr_walk *hr_walk_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&hr_walks, &zero);
}

static __always_inline void hr_conclude(__u32 reason, __u32 verdict, __u32 ifindex, const struct hr_flow_key *key,
					const struct hr_conn_rule *rule)
{
	struct hr_conclusion *conclusion;
	__u32 zero = 0;

	if (!hr_observe)
		return;
	conclusion = bpf_map_lookup_elem(&hr_conclusions, &zero);
	if (!conclusion)
		return;
	conclusion->reason = reason;
	conclusion->verdict = verdict;
	conclusion->ifindex = ifindex;
	conclusion->replayed = !rule;
	conclusion->copies = 0;
	if (key)
		conclusion->key = *key;
	if (rule)
		conclusion->rule = *rule;
}

static __always_inline void hr_conclude_copies(__u32 copies)
{
	__u32 zero = 0;
	struct hr_conclusion *conclusion = hr_observe ? bpf_map_lookup_elem(&hr_conclusions, &zero) : NULL;

	if (conclusion)
		conclusion->copies = copies;
}

/* It has been counted already. */
static __always_inline int hr_drop_sampled(void)
{
	return TC_ACT_SHOT; /* the only one */
}

/* The end of a frame that is the kernel's too, where it is `shared`: it gets its tags back. */
static __always_inline int hr_end(struct __sk_buff *skb, bool shared)
{
	struct hr_walk *walk = shared ? hr_walk_get() : NULL;

	return walk && !hr_tags_restore(skb, &walk->tags) ? TC_ACT_UNSPEC : hr_drop_sampled();
}

static __always_inline int hr_drop_counted(__u32 port, __u32 reason)
{
	hr_count_reason(port, reason);
	return hr_drop_sampled();
}

static __always_inline bool hr_shared(const struct hr_walk *walk)
{
	return walk->flags & HR_WALK_SHARED;
}

/* Shows a drop to those who watch; returns only if nobody does. A stage of its own: it takes nothing from others' stack. */
static __always_inline void hr_drop_shown(struct __sk_buff *skb, struct hr_dropped dropped)
{
	struct hr_walk *walk;

	if (!hr_watched())
		return;
	walk = hr_walk_get();
	if (!walk)
		return;
	walk->dropped = dropped;
	bpf_tail_call(skb, &hr_stages, HR_STAGE_SAMPLE);
}

/* The only ways a frame of a tenant is dropped. Before there is a walk; `port` 0: on the uplink. */
static __always_inline int hr_drop_at(struct __sk_buff *skb, __u32 port, __u32 reason)
{
	int verdict = hr_drop_counted(port, reason);

	if (hr_dry) {
		struct hr_conn_rule none = {};

		hr_conclude(reason, verdict, 0, NULL, &none);
	}
	hr_drop_shown(skb, (struct hr_dropped){ .port = port, .reason = reason, .where = HR_WHERE_NONE });
	return verdict;
}

/* The frame was answered or copied: nothing is lost, and the original ends here, or is the kernel's. */
static __always_inline int hr_consume(struct __sk_buff *skb, const struct hr_walk *walk, __u32 reason)
{
	hr_count_reason(walk->from_port, reason);
	return hr_end(skb, hr_shared(walk));
}

static __always_inline struct hr_dropped hr_dropped_of(const struct hr_walk *walk, __u32 port, __u32 reason)
{
	return (struct hr_dropped){
		.port = port,
		.reason = reason,
		.where = walk->packet.key.where,
		.outer = walk->outer,
		.to = walk->to_port,
		.shared = hr_shared(walk),
	};
}

/* A walk that ends in a drop. */
/* A refused reply is paid by who asked for it: else one that asks and takes no answer would spend the other's. */
static __always_inline __u32 hr_payer(const struct hr_walk *walk)
{
	const __u32 reply = HR_WALK_FOUND | HR_WALK_REPLY;
	__u32 index = walk->conn;
	struct hr_conn *conn;

	if (!walk->purse || (walk->flags & reply) != reply)
		return walk->purse;
	conn = bpf_map_lookup_elem(&hr_conns, &index);
	return conn ? hr_purse(conn->port, true) : walk->purse;
}

static __always_inline int hr_drop(struct __sk_buff *skb, struct hr_walk *walk, __u32 reason)
{
	bool shared = hr_shared(walk);

	hr_count_reason(walk->from_port, reason);
	hr_budget_charge(hr_payer(walk), 1);
	hr_conclude(reason, shared ? (__u32)TC_ACT_UNSPEC : TC_ACT_SHOT, 0, &walk->packet.key, &walk->rule);
	hr_drop_shown(skb, hr_dropped_of(walk, walk->from_port, reason));
	return hr_end(skb, shared);
}

static __always_inline int hr_next(struct __sk_buff *skb, struct hr_walk *walk, enum hr_stage stage)
{
	bpf_tail_call(skb, &hr_stages, stage);
	return hr_drop(skb, walk, HR_REASON_INTERNAL);
}

/* A copy of the frame goes no further; the frame does. */
static __always_inline void hr_leave_out(struct __sk_buff *skb, struct hr_walk *walk, __u32 port, __u32 reason)
{
	hr_count_reason(port, reason);
	if (!hr_watched())
		return;
	walk->dropped = hr_dropped_of(walk, port, reason);
	hr_sample(skb, &walk->dropped);
}

/* What goes to a sub-port bears its tag. False: the kernel refused. */
static __always_inline bool hr_tag(struct __sk_buff *skb, const struct hr_port *port)
{
	return !port->vlan || !bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), port->vlan);
}

/* The frame has become the answer to itself, and its reason is counted: back to where it came from. */
static __always_inline int hr_return(struct __sk_buff *skb, struct hr_walk *walk, const struct hr_port *port,
				     __u32 reason)
{
	hr_conclude(reason, TC_ACT_REDIRECT, port->ifindex, &walk->packet.key, &walk->rule);
	if (!hr_tag(skb, port))
		return hr_drop_counted(walk->from_port, HR_REASON_INTERNAL);
	skb->mark = HR_MARK;
	return bpf_redirect(port->ifindex, 0);
}

/* Send to a local port: straight into a veth's peer where the frame's protocol is what the kernel noted, else by the device. */
static __always_inline int hr_deliver(struct __sk_buff *skb, const struct hr_port *port)
{
	__u16 ethertype = 0;

	bpf_skb_load_bytes(skb, offsetof(struct ethhdr, h_proto), &ethertype, sizeof(ethertype));
	if (!hr_tag(skb, port))
		return hr_drop_counted(0, HR_REASON_INTERNAL);
	if (port->flags & HR_PORT_PEER && skb->protocol == ethertype) {
		bpf_skb_change_type(skb, PACKET_HOST);
		return bpf_redirect_peer(port->ifindex, 0);
	}
	skb->mark = HR_MARK;
	return bpf_redirect(port->ifindex, 0);
}

#endif
