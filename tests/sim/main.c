/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * main.c - runs schedules in threads, shrinks the first that fails, prints TAP
 *
 *   sim [--schedules N] [--seed S] [--threads T] [--steps N] [--mask FEATURES] [--verbose]
 *
 * Schedule i has seed S + i. --steps bounds the random phase, --mask takes features away; both are
 * what the shrinker prints.
 */
#include "sim.h"

#include <getopt.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHUNK 256u

static struct {
	uint64_t schedules, seed;
	uint32_t threads, steps, mask;
	bool verbose, no_coverage;
} opt = { 1000000, 1, 2, UINT32_MAX, UINT32_MAX, false, false };

static atomic_uint_fast64_t next_schedule;
static atomic_uint_fast64_t first_failed = UINT64_MAX; /* index */

struct worker {
	pthread_t thread;
	struct world world;
	uint64_t counters[C_COUNT];
	uint64_t done;
	uint64_t steps;
};

static void note_failure(uint64_t i)
{
	uint64_t old = atomic_load(&first_failed);

	while (i < old && !atomic_compare_exchange_weak(&first_failed, &old, i))
		;
}

static void *work(void *arg)
{
	struct worker *me = arg;

	me->world.cover = me->counters;
	me->world.verbose = opt.verbose;
	for (;;) {
		uint64_t i = atomic_fetch_add(&next_schedule, CHUNK);

		if (i >= opt.schedules || i > atomic_load(&first_failed))
			return NULL;
		for (uint64_t end = i + CHUNK; i < end && i < opt.schedules; i++) {
			schedule_run(&me->world, opt.seed + i, opt.mask, opt.steps);
			me->done++;
			me->steps += me->world.step;
			if (me->world.invariant) {
				note_failure(i);
				break;
			}
		}
	}
}

static bool fails(struct worker *me, uint64_t seed, uint32_t mask, uint32_t steps)
{
	schedule_run(&me->world, seed, mask, steps);
	return me->world.invariant != NULL;
}

/* The fewest steps and features that still violate an invariant. */
static void shrink(struct worker *me, uint64_t seed, uint32_t *mask, uint32_t *steps)
{
	me->world.verbose = false;
	fails(me, seed, *mask, *steps);
	*mask = me->world.features;
	for (uint32_t bit = 0; bit < FEATURE_COUNT; bit++) {
		if ((*mask & (1u << bit)) && fails(me, seed, *mask & ~(1u << bit), *steps))
			*mask &= ~(1u << bit);
	}
	for (uint32_t n = 0; n < 256 && n < *steps; n++) {
		if (fails(me, seed, *mask, n))
			*steps = n;
	}
}

static void report_failure(struct worker *me, const char *program)
{
	uint64_t i = atomic_load(&first_failed), seed = opt.seed + i;
	uint32_t mask = opt.mask, steps = opt.steps;

	fails(me, seed, mask, steps);
	printf("# seed %lu, schedule %lu: %s (%s)\n", (unsigned long)seed, (unsigned long)i + 1,
	       me->world.invariant, me->world.detail);
	printf("# replay: %s --seed %lu --schedules 1 --verbose\n", program, (unsigned long)seed);
	shrink(me, seed, &mask, &steps);
	fails(me, seed, mask, steps);
	printf("# shrunk: %s --seed %lu --schedules 1 --verbose --mask 0x%x --steps %u\n", program,
	       (unsigned long)seed, mask, steps);
	printf("#         %s (%s)\n", me->world.invariant, me->world.detail);
}

static const struct {
	const char *name, *text;
	bool must;
} covers[C_COUNT] = {
#define X(name, must, text) { #name, text, must },
	COVERS(X)
#undef X
};

static bool parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "schedules", required_argument, NULL, 'n' },
		{ "seed", required_argument, NULL, 's' },
		{ "threads", required_argument, NULL, 't' },
		{ "steps", required_argument, NULL, 'l' },
		{ "mask", required_argument, NULL, 'm' },
		{ "no-coverage", no_argument, NULL, 'c' },
		{ "verbose", no_argument, NULL, 'v' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		uint64_t v = optarg ? strtoull(optarg, NULL, 0) : 0;

		switch (c) {
		case 'n':
			opt.schedules = v;
			break;
		case 's':
			opt.seed = v;
			break;
		case 't':
			opt.threads = v ? (uint32_t)v : 1;
			break;
		case 'l':
			opt.steps = (uint32_t)v;
			break;
		case 'm':
			opt.mask = (uint32_t)v;
			break;
		case 'c':
			opt.no_coverage = true;
			break;
		case 'v':
			opt.verbose = true;
			break;
		default:
			return false;
		}
	}
	return optind == argc;
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int main(int argc, char **argv)
{
	uint64_t sum[C_COUNT] = { 0 }, done = 0, steps = 0;
	struct worker *workers;
	double start = seconds();
	bool coverage, failed;
	int bad = 0;

	if (!parse(argc, argv)) {
		fprintf(stderr, "usage: sim [--schedules N] [--seed S] [--threads T] [--steps N] "
				"[--mask FEATURES] [--no-coverage] [--verbose]\n");
		return 2;
	}
	if (opt.verbose)
		opt.threads = 1;
	coverage = !opt.no_coverage && opt.schedules >= 100000;
	workers = calloc(opt.threads, sizeof(*workers));
	if (!workers)
		return 2;
	for (uint32_t i = 0; i < opt.threads; i++)
		pthread_create(&workers[i].thread, NULL, work, &workers[i]);
	for (uint32_t i = 0; i < opt.threads; i++) {
		pthread_join(workers[i].thread, NULL);
		done += workers[i].done;
		steps += workers[i].steps;
		for (int c = 0; c < C_COUNT; c++)
			sum[c] += workers[i].counters[c];
	}
	failed = atomic_load(&first_failed) != UINT64_MAX;
	printf("1..%d\n", 1 + (coverage && !failed ? C_COUNT : 0));
	printf("%sok 1 - %lu schedules, no invariant violated\n", failed ? "not " : "",
	       (unsigned long)done);
	printf("# %lu steps, %.1f s\n", (unsigned long)steps, seconds() - start);
	if (failed) {
		report_failure(&workers[0], argv[0]);
		return 1;
	}
	for (int c = 0; coverage && c < C_COUNT; c++) {
		bool ok = sum[c] || !covers[c].must;

		printf("%sok %d - %s: %lu\n", ok ? "" : "not ", c + 2, covers[c].text,
		       (unsigned long)sum[c]);
		bad += !ok;
	}
	free(workers);
	return bad != 0;
}
