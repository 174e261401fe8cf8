/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* libcases_recv.c - the receiving calls, their flags, their errors; FIONREAD and friends */
#include "tests/conformance/conf.h"

#include <linux/sockios.h>

extern const char conf_file_recv;
const char conf_file_recv = 1;

/* the classical dance: data for us of exactly this text, all of it arrived */
static void arrive(struct conn *k, const char *text)
{
	int have = 0;

	ioctl(k->fd, FIONREAD, &have);
	if (p_send(k, text) != (long)strlen(text))
		bail("p_send");
	if (!wait_avail(k->fd, have + (int)strlen(text)))
		bail("arrive");
}

static int avail(int fd)
{
	int v = -1;

	return ioctl(fd, FIONREAD, &v) ? -1 : v;
}

/* is there anything more? */
static void rest(int fd)
{
	char b[64];

	retd("rest", recv(fd, b, sizeof(b), MSG_DONTWAIT), b);
}

CASE(recv, simple, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	arrive(&k, "hello");
	retd("recv", recv(k.fd, b, sizeof(b), 0), b);
	rest(k.fd);
}

CASE(recv, read, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	arrive(&k, "hello");
	retd("read", read(k.fd, b, 2), b);
	retd("read", read(k.fd, b, sizeof(b)), b);
	rest(k.fd);
}

CASE(recv, blocks_until_data, 0)
{
	struct conn k;
	char b[64];
	long t;

	conf_pair(&k);
	t = now_ms();
	p_later(&k, 60, OP_SEND, 0, 0, "late");
	retd("recv", recv(k.fd, b, sizeof(b), 0), b);
	took("waited", t, 40, 2000);
	peer_ret("sent", p_done());
}

CASE(recv, blocks_until_eof, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	p_later(&k, 60, OP_SHUT, SHUT_WR, 0, NULL);
	ret("recv", recv(k.fd, b, sizeof(b), 0));
	peer_ret("shut", p_done());
	ret("again", recv(k.fd, b, sizeof(b), 0));
}

CASE(recv, blocks_until_close, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	p_later(&k, 60, OP_CLOSE, 0, 0, NULL);
	ret("recv", recv(k.fd, b, sizeof(b), 0));
	peer_ret("close", p_done());
}

CASE(recv, blocks_until_reset, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	p_later(&k, 60, OP_RST, 0, 0, NULL);
	ret("recv", recv(k.fd, b, sizeof(b), 0));
	peer_ret("rst", p_done());
	ret("again", recv(k.fd, b, sizeof(b), 0));
}

CASE(recv, split_reads, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	arrive(&k, "abcdef");
	for (int i = 0; i < 6; i++)
		retd("r", recv(k.fd, b, 1, 0), b);
	rest(k.fd);
}

CASE(recv, merged_writes, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	arrive(&k, "abc");
	arrive(&k, "def");
	arrive(&k, "g");
	retd("recv", recv(k.fd, b, sizeof(b), 0), b);
	rest(k.fd);
}

CASE(recv, peek_then_read, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	arrive(&k, "hello");
	retd("peek", recv(k.fd, b, sizeof(b), MSG_PEEK), b);
	retd("read", read(k.fd, b, sizeof(b)), b);
	rest(k.fd);
}

CASE(recv, peek_repeats, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	arrive(&k, "hello");
	retd("peek", recv(k.fd, b, 2, MSG_PEEK), b);
	retd("peek", recv(k.fd, b, 3, MSG_PEEK), b);
	retd("read", recv(k.fd, b, 1, 0), b);
	retd("peek", recv(k.fd, b, 3, MSG_PEEK), b);
	arrive(&k, "XY");
	retd("peek", recv(k.fd, b, sizeof(b), MSG_PEEK), b);
	retd("read", recv(k.fd, b, sizeof(b), 0), b);
}

CASE(recv, peek_blocks, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	p_later(&k, 60, OP_SEND, 0, 0, "late");
	retd("peek", recv(k.fd, b, sizeof(b), MSG_PEEK), b);
	peer_ret("sent", p_done());
	retd("read", recv(k.fd, b, sizeof(b), 0), b);
}

CASE(recv, peek_waitall, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	arrive(&k, "abc");
	p_later(&k, 60, OP_SEND, 0, 0, "def");
	retd("peek", recv(k.fd, b, 6, MSG_PEEK | MSG_WAITALL), b);
	peer_ret("sent", p_done());
	retd("read", recv(k.fd, b, sizeof(b), 0), b);
}

CASE(recv, peek_eof, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	arrive(&k, "abc");
	p_shut(&k, SHUT_WR);
	yes("rdhup", wait_ev(k.fd, POLLRDHUP));
	retd("peek", recv(k.fd, b, sizeof(b), MSG_PEEK), b);
	retd("read", recv(k.fd, b, sizeof(b), 0), b);
	ret("peek", recv(k.fd, b, sizeof(b), MSG_PEEK));
	ret("peek", recv(k.fd, b, sizeof(b), MSG_PEEK | MSG_DONTWAIT));
	ret("read", recv(k.fd, b, sizeof(b), 0));
}

CASE(recv, peek_empty_dontwait, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	ret("peek", recv(k.fd, b, sizeof(b), MSG_PEEK | MSG_DONTWAIT));
}

CASE(recv, peek_recvmsg_iov, 0)
{
	struct conn k;
	char a[4] = "....", b[8] = ".......";
	struct iovec iov[2] = { { a, 3 }, { b, 5 } };
	struct msghdr m = { .msg_iov = iov, .msg_iovlen = 2 };

	conf_pair(&k);
	arrive(&k, "abcdefgh");
	ret("peek", recvmsg(k.fd, &m, MSG_PEEK));
	out(" [%.3s][%.5s]", a, b);
	memset(a, '.', 3);
	memset(b, '.', 5);
	ret("read", readv(k.fd, iov, 2));
	out(" [%.3s][%.5s]", a, b);
	rest(k.fd);
}

/* SO_PEEK_OFF came to TCP in Linux 6.10 */
CASE(recv, peek_off, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	arrive(&k, "abcdefgh");
	ret("get", get_int(k.fd, SOL_SOCKET, SO_PEEK_OFF));
	if (ret("set", set_int(k.fd, SOL_SOCKET, SO_PEEK_OFF, 2)))
		return;
	retd("peek", recv(k.fd, b, 2, MSG_PEEK), b);
	retd("peek", recv(k.fd, b, 2, MSG_PEEK), b);
	retd("read", recv(k.fd, b, 1, 0), b);
	retd("peek", recv(k.fd, b, 2, MSG_PEEK), b);
	ret("get", get_int(k.fd, SOL_SOCKET, SO_PEEK_OFF));
	retd("read", recv(k.fd, b, sizeof(b), 0), b);
}

CASE(recv, waitall_two_sends, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	arrive(&k, "abc");
	p_later(&k, 60, OP_SEND, 0, 0, "defXY");
	retd("waitall", recv(k.fd, b, 6, MSG_WAITALL), b);
	peer_ret("sent", p_done());
	rest(k.fd);
}

CASE(recv, waitall_eof, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	arrive(&k, "abc");
	p_later(&k, 60, OP_SHUT, SHUT_WR, 0, NULL);
	retd("waitall", recv(k.fd, b, 6, MSG_WAITALL), b);
	peer_ret("shut", p_done());
	ret("again", recv(k.fd, b, 6, MSG_WAITALL));
}

CASE(recv, waitall_reset, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	arrive(&k, "abc");
	p_later(&k, 60, OP_RST, 0, 0, NULL);
	retd("waitall", recv(k.fd, b, 6, MSG_WAITALL), b);
	peer_ret("rst", p_done());
	ret("again", recv(k.fd, b, 6, MSG_WAITALL));
	ret("again", recv(k.fd, b, 6, MSG_WAITALL));
}

CASE(recv, waitall_dontwait, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	arrive(&k, "abc");
	retd("recv", recv(k.fd, b, 6, MSG_WAITALL | MSG_DONTWAIT), b);
	ret("recv", recv(k.fd, b, 6, MSG_WAITALL | MSG_DONTWAIT));
}

CASE(recv, waitall_nonblock_fd, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	nonblock(k.fd, true);
	arrive(&k, "abc");
	retd("recv", recv(k.fd, b, 6, MSG_WAITALL), b);
	ret("recv", recv(k.fd, b, 6, MSG_WAITALL));
}

CASE(recv, waitall_recvmsg_iov, 0)
{
	struct conn k;
	char a[8] = "....", b[8] = "....";
	struct iovec iov[3] = { { a, 2 }, { NULL, 0 }, { b, 4 } };
	struct msghdr m = { .msg_iov = iov, .msg_iovlen = 3 };

	conf_pair(&k);
	arrive(&k, "abc");
	p_later(&k, 60, OP_SEND, 0, 0, "defgh");
	ret("recvmsg", recvmsg(k.fd, &m, MSG_WAITALL));
	out(" [%.2s][%.4s]", a, b);
	peer_ret("sent", p_done());
	rest(k.fd);
}

CASE(recv, waitall_1mb, 0)
{
	struct conn k;
	long n = 1 << 20;
	char *b = malloc((size_t)n);

	conf_pair(&k);
	p_later(&k, 1, OP_SENDN, n, 3, NULL);
	ret("waitall", recv(k.fd, b, (size_t)n, MSG_WAITALL));
	peer_ret("sent", p_done());
	yes("same", pattern_ok(b, (size_t)n, 0, 3));
	rest(k.fd);
}

CASE(recv, read_never_waits_for_all, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	arrive(&k, "abc");
	retd("read", read(k.fd, b, sizeof(b)), b);
}

CASE(recv, dontwait_empty, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	ret("recv", recv(k.fd, b, sizeof(b), MSG_DONTWAIT));
	ret("flags", fcntl(k.fd, F_GETFL) & O_NONBLOCK);
	arrive(&k, "x");
	retd("recv", recv(k.fd, b, sizeof(b), MSG_DONTWAIT), b);
	ret("recv", recv(k.fd, b, sizeof(b), MSG_DONTWAIT));
}

CASE(recv, nonblock_fcntl, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	nonblock(k.fd, true);
	ret("read", read(k.fd, b, sizeof(b)));
	arrive(&k, "x");
	retd("read", read(k.fd, b, sizeof(b)), b);
	ret("read", read(k.fd, b, sizeof(b)));
	nonblock(k.fd, false);
	p_later(&k, 40, OP_SEND, 0, 0, "y");
	retd("read", read(k.fd, b, sizeof(b)), b);
	p_done();
}

CASE(recv, nonblock_fionbio, 0)
{
	struct conn k;
	char b[8];
	int on = 1;

	conf_pair(&k);
	ret("ioctl", ioctl(k.fd, FIONBIO, &on));
	yes("getfl", fcntl(k.fd, F_GETFL) & O_NONBLOCK);
	ret("read", read(k.fd, b, sizeof(b)));
	on = 0;
	ret("ioctl", ioctl(k.fd, FIONBIO, &on));
	yes("getfl", fcntl(k.fd, F_GETFL) & O_NONBLOCK);
	p_later(&k, 40, OP_SEND, 0, 0, "y");
	retd("read", read(k.fd, b, sizeof(b)), b);
	p_done();
	ret("fionbio_null", ioctl(k.fd, FIONBIO, NULL));
}

CASE(recv, nonblock_shared_by_dup, 0)
{
	struct conn k;
	char b[8];
	int d;

	conf_pair(&k);
	d = dup(k.fd);
	nonblock(d, true);
	ret("read", read(k.fd, b, sizeof(b)));
	nonblock(k.fd, false);
	yes("dup_nonblock", fcntl(d, F_GETFL) & O_NONBLOCK);
}

/* tcp(7): MSG_TRUNC discards the bytes instead of delivering them */
CASE(recv, trunc_discards, 0)
{
	struct conn k;
	char b[8] = "-------";

	conf_pair(&k);
	arrive(&k, "abcdef");
	ret("trunc", recv(k.fd, b, 4, MSG_TRUNC));
	out(" buf=%.4s", b);
	retd("read", recv(k.fd, b, sizeof(b), 0), b);
	rest(k.fd);
}

CASE(recv, trunc_null_buffer, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	arrive(&k, "abcdef");
	/* cppcheck-suppress nullPointer */
	ret("trunc", recv(k.fd, NULL, 4, MSG_TRUNC));
	retd("read", recv(k.fd, b, sizeof(b), 0), b);
}

CASE(recv, trunc_peek, 0)
{
	struct conn k;
	char b[8] = "-------";

	conf_pair(&k);
	arrive(&k, "abcdef");
	ret("trunc", recv(k.fd, b, 4, MSG_TRUNC | MSG_PEEK));
	out(" buf=%.4s", b);
	retd("read", recv(k.fd, b, sizeof(b), 0), b);
}

CASE(recv, trunc_waitall, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	arrive(&k, "abc");
	p_later(&k, 60, OP_SEND, 0, 0, "defg");
	/* cppcheck-suppress nullPointer */
	ret("trunc", recv(k.fd, NULL, 6, MSG_TRUNC | MSG_WAITALL));
	p_done();
	rest(k.fd);
	retd("read", recv(k.fd, b, sizeof(b), MSG_DONTWAIT), b);
}

CASE(recv, trunc_empty, 0)
{
	struct conn k;

	conf_pair(&k);
	/* cppcheck-suppress nullPointer */
	ret("trunc", recv(k.fd, NULL, 4, MSG_TRUNC | MSG_DONTWAIT));
}

/* zero lengths: read() returns 0 at once, recv() is a real receive of nothing */
CASE(recv, zero_read, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	ret("empty", read(k.fd, b, 0));
	arrive(&k, "abc");
	ret("data", read(k.fd, b, 0));
	ret("null", read(k.fd, NULL, 0));
	retd("read", read(k.fd, b, sizeof(b)), b);
}

CASE(recv, zero_recv, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	ret("empty_dontwait", recv(k.fd, b, 0, MSG_DONTWAIT));
	arrive(&k, "abc");
	ret("data", recv(k.fd, b, 0, 0));
	/* cppcheck-suppress nullPointer */
	ret("null", recv(k.fd, NULL, 0, 0));
	ret("peek", recv(k.fd, b, 0, MSG_PEEK));
	retd("read", read(k.fd, b, sizeof(b)), b);
	p_shut(&k, SHUT_WR);
	wait_ev(k.fd, POLLRDHUP);
	ret("eof", recv(k.fd, b, 0, 0));
}

CASE(recv, zero_recv_blocks, 0)
{
	struct conn k;
	char b[8];
	long t;

	conf_pair(&k);
	t = now_ms();
	p_later(&k, 60, OP_SEND, 0, 0, "xy");
	ret("recv0", recv(k.fd, b, 0, 0));
	took("waited", t, 40, 2000);
	p_done();
	retd("read", read(k.fd, b, sizeof(b)), b);
}

CASE(recv, readv_simple, 0)
{
	struct conn k;
	char a[4] = "---", b[4] = "---", c[8] = "-------";
	struct iovec iov[4] = { { a, 2 }, { NULL, 0 }, { b, 3 }, { c, 7 } };

	conf_pair(&k);
	arrive(&k, "abcdefgh");
	ret("readv", readv(k.fd, iov, 4));
	out(" [%.2s][%.3s][%.7s]", a, b, c);
	rest(k.fd);
}

CASE(recv, readv_edges, 0)
{
	struct conn k;
	char a[8];
	struct iovec iov[2] = { { a, 4 }, { a + 4, 4 } };
	struct iovec none[2] = { { NULL, 0 }, { NULL, 0 } };
	struct iovec neg[2] = { { a, 4 }, { a + 4, conf_max } };
	struct iovec *many = calloc(1025, sizeof(*many));

	conf_pair(&k);
	ret("no_iov", readv(k.fd, iov, 0));
	ret("null_no_iov", readv(k.fd, NULL, 0));
	ret("empty", readv(k.fd, none, 2));
	ret("minus", readv(k.fd, iov, conf_minus));
	ret("null", readv(k.fd, conf_null, 1));
	ret("negative_len", readv(k.fd, neg, 2));
	ret("1025", readv(k.fd, many, 1025));
	for (int i = 0; i < 1024; i++)
		many[i] = (struct iovec){ a + i % 8, 1 };
	arrive(&k, "abcd");
	ret("1024", readv(k.fd, many, 1024));
	out(" %.4s", a);
}

CASE(recv, preadv2_nowait, 0)
{
	struct conn k;
	char a[8];
	struct iovec iov = { a, 8 };

	conf_pair(&k);
	ret("nowait", preadv2(k.fd, &iov, 1, -1, RWF_NOWAIT));
	arrive(&k, "abcd");
	retd("nowait", preadv2(k.fd, &iov, 1, -1, RWF_NOWAIT), a);
	arrive(&k, "efgh");
	retd("plain", preadv2(k.fd, &iov, 1, -1, 0), a);
	ret("offset", preadv2(k.fd, &iov, 1, 0, 0));
	ret("preadv", preadv(k.fd, &iov, 1, 0));
	ret("pread", pread(k.fd, a, 4, 0));
	ret("lseek", lseek(k.fd, 0, SEEK_SET));
}

CASE(recv, recvfrom_address, 0)
{
	struct conn k;
	struct sockaddr_storage ss;
	socklen_t l = sizeof(ss);
	char b[8];

	conf_pair(&k);
	arrive(&k, "abc");
	memset(&ss, 0x55, sizeof(ss));
	retd("recvfrom", recvfrom(k.fd, b, 8, 0, (struct sockaddr *)&ss, &l), b);
	out(" addrlen=%u untouched=%d", l, ss.ss_family == 0x5555);
	arrive(&k, "def");
	retd("null_len", recvfrom(k.fd, b, 8, 0, NULL, NULL), b);
}

CASE(recv, recvmsg_fields, 0)
{
	struct conn k;
	char b[8], ctl[64], name[64];
	struct iovec iov = { b, 8 };
	struct msghdr m = {
		.msg_name = name,
		.msg_namelen = sizeof(name),
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = ctl,
		.msg_controllen = sizeof(ctl),
		.msg_flags = 0x7777,
	};

	conf_pair(&k);
	arrive(&k, "abcdefghij");
	retd("recvmsg", recvmsg(k.fd, &m, 0), b);
	out(" namelen=%u controllen=%zu flags=0x%x", m.msg_namelen, m.msg_controllen,
	    (unsigned int)m.msg_flags);
	p_shut(&k, SHUT_WR);
	wait_ev(k.fd, POLLRDHUP);
	retd("recvmsg", recvmsg(k.fd, &m, 0), b);
	ret("recvmsg", recvmsg(k.fd, &m, 0));
	out(" flags=0x%x", (unsigned int)m.msg_flags);
}

CASE(recv, recvmsg_edges, 0)
{
	struct conn k;
	char b[8];
	struct iovec iov = { b, 8 };
	struct iovec *many = calloc(1025, sizeof(*many));
	struct msghdr none = { 0 };
	struct msghdr m = { .msg_iov = many, .msg_iovlen = 1025 };
	struct msghdr null = { .msg_iov = NULL, .msg_iovlen = 1 };

	conf_pair(&k);
	ret("no_iov_dontwait", recvmsg(k.fd, &none, MSG_DONTWAIT));
	ret("1025", recvmsg(k.fd, &m, MSG_DONTWAIT));
	ret("null_iov", recvmsg(k.fd, &null, MSG_DONTWAIT));
	m.msg_iov = &iov;
	m.msg_iovlen = 1;
	ret("cmsg_cloexec", recvmsg(k.fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC));
	ret("null_msg", (long)syscall(SYS_recvmsg, k.fd, NULL, MSG_DONTWAIT));
	arrive(&k, "abc");
	ret("no_iov_data", recvmsg(k.fd, &none, 0));
	retd("recvmsg", recvmsg(k.fd, &m, 0), b);
}

CASE(recv, recvmmsg, 0)
{
	struct conn k;
	char a[4] = "", b[16] = "";
	struct iovec iov[2] = { { a, 3 }, { b, 10 } };
	struct mmsghdr m[2] = { { .msg_hdr = { .msg_iov = &iov[0], .msg_iovlen = 1 } },
				{ .msg_hdr = { .msg_iov = &iov[1], .msg_iovlen = 1 } } };

	conf_pair(&k);
	arrive(&k, "abcdef");
	ret("recvmmsg", recvmmsg(k.fd, m, 2, 0, NULL));
	out(" len=%u,%u [%.3s][%.3s]", m[0].msg_len, m[1].msg_len, a, b);
	ret("empty", recvmmsg(k.fd, m, 2, MSG_DONTWAIT, NULL));
	ret("zero", recvmmsg(k.fd, m, 0, MSG_DONTWAIT, NULL));
	arrive(&k, "XYZ");
	ret("partly", recvmmsg(k.fd, m, 2, MSG_DONTWAIT, NULL));
	out(" [%.3s]", a);
	arrive(&k, "123");
	ret("waitforone", recvmmsg(k.fd, m, 2, MSG_WAITFORONE, NULL));
	out(" [%.3s]", a);
}

CASE(recv, recvmmsg_eof, 0)
{
	struct conn k;
	char a[4] = "", b[16] = "";
	struct iovec iov[2] = { { a, 3 }, { b, 10 } };
	struct mmsghdr m[2] = { { .msg_hdr = { .msg_iov = &iov[0], .msg_iovlen = 1 } },
				{ .msg_hdr = { .msg_iov = &iov[1], .msg_iovlen = 1 } } };

	conf_pair(&k);
	arrive(&k, "ab");
	p_shut(&k, SHUT_WR);
	wait_ev(k.fd, POLLRDHUP);
	ret("recvmmsg", recvmmsg(k.fd, m, 2, 0, NULL));
	out(" len=%u,%u", m[0].msg_len, m[1].msg_len);
}

CASE(recv, recvmmsg_timeout, 0)
{
	struct conn k;
	char a[4] = "";
	struct iovec iov = { a, 3 };
	struct mmsghdr m[1] = { { .msg_hdr = { .msg_iov = &iov, .msg_iovlen = 1 } } };
	struct timespec bad = { 0, 2000000000L }, ok = { 5, 0 };

	conf_pair(&k);
	ret("bad", recvmmsg(k.fd, m, 1, MSG_DONTWAIT, &bad));
	arrive(&k, "abc");
	ret("ok", recvmmsg(k.fd, m, 1, 0, &ok));
}

CASE(recv, efault, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	ret("empty", recv(k.fd, conf_bad, 4, MSG_DONTWAIT));
	arrive(&k, "abcdef");
	ret("recv", recv(k.fd, conf_bad, 4, 0));
	ret("read", read(k.fd, conf_bad, 4));
	ret("peek", recv(k.fd, conf_bad, 4, MSG_PEEK));
	retd("after", recv(k.fd, b, sizeof(b), 0), b);
}

CASE(recv, efault_readv_second, 0)
{
	struct conn k;
	char a[8] = "-----", b[16];
	struct iovec iov[2] = { { a, 3 }, { conf_bad, 3 } };

	conf_pair(&k);
	arrive(&k, "abcdef");
	ret("readv", readv(k.fd, iov, 2));
	retd("after", recv(k.fd, b, sizeof(b), 0), b);
}

CASE(recv, efault_beyond_what_came, 0)
{
	struct conn k;
	char a[8] = "-----", b[16];
	struct iovec iov[2] = { { a, 3 }, { conf_bad, 3 } };

	conf_pair(&k);
	arrive(&k, "abc");
	retd("peek", recvmsg(k.fd, &(struct msghdr){ .msg_iov = iov, .msg_iovlen = 2 }, MSG_PEEK),
	     a);
	retd("readv", readv(k.fd, iov, 2), a);
	ret("after", recv(k.fd, b, sizeof(b), MSG_DONTWAIT));
	arrive(&k, "def");
	iov[1].iov_base = (char *)conf_null - 4096;
	ret("no_address", readv(k.fd, iov, 2));
	retd("after", recv(k.fd, b, sizeof(b), 0), b);
}

CASE(recv, efault_partial_buffer, 0)
{
	struct conn k;
	char *p = bad_tail(4);
	char b[16];

	conf_pair(&k);
	arrive(&k, "abc");
	retd("fits", recv(k.fd, p, 100, 0), p);
	arrive(&k, "abcdef");
	ret("does_not", recv(k.fd, p, 100, 0));
	retd("after", recv(k.fd, b, sizeof(b), 0), b);
}

CASE(recv, efault_readonly, 0)
{
	struct conn k;
	char *p = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char b[16];

	conf_pair(&k);
	arrive(&k, "abc");
	ret("recv", recv(k.fd, p, 100, 0));
	retd("after", recv(k.fd, b, sizeof(b), 0), b);
}

CASE(recv, efault_eof, 0)
{
	struct conn k;

	conf_pair(&k);
	p_shut(&k, SHUT_WR);
	wait_ev(k.fd, POLLRDHUP);
	ret("recv", recv(k.fd, conf_bad, 4, 0));
}

CASE(recv, bad_fds, NOSTATE)
{
	char b[8];
	int p[2], f = temp_file(10, 1);
	int s = socket(AF_INET, SOCK_STREAM, 0);
	int l = conf_listen(AF_INET, 1, NULL, NULL);

	ret("closed", recv(999, b, 8, 0));
	/* cppcheck-suppress invalidFunctionArg */
	ret("minus", recv(-1, b, 8, 0));
	ret("file", recv(f, b, 8, 0));
	if (!pipe(p))
		ret("pipe", recv(p[0], b, 8, 0));
	ret("unconnected", recv(s, b, 8, 0));
	ret("unconnected_read", read(s, b, 8));
	ret("listening", recv(l, b, 8, 0));
	ret("listening_dontwait", recv(l, b, 8, MSG_DONTWAIT));
}

CASE(recv, errqueue_empty, 0)
{
	struct conn k;
	char b[64];
	struct iovec iov = { b, 8 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };

	conf_pair(&k);
	arrive(&k, "abc");
	ret("errqueue", recvmsg(k.fd, &m, MSG_ERRQUEUE));
	retd("data", recv(k.fd, b, 8, 0), b);
}

CASE(recv, rcvtimeo, 0)
{
	struct conn k;
	struct timeval tv = { 0, 80000 }, got = { 0, 0 };
	socklen_t l = sizeof(got);
	char b[8];
	long t;

	conf_pair(&k);
	ret("set", setsockopt(k.fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)));
	ret("get", getsockopt(k.fd, SOL_SOCKET, SO_RCVTIMEO, &got, &l));
	out(" %ld.%06ld", (long)got.tv_sec, (long)got.tv_usec);
	t = now_ms();
	ret("recv", recv(k.fd, b, 8, 0));
	took("waited", t, 75, 1500);
	t = now_ms();
	ret("read", read(k.fd, b, 8));
	took("waited", t, 75, 1500);
	arrive(&k, "abc");
	t = now_ms();
	retd("waitall", recv(k.fd, b, 8, MSG_WAITALL), b);
	took("waited", t, 75, 1500);
	p_later(&k, 30, OP_SEND, 0, 0, "xyz");
	retd("recv", recv(k.fd, b, 8, 0), b);
	p_done();
	tv.tv_usec = 0;
	ret("off", setsockopt(k.fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)));
	p_later(&k, 200, OP_SEND, 0, 0, "end");
	retd("recv", recv(k.fd, b, 8, 0), b);
	p_done();
}

CASE(recv, rcvtimeo_not_for_poll, 0)
{
	struct conn k;
	struct timeval tv = { 0, 20000 };
	long t;

	conf_pair(&k);
	setsockopt(k.fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	t = now_ms();
	poll_say("poll", k.fd, POLLIN, 120);
	took("waited", t, 110, 1500);
}

CASE(recv, rcvtimeo_bad, 0)
{
	struct conn k;
	struct timeval tv = { 0, 2000000 };

	conf_pair(&k);
	ret("usec", setsockopt(k.fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)));
	ret("short", setsockopt(k.fd, SOL_SOCKET, SO_RCVTIMEO, &tv, 4));
}

CASE(recv, rcvlowat, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	ret("get", get_int(k.fd, SOL_SOCKET, SO_RCVLOWAT));
	ret("set", set_int(k.fd, SOL_SOCKET, SO_RCVLOWAT, 6));
	ret("get", get_int(k.fd, SOL_SOCKET, SO_RCVLOWAT));
	arrive(&k, "abc");
	poll_say("poll3", k.fd, POLLIN, 50);
	retd("dontwait", recv(k.fd, b, 2, MSG_DONTWAIT), b);
	p_later(&k, 60, OP_SEND, 0, 0, "defghi");
	retd("recv", recv(k.fd, b, sizeof(b), 0), b);
	p_done();
	arrive(&k, "123456");
	poll_say("poll6", k.fd, POLLIN, 50);
	retd("recv", recv(k.fd, b, 2, 0), b);
	poll_say("poll4", k.fd, POLLIN, 0);
	ret("set1", set_int(k.fd, SOL_SOCKET, SO_RCVLOWAT, 1));
	poll_say("poll4", k.fd, POLLIN, 0);
	ret("set0", set_int(k.fd, SOL_SOCKET, SO_RCVLOWAT, 0));
	ret("get", get_int(k.fd, SOL_SOCKET, SO_RCVLOWAT));
}

CASE(recv, rcvlowat_eof, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	set_int(k.fd, SOL_SOCKET, SO_RCVLOWAT, 10);
	arrive(&k, "abc");
	p_later(&k, 50, OP_SHUT, SHUT_WR, 0, NULL);
	retd("recv", recv(k.fd, b, sizeof(b), 0), b);
	p_done();
	poll_say("poll", k.fd, POLLIN | POLLRDHUP, 50);
}

CASE(recv, rcvlowat_small_buffer, 0)
{
	struct conn k;
	char b[64];

	conf_pair(&k);
	set_int(k.fd, SOL_SOCKET, SO_RCVLOWAT, 10);
	arrive(&k, "abc");
	retd("recv2", recv(k.fd, b, 2, 0), b);
}

CASE(recv, fionread, 0)
{
	struct conn k;
	char b[64];
	int v = -1;
	int l = conf_listen(AF_INET, 1, NULL, NULL);

	conf_pair(&k);
	ret("fresh", avail(k.fd));
	arrive(&k, "abcdef");
	ret("six", avail(k.fd));
	ret("siocinq", ioctl(k.fd, SIOCINQ, &v));
	out(" v=%d", v);
	recv(k.fd, b, 4, MSG_PEEK);
	ret("peeked", avail(k.fd));
	recv(k.fd, b, 4, 0);
	ret("two", avail(k.fd));
	p_shut(&k, SHUT_WR);
	wait_ev(k.fd, POLLRDHUP);
	ret("fin", avail(k.fd));
	recv(k.fd, b, 4, 0);
	ret("none", avail(k.fd));
	recv(k.fd, b, 4, 0);
	ret("eof", avail(k.fd));
	ret("listen", ioctl(l, FIONREAD, &v));
	ret("null", ioctl(k.fd, FIONREAD, NULL));
}

CASE(recv, fionread_reset, 0)
{
	struct conn k;

	conf_pair(&k);
	arrive(&k, "abcdef");
	p_rst(&k);
	wait_ev(k.fd, POLLERR);
	ret("reset", avail(k.fd));
}

CASE(recv, siocoutq, 0)
{
	struct conn k;
	char b[64];
	int v = -1;

	conf_pair(&k);
	ret("siocoutq", ioctl(k.fd, SIOCOUTQ, &v));
	out(" v=%d", v);
	ret("send", send(k.fd, "abcd", 4, 0));
	peer_ret("peer", p_recv(&k, b, 4));
	for (int i = 0; i < 500 && v != 0; i++) {
		ioctl(k.fd, SIOCOUTQ, &v);
		nap(1);
	}
	out(" acked=%d", v);
	ret("nsd", ioctl(k.fd, SIOCOUTQNSD, &v));
	out(" v=%d", v);
}

CASE(recv, siocoutq_full, 0)
{
	struct conn k;
	int v = -1;
	long n;

	conf_pair(&k);
	n = fill(k.fd);
	ret("ioctl", ioctl(k.fd, SIOCOUTQ, &v));
	yes("positive", v > 0);
	yes("at_most_all", v <= n);
	yes("same", p_recvn(&k, n, 7) == n);
	for (int i = 0; i < 500; i++) {
		ioctl(k.fd, SIOCOUTQ, &v);
		if (!v)
			break;
		nap(1);
	}
	ret("drained", v);
}

CASE(recv, not_a_file, 0)
{
	struct conn k;
	struct stat st;

	conf_pair(&k);
	ret("fstat", fstat(k.fd, &st));
	yes("sock", S_ISSOCK(st.st_mode));
	ret("size", st.st_size);
	ret("isatty", isatty(k.fd) ? 1 : -1);
	ret("fsync", fsync(k.fd));
	ret("ftruncate", ftruncate(k.fd, 0));
	/* cppcheck-suppress leakReturnValNotUsed */
	yes("mmap", mmap(NULL, 4096, PROT_READ, MAP_SHARED, k.fd, 0) == MAP_FAILED);
	out(" %s", err_name(errno));
	ret("fallocate", fallocate(k.fd, 0, 0, 10));
	ret("flock", fcntl(k.fd, F_SETLK, &(struct flock){ .l_type = F_WRLCK }));
	ret("pipe_sz", fcntl(k.fd, F_GETPIPE_SZ));
	ret("getown", fcntl(k.fd, F_GETOWN));
}

CASE(recv, exact_after_many, 0)
{
	struct conn k;
	char b[8];
	bool ok = true;

	conf_pair(&k);
	for (int i = 0; i < 2000; i++) {
		char x[2] = { (char)('a' + i % 26), 0 };

		if (p_send(&k, x) != 1 || recv(k.fd, b, 8, 0) != 1 || b[0] != x[0])
			ok = false;
	}
	yes("ok", ok);
	rest(k.fd);
}

CASE(recv, unknown_flags, 0)
{
	struct conn k;
	char b[8];

	conf_pair(&k);
	arrive(&k, "abc");
	retd("recv", recv(k.fd, b, 1, 0x01000000), b);
	retd("recv", recv(k.fd, b, 1, MSG_CONFIRM), b);
	retd("recv", recv(k.fd, b, 1, MSG_NOSIGNAL), b);
}

CASE(recv, huge_length, 0)
{
	struct conn k;
	char *p = bad_tail(64);

	conf_pair(&k);
	arrive(&k, "abc");
	retd("recv", recv(k.fd, p, (size_t)1 << 30, 0), p);
	arrive(&k, "def");
	/* longer than the address space: the kernel's access check refuses or clamps */
	ret("ssize", read(k.fd, p, conf_max));
	retd("after", recv(k.fd, p, 3, MSG_DONTWAIT), p);
}
