/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * wait.h - how a blocking send or receive waits
 *
 * Look, spin for a while if that tends to pay, then sleep where the kernel's own rules for signals,
 * SA_RESTART, time-outs and cancellation hold: in the kernel's recv/send while the stream is on TCP,
 * in a futex while it is on the fast path, or in poll() as the leader of a queue pair's sleepers
 * (remote.h). No lock is held meanwhile.
 */
#ifndef CONN_MGR_WAIT_H
#define CONN_MGR_WAIT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct rs_conn;

enum rs_wait {
	RS_WAIT_TCP, /* bytes on the kernel socket */
	RS_WAIT_RING, /* bytes in the ring */
	RS_WAIT_ROOM, /* room in the peer's ring */
	RS_WAIT_NEWS, /* a change of path */
};

struct rs_waiter {
	uint64_t mark;
	struct rs_conn *c;
	int fd, flags, timeo; /* timeo: SO_RCVTIMEO or SO_SNDTIMEO */
	int8_t blocks; /* -1: not asked yet */
	bool timed;
	bool partial; /* some bytes were moved: a signal ends the call, SA_RESTART or not */
	uint64_t end; /* ns; valid when timed */
	uint32_t news; /* c->news when the last look began */
	/* What the connection counts us among; undone at the end of the call or of the thread. */
	bool waits; /* c->waiting */
	int8_t slot; /* in c->waiter, -1: none was free */
	bool in_tcp; /* c->in_tcp */
	bool busy; /* c->busy */
	bool sleeps; /* c->sleepers */
	bool rests; /* the queue pair's sleepers; */
	bool leads; /* it is the leader of them */
	bool slept; /* over RDMA, the last time that it was to */
};

void rs_waiter_init(struct rs_waiter *w, struct rs_conn *c, int fd, int flags, int timeo);
/*
 * Under the lock, before the first wait of a call / when the call is about to return. In between the
 * connection outlives the close of its last descriptor, as a file does that a thread is busy with.
 */
void rs_waiter_enter(struct rs_waiter *w, bool in_tcp);
/* Under the lock: out of the kernel's recv / the kernel's send begins or has ended. */
void rs_waiter_awake(struct rs_waiter *w);
void rs_waiter_busy(struct rs_waiter *w, bool busy);
/* Under the lock: what this thread left by longjmp() is over. `frame`: of the call that asks. */
void rs_waiters_stale(struct rs_conn *c, const void *frame);
void rs_waiter_leave(struct rs_waiter *w);
/* At the end of a call, without the lock: does what remains of the above. */
void rs_waiter_end(struct rs_waiter *w);
/* Whether the call may block (MSG_DONTWAIT, O_NONBLOCK). The kernel is asked once. */
bool rs_waiter_ask(struct rs_waiter *w);
static inline bool rs_waiter_blocks(struct rs_waiter *w)
{
	return w->blocks < 0 ? rs_waiter_ask(w) : w->blocks;
}

/*
 * 0: look again. -EAGAIN: would block, or timed out. -EINTR: a handler ran. Other: the kernel
 * socket's error.
 */
int rs_wait_rx(struct rs_waiter *w, enum rs_wait how);
int rs_wait_tx(struct rs_waiter *w, enum rs_wait how);
/* A blocking kernel send of the rest. Bytes or -errno. */
ssize_t rs_wait_in_send(struct rs_waiter *w, const struct iovec *iov, size_t n, size_t done);
/* Spins for room in the peer's ring; false: none came. */
bool rs_spin_room(struct rs_waiter *w);

/* The peer sent last from the CPU that we run on: it cannot run while we spin. */
bool rs_peer_needs_cpu(const struct rs_conn *c);
/* A wait for `c` may find something by spinning: it is fast, and its peer not on this CPU. */
bool rs_may_spin(const struct rs_conn *c);

#endif
