/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * libbench.h - clock, CPU time, options and statistics of the bench programs
 */
#ifndef BENCH_LIBBENCH_H
#define BENCH_LIBBENCH_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define BENCH_MAX_SIZES 16
#define BENCH_MAX_SECONDS 60 /* every program ends by itself after this long */

/* Precedes each batch: `count` messages of `size` bytes follow. */
struct bench_batch {
	uint64_t count;
	uint64_t size;
};

struct bench_sizes {
	size_t n;
	size_t v[BENCH_MAX_SIZES];
};

struct bench_latency {
	double mean, median, p99, p999; /* ns */
};

/* The cheapest monotonic counter of the machine; its unit is settled by bench_latency(). */
static inline uint64_t bench_ticks(void)
{
#if defined(__x86_64__)
	return __builtin_ia32_rdtsc();
#else
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
#endif
}

uint64_t bench_now_ns(void);
/* User and system time of this process, all threads. */
uint64_t bench_cpu_ns(void);

/* Dies with the parent, and in any case after BENCH_MAX_SECONDS. */
void bench_bound_life(void);
void bench_pin(int cpu);
/* Returns at the end of file of stdin. */
void bench_wait_for_stdin(void);
void bench_die(const char *what) __attribute__((noreturn));
void *bench_alloc(size_t size);

/* "1,64,1024" */
struct bench_sizes bench_parse_sizes(const char *text);
size_t bench_max_size(const struct bench_sizes *sizes);
/* `count` messages took `took` ns: how many make a batch of `want` ns? At least 1. */
uint64_t bench_scale(uint64_t count, uint64_t took, uint64_t want);

/* Sorts `samples` (ticks); all of them together took `ticks` ticks and `ns` nanoseconds. */
struct bench_latency bench_latency(uint32_t *samples, size_t n, uint64_t ticks, uint64_t ns);

/* One JSON line on stdout. `path`: see bench_path() in libconn.h. */
void bench_print_latency(size_t size, uint64_t count, const struct bench_latency *l, int path);
void bench_print_stream(size_t size, uint64_t count, uint64_t ns, uint64_t cpu_ns, int path);

#endif
