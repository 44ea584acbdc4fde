/* SPDX-License-Identifier: Apache-2.0 */
/* A counter per core that runs only when nothing else wants the core: what it loses is what was used.
 * For each line read, one line: the time in ns, then every core's count.
 */
#include "load.h"

#include <pthread.h>

#define CORES_MAX 256
#define STRIDE 64 /* counts between writes: a cache line's worth of arithmetic, no shared memory in the loop */

static struct {
	_Alignas(64) volatile uint64_t count;
} cores[CORES_MAX];

static void *spin(void *argument)
{
	intptr_t core = (intptr_t)argument;
	struct sched_param none = {0};
	uint64_t count = 0;

	pin_to_core((int)core);
	if (sched_setscheduler(0, SCHED_IDLE, &none))
		die("become SCHED_IDLE");
	for (;;) {
		for (int i = 0; i < STRIDE; i++) {
			count++;
			__asm__ volatile("" : "+r"(count)); /* or the compiler adds STRIDE at once */
		}
		cores[core].count = count;
	}
	return NULL;
}

int main(void)
{
	long count = sysconf(_SC_NPROCESSORS_ONLN);
	char line[64];

	if (count > CORES_MAX)
		count = CORES_MAX;
	for (intptr_t i = 0; i < count; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, spin, (void *)i))
			die("start a thread");
	}
	while (fgets(line, sizeof(line), stdin)) {
		printf("%llu", (unsigned long long)now_ns());
		for (long i = 0; i < count; i++)
			printf(" %llu", (unsigned long long)cores[i].count);
		putchar('\n');
		fflush(stdout);
	}
	return 0;
}
