/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * park.c - idle connections leave the fast path, cost next to nothing, and come back with the next bytes
 */
#pragma GCC diagnostic ignored "-Wnested-externs"
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include "rsock/config.h"
#include "rsock/rsock.h"
#include "tests/stress/libstress.h"

#define FAST (1 | 1 << 4)
#define CONNS 20
#define MANY 1000u
#define IDLE_MS 300u
#define BURST ((size_t)40000)
#define MOST_BYTES 3072u /* of a parked connection, at each end */

/* It has memory of its own for each page that was ever touched. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED true
#else
#define SANITIZED false
#endif

static int listener;
static uint16_t port;

/* Both ends have the path, within the time that only a defect takes longer. */
static bool wait_path(const int fds[2], int path)
{
	uint64_t end = stress_now() + STRESS_LONG_MS;

	while (rsock_fd_path(fds[0]) != path || rsock_fd_path(fds[1]) != path) {
		if (stress_now() > end) {
			stress_fail("paths %x, %x and not %x", (unsigned int)rsock_fd_path(fds[0]),
				    (unsigned int)rsock_fd_path(fds[1]), (unsigned int)path);
			return false;
		}
		usleep(2000);
	}
	return true;
}

static void send_all(int fd, uint64_t id, uint64_t at, size_t n)
{
	uint8_t buf[BURST];

	pattern_fill(id, at, buf, n);
	for (size_t done = 0; done < n;) {
		ssize_t r = rsock_send(fd, buf + done, n - done, 0);

		if (r <= 0) {
			stress_fail("send: %zd %s", r, strerror(errno));
			return;
		}
		done += (size_t)r;
	}
}

static void recv_all(int fd, uint64_t id, uint64_t at, size_t n)
{
	uint8_t buf[BURST];

	for (size_t done = 0; done < n;) {
		ssize_t r = rsock_recv(fd, buf, n - done, 0);

		if (r <= 0 || !pattern_check(id, at + done, buf, (size_t)r)) {
			stress_fail("recv: %zd %s", r, r < 0 ? strerror(errno) : "");
			return;
		}
		done += (size_t)r;
	}
}

/* From either end, as `from` says. */
static void burst(const int fds[2], unsigned int from, uint64_t at)
{
	send_all(fds[from], from, at, BURST);
	recv_all(fds[!from], from, at, BURST);
}

static void comes_back(void)
{
	static int fds[CONNS][2];
	uint64_t at[2] = { 0, 0 };

	for (unsigned int i = 0; i < CONNS; i++)
		stress_pair(listener, port, fds[i]);
	for (unsigned int round = 0; round < 3; round++) {
		for (unsigned int i = 0; i < CONNS; i++)
			wait_path(fds[i], FAST);
		for (unsigned int i = 0; i < CONNS; i++)
			wait_path(fds[i], 0);
		stress_slots();
		for (unsigned int i = 0; i < CONNS; i++) /* neither end alone makes it return */
			burst(fds[i], round & 1, at[round & 1]);
		at[round & 1] += BURST;
	}
	for (unsigned int i = 0; i < CONNS; i++)
		wait_path(fds[i], FAST);
	for (unsigned int i = 0; i < CONNS; i++) {
		rsock_close(fds[i][0]);
		rsock_close(fds[i][1]);
	}
	stress_point("a burst brings back what was idle");
}

static void *waiter(void *arg)
{
	int fd = *(int *)arg;
	uint64_t at = 0;

	for (unsigned int i = 0; i < 2; i++, at += BURST)
		recv_all(fd, 1, at, BURST);
	return NULL;
}

/* Those who sleep while it is parked. */
static void sleepers(void)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLET };
	int fds[2][2], set = rsock_epoll_create1(0);
	pthread_t t;

	stress_pair(listener, port, fds[0]);
	stress_pair(listener, port, fds[1]);
	wait_path(fds[0], FAST);
	wait_path(fds[1], FAST);
	t = stress_thread(waiter, &fds[0][0]);
	rsock_epoll_ctl(set, EPOLL_CTL_ADD, fds[1][1], &ev);
	wait_path(fds[0], 0);
	wait_path(fds[1], 0);
	if (rsock_epoll_wait(set, &ev, 1, 0) != 0)
		stress_fail("an edge, and nothing has come");
	burst(fds[1], 1, 0);
	for (unsigned int i = 0; i < 2; i++)
		send_all(fds[0][1], 1, i * BURST, BURST);
	pthread_join(t, NULL);
	send_all(fds[1][0], 0, 0, 100);
	if (rsock_epoll_wait(set, &ev, 1, STRESS_LONG_MS) != 1)
		stress_fail("no edge");
	recv_all(fds[1][1], 0, 0, 100);
	if (rsock_epoll_wait(set, &ev, 1, 0) != 0)
		stress_fail("an edge too many");
	for (unsigned int i = 0; i < 2; i++) {
		rsock_close(fds[i][0]);
		rsock_close(fds[i][1]);
	}
	rsock_close(set);
	stress_point("who sleeps hears of the next bytes");
}

/* A byte now and then keeps it there. One that is parked for short times only stays longer the next time. */
static void no_flapping(void)
{
	uint64_t at = 0, end = stress_now() + 4 * IDLE_MS, since;
	int fds[2];

	stress_pair(listener, port, fds);
	wait_path(fds, FAST);
	while (stress_now() < end && !stress_failed()) {
		usleep(IDLE_MS * 100);
		if (rsock_fd_path(fds[0]) != FAST)
			stress_fail("it left, and was not idle");
		send_all(fds[0], 0, at, 1);
		recv_all(fds[1], 0, at++, 1);
	}
	for (unsigned int i = 0; i < 2; i++) {
		wait_path(fds, 0);
		send_all(fds[0], 0, at, 1);
		recv_all(fds[1], 0, at++, 1);
		wait_path(fds, FAST);
	}
	since = stress_now();
	wait_path(fds, 0);
	if (stress_now() - since < 3 * IDLE_MS)
		stress_fail("it is parked again after %u ms", (unsigned int)(stress_now() - since));
	rsock_close(fds[0]);
	rsock_close(fds[1]);
	stress_point("what comes back soon is parked later");
}

/* The number in the line of that name, of a file in /proc/self. */
static uint64_t number(const char *path, const char *name)
{
	char line[256];
	uint64_t n = 0;
	FILE *f = fopen(path, "r");

	while (f && fgets(line, sizeof(line), f))
		if (strncmp(line, name, strlen(name)) == 0)
			n = strtoull(line + strlen(name), NULL, 10);
	if (f)
		fclose(f);
	return n;
}

/* Bytes: what is resident, once though it is mapped twice, and the page tables for it. */
static uint64_t memory(void)
{
	return (number("/proc/self/smaps_rollup", "Pss:") + number("/proc/self/status", "VmPTE:")) *
	       1024;
}

/* Times that the control thread has slept. */
static uint64_t sleeps(void)
{
	DIR *d = opendir("/proc/self/task");
	struct dirent *e;
	uint64_t n = 0;

	while (d && (e = readdir(d))) {
		char path[300], name[16] = "";
		FILE *f;

		snprintf(path, sizeof(path), "/proc/self/task/%s/comm", e->d_name);
		f = fopen(path, "r");
		if (f && fgets(name, sizeof(name), f) && strcmp(name, "rsock\n") == 0) {
			snprintf(path, sizeof(path), "/proc/self/task/%s/status", e->d_name);
			n += number(path, "voluntary_ctxt_switches:");
		}
		if (f)
			fclose(f);
	}
	if (d)
		closedir(d);
	return n;
}

static void cost(void)
{
	static int fds[MANY][2];
	uint64_t before, fast, parked, n, end;
	int busy[2];

	rs_config.park_ms = 0; /* that one stays, and so does the link */
	stress_pair(listener, port, busy);
	wait_path(busy, FAST);
	before = memory();
	rs_config.park_ms = 3000;
	for (unsigned int i = 0; i < MANY; i++)
		stress_pair(listener, port, fds[i]);
	for (unsigned int i = 0; i < MANY; i++)
		wait_path(fds[i], FAST);
	for (unsigned int i = 0; i < MANY; i++) {
		send_all(fds[i][0], 0, 0, BURST);
		recv_all(fds[i][1], 0, 0, BURST);
		send_all(fds[i][1], 0, 0, BURST);
		recv_all(fds[i][0], 0, 0, BURST);
	}
	fast = memory();
	for (unsigned int i = 0; i < MANY; i++)
		wait_path(fds[i], 0);
	end = stress_now() + STRESS_LONG_MS;
	do {
		usleep(100000);
		parked = memory();
	} while (!SANITIZED && parked > before + (uint64_t)MANY * 2 * MOST_BYTES &&
		 stress_now() < end);
	parked = parked > before ? parked - before : 0;
	stress_note("%u connections: %llu bytes each at each end when fast, %llu when parked", MANY,
		    (unsigned long long)(fast - before) / MANY / 2,
		    (unsigned long long)parked / MANY / 2);
	if (!SANITIZED && parked / MANY / 2 > MOST_BYTES)
		stress_fail("that is much");
	sleep(3); /* the sweeps are over */
	n = sleeps();
	sleep(2);
	n = sleeps() - n;
	stress_note("%llu wake-ups in 2 s", (unsigned long long)n);
	if (n > 2)
		stress_fail("that is much");
	for (unsigned int i = 0; i < MANY; i++) {
		rsock_close(fds[i][0]);
		rsock_close(fds[i][1]);
	}
	rsock_close(busy[0]);
	rsock_close(busy[1]);
	stress_slots();
	stress_point("memory and wake-ups of parked connections");
}

int main(void)
{
	struct rlimit rl;

	getrlimit(RLIMIT_NOFILE, &rl);
	rl.rlim_cur = rl.rlim_max;
	setrlimit(RLIMIT_NOFILE, &rl);
	stress_begin(4, 170);
	rs_config.park_ms = IDLE_MS;
	listener = stress_listen(&port);
	comes_back();
	sleepers();
	no_flapping();
	cost();
	rsock_close(listener);
	return stress_end();
}
