/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * closing.c - connections that end at random moments
 *
 * End of file may come only behind the last byte that was accepted; a reset may come only where TCP
 * would reset: when something was left unread, or sent to an end that was closed already.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "rsock/rsock.h"
#include "tests/stress/libstress.h"

#define CONNS 8

/* One for all: links, with their descriptors, stay. */
static int listener;
static uint16_t port;

struct talk {
	int fd;
	uint64_t tx_id, rx_id;
	uint64_t sent; /* final, published before close */
	uint64_t *peer_sent;
	uint64_t stop; /* close after that many bytes */
	bool listens; /* reads what comes while it sends */
	bool may_reset;
	bool fast;
	struct rng rng;
};

static bool reset_errno(int e)
{
	return e == ECONNRESET || e == EPIPE;
}

/* Sends, and reads what is there, until it has sent `stop` bytes; then closes. */
static void *closer(void *arg)
{
	struct talk *t = arg;
	uint8_t buf[65536];
	uint64_t tx = 0, rx = 0;

	while (tx < t->stop) {
		size_t n = rng_size(&t->rng, sizeof(buf));
		ssize_t r;

		if (n > t->stop - tx)
			n = (size_t)(t->stop - tx);
		pattern_fill(t->tx_id, tx, buf, n);
		r = rsock_send(t->fd, buf, n, 0);
		if (r < 0) {
			if (!reset_errno(errno) || !t->may_reset)
				stress_fail("closer: send: %s", strerror(errno));
			break;
		}
		tx += (uint64_t)r;
		if (!t->listens)
			continue;
		r = rsock_recv(t->fd, buf, sizeof(buf), MSG_DONTWAIT);
		if (r > 0) {
			if (!pattern_check(t->rx_id, rx, buf, (size_t)r))
				stress_fail("closer: wrong bytes at %llu", (unsigned long long)rx);
			rx += (uint64_t)r;
		}
	}
	t->fast = rsock_fd_path(t->fd) & 1;
	__atomic_store_n(&t->sent, tx, __ATOMIC_SEQ_CST);
	if (rsock_close(t->fd) != 0)
		stress_fail("close: %s", strerror(errno));
	return NULL;
}

/* Reads to the end; sends now and then if the other end listens. */
static void *survivor(void *arg)
{
	struct talk *t = arg;
	uint64_t rx = 0, tx = 0, want;
	bool told = false; /* send() has reported the reset */
	uint8_t buf[65536];

	for (;;) {
		size_t n = rng_size(&t->rng, sizeof(buf));
		ssize_t r;

		if (t->listens && rng_below(&t->rng, 3) == 0) {
			size_t k = rng_size(&t->rng, 5000);

			pattern_fill(t->tx_id, tx, buf, k);
			r = rsock_send(t->fd, buf, k, MSG_DONTWAIT);
			if (r > 0)
				tx += (uint64_t)r;
			else if (reset_errno(errno))
				told = true;
			else if (errno != EAGAIN)
				stress_fail("survivor: send: %s", strerror(errno));
		}
		r = rsock_recv(t->fd, buf, n, 0);
		if (r < 0) {
			if (!reset_errno(errno) || !t->may_reset)
				stress_fail("survivor: recv at %llu of %llu: %s",
					    (unsigned long long)rx,
					    (unsigned long long)__atomic_load_n(t->peer_sent,
										__ATOMIC_SEQ_CST),
					    strerror(errno));
			break;
		}
		if (r == 0) {
			want = __atomic_load_n(t->peer_sent, __ATOMIC_SEQ_CST);
			/* After a reset that was reported to send() there is end of file. */
			if (rx != want && !(t->may_reset && told))
				stress_fail("silent truncation: %llu of %llu bytes",
					    (unsigned long long)rx, (unsigned long long)want);
			break;
		}
		if (!pattern_check(t->rx_id, rx, buf, (size_t)r))
			stress_fail("survivor: wrong bytes at %llu", (unsigned long long)rx);
		rx += (uint64_t)r;
	}
	if (rng_below(&t->rng, 2))
		usleep(rng_below(&t->rng, 2000));
	if (rsock_close(t->fd) != 0)
		stress_fail("close: %s", strerror(errno));
	return NULL;
}

static void random_close(const char *name, bool duplex)
{
	uint64_t end = stress_now() + stress_ms(), id = duplex ? 1000000 : 0;
	uint32_t conns = 0, fast = 0, before, after;
	struct rng r = rng_new();

	before = stress_fds(0, 0);
	do {
		struct talk c[CONNS], s[CONNS];
		pthread_t t[2 * CONNS];

		for (size_t i = 0; i < CONNS; i++) {
			bool swap = rng_below(&r, 2);
			int fds[2];

			stress_pair(listener, port, fds);
			if (rng_below(&r, 4))
				stress_wait_fast(fds[0], 2000);
			c[i] = (struct talk){ .fd = fds[swap],
					      .tx_id = id,
					      .rx_id = id + 1,
					      .stop = rng_size(&r, 300000) - 1,
					      .listens = duplex,
					      .may_reset = duplex,
					      .rng = rng_new() };
			s[i] = (struct talk){ .fd = fds[!swap],
					      .tx_id = id + 1,
					      .rx_id = id,
					      .peer_sent = &c[i].sent,
					      .listens = duplex,
					      .may_reset = duplex,
					      .rng = rng_new() };
			id += 2;
		}
		for (size_t i = 0; i < CONNS; i++) {
			t[2 * i] = stress_thread(closer, &c[i]);
			t[2 * i + 1] = stress_thread(survivor, &s[i]);
		}
		for (size_t i = 0; i < 2 * CONNS; i++)
			pthread_join(t[i], NULL);
		for (size_t i = 0; i < CONNS; i++)
			fast += c[i].fast;
		conns += CONNS;
	} while (stress_now() < end && !stress_failed());
	after = stress_fds(before + 2, STRESS_LONG_MS);
	if (after > before + 2)
		stress_fail("%u descriptors before, %u after", before, after);
	if (!fast)
		stress_fail("no stream was ever on the fast path");
	stress_note("%u connections, %u fast when closed", conns, fast);
	stress_slots();
	stress_point(name);
}

/* ---- connections that hardly live ---- */

struct churn {
	uint64_t end;
	uint32_t conns;
	bool over;
};

static void *churn_client(void *arg)
{
	struct churn *c = arg;
	struct rng r = rng_new();

	while (stress_now() < c->end) {
		int fd = stress_connect(port);
		uint8_t byte = 0;

		if (fd < 0) {
			stress_fail("connect: %s", strerror(errno));
			break;
		}
		switch (rng_below(&r, 4)) {
		case 0:
			break;
		case 1:
			usleep(rng_below(&r, 3000));
			break;
		case 2:
			rsock_send(fd, "x", 1, 0);
			break;
		default:
			rsock_shutdown(fd, SHUT_WR);
			while (rsock_recv(fd, &byte, 1, 0) > 0)
				;
			break;
		}
		rsock_close(fd);
		__atomic_fetch_add(&c->conns, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void *churn_server(void *arg)
{
	struct churn *c = arg;
	struct rng r = rng_new();
	int fd;

	while (!__atomic_load_n(&c->over, __ATOMIC_SEQ_CST)) {
		char buf[16];

		fd = stress_accept(listener);
		if (fd < 0) {
			stress_fail("accept: %s", strerror(errno));
			break;
		}
		if (rng_below(&r, 2) == 0) {
			usleep(rng_below(&r, 1000));
		} else if (rng_below(&r, 2) == 0) {
			rsock_send(fd, "yes", 3, 0);
			rsock_recv(fd, buf, sizeof(buf), MSG_DONTWAIT);
		}
		rsock_close(fd);
	}
	return NULL;
}

static void churn(void)
{
	struct churn c = { .end = stress_now() + stress_ms() };
	uint32_t before, after;
	pthread_t client[3], server[2];

	before = stress_fds(0, 0);
	for (size_t i = 0; i < 2; i++)
		server[i] = stress_thread(churn_server, &c);
	for (size_t i = 0; i < 3; i++)
		client[i] = stress_thread(churn_client, &c);
	for (size_t i = 0; i < 3; i++)
		pthread_join(client[i], NULL);
	__atomic_store_n(&c.over, true, __ATOMIC_SEQ_CST);
	for (size_t i = 0; i < 2; i++) {
		int fd = stress_connect(port); /* out of accept */

		if (fd >= 0)
			rsock_close(fd);
	}
	for (size_t i = 0; i < 2; i++)
		pthread_join(server[i], NULL);
	/* What nobody accepted. */
	for (struct pollfd p = { listener, POLLIN, 0 }; rsock_poll(&p, 1, 0) > 0;)
		rsock_close(rsock_accept4(listener, NULL, NULL, SOCK_CLOEXEC));
	after = stress_fds(before + 2, STRESS_LONG_MS);
	if (after > before + 2)
		stress_fail("%u descriptors before, %u after", before, after);
	stress_note("%u connections", c.conns);
	stress_slots();
	stress_point("connections that hardly live");
}

/* ---- aborts ---- */

static void aborts(void)
{
	const struct linger lin = { 1, 0 };
	uint64_t end = stress_now() + stress_ms();
	uint32_t conns = 0;
	struct rng r = rng_new();
	char buf[100];

	do {
		bool linger = rng_below(&r, 2), server = rng_below(&r, 2);
		ssize_t k;
		int fds[2];

		stress_pair(listener, port, fds);
		if (!stress_wait_fast(fds[0], STRESS_LONG_MS) ||
		    !stress_wait_fast(fds[1], STRESS_LONG_MS))
			stress_fail("never fast");
		if (linger) {
			rsock_setsockopt(fds[server], SOL_SOCKET, SO_LINGER, &lin, sizeof(lin));
		} else {
			/* Unread data at close is an abort too. */
			rsock_send(fds[!server], "unread", 6, 0);
			if (rsock_recv(fds[server], buf, 1, 0) != 1)
				stress_fail("recv: %s", strerror(errno));
		}
		rsock_close(fds[server]);
		k = rsock_recv(fds[!server], buf, sizeof(buf), 0);
		if (k != -1 || errno != ECONNRESET)
			stress_fail("%s: recv gave %zd %s", linger ? "linger 0" : "unread data", k,
				    k < 0 ? strerror(errno) : "");
		k = rsock_send(fds[!server], "x", 1, MSG_NOSIGNAL);
		if (k != -1 || errno != EPIPE)
			stress_fail("send after reset gave %zd %s", k,
				    k < 0 ? strerror(errno) : "");
		k = rsock_recv(fds[!server], buf, sizeof(buf), 0);
		if (k != 0)
			stress_fail("second recv gave %zd", k);
		rsock_close(fds[!server]);
		conns++;
	} while (stress_now() < end && !stress_failed());
	stress_note("%u connections", conns);
	stress_slots();
	stress_point("aborts");
}

/* ---- a peer that closes wakes whoever waits ---- */

struct waits {
	int fd;
	int how;
	bool started;
};

static void *wait_for_end(void *arg)
{
	struct waits *w = arg;
	struct pollfd p = { w->fd, POLLIN, 0 };
	struct epoll_event ev = { .events = EPOLLIN | EPOLLRDHUP };
	char byte;
	ssize_t r;
	int ep;

	__atomic_store_n(&w->started, true, __ATOMIC_SEQ_CST);
	switch (w->how) {
	case 0:
		r = rsock_recv(w->fd, &byte, 1, 0);
		if (r != 0)
			stress_fail("recv gave %zd %s", r, strerror(errno));
		break;
	case 1:
		r = rsock_poll(&p, 1, -1);
		if (r != 1 || !(p.revents & POLLIN))
			stress_fail("poll gave %zd, %x", r, (unsigned int)p.revents);
		break;
	default:
		ep = rsock_epoll_create1(EPOLL_CLOEXEC);
		rsock_epoll_ctl(ep, EPOLL_CTL_ADD, w->fd, &ev);
		r = rsock_epoll_wait(ep, &ev, 1, -1);
		if (r != 1 || !(ev.events & EPOLLIN) || !(ev.events & EPOLLRDHUP))
			stress_fail("epoll gave %zd, %x", r, ev.events);
		rsock_close(ep);
		break;
	}
	return NULL;
}

static void wakes(void)
{
	uint64_t end = stress_now() + stress_ms();
	uint32_t conns = 0, fast = 0;
	struct rng r = rng_new();

	do {
		bool server = rng_below(&r, 2);
		struct waits w = { .how = (int)rng_below(&r, 3) };
		pthread_t t;
		int fds[2];

		stress_pair(listener, port, fds);
		w.fd = fds[server];
		if (rng_below(&r, 3))
			stress_wait_fast(fds[0], 2000);
		fast += rsock_fd_path(fds[0]) != 0 && rsock_fd_path(fds[1]) != 0;
		t = stress_thread(wait_for_end, &w);
		while (!__atomic_load_n(&w.started, __ATOMIC_SEQ_CST))
			usleep(10);
		usleep(rng_below(&r, 3) * 300);
		if (rng_below(&r, 2)) {
			rsock_shutdown(fds[!server], SHUT_WR);
		} else {
			rsock_close(fds[!server]);
			fds[!server] = -1;
		}
		pthread_join(t, NULL);
		rsock_close(fds[server]);
		if (fds[!server] >= 0)
			rsock_close(fds[!server]);
		conns++;
	} while (stress_now() < end && !stress_failed());
	if (!fast)
		stress_fail("no stream was ever on the fast path");
	stress_note("%u connections, %u fast", conns, fast);
	stress_slots();
	stress_point("the end wakes whoever waits for it");
}

/* ---- a closed number is the next file's ---- */

#define MANY 24
#define MESSAGE 64

struct many {
	int mine[MANY], theirs[MANY];
	uint32_t rounds;
};

/* A byte on each, while their streams begin. */
static void *trickle(void *arg)
{
	struct many *m = arg;

	for (uint32_t n = 0; n < m->rounds; n++)
		for (size_t i = 0; i < MANY; i++)
			rsock_send(m->theirs[i], "", 1, MSG_NOSIGNAL);
	return NULL;
}

/* Puts bytes into files that get the numbers just closed, waits, and looks whether all are there. */
static void reuse(void)
{
	uint8_t bytes[MESSAGE] = { 1 };
	int fds[MANY], have;

	for (size_t i = 0; i < MANY; i += 2) {
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds + i) != 0)
			stress_bail("socketpair: %s", strerror(errno));
		for (size_t k = i; k < i + 2; k++)
			if (write(fds[k], bytes, MESSAGE) != MESSAGE)
				stress_bail("write: %s", strerror(errno));
	}
	usleep(2000);
	for (size_t i = 0; i < MANY; i++) {
		if (ioctl(fds[i], FIONREAD, &have) != 0 || have != MESSAGE)
			stress_fail("of %d bytes in a new file, %d are left", MESSAGE, have);
		close(fds[i]);
	}
}

/* Closed while the control thread has their events, and has not looked at them yet. */
static void numbers(void)
{
	uint64_t end = stress_now() + 2 * (uint64_t)stress_ms();
	uint32_t conns = 0, fast = 0;
	struct rng r = rng_new();

	do {
		struct many m = { .rounds = (uint32_t)rng_below(&r, 100) };
		char buf[MESSAGE];
		pthread_t t;

		for (size_t i = 0; i < MANY; i++) {
			int fds[2];

			stress_pair(listener, port, fds);
			m.mine[i] = fds[i % 2];
			m.theirs[i] = fds[1 - i % 2];
		}
		t = stress_thread(trickle, &m);
		usleep((useconds_t)rng_below(&r, 8000));
		for (size_t i = 0; i < MANY; i++) {
			while (rsock_recv(m.mine[i], buf, sizeof(buf), MSG_DONTWAIT) > 0)
				;
			fast += rsock_fd_path(m.mine[i]) != 0;
			rsock_close(m.mine[i]);
		}
		reuse();
		pthread_join(t, NULL);
		for (size_t i = 0; i < MANY; i++)
			rsock_close(m.theirs[i]);
		conns += MANY;
	} while (stress_now() < end && !stress_failed());
	if (!fast)
		stress_fail("no stream was ever on the fast path");
	stress_note("%u connections, %u fast when closed", conns, fast);
	stress_slots();
	stress_point("nobody reads from a number that was closed");
}

/* ---- all duplicates closed at once ---- */

struct waiter {
	int fd;
	pid_t tid; /* once it is about to wait */
};

static void *waits(void *arg)
{
	struct waiter *w = arg;
	ssize_t r;
	char b;

	__atomic_store_n(&w->tid, gettid(), __ATOMIC_RELEASE);
	r = rsock_recv(w->fd, &b, 1, 0);
	if (r > 0 || (r < 0 && !reset_errno(errno)))
		stress_fail("recv: %zd, %s", r, strerror(errno));
	return NULL;
}

/* Until it sleeps in recv(): after close() the kernel would say EBADF to whoever comes late. */
static void asleep(const struct waiter *w)
{
	char path[64], state = 0;
	pid_t tid;
	FILE *f;

	while (!(tid = __atomic_load_n(&w->tid, __ATOMIC_ACQUIRE)))
		usleep(100);
	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
	while (state != 'S') {
		usleep(100);
		f = fopen(path, "r");
		if (!f || fscanf(f, "%*d (%*[^)]) %c", &state) != 1)
			stress_bail("%s: %s", path, strerror(errno));
		fclose(f);
	}
}

static pthread_barrier_t together;

static void *closes(void *arg)
{
	pthread_barrier_wait(&together);
	rsock_close(*(int *)arg);
	return NULL;
}

/* Who waits meanwhile still hears of a reset, of which only TCP tells. */
static void duplicates(void)
{
	const struct linger abort = { .l_onoff = 1, .l_linger = 0 };
	uint64_t end = stress_now() + stress_ms();
	uint32_t rounds = 0;

	pthread_barrier_init(&together, NULL, 2);
	do {
		struct waiter waiting = { 0 };
		int fds[2], other;
		pthread_t w, c[2];

		stress_pair(listener, port, fds);
		if (!stress_wait_fast(fds[0], STRESS_LONG_MS))
			stress_fail("not on the fast path");
		waiting.fd = fds[1];
		other = rsock_dup(fds[1]);
		w = stress_thread(waits, &waiting);
		asleep(&waiting);
		c[0] = stress_thread(closes, &fds[1]);
		c[1] = stress_thread(closes, &other);
		pthread_join(c[0], NULL);
		pthread_join(c[1], NULL);
		setsockopt(fds[0], SOL_SOCKET, SO_LINGER, &abort, sizeof(abort));
		rsock_close(fds[0]);
		pthread_join(w, NULL);
		rounds++;
	} while (stress_now() < end && !stress_failed());
	pthread_barrier_destroy(&together);
	stress_note("%u rounds", rounds);
	stress_slots();
	stress_point("both duplicates closed at once");
}

/* ---- half closed before it enters ---- */

/* Nothing that rsock writes to TCP may be read where the kernel has been told to read no more. */
static void early_shut(void)
{
	uint64_t end = stress_now() + stress_ms() / 2;
	struct rng r = rng_new();
	uint32_t conns = 0;
	uint8_t buf[200];

	do {
		size_t n = 1 + (size_t)rng_below(&r, 100);
		ssize_t k;
		int fds[2];

		stress_pair(listener, port, fds);
		if (rng_below(&r, 2))
			usleep((useconds_t)rng_below(&r, 5000));
		if (rsock_shutdown(fds[1], SHUT_RD) != 0)
			stress_fail("shutdown: %s", strerror(errno));
		usleep((useconds_t)rng_below(&r, 8000));
		pattern_fill(1, 0, buf, n);
		if (rsock_send(fds[0], buf, n, 0) != (ssize_t)n)
			stress_fail("send: %s", strerror(errno));
		usleep(500);
		k = rsock_recv(fds[1], buf, sizeof(buf), 0);
		if (k < 0 || (size_t)k > n || !pattern_check(1, 0, buf, (size_t)k))
			stress_fail("of %zu bytes after SHUT_RD, recv gives %zd", n, k);
		while (rsock_recv(fds[1], buf, sizeof(buf), MSG_DONTWAIT) > 0)
			;
		rsock_close(fds[1]);
		k = rsock_recv(fds[0], buf, sizeof(buf), 0);
		if (k != 0)
			stress_fail("end of file expected: %zd, %s", k, strerror(errno));
		rsock_close(fds[0]);
		conns++;
	} while (stress_now() < end && !stress_failed());
	stress_note("%u connections", conns);
	stress_slots();
	stress_point("SHUT_RD before it enters");
}

/* ---- closed by a handler, in the middle of a call ---- */

static struct {
	pthread_t victim;
	int fd; /* what the handler closes; -1: nothing */
	bool over;
} handler = { .fd = -1 };

static void on_signal(int sig)
{
	int fd = __atomic_exchange_n(&handler.fd, -1, __ATOMIC_SEQ_CST), saved = errno;

	(void)sig;
	if (fd >= 0)
		rsock_close(fd);
	errno = saved;
}

static void *interrupts(void *arg)
{
	struct rng r = rng_new();

	(void)arg;
	while (!__atomic_load_n(&handler.over, __ATOMIC_SEQ_CST)) {
		usleep(rng_below(&r, 300));
		pthread_kill(handler.victim, SIGUSR1);
	}
	return NULL;
}

static void in_handlers(void)
{
	const struct sigaction sa = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	uint64_t end = stress_now() + stress_ms();
	uint32_t conns = 0, fast = 0;
	struct rng r = rng_new();
	char buf[64] = "";
	pthread_t t;

	handler.victim = pthread_self();
	sigaction(SIGUSR1, &sa, NULL);
	t = stress_thread(interrupts, NULL);
	do {
		bool receives = rng_below(&r, 2);
		struct pollfd p = { .events = POLLIN };
		int fds[2], victim;
		ssize_t k;

		stress_pair(listener, port, fds);
		stress_nonblock(fds[0]);
		stress_nonblock(fds[1]);
		fast += stress_wait_fast(fds[0], STRESS_LONG_MS) &&
			stress_wait_fast(fds[1], STRESS_LONG_MS);
		victim = fds[receives];
		p.fd = fds[!receives];
		__atomic_store_n(&handler.fd, victim, __ATOMIC_SEQ_CST);
		while (__atomic_load_n(&handler.fd, __ATOMIC_SEQ_CST) >= 0) {
			rsock_send(fds[0], buf, sizeof(buf), MSG_NOSIGNAL);
			rsock_recv(fds[1], buf, sizeof(buf), 0);
		}
		/* Unread bytes make it a reset. */
		while ((k = rsock_recv(p.fd, buf, sizeof(buf), 0)) > 0 ||
		       (k < 0 && (errno == EAGAIN || errno == EINTR)))
			if (k < 0 && rsock_poll(&p, 1, STRESS_LONG_MS) == 0)
				break;
		if (k < 0 && errno != ECONNRESET)
			stress_fail("the peer of what a handler closed: %s", strerror(errno));
		rsock_close(p.fd);
		conns++;
	} while (stress_now() < end && !stress_failed());
	__atomic_store_n(&handler.over, true, __ATOMIC_SEQ_CST);
	pthread_join(t, NULL);
	if (!fast)
		stress_fail("no stream was ever on the fast path");
	stress_note("%u connections, %u fast", conns, fast);
	stress_slots();
	stress_point("closed by a handler");
}

int main(void)
{
	int fds[2];

	stress_begin(9, 100);
	listener = stress_listen(&port);
	stress_pair(listener, port, fds);
	stress_wait_fast(fds[0], 2000);
	rsock_close(fds[0]);
	rsock_close(fds[1]);
	random_close("one sends and closes, the other reads to the end", false);
	random_close("both send, one closes", true);
	churn();
	numbers();
	duplicates();
	early_shut();
	aborts();
	wakes();
	in_handlers();
	rsock_close(listener);
	return stress_end();
}
