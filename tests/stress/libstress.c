/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "tests/stress/libstress.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "conn_mgr/link.h"
#include "preload/process.h"
#include "rsock/rsock.h"

#ifdef __SANITIZE_THREAD__
/* Each process here has threads, and its children start a control thread of their own. */
extern const char *__tsan_default_options(void);
__attribute__((visibility("default"))) const char *__tsan_default_options(void)
{
	return "die_after_fork=0";
}
#endif

#define MAX_IO ((size_t)96 << 10)

static int point, failures;
static bool failed;
static uint64_t seed;
static uint32_t case_ms = 600;
static const char *program = "";

static void hung(int sig)
{
	static const char text[] = "\nBail out! it hangs\n";

	(void)sig;
	if (write(1, text, sizeof(text) - 1) < 0)
		_exit(3);
	if (getenv("STRESS_STAY"))
		for (;;)
			pause(); /* for a debugger */
	_exit(2);
}

void stress_join(uint64_t its_seed, unsigned int alarm_s)
{
	seed = its_seed;
	signal(SIGALRM, hung);
	signal(SIGPIPE, SIG_IGN);
	alarm(alarm_s);
	setvbuf(stdout, NULL, _IOLBF, 0);
	/* A loaded machine may take its time: a stream that gave up is none that a test can wait for. */
	setenv("RSOCK_WINDOW_MS", "20000", 0);
	rs_process_init();
}

void stress_begin(int points, unsigned int alarm_s)
{
	const char *s = getenv("STRESS_MS");

	program = program_invocation_short_name;
	if (s)
		case_ms = (uint32_t)strtoul(s, NULL, 0);
	s = getenv("STRESS_SEED");
	stress_join(s ? strtoull(s, NULL, 0) : 1, alarm_s);
	printf("1..%d\n", points);
}

void stress_point(const char *name)
{
	bool bad = __atomic_exchange_n(&failed, false, __ATOMIC_SEQ_CST);

	failures += bad;
	printf("%sok %d - %s: %s\n", bad ? "not " : "", ++point, program, name);
}

int stress_end(void)
{
	return failures != 0;
}

static void line(const char *tag, const char *fmt, va_list ap)
{
	char buf[400];

	vsnprintf(buf, sizeof(buf), fmt, ap);
	printf("# %s%s\n", tag, buf);
}

void stress_fail(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	line("FAILED: ", fmt, ap);
	va_end(ap);
	__atomic_store_n(&failed, true, __ATOMIC_SEQ_CST);
}

bool stress_failed(void)
{
	return __atomic_load_n(&failed, __ATOMIC_SEQ_CST);
}

void stress_note(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	line("", fmt, ap);
	va_end(ap);
}

void stress_bail(const char *fmt, ...)
{
	char buf[400];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(buf, sizeof(buf), fmt, ap);
	va_end(ap);
	printf("Bail out! %s\n", buf);
	fflush(stdout);
	_exit(2);
}

uint32_t stress_ms(void)
{
	return case_ms;
}

uint64_t stress_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000u + (uint64_t)ts.tv_nsec / 1000000u;
}

/* ---- random ---- */

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

struct rng rng_new(void)
{
	static uint64_t count;
	uint64_t n = __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED);

	return (struct rng){ mix(seed * 0x9e3779b97f4a7c15ULL + n) };
}

uint64_t rng_next(struct rng *r)
{
	r->state += 0x9e3779b97f4a7c15ULL;
	return mix(r->state);
}

uint32_t rng_below(struct rng *r, uint32_t n)
{
	return (uint32_t)(rng_next(r) % n);
}

size_t rng_size(struct rng *r, size_t max)
{
	uint32_t bits = (uint32_t)(64 - __builtin_clzll((unsigned long long)max));
	size_t limit = (size_t)1 << rng_below(r, bits + 1);

	if (limit > max)
		limit = max;
	return 1 + (size_t)(rng_next(r) % limit);
}

/* ---- data ---- */

void pattern_fill(uint64_t id, uint64_t at, void *buf, size_t n)
{
	uint8_t *p = buf;

	while (n) {
		uint64_t word = mix(id << 40 ^ at >> 3);
		size_t off = at & 7, k = 8 - off < n ? 8 - off : n;

		memcpy(p, (const uint8_t *)&word + off, k);
		p += k;
		at += k;
		n -= k;
	}
}

bool pattern_check(uint64_t id, uint64_t at, const void *buf, size_t n)
{
	const uint8_t *p = buf;
	uint8_t want[4096];

	while (n) {
		size_t k = n < sizeof(want) ? n : sizeof(want);

		pattern_fill(id, at, want, k);
		if (memcmp(want, p, k) != 0)
			return false;
		p += k;
		at += k;
		n -= k;
	}
	return true;
}

/* ---- sockets ---- */

int stress_listen(uint16_t *port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(sa);
	int fd = rsock_socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) != 0 ||
	    rsock_listen(fd, 1024) != 0 || getsockname(fd, (struct sockaddr *)&sa, &len) != 0)
		stress_bail("listen: %s", strerror(errno));
	*port = ntohs(sa.sin_port);
	return fd;
}

int stress_connect(uint16_t port)
{
	const struct sockaddr_in sa = { .sin_family = AF_INET,
					.sin_port = htons(port),
					.sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = rsock_socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		stress_bail("socket: %s", strerror(errno));
	if (rsock_connect(fd, (const struct sockaddr *)&sa, sizeof(sa)) != 0) {
		rsock_close(fd);
		return -1;
	}
	return fd;
}

int stress_accept(int listener)
{
	struct pollfd p = { .fd = rsock_accept4(listener, NULL, NULL, SOCK_CLOEXEC) };

	/* It can be claimed from its first use on. */
	if (p.fd >= 0)
		rsock_poll(&p, 1, 0);
	return p.fd;
}

void stress_pair(int listener, uint16_t port, int fds[2])
{
	fds[0] = stress_connect(port);
	if (fds[0] < 0)
		stress_bail("connect: %s", strerror(errno));
	fds[1] = stress_accept(listener);
	if (fds[1] < 0)
		stress_bail("accept: %s", strerror(errno));
}

void stress_nonblock(int fd)
{
	int fl = rsock_fcntl(fd, F_GETFL, 0);

	if (fl < 0 || rsock_fcntl(fd, F_SETFL, (unsigned long)fl | O_NONBLOCK) != 0)
		stress_bail("fcntl: %s", strerror(errno));
}

bool stress_wait_fast(int fd, uint32_t ms)
{
	const struct timespec ts = { 0, 500000 };
	uint64_t end = stress_now() + ms;

	while (rsock_fd_path(fd) != (1 | 1 << 4)) {
		struct pollfd p = { fd, POLLIN, 0 };

		/* Looking at the stream lets it come to where it enters. */
		if (stress_now() > end || rsock_poll(&p, 1, 0) < 0)
			return false;
		nanosleep(&ts, NULL);
	}
	return true;
}

static uint32_t count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	uint32_t n = 0;

	if (!d)
		stress_bail("/proc/self/fd");
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

uint32_t stress_fds(uint32_t target, uint32_t ms)
{
	uint64_t end = stress_now() + ms;
	uint32_t n = count_fds();

	while (target && n > target && stress_now() < end) {
		usleep(10000);
		n = count_fds();
	}
	return n;
}

void stress_slots(void)
{
	uint64_t end = stress_now() + STRESS_LONG_MS;
	uint32_t used;

	do {
		usleep(10000);
		used = 0;
		for (struct rs_link *l = __atomic_load_n(&rs_links, __ATOMIC_ACQUIRE); l;
		     l = l->next) {
			rs_lock(&l->lock);
			used += l->used;
			rs_unlock(&l->lock);
		}
	} while (used && stress_now() < end);
	if (used)
		stress_fail("%u slots are never released", used);
}

pthread_t stress_thread(void *(*run)(void *arg), void *arg)
{
	pthread_t t;

	if (pthread_create(&t, NULL, run, arg) != 0)
		stress_bail("pthread_create");
	return t;
}

/* ---- ends ---- */

void end_pair(struct end *a, struct end *b, const int fds[2], uint64_t max)
{
	static uint64_t next_id;
	uint64_t id = __atomic_fetch_add(&next_id, 2, __ATOMIC_RELAXED);
	struct rng r = rng_new();

	memset(a, 0, sizeof(*a));
	memset(b, 0, sizeof(*b));
	a->fd = fds[0];
	b->fd = fds[1];
	a->tx_id = b->rx_id = id;
	b->tx_id = a->rx_id = id + 1;
	a->tx_total = b->rx_total = rng_size(&r, max);
	b->tx_total = a->rx_total = rng_size(&r, max);
	a->rng = rng_new();
	b->rng = rng_new();
}

int end_send(struct end *e)
{
	uint8_t buf[MAX_IO];
	uint64_t left = e->tx_total - e->tx;
	size_t n;
	ssize_t r;

	if (e->shut)
		return END_OVER;
	if (!left) {
		if (rsock_shutdown(e->fd, SHUT_WR) != 0)
			stress_fail("shutdown: %s", strerror(errno));
		e->shut = true;
		return END_OVER;
	}
	n = rng_size(&e->rng, sizeof(buf));
	if (n > left)
		n = (size_t)left;
	pattern_fill(e->tx_id, e->tx, buf, n);
	if (n > 100 && rng_below(&e->rng, 4) == 0) {
		struct iovec iov[3] = { { buf, n / 3 },
					{ buf + n / 3, n / 2 - n / 3 },
					{ buf + n / 2, n - n / 2 } };

		r = rsock_writev(e->fd, iov, 3);
	} else {
		r = rsock_send(e->fd, buf, n, 0);
	}
	if (r < 0) {
		if (errno == EAGAIN || errno == EINTR)
			return END_AGAIN;
		stress_fail("send at %llu of %llu: %s", (unsigned long long)e->tx,
			    (unsigned long long)e->tx_total, strerror(errno));
		e->shut = true;
		return END_OVER;
	}
	if ((size_t)r > n || r == 0)
		stress_fail("send of %zu gave %zd", n, r);
	e->tx += (uint64_t)r;
	if (rsock_fd_path(e->fd) & 1)
		e->fast = true;
	else
		e->left |= e->fast;
	return END_MORE;
}

int end_recv(struct end *e)
{
	uint8_t buf[MAX_IO];
	size_t n = rng_size(&e->rng, sizeof(buf));
	bool peek = rng_below(&e->rng, 16) == 0;
	ssize_t r;

	if (e->eof)
		return END_OVER;
	if (rng_below(&e->rng, 4) == 0) {
		struct iovec iov[2] = { { buf, n / 2 }, { buf + n / 2, n - n / 2 } };
		struct msghdr mh = { .msg_iov = iov, .msg_iovlen = 2 };

		r = rsock_recvmsg(e->fd, &mh, peek ? MSG_PEEK : 0);
	} else {
		r = rsock_recv(e->fd, buf, n, peek ? MSG_PEEK : 0);
	}
	if (r < 0) {
		if (errno == EAGAIN || errno == EINTR)
			return END_AGAIN;
		stress_fail("recv at %llu of %llu: %s", (unsigned long long)e->rx,
			    (unsigned long long)e->rx_total, strerror(errno));
		e->eof = true;
		return END_OVER;
	}
	if (r == 0) {
		if (e->rx != e->rx_total)
			stress_fail("end of file at %llu of %llu", (unsigned long long)e->rx,
				    (unsigned long long)e->rx_total);
		e->eof = true;
		return END_OVER;
	}
	if ((size_t)r > n || e->rx + (uint64_t)r > e->rx_total ||
	    !pattern_check(e->rx_id, e->rx, buf, (size_t)r)) {
		stress_fail("wrong bytes at %llu + %zd of %llu%s", (unsigned long long)e->rx, r,
			    (unsigned long long)e->rx_total, peek ? " (peek)" : "");
		e->eof = true;
		return END_OVER;
	}
	if (!peek)
		e->rx += (uint64_t)r;
	return END_MORE;
}
