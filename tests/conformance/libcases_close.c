/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* libcases_close.c - half-close, close, linger, reset, death of the peer */
#include "tests/conformance/conf.h"

extern const char conf_file_close;
const char conf_file_close = 1;

static void so_error(int fd)
{
	out(" so_error=%s", err_name(get_int(fd, SOL_SOCKET, SO_ERROR)));
}

static void names(int fd)
{
	struct sockaddr_storage ss;
	socklen_t l = sizeof(ss);

	ret("getpeername", getpeername(fd, (struct sockaddr *)&ss, &l));
	l = sizeof(ss);
	ret("getsockname", getsockname(fd, (struct sockaddr *)&ss, &l));
}

static void masks(const char *label, int fd)
{
	poll_say(label, fd, POLLIN | POLLOUT | POLLRDHUP | POLLPRI, 0);
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

static void linger_set(int fd, int on, int secs)
{
	struct linger lg = { on, secs };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &lg, sizeof(lg));
}

CASE(close, half_ours, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	ret("send", send(k.fd, "abc", 3, 0));
	ret("shut", shutdown(k.fd, SHUT_WR));
	peer_text(&k, 10);
	peer_ret("back", p_send(&k, "def"));
	retd("recv", recv(k.fd, b, 16, 0), b);
	peer_ret("back", p_send(&k, "ghi"));
	retd("recv", recv(k.fd, b, 16, 0), b);
	p_close(&k);
	ret("recv", recv(k.fd, b, 16, 0));
}

CASE(close, half_theirs, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	p_send(&k, "abc");
	p_shut(&k, SHUT_WR);
	yes("rdhup", wait_ev(k.fd, POLLRDHUP));
	retd("recv", recv(k.fd, b, 16, 0), b);
	ret("eof", recv(k.fd, b, 16, 0));
	for (int i = 0; i < 3; i++) {
		ret("send", send(k.fd, "xyz", 3, 0));
		peer_text(&k, 3);
	}
	ret("eof", recv(k.fd, b, 16, 0));
	ret("eof_nb", recv(k.fd, b, 16, MSG_DONTWAIT));
	ret("close", close(k.fd));
	peer_text(&k, 3);
}

CASE(close, half_both, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	ret("shut", shutdown(k.fd, SHUT_WR));
	p_shut(&k, SHUT_WR);
	yes("hup", wait_ev(k.fd, POLLHUP));
	masks("poll", k.fd);
	ret("recv", recv(k.fd, b, 16, 0));
	ret("send", send(k.fd, "x", 1, MSG_NOSIGNAL));
	so_error(k.fd);
	mask("peer_poll", (int)p_poll(&k, POLLIN | POLLOUT | POLLRDHUP, 0));
}

/* Linux: after shutdown(SHUT_RD) an empty receive returns 0, but later data still gets through */
CASE(close, shut_rd, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	ret("shut", shutdown(k.fd, SHUT_RD));
	masks("poll", k.fd);
	ret("recv", recv(k.fd, b, 16, 0));
	peer_ret("peer_send", p_send(&k, "abc"));
	wait_avail(k.fd, 3);
	retd("recv", recv(k.fd, b, 16, 0), b);
	ret("recv", recv(k.fd, b, 16, 0));
	ret("send", send(k.fd, "xyz", 3, 0));
	peer_text(&k, 3);
	mask("peer_poll", (int)p_poll(&k, POLLIN | POLLOUT | POLLRDHUP, 0));
}

CASE(close, shut_rd_with_data, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	p_send(&k, "abc");
	wait_avail(k.fd, 3);
	ret("shut", shutdown(k.fd, SHUT_RD));
	retd("recv", recv(k.fd, b, 2, 0), b);
	retd("recv", recv(k.fd, b, 16, 0), b);
	ret("recv", recv(k.fd, b, 16, 0));
}

CASE(close, shut_rdwr, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	ret("send", send(k.fd, "abc", 3, 0));
	ret("shut", shutdown(k.fd, SHUT_RDWR));
	masks("poll", k.fd);
	ret("recv", recv(k.fd, b, 16, 0));
	ret("send", send(k.fd, "x", 1, MSG_NOSIGNAL));
	names(k.fd);
	peer_text(&k, 10);
}

/* In FIN_WAIT, with nobody to read it, what comes is answered by RST; what came before stays. */
CASE(close, data_after_shut_rdwr, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	p_send(&k, "before");
	wait_avail(k.fd, 6);
	ret("shut", shutdown(k.fd, SHUT_RDWR));
	mask("peer_eof", (int)p_poll(&k, POLLIN, 1000));
	peer_ret("peer_send", p_send(&k, "after"));
	yes("err", wait_ev(k.fd, POLLERR));
	masks("poll", k.fd);
	retd("recv", recv(k.fd, b, 16, 0), b);
	ret("recv", recv(k.fd, b, 16, 0));
	ret("recv", recv(k.fd, b, 16, 0));
	masks("poll", k.fd);
	ret("send", send(k.fd, "x", 1, MSG_NOSIGNAL));
	mask("peer_poll", (int)p_poll(&k, 0, 1000));
	peer_ret("peer_send", p_send(&k, "x"));
	peer_text(&k, 10);
}

/* ... and after SHUT_RD alone it is read. */
CASE(close, data_after_shut_rd, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	ret("shut", shutdown(k.fd, SHUT_RD));
	p_send(&k, "abc");
	wait_avail(k.fd, 3);
	retd("recv", recv(k.fd, b, 2, 0), b);
	retd("recv", recv(k.fd, b, 16, 0), b);
	ret("recv", recv(k.fd, b, 16, 0));
	p_send(&k, "def");
	wait_avail(k.fd, 3);
	retd("recv", recv(k.fd, b, 16, MSG_DONTWAIT), b);
	ret("recv", recv(k.fd, b, 16, MSG_DONTWAIT));
}

CASE(close, shut_wr_then_rd, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	ret("wr", shutdown(k.fd, SHUT_WR));
	ret("rd", shutdown(k.fd, SHUT_RD));
	masks("poll", k.fd);
	ret("recv", recv(k.fd, b, 16, 0));
	peer_text(&k, 1);
}

CASE(close, shut_twice, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("wr", shutdown(k.fd, SHUT_WR));
	ret("wr", shutdown(k.fd, SHUT_WR));
	ret("rdwr", shutdown(k.fd, SHUT_RDWR));
	peer_text(&k, 1);
	ret("rd", shutdown(k.fd, SHUT_RD));
}

CASE(close, shut_after_everything, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	shutdown(k.fd, SHUT_WR);
	peer_text(&k, 1);
	p_close(&k);
	ret("recv", recv(k.fd, b, 8, 0));
	/* both ends are gone: the connection is no longer there to shut down */
	ret("shut", shutdown(k.fd, SHUT_WR));
	ret("shut", shutdown(k.fd, SHUT_RDWR));
	names(k.fd);
}

CASE(close, shut_errors, NOSTATE)
{
	int s = socket(AF_INET, SOCK_STREAM, 0);
	int f = temp_file(1, 1);
	struct conn k;

	conf_pair(&k);
	ret("unconnected", shutdown(s, SHUT_WR));
	ret("closed", shutdown(999, SHUT_WR));
	ret("file", shutdown(f, SHUT_WR));
	ret("how3", shutdown(k.fd, 3));
	ret("how-1", shutdown(k.fd, -1));
}

CASE(close, shut_wr_data_in_flight, 0)
{
	struct conn k;
	long n = 300000;

	conf_pair(&k);
	ret("sendn", sendn(k.fd, n, 2));
	ret("shut", shutdown(k.fd, SHUT_WR));
	peer_ret("peer", p_recvall(&k, 2));
}

CASE(close, eof_is_sticky, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	p_close(&k);
	for (int i = 0; i < 3; i++)
		ret("recv", recv(k.fd, b, 8, 0));
	ret("peek", recv(k.fd, b, 8, MSG_PEEK));
	ret("dontwait", recv(k.fd, b, 8, MSG_DONTWAIT));
	so_error(k.fd);
	names(k.fd);
}

CASE(close, data_then_close, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	p_send(&k, "last words");
	p_close(&k);
	yes("rdhup", wait_ev(k.fd, POLLRDHUP));
	retd("recv", recv(k.fd, b, 16, 0), b);
	ret("recv", recv(k.fd, b, 16, 0));
}

CASE(close, big_then_close, 0)
{
	struct conn k;
	long n = 200000;

	conf_pair(&k);
	peer_ret("peer", p_sendn(&k, n, 3));
	p_close(&k);
	nap(20);
	ret("recvn", recvn(k.fd, n, 3));
	ret("eof", recvn(k.fd, 1, 3));
}

CASE(close, ours_big_then_close, 0)
{
	struct conn k;
	long n = 200000;

	conf_pair(&k);
	ret("sendn", sendn(k.fd, n, 3));
	ret("close", close(k.fd));
	nap(20);
	peer_ret("peer", p_recvall(&k, 3));
}

/* close with unread data is a reset */
CASE(close, unread_data_resets, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	ret("send", send(k.fd, "unread", 6, 0));
	mask("peer_poll", (int)p_poll(&k, POLLIN, 1000));
	p_close(&k);
	yes("err", wait_ev(k.fd, POLLERR | POLLHUP));
	masks("poll", k.fd);
	ret("recv", recv(k.fd, b, 16, 0));
	ret("recv", recv(k.fd, b, 16, 0));
	ret("send", send(k.fd, "x", 1, MSG_NOSIGNAL));
}

CASE(close, unread_data_resets_data_for_us, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	p_send(&k, "for us");
	wait_avail(k.fd, 6);
	ret("send", send(k.fd, "unread", 6, 0));
	mask("peer_poll", (int)p_poll(&k, POLLIN, 1000));
	p_close(&k);
	yes("err", wait_ev(k.fd, POLLERR | POLLHUP));
	/* tcp_reset() keeps what is in the receive queue; recv takes it before the error */
	retd("recv", recv(k.fd, b, 16, 0), b);
	ret("recv", recv(k.fd, b, 16, 0));
	ret("recv", recv(k.fd, b, 16, 0));
}

CASE(close, ours_with_unread, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	p_send(&k, "unread");
	wait_avail(k.fd, 6);
	ret("close", close(k.fd));
	mask("peer_poll", (int)p_poll(&k, POLLIN | POLLRDHUP, 1000));
	peer_ret("peer_recv", p_recvnb(&k, b, 8));
	peer_ret("peer_recv", p_recvnb(&k, b, 8));
}

CASE(close, half_read_resets, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	ret("send", send(k.fd, "abcdef", 6, 0));
	peer_text(&k, 3);
	p_close(&k);
	yes("err", wait_ev(k.fd, POLLERR));
	so_error(k.fd);
	so_error(k.fd);
	ret("recv", recv(k.fd, b, 16, 0));
}

CASE(close, peeked_only_resets, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	p_send(&k, "abc");
	wait_avail(k.fd, 3);
	retd("peek", recv(k.fd, b, 16, MSG_PEEK), b);
	ret("close", close(k.fd));
	mask("peer_poll", (int)p_poll(&k, POLLIN | POLLRDHUP, 1000));
	peer_ret("peer_recv", p_recvnb(&k, b, 8));
}

CASE(close, linger0_resets, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	p_rst(&k);
	yes("err", wait_ev(k.fd, POLLERR | POLLHUP));
	masks("poll", k.fd);
	so_error(k.fd);
	masks("poll", k.fd);
	ret("recv", recv(k.fd, b, 16, 0));
	names(k.fd);
}

CASE(close, linger0_ours, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	linger_set(k.fd, 1, 0);
	ret("close", close(k.fd));
	mask("peer_poll", (int)p_poll(&k, POLLIN | POLLRDHUP, 1000));
	peer_ret("peer_recv", p_recvnb(&k, b, 8));
	peer_ret("peer_recv", p_recvnb(&k, b, 8));
}

CASE(close, linger0_with_data_before, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	p_send(&k, "abc");
	wait_avail(k.fd, 3);
	p_rst(&k);
	yes("err", wait_ev(k.fd, POLLERR));
	masks("poll", k.fd);
	retd("recv", recv(k.fd, b, 16, 0), b);
	ret("recv", recv(k.fd, b, 16, 0));
	ret("recv", recv(k.fd, b, 16, 0));
}

CASE(close, linger0_shutdown_first, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	ret("send", send(k.fd, "abc", 3, 0));
	peer_text(&k, 3);
	ret("shut", shutdown(k.fd, SHUT_WR));
	mask("peer_poll", (int)p_poll(&k, POLLRDHUP, 1000));
	linger_set(k.fd, 1, 0);
	ret("close", close(k.fd));
	mask("peer_poll", (int)p_poll(&k, POLLERR, 1000));
	peer_ret("peer_recv", p_recvnb(&k, b, 8));
	peer_ret("peer_recv", p_recvnb(&k, b, 8));
}

CASE(close, linger_get_set, 0)
{
	struct conn k;
	struct linger lg = { 9, 9 };
	socklen_t l = sizeof(lg);

	conf_pair(&k);
	ret("get", getsockopt(k.fd, SOL_SOCKET, SO_LINGER, &lg, &l));
	out(" %d,%d", lg.l_onoff, lg.l_linger);
	linger_set(k.fd, 1, 7);
	getsockopt(k.fd, SOL_SOCKET, SO_LINGER, &lg, &l);
	out(" %d,%d", lg.l_onoff, lg.l_linger);
}

CASE(close, linger_waits_for_reader, 0)
{
	struct conn k;
	long n, t;

	conf_pair(&k);
	n = fill(k.fd);
	linger_set(k.fd, 1, 3);
	p_later(&k, 100, OP_RECVALL, 0, 7, NULL);
	t = now_ms();
	ret("close", close(k.fd));
	took("waited", t, 50, 2500);
	yes("all", p_done() == n);
}

CASE(close, linger_times_out, 0)
{
	struct conn k;
	long n, t;

	conf_pair(&k);
	n = fill(k.fd);
	linger_set(k.fd, 1, 1);
	t = now_ms();
	ret("close", close(k.fd));
	took("waited", t, 900, 2500);
	yes("all", p_recvall(&k, 7) == n);
}

/* with time for the fast path to be entered behind what is not read */
CASE(close, linger_a_while_later, 0)
{
	struct conn k;
	long n, t;
	char b[16384];

	conf_pair(&k);
	n = fill(k.fd);
	nap(300);
	for (int full = 0; full < 100;) {
		long r;

		pattern(b, sizeof(b), (uint64_t)n, 7);
		r = send(k.fd, b, sizeof(b), MSG_DONTWAIT);
		if (r > 0) {
			n += r;
		} else {
			full++;
			nap(2);
		}
	}
	linger_set(k.fd, 1, 1);
	t = now_ms();
	ret("close", close(k.fd));
	took("waited", t, 900, 2500);
	yes("all", p_recvall(&k, 7) == n);
}

CASE(close, linger_nothing_to_wait_for, 0)
{
	struct conn k;
	long t;

	conf_pair(&k);
	linger_set(k.fd, 1, 3);
	send(k.fd, "abc", 3, 0);
	peer_text(&k, 3);
	p_close(&k);
	t = now_ms();
	ret("close", close(k.fd));
	took("waited", t, 0, 1000);
}

CASE(close, names_open, 0)
{
	struct conn k;

	conf_pair(&k);
	names(k.fd);
	ret("small", getpeername(k.fd, conf_bad, &(socklen_t){ 16 }));
	ret("negative", getpeername(k.fd, conf_bad, &(socklen_t){ (socklen_t)-1 }));
}

CASE(close, names_after_peer_close, 0)
{
	struct conn k;

	conf_pair(&k);
	p_close(&k);
	wait_ev(k.fd, POLLRDHUP);
	names(k.fd);
}

CASE(close, names_after_reset, 0)
{
	struct conn k;

	conf_pair(&k);
	p_rst(&k);
	wait_ev(k.fd, POLLERR);
	names(k.fd);
	so_error(k.fd);
	names(k.fd);
}

CASE(close, connect_again, 0)
{
	struct conn k;
	struct sockaddr_storage ss;
	socklen_t l = sizeof(ss);

	conf_pair(&k);
	getpeername(k.fd, (struct sockaddr *)&ss, &l);
	ret("connected", connect(k.fd, (struct sockaddr *)&ss, l));
	ret("listen", listen(k.fd, 1));
	ret("bind", bind(k.fd, (struct sockaddr *)&ss, l));
	ret("accept", accept(k.fd, NULL, NULL));
}

CASE(close, connect_unspec_disconnects, 0)
{
	struct conn k;
	struct sockaddr sa = { .sa_family = AF_UNSPEC };
	char b[8];

	conf_pair(&k);
	ret("unspec", connect(k.fd, &sa, sizeof(sa)));
	mask("peer_poll", (int)p_poll(&k, POLLIN | POLLRDHUP, 1000));
	peer_ret("peer_recv", p_recvnb(&k, b, 8));
	names(k.fd);
	ret("recv", recv(k.fd, b, 8, MSG_DONTWAIT));
	masks("poll", k.fd);
}

CASE(close, reuse_after_disconnect, 0)
{
	struct conn k;
	struct sockaddr sa = { .sa_family = AF_UNSPEC };
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(conf_family, 4, &ss, &l);
	char b[8];
	int a;

	conf_pair(&k);
	send(k.fd, "old", 3, 0);
	peer_text(&k, 3);
	ret("unspec", connect(k.fd, &sa, sizeof(sa)));
	if (ret("connect", connect(k.fd, (struct sockaddr *)&ss, l)) < 0)
		return;
	a = accept(ls, NULL, NULL);
	ret("send", send(k.fd, "new", 3, 0));
	retd("recv", recv(a, b, 8, 0), b);
	ret("send", send(a, "back", 4, 0));
	retd("recv", recv(k.fd, b, 8, 0), b);
}

CASE(close, double_close, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("close", close(k.fd));
	/* cppcheck-suppress doubleFree */
	ret("close", close(k.fd));
	ret("send", send(k.fd, "x", 1, 0));
	ret("shut", shutdown(k.fd, SHUT_WR));
}

CASE(close, number_is_reused, 0)
{
	struct conn k, n;
	char b[16];

	conf_pair(&k);
	send(k.fd, "one", 3, 0);
	close(k.fd);
	conf_pair_fam(&n, conf_family, conf_server);
	send(n.fd, "two", 3, 0);
	peer_text(&k, 8);
	peer_text(&n, 3);
	p_send(&n, "abc");
	retd("recv", recv(n.fd, b, 16, 0), b);
}

CASE(close, file_on_reused_number, 0)
{
	struct conn k;
	char b[16];
	int f, want;

	conf_pair(&k);
	want = k.fd;
	close(k.fd);
	f = temp_file(8, 1);
	if (f != want && dup2(f, want) != want)
		return;
	ret("write", pwrite(want, "file", 4, 0));
	retd("read", pread(want, b, 4, 0), b);
	ret("send", send(want, "x", 1, 0));
	peer_text(&k, 1);
}

/* --- the other process ends --- */

CASE(close, peer_exits, TWO)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	p_send(&k, "bye");
	p_exit(OP_EXIT);
	retd("recv", recv(k.fd, b, 16, MSG_WAITALL), b);
	ret("recv", recv(k.fd, b, 16, 0));
	names(k.fd);
}

CASE(close, peer_exits_big, TWO)
{
	struct conn k;

	conf_pair(&k);
	peer_ret("peer", p_sendn(&k, 200000, 3));
	p_exit(OP_EXIT);
	nap(30);
	ret("recvn", recvn(k.fd, 200000, 3));
	ret("eof", recvn(k.fd, 1, 3));
}

CASE(close, peer_exits_with_unread, TWO)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	send(k.fd, "unread", 6, 0);
	mask("peer_poll", (int)p_poll(&k, POLLIN, 1000));
	p_exit(OP_EXIT);
	yes("err", wait_ev(k.fd, POLLERR));
	ret("recv", recv(k.fd, b, 16, 0));
}

CASE(close, peer_killed, TWO)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	p_send(&k, "bye");
	p_exit(OP_KILL);
	retd("recv", recv(k.fd, b, 16, MSG_WAITALL), b);
	ret("recv", recv(k.fd, b, 16, 0));
}

/* Its kernel has said FIN before, and says nothing now: nothing is wrong until something is sent. */
CASE(close, peer_shut_then_killed, TWO)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	p_send(&k, "bye");
	p_shut(&k, SHUT_WR);
	yes("end", wait_ev(k.fd, POLLRDHUP));
	p_exit(OP_KILL);
	nap(300);
	retd("recv", recv(k.fd, b, 16, MSG_WAITALL), b);
	masks("poll", k.fd);
	ret("send", send(k.fd, "x", 1, MSG_NOSIGNAL));
	yes("reset", wait_ev(k.fd, POLLERR));
	ret("send", send(k.fd, "x", 1, MSG_NOSIGNAL));
}

CASE(close, peer_killed_big, TWO)
{
	struct conn k;

	conf_pair(&k);
	peer_ret("peer", p_sendn(&k, 200000, 3));
	p_exit(OP_KILL);
	nap(30);
	ret("recvn", recvn(k.fd, 200000, 3));
	ret("eof", recvn(k.fd, 1, 3));
}

CASE(close, peer_killed_with_unread, TWO)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	send(k.fd, "unread", 6, 0);
	mask("peer_poll", (int)p_poll(&k, POLLIN, 1000));
	p_exit(OP_KILL);
	yes("err", wait_ev(k.fd, POLLERR));
	ret("recv", recv(k.fd, b, 16, 0));
	ret("recv", recv(k.fd, b, 16, 0));
}

CASE(close, peer_killed_while_we_block_in_recv, TWO)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	p_later(&k, 80, OP_KILL, 0, 0, NULL);
	ret("recv", recv(k.fd, b, 16, 0));
}

CASE(close, peer_killed_while_we_block_in_send, TWO)
{
	struct conn k;

	conf_pair(&k);
	signal(SIGPIPE, SIG_IGN);
	fill(k.fd);
	p_later(&k, 80, OP_KILL, 0, 0, NULL);
	ret("send", send(k.fd, "x", 1, 0));
	ret("send", send(k.fd, "x", 1, 0));
}

CASE(close, peer_killed_while_we_poll, TWO)
{
	struct conn k;

	conf_pair(&k);
	p_later(&k, 80, OP_KILL, 0, 0, NULL);
	poll_say("poll", k.fd, POLLIN | POLLRDHUP, 3000);
}

CASE(close, peer_killed_write_epipe, TWO)
{
	struct conn k;

	conf_pair(&k);
	p_exit(OP_KILL);
	yes("rdhup", wait_ev(k.fd, POLLRDHUP));
	ret("first", send(k.fd, "x", 1, MSG_NOSIGNAL));
	yes("err", wait_ev(k.fd, POLLERR | POLLHUP));
	ret("second", send(k.fd, "x", 1, MSG_NOSIGNAL));
}

CASE(close, peer_stopped_for_a_while, TWO)
{
	struct conn k;
	pid_t pid;
	char b[8];

	conf_pair(&k);
	pid = p_pid();
	kill(pid, SIGSTOP);
	ret("sendn", sendn(k.fd, 100000, 3));
	ret("recv", recv(k.fd, b, 8, MSG_DONTWAIT));
	poll_say("poll", k.fd, POLLIN, 50);
	kill(pid, SIGCONT);
	peer_ret("peer", p_recvn(&k, 100000, 3));
	p_send(&k, "abc");
	retd("recv", recv(k.fd, b, 8, 0), b);
}

CASE(close, we_close_while_peer_is_stopped, TWO)
{
	struct conn k;
	pid_t pid;
	long t;

	conf_pair(&k);
	pid = p_pid();
	kill(pid, SIGSTOP);
	ret("sendn", sendn(k.fd, 50000, 3));
	t = now_ms();
	ret("close", close(k.fd));
	took("close", t, 0, 500);
	kill(pid, SIGCONT);
	peer_ret("peer", p_recvall(&k, 3));
}

/* what we had sent before our own exit must reach the peer, whichever way we exit */
static void exit_with(int how)
{
	struct conn k;
	int w = 0;
	pid_t pid;

	/* the child makes the connection, so that it is the one that leaves it behind; its peer is ours */
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(conf_family, 4, &ss, &l);

	pid = fork();
	if (!pid) {
		k.fd = socket(ss.ss_family, SOCK_STREAM, 0);
		if (connect(k.fd, (struct sockaddr *)&ss, l))
			_exit(9);
		if (send(k.fd, "hi", 2, 0) != 2 || read(k.fd, &w, 2) != 2)
			_exit(8);
		nap(60);
		if (sendn(k.fd, 150000, 4) != 150000)
			_exit(7);
		switch (how) {
		case 0:
			exit(0);
		case 1:
			_exit(0);
		case 2:
			quick_exit(0);
		case 3:
			kill(getpid(), SIGKILL);
			break;
		case 4:
			abort();
		case 5:
			pthread_exit(NULL);
		case 6:
			syscall(SYS_exit_group, 0);
			break;
		}
		_exit(6);
	}
	k.fd = accept(ls, NULL, NULL);
	if (read(k.fd, &w, 2) != 2 || write(k.fd, "ho", 2) != 2)
		bail("greet");
	waitpid(pid, &w, 0);
	status("child", w);
	ret("recvn", recvn(k.fd, 150000, 4));
	ret("eof", recvn(k.fd, 1, 4));
}

CASE(exit, exit, ONE)
{
	exit_with(0);
}
CASE(exit, _exit, ONE)
{
	exit_with(1);
}
CASE(exit, quick_exit, ONE)
{
	exit_with(2);
}
CASE(exit, sigkill, ONE)
{
	exit_with(3);
}
CASE(exit, abort, ONE)
{
	exit_with(4);
}
CASE(exit, pthread_exit_of_main, ONE)
{
	exit_with(5);
}
CASE(exit, raw_exit_group, ONE)
{
	exit_with(6);
}
