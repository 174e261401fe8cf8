/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * forks.c - connections that come to other processes by fork, while bytes move: children that do
 * nothing, that go on with a connection, and that do so when their parent has been killed
 */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rsock/rsock.h"
#include "tests/stress/libstress.h"

#define BYSTANDERS 4
#define FAST 0x11
#define MOST 30000

static int listener;
static uint16_t port;

static int reap(pid_t pid)
{
	int w = 0;

	while (waitpid(pid, &w, 0) < 0 && errno == EINTR)
		;
	return w;
}

/* ---- children that do nothing with it ---- */

struct echo {
	int fds[2];
	bool over;
	uint64_t id, rounds;
};

static void *bounce(void *arg)
{
	struct echo *e = arg;
	uint8_t out[512], in[512];
	struct rng r = rng_new();

	while (!__atomic_load_n(&e->over, __ATOMIC_SEQ_CST) && !stress_failed()) {
		size_t n = rng_size(&r, sizeof(out));

		pattern_fill(e->id, e->rounds, out, n);
		for (int k = 0; k < 2; k++) {
			if (rsock_send(e->fds[k], out, n, 0) != (ssize_t)n ||
			    rsock_recv(e->fds[1 - k], in, n, MSG_WAITALL) != (ssize_t)n ||
			    memcmp(in, out, n) != 0)
				stress_fail("echo: %s", strerror(errno));
		}
		e->rounds++;
	}
	return NULL;
}

/* What a child has of its parent's streams it must not be able to change, nor to make so. */
static bool can_write_states(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	bool can = !maps, seen = false;
	char line[512];

	while (maps && fgets(line, sizeof(line), maps)) {
		char *end, *p = strstr(line, "rsock-states");
		uintptr_t from = strtoul(line, &end, 16), to = strtoul(end + 1, &end, 16);

		if (!p)
			continue;
		seen = true;
		can |= end[2] == 'w' ||
		       mprotect((void *)from, to - from, PROT_READ | PROT_WRITE) == 0;
	}
	if (maps)
		fclose(maps);
	return can || !seen;
}

static void bystander(const struct echo *e, uint32_t how)
{
	switch (how) {
	case 0:
		for (int i = 0; i < BYSTANDERS; i++) {
			rsock_close(e[i].fds[0]);
			rsock_close(e[i].fds[1]);
		}
		break;
	case 1:
		usleep(3000);
		break;
	case 3:
		_exit(can_write_states() ? 1 : 0);
	default:
		break;
	}
	_exit(0);
}

static void idle_children(void)
{
	uint64_t end = stress_now() + stress_ms(), rounds = 0;
	struct echo e[BYSTANDERS];
	pthread_t t[BYSTANDERS];
	struct rng r = rng_new();
	uint32_t forks = 0;

	for (uint64_t i = 0; i < BYSTANDERS; i++) {
		e[i] = (struct echo){ .id = i };
		stress_pair(listener, port, e[i].fds);
		if (!stress_wait_fast(e[i].fds[0], 10000) || !stress_wait_fast(e[i].fds[1], 10000))
			stress_fail("not fast before the first fork");
	}
	usleep(300000); /* the first bytes of a new connection may be meant for the child */
	for (int i = 0; i < BYSTANDERS; i++)
		t[i] = stress_thread(bounce, &e[i]);
	do {
		uint32_t how = rng_below(&r, 4);
		pid_t pid = fork();

		if (pid == 0)
			bystander(e, how);
		if (how == 2)
			kill(pid, SIGKILL);
		if (reap(pid) != 0 && how == 3)
			stress_fail("a child can write its parent's streams");
		forks++;
	} while (stress_now() < end && !stress_failed());
	for (int i = 0; i < BYSTANDERS; i++) {
		__atomic_store_n(&e[i].over, true, __ATOMIC_SEQ_CST);
		pthread_join(t[i], NULL);
		rounds += e[i].rounds;
		for (int k = 0; k < 2; k++)
			if (rsock_fd_path(e[i].fds[k]) != FAST)
				stress_fail("a fork took it to TCP: path %#x",
					    rsock_fd_path(e[i].fds[k]));
		rsock_close(e[i].fds[0]);
		rsock_close(e[i].fds[1]);
	}
	stress_note("%u forks beside %llu round trips", forks, (unsigned long long)rounds);
	stress_slots();
	stress_point("children that do nothing");
}

/* ---- a child that goes on ---- */

struct source {
	int fd;
	uint64_t id, total;
	bool shut; /* in the end */
};

static void *pour(void *arg)
{
	struct source *s = arg;
	uint8_t buf[MOST];
	struct rng r = rng_new();
	uint64_t at = 0;

	while (at < s->total) {
		size_t n = rng_size(&r, sizeof(buf));
		ssize_t k;

		if (n > s->total - at)
			n = (size_t)(s->total - at);
		pattern_fill(s->id, at, buf, n);
		k = rsock_send(s->fd, buf, n, MSG_NOSIGNAL);
		if (k <= 0)
			break; /* who reads will tell */
		at += (uint64_t)k;
	}
	if (s->shut)
		rsock_shutdown(s->fd, SHUT_WR);
	return NULL;
}

/* Bytes from `at` on, up to offset `to`; the offset reached; less than that: end of file or an error. */
struct found {
	bool wrong, reset; /* what the bytes are, how they end */
};

static uint64_t drink(int fd, uint64_t id, uint64_t at, uint64_t to, struct rng *r, struct found *f)
{
	uint8_t buf[MOST];

	while (at < to) {
		size_t n = rng_size(r, sizeof(buf));
		ssize_t k;

		if (n > to - at)
			n = (size_t)(to - at);
		k = rsock_recv(fd, buf, n, 0);
		f->reset |= k < 0;
		if (k <= 0)
			break;
		if (!pattern_check(id, at, buf, (size_t)k)) {
			f->wrong = true;
			break;
		}
		at += (uint64_t)k;
	}
	return at;
}

static void child_goes_on(void)
{
	uint64_t end = stress_now() + stress_ms();
	uint32_t conns = 0, fast = 0;
	struct rng r = rng_new();

	do {
		struct source s;
		uint64_t at, part;
		bool before;
		struct found f = { 0 };
		pthread_t t;
		int fds[2], w;
		pid_t pid;

		stress_pair(listener, port, fds);
		if (rng_below(&r, 3))
			stress_wait_fast(fds[0], 2000);
		if (rng_below(&r, 4) == 0)
			usleep(250000); /* no longer new */
		s = (struct source){ .fd = fds[0],
				     .id = conns,
				     .total = 1 + rng_below(&r, 600000) };
		part = rng_below(&r, (uint32_t)s.total + 1);
		before = rng_below(&r, 2);
		t = stress_thread(pour, &s);
		at = drink(fds[1], s.id, 0, part, &r, &f);
		fast += rsock_fd_path(fds[1]) == FAST;
		if (at != part || f.wrong)
			stress_fail("the parent's part: %llu of %llu", (unsigned long long)at,
				    (unsigned long long)part);
		pid = fork();
		if (pid == 0) {
			at = drink(fds[1], s.id, at, s.total, &r, &f);
			_exit(f.wrong ? 2 : at != s.total);
		}
		if (before)
			rsock_close(fds[1]);
		w = reap(pid);
		if (w != 0)
			stress_fail("the child: %#x, %llu of %llu bytes before", w,
				    (unsigned long long)part, (unsigned long long)s.total);
		pthread_join(t, NULL);
		if (!before)
			rsock_close(fds[1]);
		rsock_close(fds[0]);
		conns++;
	} while (stress_now() < end && !stress_failed());
	if (!fast)
		stress_fail("no stream was ever on the fast path before the fork");
	stress_note("%u connections, %u fast before the fork", conns, fast);
	stress_slots();
	stress_point("a child goes on");
}

/* ---- a child goes on when its parent was killed, at any moment ---- */

/* What the owner has done for certain, and what its heir has found. */
struct account {
	uint64_t sent, received; /* by the owner, in calls that have returned */
	uint64_t more; /* received by the heir */
	bool ready, fast, over, wrong, reset;
};

static void own(struct account *acc, uint64_t total)
{
	int fd = stress_connect(port);
	struct rng r = rng_new();
	uint8_t buf[MOST];
	pid_t self = getpid();
	struct found f = { 0 };
	uint64_t at;

	rsock_send(fd, "!", 1, 0);
	acc->fast = stress_wait_fast(fd, 2000);
	usleep(220000);
	if (fork() == 0) {
		uint8_t *all = mmap(NULL, total + 1, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		while (getppid() == self)
			usleep(200);
		for (at = 0; at <= total;) {
			ssize_t k = rsock_recv(fd, all + at, total + 1 - at, 0);

			acc->reset |= k < 0;
			if (k <= 0)
				break;
			at += (uint64_t)k;
		}
		acc->more = at;
		/* They are the last bytes of the stream, whatever the owner has had. */
		acc->wrong |= !acc->reset &&
			      (at > total || !pattern_check(7, total - at, all, (size_t)at));
		__atomic_store_n(&acc->over, true, __ATOMIC_SEQ_CST);
		_exit(0);
	}
	__atomic_store_n(&acc->ready, true, __ATOMIC_SEQ_CST);
	for (;;) {
		size_t n = rng_size(&r, sizeof(buf));

		pattern_fill(9, acc->sent, buf, n);
		if (rsock_send(fd, buf, n, 0) != (ssize_t)n)
			_exit(5);
		acc->sent += n;
		at = drink(fd, 7, acc->received, acc->received + rng_size(&r, 4000), &r, &f);
		acc->wrong |= f.wrong;
		acc->received = at;
	}
}

static void check(const struct account *acc, uint64_t total, uint64_t got, bool reset)
{
	if (acc->wrong)
		stress_fail("wrong bytes after %llu + %llu of %llu",
			    (unsigned long long)acc->received, (unsigned long long)acc->more,
			    (unsigned long long)total);
	if (!acc->reset &&
	    (acc->received + acc->more > total || acc->received + acc->more + MOST < total))
		stress_fail("bytes are missing: %llu + %llu of %llu",
			    (unsigned long long)acc->received, (unsigned long long)acc->more,
			    (unsigned long long)total);
	if (!reset && !acc->reset && (got < acc->sent || got > acc->sent + MOST))
		stress_fail("the peer has %llu bytes, %llu were sent", (unsigned long long)got,
			    (unsigned long long)acc->sent);
}

static void owner_killed(void)
{
	uint64_t end = stress_now() + stress_ms();
	uint32_t rounds = 0, fast = 0, resets = 0;
	struct rng r = rng_new();

	do {
		struct account *acc = mmap(NULL, sizeof(*acc), PROT_READ | PROT_WRITE,
					   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		uint64_t total = 200000 + rng_below(&r, 3000000), got;
		struct source s = { .id = 7, .total = total, .shut = true };
		uint64_t late = stress_now() + STRESS_LONG_MS;
		struct found f = { 0 };
		pthread_t t;
		pid_t pid;
		uint8_t b;

		pid = fork();
		if (pid == 0) {
			own(acc, total);
			_exit(0);
		}
		s.fd = stress_accept(listener);
		if (rsock_recv(s.fd, &b, 1, 0) != 1)
			stress_fail("no connection");
		while (!__atomic_load_n(&acc->ready, __ATOMIC_SEQ_CST) && stress_now() < late)
			usleep(200);
		t = stress_thread(pour, &s);
		if (rng_below(&r, 8) == 0)
			usleep(rng_below(&r, 20000)); /* it may have filled all buffers by then */
		else
			kill(pid, SIGKILL); /* or have hardly begun */
		got = 0;
		if (kill(pid, 0) == 0 && rng_below(&r, 2))
			got = drink(s.fd, 9, 0, rng_below(&r, 300000), &r, &f);
		kill(pid, SIGKILL);
		reap(pid);
		got = drink(s.fd, 9, got, UINT64_MAX, &r, &f);
		f.reset |= rsock_recv(s.fd, &b, 1, 0) < 0;
		pthread_join(t, NULL);
		while (!__atomic_load_n(&acc->over, __ATOMIC_SEQ_CST) && stress_now() < late)
			usleep(200);
		if (f.wrong || !acc->over)
			stress_fail(f.wrong ? "wrong bytes" : "the heir hangs");
		check(acc, total, got, f.reset);
		fast += acc->fast;
		resets += acc->reset || f.reset;
		rsock_close(s.fd);
		munmap(acc, sizeof(*acc));
		rounds++;
	} while (stress_now() < end && !stress_failed());
	if (!fast)
		stress_fail("no stream was ever on the fast path");
	stress_note("%u owners killed, %u fast, %u connections reset", rounds, fast, resets);
	stress_slots();
	stress_point("a child goes on after its parent was killed");
}

int main(void)
{
	stress_begin(3, 170);
	signal(SIGCHLD, SIG_DFL);
	listener = stress_listen(&port);
	idle_children();
	child_goes_on();
	owner_killed();
	rsock_close(listener);
	return stress_end();
}
