/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * calls.c - what a call costs that has nothing to do with sockets
 *
 *   calls [--seconds=T]        one JSON line: ns for read() of a byte from /dev/zero and for
 *                              write() of a byte to /dev/null, the best of many short batches
 */
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "bench/libbench.h"

#define BATCH 2000

static double read_batch(int fd)
{
	uint64_t start = bench_now_ns();
	char byte;

	for (int i = 0; i < BATCH; i++)
		if (read(fd, &byte, 1) != 1)
			bench_die("read");
	return (double)(bench_now_ns() - start) / BATCH;
}

static double write_batch(int fd)
{
	uint64_t start = bench_now_ns();

	for (int i = 0; i < BATCH; i++)
		if (write(fd, "", 1) != 1)
			bench_die("write");
	return (double)(bench_now_ns() - start) / BATCH;
}

static double best_of(double (*batch)(int), int fd, uint64_t want)
{
	uint64_t start = bench_now_ns();
	double best = batch(fd);

	while (bench_now_ns() - start < want) {
		double ns = batch(fd);

		if (ns < best)
			best = ns;
	}
	return best;
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "seconds", required_argument, NULL, 't' },
						 { 0 } };
	int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
	double seconds = 0.2;
	uint64_t want;
	int opt;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (opt != 't')
			return 2;
		seconds = atof(optarg);
	}
	if (zero < 0 || null < 0)
		bench_die("open");
	bench_bound_life();
	want = (uint64_t)(seconds * 1e9 / 2);
	printf("{\"read_ns\": %.2f, ", best_of(read_batch, zero, want));
	printf("\"write_ns\": %.2f}\n", best_of(write_batch, null, want));
	return 0;
}
