/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * paths.c - connections that change paths and descriptors while bytes move: leaving for TCP, dup,
 * descriptors closed while a duplicate goes on
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "rsock/rsock.h"
#include "tests/stress/libstress.h"

#define CONNS 4

static int listener;
static uint16_t port;

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

/* Somebody who disturbs: `fds` of both ends, `what` to do with them. */
struct meddler {
	int fds[2];
	void (*what)(struct meddler *m);
	bool over;
	struct rng rng;
	uint32_t count;
};

static void *meddle(void *arg)
{
	struct meddler *m = arg;

	usleep(rng_below(&m->rng, 3000));
	while (!__atomic_load_n(&m->over, __ATOMIC_SEQ_CST))
		m->what(m);
	return NULL;
}

static void leave_once(struct meddler *m)
{
	int fd = m->fds[rng_below(&m->rng, 2)];

	if (!m->count++ && rsock_fd_leave(fd) != 0)
		stress_fail("leave: %s", strerror(errno));
	usleep(200);
}

static void leave_both(struct meddler *m)
{
	if (m->count == 2)
		usleep(200);
	else if (rsock_fd_leave(m->fds[m->count++]) != 0)
		stress_fail("leave: %s", strerror(errno));
}

/* What needs the kernel makes the stream leave with everything that was not consumed. */
static void exotic(struct meddler *m)
{
	int fd = m->fds[rng_below(&m->rng, 2)], on = 1;

	if (m->count++)
		usleep(200);
	else if (rsock_setsockopt(fd, SOL_SOCKET, SO_TIMESTAMP, &on, sizeof(on)) != 0)
		stress_fail("SO_TIMESTAMP: %s", strerror(errno));
}

static void duplicate(struct meddler *m)
{
	int fd = rsock_dup(m->fds[rng_below(&m->rng, 2)]), other;

	if (fd < 0) {
		stress_fail("dup: %s", strerror(errno));
		return;
	}
	other = rsock_fcntl(fd, F_DUPFD_CLOEXEC, 100);
	if (rng_below(&m->rng, 2))
		usleep(rng_below(&m->rng, 300));
	rsock_close(fd);
	rsock_close(other);
	m->count++;
}

static void look(struct meddler *m)
{
	struct pollfd p[2] = { { m->fds[0], POLLIN | POLLOUT, 0 }, { m->fds[1], POLLIN, 0 } };
	int n, e;
	socklen_t len = sizeof(e);

	rsock_poll(p, 2, (int)rng_below(&m->rng, 2));
	rsock_ioctl(m->fds[0], FIONREAD, &n);
	rsock_getsockopt(m->fds[1], SOL_SOCKET, SO_ERROR, &e, &len);
	if (e)
		stress_fail("SO_ERROR %s", strerror(e));
	rsock_fd_path(m->fds[0]);
	m->count++;
}

static void disturbed(const char *name, void (*what)(struct meddler *m), bool leaves)
{
	const uint64_t bytes = (uint64_t)2 << 20;
	uint64_t end = stress_now() + stress_ms(), last = end + 10000;
	uint32_t conns = 0, fast = 0, left = 0, count = 0;
	struct rng r = rng_new();

	do {
		struct end a[CONNS], b[CONNS], a_rx[CONNS], b_rx[CONNS];
		struct meddler m[CONNS];
		pthread_t t[CONNS][5];

		for (size_t i = 0; i < CONNS; i++) {
			int fds[2];

			stress_pair(listener, port, fds);
			if (rng_below(&r, 3))
				stress_wait_fast(fds[0], 2000);
			end_pair(&a[i], &b[i], fds, bytes);
			a_rx[i] = a[i];
			b_rx[i] = b[i];
			a_rx[i].rng = rng_new();
			b_rx[i].rng = rng_new();
			m[i] = (struct meddler){ .fds = { fds[0], fds[1] },
						 .what = what,
						 .rng = rng_new() };
		}
		for (size_t i = 0; i < CONNS; i++) {
			t[i][0] = stress_thread(send_all, &a[i]);
			t[i][1] = stress_thread(send_all, &b[i]);
			t[i][2] = stress_thread(recv_all, &a_rx[i]);
			t[i][3] = stress_thread(recv_all, &b_rx[i]);
			t[i][4] = stress_thread(meddle, &m[i]);
		}
		for (size_t i = 0; i < CONNS; i++) {
			for (size_t k = 0; k < 4; k++)
				pthread_join(t[i][k], NULL);
			__atomic_store_n(&m[i].over, true, __ATOMIC_SEQ_CST);
			pthread_join(t[i][4], NULL);
			fast += a[i].fast;
			fast += b[i].fast;
			left += a[i].left;
			left += b[i].left;
			count += m[i].count;
			rsock_close(a[i].fd);
			rsock_close(b[i].fd);
			conns++;
		}
		if (leaves && !left && stress_now() >= end && stress_now() < last)
			end = stress_now() + 1; /* chance has kept them all so far */
	} while (stress_now() < end && !stress_failed());
	if (!fast)
		stress_fail("no stream was ever on the fast path");
	if (!count)
		stress_fail("nobody was ever disturbed");
	if (leaves && !left)
		stress_fail("no stream ever left the fast path while bytes moved");
	stress_note("%u connections, %u of %u directions fast, %u left, disturbed %u times", conns,
		    fast, 2 * conns, left, count);
	stress_slots();
	stress_point(name);
}

/* The descriptor under which the transfer began is closed; a duplicate carries on. */
static void moved(void)
{
	uint64_t end = stress_now() + stress_ms();
	uint32_t conns = 0, fast = 0;
	struct rng r = rng_new();

	do {
		struct end a, b;
		pthread_t t;
		int fds[2];

		stress_pair(listener, port, fds);
		if (rng_below(&r, 3))
			stress_wait_fast(fds[0], 2000);
		end_pair(&a, &b, fds, 200000);
		/* One direction only. */
		b.tx_total = a.rx_total = 0;
		t = stress_thread(recv_all, &b);
		while (end_send(&a) != END_OVER) {
			int to;

			if (rng_below(&r, 8))
				continue;
			if (rng_below(&r, 2)) {
				to = rsock_dup(a.fd);
			} else {
				to = rsock_socket(AF_INET, SOCK_STREAM, 0);
				if (rsock_dup2(a.fd, to) != to)
					stress_fail("dup2: %s", strerror(errno));
			}
			rsock_close(a.fd);
			a.fd = to;
		}
		pthread_join(t, NULL);
		fast += a.fast;
		rsock_close(a.fd);
		rsock_close(b.fd);
		conns++;
	} while (stress_now() < end && !stress_failed());
	if (!fast)
		stress_fail("no stream was ever on the fast path");
	stress_note("%u connections, %u fast", conns, fast);
	stress_slots();
	stress_point("descriptors that move");
}

/* One thread that holds both ends writes much before it reads anything. */
static void alone(void)
{
	static uint8_t out[1 << 20], in[1 << 20];
	uint64_t end = stress_now() + stress_ms();
	struct rng r = rng_new();
	uint32_t conns = 0, fast = 0;

	do {
		int fds[2], size = 4 << 20;
		size_t total = (size_t)256 << 10;

		fds[0] = stress_connect(port);
		rsock_setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
		fds[1] = stress_accept(listener);
		if (rng_below(&r, 3))
			stress_wait_fast(fds[0], 2000);
		for (size_t k = 0; k < 2; k++) {
			size_t at = 0;

			pattern_fill(conns, k, out, total);
			if (rsock_send(fds[k], out, total, 0) != (ssize_t)total)
				stress_fail("send: %s", strerror(errno));
			fast += rsock_fd_path(fds[k]) & 1;
			if (rng_below(&r, 4) == 0 && rsock_fd_leave(fds[rng_below(&r, 2)]) != 0)
				stress_fail("leave: %s", strerror(errno));
			while (at < total) {
				ssize_t n = rsock_recv(fds[1 - k], in + at, total - at, 0);

				if (n <= 0) {
					stress_fail("recv at %zu: %zd %s", at, n, strerror(errno));
					break;
				}
				at += (size_t)n;
			}
			if (memcmp(in, out, total) != 0)
				stress_fail("wrong bytes");
		}
		rsock_close(fds[0]);
		rsock_close(fds[1]);
		conns++;
	} while (stress_now() < end && !stress_failed());
	if (!fast)
		stress_fail("no stream was ever on the fast path");
	stress_note("%u connections, %u of %u directions fast", conns, fast, 2 * conns);
	stress_slots();
	stress_point("one thread with both ends");
}

int main(void)
{
	stress_begin(7, 110);
	listener = stress_listen(&port);
	disturbed("one end leaves in the middle", leave_once, true);
	disturbed("both ends leave in the middle", leave_both, true);
	disturbed("an option makes it leave", exotic, true);
	disturbed("duplicates come and go", duplicate, false);
	disturbed("somebody looks all the time", look, false);
	moved();
	alone();
	rsock_close(listener);
	return stress_end();
}
