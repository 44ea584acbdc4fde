/* SPDX-License-Identifier: Apache-2.0 */
/* What the load programs share. Each prints one JSON object on its last line and nothing else on stdout. */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE 64 /* octets of a request and of an answer */
#define NS_PER_S 1000000000ull

/* The server's ports: one for bulk, one for echo (TCP and UDP), the rest answer one request and close. */
#define PORT_BULK 5001
#define PORT_ECHO 5002
#define PORT_CONNECT 5010
#define CONNECT_PORTS 16

/* One per core in the file that spin writes and blast reads. */
struct spin_counter {
	_Alignas(64) volatile uint64_t count;
};

__attribute__((format(printf, 1, 2), noreturn)) static inline void die(const char *format, ...)
{
	int error = errno;
	va_list arguments;

	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fprintf(stderr, ": %s\n", strerror(error));
	exit(1);
}

static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static inline void pin_to_core(int core)
{
	cpu_set_t set;

	if (core < 0)
		return;
	CPU_ZERO(&set);
	CPU_SET((size_t)core, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("pin to core %d", core);
}

static inline void enter_namespace(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, CLONE_NEWNET))
		die("enter network namespace %s", path);
	close(fd);
}

#endif
