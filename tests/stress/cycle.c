/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * cycle.c - connections that leave the fast path and come back, again and again, while bytes move
 */
#pragma GCC diagnostic ignored "-Wnested-externs"
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "rsock/rsock.h"
#include "tests/stress/libstress.h"

#define CONNS 3
#define FAST (1 | 1 << 4)
#define MOST 100000

enum style { BLOCKING, POLLS, LEVEL, EDGE };

static int listener;
static uint16_t port;
static bool over; /* the meddlers have done enough */
static uint32_t times; /* that one was fast */

/* One direction of one end, used by one thread. */
struct side {
	int fd, set;
	enum style style;
	uint64_t id, at;
	struct rng rng;
	uint8_t buf[MOST];
};

static void side_open(struct side *s, int fd, enum style style, uint64_t id)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLOUT | EPOLLET };

	s->fd = fd;
	s->set = -1;
	s->style = style;
	s->id = id;
	s->at = 0;
	s->rng = rng_new();
	if (style < LEVEL)
		return;
	if (style == LEVEL)
		ev.events = 0;
	s->set = rsock_epoll_create1(0);
	if (s->set < 0 || rsock_epoll_ctl(s->set, EPOLL_CTL_ADD, fd, &ev) != 0)
		stress_bail("epoll: %s", strerror(errno));
}

static void side_close(struct side *s)
{
	if (s->set >= 0)
		rsock_close(s->set);
}

/* After EAGAIN. */
static void wait_for(struct side *s, short events)
{
	struct pollfd p = { s->fd, events, 0 };
	struct epoll_event ev = { .events = (uint32_t)events };
	int n;

	if (s->style == LEVEL && rsock_epoll_ctl(s->set, EPOLL_CTL_MOD, s->fd, &ev) != 0)
		stress_fail("EPOLL_CTL_MOD: %s", strerror(errno));
	n = s->style == POLLS ? rsock_poll(&p, 1, STRESS_LONG_MS)
			      : rsock_epoll_wait(s->set, &ev, 1, STRESS_LONG_MS);
	if (n != 1)
		stress_fail("%s: no %s event", s->style == POLLS ? "poll" : "epoll",
			    events & POLLIN ? "input" : "output");
}

static bool send_some(struct side *s, size_t n)
{
	size_t done = 0;

	pattern_fill(s->id, s->at, s->buf, n);
	while (done < n && !stress_failed()) {
		ssize_t r = rsock_send(s->fd, s->buf + done, n - done, 0);

		if (r > 0)
			done += (size_t)r;
		else if (errno == EAGAIN && s->style != BLOCKING)
			wait_for(s, POLLOUT);
		else
			stress_fail("send: %zd %s", r, strerror(errno));
	}
	s->at += done;
	return !stress_failed();
}

/* Bytes; 0: the end. */
static size_t recv_some(struct side *s, size_t most)
{
	while (!stress_failed()) {
		ssize_t r = rsock_recv(s->fd, s->buf, most, 0);

		if (r < 0 && errno == EAGAIN && s->style != BLOCKING) {
			wait_for(s, POLLIN);
			continue;
		}
		if (r < 0)
			stress_fail("recv at %llu: %s", (unsigned long long)s->at, strerror(errno));
		if (r <= 0)
			return 0;
		if (!pattern_check(s->id, s->at, s->buf, (size_t)r))
			stress_fail("wrong bytes at %llu + %zd", (unsigned long long)s->at, r);
		s->at += (size_t)r;
		return (size_t)r;
	}
	return 0;
}

struct conn {
	int fds[2];
	struct side side[2][2]; /* of each end: what it sends, what it receives */
};

/* Sends until all is over; what comes in meanwhile another thread takes. */
static void *flood(void *arg)
{
	struct side *s = arg;

	while (!__atomic_load_n(&over, __ATOMIC_SEQ_CST) && send_some(s, rng_size(&s->rng, MOST)))
		if (rng_below(&s->rng, 16) == 0) /* who enters has to read in time what TCP holds */
			usleep(rng_below(&s->rng, 5000));
	if (rsock_shutdown(s->fd, SHUT_WR) != 0)
		stress_fail("shutdown: %s", strerror(errno));
	return NULL;
}

static void *take(void *arg)
{
	struct side *s = arg;

	while (recv_some(s, rng_size(&s->rng, MOST)))
		;
	return NULL;
}

/* Asks, and waits for all of the answer; sometimes it rests, so that both ends sleep. */
static void *ask(void *arg)
{
	struct side *s = arg; /* [0] sends, [1] receives */

	while (!__atomic_load_n(&over, __ATOMIC_SEQ_CST) && !stress_failed()) {
		size_t n = rng_size(&s->rng, MOST), got = 0, k = 1;

		if (!send_some(&s[0], n))
			break;
		for (; got < n && k; got += k)
			k = recv_some(&s[1], n - got);
		if (rng_below(&s->rng, 64) == 0)
			usleep(rng_below(&s->rng, 3000));
	}
	if (rsock_shutdown(s->fd, SHUT_WR) != 0)
		stress_fail("shutdown: %s", strerror(errno));
	if (recv_some(&s[1], 1))
		stress_fail("more came than was sent");
	return NULL;
}

static void *answer(void *arg)
{
	struct side *s = arg;
	size_t n;

	while ((n = recv_some(&s[1], MOST)))
		send_some(&s[0], n);
	rsock_shutdown(s->fd, SHUT_WR);
	return NULL;
}

/* Takes it off the fast path each time that it is there. */
static void *meddle(void *arg)
{
	struct conn *c = arg;
	struct rng r = rng_new();

	while (!__atomic_load_n(&over, __ATOMIC_SEQ_CST) && !stress_failed()) {
		uint64_t end = stress_now() + STRESS_LONG_MS;

		while ((rsock_fd_path(c->fds[0]) != FAST || rsock_fd_path(c->fds[1]) != FAST) &&
		       !stress_failed()) {
			if (__atomic_load_n(&over, __ATOMIC_SEQ_CST))
				return NULL;
			if (stress_now() > end)
				stress_fail("it does not come back: paths %x, %x",
					    (unsigned int)rsock_fd_path(c->fds[0]),
					    (unsigned int)rsock_fd_path(c->fds[1]));
			usleep(200);
		}
		__atomic_fetch_add(&times, 1, __ATOMIC_SEQ_CST);
		if (rng_below(&r, 2))
			usleep(rng_below(&r, 2000));
		/* Either end, seldom both. */
		if (rng_below(&r, 4))
			rsock_fd_renew(c->fds[0]);
		if (rng_below(&r, 4) == 0)
			rsock_fd_renew(c->fds[1]);
		usleep(500);
	}
	return NULL;
}

static void cycle(const char *name, enum style style, bool floods)
{
	static struct conn conn[CONNS];
	pthread_t t[CONNS][5];
	uint64_t bytes = 0, end = stress_now() + stress_ms(), last = end + STRESS_LONG_MS;

	times = 0;
	__atomic_store_n(&over, false, __ATOMIC_SEQ_CST);
	for (size_t i = 0; i < CONNS; i++) {
		struct conn *c = &conn[i];

		stress_pair(listener, port, c->fds);
		if (!stress_wait_fast(c->fds[0], STRESS_LONG_MS))
			stress_fail("it does not become fast");
		for (size_t e = 0; e < 2; e++) {
			if (style != BLOCKING)
				stress_nonblock(c->fds[e]);
			for (size_t d = 0; d < 2; d++) /* an answer is what was asked */
				side_open(&c->side[e][d], c->fds[e], style, floods ? e ^ d : 0);
		}
		t[i][0] = stress_thread(floods ? flood : ask, c->side[0]);
		t[i][1] = stress_thread(floods ? flood : answer, c->side[1]);
		if (floods) {
			t[i][2] = stress_thread(take, &c->side[0][1]);
			t[i][3] = stress_thread(take, &c->side[1][1]);
		}
		t[i][4] = stress_thread(meddle, c);
	}
	/* Each once more than at the beginning, whatever the machine is busy with. */
	while (!stress_failed() &&
	       (stress_now() < end ||
		(__atomic_load_n(&times, __ATOMIC_SEQ_CST) < 2 * CONNS && stress_now() < last)))
		usleep(10000);
	__atomic_store_n(&over, true, __ATOMIC_SEQ_CST);
	for (size_t i = 0; i < CONNS; i++) {
		struct conn *c = &conn[i];

		for (size_t k = 0; k < 5; k++)
			if (floods || k < 2 || k == 4)
				pthread_join(t[i][k], NULL);
		for (size_t e = 0; e < 2; e++) {
			if (c->side[e][0].at != c->side[1 - e][1].at)
				stress_fail("%llu bytes sent, %llu received",
					    (unsigned long long)c->side[e][0].at,
					    (unsigned long long)c->side[1 - e][1].at);
			bytes += c->side[e][0].at;
			side_close(&c->side[e][0]);
			side_close(&c->side[e][1]);
		}
		rsock_close(c->fds[0]);
		rsock_close(c->fds[1]);
	}
	if (times < 2 * CONNS)
		stress_fail("on the fast path %u times only", times);
	stress_note("%u times fast, %llu MB", times, (unsigned long long)bytes / 1000000);
	stress_slots();
	stress_point(name);
}

int main(void)
{
	stress_begin(6, 170);
	listener = stress_listen(&port);
	cycle("blocking calls", BLOCKING, false);
	cycle("poll", POLLS, false);
	cycle("epoll", LEVEL, false);
	cycle("edge-triggered epoll", EDGE, false);
	cycle("both directions full, blocking", BLOCKING, true);
	cycle("both directions full, edge-triggered epoll", EDGE, true);
	rsock_close(listener);
	return stress_end();
}
