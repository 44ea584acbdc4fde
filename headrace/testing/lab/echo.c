// SPDX-License-Identifier: Apache-2.0
/* The echo service of a guest (RFC 862): TCP and UDP, both families, port 7 or the one given.
 *
 * A process for each connection: one peer that does not read blocks nobody else.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int bound(int type, int port)
{
	struct sockaddr_in6 any = {
		.sin6_family = AF_INET6,
		.sin6_port = htons(port),
		.sin6_addr = IN6ADDR_ANY_INIT,
	};
	int no = 0, yes = 1;
	int fd = socket(AF_INET6, type, 0);

	if (fd < 0 || setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no)) ||
	    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) ||
	    setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &yes, sizeof(yes)) ||
	    bind(fd, (struct sockaddr *)&any, sizeof(any))) {
		perror("echo");
		exit(1);
	}
	return fd;
}

static void serve_stream(int fd)
{
	char data[65536];
	ssize_t got;

	while ((got = read(fd, data, sizeof(data))) > 0) {
		ssize_t sent = 0;

		while (sent < got) {
			ssize_t more = write(fd, data + sent, got - sent);

			if (more <= 0)
				exit(1);
			sent += more;
		}
	}
	exit(0);
}

/* IPV6_PKTINFO goes back with the answer, so that it leaves from the address that was asked. */
static void serve_datagrams(int fd)
{
	static char data[65536], control[256];
	struct sockaddr_in6 peer;

	for (;;) {
		struct iovec part = { data, sizeof(data) };
		struct msghdr message = {
			.msg_name = &peer,
			.msg_namelen = sizeof(peer),
			.msg_iov = &part,
			.msg_iovlen = 1,
			.msg_control = control,
			.msg_controllen = sizeof(control),
		};
		ssize_t got = recvmsg(fd, &message, 0);

		if (got < 0)
			continue;
		part.iov_len = got;
		sendmsg(fd, &message, 0);
	}
}

int main(int argc, char **argv)
{
	int port = argc > 1 ? atoi(argv[1]) : 7;
	int datagrams = bound(SOCK_DGRAM, port);
	int listener = bound(SOCK_STREAM, port);

	signal(SIGCHLD, SIG_IGN);
	if (!fork())
		serve_datagrams(datagrams);
	if (listen(listener, 128)) {
		perror("echo: listen");
		return 1;
	}
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		if (fd < 0)
			continue;
		if (!fork()) {
			close(listener);
			serve_stream(fd);
		}
		close(fd);
	}
}
