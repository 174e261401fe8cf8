/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * libstress.h - what the stress programs share
 *
 * A stress program is one process with both ends of its connections, on many threads, which calls
 * the rsock_* API. Every case runs for about stress_ms() milliseconds (STRESS_MS, default 600), its
 * random choices come from STRESS_SEED, every byte is checked by value, and an alarm ends a program
 * that hangs.
 */
#ifndef TESTS_STRESS_LIBSTRESS_H
#define TESTS_STRESS_LIBSTRESS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct rng {
	uint64_t state;
};

/* ---- the program ---- */

/* Prints the plan and arms the alarm. */
void stress_begin(int points, unsigned int alarm_s);
/* In another process of the same test. */
void stress_join(uint64_t seed, unsigned int alarm_s);
/* One test point. Threads may have called stress_fail() before: then it is not ok. */
void stress_point(const char *name);
int stress_end(void);
/* Something is wrong: prints a line; the current point fails. Thread-safe. */
void stress_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
bool stress_failed(void);
/* A diagnostic line. */
void stress_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The test itself cannot go on. */
void stress_bail(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

/* For what only a defect makes late: the machine may stand still for seconds. */
#define STRESS_LONG_MS 30000

uint32_t stress_ms(void);
/* ms since some moment. */
uint64_t stress_now(void);

/* A random stream of its own for everyone who asks. */
struct rng rng_new(void);
uint64_t rng_next(struct rng *r);
/* 0 .. n - 1 */
uint32_t rng_below(struct rng *r, uint32_t n);
/* A length from 1 to max, small ones more often than large ones. */
size_t rng_size(struct rng *r, size_t max);

/* ---- data ---- */

/* The bytes at offsets [at, at + n) of pattern `id`. */
void pattern_fill(uint64_t id, uint64_t at, void *buf, size_t n);
bool pattern_check(uint64_t id, uint64_t at, const void *buf, size_t n);

/* ---- sockets ---- */

/* A listener on 127.0.0.1. */
int stress_listen(uint16_t *port);
int stress_connect(uint16_t port);
/* Accepts, and shows that it is this process which has the connection. -1: errno. */
int stress_accept(int listener);
/* Both ends of a new connection through `listener`: fds[0] connected, fds[1] accepted. */
void stress_pair(int listener, uint16_t port, int fds[2]);
void stress_nonblock(int fd);
/* Waits until both directions of `fd` are on the fast path. */
bool stress_wait_fast(int fd, uint32_t ms);
/* How many descriptors this process has; with `target`, after waiting `ms` for so few. */
uint32_t stress_fds(uint32_t target, uint32_t ms);
/* Fails unless all slots of all links become free (5 s) once every connection is closed. */
void stress_slots(void);
pthread_t stress_thread(void *(*run)(void *arg), void *arg);

/* ---- one end of a connection that sends and receives a known amount ---- */

struct end {
	int fd;
	uint64_t tx_id, rx_id;
	uint64_t tx, tx_total;
	uint64_t rx, rx_total;
	bool shut, eof, fast;
	bool left; /* bytes were sent on the fast path, and later ones on TCP */
	struct rng rng;
};

/* Ends a (of fds[0]) and b (of fds[1]) with totals of up to `max` bytes. */
void end_pair(struct end *a, struct end *b, const int fds[2], uint64_t max);
#define END_AGAIN 0 /* the call would block */
#define END_MORE 1 /* it did something */
#define END_OVER 2 /* nothing is left to do in that direction */
/* One send or recv with random size; checks, counts, shuts down after the last byte. */
int end_send(struct end *e);
int end_recv(struct end *e);
static inline bool end_over(const struct end *e)
{
	return e->shut && e->eof;
}

#endif
