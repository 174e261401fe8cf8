/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* libcases_fd.c - dup and its family, close_range, stdio over a socket, passing descriptors */
#include "tests/conformance/conf.h"

#include <linux/close_range.h>
#include <sys/resource.h>

extern const char conf_file_fd;
const char conf_file_fd = 1;

static void peer_text(struct conn *k, long n)
{
	char b[2049];
	long r = p_recv(k, b, n);

	if (r < 0)
		peer_ret("peer", r);
	else
		retd("peer", r, b);
}

CASE(fd, dup_shares, 0)
{
	struct conn k;
	char b[16];
	int d;

	conf_pair(&k);
	d = dup(k.fd);
	p_send(&k, "abcdef");
	wait_avail(k.fd, 6);
	retd("orig", recv(k.fd, b, 2, 0), b);
	retd("dup", recv(d, b, 2, 0), b);
	retd("orig", recv(k.fd, b, 2, 0), b);
	ret("send", send(k.fd, "1", 1, 0));
	ret("send", send(d, "2", 1, 0));
	ret("send", send(k.fd, "3", 1, 0));
	peer_text(&k, 3);
}

CASE(fd, dup_outlives, 0)
{
	struct conn k;
	char b[16];
	int d;

	conf_pair(&k);
	d = dup(k.fd);
	ret("close", close(k.fd));
	ret("closed", send(k.fd, "x", 1, 0));
	ret("send", send(d, "abc", 3, 0));
	peer_text(&k, 3);
	p_send(&k, "def");
	retd("recv", recv(d, b, 16, 0), b);
	mask("peer_poll", (int)p_poll(&k, POLLIN | POLLRDHUP, 20));
	ret("close", close(d));
	peer_text(&k, 1);
}

CASE(fd, dup_shutdown_is_shared, 0)
{
	struct conn k;
	int d;

	conf_pair(&k);
	d = dup(k.fd);
	ret("shut", shutdown(d, SHUT_WR));
	ret("send", send(k.fd, "x", 1, MSG_NOSIGNAL));
	peer_text(&k, 1);
}

CASE(fd, dup2_over_a_file, 0)
{
	struct conn k;
	char b[16];
	int f = temp_file(4, 1);

	conf_pair(&k);
	yes("dup2", dup2(k.fd, f) == f);
	ret("send", send(f, "abc", 3, 0));
	peer_text(&k, 3);
	ret("close", close(k.fd));
	p_send(&k, "def");
	retd("read", read(f, b, 16), b);
}

CASE(fd, dup2_closes_the_target, 0)
{
	struct conn a, b;
	char buf[16];

	conf_pair(&a);
	conf_pair(&b);
	yes("dup2", dup2(a.fd, b.fd) == b.fd);
	/* the connection that was at this number is closed */
	peer_text(&b, 1);
	ret("send", send(b.fd, "abc", 3, 0));
	peer_text(&a, 3);
	p_send(&a, "def");
	retd("recv", recv(b.fd, buf, 16, 0), buf);
}

CASE(fd, dup2_closes_with_unread_data, 0)
{
	struct conn a, b;
	char buf[16];

	conf_pair(&a);
	conf_pair(&b);
	p_send(&b, "unread");
	wait_avail(b.fd, 6);
	yes("dup2", dup2(a.fd, b.fd) == b.fd);
	mask("peer_poll", (int)p_poll(&b, POLLIN | POLLRDHUP, 1000));
	peer_ret("peer_recv", p_recvnb(&b, buf, 8));
}

CASE(fd, dup2_same, 0)
{
	struct conn k;

	conf_pair(&k);
	yes("dup2", dup2(k.fd, k.fd) == k.fd);
	ret("dup3", dup3(k.fd, k.fd, 0));
	ret("dup2_bad", dup2(999, 100));
	/* cppcheck-suppress invalidFunctionArg */
	ret("dup2_range", dup2(k.fd, -1));
	ret("send", send(k.fd, "abc", 3, 0));
	peer_text(&k, 3);
}

CASE(fd, dup3_and_dupfd, 0)
{
	struct conn k;
	int a, b, c;

	conf_pair(&k);
	a = dup3(k.fd, 100, O_CLOEXEC);
	b = fcntl(k.fd, F_DUPFD, 150);
	c = fcntl(k.fd, F_DUPFD_CLOEXEC, 150);
	out(" %d %d %d", a, b, c);
	ret("a", fcntl(a, F_GETFD));
	ret("b", fcntl(b, F_GETFD));
	ret("c", fcntl(c, F_GETFD));
	ret("flags", dup3(k.fd, 101, 0x7000000));
	ret("send", send(a, "a", 1, 0));
	ret("send", send(b, "b", 1, 0));
	ret("send", send(c, "c", 1, 0));
	peer_text(&k, 3);
	close(k.fd);
	close(a);
	close(b);
	mask("peer_poll", (int)p_poll(&k, POLLIN | POLLRDHUP, 20));
	close(c);
	peer_text(&k, 1);
}

CASE(fd, cloexec_flag, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("getfd", fcntl(k.fd, F_GETFD));
	ret("ioctl", ioctl(k.fd, FIONCLEX));
	ret("getfd", fcntl(k.fd, F_GETFD));
	ret("ioctl", ioctl(k.fd, FIOCLEX));
	ret("getfd", fcntl(k.fd, F_GETFD));
	ret("setfd", fcntl(k.fd, F_SETFD, 0));
	ret("getfd", fcntl(k.fd, F_GETFD));
}

CASE(fd, close_range_closes, 0)
{
	struct conn a, b;

	conf_pair(&a);
	conf_pair(&b);
	a.fd = dup2(a.fd, 120) == 120 ? (close(a.fd), 120) : a.fd;
	b.fd = dup2(b.fd, 121) == 121 ? (close(b.fd), 121) : b.fd;
	ret("close_range", (long)syscall(SYS_close_range, 122, 130, 0));
	ret("send", send(a.fd, "x", 1, 0));
	peer_text(&a, 1);
	ret("close_range", close_range(120, 125, 0));
	ret("send", send(a.fd, "x", 1, 0));
	peer_text(&a, 1);
	peer_text(&b, 1);
	ret("inverted", close_range(130, 120, 0));
}

CASE(fd, close_range_cloexec, 0)
{
	struct conn k;

	conf_pair(&k);
	fcntl(k.fd, F_SETFD, 0);
	ret("close_range",
	    close_range((unsigned int)k.fd, (unsigned int)k.fd, CLOSE_RANGE_CLOEXEC));
	ret("getfd", fcntl(k.fd, F_GETFD));
	ret("send", send(k.fd, "abc", 3, 0));
	peer_text(&k, 3);
}

CASE(fd, closefrom, 0)
{
	struct conn k;

	conf_pair(&k);
	k.fd = dup2(k.fd, 120) == 120 ? (close(k.fd), 120) : k.fd;
	if (!conf_two) {
		int d = dup2(k.peer, 110);

		close(k.peer);
		k.peer = d;
		closefrom(115);
	} else {
		/* the helper's channel is at 300 */
		close_range(115, 299, 0);
	}
	ret("send", send(k.fd, "x", 1, 0));
	peer_text(&k, 1);
}

CASE(fd, close_loop_like_a_daemon, ONE)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	for (int i = 3; i < 1100; i++)
		close(i);
	/* and life goes on */
	conf_pair(&k);
	p_send(&k, "abc");
	retd("recv", recv(k.fd, b, 8, 0), b);
	send(k.fd, "def", 3, 0);
	peer_text(&k, 3);
}

CASE(fd, open_fds_are_ours_only, ONE)
{
	struct conn k;
	int low = 0;

	/* a program gets the lowest free numbers, as it expects */
	close_range(3, 100, 0);
	conf_pair(&k);
	close(k.fd);
	close(k.peer);
	conf_pair(&k);
	for (int i = 3; i < 100; i++)
		low += fcntl(i, F_GETFD) >= 0 && i != k.fd && i != k.peer;
	yes("strangers_below_100", low > 0);
}

CASE(fd, fdopen_read, 0)
{
	struct conn k;
	char line[64];
	FILE *f;

	conf_pair(&k);
	p_send(&k, "line one\nline two\nrest");
	p_shut(&k, SHUT_WR);
	f = fdopen(k.fd, "r");
	while (fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = 0;
		out(" [%s]", line);
	}
	yes("eof", feof(f));
	yes("error", ferror(f));
	ret("fclose", fclose(f));
	ret("fd", fcntl(k.fd, F_GETFD));
}

CASE(fd, fdopen_after_some_io, 0)
{
	struct conn k;
	char line[64], b[8];
	FILE *f;

	conf_pair(&k);
	p_send(&k, "abcline one\nmore\n");
	wait_avail(k.fd, 17);
	retd("recv", recv(k.fd, b, 3, 0), b);
	send(k.fd, "<", 1, 0);
	f = fdopen(dup(k.fd), "r+");
	fgets(line, sizeof(line), f);
	line[strcspn(line, "\n")] = 0;
	out(" [%s]", line);
	/* cppcheck-suppress IOWithoutPositioning */
	fprintf(f, "answer %d\n", 42);
	fflush(f);
	peer_text(&k, 11);
	fclose(f);
	ret("send", send(k.fd, ">", 1, 0));
	peer_text(&k, 1);
}

CASE(fd, fdopen_write, 0)
{
	struct conn k;
	FILE *f;

	conf_pair(&k);
	f = fdopen(k.fd, "w");
	fprintf(f, "hello %s %d", "world", 7);
	fputs("!\n", f);
	ret("fclose", fclose(f));
	peer_text(&k, 100);
}

CASE(fd, fdopen_write_epipe, 0)
{
	struct conn k;
	FILE *f;

	conf_pair(&k);
	signal(SIGPIPE, SIG_IGN);
	shutdown(k.fd, SHUT_WR);
	f = fdopen(k.fd, "w");
	fputs("x", f);
	ret("fflush", fflush(f));
	yes("error", ferror(f));
}

CASE(fd, dprintf, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("send", send(k.fd, "a", 1, 0));
	ret("dprintf", dprintf(k.fd, "-%d-", 12));
	ret("send", send(k.fd, "b", 1, 0));
	peer_text(&k, 6);
}

CASE(fd, stdout_is_a_socket, 0)
{
	struct conn k;
	int old = dup(1);

	conf_pair(&k);
	dup2(k.fd, 1);
	printf("printed %d\n", 1);
	fflush(stdout);
	ret("puts", puts("put") >= 0 ? 0 : -1);
	fflush(stdout);
	dup2(old, 1);
	peer_text(&k, 14);
	close(k.fd);
	peer_text(&k, 1);
}

CASE(fd, getline_big, 0)
{
	struct conn k;
	FILE *f;
	char *line = NULL;
	size_t cap = 0;
	int lines = 0;
	size_t bytes = 0;
	ssize_t r;

	conf_pair(&k);
	for (int i = 0; i < 50; i++)
		p_send(&k, "0123456789012345678901234567890123456789\n");
	p_shut(&k, SHUT_WR);
	f = fdopen(k.fd, "r");
	while ((r = getline(&line, &cap, f)) > 0) {
		lines++;
		bytes += (size_t)r;
	}
	out(" lines=%d bytes=%zu", lines, bytes);
}

CASE(fd, proc_self_fd, 0)
{
	struct conn k;
	char path[64], link[64];
	ssize_t n;

	conf_pair(&k);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", k.fd);
	n = readlink(path, link, sizeof(link) - 1);
	yes("socket", n > 8 && !strncmp(link, "socket:[", 8));
	ret("open", open(path, O_RDWR));
}

CASE(fd, nofile_limit, ONE)
{
	/* no descriptor left: accept and socket fail as they should, the rest goes on */
	struct conn k;
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(AF_INET, 4, &ss, &l);
	int c = socket(AF_INET, SOCK_STREAM, 0), d, a = -1;
	char b[8];
	struct rlimit rl = { 400, 400 };

	conf_pair(&k);
	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	wait_ev(ls, POLLIN);
	setrlimit(RLIMIT_NOFILE, &rl);
	while ((d = dup(0)) >= 0)
		a = d;
	out(" dup=%s", err_name(errno));
	ret("accept", accept(ls, NULL, NULL));
	ret("socket", socket(AF_INET, SOCK_STREAM, 0));
	send(k.fd, "abc", 3, 0);
	peer_text(&k, 3);
	p_send(&k, "def");
	retd("recv", recv(k.fd, b, 8, 0), b);
	if (a >= 0)
		close(a);
	yes("accept", accept(ls, NULL, NULL) >= 0);
}

/* --- passing descriptors --- */

static int send_fd(int via, int fd)
{
	char c = 'F';
	struct iovec iov = { &c, 1 };
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr h;
	} u = { .h = { .cmsg_len = CMSG_LEN(sizeof(int)),
		       .cmsg_level = SOL_SOCKET,
		       .cmsg_type = SCM_RIGHTS } };
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &u, .msg_controllen = sizeof(u.buf)
	};

	memcpy(CMSG_DATA(&u.h), &fd, sizeof(int));
	return (int)sendmsg(via, &m, 0);
}

static int recv_fd(int via)
{
	char c;
	struct iovec iov = { &c, 1 };
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr h;
	} u;
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &u, .msg_controllen = sizeof(u.buf)
	};
	int fd = -1;

	if (recvmsg(via, &m, 0) != 1 || !CMSG_FIRSTHDR(&m))
		return -1;
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
	return fd;
}

CASE(scm, to_self, 0)
{
	struct conn k;
	char b[16];
	int sv[2], n;

	conf_pair(&k);
	socketpair(AF_UNIX, SOCK_STREAM, 0, sv);
	p_send(&k, "abcdef");
	wait_avail(k.fd, 6);
	retd("before", recv(k.fd, b, 2, 0), b);
	ret("pass", send_fd(sv[0], k.fd));
	n = recv_fd(sv[1]);
	yes("got", n >= 0);
	retd("new", recv(n, b, 2, 0), b);
	retd("old", recv(k.fd, b, 2, 0), b);
	ret("send", send(k.fd, "1", 1, 0));
	ret("send", send(n, "2", 1, 0));
	peer_text(&k, 2);
	close(k.fd);
	ret("send", send(n, "3", 1, 0));
	peer_text(&k, 1);
	close(n);
	peer_text(&k, 1);
}

CASE(scm, closed_while_in_flight, 0)
{
	struct conn k;
	char b[16];
	int sv[2], n;

	conf_pair(&k);
	socketpair(AF_UNIX, SOCK_STREAM, 0, sv);
	ret("pass", send_fd(sv[0], k.fd));
	close(k.fd);
	p_send(&k, "abc");
	n = recv_fd(sv[1]);
	retd("recv", recv(n, b, 16, 0), b);
	ret("send", send(n, "def", 3, 0));
	peer_text(&k, 3);
	close(n);
	peer_text(&k, 1);
}

CASE(scm, to_child, 0)
{
	struct conn k;
	char b[16];
	int sv[2], w = 0;
	pid_t pid;

	socketpair(AF_UNIX, SOCK_STREAM, 0, sv);
	pid = fork();
	if (!pid) {
		int n;

		close(sv[0]);
		n = recv_fd(sv[1]);
		retd("child", recv(n, b, 3, 0), b);
		ret("child_send", send(n, "child", 5, 0));
		close(n);
		_exit(0);
	}
	close(sv[1]);
	conf_pair(&k);
	p_send(&k, "abcdef");
	wait_avail(k.fd, 6);
	send_fd(sv[0], k.fd);
	waitpid(pid, &w, 0);
	status("status", w);
	peer_text(&k, 5);
	retd("parent", recv(k.fd, b, 16, 0), b);
	ret("send", send(k.fd, "parent", 6, 0));
	peer_text(&k, 6);
}

/* What the peer has sent before it ended is all there, or an error says that it is not. */
CASE(scm, to_child_after_end, 0)
{
	struct conn k;
	char b[16];
	int sv[2], w = 0;
	pid_t pid;

	socketpair(AF_UNIX, SOCK_STREAM, 0, sv);
	pid = fork();
	if (!pid) {
		int n;

		close(sv[0]);
		n = recv_fd(sv[1]);
		retd("child", recv(n, b, 16, 0), b);
		ret("end", recv(n, b, 16, 0));
		_exit(0);
	}
	close(sv[1]);
	conf_pair(&k);
	p_send(&k, "abcdef");
	p_close(&k);
	wait_ev(k.fd, POLLRDHUP);
	nap(50);
	send_fd(sv[0], k.fd);
	close(k.fd);
	waitpid(pid, &w, 0);
	status("status", w);
}

CASE(scm, to_child_and_closed_here, 0)
{
	struct conn k;
	char b[16];
	int sv[2], w = 0;
	pid_t pid;

	socketpair(AF_UNIX, SOCK_STREAM, 0, sv);
	pid = fork();
	if (!pid) {
		int n;

		close(sv[0]);
		n = recv_fd(sv[1]);
		nap(30);
		retd("child", recv(n, b, 16, 0), b);
		ret("child_send", send(n, "child", 5, 0));
		_exit(0);
	}
	close(sv[1]);
	conf_pair(&k);
	send(k.fd, "first", 5, 0);
	send_fd(sv[0], k.fd);
	close(k.fd);
	p_send(&k, "abcdef");
	waitpid(pid, &w, 0);
	status("status", w);
	peer_text(&k, 10);
	peer_text(&k, 1);
}

CASE(scm, big_data_around_it, 0)
{
	struct conn k;
	int sv[2], n;

	conf_pair(&k);
	socketpair(AF_UNIX, SOCK_STREAM, 0, sv);
	peer_ret("peer", p_sendn(&k, 300000, 3));
	ret("part", recvn(k.fd, 100000, 3));
	ret("pass", send_fd(sv[0], k.fd));
	n = recv_fd(sv[1]);
	close(k.fd);
	char *b = malloc(200000);

	ret("rest", recv(n, b, 200000, MSG_WAITALL));
	yes("same", pattern_ok(b, 200000, 100000, 3));
}
