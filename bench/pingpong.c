/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * pingpong.c - round-trip time of a message over one TCP connection
 *
 *   pingpong [--mode=M] server                            prints its port, serves one connection
 *   pingpong [--mode=M] [--sizes=S,S] [--seconds=T] PORT  one JSON line for each size
 *
 * --hold: keep the connection until the end of stdin, for somebody who wants to look at it.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/libbench.h"
#include "bench/libconn.h"

#define MAX_SAMPLES ((size_t)1 << 20)
#define MAX_MESSAGE ((size_t)1 << 20)
#define WARM_NS 50000000u
#define FAST_WAIT_NS 2000000000u

static void serve(enum bench_mode mode)
{
	struct bench_conn c = bench_accept(bench_listen(), mode);
	void *buf = bench_alloc(MAX_MESSAGE);
	struct bench_batch b;

	bench_nodelay(&c, true);
	while (bench_recv(&c, &b, sizeof(b))) {
		while (b.count--) {
			if (!bench_recv(&c, buf, b.size))
				return;
			bench_send(&c, buf, b.size);
		}
	}
	bench_close(&c);
}

/* Returns what the batch took, in ns; one sample (ticks) a round trip. */
static uint64_t run_batch(struct bench_conn *c, void *buf, size_t size, uint64_t count,
			  uint32_t *samples)
{
	struct bench_batch b = { .count = count, .size = size };
	uint64_t start, then, now;

	bench_send(c, &b, sizeof(b));
	start = bench_now_ns();
	then = bench_ticks();
	for (uint64_t i = 0; i < count; i++) {
		bench_send(c, buf, size);
		if (!bench_recv(c, buf, size))
			bench_die("server is gone");
		now = bench_ticks();
		samples[i] = now - then > UINT32_MAX ? UINT32_MAX : (uint32_t)(now - then);
		then = now;
	}
	return bench_now_ns() - start;
}

static void warm_up(struct bench_conn *c, void *buf, uint32_t *samples)
{
	uint64_t start = bench_now_ns(), took;
	int path;

	do {
		run_batch(c, buf, 1, 64, samples);
		took = bench_now_ns() - start;
		path = bench_path(c);
	} while (took < WARM_NS || (path >= 0 && !bench_is_fast(path) && took < FAST_WAIT_NS));
}

static void measure(struct bench_conn *c, void *buf, size_t size, uint64_t want, uint32_t *samples)
{
	uint64_t count = 8, took, start_ticks, ticks;
	struct bench_latency l;
	int before, after;

	while ((took = run_batch(c, buf, size, count, samples)) < want / 8 &&
	       count < MAX_SAMPLES / 2)
		count *= 2;
	count = bench_scale(count, took, want);
	if (count > MAX_SAMPLES)
		count = MAX_SAMPLES;
	before = bench_path(c);
	start_ticks = bench_ticks();
	took = run_batch(c, buf, size, count, samples);
	ticks = bench_ticks() - start_ticks;
	after = bench_path(c);
	l = bench_latency(samples, count, ticks, took);
	bench_print_latency(size, count, &l, bench_is_fast(before) ? after : before);
}

static void drive(uint16_t port, enum bench_mode mode, const struct bench_sizes *sizes,
		  double seconds, bool hold)
{
	struct bench_conn c = bench_connect(port, mode);
	uint32_t *samples = bench_alloc(MAX_SAMPLES * sizeof(*samples));
	void *buf = bench_alloc(MAX_MESSAGE);

	bench_nodelay(&c, true);
	warm_up(&c, buf, samples);
	for (size_t i = 0; i < sizes->n; i++)
		measure(&c, buf, sizes->v[i], (uint64_t)(seconds * 1e9), samples);
	if (hold)
		bench_wait_for_stdin();
	bench_close(&c);
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "mode", required_argument, NULL, 'm' },
						 { "sizes", required_argument, NULL, 's' },
						 { "seconds", required_argument, NULL, 't' },
						 { "hold", no_argument, NULL, 'h' },
						 { 0 } };
	struct bench_sizes sizes = bench_parse_sizes("64");
	enum bench_mode mode = BENCH_BLOCKING;
	double seconds = 0.2;
	bool hold = false;
	int opt;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (opt == 'm')
			mode = bench_parse_mode(optarg);
		else if (opt == 's')
			sizes = bench_parse_sizes(optarg);
		else if (opt == 't')
			seconds = atof(optarg);
		else if (opt == 'h')
			hold = true;
		else
			return 2;
	}
	if (optind + 1 != argc || bench_max_size(&sizes) > MAX_MESSAGE) {
		fprintf(stderr, "usage: pingpong [--mode=M] [--sizes=S,...] [--seconds=T] [--hold] "
				"server|PORT\n");
		return 2;
	}
	bench_bound_life();
	if (!strcmp(argv[optind], "server"))
		serve(mode);
	else
		drive((uint16_t)atoi(argv[optind]), mode, &sizes, seconds, hold);
	return 0;
}
