/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* libcases_proc.c - fork, vfork, posix_spawn, exec with connections */
#include "tests/conformance/conf.h"

#include <spawn.h>

#include "tests/conformance/libconf.h"

extern const char conf_file_proc;
const char conf_file_proc = 1;

extern char **environ;

static void peer_text(struct conn *k, long n)
{
	char b[2049];
	long r = p_recv(k, b, n);

	if (r < 0)
		peer_ret("peer", r);
	else
		retd("peer", r, b);
}

static void reap(const char *label, pid_t pid)
{
	int w = 0;

	while (waitpid(pid, &w, 0) < 0 && errno == EINTR)
		;
	status(label, w);
}

/* in the child of a one-process pair the other end must not stay open */
static void drop_peer(struct conn *k)
{
	if (!conf_two)
		close(k->peer);
}

CASE(fork, child_reads, 0)
{
	struct conn k;
	char b[16];
	pid_t pid;

	conf_pair(&k);
	pid = fork();
	if (!pid) {
		drop_peer(&k);
		retd("child", recv(k.fd, b, 3, 0), b);
		_exit(0);
	}
	p_send(&k, "abcdef");
	reap("status", pid);
	retd("parent", recv(k.fd, b, 16, 0), b);
}

/* No fork handler runs. */
CASE(fork, by_number_child_reads, 0)
{
	struct conn k;
	char b[16];
	pid_t pid;

	conf_pair(&k);
	pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	if (!pid) {
		drop_peer(&k);
		retd("child", recv(k.fd, b, 3, 0), b);
		_exit(0);
	}
	p_send(&k, "abcdef");
	reap("status", pid);
	retd("parent", recv(k.fd, b, 16, 0), b);
}

CASE(fork, parent_reads_first, 0)
{
	struct conn k;
	char b[16];
	pid_t pid;
	int p[2];

	conf_pair(&k);
	p_send(&k, "abcdef");
	wait_avail(k.fd, 6);
	if (pipe(p))
		return;
	pid = fork();
	if (!pid) {
		drop_peer(&k);
		if (read(p[0], b, 1) != 1)
			_exit(1);
		retd("child", recv(k.fd, b, 2, 0), b);
		_exit(0);
	}
	retd("parent", recv(k.fd, b, 2, 0), b);
	if (write(p[1], "g", 1) != 1)
		return;
	reap("status", pid);
	retd("parent", recv(k.fd, b, 16, 0), b);
}

CASE(fork, both_write, 0)
{
	struct conn k;
	pid_t pid;

	conf_pair(&k);
	ret("send", send(k.fd, "1", 1, 0));
	pid = fork();
	if (!pid) {
		drop_peer(&k);
		_exit(send(k.fd, "2", 1, 0) != 1 ? 1 : 0);
	}
	reap("status", pid);
	ret("send", send(k.fd, "3", 1, 0));
	pid = fork();
	if (!pid) {
		drop_peer(&k);
		_exit(send(k.fd, "4", 1, 0) != 1 ? 1 : 0);
	}
	reap("status", pid);
	ret("send", send(k.fd, "5", 1, 0));
	peer_text(&k, 5);
}

CASE(fork, parent_closes_first, 0)
{
	struct conn k;
	char b[16];
	pid_t pid;
	int p[2];

	conf_pair(&k);
	if (pipe(p))
		return;
	pid = fork();
	if (!pid) {
		drop_peer(&k);
		if (read(p[0], b, 1) != 1)
			_exit(1);
		retd("child", recv(k.fd, b, 16, 0), b);
		ret("child_send", send(k.fd, "from child", 10, 0));
		_exit(0);
	}
	ret("close", close(k.fd));
	mask("peer_poll", (int)p_poll(&k, POLLIN | POLLRDHUP, 20));
	p_send(&k, "abc");
	if (write(p[1], "g", 1) != 1)
		return;
	peer_text(&k, 11);
	reap("status", pid);
}

CASE(fork, child_closes_first, 0)
{
	struct conn k;
	char b[16];
	pid_t pid;

	conf_pair(&k);
	pid = fork();
	if (!pid) {
		drop_peer(&k);
		close(k.fd);
		_exit(0);
	}
	reap("status", pid);
	mask("peer_poll", (int)p_poll(&k, POLLIN | POLLRDHUP, 20));
	p_send(&k, "abc");
	retd("recv", recv(k.fd, b, 16, 0), b);
	ret("send", send(k.fd, "def", 3, 0));
	peer_text(&k, 3);
}

CASE(fork, child_exits_unused, 0)
{
	struct conn k;
	char b[16];
	pid_t pid;

	conf_pair(&k);
	for (int i = 0; i < 3; i++) {
		pid = fork();
		if (!pid)
			exit(0);
		reap("status", pid);
		p_send(&k, "abc");
		retd("recv", recv(k.fd, b, 16, 0), b);
		ret("send", send(k.fd, "def", 3, 0));
		peer_text(&k, 3);
	}
}

CASE(fork, child_shutdown_ends_it_for_both, 0)
{
	struct conn k;
	pid_t pid;

	conf_pair(&k);
	pid = fork();
	if (!pid) {
		drop_peer(&k);
		send(k.fd, "bye", 3, 0);
		shutdown(k.fd, SHUT_WR);
		_exit(0);
	}
	reap("status", pid);
	peer_text(&k, 10);
	ret("send", send(k.fd, "x", 1, MSG_NOSIGNAL));
}

CASE(fork, child_killed, 0)
{
	struct conn k;
	char b[16];
	pid_t pid;

	conf_pair(&k);
	pid = fork();
	if (!pid) {
		drop_peer(&k);
		send(k.fd, "child", 5, 0);
		kill(getpid(), SIGKILL);
	}
	reap("status", pid);
	peer_text(&k, 5);
	p_send(&k, "abc");
	retd("recv", recv(k.fd, b, 16, 0), b);
	ret("send", send(k.fd, "parent", 6, 0));
	peer_text(&k, 6);
}

CASE(fork, parent_killed_child_goes_on, 0)
{
	/* our child holds the connection, its child inherits it, the holder is killed */
	struct conn k;
	pid_t pid;
	int p[2];
	char b[16];

	if (pipe(p))
		return;
	conf_pair(&k);
	pid = fork();
	if (!pid) {
		pid_t pid2;

		drop_peer(&k);
		send(k.fd, "one", 3, 0);
		pid2 = fork();
		if (!pid2) {
			if (read(p[0], b, 1) != 1)
				_exit(1);
			retd("grandchild", recv(k.fd, b, 16, 0), b);
			ret("send", send(k.fd, "two", 3, 0));
			_exit(0);
		}
		kill(getpid(), SIGKILL);
	}
	close(k.fd);
	reap("status", pid);
	peer_text(&k, 3);
	p_send(&k, "abc");
	if (write(p[1], "g", 1) != 1)
		return;
	peer_text(&k, 4);
}

CASE(fork, data_across, 0)
{
	struct conn k;
	pid_t pid;
	char *b = malloc(200000);

	conf_pair(&k);
	ret("sendn", sendn(k.fd, 100000, 3));
	peer_ret("peer_send", p_sendn(&k, 100000, 4));
	ret("recvn", recvn(k.fd, 30000, 4));
	pid = fork();
	if (!pid) {
		drop_peer(&k);
		if (recv(k.fd, b, 30000, MSG_WAITALL) != 30000 || !pattern_ok(b, 30000, 30000, 4))
			_exit(1);
		_exit(0);
	}
	reap("status", pid);
	ret("recv", recv(k.fd, b, 40000, MSG_WAITALL));
	yes("same", pattern_ok(b, 40000, 60000, 4));
	peer_ret("peer", p_recvn(&k, 100000, 3));
}

/* Both ends are ours: that which leaves first tells the other. */
CASE(fork, child_reads_what_parent_sent_itself, ONE)
{
	struct conn k;
	char b[16];
	pid_t pid;

	conf_pair(&k);
	ret("send", send(k.fd, "abc", 3, 0));
	ret("peer_send", send(k.peer, "defg", 4, 0));
	pid = fork();
	if (!pid) {
		retd("child_peer", recv(k.peer, b, 16, 0), b);
		retd("child", recv(k.fd, b, 16, 0), b);
		_exit(0);
	}
	reap("status", pid);
}

CASE(fork, child_reads_after_end, 0)
{
	struct conn k;
	char b[16];
	pid_t pid;

	conf_pair(&k);
	p_send(&k, "abcdef");
	p_close(&k);
	wait_ev(k.fd, POLLRDHUP);
	pid = fork();
	if (!pid) {
		retd("child", recv(k.fd, b, 16, 0), b);
		ret("end", recv(k.fd, b, 16, 0));
		_exit(0);
	}
	reap("status", pid);
}

CASE(fork, ping_pong_in_child, 0)
{
	struct conn k;
	pid_t pid;
	char b[16];
	int good = 0;

	conf_pair(&k);
	pid = fork();
	if (!pid) {
		drop_peer(&k);
		for (int i = 0; i < 200; i++) {
			if (recv(k.fd, b, 1, 0) != 1 || send(k.fd, b, 1, 0) != 1)
				_exit(1);
		}
		_exit(0);
	}
	close(k.fd);
	for (int i = 0; i < 200; i++) {
		if (p_send(&k, "x") != 1 || p_recv(&k, b, 1) != 1 || b[0] != 'x')
			break;
		good++;
	}
	ret("rounds", good);
	reap("status", pid);
	peer_text(&k, 1);
}

CASE(fork, parent_keeps_talking_while_child_lives, 0)
{
	struct conn k;
	pid_t pid;
	char b[16];
	int good = 0, w;

	conf_pair(&k);
	pid = fork();
	if (!pid) {
		drop_peer(&k);
		pause();
		_exit(0);
	}
	for (int i = 0; i < 200; i++) {
		if (p_send(&k, "x") != 1 || recv(k.fd, b, 1, 0) != 1 || send(k.fd, b, 1, 0) != 1 ||
		    p_recv(&k, b, 1) != 1)
			break;
		good++;
	}
	ret("rounds", good);
	ret("close", close(k.fd));
	/* the child holds it open */
	mask("peer_poll", (int)p_poll(&k, POLLIN | POLLRDHUP, 30));
	kill(pid, SIGKILL);
	waitpid(pid, &w, 0);
	peer_text(&k, 1);
}

/* accept, fork, close in the parent: the classical server */
/* Which ends when the client has: at any moment of entering, and after it. */
CASE(fork, server_per_connection, ONE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(conf_family, 8, &ss, &l);
	pid_t server = fork();
	char b[16];

	if (!server) {
		signal(SIGCHLD, SIG_IGN);
		for (;;) {
			int a = accept(ls, NULL, NULL);

			if (!fork()) {
				ssize_t r;

				close(ls);
				while ((r = read(a, b, sizeof(b))) > 0) {
					if (write(a, b, (size_t)r) != r)
						_exit(1);
				}
				_exit(0);
			}
			close(a);
		}
	}
	close(ls);
	for (int i = 0; i < 12; i++) {
		int c = socket(ss.ss_family, SOCK_STREAM, 0);

		if (connect(c, (struct sockaddr *)&ss, l))
			break;
		for (int j = 0; j < 1 + 4 * i; j++) {
			memset(b, 0, sizeof(b));
			if (send(c, "hello", 5, 0) != 5 || recv(c, b, 5, MSG_WAITALL) != 5 ||
			    memcmp(b, "hello", 5))
				out(" wrong");
			nap(1);
		}
		shutdown(c, SHUT_WR);
		ret("eof", recv(c, b, 1, 0));
		close(c);
	}
	kill(server, SIGKILL);
}

/* One that echoes 5 bytes, n times; false: it could not. */
static bool echo5(int fd, int n)
{
	char b[8];

	for (int i = 0; i < n; i++)
		if (recv(fd, b, 5, MSG_WAITALL) != 5 || send(fd, b, 5, 0) != 5)
			return false;
	return true;
}

/* Our end of it. */
static void ask5(const char *label, int fd, int n)
{
	char b[8];
	int good = 0;

	for (int i = 0; i < n; i++) {
		memset(b, 0, sizeof(b));
		good += send(fd, "hello", 5, 0) == 5 && recv(fd, b, 5, MSG_WAITALL) == 5 &&
			!memcmp(b, "hello", 5);
		nap(1);
	}
	ret(label, good);
}

/*
 * Accepted, then forked: `serve` of the child and of the parent, who starts when the child says so, or,
 * without that, at once.
 */
static int accepted_by_two(void (*child)(int fd, int tell), void (*parent)(int fd, int told))
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(conf_family, 8, &ss, &l), c;

	if (!fork()) {
		int a, p[2];

		signal(SIGCHLD, SIG_IGN);
		a = accept(ls, NULL, NULL);
		close(ls);
		if (pipe(p))
			_exit(1);
		if (!fork()) {
			close(p[0]);
			child(a, p[1]);
			_exit(0);
		}
		close(p[1]);
		parent(a, p[0]);
		_exit(0);
	}
	close(ls);
	c = socket(ss.ss_family, SOCK_STREAM, 0);
	if (connect(c, (struct sockaddr *)&ss, l))
		bail("connect");
	return c;
}

static void serve_30(int fd, int tell)
{
	echo5(fd, 30);
	if (write(tell, "x", 1) != 1)
		_exit(1);
}

static void serve_30_for_ever(int fd, int tell)
{
	serve_30(fd, tell);
	echo5(fd, 1000);
}

static void end_at_once(int fd, int tell)
{
	(void)fd;
	(void)tell;
}

static void wait_then_serve(int fd, int told)
{
	char b;

	if (read(told, &b, 1) >= 0)
		echo5(fd, 1000);
}

static void wait_then_close(int fd, int told)
{
	char b;

	if (read(told, &b, 1) >= 0)
		close(fd);
	nap(3000);
}

/* The child serves; the parent has closed only after a while. */
CASE(fork, accepted_parent_closes_late, ONE)
{
	int c = accepted_by_two(serve_30_for_ever, wait_then_close);

	ask5("shared", c, 30);
	ask5("alone", c, 60);
	shutdown(c, SHUT_WR);
	ret("eof", recv(c, &(char){ 0 }, 1, 0));
}

/* Both serve, one after the other, and both have it open all the time. */
CASE(fork, accepted_used_by_both, ONE)
{
	int c = accepted_by_two(serve_30, wait_then_serve);

	ask5("child", c, 30);
	ask5("parent", c, 60);
	shutdown(c, SHUT_WR);
	ret("eof", recv(c, &(char){ 0 }, 1, 0));
}

/* It was not for the child. */
CASE(fork, accepted_child_ends, ONE)
{
	int c = accepted_by_two(end_at_once, wait_then_serve);

	ask5("parent", c, 60);
	shutdown(c, SHUT_WR);
	ret("eof", recv(c, &(char){ 0 }, 1, 0));
}

static void send_5(int fd, int tell)
{
	(void)tell;
	nap(200);
	for (int i = 0; i < 5; i++) {
		if (send(fd, "worker", 6, 0) != 6)
			_exit(1);
		nap(60);
	}
}

static void become_plain_fork_and_send(int fd, int told)
{
	int on = 1;

	(void)told;
	setsockopt(fd, SOL_SOCKET, SO_TIMESTAMP, &on, sizeof(on));
	if (!fork())
		_exit(0);
	nap(400);
	for (int i = 0; i < 3; i++) {
		if (send(fd, "parent", 6, 0) != 6)
			_exit(1);
		nap(60);
	}
	nap(300);
}

/* Other children come and go: they do not make the first one the only one that has it. */
CASE(fork, accepted_and_more_children, ONE)
{
	int c = accepted_by_two(send_5, become_plain_fork_and_send);
	char b[64];
	long n = 0;
	ssize_t r;

	while ((r = recv(c, b, sizeof(b), 0)) > 0)
		n += r;
	ret("bytes", n);
	ret("end", r);
}

static void close_soon(int fd, int tell)
{
	(void)tell;
	nap(50);
	close(fd);
	nap(2000);
}

static void serve_by_inherited_set(int fd, int told)
{
	struct epoll_event ev = { .events = EPOLLIN };
	int ep = epoll_create1(0);

	(void)told;
	epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
	nap(150);
	if (!fork())
		while (epoll_wait(ep, &ev, 1, 5000) == 1 && echo5(fd, 1))
			;
	close(fd);
	nap(2000);
}

CASE(fork, accepted_in_an_inherited_set, ONE)
{
	int c = accepted_by_two(close_soon, serve_by_inherited_set);

	ask5("served", c, 400);
}

CASE(fork, prefork_accept, ONE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(conf_family, 32, &ss, &l);
	pid_t w[3];
	char b[16];
	int good = 0;

	for (int i = 0; i < 3; i++) {
		w[i] = fork();
		if (!w[i]) {
			for (;;) {
				int a = accept(ls, NULL, NULL);
				ssize_t r;

				while ((r = read(a, b, sizeof(b))) > 0) {
					if (write(a, b, (size_t)r) != r)
						_exit(1);
				}
				close(a);
			}
		}
	}
	close(ls);
	for (int i = 0; i < 12; i++) {
		int c = socket(ss.ss_family, SOCK_STREAM, 0);

		if (connect(c, (struct sockaddr *)&ss, l))
			break;
		for (int j = 0; j < 10; j++) {
			if (send(c, "hello", 5, 0) == 5 && recv(c, b, 5, MSG_WAITALL) == 5 &&
			    !memcmp(b, "hello", 5))
				good++;
			if (j == 5)
				nap(3);
		}
		close(c);
	}
	ret("good", good);
	for (int i = 0; i < 3; i++)
		kill(w[i], SIGKILL);
}

CASE(vfork, exec_true, 0)
{
	struct conn k;
	char b[16];
	pid_t pid;

	conf_pair(&k);
	pid = vfork();
	if (!pid) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(1);
	}
	reap("status", pid);
	p_send(&k, "abc");
	retd("recv", recv(k.fd, b, 16, 0), b);
	ret("send", send(k.fd, "def", 3, 0));
	peer_text(&k, 3);
}

/* what CPython's subprocess does: closes descriptors in a vfork child, in our memory */
CASE(vfork, closes_then_exec, 0)
{
	struct conn k;
	char b[16];
	pid_t pid;

	conf_pair(&k);
	pid = vfork();
	if (!pid) {
		for (int i = 3; i < 299; i++)
			close(i);
		execl("/bin/true", "true", (char *)NULL);
		_exit(1);
	}
	reap("status", pid);
	p_send(&k, "abc");
	retd("recv", recv(k.fd, b, 16, 0), b);
	ret("send", send(k.fd, "def", 3, 0));
	peer_text(&k, 3);
	ret("close", close(k.fd));
	peer_text(&k, 1);
}

CASE(vfork, close_range_then_exit, 0)
{
	struct conn k;
	char b[16];
	pid_t pid;

	conf_pair(&k);
	pid = vfork();
	if (!pid) {
		close_range(3, 299, 0);
		_exit(0);
	}
	reap("status", pid);
	p_send(&k, "abc");
	retd("recv", recv(k.fd, b, 16, 0), b);
}

CASE(vfork, dup2_then_exec, 0)
{
	struct conn k;
	char b[16];
	pid_t pid;

	conf_pair(&k);
	send(k.fd, "<", 1, 0);
	pid = vfork();
	if (!pid) {
		dup2(k.fd, 1);
		execl("/bin/echo", "echo", "from echo", (char *)NULL);
		_exit(1);
	}
	reap("status", pid);
	ret("send", send(k.fd, ">", 1, 0));
	peer_text(&k, 12);
	p_send(&k, "abc");
	retd("recv", recv(k.fd, b, 16, 0), b);
}

CASE(exec, cat, 0)
{
	struct conn k;
	pid_t pid;

	conf_pair(&k);
	pid = fork();
	if (!pid) {
		drop_peer(&k);
		dup2(k.fd, 0);
		dup2(k.fd, 1);
		execl("/bin/cat", "cat", (char *)NULL);
		_exit(1);
	}
	close(k.fd);
	p_send(&k, "hello");
	peer_text(&k, 5);
	p_send(&k, "world");
	peer_text(&k, 5);
	p_shut(&k, SHUT_WR);
	peer_text(&k, 1);
	reap("status", pid);
}

CASE(exec, cat_with_data_before, 0)
{
	struct conn k;
	char b[8];
	pid_t pid;

	conf_pair(&k);
	p_send(&k, "headbody");
	wait_avail(k.fd, 8);
	retd("head", recv(k.fd, b, 4, 0), b);
	send(k.fd, "answer:", 7, 0);
	pid = fork();
	if (!pid) {
		drop_peer(&k);
		dup2(k.fd, 0);
		dup2(k.fd, 1);
		execl("/bin/cat", "cat", (char *)NULL);
		_exit(1);
	}
	close(k.fd);
	p_shut(&k, SHUT_WR);
	peer_text(&k, 20);
	reap("status", pid);
}

CASE(exec, cat_and_parent_keeps_it, 0)
{
	struct conn k;
	char b[8];
	pid_t pid;

	conf_pair(&k);
	pid = fork();
	if (!pid) {
		drop_peer(&k);
		dup2(k.fd, 1);
		execl("/bin/echo", "echo", "one", (char *)NULL);
		_exit(1);
	}
	reap("status", pid);
	peer_text(&k, 4);
	send(k.fd, "two\n", 4, 0);
	peer_text(&k, 4);
	p_send(&k, "abc");
	retd("recv", recv(k.fd, b, 8, 0), b);
}

CASE(exec, cloexec_is_closed, 0)
{
	struct conn k;
	pid_t pid;

	conf_pair(&k);
	pid = fork();
	if (!pid) {
		drop_peer(&k);
		send(k.fd, "before", 6, 0);
		execl("/bin/sleep", "sleep", "3", (char *)NULL);
		_exit(1);
	}
	close(k.fd);
	/* the end of file comes at exec, not at the end of sleep */
	long t = now_ms();

	peer_text(&k, 7);
	took("t", t, 0, 250);
	kill(pid, SIGTERM);
	reap("status", pid);
}

static void exec_ourselves(char **env)
{
	struct conn k;
	char num[16], b[16];
	pid_t pid;

	conf_pair(&k);
	p_send(&k, "abcdef");
	wait_avail(k.fd, 6);
	retd("before", recv(k.fd, b, 1, 0), b);
	pid = fork();
	if (!pid) {
		drop_peer(&k);
		fcntl(k.fd, F_SETFD, 0);
		snprintf(num, sizeof(num), "%d", k.fd);
		execle(conf_self, conf_self, "--exec-child", num, (char *)NULL, env);
		_exit(1);
	}
	close(k.fd);
	peer_text(&k, 9);
	p_send(&k, "XYZ!!");
	peer_text(&k, 9);
	reap("status", pid);
	peer_text(&k, 1);
}

CASE(exec, ourselves, 0)
{
	exec_ourselves(environ);
}

/* into a program that has no preload and knows nothing */
CASE(exec, ourselves_clean_environment, 0)
{
	char *none[] = { NULL };

	exec_ourselves(none);
}

/* the program that the case above becomes: answers every five bytes */
int conf_exec_child(int argc, char **argv)
{
	int fd = argc > 2 ? atoi(argv[2]) : 0;
	char b[16] = "got:";

	for (int i = 0; i < 2; i++) {
		if (recv(fd, b + 4, 5, MSG_WAITALL) != 5)
			return 2;
		if (send(fd, b, 9, 0) != 9)
			return 3;
	}
	return 0;
}

CASE(exec, without_fork, 0)
{
	/* the process that owns the connection becomes another program */
	struct conn k;
	pid_t pid;
	int p[2];
	char num[16], b[16];

	if (conf_two) {
		conf_pair(&k);
		pid = fork();
		if (!pid) {
			send(k.fd, "1", 1, 0);
			fcntl(k.fd, F_SETFD, 0);
			snprintf(num, sizeof(num), "%d", k.fd);
			execl(conf_self, conf_self, "--exec-child", num, (char *)NULL);
			_exit(1);
		}
		close(k.fd);
	} else {
		struct sockaddr_storage ss;
		socklen_t l;
		int ls = conf_listen(conf_family, 2, &ss, &l);

		if (pipe(p))
			return;
		pid = fork();
		if (!pid) {
			int c = socket(ss.ss_family, SOCK_STREAM, 0);

			if (connect(c, (struct sockaddr *)&ss, l) || send(c, "1", 1, 0) != 1 ||
			    recv(c, b, 1, 0) != 1)
				_exit(4);
			snprintf(num, sizeof(num), "%d", c);
			execl(conf_self, conf_self, "--exec-child", num, (char *)NULL);
			_exit(1);
		}
		k.peer = accept(ls, NULL, NULL);
		p_send(&k, "2");
		nap(20);
	}
	peer_text(&k, 1);
	p_send(&k, "abcde");
	peer_text(&k, 9);
	p_send(&k, "fghij");
	peer_text(&k, 9);
	reap("status", pid);
}

CASE(exec, posix_spawn_echo, 0)
{
	struct conn k;
	posix_spawn_file_actions_t fa;
	char *argv[] = { (char[]){ "echo" }, (char[]){ "spawned" }, NULL };
	char b[8];
	pid_t pid;

	conf_pair(&k);
	send(k.fd, "<", 1, 0);
	posix_spawn_file_actions_init(&fa);
	posix_spawn_file_actions_adddup2(&fa, k.fd, 1);
	ret("spawn", posix_spawn(&pid, "/bin/echo", &fa, NULL, argv, environ));
	reap("status", pid);
	send(k.fd, ">", 1, 0);
	peer_text(&k, 10);
	p_send(&k, "abc");
	retd("recv", recv(k.fd, b, 8, 0), b);
}

CASE(exec, system_and_popen, 0)
{
	struct conn k;
	char cmd[64], b[16];
	FILE *f;

	conf_pair(&k);
	fcntl(k.fd, F_SETFD, 0);
	snprintf(cmd, sizeof(cmd), "echo one >&%d", k.fd);
	ret("system", system(cmd));
	send(k.fd, "two\n", 4, 0);
	snprintf(cmd, sizeof(cmd), "cat >&%d", k.fd);
	f = popen(cmd, "w");
	fputs("three\n", f);
	ret("pclose", pclose(f));
	peer_text(&k, 14);
	p_send(&k, "abc");
	snprintf(cmd, sizeof(cmd), "head -c 2 <&%d", k.fd);
	f = popen(cmd, "r");
	memset(b, 0, sizeof(b));
	yes("fgets", fgets(b, sizeof(b), f));
	out(" %s", b);
	pclose(f);
	retd("recv", recv(k.fd, b, 8, 0), b);
}

CASE(exec, failed_exec, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	fcntl(k.fd, F_SETFD, 0);
	send(k.fd, "a", 1, 0);
	ret("exec", execl("/nonexistent", "x", (char *)NULL));
	send(k.fd, "b", 1, 0);
	peer_text(&k, 2);
	p_send(&k, "abc");
	retd("recv", recv(k.fd, b, 16, 0), b);
}
