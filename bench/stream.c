/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * stream.c - one-way streaming over one TCP connection with blocking sockets
 *
 *   stream server                                prints its port, serves one connection
 *   stream [--sizes=S,S] [--seconds=T] PORT      one JSON line for each write size
 *
 * The reader takes what there is, up to READ_SIZE, and answers a batch with the CPU time that it
 * used: the answer stops the clock, and the report counts both ends. Nagle's algorithm stays on, as
 * it is by default, because small writes are five times faster with it over kernel TCP; only the
 * end of a batch is pushed, lest a delayed ACK (40 ms) be measured.
 *
 * --hold: keep the connection until the end of stdin, for somebody who wants to look at it.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/libbench.h"
#include "bench/libconn.h"

#define READ_SIZE ((size_t)1 << 17)
#define MAX_MESSAGE ((size_t)1 << 22)
#define WARM_NS 50000000u
#define FAST_WAIT_NS 2000000000u

struct verdict {
	uint64_t cpu_ns;
};

static bool serve_batch(struct bench_conn *c, void *buf)
{
	struct bench_batch b;
	struct verdict v;
	uint64_t left, cpu;

	if (!bench_recv(c, &b, sizeof(b)))
		return false;
	cpu = bench_cpu_ns();
	for (left = b.count * b.size; left;) {
		size_t n = bench_recv_some(c, buf, left < READ_SIZE ? left : READ_SIZE);

		if (n == 0)
			return false;
		left -= n;
	}
	v.cpu_ns = bench_cpu_ns() - cpu;
	bench_send(c, &v, sizeof(v));
	return true;
}

static void serve(void)
{
	struct bench_conn c = bench_accept(bench_listen(), BENCH_BLOCKING);
	void *buf = bench_alloc(READ_SIZE);

	while (serve_batch(&c, buf))
		;
	bench_close(&c);
}

/* Returns what the batch took, in ns; *cpu_ns: the CPU time of both ends. */
static uint64_t run_batch(struct bench_conn *c, const void *buf, size_t size, uint64_t count,
			  uint64_t *cpu_ns)
{
	struct bench_batch b = { .count = count, .size = size };
	uint64_t start = bench_now_ns(), cpu = bench_cpu_ns(), took;
	struct verdict v;

	bench_send(c, &b, sizeof(b));
	while (count--)
		bench_send(c, buf, size);
	bench_push(c);
	if (!bench_recv(c, &v, sizeof(v)))
		bench_die("server is gone");
	took = bench_now_ns() - start;
	*cpu_ns = bench_cpu_ns() - cpu + v.cpu_ns;
	return took;
}

static void warm_up(struct bench_conn *c, const void *buf)
{
	uint64_t start = bench_now_ns(), took, cpu;
	int path;

	do {
		run_batch(c, buf, 64, 16, &cpu);
		took = bench_now_ns() - start;
		path = bench_path(c);
	} while (took < WARM_NS || (path >= 0 && !bench_is_fast(path) && took < FAST_WAIT_NS));
}

static void measure(struct bench_conn *c, const void *buf, size_t size, uint64_t want)
{
	uint64_t count = 8, took, cpu;
	int before, after;

	while ((took = run_batch(c, buf, size, count, &cpu)) < want / 8)
		count *= 2;
	count = bench_scale(count, took, want);
	before = bench_path(c);
	took = run_batch(c, buf, size, count, &cpu);
	after = bench_path(c);
	bench_print_stream(size, count, took, cpu, bench_is_fast(before) ? after : before);
}

static void drive(uint16_t port, const struct bench_sizes *sizes, double seconds, bool hold)
{
	struct bench_conn c = bench_connect(port, BENCH_BLOCKING);
	void *buf = bench_alloc(MAX_MESSAGE);

	warm_up(&c, buf);
	for (size_t i = 0; i < sizes->n; i++)
		measure(&c, buf, sizes->v[i], (uint64_t)(seconds * 1e9));
	if (hold)
		bench_wait_for_stdin();
	bench_close(&c);
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "sizes", required_argument, NULL, 's' },
						 { "seconds", required_argument, NULL, 't' },
						 { "hold", no_argument, NULL, 'h' },
						 { 0 } };
	struct bench_sizes sizes = bench_parse_sizes("65536");
	double seconds = 0.3;
	bool hold = false;
	int opt;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (opt == 's')
			sizes = bench_parse_sizes(optarg);
		else if (opt == 't')
			seconds = atof(optarg);
		else if (opt == 'h')
			hold = true;
		else
			return 2;
	}
	if (optind + 1 != argc || bench_max_size(&sizes) > MAX_MESSAGE) {
		fprintf(stderr,
			"usage: stream [--sizes=S,...] [--seconds=T] [--hold] server|PORT\n");
		return 2;
	}
	bench_bound_life();
	if (!strcmp(argv[optind], "server"))
		serve();
	else
		drive((uint16_t)atoi(argv[optind]), &sizes, seconds, hold);
	return 0;
}
