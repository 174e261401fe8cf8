/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* libcases_sock.c - connect, accept, listen, options, IPv6 */
#include "tests/conformance/conf.h"

#include <netinet/ip.h>

extern const char conf_file_sock;
const char conf_file_sock = 1;

static void so_error(int fd)
{
	out(" so_error=%s", err_name(get_int(fd, SOL_SOCKET, SO_ERROR)));
}

static void opt(const char *label, int fd, int level, int name)
{
	int v = get_int(fd, level, name);

	out(" %s=%d", label, v);
}

/* a port with nobody behind it */
static socklen_t nobody(int family, struct sockaddr_storage *ss)
{
	socklen_t l;
	int ls = conf_listen(family, 1, ss, &l);

	close(ls);
	return l;
}

CASE(connect, refused, NOSTATE)
{
	struct sockaddr_storage ss;
	socklen_t l = nobody(AF_INET, &ss);
	int c = socket(AF_INET, SOCK_STREAM, 0);
	char b[8];

	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	so_error(c);
	ret("recv", recv(c, b, 8, 0));
	ret("send", send(c, "x", 1, MSG_NOSIGNAL));
	poll_say("poll", c, POLLIN | POLLOUT | POLLRDHUP, 0);
	ret("again", connect(c, (struct sockaddr *)&ss, l));
}

CASE(connect, refused_nonblock, NOSTATE)
{
	struct sockaddr_storage ss;
	socklen_t l = nobody(AF_INET, &ss);
	int c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	poll_say("poll", c, POLLIN | POLLOUT | POLLRDHUP, 1000);
	so_error(c);
	so_error(c);
	poll_say("poll", c, POLLIN | POLLOUT | POLLRDHUP, 0);
}

CASE(connect, nonblock, 0)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(conf_family, 4, &ss, &l);
	int c = socket(ss.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
	int a;
	char b[8];

	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	poll_say("poll", c, POLLIN | POLLOUT, 1000);
	so_error(c);
	ret("again", connect(c, (struct sockaddr *)&ss, l));
	ret("again", connect(c, (struct sockaddr *)&ss, l));
	a = accept(ls, NULL, NULL);
	ret("recv", recv(c, b, 8, 0));
	ret("send", send(a, "abc", 3, 0));
	poll_say("poll", c, POLLIN, 1000);
	retd("recv", recv(c, b, 8, 0), b);
	/* an accepted socket does not inherit O_NONBLOCK */
	yes("accepted_nonblock", fcntl(a, F_GETFL) & O_NONBLOCK);
}

CASE(connect, full_queue, NOSTATE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(AF_INET, 0, &ss, &l);
	int c[3];

	for (int i = 0; i < 3; i++)
		c[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	ret("1", connect(c[0], (struct sockaddr *)&ss, l));
	poll_say("p", c[0], POLLOUT, 500);
	ret("2", connect(c[1], (struct sockaddr *)&ss, l));
	poll_say("p", c[1], POLLOUT, 100);
	ret("again", connect(c[1], (struct sockaddr *)&ss, l));
	ret("send", send(c[1], "x", 1, MSG_NOSIGNAL));
	ret("recv", recv(c[1], &(char){ 0 }, 1, 0));
	poll_say("listener", ls, POLLIN, 0);
	ret("shut", shutdown(c[1], SHUT_RDWR));
	poll_say("p", c[1], POLLOUT | POLLIN, 100);
}

CASE(connect, sndtimeo, NOSTATE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	struct timeval tv = { 0, 100000 };
	int c;
	long t;

	conf_listen(AF_INET, 0, &ss, &l);
	for (int i = 0; i < 2; i++) {
		c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		yes("fill", !connect(c, (struct sockaddr *)&ss, l) || errno == EINPROGRESS);
	}
	nap(20);
	c = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(c, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
	t = now_ms();
	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	took("t", t, 90, 1500);
}

CASE(connect, errors, NOSTATE)
{
	struct sockaddr_storage ss;
	socklen_t l = conf_addr(AF_INET, 9, &ss);
	int c = socket(AF_INET, SOCK_STREAM, 0);
	int c6 = socket(AF_INET6, SOCK_STREAM, 0);
	int f = temp_file(1, 1);

	ret("closed", connect(999, (struct sockaddr *)&ss, l));
	ret("file", connect(f, (struct sockaddr *)&ss, l));
	ret("short", connect(c, (struct sockaddr *)&ss, 4));
	ret("efault", connect(c, conf_bad, l));
	ret("v4_on_v6", connect(c6, (struct sockaddr *)&ss, l));
	l = conf_addr(AF_INET6, 9, &ss);
	ret("v6_on_v4", connect(c, (struct sockaddr *)&ss, l));
	ss.ss_family = AF_UNIX;
	ret("unix", connect(c, (struct sockaddr *)&ss, l));
	l = conf_addr(AF_INET, 9, &ss);
	((struct sockaddr_in *)&ss)->sin_addr.s_addr = htonl(INADDR_BROADCAST);
	ret("broadcast", connect(c, (struct sockaddr *)&ss, l));
}

CASE(connect, wildcard_is_loopback, ONE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(AF_INET, 4, &ss, &l), a;
	int c = socket(AF_INET, SOCK_STREAM, 0);
	char b[8];

	((struct sockaddr_in *)&ss)->sin_addr.s_addr = htonl(INADDR_ANY);
	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	a = accept(ls, NULL, NULL);
	ret("send", send(c, "abc", 3, 0));
	retd("recv", recv(a, b, 8, 0), b);
}

CASE(connect, to_self, ONE)
{
	/* simultaneous open with oneself: bytes come back */
	struct sockaddr_storage ss;
	socklen_t l = sizeof(ss);
	int c = socket(AF_INET, SOCK_STREAM, 0);
	char b[8];

	conf_addr(AF_INET, 0, &ss);
	ret("bind", bind(c, (struct sockaddr *)&ss, sizeof(struct sockaddr_in)));
	getsockname(c, (struct sockaddr *)&ss, &l);
	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	for (int i = 0; i < 5; i++) {
		ret("send", send(c, "me", 2, 0));
		retd("recv", recv(c, b, 8, 0), b);
		nap(5);
	}
	ret("shut", shutdown(c, SHUT_WR));
	ret("recv", recv(c, b, 8, 0));
}

CASE(connect, bound_source, ONE)
{
	struct sockaddr_storage ss, me;
	socklen_t l;
	int ls = conf_listen(AF_INET, 4, &ss, &l), a;
	int c = socket(AF_INET, SOCK_STREAM, 0);
	char b[8];

	conf_addr(AF_INET, 0, &me);
	((struct sockaddr_in *)&me)->sin_addr.s_addr = htonl(0x7f000002);
	ret("bind", bind(c, (struct sockaddr *)&me, sizeof(struct sockaddr_in)));
	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	l = sizeof(me);
	a = accept(ls, (struct sockaddr *)&me, &l);
	out(" from=%x", ntohl(((struct sockaddr_in *)&me)->sin_addr.s_addr));
	for (int i = 0; i < 5; i++) {
		send(c, "abc", 3, 0);
		retd("recv", recv(a, b, 8, 0), b);
		nap(5);
	}
}

CASE(connect, unix_and_udp_untouched, NOSTATE)
{
	int sv[2], u = socket(AF_INET, SOCK_DGRAM, 0), v = socket(AF_INET, SOCK_DGRAM, 0);
	struct sockaddr_storage ss;
	socklen_t l = sizeof(ss);
	char b[16];

	ret("pair", socketpair(AF_UNIX, SOCK_STREAM, 0, sv));
	ret("send", send(sv[0], "abc", 3, 0));
	retd("recv", recv(sv[1], b, 16, 0), b);
	conf_addr(AF_INET, 0, &ss);
	ret("bind", bind(u, (struct sockaddr *)&ss, sizeof(struct sockaddr_in)));
	getsockname(u, (struct sockaddr *)&ss, &l);
	ret("connect", connect(v, (struct sockaddr *)&ss, l));
	ret("send", send(v, "datagram", 8, 0));
	ret("send0", send(v, "", 0, 0));
	ret("trunc", recv(u, b, 4, MSG_TRUNC));
	ret("recv0", recv(u, b, 4, 0));
}

CASE(accept, addresses, ONE)
{
	struct sockaddr_storage ss, me, him;
	socklen_t l, ml = sizeof(me), hl = sizeof(him);
	int ls = conf_listen(conf_family, 4, &ss, &l);
	int c = socket(ss.ss_family, SOCK_STREAM, 0), a;

	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	a = accept(ls, (struct sockaddr *)&him, &hl);
	getsockname(c, (struct sockaddr *)&me, &ml);
	yes("accept", a >= 0);
	yes("len", hl == ml);
	yes("addr", !memcmp(&me, &him, ml));
	hl = sizeof(him);
	ret("peername", getpeername(a, (struct sockaddr *)&him, &hl));
	yes("addr", !memcmp(&me, &him, ml));
	hl = sizeof(him);
	ret("peername", getpeername(c, (struct sockaddr *)&him, &hl));
	yes("addr", !memcmp(&ss, &him, l));
	hl = 4;
	ret("truncated", getpeername(c, (struct sockaddr *)&him, &hl));
	yes("len", hl == l);
}

CASE(accept, flags, ONE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(AF_INET, 8, &ss, &l), a;

	for (int i = 0; i < 4; i++) {
		int c = socket(AF_INET, SOCK_STREAM, 0);

		connect(c, (struct sockaddr *)&ss, l);
	}
	a = accept(ls, NULL, NULL);
	out(" %d,%d", fcntl(a, F_GETFD), !!(fcntl(a, F_GETFL) & O_NONBLOCK));
	/* cppcheck-suppress nullPointer */
	a = accept4(ls, NULL, NULL, SOCK_CLOEXEC);
	out(" %d,%d", fcntl(a, F_GETFD), !!(fcntl(a, F_GETFL) & O_NONBLOCK));
	/* cppcheck-suppress nullPointer */
	a = accept4(ls, NULL, NULL, SOCK_NONBLOCK);
	out(" %d,%d", fcntl(a, F_GETFD), !!(fcntl(a, F_GETFL) & O_NONBLOCK));
	/* cppcheck-suppress nullPointer */
	ret("flags", accept4(ls, NULL, NULL, 0x7000));
	ret("len", accept(ls, (struct sockaddr *)&ss, &(socklen_t){ (socklen_t)-1 }));
	nonblock(ls, true);
	ret("efault", accept(ls, conf_bad, &(socklen_t){ 100 }));
	ret("none", accept(ls, NULL, NULL));
}

CASE(accept, errors, NOSTATE)
{
	int s = socket(AF_INET, SOCK_STREAM, 0);
	int u = socket(AF_INET, SOCK_DGRAM, 0);
	int f = temp_file(1, 1);
	struct timeval tv = { 0, 60000 };
	int ls;
	long t;

	ret("not_listening", accept(s, NULL, NULL));
	ret("udp", accept(u, NULL, NULL));
	ret("file", accept(f, NULL, NULL));
	ret("closed", accept(999, NULL, NULL));
	ret("listen_udp", listen(u, 1));
	ret("listen_file", listen(f, 1));
	ls = conf_listen(AF_INET, 1, NULL, NULL);
	setsockopt(ls, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	t = now_ms();
	ret("rcvtimeo", accept(ls, NULL, NULL));
	took("t", t, 55, 1500);
}

CASE(accept, client_gone_before, ONE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(AF_INET, 4, &ss, &l);
	int c = socket(AF_INET, SOCK_STREAM, 0), a;
	char b[8];

	connect(c, (struct sockaddr *)&ss, l);
	send(c, "gone", 4, 0);
	close(c);
	a = accept(ls, NULL, NULL);
	yes("accept", a >= 0);
	retd("recv", recv(a, b, 8, 0), b);
	ret("recv", recv(a, b, 8, 0));
}

CASE(accept, client_reset_before, ONE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	struct linger lg = { 1, 0 };
	int ls = conf_listen(AF_INET, 4, &ss, &l);
	int c = socket(AF_INET, SOCK_STREAM, 0), a;
	char b[8];

	connect(c, (struct sockaddr *)&ss, l);
	setsockopt(c, SOL_SOCKET, SO_LINGER, &lg, sizeof(lg));
	close(c);
	nap(10);
	a = accept(ls, NULL, NULL);
	yes("accept", a >= 0);
	ret("recv", recv(a, b, 8, 0));
}

CASE(accept, data_waits_in_the_backlog, ONE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(conf_family, 4, &ss, &l);
	int c = socket(ss.ss_family, SOCK_STREAM, 0), a;
	char b[32];

	connect(c, (struct sockaddr *)&ss, l);
	ret("send", send(c, "early ", 6, 0));
	nap(60);
	ret("send", send(c, "bird", 4, 0));
	a = accept(ls, NULL, NULL);
	retd("recv", recv(a, b, 10, MSG_WAITALL), b);
	for (int i = 0; i < 10; i++) {
		send(a, "x", 1, 0);
		recv(c, b, 1, 0);
		nap(2);
	}
	retd("last", recv(c, b, 8, MSG_DONTWAIT), b);
}

CASE(accept, order, ONE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(AF_INET, 16, &ss, &l);
	char b[8];

	for (int i = 0; i < 6; i++) {
		int c = socket(AF_INET, SOCK_STREAM, 0);

		connect(c, (struct sockaddr *)&ss, l);
		send(c, "abcdef" + i, 1, 0);
	}
	for (int i = 0; i < 6; i++)
		retd("r", recv(accept(ls, NULL, NULL), b, 8, 0), b);
}

static void *shut_later(void *arg)
{
	nap(60);
	shutdown(*(int *)arg, SHUT_RDWR);
	return NULL;
}

CASE(listen, shutdown_wakes_accept, NOSTATE)
{
	int ls = conf_listen(AF_INET, 4, NULL, NULL);
	pthread_t t;

	pthread_create(&t, NULL, shut_later, &ls);
	ret("accept", accept(ls, NULL, NULL));
	pthread_join(t, NULL);
	poll_say("poll", ls, POLLIN, 0);
	ret("listen", listen(ls, 4));
	poll_say("poll", ls, POLLIN, 0);
}

CASE(listen, closed_with_pending, ONE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(AF_INET, 4, &ss, &l);
	int c = socket(AF_INET, SOCK_STREAM, 0);
	char b[8];

	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	ret("close", close(ls));
	yes("err", wait_ev(c, POLLERR | POLLHUP));
	ret("recv", recv(c, b, 8, 0));
}

CASE(listen, twice_and_again, NOSTATE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(AF_INET, 4, &ss, &l);
	int s = socket(AF_INET, SOCK_STREAM, 0);

	ret("again", listen(ls, 8));
	ret("bind", bind(s, (struct sockaddr *)&ss, l));
	out(" acceptconn=%d", get_int(ls, SOL_SOCKET, SO_ACCEPTCONN));
	out(" acceptconn=%d", get_int(s, SOL_SOCKET, SO_ACCEPTCONN));
	ret("unbound", listen(s, 1));
	yes("port", conf_port(s) > 0);
	ret("connect_listener", connect(ls, (struct sockaddr *)&ss, l));
}

CASE(listen, dup_and_close_original, ONE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(conf_family, 4, &ss, &l), d = dup(ls);
	int c = socket(ss.ss_family, SOCK_STREAM, 0), a;
	char b[8];

	close(ls);
	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	a = accept(d, NULL, NULL);
	for (int i = 0; i < 10; i++) {
		send(c, "x", 1, 0);
		retd("r", recv(a, b, 8, 0), b);
		nap(2);
	}
}

CASE(listen, reuseport_two_listeners, ONE)
{
	struct sockaddr_storage ss;
	socklen_t l = sizeof(ss);
	int ls[2], good = 0;
	char b[8];

	for (int i = 0; i < 2; i++) {
		ls[i] = socket(AF_INET, SOCK_STREAM, 0);
		set_int(ls[i], SOL_SOCKET, SO_REUSEPORT, 1);
		if (!i)
			l = conf_addr(AF_INET, 0, &ss);
		ret("bind", bind(ls[i], (struct sockaddr *)&ss, l));
		if (!i)
			getsockname(ls[0], (struct sockaddr *)&ss, &l);
		ret("listen", listen(ls[i], 16));
		nonblock(ls[i], true);
	}
	for (int i = 0; i < 12; i++) {
		int c = socket(AF_INET, SOCK_STREAM, 0), a;

		connect(c, (struct sockaddr *)&ss, l);
		a = accept(ls[0], NULL, NULL);
		if (a < 0)
			a = accept(ls[1], NULL, NULL);
		send(c, "x", 1, 0);
		nap(2);
		send(a, "y", 1, 0);
		good += recv(a, b, 8, 0) == 1 && recv(c, b, 8, 0) == 1;
		close(c);
		close(a);
	}
	ret("good", good);
}

CASE(opt, defaults, 0)
{
	struct conn k;

	conf_pair(&k);
	opt("type", k.fd, SOL_SOCKET, SO_TYPE);
	opt("domain", k.fd, SOL_SOCKET, SO_DOMAIN);
	opt("protocol", k.fd, SOL_SOCKET, SO_PROTOCOL);
	opt("acceptconn", k.fd, SOL_SOCKET, SO_ACCEPTCONN);
	opt("keepalive", k.fd, SOL_SOCKET, SO_KEEPALIVE);
	opt("reuseaddr", k.fd, SOL_SOCKET, SO_REUSEADDR);
	opt("oobinline", k.fd, SOL_SOCKET, SO_OOBINLINE);
	opt("rcvlowat", k.fd, SOL_SOCKET, SO_RCVLOWAT);
	opt("sndlowat", k.fd, SOL_SOCKET, SO_SNDLOWAT);
	opt("nodelay", k.fd, IPPROTO_TCP, TCP_NODELAY);
	opt("cork", k.fd, IPPROTO_TCP, TCP_CORK);
	opt("keepidle", k.fd, IPPROTO_TCP, TCP_KEEPIDLE);
	opt("keepintvl", k.fd, IPPROTO_TCP, TCP_KEEPINTVL);
	opt("keepcnt", k.fd, IPPROTO_TCP, TCP_KEEPCNT);
	opt("user_timeout", k.fd, IPPROTO_TCP, TCP_USER_TIMEOUT);
	opt("linger2", k.fd, IPPROTO_TCP, TCP_LINGER2);
	opt("zerocopy", k.fd, SOL_SOCKET, SO_ZEROCOPY);
	opt("busy_poll", k.fd, SOL_SOCKET, SO_BUSY_POLL);
	so_error(k.fd);
}

CASE(opt, keepalive_is_the_programs, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("set", set_int(k.fd, SOL_SOCKET, SO_KEEPALIVE, 1));
	opt("get", k.fd, SOL_SOCKET, SO_KEEPALIVE);
	ret("idle", set_int(k.fd, IPPROTO_TCP, TCP_KEEPIDLE, 33));
	opt("get", k.fd, IPPROTO_TCP, TCP_KEEPIDLE);
	ret("intvl", set_int(k.fd, IPPROTO_TCP, TCP_KEEPINTVL, 11));
	opt("get", k.fd, IPPROTO_TCP, TCP_KEEPINTVL);
	ret("cnt", set_int(k.fd, IPPROTO_TCP, TCP_KEEPCNT, 3));
	opt("get", k.fd, IPPROTO_TCP, TCP_KEEPCNT);
	ret("off", set_int(k.fd, SOL_SOCKET, SO_KEEPALIVE, 0));
	opt("get", k.fd, SOL_SOCKET, SO_KEEPALIVE);
	ret("bad", set_int(k.fd, IPPROTO_TCP, TCP_KEEPIDLE, 0));
}

CASE(opt, buffers, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("rcvbuf", set_int(k.fd, SOL_SOCKET, SO_RCVBUF, 50000));
	opt("get", k.fd, SOL_SOCKET, SO_RCVBUF);
	ret("sndbuf", set_int(k.fd, SOL_SOCKET, SO_SNDBUF, 60000));
	opt("get", k.fd, SOL_SOCKET, SO_SNDBUF);
	ret("tiny", set_int(k.fd, SOL_SOCKET, SO_SNDBUF, 1));
	opt("get", k.fd, SOL_SOCKET, SO_SNDBUF);
	ret("tiny", set_int(k.fd, SOL_SOCKET, SO_RCVBUF, 1));
	opt("get", k.fd, SOL_SOCKET, SO_RCVBUF);
	peer_ret("peer", p_sendn(&k, 1000, 3));
	ret("recvn", recvn(k.fd, 1000, 3));
	ret("sendn", sendn(k.fd, 1000, 4));
	peer_ret("peer", p_recvn(&k, 1000, 4));
}

CASE(opt, small_buffers_transfer, 0)
{
	struct conn k;
	long n = 300000;

	conf_pair(&k);
	set_int(k.fd, SOL_SOCKET, SO_RCVBUF, 8192);
	set_int(k.fd, SOL_SOCKET, SO_SNDBUF, 8192);
	p_later(&k, 1, OP_RECVN, n, 3, NULL);
	ret("sendn", sendn(k.fd, n, 3));
	peer_ret("peer", p_done());
	p_later(&k, 1, OP_SENDN, n, 3, NULL);
	ret("recvn", recvn(k.fd, n, 3));
	peer_ret("peer", p_done());
}

CASE(opt, tcp, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("nodelay", set_int(k.fd, IPPROTO_TCP, TCP_NODELAY, 0));
	opt("get", k.fd, IPPROTO_TCP, TCP_NODELAY);
	ret("nodelay", set_int(k.fd, IPPROTO_TCP, TCP_NODELAY, 5));
	opt("get", k.fd, IPPROTO_TCP, TCP_NODELAY);
	ret("quickack", set_int(k.fd, IPPROTO_TCP, TCP_QUICKACK, 1));
	ret("user_timeout", set_int(k.fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 5000));
	opt("get", k.fd, IPPROTO_TCP, TCP_USER_TIMEOUT);
	ret("notsent_lowat", set_int(k.fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, 10000));
	opt("get", k.fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT);
	ret("tos", set_int(k.fd, IPPROTO_IP, IP_TOS, 0x10));
	ret("priority", set_int(k.fd, SOL_SOCKET, SO_PRIORITY, 3));
	opt("get", k.fd, SOL_SOCKET, SO_PRIORITY);
	ret("defer", set_int(k.fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, 3));
	ret("unknown", set_int(k.fd, IPPROTO_TCP, 9999, 1));
	ret("unknown_level", set_int(k.fd, 9999, 1, 1));
	ret("short", setsockopt(k.fd, SOL_SOCKET, SO_SNDBUF, &(int){ 1 }, 2));
	ret("efault", setsockopt(k.fd, SOL_SOCKET, SO_SNDBUF, conf_bad, 4));
	ret("get_efault", getsockopt(k.fd, SOL_SOCKET, SO_SNDBUF, conf_bad, &(socklen_t){ 4 }));
	ret("get_unknown", get_int(k.fd, IPPROTO_TCP, 9999) >= 0 ? 0 : -1);
}

CASE(opt, tcp_info, 0)
{
	struct conn k;
	struct tcp_info ti;
	socklen_t l = sizeof(ti);

	conf_pair(&k);
	ret("get", getsockopt(k.fd, IPPROTO_TCP, TCP_INFO, &ti, &l));
	out(" state=%d", ti.tcpi_state);
	p_shut(&k, SHUT_WR);
	wait_ev(k.fd, POLLRDHUP);
	l = sizeof(ti);
	getsockopt(k.fd, IPPROTO_TCP, TCP_INFO, &ti, &l);
	out(" state=%d", ti.tcpi_state);
	l = 1;
	ret("short", getsockopt(k.fd, IPPROTO_TCP, TCP_INFO, &ti, &l));
	out(" len=%u", l);
}

CASE(opt, peercred_and_timestamps, 0)
{
	struct conn k;
	struct ucred uc;
	socklen_t l = sizeof(uc);
	char b[8], ctl[256];
	struct iovec iov = { b, 8 };
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = ctl, .msg_controllen = sizeof(ctl)
	};
	struct cmsghdr *c;

	conf_pair(&k);
	ret("peercred", getsockopt(k.fd, SOL_SOCKET, SO_PEERCRED, &uc, &l));
	out(" pid=%d uid=%d", uc.pid, (int)uc.uid);
	/* a program that wants time stamps gets them */
	ret("timestamp", set_int(k.fd, SOL_SOCKET, SO_TIMESTAMP, 1));
	nap(80); /* the kernel switches its time stamps on a little later */
	p_send(&k, "abc");
	wait_avail(k.fd, 3);
	retd("recvmsg", recvmsg(k.fd, &m, 0), b);
	c = CMSG_FIRSTHDR(&m);
	yes("stamp", c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMP);
}

CASE(opt, tcp_inq, 0)
{
	struct conn k;
	char b[8], ctl[256];
	struct iovec iov = { b, 4 };
	struct msghdr m = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = ctl, .msg_controllen = sizeof(ctl)
	};
	struct cmsghdr *c;

	conf_pair(&k);
	ret("set", set_int(k.fd, IPPROTO_TCP, 36 /* TCP_INQ */, 1));
	p_send(&k, "abcdefg");
	wait_avail(k.fd, 7);
	retd("recvmsg", recvmsg(k.fd, &m, 0), b);
	c = CMSG_FIRSTHDR(&m);
	if (c) {
		int v = -1;

		memcpy(&v, CMSG_DATA(c), sizeof(v));
		out(" level=%d type=%d inq=%d", c->cmsg_level, c->cmsg_type, v);
	}
}

/* a server that takes one connection only, like `nc -l` or `iperf3 -s -1`, may be fast too */
CASE(listen, one_shot, 0)
{
	struct conn k;
	char b[16];

	conf_pair_one_shot(&k);
	ret("send", send(k.fd, "abc", 3, 0));
	peer_ret("peer", p_recv(&k, b, 3));
	p_send(&k, "def");
	retd("recv", recv(k.fd, b, 16, 0), b);
}

/* every pair again in the families that a default run does not use */
static void talk(struct conn *k)
{
	char b[16];

	ret("send", send(k->fd, "abc", 3, 0));
	peer_ret("peer", p_recv(k, b, 3));
	out(" %s", b);
	peer_ret("peer_send", p_send(k, "def"));
	retd("recv", recv(k->fd, b, 16, 0), b);
	ret("sendn", sendn(k->fd, 60000, 2));
	peer_ret("peer", p_recvn(k, 60000, 2));
	p_shut(k, SHUT_WR);
	ret("eof", recv(k->fd, b, 16, 0));
	close(k->fd);
	peer_ret("peer_eof", p_recv(k, b, 1));
}

CASE(family, v6, 0)
{
	struct conn k;

	conf_pair_fam(&k, AF_INET6, conf_server);
	opt("domain", k.fd, SOL_SOCKET, SO_DOMAIN);
	talk(&k);
}

CASE(family, v4, 0)
{
	struct conn k;

	conf_pair_fam(&k, AF_INET, conf_server);
	talk(&k);
}

CASE(family, other_role, 0)
{
	struct conn k;

	conf_pair_fam(&k, conf_family, !conf_server);
	talk(&k);
}

CASE(family, v6only_option, NOSTATE)
{
	int s = socket(AF_INET6, SOCK_STREAM, 0);

	ret("set", set_int(s, IPPROTO_IPV6, IPV6_V6ONLY, 1));
	opt("get", s, IPPROTO_IPV6, IPV6_V6ONLY);
}

/* a v6 listener with v4-mapped clients: our end shows ::ffff:127.0.0.1 */
CASE(family, v4_mapped, ONE)
{
	struct sockaddr_in6 a6 = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_ANY_INIT };
	struct sockaddr_in6 him;
	struct sockaddr_storage ss;
	socklen_t l = sizeof(him);
	int ls = socket(AF_INET6, SOCK_STREAM, 0);
	struct conn k;
	char text[64];

	set_int(ls, IPPROTO_IPV6, IPV6_V6ONLY, 0);
	ret("bind", bind(ls, (struct sockaddr *)&a6, sizeof(a6)));
	ret("listen", listen(ls, 4));
	k.peer = socket(AF_INET, SOCK_STREAM, 0);
	l = conf_addr(AF_INET, conf_port(ls), &ss);
	ret("connect", connect(k.peer, (struct sockaddr *)&ss, l));
	l = sizeof(him);
	k.fd = accept(ls, (struct sockaddr *)&him, &l);
	out(" %s len=%u", inet_ntop(AF_INET6, &him.sin6_addr, text, sizeof(text)), l);
	conf_settle(&k);
	talk(&k);
}

CASE(family, v4_mapped_connect, ONE)
{
	struct sockaddr_in6 a6 = { .sin6_family = AF_INET6 };
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(AF_INET, 4, &ss, &l);
	struct conn k;

	inet_pton(AF_INET6, "::ffff:127.0.0.1", &a6.sin6_addr);
	a6.sin6_port = htons((uint16_t)conf_port(ls));
	k.fd = socket(AF_INET6, SOCK_STREAM, 0);
	ret("connect", connect(k.fd, (struct sockaddr *)&a6, sizeof(a6)));
	k.peer = accept(ls, NULL, NULL);
	conf_settle(&k);
	talk(&k);
}
