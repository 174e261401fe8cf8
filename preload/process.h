/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * process.h - start, fork and exec
 *
 * Streams do not cross process borders on the fast path: before exec and descriptor passing they leave
 * it, and both processes carry on over TCP. A fork leaves them with the parent (conn_mgr/owner.h).
 */
#ifndef PRELOAD_PROCESS_H
#define PRELOAD_PROCESS_H

#include <stdbool.h>

#include "conn_mgr/owner.h"
#include "rsock/reason.h"

extern long rs_process_pid; /* of the process whose memory this is */

/* Library start: configuration, real functions, fork handlers. Idempotent. */
void rs_process_init(void);
/* In a child that no fork handler saw. */
void rs_process_forked(void);
/* Around a fork of which libc's fork handlers are not told. */
void rs_process_before_fork(void);
void rs_process_after_fork(bool child);
/* Those of a set that came by a fork are about to be waited for: they become plain. */
void rs_process_claim_watched(void);
/* Before a call that may wait: a forked child that does so is not about to become another program. */
void rs_process_stays(void);

static inline void rs_process_waits(void)
{
	if (__builtin_expect(__atomic_load_n(&rs_owner_unwatched, __ATOMIC_RELAXED), 0))
		rs_process_stays();
}

/* Before exec: streams that the new program would inherit become plain, and those that others have too. */
void rs_process_before_exec(void);
/* Before another process starts a program: only what that would inherit. */
void rs_process_before_start(void);
/* Before a spawn with file actions, which may hand any descriptor to the new program. */
void rs_process_before_spawn(void);
/*
 * The program has made an io_uring, which passes every hook: all streams become plain TCP now, and none is
 * looked for a peer any more, here and in forked children, which have the ring too. One that cannot leave
 * is reset.
 */
void rs_process_has_ring(void);
extern bool rs_process_rings; /* it has */
/*
 * The stream behind `fd`, if any, becomes plain TCP now. 0: who sends may use the kernel socket, and who
 * receives if it has become plain (rs_file_conn()): when the peer has sent all and closed, what is left
 * in the ring comes by our own calls only. -EAGAIN: it cannot yet, and the descriptor is non-blocking:
 * the caller must not touch the kernel socket.
 */
int rs_process_leave_fd(int fd, enum rs_reason why);
/* The same before another process gets `fd`: a stream whose rest it could not have is reset. */
int rs_process_give_fd(int fd, enum rs_reason why);
/* Before _exit(): hands TCP what would be lost. */
void rs_process_exits(void);

#endif
