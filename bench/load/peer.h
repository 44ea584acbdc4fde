/* SPDX-License-Identifier: Apache-2.0 */
/* An address of the server, of either family. */
#ifndef BENCH_PEER_H
#define BENCH_PEER_H

#include "load.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

struct peer {
	struct sockaddr_storage address;
	socklen_t size;
};

static inline struct peer peer_at(const char *text, int port)
{
	struct peer peer = { 0 };
	struct sockaddr_in *v4 = (struct sockaddr_in *)&peer.address;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&peer.address;

	if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons((uint16_t)port);
		peer.size = sizeof(*v4);
	} else if (inet_pton(AF_INET6, text, &v6->sin6_addr) == 1) {
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons((uint16_t)port);
		peer.size = sizeof(*v6);
	} else {
		errno = EINVAL;
		die("%s is no address", text);
	}
	return peer;
}

static inline int connect_to(const struct peer *peer, int type)
{
	int fd = socket(peer->address.ss_family, type | SOCK_CLOEXEC, 0), one = 1;

	if (fd < 0 || connect(fd, (const struct sockaddr *)&peer->address, peer->size))
		die("connect to the server");
	if (type == SOCK_STREAM)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

#endif
