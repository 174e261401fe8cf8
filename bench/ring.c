/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * ring.c - the roofline: a plain ring in shared memory between two processes, no sockets
 *
 *   ring [--pingpong=S,S] [--stream=S,S] [--seconds=T] CPU CPU
 *
 * One writer, one reader, a head, a tail, the data copied in and out; both sides spin. This is what
 * the machine can do when nobody asks the kernel and nobody keeps TCP's promises. Its JSON lines
 * are those of pingpong and stream.
 */
#include <getopt.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/libbench.h"

#define RING_SIZE ((size_t)1 << 17)
#define CHUNK ((size_t)1 << 13) /* published at a time, so that both sides copy at once */
#define READ_SIZE ((size_t)1 << 17)
#define MAX_SAMPLES ((size_t)1 << 20)
#define MAX_MESSAGE ((size_t)1 << 22)
#define LINE 128 /* two lines: the prefetcher fetches pairs */

struct ring {
	alignas(LINE) _Atomic uint64_t tail; /* bytes written */
	alignas(LINE) _Atomic uint64_t head; /* bytes read */
	alignas(4096) char data[RING_SIZE];
};

struct shared {
	struct ring there, back;
	_Atomic uint64_t server_cpu_ns;
};

/* One side's view of a ring: its own index and the last seen value of the other's. */
struct end {
	struct ring *ring;
	uint64_t mine, theirs;
};

enum kind { PINGPONG, STREAM };

static size_t min(size_t a, size_t b)
{
	return a < b ? a : b;
}

static void put(struct end *e, const void *buf, size_t len)
{
	const char *p = buf;

	while (len) {
		size_t at = e->mine % RING_SIZE, room;

		while (!(room = RING_SIZE - (e->mine - e->theirs)))
			e->theirs = atomic_load_explicit(&e->ring->head, memory_order_acquire);
		room = min(min(room, RING_SIZE - at), min(len, CHUNK));
		memcpy(e->ring->data + at, p, room);
		e->mine += room;
		atomic_store_explicit(&e->ring->tail, e->mine, memory_order_release);
		p += room;
		len -= room;
	}
}

static size_t get_some(struct end *e, void *buf, size_t len)
{
	size_t at = e->mine % RING_SIZE, have;

	while (!(have = e->theirs - e->mine))
		e->theirs = atomic_load_explicit(&e->ring->tail, memory_order_acquire);
	have = min(min(have, RING_SIZE - at), min(len, CHUNK));
	memcpy(buf, e->ring->data + at, have);
	e->mine += have;
	atomic_store_explicit(&e->ring->head, e->mine, memory_order_release);
	return have;
}

static void get(struct end *e, void *buf, size_t len)
{
	char *p = buf;

	while (len) {
		size_t n = get_some(e, p, len);

		p += n;
		len -= n;
	}
}

static void serve(struct shared *s, enum kind kind)
{
	struct end in = { .ring = &s->there }, out = { .ring = &s->back };
	void *buf = bench_alloc(MAX_MESSAGE);
	struct bench_batch b;

	for (;;) {
		get(&in, &b, sizeof(b));
		if (b.count == 0)
			return;
		if (kind == PINGPONG) {
			while (b.count--) {
				get(&in, buf, b.size);
				put(&out, buf, b.size);
			}
			continue;
		}
		uint64_t cpu = bench_cpu_ns();

		for (uint64_t left = b.count * b.size; left;)
			left -= get_some(&in, buf, min(left, READ_SIZE));
		atomic_store(&s->server_cpu_ns, bench_cpu_ns() - cpu);
		put(&out, "", 1);
	}
}

static uint64_t pingpong_batch(struct end *out, struct end *in, void *buf, size_t size,
			       uint64_t count, uint32_t *samples)
{
	struct bench_batch b = { .count = count, .size = size };
	uint64_t start, then, now;

	put(out, &b, sizeof(b));
	start = bench_now_ns();
	then = bench_ticks();
	for (uint64_t i = 0; i < count; i++) {
		put(out, buf, size);
		get(in, buf, size);
		now = bench_ticks();
		samples[i] = (uint32_t)(now - then);
		then = now;
	}
	return bench_now_ns() - start;
}

static void pingpong(struct end *out, struct end *in, size_t size, uint64_t want)
{
	uint32_t *samples = bench_alloc(MAX_SAMPLES * sizeof(*samples));
	void *buf = bench_alloc(MAX_MESSAGE);
	uint64_t count = 1024, took, ticks;
	struct bench_latency l;

	took = pingpong_batch(out, in, buf, size, count, samples);
	count = bench_scale(count, took, want / 8) + 1;
	took = pingpong_batch(out, in, buf, size, min(count, MAX_SAMPLES), samples);
	count = bench_scale(min(count, MAX_SAMPLES), took, want);
	count = min(count, MAX_SAMPLES);
	ticks = bench_ticks();
	took = pingpong_batch(out, in, buf, size, count, samples);
	ticks = bench_ticks() - ticks;
	l = bench_latency(samples, count, ticks, took);
	bench_print_latency(size, count, &l, -1);
	free(samples);
	free(buf);
}

static uint64_t stream_batch(struct end *out, struct end *in, const void *buf, size_t size,
			     uint64_t count)
{
	struct bench_batch b = { .count = count, .size = size };
	uint64_t start = bench_now_ns();
	char done;

	put(out, &b, sizeof(b));
	while (count--)
		put(out, buf, size);
	get(in, &done, 1);
	return bench_now_ns() - start;
}

static void stream(struct shared *s, struct end *out, struct end *in, size_t size, uint64_t want)
{
	void *buf = bench_alloc(MAX_MESSAGE);
	uint64_t count = 64, took, cpu;

	while ((took = stream_batch(out, in, buf, size, count)) < want / 8)
		count *= 2;
	count = bench_scale(count, took, want);
	cpu = bench_cpu_ns();
	took = stream_batch(out, in, buf, size, count);
	cpu = bench_cpu_ns() - cpu + atomic_load(&s->server_cpu_ns);
	bench_print_stream(size, count, took, cpu, -1);
	free(buf);
}

static void run(enum kind kind, const struct bench_sizes *sizes, const int cpus[2], uint64_t want)
{
	struct shared *s = mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	struct bench_batch end = { 0 };
	struct end out, in;
	pid_t pid;

	if (s == MAP_FAILED)
		bench_die("mmap");
	out = (struct end){ .ring = &s->there };
	in = (struct end){ .ring = &s->back };
	pid = fork();
	if (pid < 0)
		bench_die("fork");
	if (pid == 0) {
		bench_bound_life();
		bench_pin(cpus[0]);
		serve(s, kind);
		_exit(0);
	}
	bench_pin(cpus[1]);
	for (size_t i = 0; i < sizes->n; i++) {
		if (kind == PINGPONG)
			pingpong(&out, &in, sizes->v[i], want);
		else
			stream(s, &out, &in, sizes->v[i], want);
	}
	put(&out, &end, sizeof(end));
	waitpid(pid, NULL, 0);
	munmap(s, sizeof(*s));
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "pingpong", required_argument, NULL, 'p' },
						 { "stream", required_argument, NULL, 's' },
						 { "seconds", required_argument, NULL, 't' },
						 { 0 } };
	struct bench_sizes pp = { 0 }, st = { 0 };
	double seconds = 0.2;
	int opt, cpus[2];

	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (opt == 'p')
			pp = bench_parse_sizes(optarg);
		else if (opt == 's')
			st = bench_parse_sizes(optarg);
		else if (opt == 't')
			seconds = atof(optarg);
		else
			return 2;
	}
	if (optind + 2 != argc || bench_max_size(&pp) > MAX_MESSAGE ||
	    bench_max_size(&st) > MAX_MESSAGE) {
		fprintf(stderr,
			"usage: ring [--pingpong=S,...] [--stream=S,...] [--seconds=T] CPU CPU\n");
		return 2;
	}
	bench_bound_life();
	cpus[0] = atoi(argv[optind]);
	cpus[1] = atoi(argv[optind + 1]);
	if (pp.n)
		run(PINGPONG, &pp, cpus, (uint64_t)(seconds * 1e9));
	if (st.n)
		run(STREAM, &st, cpus, (uint64_t)(seconds * 1e9));
	return 0;
}
