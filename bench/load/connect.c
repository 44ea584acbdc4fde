/* SPDX-License-Identifier: Apache-2.0 */
/* connect ADDRESS SECONDS CORE: TCP connections, each: connect, one request, one answer, the server closes, we close.
 * Some are under way at a time, over several server ports, since one pair of addresses and one port would run
 * out of source ports within seconds.
 */
#include "peer.h"

#include <sys/epoll.h>

#define UNDER_WAY 32
#define WARM_S 0.2
#define EVENTS 64

static struct peer peers[CONNECT_PORTS];
static uint64_t completed, failed;
static int poll_fd, sent[65536];

static void start(void)
{
	static unsigned int turn;
	const struct peer *peer = &peers[turn++ % CONNECT_PORTS];
	struct epoll_event event = { .events = EPOLLOUT };
	int fd = socket(peer->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;

	if (fd < 0 || fd >= (int)(sizeof(sent) / sizeof(sent[0])))
		die("make a socket");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (connect(fd, (const struct sockaddr *)&peer->address, peer->size) && errno != EINPROGRESS)
		die("connect to the server");
	sent[fd] = 0;
	event.data.fd = fd;
	if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event))
		die("watch a socket");
}

static void finish(int fd, int good)
{
	completed += (uint64_t)good;
	failed += (uint64_t)!good;
	close(fd);
	start();
}

static void go_on(int fd)
{
	struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };
	char buffer[MESSAGE] = { 0 };
	ssize_t got;

	if (!sent[fd]) {
		if (send(fd, buffer, sizeof(buffer), MSG_NOSIGNAL) != MESSAGE) {
			finish(fd, 0);
			return;
		}
		sent[fd] = 1;
		epoll_ctl(poll_fd, EPOLL_CTL_MOD, fd, &event);
		return;
	}
	got = recv(fd, buffer, sizeof(buffer), 0);
	if (got == 0)
		finish(fd, 1);
	else if (got < 0 && errno != EAGAIN)
		finish(fd, 0);
}

static void run(double seconds)
{
	uint64_t end = now_ns() + (uint64_t)(seconds * NS_PER_S);
	struct epoll_event events[EVENTS];

	while (now_ns() < end) {
		int count = epoll_wait(poll_fd, events, EVENTS, 100);

		for (int i = 0; i < count; i++)
			go_on(events[i].data.fd);
	}
}

int main(int argc, char **argv)
{
	uint64_t begin, before;

	if (argc != 4)
		die("connect ADDRESS SECONDS CORE");
	pin_to_core(atoi(argv[3]));
	for (int i = 0; i < CONNECT_PORTS; i++)
		peers[i] = peer_at(argv[1], PORT_CONNECT + i);
	poll_fd = epoll_create1(EPOLL_CLOEXEC);
	for (int i = 0; i < UNDER_WAY; i++)
		start();
	run(WARM_S);
	before = completed;
	begin = now_ns();
	run(atof(argv[2]));
	printf("{\"completed\": %llu, \"failed\": %llu, \"seconds\": %.6f}\n", (unsigned long long)(completed - before),
	       (unsigned long long)failed, (double)(now_ns() - begin) / NS_PER_S);
	return 0;
}
