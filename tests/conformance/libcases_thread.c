/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* libcases_thread.c - several threads on one connection; cancellation */
#include "tests/conformance/conf.h"

extern const char conf_file_thread;
const char conf_file_thread = 1;

struct work {
	pthread_t t;
	int fd;
	long ret;
	int err;
	char b[64];
	long n;
	int flags;
};

static void *do_recv(void *arg)
{
	struct work *w = arg;

	w->ret = recv(w->fd, w->b, sizeof(w->b) - 1, w->flags);
	w->err = errno;
	return NULL;
}

static void *do_waitall(void *arg)
{
	struct work *w = arg;

	w->ret = recv(w->fd, w->b, 8, MSG_WAITALL);
	return NULL;
}

static void *do_recv1(void *arg)
{
	struct work *w = arg;

	w->ret = recv(w->fd, w->b, 1, w->flags);
	w->err = errno;
	return NULL;
}

static void *do_send1(void *arg)
{
	struct work *w = arg;

	w->ret = send(w->fd, "x", 1, MSG_NOSIGNAL);
	w->err = errno;
	return NULL;
}

static void *do_poll(void *arg)
{
	struct work *w = arg;

	w->ret = poll1(w->fd, POLLIN | POLLRDHUP, 3000);
	return NULL;
}

static void *do_recvn(void *arg)
{
	struct work *w = arg;

	w->ret = recvn(w->fd, w->n, w->flags);
	return NULL;
}

static void *do_sendn(void *arg)
{
	struct work *w = arg;

	w->ret = sendn(w->fd, w->n, w->flags);
	return NULL;
}

static void go(struct work *w, int fd, void *(*fn)(void *))
{
	w->fd = fd;
	if (pthread_create(&w->t, NULL, fn, w))
		bail("pthread_create");
}

static void end(const char *label, struct work *w)
{
	pthread_join(w->t, NULL);
	errno = w->err;
	retd(label, w->ret, w->b);
}

static void peer_text(struct conn *k, long n)
{
	char b[2049];
	long r = p_recv(k, b, n);

	if (r < 0)
		peer_ret("peer", r);
	else
		retd("peer", r, b);
}

CASE(thread, recv_while_other_sends, 0)
{
	struct conn k;
	struct work w = { 0 };

	conf_pair(&k);
	go(&w, k.fd, do_recv);
	nap(40);
	ret("send", send(k.fd, "ping", 4, 0));
	peer_text(&k, 4);
	p_send(&k, "pong");
	end("recv", &w);
}

CASE(thread, recv_while_other_shuts_rdwr, 0)
{
	struct conn k;
	struct work w = { 0 };

	conf_pair(&k);
	go(&w, k.fd, do_recv);
	nap(40);
	ret("shut", shutdown(k.fd, SHUT_RDWR));
	end("recv", &w);
}

CASE(thread, recv_while_other_shuts_rd, 0)
{
	struct conn k;
	struct work w = { 0 };

	conf_pair(&k);
	go(&w, k.fd, do_recv);
	nap(40);
	ret("shut", shutdown(k.fd, SHUT_RD));
	end("recv", &w);
}

/* shutdown(SHUT_WR) does not disturb a receiver */
CASE(thread, recv_while_other_shuts_wr, 0)
{
	struct conn k;
	struct work w = { 0 };

	conf_pair(&k);
	go(&w, k.fd, do_recv);
	nap(40);
	ret("shut", shutdown(k.fd, SHUT_WR));
	peer_text(&k, 1);
	p_send(&k, "still");
	end("recv", &w);
}

CASE(thread, send_while_other_shuts_wr, 0)
{
	struct conn k;
	struct work w = { 0 };

	conf_pair(&k);
	fill(k.fd);
	go(&w, k.fd, do_send1);
	nap(40);
	ret("shut", shutdown(k.fd, SHUT_WR));
	end("send", &w);
}

/* close() in one thread leaves a receive in another one undisturbed: it holds the file */
CASE(thread, recv_while_other_closes, 0)
{
	struct conn k;
	struct work w = { 0 };

	conf_pair(&k);
	go(&w, k.fd, do_recv);
	nap(40);
	ret("close", close(k.fd));
	mask("peer_poll", (int)p_poll(&k, POLLIN | POLLRDHUP, 30));
	p_send(&k, "abc");
	end("recv", &w);
	/* the last user is gone: now it is closed */
	peer_text(&k, 1);
}

CASE(thread, waitall_while_other_closes, 0)
{
	struct conn k;
	struct work w = { 0 };

	conf_pair(&k);
	go(&w, k.fd, do_waitall);
	nap(40);
	p_send(&k, "abc");
	nap(20);
	ret("close", close(k.fd));
	p_send(&k, "defgh");
	end("recv", &w);
	peer_text(&k, 1);
}

CASE(thread, send_while_other_closes, 0)
{
	struct conn k;
	struct work w = { 0 };
	long n;

	conf_pair(&k);
	n = fill(k.fd);
	go(&w, k.fd, do_send1);
	nap(40);
	ret("close", close(k.fd));
	yes("all", p_recvn(&k, n, 7) == n);
	end("send", &w);
	peer_text(&k, 1);
	peer_text(&k, 1);
}

CASE(thread, two_recv_while_other_closes, 0)
{
	struct conn k;
	struct work v = { 0 }, w = { 0 };
	bool both;

	conf_pair(&k);
	go(&v, k.fd, do_recv1);
	go(&w, k.fd, do_recv1);
	nap(40);
	ret("close", close(k.fd));
	p_send(&k, "a");
	nap(20);
	p_send(&k, "b");
	pthread_join(v.t, NULL);
	pthread_join(w.t, NULL);
	both = v.ret == 1 && w.ret == 1 && v.b[0] != w.b[0];
	yes("both", both);
	peer_text(&k, 1);
}

CASE(thread, poll_while_other_shuts, 0)
{
	struct conn k;
	struct work w = { 0 };

	conf_pair(&k);
	go(&w, k.fd, do_poll);
	nap(40);
	ret("shut", shutdown(k.fd, SHUT_RDWR));
	pthread_join(w.t, NULL);
	mask("poll", (int)w.ret);
}

CASE(thread, poll_and_recv_same_fd, 0)
{
	struct conn k;
	struct work a = { 0 }, b = { 0 };

	conf_pair(&k);
	go(&a, k.fd, do_poll);
	go(&b, k.fd, do_recv);
	nap(40);
	p_send(&k, "abc");
	end("recv", &b);
	p_send(&k, "def"); /* so that the poller surely sees something */
	pthread_join(a.t, NULL);
	mask("poll", (int)a.ret);
}

CASE(thread, two_recv_two_bytes, 0)
{
	struct conn k;
	struct work w[2] = { { 0 }, { 0 } };

	conf_pair(&k);
	go(&w[0], k.fd, do_recv1);
	go(&w[1], k.fd, do_recv1);
	nap(40);
	p_send(&k, "ab");
	pthread_join(w[0].t, NULL);
	pthread_join(w[1].t, NULL);
	ret("sum", w[0].ret + w[1].ret);
	yes("both", w[0].b[0] + w[1].b[0] == 'a' + 'b');
}

CASE(thread, two_recv_eof, 0)
{
	struct conn k;
	struct work w[2] = { { 0 }, { 0 } };

	conf_pair(&k);
	go(&w[0], k.fd, do_recv);
	go(&w[1], k.fd, do_recv);
	nap(40);
	p_shut(&k, SHUT_WR);
	end("recv", &w[0]);
	end("recv", &w[1]);
}

CASE(thread, two_recv_reset, 0)
{
	struct conn k;
	struct work w[2] = { { 0 }, { 0 } };
	int resets = 0;

	conf_pair(&k);
	go(&w[0], k.fd, do_recv);
	go(&w[1], k.fd, do_recv);
	nap(40);
	p_rst(&k);
	for (int i = 0; i < 2; i++) {
		pthread_join(w[i].t, NULL);
		resets += w[i].ret < 0 && w[i].err == ECONNRESET;
		yes("ended", w[i].ret == 0 || w[i].err == ECONNRESET);
	}
	ret("resets", resets);
}

static void *recv_count(void *arg)
{
	struct work *w = arg;
	char b[512];
	ssize_t r;

	while ((r = recv(w->fd, b, sizeof(b), 0)) > 0) {
		w->n += r;
		for (ssize_t i = 0; i < r; i++)
			w->ret += b[i];
	}
	w->err = r < 0 ? errno : 0;
	return NULL;
}

CASE(thread, four_readers_every_byte_once, 0)
{
	struct conn k;
	struct work w[4] = { { 0 }, { 0 }, { 0 }, { 0 } };
	long n = 500000, got = 0, sum = 0, want = 0;
	char *p = malloc((size_t)n);

	conf_pair(&k);
	pattern(p, (size_t)n, 0, 8);
	for (long i = 0; i < n; i++)
		want += p[i];
	for (int i = 0; i < 4; i++)
		go(&w[i], k.fd, recv_count);
	peer_ret("peer", p_sendn(&k, n, 8));
	p_shut(&k, SHUT_WR);
	for (int i = 0; i < 4; i++) {
		pthread_join(w[i].t, NULL);
		got += w[i].n;
		sum += w[i].ret;
		ret("err", w[i].err);
	}
	ret("got", got);
	yes("sum", sum == want);
}

static void *send_records(void *arg)
{
	struct work *w = arg;
	char rec[64];

	/* a single small send is not torn by another thread's */
	memset(rec, (int)w->n, sizeof(rec));
	for (int i = 0; i < 500; i++) {
		if (send(w->fd, rec, sizeof(rec), MSG_NOSIGNAL) != (ssize_t)sizeof(rec))
			w->err = 1;
	}
	return NULL;
}

CASE(thread, four_writers_whole_records, ONE)
{
	struct conn k;
	struct work w[4] = { { 0 }, { 0 }, { 0 }, { 0 } };
	int count[4] = { 0 };
	bool whole = true;

	conf_pair(&k);
	for (int i = 0; i < 4; i++) {
		w[i].n = 'A' + i;
		go(&w[i], k.fd, send_records);
	}
	for (int i = 0; i < 2000; i++) {
		char b[64];

		if (recv(k.peer, b, 64, MSG_WAITALL) != 64)
			break;
		for (int j = 1; j < 64; j++)
			whole = whole && b[j] == b[0];
		if (b[0] >= 'A' && b[0] <= 'D')
			count[b[0] - 'A']++;
	}
	for (int i = 0; i < 4; i++) {
		pthread_join(w[i].t, NULL);
		ret("n", count[i]);
	}
	yes("whole", whole);
}

CASE(thread, full_duplex, ONE)
{
	struct conn k;
	struct work w[4] = { { 0 }, { 0 }, { 0 }, { 0 } };
	long n = 4000000;

	conf_pair(&k);
	for (int i = 0; i < 4; i++) {
		w[i].n = n;
		w[i].flags = i % 2 + 1;
	}
	go(&w[0], k.fd, do_sendn);
	go(&w[1], k.peer, do_sendn);
	go(&w[2], k.peer, do_recvn);
	go(&w[3], k.fd, do_recvn);
	for (int i = 0; i < 4; i++) {
		pthread_join(w[i].t, NULL);
		ret("n", w[i].ret);
	}
}

CASE(thread, recv_from_thread_that_ends, 0)
{
	struct conn k;
	struct work w = { 0 };
	char b[8];

	conf_pair(&k);
	for (int i = 0; i < 3; i++) {
		memset(&w, 0, sizeof(w));
		go(&w, k.fd, do_recv);
		p_send(&k, "abc");
		end("recv", &w);
	}
	p_send(&k, "main");
	retd("recv", recv(k.fd, b, 8, 0), b);
}

static void cancel_in(const char *label, int fd, void *(*fn)(void *))
{
	struct work w = { 0 };
	void *r = NULL;

	go(&w, fd, fn);
	nap(60);
	ret(label, pthread_cancel(w.t));
	pthread_join(w.t, &r);
	yes("canceled", r == PTHREAD_CANCELED);
}

static void *do_read(void *arg)
{
	struct work *w = arg;

	w->ret = read(w->fd, w->b, 8);
	return NULL;
}

static void *do_select(void *arg)
{
	struct work *w = arg;
	fd_set r;

	FD_ZERO(&r);
	FD_SET(w->fd, &r);
	w->ret = select(w->fd + 1, &r, NULL, NULL, NULL);
	return NULL;
}

static void *do_epoll(void *arg)
{
	struct work *w = arg;
	struct epoll_event e;

	w->ret = epoll_wait(w->fd, &e, 1, -1);
	return NULL;
}

static void *do_accept(void *arg)
{
	struct work *w = arg;

	w->ret = accept(w->fd, NULL, NULL);
	return NULL;
}

CASE(cancel, recv, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	cancel_in("recv", k.fd, do_recv);
	p_send(&k, "abc");
	retd("after", recv(k.fd, b, 8, 0), b);
}

/* who was canceled in the call holds the socket no longer */
CASE(cancel, recv_then_close, 0)
{
	struct conn k;

	conf_pair(&k);
	cancel_in("recv", k.fd, do_recv);
	ret("close", close(k.fd));
	peer_text(&k, 1);
}

CASE(cancel, one_of_two_recv, 0)
{
	struct conn k;
	struct work w = { 0 };

	conf_pair(&k);
	go(&w, k.fd, do_recv);
	cancel_in("recv", k.fd, do_recv);
	p_send(&k, "abc");
	end("other", &w);
	ret("close", close(k.fd));
	peer_text(&k, 1);
}

CASE(cancel, read, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	cancel_in("read", k.fd, do_read);
	p_send(&k, "abc");
	retd("after", recv(k.fd, b, 8, 0), b);
}

CASE(cancel, poll, 0)
{
	struct conn k;

	conf_pair(&k);
	cancel_in("poll", k.fd, do_poll);
	p_send(&k, "abc");
	poll_say("after", k.fd, POLLIN, 1000);
}

CASE(cancel, select, 0)
{
	struct conn k;

	conf_pair(&k);
	cancel_in("select", k.fd, do_select);
	p_send(&k, "abc");
	poll_say("after", k.fd, POLLIN, 1000);
}

CASE(cancel, epoll_wait, 0)
{
	struct conn k;
	int ep = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLIN };

	conf_pair(&k);
	epoll_ctl(ep, EPOLL_CTL_ADD, k.fd, &e);
	cancel_in("epoll", ep, do_epoll);
	p_send(&k, "abc");
	ret("after", epoll_wait(ep, &e, 1, 1000));
}

CASE(cancel, send, 0)
{
	struct conn k;
	long n;

	conf_pair(&k);
	n = fill(k.fd);
	cancel_in("send", k.fd, do_send1);
	yes("all", p_recvn(&k, n, 7) == n);
	ret("send", send(k.fd, "after", 5, 0));
	peer_text(&k, 5);
}

CASE(cancel, accept, NOSTATE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(AF_INET, 1, &ss, &l);
	int c = socket(AF_INET, SOCK_STREAM, 0);

	cancel_in("accept", ls, do_accept);
	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	yes("after", accept(ls, NULL, NULL) >= 0);
}

CASE(cancel, pending_before_the_call, 0)
{
	struct conn k;
	struct work w = { 0 };
	void *r = NULL;
	char b[8];
	int old;

	/* recv is a cancellation point even when it need not wait */
	conf_pair(&k);
	p_send(&k, "abc");
	wait_avail(k.fd, 3);
	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &old);
	go(&w, k.fd, do_waitall);
	wait_taken(k.fd);
	nap(40);
	ret("cancel", pthread_cancel(w.t));
	pthread_join(w.t, &r);
	yes("canceled", r == PTHREAD_CANCELED);
	/* what WAITALL had taken before is gone, with the kernel as well */
	retd("left", recv(k.fd, b, 8, MSG_DONTWAIT), b);
	p_send(&k, "def");
	retd("after", recv(k.fd, b, 8, 0), b);
}

static void *cancel_self_recv(void *arg)
{
	struct work *w = arg;

	pthread_cancel(pthread_self());
	w->ret = recv(w->fd, w->b, 8, MSG_DONTWAIT);
	return NULL;
}

CASE(cancel, point_without_waiting, 0)
{
	struct conn k;
	struct work w = { .ret = -77 };
	void *r = NULL;
	char b[8];

	conf_pair(&k);
	p_send(&k, "abc");
	wait_avail(k.fd, 3);
	go(&w, k.fd, cancel_self_recv);
	pthread_join(w.t, &r);
	yes("canceled", r == PTHREAD_CANCELED);
	yes("not_run", w.ret == -77);
	retd("after", recv(k.fd, b, 8, 0), b);
}

static void *disabled_recv(void *arg)
{
	struct work *w = arg;
	int old;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
	w->ret = recv(w->fd, w->b, 8, 0);
	return NULL;
}

CASE(cancel, disabled, 0)
{
	struct conn k;
	struct work w = { 0 };
	void *r = NULL;

	conf_pair(&k);
	go(&w, k.fd, disabled_recv);
	nap(40);
	ret("cancel", pthread_cancel(w.t));
	nap(20);
	p_send(&k, "abc");
	pthread_join(w.t, &r);
	yes("canceled", r == PTHREAD_CANCELED);
	retd("recv", w.ret, w.b);
}

static void *do_shut_close(void *arg)
{
	struct work *w = arg;

	nap(20);
	shutdown(w->fd, SHUT_RDWR);
	close(w->fd);
	return NULL;
}

CASE(thread, shutdown_close_under_a_sender, 0)
{
	struct conn k;
	struct work w = { 0 };
	long r;

	conf_pair(&k);
	w.fd = k.fd;
	go(&w, k.fd, do_shut_close);
	/* must end with an error, soon, and never by a crash; whether EPIPE or EBADF is a race */
	do {
		r = send(k.fd, "0123456789", 10, MSG_NOSIGNAL | MSG_DONTWAIT);
	} while (r > 0 || errno == EAGAIN);
	yes("ended", errno == EPIPE || errno == EBADF);
	pthread_join(w.t, NULL);
}
