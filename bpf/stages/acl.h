/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* acl: does a port's policy allow the packet, and by which rule. Called per side. docs/pipeline.md, "acl".
 *
 * Two longest-prefix lookups and two hash lookups at most, however many rules and members there are: the service (protocol and
 * port) and the remote address each fall into a class, and the classes either meet or not. The service's entry names the set
 * of addresses to look in, so that a port's policy, one word, changes rules and addresses in one write.
 */
#ifndef HR_STAGES_ACL_H
#define HR_STAGES_ACL_H

#include "stages/track.h"

/* The rule that allows it, or HR_RULE_NONE. `remote`: the other side's address; `service`: port, or ICMP type and code. */
static __always_inline __u64 hr_acl_rule(__u64 policy, __u16 direction, const __u8 *remote, __u8 proto, __be16 service)
{
	__u16 family = hr_addr_is_v4(remote) ? 4 : 6;
	struct hr_acl_service_key service_key = {
		.prefixlen = HR_SERVICE_PROTO + 16,
		.direction = direction,
		.family = family,
		.policy = policy,
		.proto = proto,
		.port = service,
	};
	struct hr_acl_remote_key remote_key = {
		.prefixlen = HR_REMOTE_PREFIX + 128,
	};
	struct hr_acl_address_key address_key;
	struct hr_acl_service *by_service;
	struct hr_acl_remote *by_remote;
	struct hr_acl_match_key pair;
	struct hr_acl_match *match;

	by_service = bpf_map_lookup_elem(&hr_acl_services, &service_key);
	if (!by_service)
		return HR_RULE_NONE;
	if (by_service->rule)
		return by_service->rule;
	if (!by_service->remotes)
		return HR_RULE_NONE;
	address_key.remotes = by_service->remotes;
	__builtin_memcpy(address_key.addr, remote, 16);
	by_remote = bpf_map_lookup_elem(&hr_acl_addresses, &address_key);
	if (!by_remote) {
		remote_key.remotes = by_service->remotes;
		__builtin_memcpy(remote_key.addr, remote, 16);
		by_remote = bpf_map_lookup_elem(&hr_acl_remotes, &remote_key);
	}
	if (!by_remote)
		return HR_RULE_NONE;
	if (by_remote->rule)
		return by_remote->rule;
	if (!by_service->class_id)
		return HR_RULE_NONE;
	pair.remote_class = by_remote->class_id;
	pair.service_class = by_service->class_id;
	match = bpf_map_lookup_elem(&hr_acl_matches, &pair);
	return match ? match->rule : HR_RULE_NONE;
}

/* Neutron's implicit rules (neutron.agent.firewall, OVS firewall driver): address configuration always works. */
static __always_inline bool hr_acl_implicit(const struct hr_packet *packet, __u32 direction)
{
	bool ipv6 = packet->kind == HR_KIND_IPV6;
	__u8 type = packet->icmp_type;

	if (ipv6 && packet->key.proto == IPPROTO_ICMPV6) {
		if (type == 130 || type == 131 || type == 132 || type == 135 || type == 136 || type == 143)
			return true;
		return type == (direction == HR_FROM_PORT ? 133 : 134);
	}
	if (packet->key.proto != IPPROTO_UDP)
		return false;
	if (direction == HR_FROM_PORT)
		return packet->key.sport == bpf_htons(ipv6 ? 546 : 68) &&
		       packet->key.dport == bpf_htons(ipv6 ? 547 : 67);
	return packet->key.sport == bpf_htons(ipv6 ? 547 : 67) && packet->key.dport == bpf_htons(ipv6 ? 546 : 68);
}

/* Judge one side; `direction` is the port's own. Returns a reason, and the rule through `rule`. */
static __always_inline int hr_acl(struct hr_walk *walk, const struct hr_port *port, __u32 direction, __u64 *rule)
{
	const struct hr_packet *packet = &walk->packet;
	bool original = !(walk->flags & HR_WALK_REPLY);
	bool from = direction == HR_FROM_PORT;
	const struct hr_flow_key *key = &packet->key;
	bool stateful = port->flags & HR_PORT_STATEFUL;
	bool tracked = false;
	__u32 role = direction;

	*rule = HR_RULE_OPEN;
	if (!(port->flags & HR_PORT_SECURITY))
		return HR_REASON_NONE;
	if (packet->kind == HR_KIND_OTHER)
		return HR_REASON_ETHERTYPE;
	*rule = HR_RULE_IMPLICIT;
	if (packet->kind == HR_KIND_ARP)
		return HR_REASON_NONE;
	if (hr_acl_implicit(packet, direction)) {
		walk->flags |= HR_WALK_UNTRACKED;
		return HR_REASON_NONE;
	}
	if (stateful)
		walk->flags |= from ? HR_WALK_TRACK_FROM : HR_WALK_TRACK_TO;
	if (walk->flags & HR_WALK_FOUND) {
		/* The original sender is this side in original packets' from side, and in replies' to side. */
		bool sender = original == from;

		__u32 where = from ? walk->from_port : walk->to_port;

		/* Replies sent to somebody else's MAC find no way past his rules: the side is where its key enters. */
		tracked = walk->conn_flags & (sender ? HR_CONN_STATEFUL_FROM : HR_CONN_STATEFUL_TO) &&
			  walk->where[sender ? 0 : 1] == where;
		if (tracked) {
			key = &walk->original;
			role = sender ? HR_FROM_PORT : HR_TO_PORT;
		}
	}
	if (!tracked && stateful && walk->flags & (HR_WALK_ICMP_ERROR | HR_WALK_STRAY)) {
		*rule = HR_RULE_NONE;
		return walk->flags & HR_WALK_STRAY ? HR_REASON_TCP_INVALID : HR_REASON_ICMP_UNRELATED;
	}
	*rule = hr_acl_rule(port->policy, role, role == HR_FROM_PORT ? key->daddr : key->saddr, key->proto, key->dport);
	if (*rule == HR_RULE_NONE)
		return tracked ? HR_REASON_CONNECTION_CUT : from ? HR_REASON_ACL_FROM_PORT : HR_REASON_ACL_TO_PORT;
	if (tracked && (!original || walk->flags & HR_WALK_RELATED))
		*rule = HR_RULE_ESTABLISHED;
	return HR_REASON_NONE;
}

#endif
