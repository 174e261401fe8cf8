/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * transfer.c - full-duplex transfers in every way of waiting, both ends in one process
 */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rsock/rsock.h"
#include "tests/stress/libstress.h"

#define CONNS 6
#define WORKERS 2
#define MAX_BYTES ((uint64_t)3 << 20)

enum mode { BLOCK, POLL, SELECT, LEVEL, EDGE, ONESHOT };

struct side {
	enum mode mode;
	struct end *ends;
	pthread_mutex_t lock[CONNS]; /* EDGE: two workers may hear of the same end */
	int epfd;
	uint32_t over;
};

/* ---- blocking: a thread for each direction ---- */

static void *send_all(void *arg)
{
	while (end_send(arg) != END_OVER)
		;
	return NULL;
}

static void *recv_all(void *arg)
{
	while (end_recv(arg) != END_OVER)
		;
	return NULL;
}

static void *run_block(void *arg)
{
	struct side *s = arg;
	struct end halves[CONNS];
	pthread_t t[2 * CONNS];

	/* The threads share the descriptor, and nothing else. */
	for (size_t i = 0; i < CONNS; i++) {
		halves[i] = s->ends[i];
		halves[i].rng = rng_new();
		t[2 * i] = stress_thread(send_all, &s->ends[i]);
		t[2 * i + 1] = stress_thread(recv_all, &halves[i]);
	}
	for (size_t i = 0; i < 2 * CONNS; i++)
		pthread_join(t[i], NULL);
	return NULL;
}

/* ---- poll, select ---- */

static void turn(struct end *e, bool in, bool out)
{
	if (in)
		end_recv(e);
	if (out)
		end_send(e);
}

static void *run_poll(void *arg)
{
	struct side *s = arg;

	for (;;) {
		struct pollfd p[CONNS];
		size_t open = 0;
		int r;

		for (size_t i = 0; i < CONNS; i++) {
			struct end *e = &s->ends[i];

			p[i] = (struct pollfd){ .fd = end_over(e) ? -1 : e->fd };
			p[i].events = (short)((e->eof ? 0 : POLLIN) | (e->shut ? 0 : POLLOUT));
			open += !end_over(e);
		}
		if (!open)
			return NULL;
		r = rsock_poll(p, CONNS, -1);
		if (r <= 0) {
			stress_fail("poll: %d %s", r, strerror(errno));
			return NULL;
		}
		for (size_t i = 0; i < CONNS; i++)
			if (p[i].revents & POLLNVAL)
				stress_fail("POLLNVAL");
			else if (p[i].revents)
				turn(&s->ends[i], p[i].revents & (POLLIN | POLLHUP | POLLERR),
				     p[i].revents & POLLOUT);
	}
}

static void *run_select(void *arg)
{
	struct side *s = arg;

	for (;;) {
		fd_set in, out;
		int max = -1, r;

		FD_ZERO(&in);
		FD_ZERO(&out);
		for (size_t i = 0; i < CONNS; i++) {
			struct end *e = &s->ends[i];

			if (!e->eof)
				FD_SET(e->fd, &in);
			if (!e->shut)
				FD_SET(e->fd, &out);
			if (!end_over(e) && e->fd > max)
				max = e->fd;
		}
		if (max < 0)
			return NULL;
		r = rsock_select(max + 1, &in, &out, NULL, NULL);
		if (r <= 0) {
			stress_fail("select: %d %s", r, strerror(errno));
			return NULL;
		}
		for (size_t i = 0; i < CONNS; i++)
			turn(&s->ends[i], FD_ISSET(s->ends[i].fd, &in),
			     FD_ISSET(s->ends[i].fd, &out));
	}
}

/* ---- epoll ---- */

static uint32_t wanted(const struct side *s, const struct end *e)
{
	uint32_t ev = 0;

	if (s->mode == EDGE)
		return EPOLLIN | EPOLLOUT | EPOLLET | EPOLLRDHUP;
	if (!e->eof)
		ev |= EPOLLIN;
	if (!e->shut)
		ev |= EPOLLOUT;
	return ev | (s->mode == ONESHOT ? EPOLLONESHOT : 0);
}

static void rearm(struct side *s, size_t i, int op)
{
	struct epoll_event ev = { .events = wanted(s, &s->ends[i]), .data.u64 = i };

	if (rsock_epoll_ctl(s->epfd, op, s->ends[i].fd, &ev) != 0)
		stress_fail("epoll_ctl %d: %s", op, strerror(errno));
}

static void epoll_turn(struct side *s, size_t i, uint32_t events)
{
	struct end *e = &s->ends[i];
	bool was_over, was_shut, was_eof;

	pthread_mutex_lock(&s->lock[i]);
	was_over = end_over(e);
	was_shut = e->shut;
	was_eof = e->eof;
	if (was_over)
		goto out;
	if (s->mode == EDGE) {
		/* To the end, as who is told of edges must. */
		while (end_recv(e) == END_MORE)
			;
		while (end_send(e) == END_MORE)
			;
	} else {
		turn(e, events & (EPOLLIN | EPOLLHUP | EPOLLERR), events & EPOLLOUT);
		if (end_over(e)) {
			if (rsock_epoll_ctl(s->epfd, EPOLL_CTL_DEL, e->fd, NULL) != 0)
				stress_fail("epoll_ctl del: %s", strerror(errno));
		} else if (s->mode == ONESHOT || was_shut != e->shut || was_eof != e->eof) {
			rearm(s, i, EPOLL_CTL_MOD);
		}
	}
	if (end_over(e))
		__atomic_fetch_add(&s->over, 1, __ATOMIC_SEQ_CST);
out:
	pthread_mutex_unlock(&s->lock[i]);
}

static void *epoll_worker(void *arg)
{
	struct side *s = arg;

	while (__atomic_load_n(&s->over, __ATOMIC_SEQ_CST) < CONNS) {
		struct epoll_event ev[4];
		/* The worker that ends the last connection does not wake the others. */
		int r = rsock_epoll_wait(s->epfd, ev, 4, s->mode == LEVEL ? -1 : 100);

		if (r < 0) {
			stress_fail("epoll_wait: %s", strerror(errno));
			return NULL;
		}
		for (int i = 0; i < r; i++) {
			if (ev[i].data.u64 >= CONNS)
				stress_fail("foreign event %llx",
					    (unsigned long long)ev[i].data.u64);
			else
				epoll_turn(s, ev[i].data.u64, ev[i].events);
		}
	}
	return NULL;
}

static void *run_epoll(void *arg)
{
	struct side *s = arg;
	pthread_t t[WORKERS];
	size_t n = s->mode == LEVEL ? 1 : WORKERS;

	s->over = 0;
	s->epfd = rsock_epoll_create1(EPOLL_CLOEXEC);
	for (size_t i = 0; i < CONNS; i++)
		rearm(s, i, EPOLL_CTL_ADD);
	for (size_t i = 0; i < n; i++)
		t[i] = stress_thread(epoll_worker, s);
	for (size_t i = 0; i < n; i++)
		pthread_join(t[i], NULL);
	rsock_close(s->epfd);
	return NULL;
}

/* ---- cases ---- */

static void *(*const runs[])(void *arg) = { run_block, run_poll,  run_select,
					    run_epoll, run_epoll, run_epoll };

static void transfer(const char *name, enum mode client, enum mode server)
{
	uint64_t end = stress_now() + stress_ms(), bytes = 0;
	struct end ends[2][CONNS];
	struct side sides[2];
	uint32_t conns = 0, fast = 0;
	uint16_t port;
	int listener = stress_listen(&port);

	sides[0].mode = client;
	sides[1].mode = server;
	for (size_t i = 0; i < CONNS; i++) {
		pthread_mutex_init(&sides[0].lock[i], NULL);
		pthread_mutex_init(&sides[1].lock[i], NULL);
	}
	do {
		pthread_t t[2];

		for (size_t i = 0; i < CONNS; i++) {
			int fds[2];

			stress_pair(listener, port, fds);
			if (client != BLOCK)
				stress_nonblock(fds[0]);
			if (server != BLOCK)
				stress_nonblock(fds[1]);
			if (i % 2)
				stress_wait_fast(fds[0], 2000);
			end_pair(&ends[0][i], &ends[1][i], fds, MAX_BYTES);
		}
		for (size_t i = 0; i < 2; i++) {
			sides[i].ends = ends[i];
			t[i] = stress_thread(runs[sides[i].mode], &sides[i]);
		}
		for (size_t i = 0; i < 2; i++)
			pthread_join(t[i], NULL);
		for (size_t i = 0; i < CONNS; i++) {
			fast += ends[0][i].fast;
			fast += ends[1][i].fast;
			bytes += ends[0][i].tx + ends[1][i].tx;
			conns++;
			rsock_close(ends[i % 2][i].fd);
			rsock_close(ends[1 - i % 2][i].fd);
		}
	} while (stress_now() < end && !stress_failed());
	rsock_close(listener);
	for (size_t i = 0; i < CONNS; i++) {
		pthread_mutex_destroy(&sides[0].lock[i]);
		pthread_mutex_destroy(&sides[1].lock[i]);
	}
	if (!fast)
		stress_fail("no stream was ever on the fast path");
	stress_note("%u connections, %u of %u directions fast, %llu MiB", conns, fast, 2 * conns,
		    (unsigned long long)(bytes >> 20));
	stress_slots();
	stress_point(name);
}

/* ---- by turns ---- */

#define TURN_BYTES ((size_t)24 << 20)
#define TURN 8192

/*
 * Sends some, receives some if there is any, and so on, as netcat does. Two of these go on for ever as long
 * as what has been sent can be seen: whatever one sends then, it has received as much before.
 */
static void *by_turns(void *arg)
{
	struct pollfd p = { .fd = *(int *)arg, .events = POLLIN };
	size_t sent = 0, received = 0;
	uint8_t buf[TURN];
	ssize_t r = 1;

	memset(buf, 0, sizeof(buf));
	while (r > 0 && (sent < TURN_BYTES || received < TURN_BYTES)) {
		if (received < TURN_BYTES && (sent == TURN_BYTES || rsock_poll(&p, 1, 0) > 0)) {
			r = rsock_recv(p.fd, buf, sizeof(buf), 0);
			received += r > 0 ? (size_t)r : 0;
		}
		if (r > 0 && sent < TURN_BYTES) {
			r = rsock_send(p.fd, buf, sizeof(buf), 0);
			sent += r > 0 ? (size_t)r : 0;
		}
	}
	if (r <= 0)
		stress_fail("%s after %zu sent, %zu received", strerror(errno), sent, received);
	rsock_close(p.fd);
	return NULL;
}

/* On one CPU, so that one runs for long while the other, and all control threads, wait. */
static void turns(void)
{
	uint64_t end = stress_now() + 2 * stress_ms();
	uint32_t conns = 0;
	cpu_set_t before, one;
	uint16_t port;
	int listener = stress_listen(&port);

	sched_getaffinity(0, sizeof(before), &before);
	CPU_ZERO(&one);
	for (size_t i = 0; i < CPU_SETSIZE && !CPU_COUNT(&one); i++)
		if (CPU_ISSET(i, &before))
			CPU_SET(i, &one);
	sched_setaffinity(0, sizeof(one), &one);
	while (stress_now() < end && !stress_failed()) {
		pthread_t t[2];
		int fds[2];

		stress_pair(listener, port, fds);
		for (size_t i = 0; i < 2; i++)
			t[i] = stress_thread(by_turns, &fds[i]);
		for (size_t i = 0; i < 2; i++)
			pthread_join(t[i], NULL);
		conns++;
	}
	sched_setaffinity(0, sizeof(before), &before);
	rsock_close(listener);
	stress_note("%u connections", conns);
	stress_slots();
	stress_point("both ends block in turn");
}

int main(void)
{
	stress_begin(9, 120);
	transfer("blocking threads on both ends", BLOCK, BLOCK);
	transfer("poll on both ends", POLL, POLL);
	transfer("select against blocking threads", SELECT, BLOCK);
	transfer("epoll level against poll", LEVEL, POLL);
	transfer("epoll level on both ends", LEVEL, LEVEL);
	transfer("epoll edge on both ends", EDGE, EDGE);
	transfer("epoll one-shot on both ends", ONESHOT, ONESHOT);
	transfer("epoll edge against blocking threads", BLOCK, EDGE);
	turns();
	return stress_end();
}
