/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * libcases_owner.c - a connection that several processes have by fork, when the first of them ends
 *
 * We are the peer. The one with the connection has used it, forks, and ends in some way; only then the
 * child uses it. What was on its way in both directions is the child's.
 */
#include "tests/conformance/conf.h"

#include <sys/epoll.h>
#include <sys/mman.h>

extern const char conf_file_owner;
const char conf_file_owner = 1;

#define OURS 100000L
#define THEIRS 150000L

enum { USED_MS = 300 }; /* by then it is fast, where it can be, and stays so over a fork */

static void reap(const char *label, pid_t pid)
{
	int w = 0;

	while (waitpid(pid, &w, 0) < 0 && errno == EINTR)
		;
	status(label, w);
}

static bool lives_on; /* the one with the connection, as another program */

static void wait_orphan(pid_t parent)
{
	while (!lives_on && getppid() == parent)
		nap(1);
	nap(lives_on ? 200 : 20);
}

static void answer(int fd, bool ok)
{
	_exit(send(fd, ok ? "y" : "n", 1, MSG_NOSIGNAL) == 1 ? 0 : 5);
}

/* Forks the one who goes on with `fd`; the caller returns, to end. */
static void heir(int fd)
{
	pid_t self = getpid();
	char b[10];

	if (recvn(fd, 10, 3) != 10 || sendn(fd, THEIRS, 4) != THEIRS)
		_exit(6);
	if (fork())
		return;
	wait_orphan(self);
	for (long n = 10; n < OURS; n += 10) {
		if (recv(fd, b, 10, MSG_WAITALL) != 10 || !pattern_ok(b, 10, (uint64_t)n, 3))
			answer(fd, false);
	}
	answer(fd, true);
}

static void killed(int fd)
{
	heir(fd);
	raise(SIGKILL);
}

static void terminated(int fd)
{
	heir(fd);
	raise(SIGTERM);
}

static void exits(int fd)
{
	heir(fd);
	exit(0);
}

static void exits_at_once(int fd)
{
	heir(fd);
	_exit(0);
}

static void execs(int fd)
{
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	heir(fd);
	execl("/bin/true", "true", (char *)NULL);
	_exit(4);
}

/* By a system call of its own, which nobody hears of; the new program lives on. */
static void execs_unheard(int fd)
{
	static char name[] = "sleep", seconds[] = "60";
	char *const argv[] = { name, seconds, NULL }, *const envp[] = { NULL };
	long r = SYS_execve;

	lives_on = true;
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	heir(fd);
	__asm__ volatile("syscall"
			 : "+a"(r)
			 : "D"("/bin/sleep"), "S"(argv), "d"(envp)
			 : "rcx", "r11", "memory");
	_exit(4);
}

static void closes(int fd)
{
	heir(fd);
	close(fd);
	nap(100);
	_exit(0);
}

static void heir_goes_on(void (*how)(int fd), int ms)
{
	pid_t pid;
	int fd = with_child(how, ms, &pid);
	char b[4];

	ret("sendn", sendn(fd, OURS, 3));
	reap("status", pid);
	ret("recvn", recvn(fd, THEIRS, 4));
	retd("heir", recv(fd, b, 1, MSG_WAITALL), b);
	ret("end", recv(fd, b, 1, 0));
}

CASE(owner, killed, ONE)
{
	heir_goes_on(killed, USED_MS);
}

CASE(owner, killed_early, ONE)
{
	heir_goes_on(killed, 1);
}

CASE(owner, killed_when_new, ONE)
{
	heir_goes_on(killed, 60);
}

CASE(owner, terminated, ONE)
{
	heir_goes_on(terminated, USED_MS);
}

CASE(owner, exits, ONE)
{
	heir_goes_on(exits, USED_MS);
}

CASE(owner, exits_early, ONE)
{
	heir_goes_on(exits, 1);
}

CASE(owner, exits_at_once, ONE)
{
	heir_goes_on(exits_at_once, USED_MS);
}

CASE(owner, execs, ONE)
{
	heir_goes_on(execs, USED_MS);
}

CASE(owner, execs_unheard, ONE)
{
	pid_t pid;
	int fd = with_child(execs_unheard, USED_MS, &pid);
	char b[4];

	ret("sendn", sendn(fd, OURS, 3));
	ret("recvn", recvn(fd, THEIRS, 4));
	retd("heir", recv(fd, b, 1, MSG_WAITALL), b);
	ret("end", recv(fd, b, 1, 0));
	kill(pid, SIGKILL);
	reap("status", pid);
}

CASE(owner, closes, ONE)
{
	heir_goes_on(closes, USED_MS);
}

/* ---- the peer has sent all, and ended its direction, before anybody has read it ---- */

static void heir_of_rest(int fd)
{
	pid_t self = getpid();
	char b[2];

	if (recvn(fd, 10, 3) != 10)
		_exit(6);
	nap(40);
	if (fork())
		return;
	wait_orphan(self);
	for (long n = 10; n < OURS; n++)
		if (recv(fd, b, 1, 0) != 1 || !pattern_ok(b, 1, (uint64_t)n, 3))
			answer(fd, false);
	answer(fd, recv(fd, b, 1, 0) == 0);
}

static void rest_killed(int fd)
{
	heir_of_rest(fd);
	raise(SIGKILL);
}

static void rest_exits(int fd)
{
	heir_of_rest(fd);
	exit(0);
}

static void rest_closes(int fd)
{
	heir_of_rest(fd);
	close(fd);
	nap(60);
	_exit(0);
}

static void heir_has_rest(void (*how)(int fd))
{
	pid_t pid;
	int fd = with_child(how, USED_MS, &pid);
	char b[4];

	ret("sendn", sendn(fd, OURS, 3));
	shutdown(fd, SHUT_WR);
	reap("status", pid);
	retd("heir", recv(fd, b, 1, MSG_WAITALL), b);
	ret("end", recv(fd, b, 1, 0));
}

CASE(owner, killed_after_end, ONE)
{
	heir_has_rest(rest_killed);
}

CASE(owner, exits_after_end, ONE)
{
	heir_has_rest(rest_exits);
}

CASE(owner, closes_after_end, ONE)
{
	heir_has_rest(rest_closes);
}

/* ---- who has it keeps it open ---- */

static void unused_heir(int fd)
{
	if (send(fd, "abc", 3, 0) != 3)
		_exit(6);
	if (!fork()) {
		nap(300);
		_exit(0);
	}
	raise(SIGKILL);
}

CASE(owner, end_is_the_last, ONE)
{
	pid_t pid;
	int fd = with_child(unused_heir, USED_MS, &pid);
	long t = now_ms();
	char b[4];

	reap("status", pid);
	retd("recv", recv(fd, b, 3, MSG_WAITALL), b);
	ret("end", recv(fd, b, 1, 0));
	took("end", t, 200, 2000);
}

/* What its peer waits for before it gives the connection to another program, it has to bring about. */
static int no_end[2];

static void idle_heir(int fd)
{
	char b;

	if (send(fd, "abc", 3, 0) != 3)
		_exit(6);
	if (!fork()) {
		close(no_end[1]);
		_exit((int)read(no_end[0], &b, 1));
	}
	raise(SIGKILL);
}

CASE(owner, heir_that_never_uses_it, ONE)
{
	pid_t pid;
	int fd = pipe(no_end) ?: with_child(idle_heir, USED_MS, &pid);
	char b[4];
	long t;

	reap("status", pid);
	t = now_ms();
	ret("exec", execl("/nonexistent", "x", (char *)NULL));
	took("exec", t, 0, 2000);
	retd("recv", recv(fd, b, 3, MSG_WAITALL), b);
	close(no_end[1]);
	ret("end", recv(fd, b, 1, 0));
}

static void child_of_child(int fd)
{
	pid_t self = getpid(), middle;
	char b[4];

	middle = fork();
	if (!middle) {
		pid_t me = getpid();

		if (fork())
			_exit(0);
		wait_orphan(me);
		if (recv(fd, b, 2, MSG_WAITALL) != 2 || send(fd, b, 2, 0) != 2)
			_exit(5);
		kill(self, SIGUSR1);
		_exit(0);
	}
	while (!sig_count[SIGUSR1])
		nap(1);
	if (recv(fd, b, 2, MSG_WAITALL) != 2 || send(fd, b, 2, 0) != 2)
		_exit(4);
	_exit(0);
}

CASE(owner, grandchild_then_owner, ONE)
{
	char b[4];
	pid_t pid;
	int fd;

	sig_catch(SIGUSR1, SA_RESTART);
	fd = with_child(child_of_child, USED_MS, &pid);
	ret("send", send(fd, "abcd", 4, 0));
	retd("echo", recv(fd, b, 4, MSG_WAITALL), b);
	reap("status", pid);
	ret("end", recv(fd, b, 1, 0));
}

/* ---- sets that came by the fork ---- */

static int epoll_of_owner(int ep, int fd, int ms)
{
	struct epoll_event ev = { .data.fd = -1 };

	return epoll_wait(ep, &ev, 1, ms) == 1 && ev.data.fd == fd ? (int)ev.events : -1;
}

static void set_is_inherited(int fd)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.fd = fd };
	int ep = epoll_create1(0);
	char b[4];

	epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
	if (epoll_of_owner(ep, fd, 2000) != EPOLLIN || recv(fd, b, 1, 0) != 1)
		_exit(6);
	if (!fork()) {
		if (epoll_of_owner(ep, fd, 2000) != EPOLLIN || recv(fd, b, 1, 0) != 1)
			_exit(5);
		_exit(send(fd, b, 1, 0) == 1 ? 0 : 4);
	}
	wait(NULL);
	if (epoll_of_owner(ep, fd, 2000) != EPOLLIN || recv(fd, b, 1, 0) != 1)
		_exit(3);
	_exit(send(fd, b, 1, 0) == 1 ? 0 : 2);
}

CASE(owner, epoll_set, ONE)
{
	pid_t pid;
	int fd = with_child(set_is_inherited, USED_MS, &pid);
	char b[4];

	for (int i = 0; i < 3; i++) {
		nap(30);
		ret("send", send(fd, &"abc"[i], 1, MSG_NOSIGNAL));
		if (i)
			retd("recv", recv(fd, b, 1, 0), b);
	}
	reap("status", pid);
	ret("end", recv(fd, b, 1, 0));
}

/* The owner's set goes on to speak of what it has closed itself. */
static void closes_what_it_watches(int fd)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.fd = fd };
	int ep = epoll_create1(0);
	char b[4];

	epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
	if (epoll_of_owner(ep, fd, 2000) != EPOLLIN || recv(fd, b, 1, 0) != 1)
		_exit(6);
	if (!fork()) {
		nap(400);
		_exit(recv(fd, b, 2, MSG_WAITALL) == 2 && send(fd, b, 2, 0) == 2 ? 0 : 5);
	}
	close(fd);
	_exit(epoll_of_owner(ep, fd, 2000) == EPOLLIN ? 0 : 3);
}

CASE(owner, epoll_of_closed, ONE)
{
	pid_t pid;
	int fd = with_child(closes_what_it_watches, USED_MS, &pid);
	char b[4];

	ret("send", send(fd, "a", 1, MSG_NOSIGNAL));
	nap(100);
	ret("send", send(fd, "bc", 2, MSG_NOSIGNAL));
	reap("status", pid);
	retd("recv", recv(fd, b, 2, MSG_WAITALL), b);
	ret("end", recv(fd, b, 1, 0));
}

/* ---- what a child does not do ---- */

static void closes_in_child(int fd)
{
	char b[4];

	for (int i = 0; i < 5; i++) {
		if (!fork()) {
			if (i % 2)
				close(fd);
			_exit(0);
		}
		wait(NULL);
		if (recv(fd, b, 1, 0) != 1 || send(fd, b, 1, 0) != 1)
			_exit(6);
	}
	_exit(0);
}

CASE(owner, children_that_do_nothing, ONE)
{
	pid_t pid;
	int fd = with_child(closes_in_child, USED_MS, &pid);
	char b[4];

	for (int i = 0; i < 5; i++) {
		ret("send", send(fd, &"abcde"[i], 1, MSG_NOSIGNAL));
		retd("recv", recv(fd, b, 1, 0), b);
	}
	reap("status", pid);
	ret("end", recv(fd, b, 1, 0));
}

/* The modes of a socket belong to all who have it. */
static void mode_in_child(int fd)
{
	char b[4];

	if (!fork())
		_exit(fcntl(fd, F_SETFL, O_NONBLOCK) ? 1 : 0);
	wait(NULL);
	_exit(recv(fd, b, 1, 0) == -1 && errno == EAGAIN ? 0 : 6);
}

CASE(owner, nonblock_in_child, ONE)
{
	pid_t pid;
	int fd = with_child(mode_in_child, USED_MS, &pid);
	char b[4];

	reap("status", pid);
	ret("end", recv(fd, b, 1, 0));
}
