/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* libcases_sig.c - signals that interrupt waiting calls: EINTR, SA_RESTART, partial counts (signal(7)) */
#include "tests/conformance/conf.h"

extern const char conf_file_sig;
const char conf_file_sig = 1;

static void alarms(void)
{
	alarm_ms(0, 0);
	yes("signals", sig_count[SIGALRM] > 0);
}

/* a signal every 40 ms, so that a late start of the wait does no harm */
static void ticking(int flags)
{
	sig_catch(SIGALRM, flags);
	sig_catch(SIGPIPE, 0);
	alarm_ms(40, 40);
}

CASE(sig, recv_eintr, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	ticking(0);
	ret("recv", recv(k.fd, b, 8, 0));
	alarms();
}

CASE(sig, read_eintr, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	ticking(0);
	ret("read", read(k.fd, b, 8));
	alarms();
}

CASE(sig, recvmsg_eintr, 0)
{
	struct conn k;
	char b[8];
	struct iovec iov = { b, 8 };

	conf_pair(&k);
	ticking(0);
	ret("recvmsg", recvmsg(k.fd, &(struct msghdr){ .msg_iov = &iov, .msg_iovlen = 1 }, 0));
	alarms();
}

CASE(sig, peek_eintr, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	ticking(0);
	ret("peek", recv(k.fd, b, 8, MSG_PEEK));
	alarms();
}

CASE(sig, recv_restarts, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	p_later(&k, 200, OP_SEND, 0, 0, "abc");
	ticking(SA_RESTART);
	retd("recv", recv(k.fd, b, 8, 0), b);
	alarms();
	p_done();
}

CASE(sig, read_restarts, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	p_later(&k, 200, OP_SEND, 0, 0, "abc");
	ticking(SA_RESTART);
	retd("read", read(k.fd, b, 8), b);
	alarms();
	p_done();
}

/* with SO_RCVTIMEO no call is restarted */
CASE(sig, recv_timeo_no_restart, 0)
{
	struct conn k;
	struct timeval tv = { 2, 0 };
	char b[8];

	conf_pair(&k);
	setsockopt(k.fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	ticking(SA_RESTART);
	ret("recv", recv(k.fd, b, 8, 0));
	alarms();
}

CASE(sig, waitall_partial, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	p_send(&k, "abc");
	wait_avail(k.fd, 3);
	ticking(0);
	retd("waitall", recv(k.fd, b, 8, MSG_WAITALL), b);
	alarms();
}

CASE(sig, waitall_partial_restart, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	p_send(&k, "abc");
	wait_avail(k.fd, 3);
	ticking(SA_RESTART);
	retd("waitall", recv(k.fd, b, 8, MSG_WAITALL), b);
	alarms();
}

CASE(sig, lowat_partial, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	set_int(k.fd, SOL_SOCKET, SO_RCVLOWAT, 10);
	p_send(&k, "abc");
	wait_avail(k.fd, 3);
	ticking(0);
	retd("recv", recv(k.fd, b, 16, 0), b);
	alarms();
}

CASE(sig, send_eintr, 0)
{
	struct conn k;

	conf_pair(&k);
	fill(k.fd);
	ticking(0);
	ret("send", send(k.fd, "x", 1, 0));
	alarms();
}

CASE(sig, send_partial, 0)
{
	struct conn k;
	long n = 64L << 20;
	char *p = malloc((size_t)n);
	long r;

	conf_pair(&k);
	pattern(p, (size_t)n, 0, 5);
	/* long enough to put something in */
	sig_catch(SIGALRM, 0);
	alarm_ms(300, 300);
	r = send(k.fd, p, (size_t)n, 0);
	alarms();
	yes("partial", r > 0 && r < n);
	yes("same", p_recvn(&k, r, 5) == r);
}

CASE(sig, send_restarts, 0)
{
	struct conn k;
	char *p;
	long n;

	conf_pair(&k);
	n = fill(k.fd);
	p = malloc(100);
	memset(p, 'r', 100);
	p_later(&k, 200, OP_RECVN, n, 7, NULL);
	ticking(SA_RESTART);
	ret("send", send(k.fd, p, 100, 0));
	alarms();
	yes("all", p_done() == n);
}

CASE(sig, send_timeo_no_restart, 0)
{
	struct conn k;
	struct timeval tv = { 2, 0 };

	conf_pair(&k);
	fill(k.fd);
	setsockopt(k.fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
	ticking(SA_RESTART);
	ret("send", send(k.fd, "x", 1, 0));
	alarms();
}

CASE(sig, poll_eintr, 0)
{
	struct conn k;

	conf_pair(&k);
	ticking(0);
	poll_say("poll", k.fd, POLLIN, 2000);
	alarms();
}

CASE(sig, poll_never_restarts, 0)
{
	struct conn k;

	conf_pair(&k);
	ticking(SA_RESTART);
	poll_say("timed", k.fd, POLLIN, 2000);
	poll_say("forever", k.fd, POLLIN, -1);
	alarms();
}

CASE(sig, select_never_restarts, 0)
{
	struct conn k;
	fd_set r;

	conf_pair(&k);
	ticking(SA_RESTART);
	FD_ZERO(&r);
	FD_SET(k.fd, &r);
	ret("select", select(k.fd + 1, &r, NULL, NULL, &(struct timeval){ 2, 0 }));
	FD_SET(k.fd, &r);
	ret("forever", select(k.fd + 1, &r, NULL, NULL, NULL));
	alarms();
}

CASE(sig, epoll_never_restarts, 0)
{
	struct conn k;
	int ep = epoll_create1(0);
	struct epoll_event e = { .events = EPOLLIN };

	conf_pair(&k);
	epoll_ctl(ep, EPOLL_CTL_ADD, k.fd, &e);
	ticking(SA_RESTART);
	ret("timed", epoll_wait(ep, &e, 1, 2000));
	ret("forever", epoll_wait(ep, &e, 1, -1));
	alarms();
}

CASE(sig, ignored_signal_does_not_wake, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	signal(SIGALRM, SIG_IGN);
	alarm_ms(20, 20);
	p_later(&k, 120, OP_SEND, 0, 0, "abc");
	retd("recv", recv(k.fd, b, 8, 0), b);
	poll_say("poll", k.fd, POLLIN, 60);
	p_done();
}

CASE(sig, blocked_signal_does_not_wake, 0)
{
	struct conn k;
	char b[8];
	sigset_t s;

	conf_pair(&k);
	sigemptyset(&s);
	sigaddset(&s, SIGALRM);
	sigprocmask(SIG_BLOCK, &s, NULL);
	sig_catch(SIGALRM, 0);
	alarm_ms(20, 20);
	p_later(&k, 120, OP_SEND, 0, 0, "abc");
	retd("recv", recv(k.fd, b, 8, 0), b);
	out(" handled=%d", (int)sig_count[SIGALRM]);
	p_done();
}

CASE(sig, ppoll_opens_mask, 0)
{
	struct conn k;
	struct pollfd f = { .events = POLLIN };
	sigset_t s, none;

	conf_pair(&k);
	f.fd = k.fd;
	sigemptyset(&none);
	sigemptyset(&s);
	sigaddset(&s, SIGUSR1);
	sigprocmask(SIG_BLOCK, &s, NULL);
	sig_catch(SIGUSR1, SA_RESTART);
	raise(SIGUSR1);
	ret("poll", poll(&f, 1, 20));
	ret("ppoll", ppoll(&f, 1, &(struct timespec){ 2, 0 }, &none));
	out(" handled=%d", (int)sig_count[SIGUSR1]);
	raise(SIGUSR1);
	ret("pselect", pselect(0, NULL, NULL, NULL, &(struct timespec){ 2, 0 }, &none));
	out(" handled=%d", (int)sig_count[SIGUSR1]);
}

CASE(sig, accept_eintr, NOSTATE)
{
	int ls = conf_listen(AF_INET, 2, NULL, NULL);

	ticking(0);
	ret("accept", accept(ls, NULL, NULL));
	alarms();
}

CASE(sig, accept_restarts, ONE | NOSTATE)
{
	struct conf_req q = { .op = OP_CONNECT, .n = AF_INET, .later = 200 };
	struct conf_rsp s;
	int ls = conf_listen(AF_INET, 2, NULL, NULL);

	q.m = conf_port(ls);
	p_call(&q, &s);
	ticking(SA_RESTART);
	yes("accept", accept(ls, NULL, NULL) >= 0);
	alarms();
	p_done();
}

/* a listener whose queue is full makes connect() wait */
static int full_listener(struct sockaddr_storage *ss, socklen_t *l)
{
	int ls = conf_listen(AF_INET, 0, ss, l);

	for (int i = 0; i < 2; i++) {
		int c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

		if (connect(c, (struct sockaddr *)ss, *l) && errno != EINPROGRESS)
			bail("full_listener");
	}
	nap(20);
	return ls;
}

CASE(sig, connect_eintr, NOSTATE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int c = socket(AF_INET, SOCK_STREAM, 0);

	full_listener(&ss, &l);
	ticking(0);
	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	alarms();
	nonblock(c, true);
	ret("again", connect(c, (struct sockaddr *)&ss, l));
	out(" so_error=%s", err_name(get_int(c, SOL_SOCKET, SO_ERROR)));
}

CASE(sig, connect_goes_on_after_eintr, NOSTATE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = full_listener(&ss, &l);
	int c = socket(AF_INET, SOCK_STREAM, 0);

	sig_catch(SIGALRM, 0);
	alarm_ms(40, 0);
	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	/* one of the retransmitted SYNs finds room */
	nonblock(ls, true);
	for (int i = 0; i < 220 && poll1(c, POLLOUT, 20) != POLLOUT; i++)
		accept(ls, NULL, NULL);
	poll_say("poll", c, POLLOUT, 0);
	ret("again", connect(c, (struct sockaddr *)&ss, l));
	out(" so_error=%s", err_name(get_int(c, SOL_SOCKET, SO_ERROR)));
}

static int handler_fd;
static void in_handler(int sig)
{
	int e = errno;

	sig_count[sig]++;
	if (send(handler_fd, "H", 1, MSG_NOSIGNAL) != 1)
		sig_count[0]++;
	errno = e;
}

/* a handler may use the same connection that the interrupted call waits on */
CASE(sig, handler_sends_on_same_fd, 0)
{
	struct conn k;
	struct sigaction sa = { .sa_handler = in_handler, .sa_flags = SA_RESTART };
	char b[8];

	conf_pair(&k);
	handler_fd = k.fd;
	sigaction(SIGALRM, &sa, NULL);
	p_later(&k, 120, OP_SEND, 0, 0, "abc");
	alarm_ms(50, 0);
	retd("recv", recv(k.fd, b, 8, 0), b);
	out(" handled=%d failed=%d", (int)sig_count[SIGALRM], (int)sig_count[0]);
	p_done();
	peer_ret("peer", p_recv(&k, b, 1));
	out(" %s", b);
}

static void in_handler_close(int sig)
{
	sig_count[sig]++;
	close(handler_fd);
}

CASE(sig, handler_closes_the_fd, 0)
{
	struct conn k;
	struct sigaction sa = { .sa_handler = in_handler_close };
	char b[8];

	conf_pair(&k);
	handler_fd = k.fd;
	sigaction(SIGALRM, &sa, NULL);
	alarm_ms(50, 0);
	ret("recv", recv(k.fd, b, 8, 0));
	ret("again", recv(k.fd, b, 8, 0));
	peer_ret("peer", p_recv(&k, b, 1));
}

/* an interval timer under a two-way stream: not a byte may be lost or doubled */
CASE(sig, storm_during_transfer, 0)
{
	struct conn k;
	long n = 3000000, done = 0;
	char *p = malloc((size_t)n);
	bool ok = true;

	conf_pair(&k);
	sig_catch(SIGALRM, 0);
	alarm_ms(1, 1);
	pattern(p, (size_t)n, 0, 5);
	p_later(&k, 1, OP_RECVN, n, 5, NULL);
	while (done < n) {
		ssize_t r = send(k.fd, p + done, (size_t)(n - done), 0);

		if (r < 0 && errno != EINTR) {
			ok = false;
			break;
		}
		if (r > 0)
			done += r;
	}
	yes("sent", done == n);
	peer_ret("peer", p_done());
	p_later(&k, 1, OP_SENDN, n, 6, NULL);
	for (done = 0; done < n;) {
		ssize_t r = recv(k.fd, p, 20000, 0);

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0) {
			ok = false;
			break;
		}
		ok = ok && pattern_ok(p, (size_t)r, (uint64_t)done, 6);
		done += r;
	}
	alarm_ms(0, 0);
	ret("received", done);
	yes("ok", ok);
	peer_ret("peer", p_done());
}
