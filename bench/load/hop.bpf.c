// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The limit: a hop that does nothing but hand the frame on. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

const volatile __u32 out_ifindex;

SEC("xdp")
int hop(struct xdp_md *ctx)
{
	return bpf_redirect(out_ifindex, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
