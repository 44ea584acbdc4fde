/* SPDX-License-Identifier: Apache-2.0 */
/* The receiving workload: one thread, one epoll set, dual-stack sockets; swallows bulk, echoes, answers and closes.
 * Prints "ready" once it listens.
 */
#include "load.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define BULK_BUFFER (256 * 1024)
#define EVENTS 256

enum role { LISTEN, BULK, ECHO, ANSWER, DATAGRAM };

/* What epoll remembers with a descriptor: the role, and what to be once accepted. */
union tag {
	uint64_t word;
	struct {
		int fd;
		uint16_t role, then;
	};
};

static char buffer[BULK_BUFFER];
static int poll_fd;

static void watch(int fd, enum role role, enum role then)
{
	union tag tag = { .fd = fd, .role = (uint16_t)role, .then = (uint16_t)then };
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = tag.word };

	if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event))
		die("watch a socket");
}

static void serve(int type, int port, enum role role, enum role then)
{
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port) };
	int fd = socket(AF_INET6, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1, zero = 0;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)))
		die("bind port %d", port);
	if (type == SOCK_STREAM && listen(fd, 4096))
		die("listen on port %d", port);
	watch(fd, role, then);
}

static void take(int listener, enum role role)
{
	int fd, one = 1;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		watch(fd, role, role);
	}
}

static void swallow(int fd)
{
	ssize_t got = recv(fd, buffer, sizeof(buffer), 0);

	if (got == 0 || (got < 0 && errno != EAGAIN))
		close(fd);
}

static void echo(int fd)
{
	ssize_t got = recv(fd, buffer, MESSAGE, 0);

	if (got > 0)
		send(fd, buffer, (size_t)got, MSG_NOSIGNAL);
	else if (got == 0 || errno != EAGAIN)
		close(fd);
}

/* One request, one answer, and we are the side that closes. */
static void answer(int fd)
{
	ssize_t got = recv(fd, buffer, MESSAGE, 0);

	if (got < 0 && errno == EAGAIN)
		return;
	if (got > 0)
		send(fd, buffer, MESSAGE, MSG_NOSIGNAL);
	close(fd);
}

static void datagram(int fd)
{
	struct sockaddr_in6 from;
	socklen_t size = sizeof(from);
	ssize_t got = recvfrom(fd, buffer, MESSAGE, 0, (struct sockaddr *)&from, &size);

	if (got >= 0)
		sendto(fd, buffer, (size_t)got, 0, (struct sockaddr *)&from, size);
}

int main(int argc, char **argv)
{
	struct epoll_event events[EVENTS];

	pin_to_core(argc > 1 ? atoi(argv[1]) : -1);
	poll_fd = epoll_create1(EPOLL_CLOEXEC);
	serve(SOCK_STREAM, PORT_BULK, LISTEN, BULK);
	serve(SOCK_STREAM, PORT_ECHO, LISTEN, ECHO);
	serve(SOCK_DGRAM, PORT_ECHO, DATAGRAM, DATAGRAM);
	for (int i = 0; i < CONNECT_PORTS; i++)
		serve(SOCK_STREAM, PORT_CONNECT + i, LISTEN, ANSWER);
	puts("ready");
	fflush(stdout);
	for (;;) {
		int count = epoll_wait(poll_fd, events, EVENTS, -1);

		for (int i = 0; i < count; i++) {
			union tag tag = { .word = events[i].data.u64 };

			switch ((enum role)tag.role) {
			case LISTEN:
				take(tag.fd, (enum role)tag.then);
				break;
			case BULK:
				swallow(tag.fd);
				break;
			case ECHO:
				echo(tag.fd);
				break;
			case ANSWER:
				answer(tag.fd);
				break;
			case DATAGRAM:
				datagram(tag.fd);
				break;
			}
		}
	}
}
