// The cheapest monotonic clock: the time stamp counter where it runs at a constant rate, else clock_gettime().
#ifndef PYSERVE_TICKS_H
#define PYSERVE_TICKS_H

#include <stdint.h>
#include <time.h>

static inline uint64_t clock_nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#if defined(__x86_64__)
#include <x86intrin.h>
#define PYSERVE_HAS_COUNTER 1
static inline uint64_t counter_ticks(void) { return __rdtsc(); }
#else
#define PYSERVE_HAS_COUNTER 0
static inline uint64_t counter_ticks(void) { return clock_nanoseconds(); }
#endif

#endif
