/* SPDX-License-Identifier: Apache-2.0 */
/* Send 64-octet UDP frames out of one workload's device and count those that reach another workload.
 *
 * BPF_PROG_TEST_RUN with live frames puts XDP frames straight into the veth, about 2 M a second from one core; a
 * socket could not. First a warm-up, which with cover=1 goes on until every flow has arrived once (flows that have
 * are left out, so that losses while the path sets up flows do not matter), then the measured window. Both counters
 * are read at the same moments within the flow of packets, so what is still queued at the end falsifies nothing.
 */
#include "load.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include "blast.skel.h"

#define FRAME 64
#define BATCH 64u
#define BATCH_PACED 32u
#define POLL_NS 2000000
#define CORES_MAX 64

static struct {
	const char *tx_namespace, *rx_namespace, *tx_device, *rx_device, *packet, *spin;
	unsigned int core, l4_offset, xdp_sink, cover, flows, first;
	double warm, seconds, pps;
} options = { .core = 0, .l4_offset = 34, .flows = 1, .warm = 0.3, .seconds = 1 };

struct snapshot {
	uint64_t ns, arrived, sent, waited, spun[CORES_MAX];
};

static struct blast_bpf *skeleton;
static volatile int done;

static uint64_t arrived(void)
{
	int processors = libbpf_num_possible_cpus();
	uint64_t values[processors], total = 0;
	unsigned int key = 0;

	if (bpf_map_lookup_elem(bpf_map__fd(skeleton->maps.arrived), &key, values))
		die("read the counter of arrivals");
	for (int i = 0; i < processors; i++)
		total += values[i];
	return total;
}

static void wake(int number)
{
	(void)number;
}

/* One test run that goes on until it is interrupted: each one's end waits some 20 ms for RCU. */
static void *shoot(void *unused)
{
	unsigned char data[FRAME];
	struct xdp_md context = { .data_end = FRAME, .ingress_ifindex = skeleton->rodata->out_ifindex };
	DECLARE_LIBBPF_OPTS(bpf_test_run_opts, run, .data_in = data, .data_size_in = FRAME, .ctx_in = &context,
			    .ctx_size_in = sizeof(context), .repeat = INT32_MAX,
			    .batch_size = skeleton->rodata->batch_size, .flags = BPF_F_TEST_XDP_LIVE_FRAMES);

	pin_to_core((int)options.core);
	memcpy(data, skeleton->bss->frame, FRAME);
	while (!done)
		if (bpf_prog_test_run_opts(bpf_program__fd(skeleton->progs.blast), &run) && errno != EINTR)
			die("send live frames");
	return unused;
}

static void sleep_ns(uint64_t ns)
{
	struct timespec pause = { .tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S) };

	nanosleep(&pause, NULL);
}

static unsigned int covered(void)
{
	static uint64_t *bits;
	size_t size = bpf_map__max_entries(skeleton->maps.seen) * sizeof(*bits);
	unsigned int count = 0;

	if (!bits)
		bits = mmap(NULL, size, PROT_READ, MAP_SHARED, bpf_map__fd(skeleton->maps.seen), 0);
	if (bits == MAP_FAILED)
		die("map the record of flows seen");
	for (size_t i = 0; i < size / sizeof(*bits); i++)
		count += (unsigned int)__builtin_popcountll(bits[i]);
	return count;
}

static unsigned int warm_up(void)
{
	uint64_t end = now_ns() + (uint64_t)(options.warm * NS_PER_S);
	unsigned int count = 0;

	while (now_ns() < end) {
		sleep_ns(POLL_NS);
		if (skeleton->bss->warming) {
			count = covered();
			if (count >= options.flows)
				break;
		}
	}
	skeleton->bss->warming = 0;
	return count;
}

static int find(const char *namespace, const char *device)
{
	int ifindex;

	enter_namespace(namespace);
	ifindex = (int)if_nametoindex(device);
	if (!ifindex)
		die("find %s", device);
	return ifindex;
}

static void attach(const char *namespace, const char *device, struct bpf_program *xdp, struct bpf_program *tc)
{
	DECLARE_LIBBPF_OPTS(bpf_tc_opts, filter, .handle = 1, .priority = 1);
	DECLARE_LIBBPF_OPTS(bpf_tc_hook, hook, .attach_point = BPF_TC_INGRESS, .ifindex = find(namespace, device));

	/* A link, not bpf_xdp_attach(): it goes when this process goes, however it goes. */
	if (options.xdp_sink && !bpf_program__attach_xdp(xdp, hook.ifindex))
		die("attach the XDP sink to %s", device);
	/* In any case: a path that delivers XDP frames may deliver first packets by bpf_redirect_peer(), behind XDP. */
	filter.prog_fd = bpf_program__fd(tc);
	if ((bpf_tc_hook_create(&hook) && errno != EEXIST) || bpf_tc_attach(&hook, &filter))
		die("attach the tc sink to %s", device);
}

static void detach(const char *namespace, const char *device)
{
	DECLARE_LIBBPF_OPTS(bpf_tc_hook, hook, .attach_point = BPF_TC_INGRESS | BPF_TC_EGRESS,
			    .ifindex = find(namespace, device));

	bpf_tc_hook_destroy(&hook);
}

static void load(void)
{
	skeleton = blast_bpf__open();
	if (!skeleton)
		die("open the load's programs");
	enter_namespace(options.tx_namespace);
	skeleton->rodata->out_ifindex = if_nametoindex(options.tx_device);
	if (!skeleton->rodata->out_ifindex)
		die("find %s", options.tx_device);
	skeleton->rodata->flows = options.flows;
	skeleton->rodata->l4_offset = options.l4_offset;
	if (strlen(options.packet) != 2 * FRAME) {
		errno = EINVAL;
		die("the packet must be %d octets in hex", FRAME);
	}
	for (int i = 0; i < FRAME; i++)
		sscanf(options.packet + 2 * i, "%2hhx", (unsigned char *)skeleton->bss->frame + i);
	skeleton->rodata->has_checksum = ((uint16_t *)skeleton->bss->frame)[(options.l4_offset + 6) / 2] != 0;
	skeleton->bss->next_flow = options.first;
	skeleton->bss->warming = options.cover && options.flows;
	skeleton->rodata->batch_size = options.pps > 0 ? BATCH_PACED : BATCH;
	skeleton->rodata->batch_ns = options.pps > 0 ? (uint64_t)(BATCH_PACED * NS_PER_S / options.pps) : 0;
	if (blast_bpf__load(skeleton))
		die("load the load's programs");
}

/* NAME=VALUE, in any order. */
static void parse(int argc, char **argv)
{
	static const struct {
		const char *name;
		enum { TEXT, WHOLE, REAL } kind;
		void *place;
	} names[] = {
		{ "tx-namespace", TEXT, &options.tx_namespace },
		{ "tx-device", TEXT, &options.tx_device },
		{ "rx-namespace", TEXT, &options.rx_namespace },
		{ "rx-device", TEXT, &options.rx_device },
		{ "packet", TEXT, &options.packet },
		{ "l4-offset", WHOLE, &options.l4_offset },
		{ "flows", WHOLE, &options.flows },
		{ "first", WHOLE, &options.first },
		{ "core", WHOLE, &options.core },
		{ "xdp-sink", WHOLE, &options.xdp_sink },
		{ "cover", WHOLE, &options.cover },
		{ "warm", REAL, &options.warm },
		{ "seconds", REAL, &options.seconds },
		{ "pps", REAL, &options.pps },
		{ "spin", TEXT, &options.spin },
	};
	const size_t count = sizeof(names) / sizeof(names[0]);

	errno = EINVAL;
	for (int i = 1; i < argc; i++) {
		char *value = strchr(argv[i], '=');
		size_t n = 0;

		while (value && n < count &&
		       (strlen(names[n].name) != (size_t)(value - argv[i]) ||
			strncmp(names[n].name, argv[i], strlen(names[n].name))))
			n++;
		if (!value++ || n == count)
			die("blast: %s", argv[i]);
		if (names[n].kind == TEXT)
			*(const char **)names[n].place = value;
		else if (names[n].kind == WHOLE)
			*(unsigned int *)names[n].place = (unsigned int)strtoul(value, NULL, 0);
		else
			*(double *)names[n].place = atof(value);
	}
	if (!options.tx_namespace || !options.tx_device || !options.rx_namespace || !options.rx_device ||
	    !options.packet || (options.flows & (options.flows - 1)))
		die("blast: namespaces, devices and packet are needed, and flows a power of two");
}

static struct spin_counter *open_spinner(void)
{
	size_t size = (size_t)sysconf(_SC_NPROCESSORS_ONLN) * sizeof(struct spin_counter);
	int fd = open(options.spin, O_RDONLY | O_CLOEXEC);
	void *counters = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);

	if (fd < 0 || counters == MAP_FAILED)
		die("read the spinner's counters in %s", options.spin);
	return counters;
}

static struct snapshot snapshot(const struct spin_counter *spinner)
{
	struct snapshot now = { .arrived = arrived(), .sent = skeleton->bss->sent, .waited = skeleton->bss->waited_ns };

	for (long i = 0; spinner && i < sysconf(_SC_NPROCESSORS_ONLN) && i < CORES_MAX; i++)
		now.spun[i] = spinner[i].count;
	now.ns = now_ns();
	return now;
}

static void report(const struct snapshot *before, const struct snapshot *after, unsigned int covered_flows)
{
	printf("{\"sent\": %llu, \"arrived\": %llu, \"seconds\": %.6f, \"waited\": %.6f, \"covered\": %u, \"next\": %u",
	       (unsigned long long)(after->sent - before->sent), (unsigned long long)(after->arrived - before->arrived),
	       (double)(after->ns - before->ns) / NS_PER_S, (double)(after->waited - before->waited) / NS_PER_S,
	       covered_flows, skeleton->bss->next_flow);
	if (options.spin) {
		printf(", \"spun\": [");
		for (long i = 0; i < sysconf(_SC_NPROCESSORS_ONLN) && i < CORES_MAX; i++)
			printf("%s%llu", i ? ", " : "", (unsigned long long)(after->spun[i] - before->spun[i]));
		printf("]");
	}
	printf("}\n");
}

int main(int argc, char **argv)
{
	const struct spin_counter *spinner = NULL;
	struct snapshot before, after;
	unsigned int covered_flows;
	pthread_t shooter;

	parse(argc, argv);
	signal(SIGUSR1, wake);
	if (options.spin)
		spinner = open_spinner();
	load();
	attach(options.rx_namespace, options.rx_device, skeleton->progs.far_xdp, skeleton->progs.far_tc);
	attach(options.tx_namespace, options.tx_device, skeleton->progs.near_xdp, skeleton->progs.near_tc);
	if (pthread_create(&shooter, NULL, shoot, NULL))
		die("start the shooting thread");
	covered_flows = warm_up();
	before = snapshot(spinner);
	sleep_ns((uint64_t)(options.seconds * NS_PER_S));
	after = snapshot(spinner);
	done = 1;
	pthread_kill(shooter, SIGUSR1);
	pthread_join(shooter, NULL);
	report(&before, &after, covered_flows);
	detach(options.rx_namespace, options.rx_device);
	detach(options.tx_namespace, options.tx_device);
	blast_bpf__destroy(skeleton);
	return 0;
}
