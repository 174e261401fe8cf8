/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * libconn.h - a TCP connection, used as an ordinary program would use it
 *
 * On loopback, or on the server's address in BENCH_ADDRESS (set it at both ends).
 */
#ifndef BENCH_LIBCONN_H
#define BENCH_LIBCONN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum bench_mode {
	BENCH_BLOCKING, /* recv() blocks */
	BENCH_POLL, /* poll(), then a non-blocking recv() */
	BENCH_EPOLL, /* the same with epoll, level-triggered */
};

struct bench_conn {
	int fd;
	int epfd; /* BENCH_EPOLL only */
	enum bench_mode mode;
};

enum bench_mode bench_parse_mode(const char *text);

/* Listens on a free port and prints its number on a line of its own. */
int bench_listen(void);
struct bench_conn bench_accept(int listener, enum bench_mode mode);
struct bench_conn bench_connect(uint16_t port, enum bench_mode mode);
void bench_nodelay(struct bench_conn *c, bool on);
/* Sends off what Nagle's algorithm holds back. */
void bench_push(struct bench_conn *c);
void bench_close(struct bench_conn *c);

void bench_send(struct bench_conn *c, const void *buf, size_t len);
/* One recv() of at most `len` bytes, waiting for the first; 0 at end of file. */
size_t bench_recv_some(struct bench_conn *c, void *buf, size_t len);
/* All `len` bytes; false if end of file comes first. */
bool bench_recv(struct bench_conn *c, void *buf, size_t len);

/* rsock's word on the connection: tx | rx << 4 (0 TCP, 1 shm, 2 RDMA); -1 without rsock. */
int bench_path(const struct bench_conn *c);
static inline bool bench_is_fast(int path)
{
	return (path & 0xf) && (path >> 4);
}

#endif
