/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* libcases_poll.c - poll, ppoll, select, pselect: the masks of every state, and waiting */
#include "tests/conformance/conf.h"

extern const char conf_file_poll;
const char conf_file_poll = 1;

#define ALL \
	(POLLIN | POLLPRI | POLLOUT | POLLRDHUP | POLLRDNORM | POLLWRNORM | POLLRDBAND | POLLWRBAND)

static void masks(const char *label, int fd)
{
	poll_say(label, fd, ALL, 0);
}

static int sel(int nfds, fd_set *r, fd_set *w, fd_set *e, int ms)
{
	struct timeval tv = { ms / 1000, (ms % 1000) * 1000L };

	return select(nfds, r, w, e, &tv);
}

/* which of r, w, e select() reports for one descriptor */
static void sel_say(const char *label, int fd, int ms)
{
	fd_set r, w, e;
	int n;

	FD_ZERO(&r);
	FD_SET(fd, &r);
	w = r;
	e = r;
	n = sel(fd + 1, &r, &w, &e, ms);
	ret(label, n);
	out("[%s%s%s]", FD_ISSET(fd, &r) ? "r" : "", FD_ISSET(fd, &w) ? "w" : "",
	    FD_ISSET(fd, &e) ? "e" : "");
}

CASE(poll, fresh, 0)
{
	struct conn k;

	conf_pair(&k);
	masks("all", k.fd);
	poll_say("none", k.fd, 0, 0);
	poll_say("in", k.fd, POLLIN, 0);
	poll_say("out", k.fd, POLLOUT, 0);
	poll_say("pri", k.fd, POLLPRI, 0);
}

CASE(poll, data, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	p_send(&k, "abc");
	yes("in", wait_ev(k.fd, POLLIN));
	masks("all", k.fd);
	poll_say("none", k.fd, 0, 0);
	recv(k.fd, b, 2, 0);
	masks("all", k.fd);
	recv(k.fd, b, 2, 0);
	masks("all", k.fd);
}

CASE(poll, half_closed_by_peer, 0)
{
	struct conn k;

	conf_pair(&k);
	p_shut(&k, SHUT_WR);
	yes("rdhup", wait_ev(k.fd, POLLRDHUP));
	masks("all", k.fd);
	poll_say("none", k.fd, 0, 0);
	poll_say("in", k.fd, POLLIN, 0);
	poll_say("rdhup", k.fd, POLLRDHUP, 0);
}

CASE(poll, half_closed_by_peer_with_data, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	p_send(&k, "abc");
	p_shut(&k, SHUT_WR);
	yes("rdhup", wait_ev(k.fd, POLLRDHUP));
	masks("all", k.fd);
	recv(k.fd, b, 8, 0);
	masks("all", k.fd);
}

CASE(poll, half_closed_by_us, 0)
{
	struct conn k;

	conf_pair(&k);
	shutdown(k.fd, SHUT_WR);
	masks("all", k.fd);
	mask("peer", (int)p_poll(&k, ALL, 0));
}

CASE(poll, closed_both, 0)
{
	struct conn k;

	conf_pair(&k);
	shutdown(k.fd, SHUT_WR);
	p_shut(&k, SHUT_WR);
	yes("hup", wait_ev(k.fd, POLLHUP));
	masks("all", k.fd);
	poll_say("none", k.fd, 0, 0);
}

CASE(poll, peer_closed, 0)
{
	struct conn k;

	conf_pair(&k);
	p_close(&k);
	yes("rdhup", wait_ev(k.fd, POLLRDHUP));
	masks("all", k.fd);
}

CASE(poll, shut_rd, 0)
{
	struct conn k;

	conf_pair(&k);
	shutdown(k.fd, SHUT_RD);
	masks("all", k.fd);
}

CASE(poll, shut_rdwr, 0)
{
	struct conn k;

	conf_pair(&k);
	shutdown(k.fd, SHUT_RDWR);
	masks("all", k.fd);
}

CASE(poll, reset, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	p_rst(&k);
	yes("err", wait_ev(k.fd, POLLERR));
	masks("all", k.fd);
	poll_say("none", k.fd, 0, 0);
	ret("recv", recv(k.fd, b, 8, 0));
	masks("all", k.fd);
	poll_say("none", k.fd, 0, 0);
}

CASE(poll, full, 0)
{
	struct conn k;
	long n;

	conf_pair(&k);
	n = fill(k.fd);
	masks("full", k.fd);
	p_recvn(&k, n, 7);
	yes("out", wait_ev(k.fd, POLLOUT));
	masks("drained", k.fd);
}

CASE(poll, full_and_peer_closed, 0)
{
	struct conn k;

	conf_pair(&k);
	fill(k.fd);
	p_shut(&k, SHUT_WR);
	yes("rdhup", wait_ev(k.fd, POLLRDHUP));
	masks("all", k.fd);
}

CASE(poll, full_and_we_shut, 0)
{
	struct conn k;

	conf_pair(&k);
	fill(k.fd);
	shutdown(k.fd, SHUT_WR);
	masks("all", k.fd);
}

CASE(poll, unconnected, NOSTATE)
{
	int s = socket(AF_INET, SOCK_STREAM, 0);
	int l;

	masks("fresh", s);
	l = conf_listen(AF_INET, 1, NULL, NULL);
	masks("listening", l);
	poll_say("closed", 999, ALL, 0);
	poll_say("negative", -1, ALL, 0);
	poll_say("file", temp_file(1, 1), ALL, 0);
}

CASE(poll, listening, NOSTATE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(AF_INET, 4, &ss, &l);
	int c = socket(AF_INET, SOCK_STREAM, 0);
	int a;

	masks("none", ls);
	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	yes("in", wait_ev(ls, POLLIN));
	masks("pending", ls);
	a = accept(ls, NULL, NULL);
	yes("accepted", a >= 0);
	masks("none", ls);
	masks("client", c);
	masks("accepted", a);
}

CASE(poll, many, 0)
{
	struct conn a, b;
	int p[2];
	struct pollfd f[7];

	conf_pair(&a);
	conf_pair(&b);
	if (pipe(p))
		return;
	ret("write", write(p[1], "x", 1));
	p_send(&b, "abc");
	yes("in", wait_ev(b.fd, POLLIN));
	f[0] = (struct pollfd){ a.fd, POLLIN, 99 };
	f[1] = (struct pollfd){ -1, POLLIN, 99 };
	f[2] = (struct pollfd){ b.fd, POLLIN, 99 };
	f[3] = (struct pollfd){ p[0], POLLIN, 99 };
	f[4] = (struct pollfd){ 999, POLLIN, 99 };
	f[5] = (struct pollfd){ b.fd, POLLOUT, 99 };
	f[6] = (struct pollfd){ b.fd, 0, 99 };
	ret("poll", poll(f, 7, 1000));
	for (int i = 0; i < 7; i++)
		mask("m", f[i].revents);
	ret("poll1", poll(f, 1, 0));
	mask("m", f[0].revents);
}

CASE(poll, timeouts, 0)
{
	struct conn k;
	long t;

	conf_pair(&k);
	t = now_ms();
	poll_say("zero", k.fd, POLLIN, 0);
	took("t", t, 0, 500);
	t = now_ms();
	poll_say("60", k.fd, POLLIN, 60);
	took("t", t, 60, 1000);
	t = now_ms();
	ret("nothing", poll(NULL, 0, 30));
	took("t", t, 30, 1000);
	ret("efault", poll(conf_bad, 1, 0));
	ret("toomany", poll(conf_bad, 100000000, 0));
}

CASE(poll, wakes_on_data, 0)
{
	struct conn k;
	long t;

	conf_pair(&k);
	t = now_ms();
	p_later(&k, 60, OP_SEND, 0, 0, "abc");
	poll_say("poll", k.fd, POLLIN, 3000);
	took("t", t, 40, 1500);
	p_done();
}

CASE(poll, wakes_for_ever, 0)
{
	struct conn k;

	conf_pair(&k);
	p_later(&k, 60, OP_SEND, 0, 0, "abc");
	poll_say("poll", k.fd, POLLIN, -1);
	p_done();
}

CASE(poll, wakes_on_eof, 0)
{
	struct conn k;
	long t;

	conf_pair(&k);
	t = now_ms();
	p_later(&k, 60, OP_SHUT, SHUT_WR, 0, NULL);
	poll_say("poll", k.fd, POLLIN | POLLRDHUP, 3000);
	took("t", t, 40, 1500);
	p_done();
}

CASE(poll, wakes_on_rdhup_only, 0)
{
	struct conn k;
	long t;

	conf_pair(&k);
	p_send(&k, "unread");
	t = now_ms();
	p_later(&k, 60, OP_SHUT, SHUT_WR, 0, NULL);
	poll_say("poll", k.fd, POLLRDHUP, 3000);
	took("t", t, 40, 1500);
	p_done();
}

CASE(poll, wakes_on_reset, 0)
{
	struct conn k;
	long t;

	conf_pair(&k);
	t = now_ms();
	p_later(&k, 60, OP_RST, 0, 0, NULL);
	poll_say("poll", k.fd, 0, 3000);
	took("t", t, 40, 1500);
	p_done();
}

CASE(poll, wakes_on_room, 0)
{
	struct conn k;
	long n, t;

	conf_pair(&k);
	n = fill(k.fd);
	t = now_ms();
	p_later(&k, 60, OP_RECVN, n, 7, NULL);
	poll_say("poll", k.fd, POLLOUT, 3000);
	took("t", t, 40, 2000);
	yes("all", p_done() == n);
}

CASE(poll, wakes_by_other_fd, 0)
{
	struct conn k;
	int e = eventfd(0, 0);
	struct pollfd f[2] = { { .events = POLLIN }, { .fd = e, .events = POLLIN } };
	uint64_t one = 1;
	pid_t pid;

	conf_pair(&k);
	f[0].fd = k.fd;
	pid = fork();
	if (!pid) {
		nap(60);
		if (write(e, &one, 8) != 8)
			_exit(1);
		_exit(0);
	}
	ret("poll", poll(f, 2, 3000));
	mask("sock", f[0].revents);
	mask("eventfd", f[1].revents);
	waitpid(pid, NULL, 0);
}

CASE(poll, mixed_wakes_on_sock, 0)
{
	struct conn k;
	int e = eventfd(0, 0), p[2];
	struct pollfd f[3] = { { .events = POLLIN },
			       { .fd = e, .events = POLLIN },
			       { .events = POLLIN } };

	conf_pair(&k);
	if (pipe(p))
		return;
	f[0].fd = p[0];
	f[2].fd = k.fd;
	p_later(&k, 60, OP_SEND, 0, 0, "abc");
	ret("poll", poll(f, 3, 3000));
	mask("pipe", f[0].revents);
	mask("eventfd", f[1].revents);
	mask("sock", f[2].revents);
	p_done();
}

CASE(poll, two_socks_second_wakes, 0)
{
	struct conn a, b;
	struct pollfd f[2];

	conf_pair(&a);
	conf_pair(&b);
	f[0] = (struct pollfd){ a.fd, POLLIN, 0 };
	f[1] = (struct pollfd){ b.fd, POLLIN, 0 };
	p_later(&b, 60, OP_SEND, 0, 0, "abc");
	ret("poll", poll(f, 2, 3000));
	mask("a", f[0].revents);
	mask("b", f[1].revents);
	p_done();
}

CASE(poll, plain_and_pair, ONE)
{
	/* one socket that never talks to a peer of ours, beside one that does */
	struct conn k;
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(AF_INET, 4, &ss, &l);
	struct pollfd f[2];

	conf_pair(&k);
	f[0] = (struct pollfd){ ls, POLLIN, 0 };
	f[1] = (struct pollfd){ k.fd, POLLIN, 0 };
	p_later(&k, 60, OP_SEND, 0, 0, "abc");
	ret("poll", poll(f, 2, 3000));
	mask("listen", f[0].revents);
	mask("sock", f[1].revents);
	p_done();
}

CASE(poll, ppoll, 0)
{
	struct conn k;
	struct pollfd f = { .events = POLLIN };
	struct timespec ts = { 0, 50000000 }, bad = { 0, -1 };
	sigset_t none;
	long t;

	conf_pair(&k);
	sigemptyset(&none);
	f.fd = k.fd;
	t = now_ms();
	ret("ppoll", ppoll(&f, 1, &ts, NULL));
	took("t", t, 50, 1000);
	ret("unchanged", ts.tv_nsec);
	ret("bad", ppoll(&f, 1, &bad, NULL));
	p_later(&k, 50, OP_SEND, 0, 0, "abc");
	ret("ppoll", ppoll(&f, 1, NULL, &none));
	mask("m", f.revents);
	p_done();
}

CASE(select, states, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	sel_say("fresh", k.fd, 0);
	p_send(&k, "abc");
	wait_ev(k.fd, POLLIN);
	sel_say("data", k.fd, 0);
	recv(k.fd, b, 8, 0);
	sel_say("read", k.fd, 0);
	p_shut(&k, SHUT_WR);
	wait_ev(k.fd, POLLRDHUP);
	sel_say("eof", k.fd, 0);
	shutdown(k.fd, SHUT_WR);
	sel_say("both", k.fd, 0);
}

CASE(select, reset, 0)
{
	struct conn k;

	conf_pair(&k);
	p_rst(&k);
	wait_ev(k.fd, POLLERR);
	sel_say("reset", k.fd, 0);
}

CASE(select, full, 0)
{
	struct conn k;

	conf_pair(&k);
	fill(k.fd);
	sel_say("full", k.fd, 0);
}

CASE(select, waits, 0)
{
	struct conn k;
	fd_set r;
	struct timeval tv = { 3, 0 };
	long t;

	conf_pair(&k);
	FD_ZERO(&r);
	FD_SET(k.fd, &r);
	t = now_ms();
	ret("timeout", sel(k.fd + 1, &r, NULL, NULL, 60));
	took("t", t, 60, 1000);
	yes("cleared", !FD_ISSET(k.fd, &r));
	FD_SET(k.fd, &r);
	t = now_ms();
	p_later(&k, 60, OP_SEND, 0, 0, "abc");
	ret("wakes", select(k.fd + 1, &r, NULL, NULL, &tv));
	took("t", t, 40, 1500);
	yes("set", FD_ISSET(k.fd, &r));
	/* Linux leaves the rest of the time */
	yes("rest", tv.tv_sec < 3 && tv.tv_sec >= 1);
	p_done();
	FD_SET(k.fd, &r);
	ret("null_timeout", select(k.fd + 1, &r, NULL, NULL, NULL));
	tv = (struct timeval){ 0, 10000 };
	ret("nothing", select(0, NULL, NULL, NULL, &tv));
	out(" left=%ld", (long)tv.tv_usec);
}

CASE(select, two_of_three, 0)
{
	struct conn a, b, c;
	fd_set r;
	int max;

	conf_pair(&a);
	conf_pair(&b);
	conf_pair(&c);
	max = a.fd > b.fd ? a.fd : b.fd;
	max = c.fd > max ? c.fd : max;
	FD_ZERO(&r);
	FD_SET(a.fd, &r);
	FD_SET(b.fd, &r);
	FD_SET(c.fd, &r);
	p_send(&a, "x");
	p_send(&c, "y");
	wait_ev(a.fd, POLLIN);
	wait_ev(c.fd, POLLIN);
	ret("select", sel(max + 1, &r, NULL, NULL, 1000));
	yes("a", FD_ISSET(a.fd, &r));
	yes("b", FD_ISSET(b.fd, &r));
	yes("c", FD_ISSET(c.fd, &r));
}

CASE(select, errors, 0)
{
	struct conn k;
	fd_set r;
	struct timeval bad = { -1, 0 };

	conf_pair(&k);
	FD_ZERO(&r);
	FD_SET(k.fd, &r);
	ret("nfds", select(-1, &r, NULL, NULL, NULL));
	ret("time", select(k.fd + 1, &r, NULL, NULL, &bad));
	/* the kernel looks no further than its table goes: a number well inside */
	FD_SET(55, &r);
	ret("ebadf", sel(56, &r, NULL, NULL, 0));
	FD_CLR(55, &r);
	/* nfds excludes our descriptor */
	ret("below", sel(k.fd, &r, NULL, NULL, 0));
}

CASE(select, high_fd, 0)
{
	struct conn k;
	int d;
	fd_set r;

	conf_pair(&k);
	d = fcntl(k.fd, F_DUPFD, 1000);
	FD_ZERO(&r);
	FD_SET(d, &r);
	p_later(&k, 60, OP_SEND, 0, 0, "abc");
	ret("select", sel(d + 1, &r, NULL, NULL, 3000));
	yes("set", FD_ISSET(d, &r));
	p_done();
}

CASE(select, pselect, 0)
{
	struct conn k;
	fd_set r;
	struct timespec ts = { 0, 40000000 };

	conf_pair(&k);
	FD_ZERO(&r);
	FD_SET(k.fd, &r);
	ret("pselect", pselect(k.fd + 1, &r, NULL, NULL, &ts, NULL));
	ret("unchanged", ts.tv_nsec);
	FD_SET(k.fd, &r);
	p_later(&k, 40, OP_SEND, 0, 0, "abc");
	ret("pselect", pselect(k.fd + 1, &r, NULL, NULL, NULL, NULL));
	yes("set", FD_ISSET(k.fd, &r));
	p_done();
}

CASE(poll, ping_pong_by_poll, 0)
{
	struct conn k;
	char b[8];
	int good = 0;

	conf_pair(&k);
	for (int i = 0; i < 300; i++) {
		if (send(k.fd, "p", 1, 0) != 1 || p_recv(&k, b, 1) != 1 || p_send(&k, "q") != 1)
			break;
		if (poll1(k.fd, POLLIN, 2000) != POLLIN || recv(k.fd, b, 8, MSG_DONTWAIT) != 1)
			break;
		good++;
	}
	ret("rounds", good);
}
