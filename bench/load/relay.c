/* SPDX-License-Identifier: Apache-2.0 */
/* relay NETNS1 TAP1 NETNS2 TAP2: make both taps and carry frames between them, offload metadata included.
 * What a hypervisor without vhost does for a guest. Answers each line read with "ready" once both taps are there.
 */
#include "load.h"

#include <linux/if.h>
#include <linux/if_tun.h>
#include <pthread.h>
#include <sys/ioctl.h>

#define FRAME_MAX (12 + 14 + 65536)

struct way {
	int from, to;
};

static int tap(const char *namespace, const char *name)
{
	struct ifreq request = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int fd;

	enter_namespace(namespace);
	fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &request))
		die("make tap %s", name);
	if (ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN))
		die("set the offloads of tap %s", name);
	return fd;
}

static void *carry(void *argument)
{
	struct way *way = argument;
	char frame[FRAME_MAX];

	for (;;) {
		ssize_t got = read(way->from, frame, sizeof(frame));

		/* A device that is down refuses; the frame is lost as on a cable that is out. */
		if (got > 0 && write(way->to, frame, (size_t)got) < 0 && errno != EIO && errno != EINVAL)
			die("write to a tap");
		else if (got < 0 && errno != EIO && errno != EINTR)
			die("read from a tap");
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct way there, back;
	pthread_t threads[2];
	char line[64];

	if (argc != 5)
		die("relay NETNS1 TAP1 NETNS2 TAP2");
	there.from = back.to = tap(argv[1], argv[2]);
	there.to = back.from = tap(argv[3], argv[4]);
	if (pthread_create(&threads[0], NULL, carry, &there) || pthread_create(&threads[1], NULL, carry, &back))
		die("start a thread");
	while (fgets(line, sizeof(line), stdin)) {
		puts("ready");
		fflush(stdout);
	}
	return 0;
}
