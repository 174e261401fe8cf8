/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * rest.h - what a peer that has ended left in the ring, when several processes have the connection
 *
 * It cannot come again over TCP, and the ring is in memory that they share: whoever reads next has the
 * next bytes, as of a socket. Sending is TCP's by then, and so is the end of file behind the rest.
 */
#ifndef CONN_MGR_REST_H
#define CONN_MGR_REST_H

#include <stdbool.h>
#include <sys/uio.h>

#include "conn_mgr/conn.h"

/* In the owner, under the lock. False: the stream may yet leave, or is over. */
bool rs_rest_declare(struct rs_conn *c);
static inline bool rs_rest_declared(const struct rs_state *st)
{
	return __atomic_load_n(&st->rest_at, __ATOMIC_ACQUIRE) == st->ends + 1;
}
/* Around what ends it. */
void rs_rest_lock(struct rs_state *st);
void rs_rest_unlock(struct rs_state *st);
/* How much is left of it. `ends`: st->ends of the connection that it is a rest of. */
size_t rs_rest_bytes(struct rs_state *st, uint32_t ends);
/*
 * Some bytes of it, behind `done` bytes of `iov`; 0: nothing is left, the kernel knows what comes now;
 * -ECONNRESET: that comes now.
 */
ssize_t rs_rest_recv(struct rs_state *st, uint32_t ends, const struct iovec *iov, size_t n,
		     size_t done, int flags);

#endif
