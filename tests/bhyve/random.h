/*
 * What threads do by chance, from a seed: each has a state of its own, which is not zero.
 */
#ifndef STAND_IN_RANDOM_H
#define STAND_IN_RANDOM_H

#include <sched.h>
#include <stdint.h>
#include <time.h>

/* xorshift64*. */
static inline uint32_t
next(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return ((uint32_t)((*state * 0x2545f4914f6cdd1dULL) >> 32));
}

static inline void
pause_a_little(uint64_t *state)
{
	uint32_t n = next(state) % 16;
	struct timespec ts = { 0, (long)(next(state) % 20000) };

	if (n == 0)
		nanosleep(&ts, NULL);
	else if (n < 4)
		sched_yield();
}

#endif
