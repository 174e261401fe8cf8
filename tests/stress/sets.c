/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * sets.c - epoll sets that change while others wait on them, polls, and listeners that come and go
 */
#include <errno.h>
#include <stdio.h>
#include <poll.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "rsock/rsock.h"
#include "rsock/shm.h"
#include "tests/stress/libstress.h"

#define CONNS 6
#define WORKERS 3
#define SETS 3

static int listener;
static uint16_t port;

/* ---- one set, many hands ---- */

struct shared {
	int epfd[SETS];
	struct end ends[CONNS];
	pthread_mutex_t lock[CONNS];
	uint32_t over;
	bool stop;
	uint32_t changes;
};

static void *worker(void *arg)
{
	struct shared *s = arg;
	struct rng r = rng_new();

	while (__atomic_load_n(&s->over, __ATOMIC_SEQ_CST) < CONNS) {
		struct epoll_event ev[8];
		int max = 1 + (int)rng_below(&r, 8);
		int n = rsock_epoll_wait(s->epfd[rng_below(&r, SETS)], ev, max,
					 (int)rng_below(&r, 4));

		if (n < 0) {
			stress_fail("epoll_wait: %s", strerror(errno));
			break;
		}
		for (int i = 0; i < n; i++) {
			uint64_t k = ev[i].data.u64;
			struct end *e = &s->ends[k % CONNS];

			if (k >= CONNS) {
				stress_fail("foreign event %llx", (unsigned long long)k);
				continue;
			}
			if (pthread_mutex_trylock(&s->lock[k]) != 0)
				continue; /* somebody else is at it: level-triggered */
			if (!end_over(e)) {
				end_recv(e);
				end_send(e);
				if (end_over(e))
					__atomic_fetch_add(&s->over, 1, __ATOMIC_SEQ_CST);
			}
			pthread_mutex_unlock(&s->lock[k]);
		}
	}
	return NULL;
}

/* Adds, changes and deletes all the time; at the end everything is in set 0. */
static void *changer(void *arg)
{
	struct shared *s = arg;
	struct rng r = rng_new();

	while (__atomic_load_n(&s->over, __ATOMIC_SEQ_CST) < CONNS) {
		static const int ops[] = { EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL };
		uint32_t i = rng_below(&r, CONNS), set = rng_below(&r, SETS);
		struct epoll_event ev = { .events = EPOLLIN | EPOLLOUT, .data.u64 = i };

		/* Set 0 keeps them all, or nobody would go on. */
		if (rsock_epoll_ctl(s->epfd[set], set ? ops[rng_below(&r, 3)] : EPOLL_CTL_MOD,
				    s->ends[i].fd, &ev) != 0 &&
		    errno != EEXIST && errno != ENOENT)
			stress_fail("epoll_ctl: %s", strerror(errno));
		__atomic_fetch_add(&s->changes, 1, __ATOMIC_RELAXED);
		if (rng_below(&r, 8) == 0)
			usleep(rng_below(&r, 200));
	}
	return NULL;
}

/* The other ends. */
static void *blocking(void *arg)
{
	struct end *e = arg;

	/* Sends and receives in turn: what comes is read before too much is on its way. */
	while (!end_over(e)) {
		struct pollfd p = { e->fd, 0, 0 };

		p.events = (short)((e->eof ? 0 : POLLIN) | (e->shut ? 0 : POLLOUT));
		if (rsock_poll(&p, 1, -1) != 1) {
			stress_fail("poll: %s", strerror(errno));
			break;
		}
		if (p.revents & (POLLIN | POLLHUP | POLLERR))
			end_recv(e);
		if (p.revents & POLLOUT)
			end_send(e);
	}
	return NULL;
}

static void many_hands(void)
{
	uint64_t end = stress_now() + stress_ms();
	uint32_t conns = 0, fast = 0, changes = 0;

	do {
		struct shared s = { .over = 0 };
		struct end other[CONNS];
		pthread_t w[WORKERS], o[CONNS], c[2];

		for (size_t i = 0; i < SETS; i++)
			s.epfd[i] = rsock_epoll_create1(EPOLL_CLOEXEC);
		for (size_t i = 0; i < CONNS; i++) {
			struct epoll_event ev = { .events = EPOLLIN | EPOLLOUT, .data.u64 = i };
			int fds[2];

			pthread_mutex_init(&s.lock[i], NULL);
			stress_pair(listener, port, fds);
			stress_nonblock(fds[0]);
			stress_nonblock(fds[1]);
			if (i % 2)
				stress_wait_fast(fds[0], 2000);
			end_pair(&s.ends[i], &other[i], fds, (uint64_t)1 << 20);
			rsock_epoll_ctl(s.epfd[0], EPOLL_CTL_ADD, fds[0], &ev);
		}
		for (size_t i = 0; i < CONNS; i++)
			o[i] = stress_thread(blocking, &other[i]);
		for (size_t i = 0; i < WORKERS; i++)
			w[i] = stress_thread(worker, &s);
		for (size_t i = 0; i < 2; i++)
			c[i] = stress_thread(changer, &s);
		for (size_t i = 0; i < CONNS; i++)
			pthread_join(o[i], NULL);
		for (size_t i = 0; i < WORKERS; i++)
			pthread_join(w[i], NULL);
		for (size_t i = 0; i < 2; i++)
			pthread_join(c[i], NULL);
		for (size_t i = 0; i < CONNS; i++) {
			fast += s.ends[i].fast;
			fast += other[i].fast;
			/* Closed while the sets still hold them, or after the sets. */
			if (i == CONNS / 2)
				for (size_t k = 0; k < SETS; k++)
					rsock_close(s.epfd[k]);
			rsock_close(s.ends[i].fd);
			rsock_close(other[i].fd);
			pthread_mutex_destroy(&s.lock[i]);
			conns++;
		}
		changes += s.changes;
	} while (stress_now() < end && !stress_failed());
	if (!fast)
		stress_fail("no stream was ever on the fast path");
	stress_note("%u connections, %u of %u directions fast, %u changes", conns, fast, 2 * conns,
		    changes);
	stress_slots();
	stress_point("sets that change while others wait on them");
}

/* ---- edges are not lost ---- */

struct echo {
	int fd;
	uint32_t rounds;
	uint32_t flags;
	bool fast; /* in the end */
};

static void *echo_server(void *arg)
{
	struct echo *s = arg;
	int ep = rsock_epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event ev = { .events = EPOLLIN | s->flags, .data.u64 = 7 };

	rsock_epoll_ctl(ep, EPOLL_CTL_ADD, s->fd, &ev);
	for (bool open = true; open;) {
		char buf[64];
		ssize_t n;

		if (rsock_epoll_wait(ep, &ev, 1, -1) != 1 || ev.data.u64 != 7) {
			stress_fail("epoll_wait: %s", strerror(errno));
			break;
		}
		while ((n = rsock_recv(s->fd, buf, sizeof(buf), MSG_DONTWAIT)) > 0)
			if (rsock_send(s->fd, buf, (size_t)n, 0) != n)
				stress_fail("echo: %s", strerror(errno));
		if (n < 0 && errno != EAGAIN)
			stress_fail("recv: %s", strerror(errno));
		open = n < 0 && errno == EAGAIN;
		ev.events = EPOLLIN | s->flags;
		ev.data.u64 = 7;
		if (open && (s->flags & EPOLLONESHOT) &&
		    rsock_epoll_ctl(ep, EPOLL_CTL_MOD, s->fd, &ev) != 0)
			stress_fail("epoll_ctl: %s", strerror(errno));
	}
	rsock_close(ep);
	rsock_close(s->fd);
	return NULL;
}

static void *echo_client(void *arg)
{
	struct echo *c = arg;
	struct rng r = rng_new();
	uint64_t end = stress_now() + stress_ms() / 4;

	while (stress_now() < end && !stress_failed()) {
		char out[32], in[32] = { 0 };
		size_t n = 1 + rng_below(&r, sizeof(out)), at = 0;

		memset(out, (int)c->rounds & 127, n);
		if (rsock_send(c->fd, out, n, 0) != (ssize_t)n)
			stress_fail("send: %s", strerror(errno));
		while (at < n) {
			ssize_t k = rsock_recv(c->fd, in + at, n - at, 0);

			if (k <= 0) {
				stress_fail("recv: %s", strerror(errno));
				break;
			}
			at += (size_t)k;
		}
		if (memcmp(in, out, n) != 0)
			stress_fail("wrong bytes");
		c->rounds++;
		if (rng_below(&r, 20) == 0)
			usleep(rng_below(&r, 300));
	}
	c->fast = rsock_fd_path(c->fd) != 0;
	rsock_close(c->fd);
	return NULL;
}

static void ping_pong(void)
{
	static const uint32_t flags[] = { 0, EPOLLET, EPOLLONESHOT, EPOLLET | EPOLLONESHOT };
	uint32_t rounds = 0, fast = 0;

	for (size_t f = 0; f < 4; f++) {
		struct echo s[2], c[2];
		pthread_t t[4];

		for (size_t i = 0; i < 2; i++) {
			int fds[2];

			stress_pair(listener, port, fds);
			c[i] = (struct echo){ .fd = fds[i] };
			s[i] = (struct echo){ .fd = fds[1 - i], .flags = flags[f] };
			t[2 * i] = stress_thread(echo_server, &s[i]);
			t[2 * i + 1] = stress_thread(echo_client, &c[i]);
		}
		for (size_t i = 0; i < 4; i++)
			pthread_join(t[i], NULL);
		rounds += c[0].rounds + c[1].rounds;
		fast += c[0].fast;
		fast += c[1].fast;
	}
	if (!fast)
		stress_fail("no stream was ever on the fast path");
	stress_note("%u round trips, %u of 8 connections fast", rounds, fast);
	stress_slots();
	stress_point("no edge is lost");
}

/* ---- edges while the path changes ---- */

#define EDGY_BYTES 200000 /* in each direction: some milliseconds' worth */

struct edgy {
	struct end end;
	uint32_t edges;
};

/* Moves bytes as an edge-triggered loop does: once a call would have blocked, not before the next event. */
static void *edgy_end(void *arg)
{
	struct edgy *s = arg;
	struct epoll_event ev = { .events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET };
	int ep = rsock_epoll_create1(EPOLL_CLOEXEC);
	struct rng r = rng_new();
	bool in = false, out = false;

	rsock_epoll_ctl(ep, EPOLL_CTL_ADD, s->end.fd, &ev);
	while (!end_over(&s->end) && !stress_failed()) {
		if (!in && !out) {
			/* So that the path changes when an event has come and nobody waits. */
			usleep(rng_below(&r, 1500));
			if (rsock_epoll_wait(ep, &ev, 1, STRESS_LONG_MS) != 1) {
				stress_fail(
					"an edge is lost: %llu of %llu sent, %llu of %llu received",
					(unsigned long long)s->end.tx,
					(unsigned long long)s->end.tx_total,
					(unsigned long long)s->end.rx,
					(unsigned long long)s->end.rx_total);
				break;
			}
			s->edges++;
			in |= ev.events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR);
			out |= ev.events & (EPOLLOUT | EPOLLHUP | EPOLLERR);
		}
		in = in && end_recv(&s->end) == END_MORE;
		out = out && end_send(&s->end) == END_MORE;
	}
	rsock_close(ep);
	return NULL;
}

static void edges(void)
{
	uint64_t end = stress_now() + stress_ms();
	uint32_t conns = 0, fast = 0, seen = 0;

	/* On a machine without time to spare the first one takes as long as it takes to be fast. */
	while (stress_now() < end + (fast ? 0 : STRESS_LONG_MS) && !stress_failed()) {
		struct edgy s[4] = { 0 };
		const int size = 8192;
		pthread_t t[4];
		int fds[2];

		for (size_t i = 0; i < 4; i += 2) {
			stress_pair(listener, port, fds);
			end_pair(&s[i].end, &s[i + 1].end, fds, EDGY_BYTES);
			s[i].end.tx_total = s[i + 1].end.rx_total = EDGY_BYTES;
			s[i].end.rx_total = s[i + 1].end.tx_total = EDGY_BYTES;
			stress_nonblock(fds[0]);
			stress_nonblock(fds[1]);
			/* Little room, so that there is none again and again. */
			rsock_setsockopt(fds[i / 2], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
		}
		for (size_t i = 0; i < 4; i++)
			t[i] = stress_thread(edgy_end, &s[i]);
		for (size_t i = 0; i < 4; i++) {
			pthread_join(t[i], NULL);
			fast += s[i].end.fast;
			seen += s[i].edges;
		}
		for (size_t i = 0; i < 4; i++)
			rsock_close(s[i].end.fd);
		conns += 2;
	}
	if (!fast)
		stress_fail("no stream was ever on the fast path");
	stress_note("%u connections, %u of %u ends became fast, %u events", conns, fast, 2 * conns,
		    seen);
	stress_slots();
	stress_point("no edge is lost while the path changes");
}

/* ---- a batch names nobody twice ---- */

#define SHORT 24 /* connections at a time, */
#define ROUNDS 40 /* for so many round trips */

struct short_lived {
	int fd[SHORT];
	uint32_t rounds[SHORT];
	int ep;
	uint32_t made; /* connections */
	bool over; /* that is all */
};

/* Until the last connection that was made is closed. */
static void *short_server(void *arg)
{
	struct short_lived *s = arg;
	int ep = rsock_epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event ev = { .events = EPOLLIN, .data.fd = listener };
	uint32_t closed = 0;

	rsock_epoll_ctl(ep, EPOLL_CTL_ADD, listener, &ev);
	while (!__atomic_load_n(&s->over, __ATOMIC_SEQ_CST) || closed < s->made) {
		struct epoll_event e[SHORT];
		int n = rsock_epoll_wait(ep, e, SHORT, 20);

		for (int i = 0; i < n; i++) {
			int fd = e[i].data.fd;
			char buf[16];
			ssize_t r;

			if (fd == listener) {
				ev.data.fd = rsock_accept4(fd, NULL, NULL, SOCK_NONBLOCK);
				rsock_epoll_ctl(ep, EPOLL_CTL_ADD, ev.data.fd, &ev);
				continue;
			}
			r = rsock_recv(fd, buf, sizeof(buf), 0);
			if (r > 0)
				rsock_send(fd, buf, (size_t)r, MSG_NOSIGNAL);
			else if (r < 0 && errno == EAGAIN)
				stress_fail("server: readable, but nothing is there");
			else if (r == 0)
				closed += rsock_close(fd) == 0;
		}
	}
	rsock_close(ep);
	return NULL;
}

static void short_connect(struct short_lived *s, uint32_t i)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = i };

	s->fd[i] = stress_connect(port);
	s->made++;
	stress_nonblock(s->fd[i]);
	s->rounds[i] = 0;
	rsock_epoll_ctl(s->ep, EPOLL_CTL_ADD, s->fd[i], &ev);
	rsock_send(s->fd[i], "abc", 3, MSG_NOSIGNAL);
}

/*
 * Streams become fast while the set that holds them is asked all the time; at the end those that have
 * not all become so yet are closed with an answer unread, which aborts them.
 */
static void batch(uint32_t ms, uint32_t *all_events, uint32_t *all_conns, uint32_t *all_fast)
{
	uint64_t end = stress_now() + ms;
	struct short_lived s = { .ep = rsock_epoll_create1(EPOLL_CLOEXEC) };
	uint32_t events = 0, conns = SHORT, fast = *all_fast;
	pthread_t t = stress_thread(short_server, &s);

	for (uint32_t i = 0; i < SHORT; i++)
		short_connect(&s, i);
	/* On a machine without time to spare the first one takes as long as it takes to be fast. */
	while (stress_now() < end + (fast ? 0 : STRESS_LONG_MS) && !stress_failed()) {
		struct epoll_event e[2 * SHORT];
		uint64_t seen = 0;
		int n = rsock_epoll_wait(s.ep, e, 2 * SHORT, 1000);

		for (int k = 0; k < n; k++) {
			uint32_t i = e[k].data.u32;
			char buf[16];

			if (seen >> i & 1)
				stress_fail("one descriptor twice in a batch");
			seen |= (uint64_t)1 << i;
			events++;
			if (rsock_recv(s.fd[i], buf, sizeof(buf), 0) != 3)
				stress_fail("client: readable, but: %s", strerror(errno));
			if (++s.rounds[i] < ROUNDS) {
				rsock_send(s.fd[i], "abc", 3, MSG_NOSIGNAL);
				continue;
			}
			fast += rsock_fd_path(s.fd[i]) != 0;
			rsock_close(s.fd[i]);
			short_connect(&s, i);
			conns++;
		}
	}
	for (uint32_t i = 0; i < SHORT; i++) {
		fast += rsock_fd_path(s.fd[i]) != 0;
		rsock_close(s.fd[i]);
	}
	__atomic_store_n(&s.over, true, __ATOMIC_SEQ_CST);
	pthread_join(t, NULL);
	rsock_close(s.ep);
	*all_events += events;
	*all_conns += conns;
	*all_fast = fast;
}

static void batches(void)
{
	uint32_t events = 0, conns = 0, fast = 0, n = 0;

	for (; n < 20 && !stress_failed(); n++)
		batch(n ? 15 : stress_ms(), &events, &conns, &fast);
	if (!fast)
		stress_fail("no stream was ever on the fast path");
	stress_note("%u events, %u connections, %u fast when closed, aborted %u times", events,
		    conns, fast, n);
	stress_slots();
	stress_point("a batch names nobody twice");
}

/* ---- nested sets ---- */

static void nested(void)
{
	uint64_t end = stress_now() + stress_ms() / 2;
	uint32_t rounds = 0;
	int inner = rsock_epoll_create1(EPOLL_CLOEXEC), outer = rsock_epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = 1 };
	struct echo c = { .rounds = 0 };
	pthread_t t;
	int fds[2];

	stress_pair(listener, port, fds);
	rsock_epoll_ctl(inner, EPOLL_CTL_ADD, fds[1], &ev);
	ev.data.u64 = 2;
	rsock_epoll_ctl(outer, EPOLL_CTL_ADD, inner, &ev);
	c.fd = fds[0];
	t = stress_thread(echo_client, &c);
	for (bool open = true; open && stress_now() < end + STRESS_LONG_MS; rounds++) {
		struct pollfd p = { inner, POLLIN, 0 };
		char buf[64];
		ssize_t n;

		if (rounds % 2) {
			if (rsock_epoll_wait(outer, &ev, 1, -1) != 1 || ev.data.u64 != 2)
				stress_fail("outer set: %s", strerror(errno));
		} else if (rsock_poll(&p, 1, -1) != 1) {
			stress_fail("poll of a set: %s", strerror(errno));
		}
		if (rsock_epoll_wait(inner, &ev, 1, 0) != 1)
			continue; /* spurious */
		n = rsock_recv(fds[1], buf, sizeof(buf), MSG_DONTWAIT);
		if (n > 0 && rsock_send(fds[1], buf, (size_t)n, 0) != n)
			stress_fail("send: %s", strerror(errno));
		open = n != 0;
	}
	pthread_join(t, NULL);
	rsock_close(fds[1]);
	rsock_close(inner);
	rsock_close(outer);
	if (!c.fast)
		stress_fail("the stream was not on the fast path in the end");
	stress_note("%u wake-ups, %u round trips", rounds, c.rounds);
	stress_slots();
	stress_point("nested sets");
}

/* ---- more sleepers than bells ---- */

#define CROWD 40

struct sleeper {
	int fd;
};

static void *polls(void *arg)
{
	struct sleeper *s = arg;
	struct pollfd p = { s->fd, POLLIN, 0 };
	char byte;

	for (;;) {
		int r = rsock_poll(&p, 1, 2 * STRESS_LONG_MS);

		if (r != 1)
			stress_fail("poll among many: %d, %s", r, strerror(errno));
		if (rsock_recv(s->fd, &byte, 1, MSG_DONTWAIT) != 1)
			return NULL; /* its end */
		if (rsock_send(s->fd, &byte, 1, 0) != 1)
			stress_fail("send: %s", strerror(errno));
	}
	return NULL;
}

static void crowd(void)
{
	struct sleeper s[CROWD];
	pthread_t t[CROWD];
	int peer[CROWD];
	uint32_t rounds = 0, fast = 0;
	char byte = 'x';
	uint64_t end;

	for (size_t i = 0; i < CROWD; i++) {
		int fds[2];

		stress_pair(listener, port, fds);
		fast += stress_wait_fast(fds[0], STRESS_LONG_MS) &&
			stress_wait_fast(fds[1], STRESS_LONG_MS);
		s[i] = (struct sleeper){ .fd = fds[1] };
		peer[i] = fds[0];
		t[i] = stress_thread(polls, &s[i]);
	}
	usleep(20000); /* all are asleep, and the last ones have no bell */
	end = stress_now() + stress_ms();
	for (; (!rounds || stress_now() < end) && !stress_failed(); rounds++)
		for (size_t i = 0; i < CROWD; i++) {
			struct pollfd p = { peer[i], POLLIN, 0 };

			if (rsock_send(peer[i], &byte, 1, 0) != 1 ||
			    rsock_poll(&p, 1, STRESS_LONG_MS) != 1 ||
			    rsock_recv(peer[i], &byte, 1, 0) != 1)
				stress_fail("sleeper %zu has not answered", i);
		}
	for (size_t i = 0; i < CROWD; i++)
		rsock_close(peer[i]);
	for (size_t i = 0; i < CROWD; i++) {
		pthread_join(t[i], NULL);
		rsock_close(s[i].fd);
	}
	if (fast <= RS_BELLS)
		stress_fail("only %u streams were fast before it began", fast);
	stress_note("%u rounds of %d", rounds, CROWD);
	stress_slots();
	stress_point("more sleepers than bells");
}

/* ---- listeners ---- */

/* A stream that is fast already, put into sets of which only the first ones have a bell. */
static void late_sets(void)
{
	int epfd[RS_BELLS + 2], silent = 0;

	for (size_t i = 0; i < RS_BELLS + 2; i++) {
		epfd[i] = rsock_epoll_create1(EPOLL_CLOEXEC);
		if (epfd[i] < 0)
			stress_bail("epoll_create1: %s", strerror(errno));
	}
	for (size_t i = 0; i < RS_BELLS + 2; i++) {
		struct epoll_event ev = { .events = EPOLLIN, .data.u32 = 7 };
		int fds[2], n;

		stress_pair(listener, port, fds);
		if (!stress_wait_fast(fds[0], STRESS_LONG_MS) ||
		    !stress_wait_fast(fds[1], STRESS_LONG_MS))
			stress_fail("not on the fast path");
		if (rsock_epoll_ctl(epfd[i], EPOLL_CTL_ADD, fds[1], &ev) != 0)
			stress_fail("epoll_ctl: %s", strerror(errno));
		n = rsock_epoll_wait(epfd[i], &ev, 1, 50);
		if (n != 0)
			stress_fail("%d events before anything was sent", n);
		if (rsock_send(fds[0], "x", 1, 0) != 1)
			stress_fail("send: %s", strerror(errno));
		n = rsock_epoll_wait(epfd[i], &ev, 1, STRESS_LONG_MS);
		if (n != 1 || ev.events != EPOLLIN || ev.data.u32 != 7)
			stress_fail("set %zu: %d events", i, n);
		silent += !stress_wait_fast(fds[1], 0);
		rsock_close(fds[0]);
		rsock_close(fds[1]);
	}
	for (size_t i = 0; i < RS_BELLS + 2; i++)
		rsock_close(epfd[i]);
	if (!silent)
		stress_fail("every set had a bell");
	stress_note("%d of %u streams left the fast path", silent, RS_BELLS + 2);
	stress_slots();
	stress_point("more sets than bells");
}

/* ---- who waits for bytes does not wait for room ---- */

#define SIPS 200

struct thirsty {
	int fd;
	long sleeps;
};

static void *sleep_for_bytes(void *arg)
{
	struct thirsty *s = arg;
	struct pollfd p = { s->fd, POLLIN, 0 };
	struct rusage before, after;

	getrusage(RUSAGE_THREAD, &before);
	if (rsock_poll(&p, 1, STRESS_LONG_MS) != 1)
		stress_fail("poll: %s", strerror(errno));
	getrusage(RUSAGE_THREAD, &after);
	s->sleeps = after.ru_nvcsw - before.ru_nvcsw;
	return NULL;
}

static void bytes_only(void)
{
	struct thirsty s;
	char buf[100] = "";
	pthread_t t;
	int fds[2];

	stress_pair(listener, port, fds);
	if (!stress_wait_fast(fds[0], STRESS_LONG_MS) || !stress_wait_fast(fds[1], STRESS_LONG_MS))
		stress_fail("it stays on TCP");
	for (int i = 0; i < SIPS; i++)
		if (rsock_send(fds[0], buf, sizeof(buf), 0) != sizeof(buf))
			stress_fail("send: %s", strerror(errno));
	s.fd = fds[0];
	t = stress_thread(sleep_for_bytes, &s);
	for (int i = 0; i < SIPS; i++) {
		usleep(500);
		if (rsock_recv(fds[1], buf, sizeof(buf), 0) != sizeof(buf))
			stress_fail("recv: %s", strerror(errno));
	}
	if (rsock_send(fds[1], buf, 1, 0) != 1)
		stress_fail("send: %s", strerror(errno));
	pthread_join(t, NULL);
	if (s.sleeps > SIPS / 10)
		stress_fail("it slept %ld times", s.sleeps);
	rsock_close(fds[0]);
	rsock_close(fds[1]);
	stress_point("room wakes nobody who waits for bytes");
}

/* ---- listeners that come and go ---- */

static void *listen_and_go(void *arg)
{
	uint64_t end = stress_now() + stress_ms();
	struct rng r = rng_new();
	uint32_t *count = arg;

	while (stress_now() < end && !stress_failed()) {
		char byte = 0;
		uint16_t p;
		int l = stress_listen(&p), fds[2];

		stress_pair(l, p, fds);
		if (rng_below(&r, 2))
			rsock_close(l);
		else
			l |= 1 << 30;
		if (rng_below(&r, 2))
			usleep(rng_below(&r, 5000));
		for (size_t i = 0; i < 2; i++)
			if (rsock_send(fds[i], "x", 1, 0) != 1 ||
			    rsock_recv(fds[1 - i], &byte, 1, 0) != 1 || byte != 'x')
				stress_fail("one byte: %s", strerror(errno));
		if (l & 1 << 30)
			rsock_close(l & ~(1 << 30));
		rsock_close(fds[0]);
		rsock_close(fds[1]);
		/* Nobody is there any more. */
		if (stress_connect(p) >= 0)
			stress_note("port %u was taken by another", p);
		__atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void listeners(void)
{
	uint32_t count = 0, before = stress_fds(0, 0), after;
	pthread_t t[3];

	for (size_t i = 0; i < 3; i++)
		t[i] = stress_thread(listen_and_go, &count);
	for (size_t i = 0; i < 3; i++)
		pthread_join(t[i], NULL);
	stress_slots();
	/* A link that nobody uses is closed, and its descriptors a while later. */
	after = stress_fds(before + 8, 2 * STRESS_LONG_MS);
	stress_note("%u listeners; %u descriptors before, %u after", count, before, after);
	if (after > before + 8)
		stress_fail("descriptors pile up");
	stress_point("listeners that come and go");
}

int main(void)
{
	stress_begin(9, 200);
	listener = stress_listen(&port);
	many_hands();
	ping_pong();
	edges();
	batches();
	nested();
	crowd();
	late_sets();
	bytes_only();
	listeners();
	rsock_close(listener);
	return stress_end();
}
