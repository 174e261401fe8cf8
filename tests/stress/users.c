/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * users.c - connections to processes of another user: who waits for them is woken, whatever it waits in,
 * also when the other closes, ends, is killed or forks
 *
 * The other one is this program again: `users PORT UID SEED END`. It sends and hears the echo; both ends
 * let the other fall asleep. Without root it has our own user.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rsock/rsock.h"
#include "tests/stress/libstress.h"

#define OTHER 12345
#define CONNS 4u /* of one process */
#define MOST 600 /* bytes of a message */
#define WORKERS 2 /* other processes at a time */
#define WAIT_MS 20000

enum ending {
	END_CLOSE,
	END_SHUT, /* shutdown, then it waits for the end of file */
	END_EXIT,
	END_KILLED, /* by us, at any moment */
	END_FORK_GOES_ON, /* the child goes on with the connections */
	END_FORK_IDLE, /* a child comes and goes */
	END_WE_CLOSE, /* at any moment */
	ENDS
};

static const char *const end_names[ENDS] = {
	[END_CLOSE] = "it closes",
	[END_SHUT] = "it shuts down",
	[END_EXIT] = "it exits",
	[END_KILLED] = "it is killed",
	[END_FORK_GOES_ON] = "its child goes on",
	[END_FORK_IDLE] = "its child comes and goes",
	[END_WE_CLOSE] = "we close",
};

/* ---- waiting in every way ---- */

/* True: something is there to be received. False: nothing came for so long. */
static bool wait_in(struct rng *r, int fd, int ep)
{
	struct pollfd p = { fd, POLLIN, 0 };
	struct epoll_event ev;
	struct timeval tv = { WAIT_MS / 1000, 0 };
	fd_set set;
	int n;

	switch (rng_below(r, 4)) {
	case 0:
		return rsock_poll(&p, 1, WAIT_MS) == 1;
	case 1:
		/* pthread_create() blocks signals for a moment: a SIGCHLD that nobody wants ends it, then. */
		do {
			n = rsock_epoll_wait(ep, &ev, 1, WAIT_MS);
		} while (n < 0 && errno == EINTR);
		return n == 1;
	case 2:
		FD_ZERO(&set);
		FD_SET(fd, &set);
		return rsock_select(fd + 1, &set, NULL, NULL, &tv) == 1;
	default:
		return true; /* in recv, which has a time-out */
	}
}

static int watched(int fd)
{
	struct epoll_event ev = { .events = EPOLLIN };
	struct timeval tv = { WAIT_MS / 1000, 0 };
	int ep = rsock_epoll_create1(EPOLL_CLOEXEC);

	if (ep < 0 || rsock_epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) != 0 ||
	    rsock_setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)) != 0)
		return -1;
	return ep;
}

/* As recv. */
static ssize_t get_some(struct rng *r, int fd, int ep, uint8_t *buf, size_t n)
{
	if (!wait_in(r, fd, ep)) {
		errno = ETIME;
		return -1;
	}
	return rsock_recv(fd, buf, n, 0);
}

/* All of them; 0: the end of file. */
static ssize_t get(struct rng *r, int fd, int ep, uint8_t *buf, size_t n)
{
	size_t have = 0;
	ssize_t k = 1;

	for (; have < n && k > 0; have += (size_t)k)
		k = get_some(r, fd, ep, buf + have, n - have);
	return k > 0 ? (ssize_t)n : k;
}

/* Long enough for the other end to fall asleep, mostly. */
static void pause_some(struct rng *r)
{
	if (rng_below(r, 2))
		usleep(rng_below(r, 600));
}

/* ---- the other process ---- */

struct conn {
	int fd, ep;
	struct rng rng;
	uint64_t id, at;
	uint32_t rounds;
	bool may_end; /* by its peer */
};

static uint32_t bad;

static void wrong(const char *what)
{
	printf("# the other process: %s: %s\n", what, strerror(errno));
	__atomic_store_n(&bad, 1, __ATOMIC_SEQ_CST);
}

static bool ended(ssize_t r)
{
	return r == 0 || errno == ECONNRESET || errno == EPIPE;
}

static void *play(void *arg)
{
	struct conn *c = arg;
	uint8_t out[MOST], in[MOST];

	while (c->rounds-- && !__atomic_load_n(&bad, __ATOMIC_SEQ_CST)) {
		size_t n = rng_size(&c->rng, sizeof(out));
		ssize_t r;

		pattern_fill(c->id, c->at, out, n);
		pause_some(&c->rng);
		r = rsock_send(c->fd, out, n, 0);
		if (r == (ssize_t)n)
			r = get(&c->rng, c->fd, c->ep, in, n);
		if (r <= 0 && c->may_end && ended(r))
			break;
		if (r != (ssize_t)n)
			wrong("send or recv");
		else if (memcmp(in, out, n) != 0)
			wrong("not what was sent");
		c->at += n;
	}
	return NULL;
}

static void play_all(struct conn *c)
{
	pthread_t t[CONNS];

	for (size_t i = 0; i < CONNS; i++)
		t[i] = stress_thread(play, &c[i]);
	for (size_t i = 0; i < CONNS; i++)
		pthread_join(t[i], NULL);
}

/* A child goes on where all threads of its parent have stopped. */
static void play_in_child(struct conn *c)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		for (size_t i = 0; i < CONNS; i++) {
			c[i].rounds = 20;
			play(&c[i]);
		}
		_exit((int)bad);
	}
	if (waitpid(pid, &status, 0) != pid || status != 0)
		wrong("its child");
}

static int other(char **argv)
{
	uint16_t port = (uint16_t)strtoul(argv[1], NULL, 10);
	uid_t uid = (uid_t)strtoul(argv[2], NULL, 10);
	uint32_t how = (uint32_t)strtoul(argv[4], NULL, 10);
	struct conn c[CONNS];
	uint8_t byte;
	pid_t child;

	if (uid != getuid() && setresuid(uid, uid, uid) != 0)
		return 103;
	stress_join(strtoull(argv[3], NULL, 10), 100);
	for (size_t i = 0; i < CONNS; i++) {
		c[i] = (struct conn){ .fd = stress_connect(port), .rng = rng_new(), .id = i };
		c[i].ep = c[i].fd < 0 ? -1 : watched(c[i].fd);
		c[i].rounds = 1;
		if (c[i].ep < 0) {
			wrong("a connection");
			return 1;
		}
		play(&c[i]);
		if (!stress_wait_fast(c[i].fd, STRESS_LONG_MS))
			wrong("it stays on TCP");
		c[i].may_end = how == END_WE_CLOSE;
		c[i].rounds = how == END_KILLED || how == END_WE_CLOSE
				      ? UINT32_MAX
				      : 20 + rng_below(&c[i].rng, 100);
	}
	play_all(c);
	switch (how) {
	case END_FORK_GOES_ON:
		play_in_child(c);
		break;
	case END_FORK_IDLE:
		for (size_t i = 0; i < CONNS; i++)
			c[i].rounds = 50;
		child = fork();
		if (child == 0)
			_exit(0);
		play_all(c);
		waitpid(child, NULL, 0);
		break;
	case END_SHUT:
		for (size_t i = 0; i < CONNS; i++) {
			if (rsock_shutdown(c[i].fd, SHUT_WR) != 0)
				wrong("shutdown");
			if (get(&c[i].rng, c[i].fd, c[i].ep, &byte, 1) != 0)
				wrong("no end of file");
		}
		break;
	default:
		break;
	}
	if (how == END_EXIT)
		_exit((int)bad);
	for (size_t i = 0; i < CONNS; i++) {
		rsock_close(c[i].ep);
		rsock_close(c[i].fd);
	}
	return (int)bad;
}

/* ---- we ---- */

struct echo {
	pthread_t thread;
	int fd;
	enum ending how;
	uint64_t rounds;
};

static void *echo(void *arg)
{
	struct echo *e = arg;
	struct rng r = rng_new();
	int ep = watched(e->fd);
	uint32_t left = e->how == END_WE_CLOSE ? 2 + rng_below(&r, 200) : UINT32_MAX;
	uint8_t buf[MOST];
	ssize_t n = 1;

	for (; left && n > 0; left--) {
		pause_some(&r);
		n = get_some(&r, e->fd, ep, buf, sizeof(buf));
		if (n > 0)
			n = rsock_send(e->fd, buf, (size_t)n, MSG_NOSIGNAL);
		e->rounds++;
	}
	if (n < 0 && (e->how != END_KILLED || (errno != ECONNRESET && errno != EPIPE)))
		stress_fail("%s: after %llu: %s", end_names[e->how], (unsigned long long)e->rounds,
			    strerror(errno));
	rsock_close(ep);
	rsock_close(e->fd);
	return NULL;
}

static uint64_t one_process(struct rng *r, int listener, uint16_t port, enum ending how)
{
	char args[4][24];
	char *argv[] = { "users", args[0], args[1], args[2], args[3], NULL };
	struct echo e[CONNS];
	uint64_t rounds = 0;
	int status;
	pid_t pid;

	snprintf(args[0], sizeof(args[0]), "%u", port);
	snprintf(args[1], sizeof(args[1]), "%u", getuid() ? getuid() : OTHER);
	snprintf(args[2], sizeof(args[2]), "%llu", (unsigned long long)rng_next(r));
	snprintf(args[3], sizeof(args[3]), "%d", how);
	if (posix_spawn(&pid, "/proc/self/exe", NULL, NULL, argv, environ) != 0)
		stress_bail("posix_spawn");
	for (size_t i = 0; i < CONNS; i++) {
		e[i] = (struct echo){ .fd = stress_accept(listener), .how = how };
		if (e[i].fd < 0)
			stress_bail("accept: %s", strerror(errno));
		e[i].thread = stress_thread(echo, &e[i]);
	}
	if (how == END_KILLED) {
		usleep(rng_below(r, 100000));
		kill(pid, SIGKILL);
	}
	for (size_t i = 0; i < CONNS; i++) {
		pthread_join(e[i].thread, NULL);
		rounds += e[i].rounds;
	}
	if (waitpid(pid, &status, 0) != pid ||
	    !(how == END_KILLED ? WIFSIGNALED(status) : status == 0))
		stress_fail("%s: status %#x", end_names[how], status);
	return rounds;
}

struct worker {
	enum ending how;
	uint64_t processes, rounds;
};

static void *work(void *arg)
{
	uint64_t end = stress_now() + stress_ms();
	struct worker *w = arg;
	struct rng r = rng_new();
	uint16_t port;
	int listener = stress_listen(&port);

	do {
		w->rounds += one_process(&r, listener, port, w->how);
		w->processes++;
	} while (stress_now() < end && !stress_failed());
	rsock_close(listener);
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc == 5)
		return other(argv);
	stress_begin(ENDS, 250);
	for (enum ending how = 0; how < ENDS; how++) {
		struct worker w[WORKERS];
		pthread_t t[WORKERS];

		for (size_t i = 0; i < WORKERS; i++) {
			w[i] = (struct worker){ .how = how };
			t[i] = stress_thread(work, &w[i]);
		}
		for (size_t i = 0; i < WORKERS; i++)
			pthread_join(t[i], NULL);
		stress_note("%llu processes, %llu round trips",
			    (unsigned long long)(w[0].processes + w[1].processes),
			    (unsigned long long)(w[0].rounds + w[1].rounds));
		stress_slots();
		stress_point(end_names[how]);
	}
	return stress_end();
}
