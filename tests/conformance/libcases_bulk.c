/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* libcases_bulk.c - more data: buffering that programs rely on, mixed calls, many connections */
#include "tests/conformance/conf.h"

extern const char conf_file_bulk;
const char conf_file_bulk = 1;

/* both write half a megabyte before anybody reads: kernel buffers make this work */
CASE(bulk, both_write_first, 0)
{
	struct conn k;
	long n = 512 << 10;

	conf_pair(&k);
	p_later(&k, 1, OP_SENDN, n, 2, NULL);
	ret("sendn", sendn(k.fd, n, 1));
	peer_ret("peer_sent", p_done());
	ret("recvn", recvn(k.fd, n, 2));
	peer_ret("peer_recvn", p_recvn(&k, n, 1));
}

CASE(bulk, both_write_1mb_first, 0)
{
	struct conn k;
	long n = 1 << 20;

	conf_pair(&k);
	p_later(&k, 1, OP_SENDN, n, 2, NULL);
	ret("sendn", sendn(k.fd, n, 1));
	peer_ret("peer_sent", p_done());
	ret("recvn", recvn(k.fd, n, 2));
	peer_ret("peer_recvn", p_recvn(&k, n, 1));
}

/* one thread, both ends, blocking calls */
CASE(bulk, one_thread_both_ends, ONE)
{
	struct conn k;
	long n = 256 << 10;

	conf_pair(&k);
	for (int i = 0; i < 5; i++) {
		ret("sendn", sendn(k.fd, n, 1));
		ret("sendn", sendn(k.peer, n, 2));
		ret("recvn", recvn(k.peer, n, 1));
		ret("recvn", recvn(k.fd, n, 2));
	}
}

CASE(bulk, ten_megabytes, 0)
{
	struct conn k;
	long n = 10 << 20;

	conf_pair(&k);
	p_later(&k, 1, OP_RECVN, n, 3, NULL);
	ret("sendn", sendn(k.fd, n, 3));
	peer_ret("peer", p_done());
	p_later(&k, 1, OP_SENDN, n, 4, NULL);
	ret("recvn", recvn(k.fd, n, 4));
	peer_ret("peer", p_done());
}

CASE(bulk, slow_reader, 0)
{
	struct conn k;
	long n = 4 << 20, done = 0;
	char b[10000];
	bool ok = true;

	conf_pair(&k);
	p_later(&k, 1, OP_SENDN, n, 4, NULL);
	for (int i = 0; done < n; i++) {
		ssize_t r = recv(k.fd, b, (size_t)(i * 37 % 9999 + 1), 0);

		if (r <= 0)
			break;
		ok = ok && pattern_ok(b, (size_t)r, (uint64_t)done, 4);
		done += r;
		if (i % 64 == 0)
			nap(1);
	}
	ret("done", done);
	yes("ok", ok);
	peer_ret("peer", p_done());
}

CASE(bulk, every_size, 0)
{
	struct conn k;
	static char p[70000], q[70000];
	bool ok = true;
	long total = 0;
	static const long sizes[] = { 1,  2,  3,   7,	8,   15,   16,	 63,
				      64, 65, 100, 255, 256, 1000, 1448, 2048 };

	conf_pair(&k);
	for (unsigned int i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		for (int j = 0; j < 10; j++) {
			size_t n = (size_t)sizes[i];

			pattern(p, n, (uint64_t)total, 5);
			if (send(k.fd, p, n, 0) != (ssize_t)n ||
			    p_recv(&k, q, (long)n) != (long)n || memcmp(p, q, n))
				ok = false;
			total += (long)n;
		}
	}
	yes("ok", ok);
	ret("total", total);
}

CASE(bulk, around_ring_sizes, 0)
{
	struct conn k;
	static const long sizes[] = { 4095,   4096,   4097,    16383,	16384,	 16385,	 32768,
				      65535,  65536,  65537,   131071,	131072,	 131073, 262144,
				      262145, 524289, 1048575, 1048576, 1048577, 3 };

	conf_pair(&k);
	for (unsigned int i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		long n = sizes[i];

		p_later(&k, 1, OP_RECVN, n, (long)i, NULL);
		if (sendn(k.fd, n, (long)i) != n)
			out(" send@%ld", n);
		if (p_done() != n)
			out(" recv@%ld", n);
	}
	yes("done", true);
}

CASE(bulk, mixed_calls, 0)
{
	struct conn k;
	long n = 1000000, done = 0;
	char *p = malloc((size_t)n);
	int f = temp_file((size_t)n, 6);
	unsigned int rnd = 12345;

	/* the same stream by turns with send, writev, sendmsg, sendfile, write, splice */
	conf_pair(&k);
	pattern(p, (size_t)n, 0, 6);
	p_later(&k, 1, OP_RECVN, n, 6, NULL);
	while (done < n) {
		size_t c;
		ssize_t r = 0;
		off_t off = done;

		rnd = rnd * 1103515245u + 12345u;
		c = (rnd >> 8) % 9000 + 1;
		if ((long)c > n - done)
			c = (size_t)(n - done);
		struct iovec iov[2] = { { p + done, c / 2 }, { p + done + c / 2, c - c / 2 } };
		struct msghdr m = { .msg_iov = iov, .msg_iovlen = 2 };

		switch ((rnd >> 24) % 6) {
		case 0:
			r = send(k.fd, p + done, c, 0);
			break;
		case 1:
			r = writev(k.fd, iov, 2);
			break;
		case 2:
			r = sendmsg(k.fd, &m, 0);
			break;
		case 3:
			r = sendfile(k.fd, f, &off, c);
			break;
		case 4:
			r = write(k.fd, p + done, c);
			break;
		case 5:
			r = send(k.fd, p + done, c, MSG_MORE);
			break;
		}
		if (r <= 0) {
			out(" failed=%s", err_name(errno));
			break;
		}
		done += r;
	}
	ret("sent", done);
	/* push out what MSG_MORE may have left */
	set_int(k.fd, IPPROTO_TCP, TCP_NODELAY, 1);
	peer_ret("peer", p_done());
}

CASE(bulk, mixed_receives, 0)
{
	struct conn k;
	long n = 1000000, done = 0;
	char b[10000];
	unsigned int rnd = 999;
	bool ok = true;

	conf_pair(&k);
	p_later(&k, 1, OP_SENDN, n, 6, NULL);
	while (done < n) {
		size_t c;
		ssize_t r = 0;

		rnd = rnd * 1103515245u + 12345u;
		c = (rnd >> 8) % 9000 + 1;
		if ((long)c > n - done)
			c = (size_t)(n - done);
		struct iovec iov[2] = { { b, c / 2 }, { b + c / 2, c - c / 2 } };
		struct msghdr m = { .msg_iov = iov, .msg_iovlen = 2 };

		switch ((rnd >> 24) % 6) {
		case 0:
			r = recv(k.fd, b, c, 0);
			break;
		case 1:
			r = readv(k.fd, iov, 2);
			break;
		case 2:
			r = recvmsg(k.fd, &m, MSG_WAITALL);
			break;
		case 3:
			r = recv(k.fd, b, c, MSG_PEEK);
			if (r > 0)
				r = recv(k.fd, b, (size_t)r, 0);
			break;
		case 4:
			r = read(k.fd, b, c);
			break;
		case 5:
			do {
				r = recv(k.fd, b, c, MSG_DONTWAIT);
			} while (r < 0 && errno == EAGAIN && poll1(k.fd, POLLIN, 1000) > 0);
			break;
		}
		if (r <= 0) {
			out(" failed=%s", err_name(errno));
			break;
		}
		ok = ok && pattern_ok(b, (size_t)r, (uint64_t)done, 6);
		done += r;
	}
	ret("done", done);
	yes("ok", ok);
	peer_ret("peer", p_done());
}

CASE(bulk, request_reply, 0)
{
	struct conn k;
	char b[2049];
	int good = 0;

	conf_pair(&k);
	for (int i = 0; i < 500; i++) {
		char req[32];
		int n = snprintf(req, sizeof(req), "request %06d", i);

		if (send(k.fd, req, (size_t)n, 0) != n || p_recv(&k, b, n) != n ||
		    memcmp(b, req, (size_t)n))
			break;
		if (p_send(&k, b) != n || recv(k.fd, b, sizeof(b), 0) != n ||
		    memcmp(b, req, (size_t)n))
			break;
		good++;
	}
	ret("good", good);
}

CASE(bulk, ten_connections, 0)
{
	struct conn k[10];
	char b[65];
	int good = 0;

	for (int i = 0; i < 10; i++)
		conf_pair(&k[i]);
	for (int r = 0; r < 20; r++) {
		for (int i = 0; i < 10; i++) {
			char t[8];

			snprintf(t, sizeof(t), "c%02dr%02d", i, r);
			send(k[i].fd, t, 6, 0);
			p_send(&k[i], t);
		}
		for (int i = 9; i >= 0; i--) {
			char t[8];

			snprintf(t, sizeof(t), "c%02dr%02d", i, r);
			good += p_recv(&k[i], b, 6) == 6 && !strcmp(b, t);
			good += recv(k[i].fd, b, 6, MSG_WAITALL) == 6 && !memcmp(b, t, 6);
		}
	}
	ret("good", good);
}

CASE(bulk, short_connections, 0)
{
	int good = 0;

	for (int i = 0; i < 40; i++) {
		struct conn k;
		char b[16];

		conf_pair_raw(&k, conf_family, i % 2);
		if (send(k.fd, "abc", 3, 0) != 3 || p_recv(&k, b, 3) != 3 ||
		    p_send(&k, "def") != 3 || recv(k.fd, b, 16, 0) != 3)
			break;
		if (i % 3 == 0) {
			close(k.fd);
			if (p_recv(&k, b, 1) != 0)
				break;
			p_close(&k);
		} else if (i % 3 == 1) {
			p_close(&k);
			if (recv(k.fd, b, 1, 0) != 0)
				break;
			close(k.fd);
		} else {
			close(k.fd);
			p_close(&k);
		}
		good++;
	}
	ret("good", good);
}

CASE(bulk, http_like, 0)
{
	/* write a request, half-close, read the answer to the end */
	struct conn k;
	char b[256];

	conf_pair(&k);
	ret("send", send(k.fd, "GET / HTTP/1.0\r\n\r\n", 18, 0));
	ret("shut", shutdown(k.fd, SHUT_WR));
	peer_ret("peer", p_recv(&k, b, 100));
	peer_ret("answer", p_sendn(&k, 100000, 9));
	p_close(&k);
	ret("recvn", recvn(k.fd, 100000, 9));
	ret("eof", recv(k.fd, b, 1, 0));
}
