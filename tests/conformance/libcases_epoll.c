/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* libcases_epoll.c - epoll: level, edge, one-shot, exclusive, nested, dups, errors, wakes */
#include "tests/conformance/conf.h"

extern const char conf_file_epoll;
const char conf_file_epoll = 1;

#define IN_OUT (EPOLLIN | EPOLLOUT | EPOLLRDHUP)

static int add(int ep, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event e = { .events = events, .data.u64 = data };

	return epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
}

static int mod(int ep, int fd, uint32_t events, uint64_t data)
{
	struct epoll_event e = { .events = events, .data.u64 = data };

	return epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e);
}

static int del(int ep, int fd)
{
	return epoll_ctl(ep, EPOLL_CTL_DEL, fd, NULL);
}

static int by_data(const void *a, const void *b)
{
	const struct epoll_event *x = a, *y = b;

	return x->data.u64 < y->data.u64 ? -1 : x->data.u64 > y->data.u64;
}

/* waits and prints what came, sorted by data: " label=2[1:IN 5:IN|OUT]" */
static int ev(const char *label, int ep, int max, int ms)
{
	struct epoll_event e[64];
	int n = epoll_wait(ep, e, max, ms);
	const char *sep = "";

	ret(label, n);
	if (n <= 0)
		return n;
	qsort(e, (size_t)n, sizeof(e[0]), by_data);
	out("[");
	for (int i = 0; i < n; i++) {
		out("%s", sep);
		sep = ",";
		char name[32];

		snprintf(name, sizeof(name), "%llu", (unsigned long long)e[i].data.u64);
		emask(name, e[i].events);
	}
	out("]");
	return n;
}

/* nothing more may come for a moment */
static void quiet(int ep)
{
	ev("quiet", ep, 64, 40);
}

CASE(epoll, level, 0)
{
	struct conn k;
	char b[8];
	int ep = epoll_create1(0);

	conf_pair(&k);
	ret("add", add(ep, k.fd, EPOLLIN, 7));
	ev("none", ep, 8, 0);
	p_send(&k, "abc");
	ev("data", ep, 8, 2000);
	ev("again", ep, 8, 0);
	recv(k.fd, b, 1, 0);
	ev("partly", ep, 8, 0);
	recv(k.fd, b, 8, 0);
	ev("read", ep, 8, 0);
	p_send(&k, "def");
	ev("data", ep, 8, 2000);
}

CASE(epoll, edge, 0)
{
	struct conn k;
	char b[8];
	int ep = epoll_create1(0);

	conf_pair(&k);
	ret("add", add(ep, k.fd, EPOLLIN | EPOLLET, 7));
	ev("none", ep, 8, 0);
	p_send(&k, "abc");
	ev("data", ep, 8, 2000);
	quiet(ep);
	/* a partial read is no edge */
	recv(k.fd, b, 1, 0);
	quiet(ep);
	/* new data is one, though the old was not read */
	p_send(&k, "def");
	ev("more", ep, 8, 2000);
	quiet(ep);
	recv(k.fd, b, 8, 0);
	quiet(ep);
	p_send(&k, "ghi");
	ev("data", ep, 8, 2000);
}

CASE(epoll, edge_two_arrivals_one_report, 0)
{
	struct conn k;
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN | EPOLLET, 7);
	p_send(&k, "abc");
	wait_avail(k.fd, 3);
	p_send(&k, "def");
	wait_avail(k.fd, 6);
	ev("both", ep, 8, 2000);
	quiet(ep);
}

CASE(epoll, edge_initial, 0)
{
	struct conn k;
	int ep = epoll_create1(0);

	conf_pair(&k);
	p_send(&k, "abc");
	wait_avail(k.fd, 3);
	ret("add", add(ep, k.fd, IN_OUT | EPOLLET, 7));
	ev("initial", ep, 8, 0);
	quiet(ep);
	ret("mod", mod(ep, k.fd, IN_OUT | EPOLLET, 8));
	ev("mod", ep, 8, 0);
	quiet(ep);
}

/* an arrival re-reports the whole mask, OUT included */
CASE(epoll, edge_in_brings_out, 0)
{
	struct conn k;
	char b[8];
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, IN_OUT | EPOLLET, 7);
	ev("initial", ep, 8, 0);
	p_send(&k, "abc");
	ev("data", ep, 8, 2000);
	recv(k.fd, b, 8, 0);
	quiet(ep);
}

CASE(epoll, edge_eof, 0)
{
	struct conn k;
	char b[8];
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN | EPOLLRDHUP | EPOLLET, 7);
	p_send(&k, "abc");
	ev("data", ep, 8, 2000);
	p_shut(&k, SHUT_WR);
	ev("eof", ep, 8, 2000);
	quiet(ep);
	recv(k.fd, b, 8, 0);
	ret("recv", recv(k.fd, b, 8, 0));
	quiet(ep);
	shutdown(k.fd, SHUT_WR);
	ev("shut", ep, 8, 2000);
	quiet(ep);
}

CASE(epoll, edge_reset, 0)
{
	struct conn k;
	char b[8];
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN | EPOLLRDHUP | EPOLLET, 7);
	p_rst(&k);
	ev("reset", ep, 8, 2000);
	quiet(ep);
	ret("recv", recv(k.fd, b, 8, 0));
	quiet(ep);
}

CASE(epoll, edge_drain_loop, 0)
{
	struct conn k;
	char b[4096];
	int ep = epoll_create1(0);
	long n = 400000, done = 0;
	bool ok = true;

	conf_pair(&k);
	nonblock(k.fd, true);
	add(ep, k.fd, EPOLLIN | EPOLLET, 7);
	p_later(&k, 10, OP_SENDN, n, 4, NULL);
	while (done < n) {
		struct epoll_event e;

		if (epoll_wait(ep, &e, 1, 2000) != 1)
			break;
		for (;;) {
			ssize_t r = recv(k.fd, b, sizeof(b), 0);

			if (r <= 0)
				break;
			ok = ok && pattern_ok(b, (size_t)r, (uint64_t)done, 4);
			done += r;
		}
	}
	ret("done", done);
	yes("same", ok);
	peer_ret("sent", p_done());
}

CASE(epoll, edge_out, 0)
{
	struct conn k;
	int ep = epoll_create1(0);
	long n;

	conf_pair(&k);
	add(ep, k.fd, EPOLLOUT | EPOLLET, 7);
	ev("initial", ep, 8, 0);
	quiet(ep);
	n = fill(k.fd);
	quiet(ep);
	yes("drained", p_recvn(&k, n, 7) == n);
	ev("out", ep, 8, 2000);
}

CASE(epoll, level_out, 0)
{
	struct conn k;
	int ep = epoll_create1(0);
	long n;

	conf_pair(&k);
	add(ep, k.fd, EPOLLOUT, 7);
	ev("fresh", ep, 8, 0);
	ev("again", ep, 8, 0);
	n = fill(k.fd);
	ev("full", ep, 8, 0);
	p_later(&k, 50, OP_RECVN, n, 7, NULL);
	ev("drained", ep, 8, 3000);
	yes("all", p_done() == n);
}

/* what an event loop does: turn EPOLLOUT on when a send was short, off when done */
CASE(epoll, toggle_out, 0)
{
	struct conn k;
	int ep = epoll_create1(0);
	long n = 8L << 20, done = 0;
	char *p = malloc((size_t)n);
	int turns = 0;

	conf_pair(&k);
	nonblock(k.fd, true);
	pattern(p, (size_t)n, 0, 5);
	add(ep, k.fd, EPOLLIN, 7);
	p_later(&k, 50, OP_RECVN, n, 5, NULL);
	while (done < n && turns++ < 100000) {
		ssize_t r = send(k.fd, p + done, (size_t)(n - done), 0);
		struct epoll_event e;

		if (r > 0) {
			done += r;
			continue;
		}
		mod(ep, k.fd, EPOLLIN | EPOLLOUT, 7);
		if (epoll_wait(ep, &e, 1, 2000) != 1 || e.events != EPOLLOUT) {
			out(" bad-wait");
			break;
		}
		mod(ep, k.fd, EPOLLIN, 7);
	}
	ret("done", done);
	peer_ret("peer", p_done());
	ev("end", ep, 8, 0);
}

CASE(epoll, oneshot, 0)
{
	struct conn k;
	int ep = epoll_create1(0);

	conf_pair(&k);
	ret("add", add(ep, k.fd, EPOLLIN | EPOLLONESHOT, 7));
	p_send(&k, "abc");
	ev("once", ep, 8, 2000);
	quiet(ep);
	p_send(&k, "def");
	quiet(ep);
	ret("mod", mod(ep, k.fd, EPOLLIN | EPOLLONESHOT, 8));
	ev("rearmed", ep, 8, 2000);
	quiet(ep);
	/* disarmed: not even a hang-up or an error is reported */
	p_rst(&k);
	quiet(ep);
	ret("mod", mod(ep, k.fd, EPOLLIN | EPOLLONESHOT, 9));
	ev("rearmed", ep, 8, 2000);
}

CASE(epoll, oneshot_edge, 0)
{
	struct conn k;
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN | EPOLLONESHOT | EPOLLET, 7);
	p_send(&k, "abc");
	ev("once", ep, 8, 2000);
	p_send(&k, "def");
	quiet(ep);
	mod(ep, k.fd, EPOLLIN | EPOLLONESHOT | EPOLLET, 8);
	ev("rearmed", ep, 8, 2000);
	quiet(ep);
}

CASE(epoll, rdhup, 0)
{
	struct conn k;
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLRDHUP, 7);
	p_send(&k, "abc");
	quiet(ep);
	p_shut(&k, SHUT_WR);
	ev("rdhup", ep, 8, 2000);
	mod(ep, k.fd, EPOLLIN, 7);
	ev("in", ep, 8, 0);
	mod(ep, k.fd, 0, 7);
	ev("zero", ep, 8, 0);
}

CASE(epoll, masks_in_states, 0)
{
	struct conn k;
	char b[8];
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, IN_OUT | EPOLLPRI, 7);
	ev("fresh", ep, 8, 0);
	p_send(&k, "abc");
	wait_ev(k.fd, POLLIN);
	ev("data", ep, 8, 0);
	p_shut(&k, SHUT_WR);
	wait_ev(k.fd, POLLRDHUP);
	ev("half", ep, 8, 0);
	recv(k.fd, b, 8, 0);
	ev("read", ep, 8, 0);
	shutdown(k.fd, SHUT_WR);
	wait_ev(k.fd, POLLHUP);
	ev("both", ep, 8, 0);
}

CASE(epoll, masks_reset, 0)
{
	struct conn k;
	char b[8];
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, IN_OUT, 7);
	p_rst(&k);
	wait_ev(k.fd, POLLERR);
	ev("reset", ep, 8, 0);
	ret("recv", recv(k.fd, b, 8, 0));
	ev("after", ep, 8, 0);
	mod(ep, k.fd, 0, 7);
	ev("zero", ep, 8, 0);
}

CASE(epoll, zero_events, 0)
{
	struct conn k;
	int ep = epoll_create1(0);

	conf_pair(&k);
	ret("add", add(ep, k.fd, 0, 7));
	p_send(&k, "abc");
	quiet(ep);
	p_shut(&k, SHUT_WR);
	quiet(ep);
	shutdown(k.fd, SHUT_WR);
	ev("hup", ep, 8, 2000);
}

CASE(epoll, mod_changes_data, 0)
{
	struct conn k;
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN, 7);
	p_send(&k, "abc");
	ev("7", ep, 8, 2000);
	ret("mod", mod(ep, k.fd, EPOLLIN, 0xfedcba9876543210ULL));
	ev("wide", ep, 8, 0);
	ret("mod", mod(ep, k.fd, EPOLLOUT, UINT64_MAX));
	ev("max", ep, 8, 0);
	ret("mod", mod(ep, k.fd, EPOLLIN | EPOLLOUT, 0));
	ev("zero", ep, 8, 0);
}

CASE(epoll, same_data_for_all, 0)
{
	struct conn a, b;
	int ep = epoll_create1(0);

	conf_pair(&a);
	conf_pair(&b);
	add(ep, a.fd, EPOLLIN, 5);
	add(ep, b.fd, EPOLLIN, 5);
	p_send(&a, "x");
	p_send(&b, "y");
	wait_ev(a.fd, POLLIN);
	wait_ev(b.fd, POLLIN);
	ev("both", ep, 8, 1000);
}

CASE(epoll, del, 0)
{
	struct conn k;
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN, 7);
	p_send(&k, "abc");
	ev("data", ep, 8, 2000);
	ret("del", del(ep, k.fd));
	quiet(ep);
	ret("del", del(ep, k.fd));
	ret("mod", mod(ep, k.fd, EPOLLIN, 7));
	ret("add", add(ep, k.fd, EPOLLIN, 8));
	ev("data", ep, 8, 0);
	ret("add", add(ep, k.fd, EPOLLIN, 9));
	ev("data", ep, 8, 0);
}

CASE(epoll, errors, 0)
{
	struct conn k;
	int ep = epoll_create1(0), ep2 = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event e = { .events = EPOLLIN };

	conf_pair(&k);
	/* cppcheck-suppress invalidFunctionArg */
	ret("create0", epoll_create(0));
	ret("create_flags", epoll_create1(77777));
	yes("cloexec", fcntl(ep2, F_GETFD) & FD_CLOEXEC);
	ret("add_closed", add(ep, 999, EPOLLIN, 1));
	ret("bad_epfd", add(999, k.fd, EPOLLIN, 1));
	ret("not_epoll", add(k.fd, ep, EPOLLIN, 1));
	ret("file", add(ep, temp_file(1, 1), EPOLLIN, 1));
	ret("self", add(ep, ep, EPOLLIN, 1));
	ret("bad_op", epoll_ctl(ep, 99, k.fd, &e));
	ret("null_event", epoll_ctl(ep, EPOLL_CTL_ADD, k.fd, conf_null));
	ret("mod_absent", mod(ep, k.fd, EPOLLIN, 1));
	ret("del_absent", del(ep, k.fd));
	ret("add", add(ep, k.fd, EPOLLIN, 1));
	ret("eexist", add(ep, k.fd, EPOLLIN, 1));
	ret("loop1", add(ep2, ep, EPOLLIN, 1));
	ret("loop2", add(ep, ep2, EPOLLIN, 1));
	/* cppcheck-suppress invalidFunctionArg */
	ret("max0", epoll_wait(ep, &e, 0, 0));
	ret("max-1", epoll_wait(ep, &e, conf_minus, 0));
	ret("wait_sock", epoll_wait(k.fd, &e, 1, 0));
	ret("wait_closed", epoll_wait(999, &e, 1, 0));
	ret("read", read(ep, &e, 4));
	p_send(&k, "x");
	wait_ev(k.fd, POLLIN);
	ret("efault", epoll_wait(ep, conf_bad, 1, 0));
	ev("still", ep, 8, 0);
}

CASE(epoll, exclusive, 0)
{
	struct conn k;
	int ep = epoll_create1(0);

	conf_pair(&k);
	ret("add", add(ep, k.fd, EPOLLIN | EPOLLEXCLUSIVE, 7));
	p_send(&k, "abc");
	ev("data", ep, 8, 2000);
	ret("mod", mod(ep, k.fd, EPOLLIN, 8));
	ret("mod_excl", mod(ep, k.fd, EPOLLIN | EPOLLEXCLUSIVE, 8));
	ret("del", del(ep, k.fd));
	ret("add_oneshot", add(ep, k.fd, EPOLLIN | EPOLLEXCLUSIVE | EPOLLONESHOT, 7));
	ret("add_rdhup", add(ep, k.fd, EPOLLIN | EPOLLRDHUP | EPOLLEXCLUSIVE, 7));
	ret("add_et", add(ep, k.fd, EPOLLIN | EPOLLOUT | EPOLLET | EPOLLEXCLUSIVE, 7));
	ev("et", ep, 8, 0);
	quiet(ep);
}

CASE(epoll, nested, 0)
{
	struct conn k;
	char b[8];
	int in = epoll_create1(0), outer = epoll_create1(0);

	conf_pair(&k);
	ret("add", add(in, k.fd, EPOLLIN, 1));
	ret("add", add(outer, in, EPOLLIN, 2));
	ev("none", outer, 8, 0);
	p_send(&k, "abc");
	ev("outer", outer, 8, 2000);
	ev("inner", in, 8, 0);
	ev("outer", outer, 8, 0);
	recv(k.fd, b, 8, 0);
	ev("outer", outer, 8, 0);
	p_later(&k, 50, OP_SEND, 0, 0, "late");
	ev("wakes", outer, 8, 2000);
	p_done();
}

CASE(epoll, nested_edge, 0)
{
	struct conn k;
	char b[8];
	int in = epoll_create1(0), outer = epoll_create1(0);

	conf_pair(&k);
	add(in, k.fd, EPOLLIN, 1);
	add(outer, in, EPOLLIN | EPOLLET, 2);
	p_send(&k, "abc");
	ev("outer", outer, 8, 2000);
	quiet(outer);
	recv(k.fd, b, 8, 0);
	p_send(&k, "def");
	ev("outer", outer, 8, 2000);
	quiet(outer);
	ev("inner", in, 8, 0);
}

/* A chain of sets, one in another, as deep as the kernel takes it, and a level more. */
static void nest(int ep[8])
{
	for (int i = 0; i < 7; i++)
		ret("n", add(ep[i + 1], ep[i], EPOLLIN, 1));
}

static void deep_wakes(const int ep[8], struct conn *k)
{
	char b[8];

	p_send(k, "abc");
	ev("deep", ep[4], 8, 2000);
	ev("inner", ep[0], 8, 0);
	ret("recv", recv(k->fd, b, 8, 0));
	ev("none", ep[4], 8, 0);
	p_later(k, 50, OP_SEND, 0, 0, "late");
	ev("late", ep[4], 8, 2000);
	p_done();
	ret("recv", recv(k->fd, b, 8, 0));
}

CASE(epoll, nested_depth, 0)
{
	int ep[8];
	struct conn k;

	conf_pair(&k);
	for (int i = 0; i < 8; i++)
		ep[i] = epoll_create1(0);
	ret("sock", add(ep[0], k.fd, EPOLLIN, 1));
	nest(ep);
	deep_wakes(ep, &k);
}

CASE(epoll, nested_depth_unread, 0)
{
	int ep[8];
	struct conn k;

	conf_pair(&k);
	for (int i = 0; i < 8; i++)
		ep[i] = epoll_create1(0);
	ret("sock", add(ep[0], k.fd, EPOLLIN, 1));
	p_send(&k, "x");
	ev("ready", ep[0], 8, 2000);
	nest(ep);
	ev("deep", ep[4], 8, 2000);
	deep_wakes(ep, &k);
}

CASE(epoll, nested_depth_first, 0)
{
	int ep[8];
	struct conn k;

	conf_pair(&k);
	for (int i = 0; i < 8; i++)
		ep[i] = epoll_create1(0);
	nest(ep);
	ret("sock", add(ep[0], k.fd, EPOLLIN, 1));
	deep_wakes(ep, &k);
}

CASE(epoll, nested_loop, 0)
{
	int ep[2] = { epoll_create1(0), epoll_create1(0) };
	struct conn k;

	conf_pair(&k);
	ret("sock", add(ep[0], k.fd, EPOLLIN, 1));
	ret("in", add(ep[1], ep[0], EPOLLIN, 1));
	ret("loop", add(ep[0], ep[1], EPOLLIN, 1));
	p_send(&k, "abc");
	ev("outer", ep[1], 8, 2000);
}

/* The kernel counts the ways by which a file wakes others: 500 that have a set between. */
CASE(epoll, nested_wide, 0)
{
	int in = epoll_create1(0), ok = 0, last = -1, r = 0;
	struct conn k;

	conf_pair(&k);
	ret("sock", add(in, k.fd, EPOLLIN, 1));
	while (r == 0 && ok < 600) {
		last = epoll_create1(0);
		r = add(last, in, EPOLLIN, 1);
		ok += r == 0;
	}
	ret("more", r);
	out(" sets=%d", ok);
	p_send(&k, "abc");
	ev("first", last - 1, 8, 2000);
}

CASE(epoll, pollable, 0)
{
	struct conn k;
	char b[8];
	fd_set r;
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN, 1);
	poll_say("none", ep, POLLIN | POLLOUT, 0);
	p_send(&k, "abc");
	poll_say("ready", ep, POLLIN | POLLOUT, 2000);
	FD_ZERO(&r);
	FD_SET(ep, &r);
	ret("select", select(ep + 1, &r, NULL, NULL, &(struct timeval){ 1, 0 }));
	recv(k.fd, b, 8, 0);
	poll_say("none", ep, POLLIN, 0);
	p_later(&k, 50, OP_SEND, 0, 0, "late");
	poll_say("wakes", ep, POLLIN, 2000);
	p_done();
}

CASE(epoll, pollable_beside_sock, 0)
{
	struct conn a, b;
	struct pollfd f[2] = { { .events = POLLIN }, { .events = POLLIN } };
	int ep = epoll_create1(0);

	conf_pair(&a);
	conf_pair(&b);
	add(ep, a.fd, EPOLLIN, 1);
	f[0].fd = ep;
	f[1].fd = b.fd;
	p_later(&a, 50, OP_SEND, 0, 0, "late");
	ret("poll", poll(f, 2, 2000));
	mask("ep", f[0].revents);
	mask("b", f[1].revents);
	p_done();
	p_later(&b, 50, OP_SEND, 0, 0, "late");
	f[0].events = 0;
	ret("poll", poll(f, 2, 2000));
	mask("b", f[1].revents);
	p_done();
}

CASE(epoll, maxevents_rotates, 0)
{
	struct conn k[4];
	struct epoll_event e[4];
	unsigned int seen = 0;
	int ep = epoll_create1(0);

	for (int i = 0; i < 4; i++) {
		conf_pair(&k[i]);
		add(ep, k[i].fd, EPOLLIN, (uint64_t)i);
	}
	for (int i = 0; i < 4; i++) {
		p_send(&k[i], "x");
		wait_ev(k[i].fd, POLLIN);
	}
	for (int t = 0; t < 2; t++) {
		int n = epoll_wait(ep, e, 2, 1000);

		ret("wait", n);
		for (int i = 0; i < n; i++)
			seen |= 1u << e[i].data.u64;
	}
	out(" seen=%x", seen);
}

CASE(epoll, maxevents_one_is_fair, 0)
{
	/* a ready socket must not hide a ready pipe, and the other way round */
	struct conn k;
	struct epoll_event e;
	int p[2], count[2] = { 0, 0 };
	int ep = epoll_create1(0);

	conf_pair(&k);
	if (pipe(p) || write(p[1], "x", 1) != 1)
		/* cppcheck-suppress resourceLeak */
		return;
	add(ep, k.fd, EPOLLIN, 0);
	add(ep, p[0], EPOLLIN, 1);
	p_send(&k, "x");
	wait_ev(k.fd, POLLIN);
	for (int i = 0; i < 10; i++) {
		if (epoll_wait(ep, &e, 1, 1000) == 1)
			count[e.data.u64]++;
	}
	yes("sock", count[0] > 0);
	yes("pipe", count[1] > 0);
	ret("sum", count[0] + count[1]);
}

CASE(epoll, twenty, 0)
{
	struct conn k[20];
	int ep = epoll_create1(0);

	for (int i = 0; i < 20; i++) {
		conf_pair(&k[i]);
		add(ep, k[i].fd, EPOLLIN, (uint64_t)i);
	}
	for (int i = 0; i < 20; i += 3)
		p_send(&k[i], "x");
	for (int i = 0; i < 20; i += 3)
		wait_ev(k[i].fd, POLLIN);
	ev("some", ep, 64, 1000);
	for (int i = 0; i < 20; i++)
		p_send(&k[i], "x");
	for (int i = 0; i < 20; i++)
		wait_ev(k[i].fd, POLLIN);
	ev("all", ep, 64, 1000);
	for (int i = 0; i < 20; i += 2)
		close(k[i].fd);
	ev("odd", ep, 64, 1000);
}

CASE(epoll, closed_fd_is_gone, 0)
{
	struct conn k;
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN, 7);
	p_send(&k, "abc");
	wait_ev(k.fd, POLLIN);
	close(k.fd);
	quiet(ep);
	ret("del", del(ep, k.fd));
}

CASE(epoll, closed_fd_with_dup_reports, 0)
{
	struct conn k;
	char b[8];
	int d, ep = epoll_create1(0);

	conf_pair(&k);
	d = dup(k.fd);
	add(ep, k.fd, EPOLLIN, 7);
	p_send(&k, "abc");
	wait_ev(k.fd, POLLIN);
	close(k.fd);
	ev("still", ep, 8, 1000);
	ret("del_old", del(ep, k.fd));
	ret("del_dup", del(ep, d));
	ret("add_dup", add(ep, d, EPOLLIN, 8));
	ev("both", ep, 8, 1000);
	retd("recv", recv(d, b, 8, 0), b);
	ev("none", ep, 8, 0);
	p_send(&k, "def");
	wait_ev(d, POLLIN);
	ev("both", ep, 8, 1000);
	close(d);
	quiet(ep);
}

/* the closed number is another file's soon; the path changes under the registration (fork) */
CASE(epoll, closed_number_is_another_file, 0)
{
	struct conn k;
	char b[8];
	int d, p[2], w = 0, ep = epoll_create1(0);
	pid_t pid;

	conf_pair(&k);
	if (pipe(p))
		/* cppcheck-suppress resourceLeak */
		return;
	ret("add", add(ep, k.fd, EPOLLIN, 7));
	d = dup(k.fd);
	yes("same", dup2(p[0], k.fd) == k.fd);
	quiet(ep);
	ret("write", write(p[1], "x", 1));
	quiet(ep);
	ret("mod", mod(ep, k.fd, EPOLLIN, 8));
	ret("del", del(ep, k.fd));
	pid = fork();
	if (!pid)
		_exit(0);
	waitpid(pid, &w, 0);
	quiet(ep);
	p_send(&k, "abc");
	ev("data", ep, 8, 2000);
	ret("add_pipe", add(ep, k.fd, EPOLLIN, 9));
	ev("both", ep, 8, 1000);
	retd("recv", recv(d, b, 8, 0), b);
	ev("pipe", ep, 8, 0);
	ret("del_pipe", del(ep, k.fd));
	p_send(&k, "def");
	wait_ev(d, POLLIN);
	ev("data", ep, 8, 1000);
	close(d);
	quiet(ep);
}

/* a new stream under the closed number of one that a duplicate keeps open */
CASE(epoll, closed_number_is_another_sock, 0)
{
	struct conn a, c;
	int d, ep = epoll_create1(0);

	conf_pair(&a);
	conf_pair(&c);
	ret("add", add(ep, a.fd, EPOLLIN, 1));
	d = dup(a.fd);
	dup2(c.fd, a.fd);
	ret("add", add(ep, a.fd, EPOLLIN, 2));
	p_send(&a, "x");
	wait_ev(d, POLLIN);
	ev("old", ep, 8, 1000);
	p_send(&c, "y");
	wait_ev(c.fd, POLLIN);
	nap(2);
	ev("both", ep, 8, 1000);
	ret("del", del(ep, a.fd));
	ev("old", ep, 8, 1000);
	ret("del", del(ep, a.fd));
}

CASE(epoll, two_fds_of_one_socket, 0)
{
	struct conn k;
	int d, ep = epoll_create1(0);

	conf_pair(&k);
	d = dup(k.fd);
	ret("add", add(ep, k.fd, EPOLLIN, 1));
	ret("add", add(ep, d, EPOLLIN | EPOLLOUT, 2));
	ev("fresh", ep, 8, 0);
	p_send(&k, "abc");
	wait_ev(k.fd, POLLIN);
	ev("data", ep, 8, 0);
	ret("del", del(ep, k.fd));
	ev("data", ep, 8, 0);
}

CASE(epoll, two_epolls_one_socket, 0)
{
	struct conn k;
	char b[8];
	int a = epoll_create1(0), c = epoll_create1(0);

	conf_pair(&k);
	add(a, k.fd, EPOLLIN, 1);
	add(c, k.fd, EPOLLIN | EPOLLET, 2);
	p_send(&k, "abc");
	ev("a", a, 8, 2000);
	ev("c", c, 8, 2000);
	ev("a", a, 8, 0);
	ev("c", c, 8, 0);
	recv(k.fd, b, 8, 0);
	ev("a", a, 8, 0);
}

CASE(epoll, fd_number_reused, 0)
{
	struct conn k, n;
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN, 1);
	p_send(&k, "old");
	wait_ev(k.fd, POLLIN);
	close(k.fd);
	conf_pair(&n);
	quiet(ep);
	ret("add", add(ep, n.fd, EPOLLIN, 2));
	quiet(ep);
	p_send(&n, "new");
	ev("new", ep, 8, 2000);
}

CASE(epoll, mixed_fds, 0)
{
	struct conn k;
	int ep = epoll_create1(0), p[2], e = eventfd(0, 0);
	int t = timerfd_create(CLOCK_MONOTONIC, 0);
	struct itimerspec its = { .it_value = { 0, 30000000 } };
	uint64_t one = 1;

	conf_pair(&k);
	if (pipe(p))
		/* cppcheck-suppress resourceLeak */
		return;
	add(ep, k.fd, EPOLLIN, 1);
	add(ep, p[0], EPOLLIN, 2);
	add(ep, e, EPOLLIN, 3);
	add(ep, t, EPOLLIN, 4);
	ev("none", ep, 8, 0);
	timerfd_settime(t, 0, &its, NULL);
	ev("timer", ep, 8, 2000);
	p_send(&k, "abc");
	wait_ev(k.fd, POLLIN);
	ret("write", write(p[1], "x", 1));
	ret("write", write(e, &one, 8));
	ev("all", ep, 8, 1000);
	ret("read", read(t, &one, 8));
	ret("read", read(e, &one, 8));
	ev("two", ep, 8, 1000);
}

CASE(epoll, kernel_fd_wakes, 0)
{
	struct conn k;
	int ep = epoll_create1(0);
	int t = timerfd_create(CLOCK_MONOTONIC, 0);
	struct itimerspec its = { .it_value = { 0, 60000000 } };

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN, 1);
	add(ep, t, EPOLLIN, 4);
	timerfd_settime(t, 0, &its, NULL);
	ev("timer", ep, 8, 2000);
}

CASE(epoll, busy_sock_does_not_starve, 0)
{
	struct conn k;
	int ep = epoll_create1(0);
	int t = timerfd_create(CLOCK_MONOTONIC, 0);
	struct itimerspec its = { .it_value = { 0, 50000000 } };
	bool timer = false;
	long end;

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN, 1);
	add(ep, t, EPOLLIN, 4);
	p_send(&k, "never read");
	wait_ev(k.fd, POLLIN);
	timerfd_settime(t, 0, &its, NULL);
	end = now_ms() + 1000;
	while (!timer && now_ms() < end) {
		struct epoll_event e[4];
		int n = epoll_wait(ep, e, 4, 1000);

		for (int i = 0; i < n; i++)
			timer = timer || e[i].data.u64 == 4;
	}
	yes("timer", timer);
}

CASE(epoll, wait_times, 0)
{
	struct conn k;
	int ep = epoll_create1(0);
	long t;

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN, 1);
	t = now_ms();
	ev("zero", ep, 8, 0);
	took("t", t, 0, 500);
	t = now_ms();
	ev("60", ep, 8, 60);
	took("t", t, 60, 1000);
	p_later(&k, 60, OP_SEND, 0, 0, "abc");
	t = now_ms();
	ev("forever", ep, 8, -1);
	took("t", t, 40, 1500);
	p_done();
}

CASE(epoll, wait_wakes_on_eof, 0)
{
	struct conn k;
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN | EPOLLRDHUP, 1);
	p_later(&k, 60, OP_CLOSE, 0, 0, NULL);
	ev("eof", ep, 8, 2000);
	p_done();
}

CASE(epoll, wait_wakes_on_reset, 0)
{
	struct conn k;
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN, 1);
	p_later(&k, 60, OP_RST, 0, 0, NULL);
	ev("reset", ep, 8, 2000);
	p_done();
}

CASE(epoll, pwait_mask, 0)
{
	struct conn k;
	int ep = epoll_create1(0);
	struct epoll_event e;
	sigset_t none, all;

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN, 1);
	sig_catch(SIGUSR1, 0);
	sigemptyset(&none);
	sigemptyset(&all);
	sigaddset(&all, SIGUSR1);
	sigprocmask(SIG_BLOCK, &all, NULL);
	raise(SIGUSR1);
	ret("blocked", epoll_pwait(ep, &e, 1, 20, &all));
	out(" n=%d", (int)sig_count[SIGUSR1]);
	ret("open", epoll_pwait(ep, &e, 1, 2000, &none));
	out(" n=%d", (int)sig_count[SIGUSR1]);
	p_send(&k, "x");
	wait_ev(k.fd, POLLIN);
	raise(SIGUSR1);
	/* events win over a pending signal */
	ret("ready", epoll_pwait(ep, &e, 1, 2000, &none));
}

CASE(epoll, pwait2, 0)
{
	struct conn k;
	int ep = epoll_create1(0);
	struct epoll_event e;
	struct timespec ts = { 0, 30000000 };

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN, 1);
	ret("timeout", epoll_pwait2(ep, &e, 1, &ts, NULL));
	p_later(&k, 40, OP_SEND, 0, 0, "abc");
	ret("forever", epoll_pwait2(ep, &e, 1, NULL, NULL));
	emask("m", e.events);
	p_done();
}

CASE(epoll, listen_and_accept, NOSTATE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(AF_INET, 4, &ss, &l);
	int ep = epoll_create1(0);
	int c = socket(AF_INET, SOCK_STREAM, 0);
	int a;

	add(ep, ls, EPOLLIN, 1);
	ev("none", ep, 8, 0);
	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	ev("pending", ep, 8, 2000);
	/* cppcheck-suppress nullPointer */
	a = accept4(ls, NULL, NULL, SOCK_NONBLOCK);
	ret("add", add(ep, a, EPOLLIN | EPOLLOUT, 2));
	ev("accepted", ep, 8, 0);
	ret("send", send(c, "abc", 3, 0));
	wait_ev(a, POLLIN);
	ev("data", ep, 8, 1000);
}

CASE(epoll, unconnected_socket, NOSTATE)
{
	int ep = epoll_create1(0);
	int s = socket(AF_INET, SOCK_STREAM, 0);

	ret("add", add(ep, s, EPOLLIN | EPOLLOUT, 1));
	ev("fresh", ep, 8, 0);
}

/* added before connect(): the registration must survive all that comes later */
CASE(epoll, added_before_connect, ONE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(conf_family, 4, &ss, &l);
	int ep = epoll_create1(0);
	struct conn k;
	char b[8];

	k.fd = socket(conf_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
	ret("add", add(ep, k.fd, EPOLLIN | EPOLLOUT | EPOLLET, 1));
	ev("hup", ep, 8, 0);
	yes("connect", connect(k.fd, (struct sockaddr *)&ss, l) == 0 || errno == EINPROGRESS);
	ev("connected", ep, 8, 2000);
	k.peer = accept(ls, NULL, NULL);
	conf_settle(&k);
	while (epoll_wait(ep, &(struct epoll_event){ 0 }, 1, 20) > 0)
		;
	p_send(&k, "abc");
	ev("data", ep, 8, 2000);
	retd("recv", recv(k.fd, b, 8, 0), b);
	quiet(ep);
}

/* registered first, then the connection warms up: the path changes under the registration */
CASE(epoll, added_before_settling, 0)
{
	struct conn k;
	char b[8];
	int ep = epoll_create1(0);

	conf_pair_raw(&k, conf_family, conf_server);
	add(ep, k.fd, EPOLLIN, 7);
	conf_settle(&k);
	ev("none", ep, 8, 0);
	p_later(&k, 50, OP_SEND, 0, 0, "abc");
	ev("data", ep, 8, 2000);
	p_done();
	retd("recv", recv(k.fd, b, 8, 0), b);
	ev("none", ep, 8, 0);
	ret("mod", mod(ep, k.fd, EPOLLOUT, 8));
	ev("out", ep, 8, 0);
	ret("del", del(ep, k.fd));
	ret("del", del(ep, k.fd));
}

struct waiter {
	int ep;
	int n;
	struct epoll_event e[8];
	pthread_t t;
	int ms;
};

static void *waiter_main(void *arg)
{
	struct waiter *w = arg;

	w->n = epoll_wait(w->ep, w->e, 8, w->ms);
	return NULL;
}

static void waiter_start(struct waiter *w, int ep, int ms)
{
	w->ep = ep;
	w->ms = ms;
	pthread_create(&w->t, NULL, waiter_main, w);
}

static void waiter_end(const char *label, struct waiter *w)
{
	pthread_join(w->t, NULL);
	ret(label, w->n);
	for (int i = 0; i < w->n; i++)
		emask("m", w->e[i].events);
}

CASE(epoll, add_wakes_sleeper, 0)
{
	struct conn k;
	struct waiter w;
	int ep = epoll_create1(0);

	conf_pair(&k);
	p_send(&k, "abc");
	wait_ev(k.fd, POLLIN);
	waiter_start(&w, ep, 2000);
	nap(50);
	ret("add", add(ep, k.fd, EPOLLIN, 1));
	waiter_end("woken", &w);
}

CASE(epoll, mod_wakes_sleeper, 0)
{
	struct conn k;
	struct waiter w;
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN, 1);
	waiter_start(&w, ep, 2000);
	nap(50);
	ret("mod", mod(ep, k.fd, EPOLLIN | EPOLLOUT, 1));
	waiter_end("woken", &w);
}

CASE(epoll, del_while_sleeping, 0)
{
	struct conn k;
	struct waiter w;
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN, 1);
	waiter_start(&w, ep, 150);
	nap(50);
	ret("del", del(ep, k.fd));
	p_send(&k, "abc");
	waiter_end("not_woken", &w);
}

/* whoever waits keeps the set when its descriptor is closed */
CASE(epoll, close_while_sleeping, 0)
{
	struct conn k;
	struct waiter w;
	char b[8];
	int two, ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN, 1);
	waiter_start(&w, ep, 2000);
	nap(50);
	ret("close", close(ep));
	two = epoll_create1(0);
	ret("add", add(two, k.fd, EPOLLIN, 2));
	ev("none", two, 8, 0);
	p_send(&k, "abc");
	waiter_end("old", &w);
	ev("new", two, 8, 1000);
	retd("recv", recv(k.fd, b, 8, 0), b);
	ev("none", two, 8, 0);
}

/* and leaves nothing behind for the next set when it comes out */
CASE(epoll, close_while_sleeping_then_new_set, 0)
{
	struct conn k;
	struct waiter old, w;
	int two, ep = epoll_create1(0);
	long t;

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN | EPOLLONESHOT, 1);
	waiter_start(&old, ep, 200);
	nap(50);
	close(ep);
	two = epoll_create1(0);
	ret("add", add(two, k.fd, EPOLLIN | EPOLLONESHOT, 2));
	waiter_end("old", &old);
	p_send(&k, "abc");
	ev("once", two, 8, 1000);
	waiter_start(&w, two, 2000);
	nap(50);
	t = now_ms();
	ret("mod", mod(two, k.fd, EPOLLIN | EPOLLONESHOT, 3));
	waiter_end("rearmed", &w);
	took("t", t, 0, 1000);
}

CASE(epoll, close_dup_while_sleeping, 0)
{
	struct conn k;
	struct waiter w;
	int ep = epoll_create1(0), d = dup(ep);

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN | EPOLLET, 1);
	waiter_start(&w, ep, 2000);
	nap(50);
	close(ep);
	p_send(&k, "abc");
	waiter_end("woken", &w);
	ret("mod", mod(d, k.fd, EPOLLIN, 2));
	ev("dup", d, 8, 0);
}

CASE(epoll, edge_wakes_one_of_two, 0)
{
	struct conn k;
	struct waiter w[2];
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN | EPOLLET, 1);
	waiter_start(&w[0], ep, 300);
	waiter_start(&w[1], ep, 300);
	nap(50);
	p_send(&k, "abc");
	pthread_join(w[0].t, NULL);
	pthread_join(w[1].t, NULL);
	ret("reports", w[0].n + w[1].n);
}

CASE(epoll, oneshot_wakes_one_of_four, 0)
{
	struct conn k;
	struct waiter w[4];
	int sum = 0, ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN | EPOLLONESHOT, 1);
	for (int i = 0; i < 4; i++)
		waiter_start(&w[i], ep, 300);
	nap(50);
	p_send(&k, "abc");
	for (int i = 0; i < 4; i++) {
		pthread_join(w[i].t, NULL);
		sum += w[i].n;
	}
	ret("reports", sum);
}

CASE(epoll, two_events_two_sleepers, 0)
{
	struct conn a, b;
	struct waiter w[2];
	int ep = epoll_create1(0);

	conf_pair(&a);
	conf_pair(&b);
	add(ep, a.fd, EPOLLIN | EPOLLET, 1);
	add(ep, b.fd, EPOLLIN | EPOLLET, 2);
	waiter_start(&w[0], ep, 500);
	waiter_start(&w[1], ep, 500);
	nap(50);
	p_send(&a, "abc");
	p_send(&b, "abc");
	pthread_join(w[0].t, NULL);
	pthread_join(w[1].t, NULL);
	ret("reports", w[0].n + w[1].n);
}

CASE(epoll, inherited_by_child, 0)
{
	struct conn k;
	int w = 0, ep = epoll_create1(0);
	pid_t pid;

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN, 1);
	pid = fork();
	if (!pid) {
		char b[8];

		ev("child", ep, 8, 2000);
		retd("recv", recv(k.fd, b, 8, 0), b);
		ev("child", ep, 8, 0);
		_exit(0);
	}
	nap(50);
	p_send(&k, "abc");
	waitpid(pid, &w, 0);
	status("child", w);
	ev("parent", ep, 8, 0);
	p_send(&k, "def");
	ev("parent", ep, 8, 2000);
}

CASE(epoll, child_changes_the_shared_set, 0)
{
	struct conn k;
	int w = 0, ep = epoll_create1(0);
	pid_t pid;

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN, 1);
	pid = fork();
	if (!pid) {
		ret("child_mod", mod(ep, k.fd, EPOLLOUT, 2));
		_exit(0);
	}
	waitpid(pid, &w, 0);
	ev("parent", ep, 8, 1000);
	pid = fork();
	if (!pid) {
		ret("child_del", del(ep, k.fd));
		_exit(0);
	}
	waitpid(pid, &w, 0);
	ev("parent", ep, 8, 0);
	ret("del", del(ep, k.fd));
}

CASE(epoll, dup_of_epfd, 0)
{
	struct conn k;
	int ep = epoll_create1(0), d = dup(ep);

	conf_pair(&k);
	ret("add", add(ep, k.fd, EPOLLIN, 1));
	ret("exist", add(d, k.fd, EPOLLIN, 1));
	p_send(&k, "abc");
	ev("dup", d, 8, 2000);
	close(ep);
	ev("dup", d, 8, 0);
	ret("del", del(d, k.fd));
	ev("dup", d, 8, 0);
}

CASE(epoll, close_epfd, 0)
{
	struct conn k;
	char b[8];
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLIN, 1);
	ret("close", close(ep));
	ret("wait", epoll_wait(ep, &(struct epoll_event){ 0 }, 1, 0));
	p_send(&k, "abc");
	retd("recv", recv(k.fd, b, 8, 0), b);
	ep = epoll_create1(0);
	ret("add", add(ep, k.fd, EPOLLIN, 2));
	p_send(&k, "abc");
	ev("new", ep, 8, 2000);
}

CASE(epoll, lowat, 0)
{
	struct conn k;
	int ep = epoll_create1(0);

	conf_pair(&k);
	set_int(k.fd, SOL_SOCKET, SO_RCVLOWAT, 5);
	add(ep, k.fd, EPOLLIN, 1);
	p_send(&k, "abc");
	quiet(ep);
	p_send(&k, "def");
	ev("enough", ep, 8, 2000);
}

CASE(epoll, oob, 0)
{
	struct conn k;
	char b[8];
	int ep = epoll_create1(0);

	conf_pair(&k);
	add(ep, k.fd, EPOLLPRI, 1);
	p_send(&k, "abc");
	quiet(ep);
	p_send_flags(&k, "X", MSG_OOB);
	ev("pri", ep, 8, 2000);
	retd("recv", recv(k.fd, b, 8, 0), b);
	retd("oob", recv(k.fd, b, 8, MSG_OOB), b);
	ev("none", ep, 8, 0);
}

CASE(epoll, nonblock_and_oneshot_loop, 0)
{
	struct conn k;
	int ep = epoll_create1(0), good = 0;
	char b[8];

	conf_pair(&k);
	nonblock(k.fd, true);
	add(ep, k.fd, EPOLLIN | EPOLLONESHOT, 1);
	for (int i = 0; i < 200; i++) {
		struct epoll_event e;

		p_send(&k, "x");
		if (epoll_wait(ep, &e, 1, 2000) != 1 || recv(k.fd, b, 8, 0) != 1)
			break;
		if (recv(k.fd, b, 8, 0) != -1 || errno != EAGAIN)
			break;
		mod(ep, k.fd, EPOLLIN | EPOLLONESHOT, 1);
		good++;
	}
	ret("rounds", good);
}
