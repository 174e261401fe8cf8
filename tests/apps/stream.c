/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * stream.c - a checked transfer between a server and a client, in both directions
 *
 *	stream server|client [--host ADDR] [--port N] [--bytes N] [--conns N] [--mode MODE]
 *		[--first client|server|both] [--halfclose] [--seed N] [--send HOW] [--recv HOW]
 *		[--nonblock] [--chunk N] [--warm] [--hold] [--one-way client|server]
 *		[--progress FILE] [--forks N]
 *
 * The server prints "PORT n" when it listens, both print UP when the first connection (blocking, threads)
 * or all of them (otherwise) are there. Every direction of every connection carries its own
 * pattern; each end checks every byte that comes in, that nothing comes after the last one, and prints
 * one line of JSON at its end: counts, hashes of what it sent and received (the other end's must be the
 * same), errors, and, when the rsock preload is there, which paths the connections were on.
 *
 *	--mode     blocking: one connection after the other; threads: a thread for each;
 *	           epoll, poll, select: all at once in one thread
 *	--first    who sends before the other one does; both: at the same time
 *	--warm     before the transfer, exchange small messages until both directions are fast
 *	--hold     when all connections are there print READY and wait for the end of stdin
 *	--one-way  only this end sends
 *	--progress keep there, for each connection, what was sent and received, and how it ended
 *	           (struct progress): it tells of a process that was killed
 *	--forks    a thread forks so many times; the children do nothing and exit
 *
 * Exit status: 0 all went well; 3 the other end was lost, what had come until then was right; 1 wrong
 * bytes, 2 anything else.
 */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/apps/libown.h"

#define MAX_CHUNK 65536
#define LEAD (128L << 10) /* how far a blocking end sends ahead of what it received */

struct hash {
	uint64_t h;
	uint64_t part;
	unsigned int have;
};

/* tests/faults/run reads it */
struct progress {
	int64_t sent, rcvd;
	int64_t end; /* 0: not yet; 1: as it should; 2: by an end of file too early; else -errno */
};

struct conn {
	int fd;
	int file;
	long idx;
	long to_send, to_recv;
	long sent, rcvd;
	unsigned int rnd;
	struct hash tx, rx;
	uint64_t tx_seed, rx_seed;
	long tx_off, tx_len; /* the part of the stream that buf holds */
	char *buf;
	bool shut, eof, done;
	int err;
	uint32_t armed;
	int path_seen, path_end;
};

enum mode { BLOCKING, THREADS, EPOLL, POLL, SELECT };

static struct {
	bool server;
	const char *host;
	int port;
	long bytes;
	long conns;
	enum mode mode;
	char first; /* c, s, b */
	char one_way; /* c, s or 0 */
	bool halfclose, nonblock, warm, hold;
	unsigned int seed;
	const char *send, *recv;
	long chunk;
	const char *progress;
	long forks;
} opt = { .host = "127.0.0.1",
	  .bytes = 1 << 20,
	  .conns = 1,
	  .first = 'b',
	  .seed = 1,
	  .send = "send",
	  .recv = "recv",
	  .chunk = MAX_CHUNK };

static struct {
	long tx, rx, extra, mismatch_at, done, lost, fast_seen, fast_end, tx_fast, rx_fast;
	uint64_t tx_hash, rx_hash;
	int err;
	char what[64];
} total = { .mismatch_at = -1 };
static pthread_mutex_t total_lock = PTHREAD_MUTEX_INITIALIZER;
static int (*fd_path)(int);
static struct progress *progress;
static uint64_t last_came, longest_gap; /* ns: when bytes came last; the longest time without any */

/* ------------------------------------------------------------------ bytes */

static uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ULL;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

static void pattern(char *p, size_t n, uint64_t at, uint64_t seed)
{
	size_t i = 0;

	while (i < n) {
		uint64_t w = mix(((at + i) >> 3) + seed);
		size_t o = (at + i) & 7;

		if (!o && n - i >= 8) {
			memcpy(p + i, &w, 8);
			i += 8;
			continue;
		}
		for (; o < 8 && i < n; o++, i++)
			p[i] = (char)(w >> (8 * o));
	}
}

static void hash_word(struct hash *h, uint64_t w)
{
	h->h = (h->h ^ w) * 0x9fb21c651e98df25ULL;
	h->h ^= h->h >> 32;
}

static void hash_add(struct hash *h, const char *p, size_t n)
{
	while (n && h->have) {
		h->part |= (uint64_t)(unsigned char)*p++ << (8 * h->have);
		n--;
		h->have = (h->have + 1) & 7;
		if (!h->have) {
			hash_word(h, h->part);
			h->part = 0;
		}
	}
	for (; n >= 8; n -= 8, p += 8) {
		uint64_t w;

		memcpy(&w, p, 8);
		hash_word(h, w);
	}
	for (; n; n--, p++, h->have++)
		h->part |= (uint64_t)(unsigned char)*p << (8 * h->have);
}

static uint64_t hash_end(const struct hash *h, long idx)
{
	return mix(h->h ^ mix(h->part + h->have) ^ mix((uint64_t)idx + 77));
}

static unsigned int rnd(struct conn *c)
{
	c->rnd = c->rnd * 1103515245u + 12345u;
	return c->rnd >> 8;
}

/* a chunk of any size up to the limit, small ones as often as large ones */
static long chunk(struct conn *c, long left)
{
	long limit = opt.chunk;
	long n;

	if (rnd(c) % 4 == 0)
		limit = limit < 100 ? limit : 100;
	n = (long)(rnd(c) % (unsigned long)limit) + 1;
	return n < left ? n : left;
}

/* ------------------------------------------------------------------ what happened */

static void trouble(int err, const char *what)
{
	pthread_mutex_lock(&total_lock);
	if (!total.what[0]) {
		total.err = err;
		snprintf(total.what, sizeof(total.what), "%s", what);
	}
	pthread_mutex_unlock(&total_lock);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Bytes came, on whichever connection. */
static void came(void)
{
	uint64_t t = now_ns(), last = __atomic_exchange_n(&last_came, t, __ATOMIC_RELAXED);

	if (last && t > last && t - last > __atomic_load_n(&longest_gap, __ATOMIC_RELAXED))
		__atomic_store_n(&longest_gap, t - last, __ATOMIC_RELAXED);
}

static void note_progress(const struct conn *c)
{
	if (progress) {
		__atomic_store_n(&progress[c->idx].sent, c->sent, __ATOMIC_RELEASE);
		__atomic_store_n(&progress[c->idx].rcvd, c->rcvd, __ATOMIC_RELEASE);
	}
}

static void look_at_path(struct conn *c)
{
	if (fd_path) {
		c->path_end = fd_path(c->fd);
		if (c->path_end > 0)
			c->path_seen |= c->path_end;
	}
}

static void add_fast_bytes(int fd)
{
	const struct rs_stats_row *r;

	pthread_mutex_lock(&total_lock);
	r = own_row(fd);
	if (r) {
		total.tx_fast += (long)r->tx_fast_bytes;
		total.rx_fast += (long)r->rx_fast_bytes;
	}
	pthread_mutex_unlock(&total_lock);
}

static void finish(struct conn *c, bool good)
{
	if (fd_path)
		add_fast_bytes(c->fd);
	if (progress)
		progress[c->idx].end = good ? 1 : c->eof ? 2 : -c->err;
	pthread_mutex_lock(&total_lock);
	total.tx += c->sent;
	total.rx += c->rcvd;
	total.tx_hash ^= hash_end(&c->tx, c->idx);
	total.rx_hash ^= hash_end(&c->rx, c->idx);
	total.done += good;
	total.lost += !good;
	total.fast_seen += (c->path_seen & 0x0f) && (c->path_seen & 0xf0);
	total.fast_end += (c->path_end & 0x0f) && (c->path_end & 0xf0) && c->path_end > 0;
	pthread_mutex_unlock(&total_lock);
	if (close(c->fd))
		trouble(errno, "close");
	if (c->file >= 0)
		close(c->file);
	free(c->buf);
	c->buf = NULL;
	c->done = true;
}

/* ------------------------------------------------------------------ one connection */

static void conn_init(struct conn *c, int fd, long idx)
{
	int one = 1;
	uint64_t base = mix(opt.seed) + (uint64_t)idx * 2;
	bool mine = !opt.one_way || (opt.one_way == 's') == opt.server;
	bool theirs = !opt.one_way || (opt.one_way == 's') != opt.server;

	memset(c, 0, sizeof(*c));
	c->fd = fd;
	c->idx = idx;
	c->file = -1;
	c->to_send = mine ? opt.bytes : 0;
	c->to_recv = theirs ? opt.bytes : 0;
	c->rnd = opt.seed * 31 + (unsigned int)idx * 7 + opt.server;
	c->tx_seed = mix(base + opt.server);
	c->rx_seed = mix(base + !opt.server);
	c->tx.h = c->rx.h = 0x243f6a8885a308d3ULL;
	c->buf = malloc(2 * MAX_CHUNK);
	if (!c->buf)
		exit(2);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (!strcmp(opt.send, "sendfile") || !strcmp(opt.send, "mixed")) {
		c->file = memfd_create("stream", MFD_CLOEXEC);
		for (long o = 0; o < c->to_send && c->file >= 0; o += MAX_CHUNK) {
			long n = c->to_send - o < MAX_CHUNK ? c->to_send - o : MAX_CHUNK;

			pattern(c->buf, (size_t)n, (uint64_t)o, c->tx_seed);
			if (pwrite(c->file, c->buf, (size_t)n, o) != n)
				trouble(errno, "the file for sendfile");
		}
	}
	if (opt.nonblock || opt.mode >= EPOLL)
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static bool may_send(const struct conn *c)
{
	if (c->sent == c->to_send)
		return false;
	if (opt.first == 'b' || (opt.first == 's') == opt.server)
		return true;
	return c->rcvd == c->to_recv;
}

static bool lost(int err)
{
	return err == ECONNRESET || err == EPIPE;
}

/* > 0: that many bytes; 0: not now; -1: over */
static long send_some(struct conn *c)
{
	static const char *const all[] = { "send", "writev", "sendmsg", "sendfile", "write" };
	const char *how = opt.send;
	char *p;
	long left, r;

	if (c->sent >= c->tx_off + c->tx_len) {
		c->tx_off = c->sent;
		c->tx_len = chunk(c, c->to_send - c->sent);
		pattern(c->buf, (size_t)c->tx_len, (uint64_t)c->tx_off, c->tx_seed);
	}
	p = c->buf + (c->sent - c->tx_off);
	left = c->tx_off + c->tx_len - c->sent;
	if (!strcmp(how, "mixed"))
		how = all[rnd(c) % 5];
	struct iovec iov[3] = { { p, (size_t)(left / 3) },
				{ p + left / 3, (size_t)(left / 2 - left / 3) },
				{ p + left / 2, (size_t)(left - left / 2) } };
	struct msghdr m = { .msg_iov = iov, .msg_iovlen = 3 };
	off_t off = c->sent;

	if (!strcmp(how, "writev"))
		r = writev(c->fd, iov, 3);
	else if (!strcmp(how, "sendmsg"))
		r = sendmsg(c->fd, &m, MSG_NOSIGNAL);
	else if (!strcmp(how, "sendfile"))
		r = sendfile(c->fd, c->file, &off, (size_t)left);
	else if (!strcmp(how, "write"))
		r = write(c->fd, p, (size_t)left);
	else
		r = send(c->fd, p, (size_t)left, MSG_NOSIGNAL);
	if (r > left || r == 0) {
		trouble(0, "a send returned nonsense");
		return -1;
	}
	if (r < 0) {
		if (errno == EAGAIN || errno == EINTR)
			return 0;
		c->err = errno;
		trouble(c->err, how);
		return -1;
	}
	hash_add(&c->tx, p, (size_t)r);
	if ((c->sent < c->to_send / 2 && c->sent + r >= c->to_send / 2) ||
	    c->sent + r == c->to_send)
		look_at_path(c);
	c->sent += r;
	note_progress(c);
	if (c->sent == c->to_send && opt.halfclose && !c->shut) {
		look_at_path(c);
		c->shut = true;
		if (shutdown(c->fd, SHUT_WR)) {
			trouble(errno, "shutdown");
			return -1;
		}
	}
	return r;
}

/* > 0: that many bytes; 0: not now; -1: over (c->eof: by the end of the stream) */
static long recv_some(struct conn *c)
{
	static const char *const all[] = { "recv", "readv", "waitall", "read", "peek" };
	const char *how = opt.recv;
	char *p = c->buf + MAX_CHUNK;
	char want[MAX_CHUNK];
	long left = c->to_recv - c->rcvd;
	long n, r;

	if (!strcmp(how, "mixed"))
		how = all[rnd(c) % 5];
	/* ask for more than may come: an extra byte must show itself */
	n = chunk(c, MAX_CHUNK);
	if (!strcmp(how, "waitall") && n > left)
		n = left ? left : 1;
	struct iovec iov[2] = { { p, (size_t)(n / 3) }, { p + n / 3, (size_t)(n - n / 3) } };

	if (!strcmp(how, "readv"))
		r = readv(c->fd, iov, 2);
	else if (!strcmp(how, "waitall"))
		r = recv(c->fd, p, (size_t)n, MSG_WAITALL);
	else if (!strcmp(how, "read"))
		r = read(c->fd, p, (size_t)n);
	else if (!strcmp(how, "peek")) {
		r = recv(c->fd, p, (size_t)n, MSG_PEEK);
		if (r > 0) {
			memcpy(want, p, (size_t)r);
			long again = recv(c->fd, p, (size_t)r, 0);

			if (again != r || memcmp(want, p, (size_t)r)) {
				trouble(0, "what was peeked is not what was read");
				return -1;
			}
		}
	} else {
		r = recv(c->fd, p, (size_t)n, 0);
	}
	if (r < 0) {
		if (errno == EAGAIN || errno == EINTR)
			return 0;
		c->err = errno;
		trouble(c->err, how);
		return -1;
	}
	if (!r) {
		c->eof = true;
		return -1;
	}
	if (r > left) {
		pthread_mutex_lock(&total_lock);
		total.extra += r - left;
		pthread_mutex_unlock(&total_lock);
		trouble(0, "more bytes than were sent");
		r = left;
		if (!r)
			return -1;
	}
	pattern(want, (size_t)r, (uint64_t)c->rcvd, c->rx_seed);
	if (memcmp(want, p, (size_t)r)) {
		long i = 0;

		while (want[i] == p[i])
			i++;
		pthread_mutex_lock(&total_lock);
		if (total.mismatch_at < 0)
			total.mismatch_at = c->rcvd + i;
		pthread_mutex_unlock(&total_lock);
		trouble(0, "wrong bytes");
		return -1;
	}
	hash_add(&c->rx, p, (size_t)r);
	if ((c->rcvd < c->to_recv / 2 && c->rcvd + r >= c->to_recv / 2) ||
	    c->rcvd + r == c->to_recv)
		look_at_path(c);
	c->rcvd += r;
	note_progress(c);
	came();
	return r;
}

static bool all_done(const struct conn *c)
{
	return c->sent == c->to_send && c->rcvd == c->to_recv;
}

/* the client leaves first; with --halfclose everybody reads to the end */
static bool may_leave(struct conn *c)
{
	char x;

	if (!all_done(c) || opt.halfclose || opt.server)
		return false;
	if (recv(c->fd, &x, 1, MSG_DONTWAIT) >= 0)
		trouble(0, "something came after the last byte");
	look_at_path(c);
	return true;
}

/* after recv_some() said -1 */
static void ended(struct conn *c)
{
	bool good = c->eof && all_done(c);

	if (c->eof && !good)
		trouble(0, "end of the stream too early");
	finish(c, good);
}

/* waits when the descriptor is non-blocking */
static void pause_for(struct conn *c, short events)
{
	struct pollfd p = { .fd = c->fd, .events = events };

	if (opt.nonblock)
		poll(&p, 1, -1);
}

static void run_blocking(struct conn *c)
{
	for (;;) {
		long r;

		if (may_leave(c)) {
			finish(c, true);
			return;
		}
		/* as long as the other end sends too, neither runs far ahead */
		bool ahead = opt.first == 'b' && c->rcvd < c->to_recv && c->sent - c->rcvd > LEAD;

		if (may_send(c) && !ahead) {
			r = send_some(c);
			if (r < 0) {
				finish(c, false);
				return;
			}
			if (!r)
				pause_for(c, POLLOUT);
			continue;
		}
		r = recv_some(c);
		if (r < 0) {
			ended(c);
			return;
		}
		if (!r)
			pause_for(c, POLLIN);
	}
}

static void *thread_main(void *arg)
{
	run_blocking(arg);
	return NULL;
}

/* ------------------------------------------------------------------ many at once */

static bool held; /* --hold: nobody sends yet */

static uint32_t wanted(const struct conn *c)
{
	return (c->eof ? 0u : (uint32_t)EPOLLIN) | (may_send(c) && !held ? (uint32_t)EPOLLOUT : 0u);
}

static void serve(struct conn *c, uint32_t ev)
{
	/* a few turns, so that no connection starves the others */
	for (int i = 0; i < 8 && !c->done; i++) {
		bool moved = false;
		long r;

		if ((ev & (EPOLLIN | EPOLLHUP | EPOLLERR)) && !c->eof) {
			r = recv_some(c);
			/* after a half-close the other direction goes on */
			if (r < 0 &&
			    !(c->eof && opt.halfclose && c->rcvd == c->to_recv && !all_done(c))) {
				ended(c);
				return;
			}
			moved = r > 0;
		}
		if (!held && may_send(c)) {
			r = send_some(c);
			if (r < 0) {
				finish(c, false);
				return;
			}
			moved = moved || r > 0;
		}
		if (may_leave(c) || (c->eof && all_done(c))) {
			finish(c, true);
			return;
		}
		if (!moved)
			return;
	}
}

static void unhold(void)
{
	char b[64];

	if (read(0, b, sizeof(b)) == 0)
		held = false;
}

static void loop_epoll(struct conn *c, long n)
{
	int ep = epoll_create1(EPOLL_CLOEXEC);
	long left = n;
	struct epoll_event e[64];

	if (ep < 0) {
		trouble(errno, "epoll_create");
		return;
	}
	for (long i = 0; i < n; i++) {
		e[0].events = c[i].armed = wanted(&c[i]);
		e[0].data.ptr = &c[i];
		if (epoll_ctl(ep, EPOLL_CTL_ADD, c[i].fd, &e[0]))
			trouble(errno, "epoll_ctl");
	}
	if (held) {
		e[0].events = EPOLLIN;
		e[0].data.ptr = NULL;
		epoll_ctl(ep, EPOLL_CTL_ADD, 0, &e[0]);
	}
	while (left) {
		int k = epoll_wait(ep, e, 64, -1);
		bool free_all = false;

		if (k < 0 && errno != EINTR) {
			trouble(errno, "epoll_wait");
			return;
		}
		for (int i = 0; i < k; i++) {
			struct conn *x = e[i].data.ptr;

			if (!x) {
				unhold();
				if (!held) {
					epoll_ctl(ep, EPOLL_CTL_DEL, 0, NULL);
					free_all = true;
				}
				continue;
			}
			if (x->done)
				continue;
			serve(x, e[i].events);
			if (x->done) {
				left--;
			} else if (x->armed != wanted(x)) {
				struct epoll_event m = { .events = wanted(x), .data.ptr = x };

				x->armed = m.events;
				epoll_ctl(ep, EPOLL_CTL_MOD, x->fd, &m);
			}
		}
		for (long i = 0; free_all && i < n; i++) {
			struct epoll_event m = { .events = wanted(&c[i]), .data.ptr = &c[i] };

			c[i].armed = m.events;
			if (!c[i].done)
				epoll_ctl(ep, EPOLL_CTL_MOD, c[i].fd, &m);
		}
	}
	close(ep);
}

static void loop_poll(struct conn *c, long n)
{
	struct pollfd *p = calloc((size_t)n + 1, sizeof(*p));

	for (;;) {
		nfds_t k = 0;

		for (long i = 0; i < n; i++) {
			p[i].fd = c[i].done ? -1 : c[i].fd;
			p[i].events = (short)wanted(&c[i]);
			k += !c[i].done;
		}
		if (!k)
			break;
		p[n].fd = held ? 0 : -1;
		p[n].events = POLLIN;
		if (poll(p, (nfds_t)n + 1, -1) < 0) {
			if (errno == EINTR)
				continue;
			trouble(errno, "poll");
			break;
		}
		for (long i = 0; i < n; i++) {
			if (p[i].fd >= 0 && p[i].revents)
				serve(&c[i], (uint32_t)(unsigned short)p[i].revents);
		}
		if (p[n].fd >= 0 && p[n].revents)
			unhold();
	}
	free(p);
}

static void loop_select(struct conn *c, long n)
{
	for (;;) {
		fd_set r, w;
		int max = 0;
		long k = 0;

		FD_ZERO(&r);
		FD_ZERO(&w);
		for (long i = 0; i < n; i++) {
			if (c[i].done)
				continue;
			if (wanted(&c[i]) & EPOLLIN)
				FD_SET(c[i].fd, &r);
			if (wanted(&c[i]) & EPOLLOUT)
				FD_SET(c[i].fd, &w);
			if (c[i].fd > max)
				max = c[i].fd;
			k++;
		}
		if (!k)
			break;
		if (held)
			FD_SET(0, &r);
		if (select(max + 1, &r, &w, NULL, NULL) < 0) {
			if (errno == EINTR)
				continue;
			trouble(errno, "select");
			break;
		}
		for (long i = 0; i < n; i++) {
			uint32_t ev = 0;

			if (c[i].done)
				continue;
			if (FD_ISSET(c[i].fd, &r))
				ev |= EPOLLIN;
			if (FD_ISSET(c[i].fd, &w))
				ev |= EPOLLOUT;
			if (ev)
				serve(&c[i], ev);
		}
		if (held && FD_ISSET(0, &r))
			unhold();
	}
}

/* ------------------------------------------------------------------ set-up */

static bool full(int fd, void *p, size_t n, bool out)
{
	char *b = p;

	while (n) {
		ssize_t r = out ? send(fd, b, n, MSG_NOSIGNAL) : recv(fd, b, n, 0);

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			return false;
		b += r;
		n -= (size_t)r;
	}
	return true;
}

static double now(void)
{
	return (double)now_ns() / 1e9;
}

/*
 * Small messages until both ends see both directions fast. The server answers each with its path (0xff:
 * it does not know such things); the client says when it is enough. Plain ends exchange three of them.
 */
static void warm(int fd)
{
	unsigned char m[16] = { 0 };
	double end = now() + 5;

	for (int round = 0;; round++) {
		int path = fd_path ? fd_path(fd) : 0xff;

		if (opt.server) {
			if (!full(fd, m, sizeof(m), false)) {
				trouble(errno, "warm-up");
				return;
			}
			if (m[0] == 'g')
				return;
			m[1] = (unsigned char)path;
			if (!full(fd, m, sizeof(m), true))
				trouble(errno, "warm-up");
			continue;
		}
		bool ready = m[1] == 0xff || path == 0xff ||
			     ((m[1] & 0x0f) && (m[1] & 0xf0) && (path & 0x0f) && (path & 0xf0));

		m[0] = (ready && round >= 3) || now() > end ? 'g' : 'w';
		if (!full(fd, m, sizeof(m), true)) {
			trouble(errno, "warm-up");
			return;
		}
		if (m[0] == 'g')
			return;
		if (!full(fd, m, sizeof(m), false)) {
			trouble(errno, "warm-up");
			return;
		}
		if (round > 3)
			usleep(2000);
	}
}

static int open_socket(bool listening)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
				  .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV };
	struct addrinfo *ai;
	char port[16];
	int one = 1, fd;

	snprintf(port, sizeof(port), "%d", opt.port);
	if (getaddrinfo(opt.host, port, &hints, &ai)) {
		trouble(0, "getaddrinfo");
		return -1;
	}
	fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listening) {
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (bind(fd, ai->ai_addr, ai->ai_addrlen) || listen(fd, 4096))
			trouble(errno, "listen");
	} else {
		while (connect(fd, ai->ai_addr, ai->ai_addrlen)) {
			if (errno == EINTR)
				continue;
			trouble(errno, "connect");
			close(fd);
			fd = -1;
			break;
		}
	}
	freeaddrinfo(ai);
	return fd;
}

static int next_fd(int listener)
{
	/* cppcheck-suppress nullPointer */
	int fd = opt.server ? accept4(listener, NULL, NULL, SOCK_CLOEXEC) : open_socket(false);

	if (fd < 0 && opt.server)
		trouble(errno, "accept");
	if (fd >= 0 && opt.warm)
		warm(fd);
	return fd;
}

static void *fork_some(void *arg)
{
	(void)arg;
	for (long i = 0; i < opt.forks; i++) {
		pid_t pid = fork();

		if (pid == 0) {
			usleep(20000);
			_exit(0);
		}
		if (pid < 0)
			trouble(errno, "fork");
		usleep(10000);
		while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	return NULL;
}

static void open_progress(void)
{
	size_t len = (size_t)opt.conns * sizeof(*progress);
	int fd = open(opt.progress, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || ftruncate(fd, (off_t)len))
		exit(2);
	progress = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (progress == MAP_FAILED)
		exit(2);
}

static void run(int listener)
{
	pthread_t forker;
	struct conn *c = calloc((size_t)opt.conns, sizeof(*c));
	pthread_t *t = calloc((size_t)opt.conns, sizeof(*t));
	pthread_attr_t attr;
	long n = 0;

	if (!c || !t)
		exit(2);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 512 << 10);
	if (opt.progress)
		open_progress();
	if (opt.forks && pthread_create(&forker, &attr, fork_some, NULL))
		exit(2);
	for (; n < opt.conns; n++) {
		int fd = next_fd(listener);

		if (fd < 0)
			break;
		conn_init(&c[n], fd, n);
		if (n == (opt.mode == BLOCKING ? 0 : opt.conns - 1)) {
			printf("UP\n");
			fflush(stdout);
		}
		if (opt.mode == BLOCKING)
			run_blocking(&c[n]);
		else if (opt.mode == THREADS && pthread_create(&t[n], &attr, thread_main, &c[n]))
			trouble(0, "pthread_create");
	}
	if (opt.hold) {
		held = true;
		printf("READY\n");
		fflush(stdout);
	}
	if (opt.mode == EPOLL)
		loop_epoll(c, n);
	else if (opt.mode == POLL)
		loop_poll(c, n);
	else if (opt.mode == SELECT)
		loop_select(c, n);
	for (long i = 0; opt.mode == THREADS && i < n; i++)
		pthread_join(t[i], NULL);
	if (opt.forks)
		pthread_join(forker, NULL);
	free(c);
	free(t);
}

static long size_of(const char *s)
{
	char *end;
	long v = strtol(s, &end, 0);

	switch (*end) {
	case 'k':
		return v << 10;
	case 'm':
		return v << 20;
	case 'g':
		return v << 30;
	}
	return v;
}

static int word(const char *s, const char *const *words)
{
	for (int i = 0; words[i]; i++) {
		if (!strcmp(s, words[i]))
			return i;
	}
	fprintf(stderr, "stream: %s?\n", s);
	exit(2);
}

static void options(int argc, char **argv)
{
	static const char *const modes[] = {
		"blocking", "threads", "epoll", "poll", "select", NULL
	};
	static const struct option o[] = {
		{ "host", 1, NULL, 'H' },      { "port", 1, NULL, 'p' },
		{ "bytes", 1, NULL, 'b' },     { "conns", 1, NULL, 'n' },
		{ "mode", 1, NULL, 'm' },      { "first", 1, NULL, 'f' },
		{ "halfclose", 0, NULL, 'h' }, { "seed", 1, NULL, 's' },
		{ "send", 1, NULL, 'S' },      { "recv", 1, NULL, 'R' },
		{ "nonblock", 0, NULL, 'N' },  { "chunk", 1, NULL, 'c' },
		{ "warm", 0, NULL, 'w' },      { "hold", 0, NULL, 'o' },
		{ "one-way", 1, NULL, '1' },   { "progress", 1, NULL, 'P' },
		{ "forks", 1, NULL, 'F' },     { NULL, 0, NULL, 0 },
	};
	int k;

	if (argc < 2 || (strcmp(argv[1], "server") && strcmp(argv[1], "client"))) {
		fprintf(stderr, "stream server|client ...\n");
		exit(2);
	}
	opt.server = !strcmp(argv[1], "server");
	optind = 2;
	while ((k = getopt_long(argc, argv, "", o, NULL)) != -1) {
		switch (k) {
		case 'H':
			opt.host = optarg;
			break;
		case 'p':
			opt.port = atoi(optarg);
			break;
		case 'b':
			opt.bytes = size_of(optarg);
			break;
		case 'n':
			opt.conns = size_of(optarg);
			break;
		case 'm':
			opt.mode = (enum mode)word(optarg, modes);
			break;
		case 'f':
			opt.first = optarg[0];
			break;
		case 'h':
			opt.halfclose = true;
			break;
		case 's':
			opt.seed = (unsigned int)atol(optarg);
			break;
		case 'S':
			opt.send = optarg;
			break;
		case 'R':
			opt.recv = optarg;
			break;
		case 'N':
			opt.nonblock = true;
			break;
		case 'c':
			opt.chunk = size_of(optarg);
			if (opt.chunk < 1 || opt.chunk > MAX_CHUNK)
				opt.chunk = MAX_CHUNK;
			break;
		case 'w':
			opt.warm = true;
			break;
		case 'o':
			opt.hold = true;
			break;
		case '1':
			opt.one_way = optarg[0];
			break;
		case 'P':
			opt.progress = optarg;
			break;
		case 'F':
			opt.forks = size_of(optarg);
			break;
		default:
			exit(2);
		}
	}
}

int main(int argc, char **argv)
{
	int listener = -1;
	double start;
	bool good;
	void *p;

	options(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	p = dlsym(RTLD_DEFAULT, "rsock_fd_path");
	memcpy(&fd_path, &p, sizeof(p));
	if (opt.server) {
		struct sockaddr_storage ss;
		socklen_t l = sizeof(ss);

		listener = open_socket(true);
		if (listener < 0 || getsockname(listener, (struct sockaddr *)&ss, &l))
			return 2;
		printf("PORT %d\n",
		       ntohs(ss.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&ss)->sin6_port
						      : ((struct sockaddr_in *)&ss)->sin_port));
		fflush(stdout);
	}
	start = now();
	run(listener);
	good = total.done == opt.conns && !total.what[0];
	printf("{\"role\": \"%s\", \"ok\": %s, \"conns\": %ld, \"lost\": %ld, \"tx\": %ld, \"rx\": %ld, "
	       "\"tx_hash\": \"%016llx\", \"rx_hash\": \"%016llx\", \"mismatch_at\": %ld, "
	       "\"extra\": %ld, \"what\": \"%s\", \"errno\": \"%s\", \"rsock\": %s, "
	       "\"fast_seen\": %ld, \"fast_end\": %ld, \"tx_fast\": %ld, \"rx_fast\": %ld, "
	       "\"gap_ms\": %.1f, \"seconds\": %.3f}\n",
	       opt.server ? "server" : "client", good ? "true" : "false", total.done, total.lost,
	       total.tx, total.rx, (unsigned long long)total.tx_hash,
	       (unsigned long long)total.rx_hash, total.mismatch_at, total.extra, total.what,
	       total.err ? strerrorname_np(total.err) : "", fd_path ? "true" : "false",
	       total.fast_seen, total.fast_end, total.tx_fast, total.rx_fast,
	       (double)longest_gap / 1e6, now() - start);
	if (total.mismatch_at >= 0 || total.extra)
		return 1;
	if (good)
		return 0;
	return lost(total.err) || !strcmp(total.what, "end of the stream too early") ? 3 : 2;
}
