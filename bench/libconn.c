/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#define _GNU_SOURCE
#include "bench/libconn.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bench/libbench.h"

enum bench_mode bench_parse_mode(const char *text)
{
	if (!strcmp(text, "blocking"))
		return BENCH_BLOCKING;
	if (!strcmp(text, "poll"))
		return BENCH_POLL;
	if (!strcmp(text, "epoll"))
		return BENCH_EPOLL;
	fprintf(stderr, "mode is blocking, poll or epoll\n");
	exit(2);
}

static struct in_addr address(void)
{
	const char *text = getenv("BENCH_ADDRESS");
	struct in_addr a = { htonl(INADDR_LOOPBACK) };

	if (text && inet_pton(AF_INET, text, &a) != 1)
		bench_die("BENCH_ADDRESS is not an IPv4 address");
	return a;
}

int bench_listen(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr = address() };
	socklen_t len = sizeof(a);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 128) < 0 ||
	    getsockname(fd, (struct sockaddr *)&a, &len) < 0)
		bench_die("listen");
	printf("%d\n", ntohs(a.sin_port));
	fflush(stdout);
	return fd;
}

static struct bench_conn conn_of(int fd, enum bench_mode mode)
{
	struct bench_conn c = { .fd = fd, .epfd = -1, .mode = mode };
	struct epoll_event ev = { .events = EPOLLIN };

	if (mode != BENCH_BLOCKING && fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
		bench_die("fcntl");
	if (mode == BENCH_EPOLL) {
		c.epfd = epoll_create1(EPOLL_CLOEXEC);
		if (c.epfd < 0 || epoll_ctl(c.epfd, EPOLL_CTL_ADD, fd, &ev) < 0)
			bench_die("epoll");
	}
	return c;
}

struct bench_conn bench_accept(int listener, enum bench_mode mode)
{
	int fd = accept(listener, NULL, NULL);

	if (fd < 0)
		bench_die("accept");
	return conn_of(fd, mode);
}

struct bench_conn bench_connect(uint16_t port, enum bench_mode mode)
{
	struct sockaddr_in a = { .sin_family = AF_INET,
				 .sin_port = htons(port),
				 .sin_addr = address() };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0)
		bench_die("connect");
	return conn_of(fd, mode);
}

void bench_nodelay(struct bench_conn *c, bool on)
{
	int value = on;

	if (setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &value, sizeof(value)) < 0)
		bench_die("TCP_NODELAY");
}

void bench_push(struct bench_conn *c)
{
	bench_nodelay(c, true);
	bench_nodelay(c, false);
}

void bench_close(struct bench_conn *c)
{
	if (c->epfd >= 0)
		close(c->epfd);
	close(c->fd);
}

static void wait_readable(struct bench_conn *c)
{
	struct pollfd p = { .fd = c->fd, .events = POLLIN };
	struct epoll_event ev;
	int n = 1;

	if (c->mode == BENCH_POLL)
		n = poll(&p, 1, -1);
	else if (c->mode == BENCH_EPOLL)
		n = epoll_wait(c->epfd, &ev, 1, -1);
	if (n < 0 && errno != EINTR)
		bench_die("wait");
}

static void wait_writable(struct bench_conn *c)
{
	struct pollfd p = { .fd = c->fd, .events = POLLOUT };

	if (poll(&p, 1, -1) < 0 && errno != EINTR)
		bench_die("wait");
}

void bench_send(struct bench_conn *c, const void *buf, size_t len)
{
	const char *p = buf;

	while (len) {
		ssize_t n = send(c->fd, p, len, MSG_NOSIGNAL);

		if (n >= 0) {
			p += n;
			len -= (size_t)n;
		} else if (errno == EAGAIN) {
			wait_writable(c);
		} else if (errno != EINTR) {
			bench_die("send");
		}
	}
}

size_t bench_recv_some(struct bench_conn *c, void *buf, size_t len)
{
	for (;;) {
		ssize_t n;

		wait_readable(c);
		n = recv(c->fd, buf, len, 0);
		if (n >= 0)
			return (size_t)n;
		if (errno != EAGAIN && errno != EINTR)
			bench_die("recv");
	}
}

bool bench_recv(struct bench_conn *c, void *buf, size_t len)
{
	char *p = buf;

	while (len) {
		size_t n = bench_recv_some(c, p, len);

		if (n == 0)
			return false;
		p += n;
		len -= n;
	}
	return true;
}

int bench_path(const struct bench_conn *c)
{
	static int (*fd_path)(int);
	static bool looked;

	if (!looked) {
		void *sym = dlsym(RTLD_DEFAULT, "rsock_fd_path");

		memcpy(&fd_path, &sym, sizeof(sym));
		looked = true;
	}
	return fd_path ? fd_path(c->fd) : -1;
}
