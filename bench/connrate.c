/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * connrate.c - how many short connections a second: connect, 100 bytes there, 100 back, close
 *
 *   connrate server                 prints its port, serves until killed
 *   connrate [--seconds=T] PORT     one JSON line
 *
 * One connection at a time. The client closes first. At most MAX_CONNECTIONS are made, so that the
 * ports in TIME_WAIT do not run out and are not what is measured.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/libbench.h"
#include "bench/libconn.h"

#define MESSAGE 100
#define MAX_CONNECTIONS 12000
#define WARM_NS 50000000u

static void serve(void)
{
	int listener = bench_listen();
	char buf[MESSAGE];

	for (;;) {
		struct bench_conn c = bench_accept(listener, BENCH_BLOCKING);

		while (bench_recv(&c, buf, sizeof(buf)))
			bench_send(&c, buf, sizeof(buf));
		bench_close(&c);
	}
}

/* Returns the number of connections made in `want` ns; *fast: those that ended on a fast path. */
static uint64_t run(uint16_t port, uint64_t want, uint64_t *fast, uint64_t *took)
{
	uint64_t start = bench_now_ns(), made = 0;
	char buf[MESSAGE] = { 0 };

	*fast = 0;
	do {
		struct bench_conn c = bench_connect(port, BENCH_BLOCKING);
		int path;

		bench_send(&c, buf, sizeof(buf));
		if (!bench_recv(&c, buf, sizeof(buf)))
			bench_die("server is gone");
		path = bench_path(&c);
		*fast += path > 0 && bench_is_fast(path);
		bench_close(&c);
		made++;
		*took = bench_now_ns() - start;
	} while (*took < want && made < MAX_CONNECTIONS);
	return made;
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "seconds", required_argument, NULL, 't' },
						 { 0 } };
	uint64_t warm, made, fast, took;
	double seconds = 0.3;
	uint16_t port;
	int opt;

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (opt != 't')
			return 2;
		seconds = atof(optarg);
	}
	if (optind + 1 != argc) {
		fprintf(stderr, "usage: connrate [--seconds=T] server|PORT\n");
		return 2;
	}
	bench_bound_life();
	if (!strcmp(argv[optind], "server"))
		serve();
	port = (uint16_t)atoi(argv[optind]);
	warm = run(port, WARM_NS, &fast, &took);
	made = run(port, (uint64_t)(seconds * 1e9), &fast, &took);
	printf("{\"count\": %llu, \"with_warm_up\": %llu, \"conn_s\": %.1f, "
	       "\"fast_share\": %.3f}\n",
	       (unsigned long long)made, (unsigned long long)(warm + made),
	       (double)made / (double)took * 1e9, (double)fast / (double)made);
	return 0;
}
