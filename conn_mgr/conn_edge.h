/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * conn_edge.h - between the conn*.c: driving the state machine of a connection
 *
 * conn.c keeps connections and tells others about them, conn_enter.c brings them onto the fast path,
 * conn_return.c does so again later, conn_drive.c obeys the state machine, conn_io.c moves the program's bytes, conn_poll.c answers for
 * readiness, conn_close.c ends them.
 *
 * All but two of these are called with the connection's lock held. None sleeps or waits for a peer.
 */
#ifndef CONN_MGR_CONN_EDGE_H
#define CONN_MGR_CONN_EDGE_H

#include "conn_mgr/conn.h"

/* ---- conn.c ---- */

/* From here on the control thread watches the TCP side and the kernel's epoll sets do not. 0 or -errno. */
int rs_conn_manage(struct rs_conn *c);
void rs_conn_unwatch_tcp(struct rs_conn *c);
/* Kernel TCP for good. */
void rs_conn_become_plain(struct rs_conn *c);
/* The kernel's epoll sets begin (false: cease) to speak for the stream. */
void rs_conn_speak(struct rs_conn *c, bool kernel);
/* Up to which offset TCP must bring the stream: an end before it is a cut. */
uint64_t rs_conn_owed_by_tcp(const struct rs_conn *c);
/* Brings the row of `rsock stat` up to date. */
void rs_conn_show(struct rs_conn *c);

/* ---- conn_enter.c ---- */

/*
 * A thread has come out of the kernel's send. Who sends much is there nearly always, and the control thread
 * would never find it elsewhere: what is due is done now.
 */
void rs_conn_not_busy(struct rs_conn *c);

/* ---- conn_return.c ---- */

/* On its way out, with both directions raw: may it come back? */
bool rs_conn_may_return(struct rs_conn *c);
/* Then it lets go of its slot, and is a candidate again. */
void rs_conn_return(struct rs_conn *c);
/* An attempt to come back has failed. False: it was none, or the last. */
bool rs_conn_return_later(struct rs_conn *c, enum rs_reason why);
/* It is time for one. */
void rs_conn_return_now(struct rs_conn *c, uint64_t now);
/* Looks, from when both directions are fast, now and then (c->park_at) whether it is idle: then it leaves. */
void rs_conn_park(struct rs_conn *c, uint64_t now);
/* Bytes have moved on TCP after that. */
void rs_conn_unpark(struct rs_conn *c);
/* Whether it is one of those that look. */
bool rs_conn_parks(const struct rs_conn *c);

/* ---- conn_fast.c ---- */

/* Under the lock: whoever receives has to wait for the ring. */
bool rs_conn_ring_empty(const struct rs_conn *c);
/* Under the lock: copies out of it what can be copied at once; 0: nothing was. */
size_t rs_conn_take_ring(struct rs_conn *c, void *buf, size_t n, bool all);

/* ---- conn_io.c ---- */

/* With rs_conn_ring_empty(): as rs_conn_recv() with one buffer. Releases the lock. */
ssize_t rs_conn_recv_empty(struct rs_conn *c, int fd, void *buf, size_t n, int flags);

/* ---- conn_drive.c ---- */

/* Obeys what the state machine wants done: messages, control bytes, wake-ups, ends. */
void rs_conn_settle(struct rs_conn *c);
/* The same, when there is anything, and releases the lock. */
static inline void rs_conn_unlock(struct rs_conn *c)
{
	if (__builtin_expect(c->st->sm.todo | c->st->sm.nmsgs, 0))
		rs_conn_settle(c);
	rs_unlock(&c->lock);
}
/* Tells the state machine what has been acknowledged, and what has landed. */
void rs_conn_sync(struct rs_conn *c);
/* Takes control data (MARK, frames, overlap) off the head of TCP, as far as there is any. */
void rs_conn_take_control(struct rs_conn *c);
/* Writes to TCP what the state machine owes it. */
void rs_conn_flush_out(struct rs_conn *c);
/* TCP is at its end before MARK, or instead of it. */
void rs_conn_tcp_ended(struct rs_conn *c);
/*
 * The peer closed. What we put into its ring after that it will not see; TCP would have answered with
 * RST (EPIPE, for its FIN came before).
 */
void rs_conn_peer_closed(struct rs_conn *c);
/*
 * Whether the peer's process has ended and its socket with it. Bytes of ours that it left unread in its
 * ring TCP would have answered with RST.
 */
void rs_conn_check_gone(struct rs_conn *c);
/* Whether RST has come, or both directions have ended, whatever is left to read. */
bool rs_conn_tcp_closed(const struct rs_conn *c);
/*
 * With nothing left to read: whether FIN has come, and not only RST. Of a kernel that cannot say we take it
 * for one.
 */
bool rs_conn_fin_came(int fd);
/*
 * What TCP would have got is RST: makes our kernel's socket one that has, so that all processes which have it
 * see the same, and ECONNRESET, unless it was told, once.
 */
void rs_conn_reset_to_kernel(struct rs_conn *c);
/* The error that the kernel has for the next call, which nobody else gets any more. */
int rs_conn_kernel_error(const struct rs_conn *c);
/* Whether neither direction has ended. */
bool rs_conn_is_established(const struct rs_conn *c);
/* Lets go of the slot, and wakes who sleeps there. */
void rs_conn_detach(struct rs_conn *c);

#endif
