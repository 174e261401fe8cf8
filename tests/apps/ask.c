/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * ask.c - a server that answers lines, and a client that takes the time
 *
 *	ask serve ADDR PORT WORKERS EACH
 *	ask ADDR PORT [settle]
 *	ask ADDR PORT crowd COUNT AT_ONCE
 *
 * The server's workers are forked after listen() and accept from the one listener, as long as they
 * have less than EACH connections; it prints their pids. A worker answers a line with its pid and
 * the line.
 *
 * The client makes a connection for each line of stdin, asks something on it, checks every byte of
 * the answer, and prints in microseconds how long connect() took, and from before that to the first
 * byte of the answer. With "settle" it then asks on until rsock has decided on the path of the
 * connection, and once more. The connections stay open until the end of stdin.
 *
 * A crowd is COUNT clients with one connection each, which settle: processes that are forked from one
 * that has none, AT_ONCE of them at a time.
 *
 * Prints JSON. Exit status: 0, or 1 when something went wrong.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/apps/libown.h"

#define LINE 1000 /* the longest */
#define MAX_FDS 4096
#define SETTLE_US 20000000
#define PAUSE_US 2000 /* the first one; each is twice the last */
#define MAX_PAUSE_US 100000

static void fail(const char *what)
{
	printf("{\"error\": \"%s: %s\"}\n", what, strerror(errno));
	exit(1);
}

static long now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static struct sockaddr_in address(const char *ip, const char *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)) };

	if (inet_pton(AF_INET, ip, &a.sin_addr) != 1) {
		errno = EINVAL;
		fail(ip);
	}
	return a;
}

static bool send_all(int fd, const char *data, size_t len)
{
	while (len) {
		ssize_t n = send(fd, data, len, MSG_NOSIGNAL);

		if (n < 0)
			return false;
		data += n;
		len -= (size_t)n;
	}
	return true;
}

/* ---- server ---- */

struct caller {
	size_t have;
	char line[LINE];
};

static struct caller *callers[MAX_FDS];
static int poller, door, each, present;

/* With events 0 the worker does not accept. */
static void accept_on(uint32_t events)
{
	struct epoll_event ev = { .events = events, .data.fd = door };

	epoll_ctl(poller, EPOLL_CTL_MOD, door, &ev);
}

static void hang_up(int fd)
{
	if (present-- == each)
		accept_on(EPOLLIN);
	free(callers[fd]);
	callers[fd] = NULL;
	close(fd);
}

static void answer(int fd)
{
	struct caller *c = callers[fd];
	char said[LINE + 32];
	ssize_t n = recv(fd, c->line + c->have, sizeof(c->line) - c->have, 0);
	int len;

	if (n <= 0) {
		hang_up(fd);
		return;
	}
	c->have += (size_t)n;
	if (c->line[c->have - 1] == '\n') {
		len = snprintf(said, sizeof(said), "%d %.*s", getpid(), (int)c->have, c->line);
		c->have = 0;
		if (!send_all(fd, said, (size_t)len))
			hang_up(fd);
	} else if (c->have == sizeof(c->line)) {
		hang_up(fd);
	}
}

static void admit(void)
{
	int fd = accept(door, NULL, NULL);
	struct epoll_event ev = { .events = EPOLLIN, .data.fd = fd };

	if (fd < 0)
		return; /* another worker was faster */
	if (fd >= MAX_FDS || !(callers[fd] = calloc(1, sizeof(struct caller)))) {
		close(fd);
		return;
	}
	epoll_ctl(poller, EPOLL_CTL_ADD, fd, &ev);
	if (++present == each)
		accept_on(0);
}

static void work(void)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.fd = door }, got[64];

	poller = epoll_create1(EPOLL_CLOEXEC);
	epoll_ctl(poller, EPOLL_CTL_ADD, door, &ev);
	for (;;) {
		int n = epoll_wait(poller, got, 64, -1);

		for (int i = 0; i < n; i++) {
			if (got[i].data.fd == door)
				admit();
			else
				answer(got[i].data.fd);
		}
	}
}

static int serve(const char *ip, const char *port, int workers)
{
	struct sockaddr_in a = address(ip, port);
	int one = 1;

	door = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(door, (struct sockaddr *)&a, sizeof(a)) || listen(door, 1000))
		fail("listen");
	printf("{\"pids\": [");
	for (int i = 0; i < workers; i++) {
		pid_t pid = fork();

		if (pid < 0)
			fail("fork");
		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			work();
		}
		printf("%s%d", i ? ", " : "", pid);
	}
	printf("]}\n");
	fflush(stdout);
	while (wait(NULL) > 0 || errno == EINTR)
		;
	return 1;
}

/* ---- client ---- */

/* Asks once. When the answer began. *by: whose it is. */
static long ask(int fd, unsigned int number, int *by)
{
	char asked[LINE], said[LINE + 32];
	size_t len = 0, have = 0;
	long first = 0;
	char *rest;

	len = (size_t)snprintf(asked, sizeof(asked), "%u:", number);
	for (; len < 64 + number * 37 % (LINE - 65); len++)
		asked[len] = (char)('a' + (len * 7 + number) % 26);
	asked[len++] = '\n';
	if (!send_all(fd, asked, len))
		fail("send");
	do {
		ssize_t n = recv(fd, said + have, sizeof(said) - 1 - have, 0);

		if (n <= 0) {
			errno = n ? errno : ENODATA;
			fail("recv");
		}
		if (!first)
			first = now_us();
		have += (size_t)n;
	} while (said[have - 1] != '\n' && have < sizeof(said) - 1);
	said[have] = 0;
	*by = (int)strtol(said, &rest, 10);
	if (*rest != ' ' || (size_t)(said + have - rest) != len + 1 ||
	    memcmp(rest + 1, asked, len) != 0) {
		printf("{\"error\": \"wrong answer\", \"number\": %u}\n", number);
		exit(1);
	}
	return first;
}

static bool decided(const struct rs_stats_row *r)
{
	if (r->tx_path != r->rx_path)
		return false;
	return r->tx_path != RS_PATH_TCP ||
	       (r->reason != RS_REASON_STARTING && r->reason != RS_REASON_NONE);
}

static void call(const struct sockaddr_in *a, unsigned int number, bool settle)
{
	static const char *const paths[] = { "tcp", "shm", "rdma" };
	const struct rs_stats_row *r = NULL;
	int by, same, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	long begin = now_us(), connected, first, end = begin + SETTLE_US;
	unsigned int asked = 1, pause = PAUSE_US;

	if (connect(fd, (const struct sockaddr *)a, sizeof(*a)))
		fail("connect");
	connected = now_us();
	first = ask(fd, number, &by);
	printf("{\"connect\": %ld, \"first\": %ld, \"by\": %d", connected - begin, first - begin,
	       by);
	if (settle) {
		do {
			usleep(pause);
			pause = pause < MAX_PAUSE_US / 2 ? 2 * pause : MAX_PAUSE_US;
			ask(fd, number + asked++, &same);
			r = own_row(fd);
		} while (r && !decided(r) && now_us() < end);
		ask(fd, number + asked++, &same);
		if (same != by) {
			printf("}\n{\"error\": \"answered by %d and %d\"}\n", by, same);
			exit(1);
		}
		printf(", \"asked\": %u, \"took\": %ld", asked, now_us() - begin);
		if (r) /* else without rsock */
			printf(", \"path\": \"%s\", \"reason\": \"%s\", \"fast\": [%llu, %llu]",
			       r->tx_path == r->rx_path ? paths[r->tx_path] : "mixed",
			       rs_reason_word(r->reason), (unsigned long long)r->tx_fast_bytes,
			       (unsigned long long)r->rx_fast_bytes);
	}
	printf("}\n");
	fflush(stdout);
}

static int crowd(const struct sockaddr_in *a, unsigned int count, unsigned int at_once)
{
	int bad = 0, status;

	for (unsigned int i = 0; i < count; i++) {
		pid_t pid;

		if (i >= at_once && wait(&status) > 0)
			bad |= status;
		pid = fork();
		if (pid < 0)
			fail("fork");
		if (!pid) {
			call(a, i, true);
			exit(0);
		}
	}
	while (wait(&status) > 0)
		bad |= status;
	return bad != 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_in a;
	unsigned int number = 0;
	int c;

	if (argc == 6 && !strcmp(argv[1], "serve")) {
		each = atoi(argv[5]);
		return serve(argv[2], argv[3], atoi(argv[4]));
	}
	if (argc < 3) {
		fprintf(stderr,
			"usage: ask serve ADDR PORT WORKERS EACH | ask ADDR PORT [settle] | "
			"ask ADDR PORT crowd COUNT AT_ONCE\n");
		return 1;
	}
	a = address(argv[1], argv[2]);
	if (argc == 6 && !strcmp(argv[3], "crowd"))
		return crowd(&a, (unsigned int)atoi(argv[4]), (unsigned int)atoi(argv[5]));
	while ((c = getchar()) != EOF)
		if (c == '\n')
			call(&a, number++, argc > 3);
	return 0;
}
