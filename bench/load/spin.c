/* SPDX-License-Identifier: Apache-2.0 */
/* spin FILE: a counter per core, in FILE, that runs only when nothing else wants the core: what it loses is what was
 * used. There is neither a PMU nor IRQ time accounting in many virtual machines, and /proc/stat misses softirqs there.
 */
#include "load.h"

#include <pthread.h>
#include <sys/mman.h>

#define STRIDE 64 /* counts between writes, so that memory has no part in the loop's speed */

static struct spin_counter *counters;

static void *spin(void *argument)
{
	intptr_t core = (intptr_t)argument;
	struct sched_param none = { 0 };
	uint64_t count = 0;

	pin_to_core((int)core);
	if (sched_setscheduler(0, SCHED_IDLE, &none))
		die("become SCHED_IDLE");
	for (;;) {
		for (int i = 0; i < STRIDE; i++) {
			count++;
			__asm__ volatile("" : "+r"(count)); /* or the compiler adds STRIDE at once */
		}
		counters[core].count = count;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	size_t size = (size_t)cores * sizeof(*counters);
	int fd = argc == 2 ? open(argv[1], O_RDWR | O_CLOEXEC) : -1;

	if (fd < 0 || ftruncate(fd, (off_t)size))
		die("spin FILE");
	counters = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (counters == MAP_FAILED)
		die("map %s", argv[1]);
	for (intptr_t i = 0; i < cores; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, spin, (void *)i))
			die("start a thread");
	}
	pause();
	return 0;
}
