/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * test_proof.c - which socket holds an end of a connection: sock_diag against real loopback ones
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "conn_mgr/proof.h"

struct pair {
	int listener, client, server;
	struct rs_tuple t;
};

static void name(int fd, bool peer, struct sockaddr_storage *sa)
{
	socklen_t len = sizeof(*sa);

	memset(sa, 0, sizeof(*sa));
	assert_int_equal(peer ? getpeername(fd, (struct sockaddr *)sa, &len)
			      : getsockname(fd, (struct sockaddr *)sa, &len),
			 0);
}

static uint16_t part(const struct sockaddr_storage *sa, uint8_t ip[16])
{
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)sa;
	const struct sockaddr_in *in = (const struct sockaddr_in *)sa;

	if (sa->ss_family == AF_INET) {
		memcpy(ip, &in->sin_addr, 4);
		return ntohs(in->sin_port);
	}
	memcpy(ip, &in6->sin6_addr, 16);
	return ntohs(in6->sin6_port);
}

/* A connection that is not accepted yet. */
static void connect_pair(struct pair *p, int family)
{
	struct sockaddr_storage sa = { .ss_family = (sa_family_t)family };
	socklen_t len =
		family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);

	memset(p, 0, sizeof(*p));
	p->server = -1;
	if (family == AF_INET)
		((struct sockaddr_in *)&sa)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	else
		((struct sockaddr_in6 *)&sa)->sin6_addr = in6addr_loopback;
	p->listener = socket(family, SOCK_STREAM, 0);
	assert_int_equal(bind(p->listener, (struct sockaddr *)&sa, len), 0);
	assert_int_equal(listen(p->listener, 5), 0);
	name(p->listener, false, &sa);
	p->client = socket(family, SOCK_STREAM, 0);
	assert_int_equal(connect(p->client, (struct sockaddr *)&sa, len), 0);
	p->t.family = family == AF_INET ? 4 : 6;
	name(p->client, false, &sa);
	p->t.client_port = part(&sa, p->t.client_ip);
	name(p->client, true, &sa);
	p->t.server_port = part(&sa, p->t.server_ip);
}

static void close_pair(struct pair *p)
{
	close(p->listener);
	close(p->client);
	if (p->server >= 0)
		close(p->server);
}

static uint64_t inode(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return st.st_ino;
}

static void check_family(int family)
{
	struct pair p;

	connect_pair(&p, family);
	/* In the backlog there is a connection, and nobody who holds it. */
	assert_int_equal(rs_proof_inode(&p.t, true), 0);
	assert_int_equal(rs_proof_inode(&p.t, false), inode(p.client));
	p.server = accept(p.listener, NULL, NULL);
	assert_true(p.server >= 0);
	assert_int_equal(rs_proof_inode(&p.t, true), inode(p.server));
	assert_int_equal(rs_proof_inode(&p.t, false), inode(p.client));
	assert_int_not_equal(inode(p.client), inode(p.server));
	close_pair(&p);
}

static void ipv4(void **state)
{
	(void)state;
	check_family(AF_INET);
}

static void ipv6(void **state)
{
	(void)state;
	check_family(AF_INET6);
}

static void no_such_connection(void **state)
{
	struct rs_tuple t;
	struct pair p;

	(void)state;
	connect_pair(&p, AF_INET);
	p.server = accept(p.listener, NULL, NULL);
	t = p.t;
	t.client_port ^= 1;
	/* The listener on the port is not the connection. */
	assert_int_equal(rs_proof_inode(&t, true), -ENOENT);
	assert_int_equal(rs_proof_inode(&t, false), -ENOENT);
	t = p.t;
	t.client_ip[3] = 9;
	assert_int_equal(rs_proof_inode(&t, true), -ENOENT);
	t = p.t;
	t.server_ip[3] = 9;
	assert_int_equal(rs_proof_inode(&t, true), -ENOENT);
	t = p.t;
	t.family = 6;
	assert_true(rs_proof_inode(&t, true) < 0);
	close_pair(&p);
	/* Gone, or in TIME_WAIT without an owner. */
	assert_true(rs_proof_inode(&p.t, true) <= 0);
}

static void handles(void **state)
{
	struct pair p;
	char byte;
	int h;

	(void)state;
	connect_pair(&p, AF_INET);
	p.server = accept(p.listener, NULL, NULL);
	h = rs_proof_handle(p.server);
	assert_true(h >= 0);
	assert_int_equal(rs_proof_handle_inode(h), inode(p.server));
	assert_int_equal(rs_proof_handle_inode(h), rs_proof_inode(&p.t, true));
	assert_int_equal(fcntl(h, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	/* It proves, and gives nothing else. */
	assert_int_equal(send(p.client, "x", 1, 0), 1);
	assert_int_equal(read(h, &byte, 1), -1);
	assert_int_equal(recv(h, &byte, 1, 0), -1);
	assert_int_equal(send(h, "y", 1, 0), -1);
	assert_int_equal(shutdown(h, SHUT_RDWR), -1);
	close(h);
	assert_int_equal(recv(p.server, &byte, 1, 0), 1);
	close_pair(&p);
}

static void wrong_handles(void **state)
{
	struct pair a, b;
	int pipes[2], h, file = open("/dev/null", O_RDONLY);

	(void)state;
	assert_int_equal(pipe(pipes), 0);
	assert_int_equal(rs_proof_handle_inode(file), 0);
	assert_int_equal(rs_proof_handle_inode(pipes[0]), 0);
	assert_int_equal(rs_proof_handle_inode(-1), 0);
	assert_true(rs_proof_handle(987654) < 0);
	/* A file by the name that the kernel gives to sockets. */
	assert_int_equal(chdir("/tmp"), 0);
	h = open("socket:[12345]", O_CREAT | O_RDWR, 0600);
	assert_true(h >= 0);
	assert_int_equal(unlink("socket:[12345]"), 0);
	assert_int_equal(rs_proof_handle_inode(h), 0);
	close(h);
	/* Another socket of mine, or my end of the same connection, is not the peer's end. */
	connect_pair(&a, AF_INET);
	a.server = accept(a.listener, NULL, NULL);
	connect_pair(&b, AF_INET);
	b.server = accept(b.listener, NULL, NULL);
	h = rs_proof_handle(b.server);
	assert_int_not_equal(rs_proof_handle_inode(h), rs_proof_inode(&a.t, true));
	close(h);
	h = rs_proof_handle(a.client);
	assert_int_not_equal(rs_proof_handle_inode(h), rs_proof_inode(&a.t, true));
	close(h);
	close_pair(&a);
	close_pair(&b);
	close(file);
	close(pipes[0]);
	close(pipes[1]);
}

static void again_after_forget(void **state)
{
	struct pair p;

	(void)state;
	connect_pair(&p, AF_INET);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(rs_proof_inode(&p.t, false), inode(p.client));
		rs_proof_forget();
	}
	close_pair(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ipv4),
		cmocka_unit_test(ipv6),
		cmocka_unit_test(no_such_connection),
		cmocka_unit_test(handles),
		cmocka_unit_test(wrong_handles),
		cmocka_unit_test(again_after_forget),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
