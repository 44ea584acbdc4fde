/* SPDX-License-Identifier: Apache-2.0 */
/* hop DEVICE OUT: from now on, what enters DEVICE leaves by OUT. Stays when this process is gone; goes with DEVICE. */
#include "load.h"

#include <bpf/libbpf.h>
#include <linux/if_link.h>
#include <net/if.h>

#include "hop.skel.h"

int main(int argc, char **argv)
{
	struct hop_bpf *skeleton = hop_bpf__open();
	int ifindex;

	if (argc != 3 || !skeleton)
		die("hop DEVICE OUT");
	ifindex = (int)if_nametoindex(argv[1]);
	skeleton->rodata->out_ifindex = if_nametoindex(argv[2]);
	if (!ifindex || !skeleton->rodata->out_ifindex)
		die("find %s and %s", argv[1], argv[2]);
	if (hop_bpf__load(skeleton))
		die("load the hop");
	if (bpf_xdp_attach(ifindex, bpf_program__fd(skeleton->progs.hop), XDP_FLAGS_DRV_MODE, NULL))
		die("attach the hop to %s", argv[1]);
	return 0;
}
