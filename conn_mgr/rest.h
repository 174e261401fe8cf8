/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * rest.h - what a peer that has ended left in the ring, when several processes have the connection
 *
 * It cannot come again over TCP, and the ring is in memory that they share: whoever reads next has the
 * next bytes, as of a socket. Sending is TCP's by then, and so is the end of file behind the rest.
 * All of this is called under the connection's lock.
 */
#ifndef CONN_MGR_REST_H
#define CONN_MGR_REST_H

#include <stdbool.h>
#include <sys/uio.h>

#include "conn_mgr/conn.h"

/* In the owner. False: the stream may yet leave, or is over. */
bool rs_rest_declare(struct rs_conn *c);
/* In the owner: it is over. */
void rs_rest_end(struct rs_conn *c);
/* In another process: there is one. `ends`: of the connection, as it was at the fork. */
bool rs_rest_declared(struct rs_shared *sh, uint32_t ends);
/* How much is left of it. */
size_t rs_rest_bytes(struct rs_conn *c);
/*
 * Some bytes of it, behind `done` bytes of `iov`; 0: nothing is left, the kernel knows what comes now;
 * -ECONNRESET: that comes now.
 */
ssize_t rs_rest_recv(struct rs_conn *c, const struct iovec *iov, size_t n, size_t done, int flags);

#endif
