/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * settle.c - makes the connections of a test suite fast from their first byte on, and counts them
 *
 * Preloaded in front of librsock-preload.so, or alone: then the same program runs on kernel TCP.
 *
 * Most connections of a test suite carry a few bytes and end: before they are worth a claim. With
 * SETTLE_MS=N accept() returns when the connection is on the fast path, or N ms have passed. What it
 * gives is used for the first time here (a poll), so a server that forks for each connection has it.
 *
 * With SETTLE_PAIRS=1 socketpair() of unix stream sockets gives a TCP connection: suites like to test
 * their event loops with such pairs.
 *
 * SETTLE_COUNTS names a file of two 64-bit numbers, shared by all processes: connections accepted, and
 * those of them that were seen on the fast path, when they began or when they are closed.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FDS 4096 /* those with higher numbers are not looked at */
#define TX 0x0f
#define RX 0xf0

#pragma GCC visibility push(default)
int accept(int fd, struct sockaddr *addr, socklen_t *len);
int accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags);
int socketpair(int domain, int type, int protocol, int pair[2]);
int close(int fd);
#pragma GCC visibility pop

/* Those of rsock, or libc's. */
static struct {
	int (*accept)(int fd, struct sockaddr *addr, socklen_t *len);
	int (*accept4)(int fd, struct sockaddr *addr, socklen_t *len, int flags);
	int (*socketpair)(int domain, int type, int protocol, int pair[2]);
	int (*close)(int fd);
	int (*path)(int fd); /* NULL: without rsock */
} next;

enum { NOTHING, ACCEPTED, FAST };
static uint8_t seen[FDS];
static uint64_t *counts; /* accepted, fast */
static int settle_ms, pairs;

static int number(const char *name)
{
	const char *s = getenv(name);

	return s ? atoi(s) : 0;
}

__attribute__((constructor)) static void start(void)
{
	const char *path = getenv("SETTLE_COUNTS");
	void *p, *found[] = { dlsym(RTLD_NEXT, "accept"), dlsym(RTLD_NEXT, "accept4"),
			      dlsym(RTLD_NEXT, "socketpair"), dlsym(RTLD_NEXT, "close"),
			      dlsym(RTLD_NEXT, "rsock_fd_path") };
	int fd;

	memcpy(&next, found, sizeof(next));
	settle_ms = number("SETTLE_MS");
	pairs = number("SETTLE_PAIRS");
	fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	if (fd < 0)
		return;
	p = mmap(NULL, 2 * sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p != MAP_FAILED)
		counts = p;
	next.close(fd);
}

static void count(size_t which)
{
	if (counts)
		__atomic_fetch_add(&counts[which], 1, __ATOMIC_RELAXED);
}

/* Which directions are fast. */
static int look(int fd)
{
	int path = next.path ? next.path(fd) : 0;

	if (path && fd < FDS && seen[fd] == ACCEPTED) {
		seen[fd] = FAST;
		count(1);
	}
	return path;
}

/* What the peer has sent before can only be read from TCP: then that direction comes later. */
static bool settled(int fd)
{
	int path = look(fd), unread = 0;

	return path & TX && (path & RX || (ioctl(fd, FIONREAD, &unread) == 0 && unread > 0));
}

static void settle(int fd)
{
	const struct timespec pause = { .tv_nsec = 250000 };
	struct pollfd used = { .fd = fd };

	if (!next.path || settle_ms <= 0)
		return;
	poll(&used, 1, 0);
	for (int i = 0; i < 4 * settle_ms && !settled(fd); i++)
		nanosleep(&pause, NULL);
}

static bool tcp(int fd)
{
	int domain = 0, type = 0;
	socklen_t len = sizeof(int);

	return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 &&
	       (domain == AF_INET || domain == AF_INET6) &&
	       getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) == 0 && type == SOCK_STREAM;
}

static int accepted(int fd)
{
	int saved = errno;

	if (fd < 0 || !tcp(fd))
		return fd;
	if (fd < FDS)
		seen[fd] = ACCEPTED;
	count(0);
	settle(fd);
	errno = saved;
	return fd;
}

int accept(int fd, struct sockaddr *addr, socklen_t *len)
{
	return accepted(next.accept(fd, addr, len));
}

int accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
	return accepted(next.accept4(fd, addr, len, flags));
}

/* A listener on a port of its own, for one connection. */
static int one_connection(int pair[2])
{
	struct sockaddr_in sa = { .sin_family = AF_INET };
	struct sockaddr *addr = (struct sockaddr *)&sa;
	socklen_t len = sizeof(sa);
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	pair[0] = socket(AF_INET, SOCK_STREAM, 0);
	pair[1] = -1;
	if (listener >= 0 && pair[0] >= 0 && bind(listener, addr, len) == 0 &&
	    listen(listener, 1) == 0 && getsockname(listener, addr, &len) == 0 &&
	    connect(pair[0], addr, len) == 0)
		pair[1] = accept(listener, NULL, NULL);
	if (listener >= 0)
		close(listener);
	if (pair[1] < 0 && pair[0] >= 0)
		close(pair[0]);
	return pair[1] < 0 ? -1 : 0;
}

int socketpair(int domain, int type, int protocol, int pair[2])
{
	const int on = 1;

	if (!pairs || domain != AF_UNIX || protocol != 0 ||
	    (type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)) != SOCK_STREAM)
		return next.socketpair(domain, type, protocol, pair);
	if (one_connection(pair) != 0)
		return -1;
	for (int i = 0; i < 2; i++) {
		setsockopt(pair[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		settle(pair[i]);
		if (type & SOCK_NONBLOCK)
			fcntl(pair[i], F_SETFL, O_RDWR | O_NONBLOCK);
		if (type & SOCK_CLOEXEC)
			fcntl(pair[i], F_SETFD, FD_CLOEXEC);
	}
	return 0;
}

int close(int fd)
{
	if (!next.close) /* another library starts before us */
		start();
	if (fd >= 0 && fd < FDS && seen[fd] == ACCEPTED)
		look(fd);
	if (fd >= 0 && fd < FDS)
		seen[fd] = NOTHING;
	return next.close(fd);
}
