/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#define _GNU_SOURCE
#include "bench/libbench.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

uint64_t bench_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

uint64_t bench_cpu_ns(void)
{
	struct rusage ru;

	getrusage(RUSAGE_SELF, &ru);
	return ((uint64_t)ru.ru_utime.tv_sec + (uint64_t)ru.ru_stime.tv_sec) * 1000000000u +
	       ((uint64_t)ru.ru_utime.tv_usec + (uint64_t)ru.ru_stime.tv_usec) * 1000u;
}

void bench_bound_life(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	alarm(BENCH_MAX_SECONDS);
}

void bench_pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((size_t)cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set) < 0)
		bench_die("sched_setaffinity");
}

void bench_wait_for_stdin(void)
{
	while (getchar() != EOF)
		;
}

void bench_die(const char *what)
{
	perror(what);
	exit(1);
}

void *bench_alloc(size_t size)
{
	void *p = aligned_alloc(4096, (size + 4095) & ~(size_t)4095);

	if (!p)
		bench_die("aligned_alloc");
	memset(p, 1, size); /* fault the pages in now */
	return p;
}

struct bench_sizes bench_parse_sizes(const char *text)
{
	struct bench_sizes sizes = { 0 };
	char *end;

	while (*text && sizes.n < BENCH_MAX_SIZES) {
		size_t size = strtoul(text, &end, 10);

		if (end == text || size == 0)
			break;
		sizes.v[sizes.n++] = size;
		text = *end == ',' ? end + 1 : end;
	}
	if (*text || sizes.n == 0) {
		fprintf(stderr, "bad list of sizes\n");
		exit(2);
	}
	return sizes;
}

size_t bench_max_size(const struct bench_sizes *sizes)
{
	size_t max = 0;

	for (size_t i = 0; i < sizes->n; i++)
		if (sizes->v[i] > max)
			max = sizes->v[i];
	return max;
}

uint64_t bench_scale(uint64_t count, uint64_t took, uint64_t want)
{
	double n = (double)count * (double)want / (double)(took ? took : 1);

	return n < 1 ? 1 : (uint64_t)n;
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

struct bench_latency bench_latency(uint32_t *samples, size_t n, uint64_t ticks, uint64_t ns)
{
	double tick = (double)ns / (double)(ticks ? ticks : 1), sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += samples[i];
	qsort(samples, n, sizeof(*samples), by_value);
	return (struct bench_latency){
		.mean = sum / (double)n * tick,
		.median = samples[n / 2] * tick,
		.p99 = samples[n - 1 - n / 100] * tick,
		.p999 = samples[n - 1 - n / 1000] * tick,
	};
}

void bench_print_latency(size_t size, uint64_t count, const struct bench_latency *l, int path)
{
	printf("{\"size\": %zu, \"count\": %llu, \"mean\": %.1f, \"median\": %.1f, \"p99\": %.1f, "
	       "\"p999\": %.1f, \"path\": %d}\n",
	       size, (unsigned long long)count, l->mean, l->median, l->p99, l->p999, path);
	fflush(stdout);
}

void bench_print_stream(size_t size, uint64_t count, uint64_t ns, uint64_t cpu_ns, int path)
{
	double bytes = (double)size * (double)count, seconds = (double)ns * 1e-9;

	printf("{\"size\": %zu, \"count\": %llu, \"mb_s\": %.2f, \"msg_s\": %.0f, "
	       "\"cpu_s_gb\": %.4f, \"path\": %d}\n",
	       size, (unsigned long long)count, bytes / seconds * 1e-6, (double)count / seconds,
	       (double)cpu_ns / bytes, path);
	fflush(stdout);
}
