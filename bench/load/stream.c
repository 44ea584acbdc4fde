/* SPDX-License-Identifier: Apache-2.0 */
/* stream ADDRESS SECONDS CORE: one TCP connection as fast as it goes; counts octets that the peer has acknowledged. */
#include "peer.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>

#define WRITE (128 * 1024)
#define WARM_S 0.2

static uint64_t run(int fd, double seconds)
{
	static char buffer[WRITE];
	uint64_t end = now_ns() + (uint64_t)(seconds * NS_PER_S), total = 0;

	while (now_ns() < end) {
		ssize_t put = send(fd, buffer, sizeof(buffer), MSG_NOSIGNAL);

		if (put < 0 && errno != EAGAIN)
			die("send");
		if (put > 0)
			total += (uint64_t)put;
	}
	return total;
}

static uint64_t waiting(int fd)
{
	int octets = 0;

	if (ioctl(fd, SIOCOUTQ, &octets))
		die("ask for what is not acknowledged");
	return (uint64_t)octets;
}

int main(int argc, char **argv)
{
	struct timeval patience = { .tv_usec = 100000 }; /* a path that loses everything must not hang us */
	uint64_t begin, before, octets;
	struct peer peer;
	int fd;

	if (argc != 4)
		die("stream ADDRESS SECONDS CORE");
	pin_to_core(atoi(argv[3]));
	peer = peer_at(argv[1], PORT_BULK);
	fd = connect_to(&peer, SOCK_STREAM);
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	run(fd, WARM_S);
	before = waiting(fd);
	begin = now_ns();
	octets = run(fd, atof(argv[2])) + before - waiting(fd);
	printf("{\"octets\": %llu, \"seconds\": %.6f}\n", (unsigned long long)octets,
	       (double)(now_ns() - begin) / NS_PER_S);
	return 0;
}
