/* SPDX-License-Identifier: Apache-2.0 */
/* echo ADDRESS tcp|udp SECONDS CORE: one request at a time; the distribution of the times until the answer. */
#include "peer.h"

#define SAMPLES (1 << 21)
#define WARM 200
#define PATIENCE_S 1 /* a lost datagram counts as lost, and the next one is sent */

static uint32_t samples[SAMPLES];

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static int exchange(int fd)
{
	char buffer[MESSAGE] = { 0 };
	ssize_t got = 0;

	if (send(fd, buffer, sizeof(buffer), MSG_NOSIGNAL) != MESSAGE)
		die("send a request");
	while (got < MESSAGE) {
		ssize_t part = recv(fd, buffer, sizeof(buffer) - (size_t)got, 0);

		if (part < 0 && errno == EAGAIN)
			return 0;
		if (part <= 0)
			die("receive an answer");
		got += part;
	}
	return 1;
}

int main(int argc, char **argv)
{
	struct timeval patience = { .tv_sec = PATIENCE_S };
	uint64_t end, lost = 0;
	struct peer peer;
	size_t count = 0;
	int fd;

	if (argc != 5)
		die("echo ADDRESS tcp|udp SECONDS CORE");
	pin_to_core(atoi(argv[4]));
	peer = peer_at(argv[1], PORT_ECHO);
	fd = connect_to(&peer, strcmp(argv[2], "udp") ? SOCK_STREAM : SOCK_DGRAM);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	for (int i = 0; i < WARM; i++)
		exchange(fd);
	end = now_ns() + (uint64_t)(atof(argv[3]) * NS_PER_S);
	while (count < SAMPLES) {
		uint64_t before = now_ns(), after;
		int answered = exchange(fd);

		after = now_ns();
		if (answered)
			samples[count++] = (uint32_t)(after - before);
		else
			lost++;
		if (after >= end)
			break;
	}
	if (!count) {
		errno = ETIMEDOUT;
		die("no answer at all");
	}
	qsort(samples, count, sizeof(samples[0]), compare);
	printf("{\"count\": %zu, \"lost\": %llu, \"p50_us\": %.3f, \"p99_us\": %.3f}\n", count,
	       (unsigned long long)lost, samples[count / 2] / 1e3, samples[count * 99 / 100] / 1e3);
	return 0;
}
