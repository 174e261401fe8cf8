/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* libcases_send.c - the sending calls, full buffers, sendfile, splice, urgent data, zerocopy */
#include "tests/conformance/conf.h"

#include <linux/errqueue.h>
#include <linux/sockios.h>

extern const char conf_file_send;
const char conf_file_send = 1;

static void got(struct conn *k, long n)
{
	char b[2049];
	long r = p_recv(k, b, n);

	if (r < 0)
		peer_ret("peer", r);
	else
		retd("peer", r, b);
}

/* the peer has nothing more for us to see */
static void got_rest(struct conn *k)
{
	char b[65];
	long r = p_recvnb(k, b, 64);

	if (r < 0)
		peer_ret("peer_rest", r);
	else
		retd("peer_rest", r, b);
}

static void sigpipes(void)
{
	out(" SIGPIPE=%d", (int)sig_count[SIGPIPE]);
	sig_count[SIGPIPE] = 0;
}

CASE(send, simple, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("send", send(k.fd, "hello", 5, 0));
	got(&k, 5);
	ret("write", write(k.fd, "world", 5));
	got(&k, 5);
	ret("sendto", sendto(k.fd, "again", 5, 0, NULL, 0));
	got(&k, 5);
	got_rest(&k);
}

CASE(send, zero_length, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("send0", send(k.fd, "x", 0, 0));
	ret("write0", write(k.fd, "x", 0));
	/* cppcheck-suppress nullPointer */
	ret("null0", send(k.fd, NULL, 0, 0));
	ret("sendto0", sendto(k.fd, "", 0, 0, NULL, 0));
	got_rest(&k);
	ret("send", send(k.fd, "a", 1, 0));
	got(&k, 1);
}

CASE(send, immediate_for_peer, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	ret("send", send(k.fd, "now", 3, 0));
	/* over loopback what send() took can be received without waiting */
	peer_ret("nb", p_recvnb(&k, b, 8));
	out(" %s", b);
}

CASE(send, sendto_address_ignored, 0)
{
	struct conn k;
	struct sockaddr_storage ss;
	socklen_t l = conf_addr(AF_INET, 9, &ss);

	conf_pair(&k);
	ret("sendto", sendto(k.fd, "abc", 3, 0, (struct sockaddr *)&ss, l));
	got(&k, 3);
	ret("efault", sendto(k.fd, "abc", 3, 0, conf_bad, l));
	ret("long", sendto(k.fd, "abc", 3, 0, (struct sockaddr *)&ss, 5000));
	got_rest(&k);
}

CASE(send, writev_simple, 0)
{
	struct conn k;
	char a[] = "ab", c[] = "cdef", e[] = "g";
	struct iovec iov[5] = { { a, 2 }, { NULL, 0 }, { c, 4 }, { conf_bad, 0 }, { e, 1 } };

	conf_pair(&k);
	ret("writev", writev(k.fd, iov, 5));
	got(&k, 7);
	ret("none", writev(k.fd, iov, 0));
	got_rest(&k);
}

CASE(send, writev_edges, 0)
{
	struct conn k;
	char a[16] = "0123456789";
	struct iovec iov[2] = { { a, 4 }, { a, conf_max } };
	struct iovec sum[2] = { { a, conf_max >> 1 }, { a, conf_max >> 1 } };
	struct iovec *many = calloc(1025, sizeof(*many));

	conf_pair(&k);
	ret("minus", writev(k.fd, iov, conf_minus));
	ret("null", writev(k.fd, conf_null, 1));
	ret("negative", writev(k.fd, iov, 2));
	yes("sum", writev(k.fd, sum, 2) != 0);
	ret("1025", writev(k.fd, many, 1025));
	for (int i = 0; i < 1024; i++)
		many[i] = (struct iovec){ a + i % 10, 1 };
	ret("pwritev", pwritev(k.fd, many, 1, 0));
	ret("pwrite", pwrite(k.fd, a, 1, 0));
	got_rest(&k);
	ret("1024", writev(k.fd, many, 1024));
	got(&k, 1024);
	got_rest(&k);
}

CASE(send, sendmsg_simple, 0)
{
	struct conn k;
	char a[] = "ab", c[] = "cdef";
	struct iovec iov[3] = { { a, 2 }, { NULL, 0 }, { c, 4 } };
	struct msghdr m = { .msg_iov = iov, .msg_iovlen = 3, .msg_flags = 0x7fff };

	conf_pair(&k);
	ret("sendmsg", sendmsg(k.fd, &m, 0));
	got(&k, 6);
	m.msg_iovlen = 0;
	ret("none", sendmsg(k.fd, &m, 0));
	got_rest(&k);
}

CASE(send, sendmsg_edges, 0)
{
	struct conn k;
	struct iovec *many = calloc(1025, sizeof(*many));
	struct msghdr m = { .msg_iov = many, .msg_iovlen = 1025 };
	struct msghdr null = { .msg_iov = NULL, .msg_iovlen = 1 };
	struct iovec bad = { conf_bad, 4 };
	struct msghdr badm = { .msg_iov = &bad, .msg_iovlen = 1 };
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr h;
	} u = { .h = { .cmsg_len = CMSG_LEN(sizeof(int)),
		       .cmsg_level = SOL_SOCKET,
		       .cmsg_type = SCM_RIGHTS } };
	char a[] = "abc";
	struct iovec iov = { a, 3 };
	struct msghdr c = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &u, .msg_controllen = sizeof(u.buf)
	};

	conf_pair(&k);
	ret("1025", sendmsg(k.fd, &m, 0));
	ret("null_iov", sendmsg(k.fd, &null, 0));
	ret("bad", sendmsg(k.fd, &badm, 0));
	ret("null_msg", (long)syscall(SYS_sendmsg, k.fd, NULL, 0));
	got_rest(&k);
	/* descriptors cannot travel over TCP; the kernel takes the bytes and ignores them */
	memcpy(CMSG_DATA(&u.h), &k.fd, sizeof(int));
	ret("scm_rights", sendmsg(k.fd, &c, 0));
	u.h.cmsg_level = SOL_SOCKET;
	u.h.cmsg_type = 9999;
	ret("unknown_type", sendmsg(k.fd, &c, 0));
	u.h.cmsg_len = 1;
	ret("bad_len", sendmsg(k.fd, &c, 0));
	got(&k, 3);
	got_rest(&k);
}

CASE(send, sendmmsg, 0)
{
	struct conn k;
	char a[] = "ab", c[] = "cdef";
	struct iovec iov[2] = { { a, 2 }, { c, 4 } };
	struct mmsghdr m[3] = { { .msg_hdr = { .msg_iov = &iov[0], .msg_iovlen = 1 } },
				{ .msg_hdr = { .msg_iov = &iov[1], .msg_iovlen = 1 } },
				{ .msg_hdr = { .msg_iov = iov, .msg_iovlen = 2 } } };

	conf_pair(&k);
	ret("zero", sendmmsg(k.fd, m, 0, 0));
	ret("sendmmsg", sendmmsg(k.fd, m, 3, 0));
	out(" len=%u,%u,%u", m[0].msg_len, m[1].msg_len, m[2].msg_len);
	got(&k, 12);
	iov[1].iov_base = conf_bad;
	ret("second_bad", sendmmsg(k.fd, m, 2, 0));
	ret("first_bad", sendmmsg(k.fd, m + 1, 1, 0));
	got(&k, 2);
	got_rest(&k);
}

CASE(send, efault, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("send", send(k.fd, conf_bad, 4, 0));
	ret("write", write(k.fd, conf_bad, 4));
	got_rest(&k);
	ret("send", send(k.fd, "ok", 2, 0));
	got(&k, 2);
}

CASE(send, efault_second_iov, 0)
{
	struct conn k;
	char a[] = "ab";
	struct iovec iov[2] = { { a, 2 }, { conf_bad, 4 } };

	conf_pair(&k);
	ret("writev", writev(k.fd, iov, 2));
	got_rest(&k);
	ret("send", send(k.fd, "ok", 2, 0));
	got(&k, 2);
}

CASE(send, efault_after_much, 0)
{
	struct conn k;
	static char a[300000];
	struct iovec iov[2] = { { a, sizeof(a) }, { conf_bad, 4 } };
	ssize_t r;

	conf_pair(&k);
	pattern(a, sizeof(a), 0, 7);
	r = writev(k.fd, iov, 2);
	/* How much the kernel had copied before the fault depends on its fragments. */
	ret("some", r > 0 && r <= (ssize_t)sizeof(a));
	ret("peer", r > 0 && p_recvn(&k, r, 7) == r);
	got_rest(&k);
}

CASE(send, efault_tail, 0)
{
	struct conn k;
	char *p = bad_tail(4);

	conf_pair(&k);
	memcpy(p, "abcd", 4);
	ret("over", send(k.fd, p, 8, 0));
	got_rest(&k);
	ret("fits", send(k.fd, p, 4, 0));
	got(&k, 4);
}

CASE(send, bad_fds, NOSTATE)
{
	int s = socket(AF_INET, SOCK_STREAM, 0);
	int l = conf_listen(AF_INET, 1, NULL, NULL);
	int f = temp_file(10, 1);

	sig_catch(SIGPIPE, 0);
	ret("closed", send(999, "x", 1, 0));
	/* cppcheck-suppress invalidFunctionArg */
	ret("minus", send(-1, "x", 1, 0));
	ret("file", send(f, "x", 1, 0));
	ret("unconnected", send(s, "x", 1, 0));
	sigpipes();
	ret("unconnected_write", write(s, "x", 1));
	sigpipes();
	ret("unconnected_nosignal", send(s, "x", 1, MSG_NOSIGNAL));
	sigpipes();
	ret("listening", send(l, "x", 1, 0));
	sigpipes();
	ret("file_efault", send(f, conf_bad, 1, 0));
}

CASE(send, more, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("more", send(k.fd, "ab", 2, MSG_MORE));
	ret("more", send(k.fd, "cd", 2, MSG_MORE));
	ret("last", send(k.fd, "ef", 2, 0));
	got(&k, 6);
	got_rest(&k);
}

/* nothing follows: it goes out by itself before long */
CASE(send, more_alone_arrives, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("more", send(k.fd, "ab", 2, MSG_MORE));
	got(&k, 2);
}

CASE(send, more_then_shutdown, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("more", send(k.fd, "ab", 2, MSG_MORE));
	ret("shut", shutdown(k.fd, SHUT_WR));
	got(&k, 5);
}

CASE(send, more_then_close, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("more", send(k.fd, "ab", 2, MSG_MORE));
	ret("close", close(k.fd));
	got(&k, 5);
}

CASE(send, cork, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("cork", set_int(k.fd, IPPROTO_TCP, TCP_CORK, 1));
	ret("get", get_int(k.fd, IPPROTO_TCP, TCP_CORK));
	ret("send", send(k.fd, "ab", 2, 0));
	ret("send", send(k.fd, "cd", 2, 0));
	ret("uncork", set_int(k.fd, IPPROTO_TCP, TCP_CORK, 0));
	got(&k, 4);
	ret("cork", set_int(k.fd, IPPROTO_TCP, TCP_CORK, 1));
	ret("send", send(k.fd, "ef", 2, 0));
	got(&k, 2);
}

CASE(send, odd_flags, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("confirm", send(k.fd, "a", 1, MSG_CONFIRM));
	ret("dontroute", send(k.fd, "b", 1, MSG_DONTROUTE));
	ret("eor", send(k.fd, "c", 1, MSG_EOR));
	ret("peek", send(k.fd, "d", 1, MSG_PEEK));
	ret("waitall", send(k.fd, "e", 1, MSG_WAITALL));
	ret("unknown", send(k.fd, "f", 1, 0x01000000));
	ret("dontwait", send(k.fd, "g", 1, MSG_DONTWAIT));
	got(&k, 7);
}

CASE(send, nagle_default, 0)
{
	struct conn k;

	conf_pair_raw(&k, conf_family, conf_server);
	conf_settle(&k);
	for (int i = 0; i < 10; i++)
		send(k.fd, "0123456789" + i, 1, 0);
	got(&k, 10);
}

CASE(send, epipe_after_shutdown, 0)
{
	struct conn k;

	conf_pair(&k);
	sig_catch(SIGPIPE, 0);
	ret("shut", shutdown(k.fd, SHUT_WR));
	ret("send", send(k.fd, "x", 1, 0));
	sigpipes();
	ret("write", write(k.fd, "x", 1));
	sigpipes();
	ret("nosignal", send(k.fd, "x", 1, MSG_NOSIGNAL));
	sigpipes();
	ret("dontwait", send(k.fd, "x", 1, MSG_DONTWAIT));
	sigpipes();
	ret("writev", writev(k.fd, &(struct iovec){ (char[]){ "x" }, 1 }, 1));
	sigpipes();
	ret("zero", send(k.fd, "", 0, 0));
	sigpipes();
	ret("write0", write(k.fd, "", 0));
	sigpipes();
	ret("efault", send(k.fd, conf_bad, 1, 0));
	sigpipes();
	got(&k, 1);
}

CASE(send, sigpipe_default_kills, 0)
{
	struct conn k;
	pid_t pid;
	int w = 0;

	conf_pair(&k);
	shutdown(k.fd, SHUT_WR);
	pid = fork();
	if (!pid) {
		if (write(k.fd, "x", 1))
			_exit(3);
		_exit(4);
	}
	waitpid(pid, &w, 0);
	status("child", w);
}

CASE(send, sigpipe_ignored, 0)
{
	struct conn k;

	conf_pair(&k);
	signal(SIGPIPE, SIG_IGN);
	shutdown(k.fd, SHUT_WR);
	ret("write", write(k.fd, "x", 1));
}

CASE(send, sigpipe_blocked_is_pending, 0)
{
	struct conn k;
	sigset_t s, p;

	conf_pair(&k);
	sigemptyset(&s);
	sigaddset(&s, SIGPIPE);
	sigprocmask(SIG_BLOCK, &s, NULL);
	shutdown(k.fd, SHUT_WR);
	ret("write", write(k.fd, "x", 1));
	sigpending(&p);
	yes("pending", sigismember(&p, SIGPIPE));
}

/* the peer has closed: the first write is taken and answered by a reset, the next gives EPIPE */
CASE(send, after_peer_close, 0)
{
	struct conn k;

	conf_pair(&k);
	sig_catch(SIGPIPE, 0);
	p_close(&k);
	yes("rdhup", wait_ev(k.fd, POLLRDHUP));
	ret("first", send(k.fd, "x", 1, 0));
	sigpipes();
	yes("err", wait_ev(k.fd, POLLERR | POLLHUP));
	ret("second", send(k.fd, "y", 1, 0));
	sigpipes();
	ret("third", send(k.fd, "z", 1, MSG_NOSIGNAL));
	sigpipes();
}

CASE(send, after_peer_close_so_error, 0)
{
	struct conn k;

	conf_pair(&k);
	p_close(&k);
	wait_ev(k.fd, POLLRDHUP);
	ret("first", send(k.fd, "x", 1, MSG_NOSIGNAL));
	yes("err", wait_ev(k.fd, POLLERR | POLLHUP));
	out(" so_error=%s", err_name(get_int(k.fd, SOL_SOCKET, SO_ERROR)));
	out(" so_error=%s", err_name(get_int(k.fd, SOL_SOCKET, SO_ERROR)));
	ret("second", send(k.fd, "y", 1, MSG_NOSIGNAL));
}

CASE(send, after_peer_close_recv, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	p_close(&k);
	wait_ev(k.fd, POLLRDHUP);
	ret("send", send(k.fd, "x", 1, MSG_NOSIGNAL));
	wait_ev(k.fd, POLLERR | POLLHUP);
	ret("recv", recv(k.fd, b, 8, 0));
	ret("recv", recv(k.fd, b, 8, 0));
}

CASE(send, after_reset, 0)
{
	struct conn k;

	conf_pair(&k);
	sig_catch(SIGPIPE, 0);
	p_rst(&k);
	yes("err", wait_ev(k.fd, POLLERR | POLLHUP));
	ret("first", send(k.fd, "x", 1, 0));
	sigpipes();
	ret("second", send(k.fd, "y", 1, 0));
	sigpipes();
	ret("nosignal", send(k.fd, "z", 1, MSG_NOSIGNAL));
	sigpipes();
}

/* shutdown(SHUT_RD) at the peer does not stop the sender */
CASE(send, after_peer_shut_rd, 0)
{
	struct conn k;

	conf_pair(&k);
	p_shut(&k, SHUT_RD);
	ret("send", send(k.fd, "abc", 3, 0));
	ret("send", send(k.fd, "def", 3, 0));
	poll_say("poll", k.fd, POLLIN | POLLOUT | POLLRDHUP, 20);
}

CASE(send, fill_and_drain, 0)
{
	struct conn k;
	long n;

	conf_pair(&k);
	n = fill(k.fd);
	yes("at_least_64k", n >= 65536);
	ret("full", send(k.fd, "x", 1, MSG_DONTWAIT));
	poll_say("poll", k.fd, POLLOUT, 0);
	yes("all", p_recvn(&k, n, 7) == n);
	poll_say("poll", k.fd, POLLOUT, 1000);
	ret("send", send(k.fd, "x", 1, MSG_DONTWAIT));
	got(&k, 1);
}

CASE(send, fill_nonblock_fd, 0)
{
	struct conn k;
	long n;

	conf_pair(&k);
	nonblock(k.fd, true);
	n = fill(k.fd);
	yes("some", n > 0);
	ret("write", write(k.fd, "x", 1));
	ret("writev", writev(k.fd, &(struct iovec){ (char[]){ "x" }, 1 }, 1));
	ret("sendmsg", sendmsg(k.fd,
			       &(struct msghdr){ .msg_iov = &(struct iovec){ (char[]){ "x" }, 1 },
						 .msg_iovlen = 1 },
			       0));
	yes("all", p_recvn(&k, n, 7) == n);
	got_rest(&k);
}

CASE(send, fill_then_close_delivers, 0)
{
	struct conn k;
	long n;

	conf_pair(&k);
	n = fill(k.fd);
	ret("close", close(k.fd));
	yes("all", p_recvall(&k, 7) == n);
}

CASE(send, fill_then_shutdown_delivers, 0)
{
	struct conn k;
	char b[8];
	long n;

	conf_pair(&k);
	n = fill(k.fd);
	ret("shut", shutdown(k.fd, SHUT_WR));
	yes("all", p_recvall(&k, 7) == n);
	peer_ret("back", p_send(&k, "back"));
	retd("recv", recv(k.fd, b, 8, 0), b);
}

CASE(send, blocks_when_full, 0)
{
	struct conn k;
	long n = 16L << 20;
	char *p = malloc((size_t)n);

	conf_pair(&k);
	pattern(p, (size_t)n, 0, 5);
	p_later(&k, 100, OP_RECVN, n, 5, NULL);
	/* a blocking send takes everything */
	yes("all", send(k.fd, p, (size_t)n, 0) == n);
	yes("peer_all", p_done() == n);
}

CASE(send, nonblock_big_is_partial, 0)
{
	struct conn k;
	long n = 64L << 20;
	char *p = malloc((size_t)n);
	long r;

	conf_pair(&k);
	pattern(p, (size_t)n, 0, 5);
	r = send(k.fd, p, (size_t)n, MSG_DONTWAIT);
	yes("partial", r > 0 && r < n);
	yes("peer", p_recvn(&k, r, 5) == r);
	got_rest(&k);
}

CASE(send, sndtimeo, 0)
{
	struct conn k;
	struct timeval tv = { 0, 80000 };
	long t, n;
	long big = 64L << 20;
	char *p;

	conf_pair(&k);
	ret("set", setsockopt(k.fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)));
	n = fill(k.fd);
	t = now_ms();
	ret("full", send(k.fd, "x", 1, 0));
	took("waited", t, 75, 1500);
	yes("all", p_recvn(&k, n, 7) == n);
	p = malloc((size_t)big);
	pattern(p, (size_t)big, 0, 5);
	t = now_ms();
	n = send(k.fd, p, (size_t)big, 0);
	took("waited", t, 75, 2500);
	yes("partial", n > 0 && n < big);
	yes("same", p_recvn(&k, n, 5) == n);
	got_rest(&k);
}

CASE(send, sndbuf_small, 0)
{
	struct conn k;
	long n;

	conf_pair(&k);
	ret("set", set_int(k.fd, SOL_SOCKET, SO_SNDBUF, 16384));
	ret("get", get_int(k.fd, SOL_SOCKET, SO_SNDBUF));
	n = fill(k.fd);
	yes("some", n > 0);
	yes("bounded", n < (8 << 20));
	yes("all", p_recvn(&k, n, 7) == n);
}

CASE(send, unblocked_by_reset, 0)
{
	struct conn k;

	conf_pair(&k);
	sig_catch(SIGPIPE, 0);
	fill(k.fd);
	p_later(&k, 60, OP_RST, 0, 0, NULL);
	ret("send", send(k.fd, "x", 1, 0));
	sigpipes();
	p_done();
	ret("again", send(k.fd, "x", 1, 0));
	sigpipes();
}

/* The call that has moved bytes gives their number; the error is for the next one. */
CASE(send, part_then_reset, 0)
{
	static char big[32 << 20]; /* more than any ring takes */
	struct conn k;
	ssize_t n;

	conf_pair(&k);
	sig_catch(SIGPIPE, 0);
	p_later(&k, 100, OP_RST, 0, 0, NULL);
	n = send(k.fd, big, sizeof(big), 0);
	yes("part", n > 0 && n < (ssize_t)sizeof(big));
	p_done();
	ret("recv", recv(k.fd, big, 8, 0));
	ret("then", recv(k.fd, big, 8, 0));
	ret("send", send(k.fd, "x", 1, 0));
	sigpipes();
}

/* As above, when who accepted it has stopped waiting for a peer meanwhile (RSOCK_WINDOW_MS). */
CASE(send, part_then_reset_later, 0)
{
	static char big[32 << 20];
	struct conn k;
	ssize_t n;

	conf_pair(&k);
	sig_catch(SIGPIPE, 0);
	p_later(&k, 100, OP_RST, 0, 0, NULL);
	n = send(k.fd, big, sizeof(big), 0);
	yes("part", n > 0 && n < (ssize_t)sizeof(big));
	p_done();
	nap(2300);
	ret("send", send(k.fd, "x", 1, 0));
	sigpipes();
	ret("recv", recv(k.fd, big, 8, 0));
	ret("again", send(k.fd, "x", 1, 0));
	sigpipes();
}

CASE(send, unblocked_by_peer_close, 0)
{
	struct conn k;

	conf_pair(&k);
	sig_catch(SIGPIPE, 0);
	fill(k.fd);
	/* data unread at the peer: its close is a reset */
	p_later(&k, 60, OP_CLOSE, 0, 0, NULL);
	ret("send", send(k.fd, "x", 1, 0));
	sigpipes();
	p_done();
}

CASE(send, sendfile_simple, 0)
{
	struct conn k;
	int f = temp_file(100000, 4);
	off_t off = 0;

	conf_pair(&k);
	ret("sendfile", sendfile(k.fd, f, &off, 1000));
	ret("off", off);
	yes("peer", p_recvn(&k, 1000, 4) == 1000);
	ret("pos", lseek(f, 0, SEEK_CUR));
	ret("sendfile", sendfile(k.fd, f, NULL, 1000));
	ret("pos", lseek(f, 0, SEEK_CUR));
	yes("peer", p_recvn(&k, 1000, 4) == 1000);
	off = 99990;
	ret("tail", sendfile(k.fd, f, &off, 1000));
	ret("off", off);
	ret("at_end", sendfile(k.fd, f, &off, 1000));
	/* cppcheck-suppress invalidFunctionArg */
	ret("zero", sendfile(k.fd, f, &off, 0));
	off = 200000;
	ret("beyond", sendfile(k.fd, f, &off, 10));
}

CASE(send, sendfile_whole, 0)
{
	struct conn k;
	long n = 3000000;
	int f = temp_file((size_t)n, 4);
	off_t off = 0;

	conf_pair(&k);
	p_later(&k, 1, OP_RECVN, n, 4, NULL);
	while (off < n && sendfile(k.fd, f, &off, (size_t)(n - off)) > 0)
		;
	ret("off", off);
	peer_ret("peer", p_done());
}

CASE(send, sendfile_nonblock_full, 0)
{
	struct conn k;
	long n = 64L << 20, r;
	int f = temp_file((size_t)n, 4), tries = 0;
	off_t off = 0;

	conf_pair(&k);
	nonblock(k.fd, true);
	while (off < n && tries < 40) {
		r = sendfile(k.fd, f, &off, (size_t)(n - off));
		tries = r > 0 ? 0 : tries + 1;
		if (tries)
			nap(3);
	}
	yes("partial", off > 0 && off < n);
	ret("full", sendfile(k.fd, f, &off, 1000));
	yes("peer", p_recvn(&k, (long)off, 4) == off);
	got_rest(&k);
}

CASE(send, sendfile_errors, 0)
{
	struct conn k;
	int f = temp_file(1000, 4), p[2];
	off_t neg = -5, off = 0;
	int w = open("/dev/null", O_WRONLY);

	conf_pair(&k);
	ret("bad_in", sendfile(k.fd, 999, NULL, 10));
	ret("bad_out", sendfile(999, f, NULL, 10));
	ret("write_only_in", sendfile(k.fd, w, NULL, 10));
	ret("socket_in", sendfile(k.fd, k.fd, NULL, 10));
	ret("socket_to_file", sendfile(w, k.fd, NULL, 10));
	ret("negative", sendfile(k.fd, f, &neg, 10));
	ret("efault", sendfile(k.fd, f, conf_bad, 10));
	if (!pipe(p) && write(p[1], "pipe", 4) == 4) {
		ret("pipe_in_off", sendfile(k.fd, p[0], &off, 4));
		ret("pipe_in", sendfile(k.fd, p[0], NULL, 4));
	}
	ret("copy_file_range", copy_file_range(f, NULL, k.fd, NULL, 10, 0));
	got_rest(&k);
	signal(SIGPIPE, SIG_IGN);
	shutdown(k.fd, SHUT_WR);
	ret("epipe", sendfile(k.fd, f, NULL, 10));
	ret("pos", lseek(f, 0, SEEK_CUR));
}

CASE(send, sendfile_efault_in_order, 0)
{
	struct conn k;
	int f = temp_file(5, 4);
	char b[32], want[6] = "";

	conf_pair(&k);
	send(k.fd, "<", 1, 0);
	sendfile(k.fd, f, NULL, 5);
	send(k.fd, ">", 1, 0);
	peer_ret("peer", p_recv(&k, b, 7));
	pattern(want, 5, 0, 4);
	yes("order", b[0] == '<' && b[6] == '>' && !memcmp(b + 1, want, 5));
}

CASE(send, splice_out, 0)
{
	struct conn k;
	int p[2];

	conf_pair(&k);
	if (pipe(p))
		return;
	ret("write", write(p[1], "spliced", 7));
	ret("splice", splice(p[0], NULL, k.fd, NULL, 4, 0));
	ret("more", splice(p[0], NULL, k.fd, NULL, 100, SPLICE_F_MORE));
	got(&k, 7);
	ret("empty", splice(p[0], NULL, k.fd, NULL, 100, SPLICE_F_NONBLOCK));
	close(p[1]);
	ret("eof", splice(p[0], NULL, k.fd, NULL, 100, 0));
	ret("offset", splice(p[0], NULL, k.fd, &(loff_t){ 0 }, 100, 0));
	got_rest(&k);
}

CASE(send, splice_in, 0)
{
	struct conn k;
	char b[32];
	int p[2];

	conf_pair(&k);
	if (pipe(p))
		return;
	/* SPLICE_F_NONBLOCK is about the pipe; the socket goes by its own O_NONBLOCK */
	nonblock(k.fd, true);
	ret("empty", splice(k.fd, NULL, p[1], NULL, 100, 0));
	nonblock(k.fd, false);
	p_send(&k, "abcdef");
	wait_avail(k.fd, 6);
	ret("splice", splice(k.fd, NULL, p[1], NULL, 4, 0));
	retd("read", read(p[0], b, 32), b);
	ret("splice", splice(k.fd, NULL, p[1], NULL, 100, 0));
	retd("read", read(p[0], b, 32), b);
	ret("offset", splice(k.fd, &(loff_t){ 0 }, p[1], NULL, 100, 0));
	ret("no_pipe", splice(k.fd, NULL, k.fd, NULL, 100, 0));
	ret("tee", tee(k.fd, p[1], 10, 0));
	ret("vmsplice", vmsplice(k.fd, &(struct iovec){ b, 1 }, 1, 0));
	p_later(&k, 50, OP_SEND, 0, 0, "late");
	ret("blocks", splice(k.fd, NULL, p[1], NULL, 100, 0));
	p_done();
	p_shut(&k, SHUT_WR);
	wait_ev(k.fd, POLLRDHUP);
	ret("eof", splice(k.fd, NULL, p[1], NULL, 100, 0));
}

CASE(send, splice_in_big, 0)
{
	struct conn k;
	long n = 2000000, done = 0;
	char b[65536];
	bool ok = true;
	int p[2];

	conf_pair(&k);
	if (pipe(p))
		return;
	p_later(&k, 1, OP_SENDN, n, 6, NULL);
	while (done < n) {
		ssize_t r = splice(k.fd, NULL, p[1], NULL, 65536, SPLICE_F_MOVE);
		ssize_t got_now = 0;

		if (r <= 0)
			break;
		while (got_now < r) {
			ssize_t c = read(p[0], b, sizeof(b));

			if (c <= 0)
				break;
			if (!pattern_ok(b, (size_t)c, (uint64_t)done, 6))
				ok = false;
			got_now += c;
			done += c;
		}
	}
	ret("done", done);
	yes("same", ok);
	peer_ret("peer", p_done());
}

/* What comes before its end is all there, however the peer has ended. */
CASE(send, splice_in_after_end, 0)
{
	struct conn k;
	long n = 40000, done = 0;
	bool ok = true;
	char b[8192];
	int p[2];

	conf_pair(&k);
	if (pipe(p))
		return;
	p_sendn(&k, n, 6);
	p_close(&k);
	wait_ev(k.fd, POLLRDHUP);
	nap(50);
	for (;;) {
		ssize_t r = splice(k.fd, NULL, p[1], NULL, sizeof(b), 0);
		ssize_t left = r;

		if (r <= 0)
			break;
		while (left > 0) {
			ssize_t c = read(p[0], b, (size_t)left);

			if (c <= 0)
				break;
			if (!pattern_ok(b, (size_t)c, (uint64_t)done, 6))
				ok = false;
			left -= c;
			done += c;
		}
	}
	ret("done", done);
	yes("same", ok);
	fcntl(p[1], F_SETFL, O_NONBLOCK);
	ret("eof", splice(k.fd, NULL, p[1], NULL, 100, 0));
}

CASE(send, splice_in_full_pipe_after_end, 0)
{
	static char fill[65536];
	struct conn k;
	char b[16];
	int p[2];

	conf_pair(&k);
	if (pipe(p))
		return;
	p_send(&k, "abcdef");
	p_close(&k);
	wait_ev(k.fd, POLLRDHUP);
	nap(50);
	ret("fill", write(p[1], fill, sizeof(fill)));
	ret("full", splice(k.fd, NULL, p[1], NULL, 100, SPLICE_F_NONBLOCK));
	ret("take", read(p[0], fill, sizeof(fill)));
	ret("splice", splice(k.fd, NULL, p[1], NULL, 100, SPLICE_F_NONBLOCK));
	retd("read", read(p[0], b, 16), b);
	ret("eof", splice(k.fd, NULL, p[1], NULL, 100, SPLICE_F_NONBLOCK));
}

CASE(send, splice_proxy, 0)
{
	struct conn a, b;
	char buf[32];
	int p[2];

	conf_pair(&a);
	conf_pair(&b);
	if (pipe(p))
		return;
	p_send(&a, "through");
	wait_avail(a.fd, 7);
	ret("in", splice(a.fd, NULL, p[1], NULL, 100, 0));
	ret("out", splice(p[0], NULL, b.fd, NULL, 100, 0));
	got(&b, 7);
	(void)buf;
}

CASE(oob, send_recv, 0)
{
	struct conn k;
	char b[16];
	int at = -1;

	conf_pair(&k);
	peer_ret("data", p_send(&k, "abc"));
	peer_ret("oob", p_send_flags(&k, "X", MSG_OOB));
	peer_ret("data", p_send(&k, "def"));
	yes("pri", wait_ev(k.fd, POLLPRI));
	wait_avail(k.fd, 6);
	poll_say("poll", k.fd, POLLIN | POLLPRI | POLLRDBAND, 0);
	ret("atmark", ioctl(k.fd, SIOCATMARK, &at));
	out(" %d", at);
	retd("recv", recv(k.fd, b, 16, 0), b);
	ret("atmark", ioctl(k.fd, SIOCATMARK, &at));
	out(" %d", at);
	retd("peek_oob", recv(k.fd, b, 16, MSG_OOB | MSG_PEEK), b);
	retd("oob", recv(k.fd, b, 16, MSG_OOB), b);
	ret("again", recv(k.fd, b, 16, MSG_OOB));
	retd("recv", recv(k.fd, b, 16, 0), b);
	ret("none", recv(k.fd, b, 16, MSG_OOB | MSG_DONTWAIT));
	poll_say("poll", k.fd, POLLIN | POLLPRI, 0);
}

CASE(oob, out_of_us, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("data", send(k.fd, "abc", 3, 0));
	ret("oob", send(k.fd, "XY", 2, MSG_OOB));
	ret("data", send(k.fd, "def", 3, 0));
	mask("peer_poll", (int)p_poll(&k, POLLPRI, 1000));
	got(&k, 4); /* up to the mark: "abcX", Y is the urgent byte */
	got(&k, 3);
}

CASE(oob, inline, 0)
{
	struct conn k;
	char b[16];
	int at = 0;

	conf_pair(&k);
	ret("set", set_int(k.fd, SOL_SOCKET, SO_OOBINLINE, 1));
	p_send(&k, "ab");
	p_send_flags(&k, "X", MSG_OOB);
	p_send(&k, "cd");
	wait_ev(k.fd, POLLPRI);
	wait_avail(k.fd, 5);
	retd("recv", recv(k.fd, b, 16, 0), b);
	ioctl(k.fd, SIOCATMARK, &at);
	out(" atmark=%d", at);
	ret("oob", recv(k.fd, b, 16, MSG_OOB));
	retd("recv", recv(k.fd, b, 16, 0), b);
}

CASE(oob, none, 0)
{
	struct conn k;
	char b[16];
	int at = -1;

	conf_pair(&k);
	ret("recv", recv(k.fd, b, 16, MSG_OOB));
	ret("dontwait", recv(k.fd, b, 16, MSG_OOB | MSG_DONTWAIT));
	ret("atmark", ioctl(k.fd, SIOCATMARK, &at));
	out(" %d", at);
	ret("sockatmark", sockatmark(k.fd));
	p_shut(&k, SHUT_WR);
	wait_ev(k.fd, POLLRDHUP);
	ret("eof", recv(k.fd, b, 16, MSG_OOB));
}

CASE(oob, sigurg, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	sig_catch(SIGURG, 0);
	ret("setown", fcntl(k.fd, F_SETOWN, getpid()));
	p_send_flags(&k, "X", MSG_OOB);
	for (int i = 0; i < 1000 && !sig_count[SIGURG]; i++)
		nap(1);
	out(" SIGURG=%d", (int)sig_count[SIGURG]);
	retd("oob", recv(k.fd, b, 16, MSG_OOB), b);
}

CASE(oob, select_except, 0)
{
	struct conn k;
	char b[16];
	fd_set r, e;

	conf_pair(&k);
	FD_ZERO(&r);
	FD_ZERO(&e);
	FD_SET(k.fd, &r);
	FD_SET(k.fd, &e);
	p_later(&k, 50, OP_NOP, 0, 0, NULL);
	p_send_flags(&k, "X", MSG_OOB);
	wait_ev(k.fd, POLLPRI);
	ret("select", select(k.fd + 1, &r, NULL, &e, &(struct timeval){ 1, 0 }));
	yes("r", FD_ISSET(k.fd, &r));
	yes("e", FD_ISSET(k.fd, &e));
	p_done();
	retd("oob", recv(k.fd, b, 16, MSG_OOB), b);
}

CASE(sigio, o_async, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	sig_catch(SIGIO, 0);
	ret("setown", fcntl(k.fd, F_SETOWN, getpid()));
	ret("async", fcntl(k.fd, F_SETFL, fcntl(k.fd, F_GETFL) | O_ASYNC));
	yes("getfl", fcntl(k.fd, F_GETFL) & O_ASYNC);
	sig_count[SIGIO] = 0;
	p_send(&k, "abc");
	for (int i = 0; i < 1000 && !sig_count[SIGIO]; i++)
		nap(1);
	yes("SIGIO", sig_count[SIGIO] > 0);
	retd("recv", recv(k.fd, b, 16, 0), b);
}

CASE(zerocopy, without_option, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("send", send(k.fd, "abc", 3, MSG_ZEROCOPY));
	got(&k, 3);
	poll_say("poll", k.fd, POLLOUT, 20);
}

CASE(zerocopy, completion, 0)
{
	struct conn k;
	static char buf[65536];
	char ctl[128];
	struct msghdr m = { .msg_control = ctl, .msg_controllen = sizeof(ctl) };
	struct cmsghdr *c;

	conf_pair(&k);
	if (ret("set", set_int(k.fd, SOL_SOCKET, SO_ZEROCOPY, 1)))
		return;
	pattern(buf, sizeof(buf), 0, 9);
	ret("send", send(k.fd, buf, sizeof(buf), MSG_ZEROCOPY));
	yes("peer", p_recvn(&k, (long)sizeof(buf), 9) == (long)sizeof(buf));
	yes("err", wait_ev(k.fd, POLLERR));
	ret("errqueue", recvmsg(k.fd, &m, MSG_ERRQUEUE));
	c = CMSG_FIRSTHDR(&m);
	if (c) {
		struct sock_extended_err e;

		memcpy(&e, CMSG_DATA(c), sizeof(e));
		out(" origin=%d info=%u data=%u", e.ee_origin, e.ee_info, e.ee_data);
	}
	ret("errqueue", recvmsg(k.fd, &m, MSG_ERRQUEUE));
	poll_say("poll", k.fd, POLLOUT, 0);
}
