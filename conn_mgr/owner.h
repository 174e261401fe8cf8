/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * owner.h - whose a stream is when several processes have its socket by fork
 *
 * A fork moves nothing: the process that has a connection on a link stays its owner, and keeps its
 * speed. In the child the connection is foreign, which costs nothing as long as it is not used. Its
 * first use there asks the owner to leave the fast path; then both go on with TCP. An owner that closes
 * its last descriptor, ends or becomes another program while somebody else may have the socket leaves
 * first. For an owner that was killed, the first that uses the connection leaves: forked processes can
 * see its state (state.h), and share the rings.
 *
 * Functions return results or -errno, and leave errno alone.
 */
#ifndef CONN_MGR_OWNER_H
#define CONN_MGR_OWNER_H

#include <stdbool.h>
#include <stdint.h>

#include "conn_mgr/conn.h"

/* ---- around a fork; one at a time ---- */

/* Makes what a child needs to find us. False: it cannot be had, and streams must leave before the fork. */
bool rs_owner_prepare(uint32_t fork);
/*
 * `c` stays ours over fork number `fork`. False: it is not on a link, nothing is prepared, or, unless
 * `always`, it should rather leave.
 */
bool rs_owner_keep(struct rs_conn *c, uint32_t fork, bool always);
/* All have been kept that will be. */
void rs_owner_ready(void);
/* Afterwards, when rs_owner_prepare() was called (`prepared`: and was true). */
void rs_owner_forked(bool child, bool prepared);
/* In the child, for each descriptor of one that was kept, or was foreign before. */
void rs_owner_disown(struct rs_conn *c);
/* For all of them; `inside`: the child goes on in the midst of a call that uses one. */
void rs_owner_disowned(bool inside);

/* ---- in the owner ---- */

/* Another process may have the socket of `c`. Under its lock. */
bool rs_owner_shared(struct rs_conn *c);
/*
 * Connections that have left no descriptor to the program, and are on their way to TCP for others; waits
 * until there is none, `wait_ms` at most. How many there are.
 */
uint32_t rs_owner_yielding(uint32_t wait_ms);
void rs_owner_count_yielding(int change);
/*
 * Under its lock, when this process will not use it any more: what is left can only be read from the
 * ring, and whoever uses it next does. It keeps its place on the link until nobody has it. False: it
 * may yet leave.
 */
bool rs_owner_give(struct rs_conn *c);
/* What is left can only be read from the ring, and other processes do it too from now on. False: not yet. */
bool rs_owner_leave_rest(struct rs_conn *c);
/*
 * The process ends: whoever uses `c` next carries on with it; `lingerer`, if any, writes to TCP first
 * what it is owed. That process calls this in the end with 0.
 */
void rs_owner_bequeath(struct rs_conn *c, uint32_t lingerer);
/* Under its lock: it was given, and nobody has it any more. */
bool rs_owner_given_up(struct rs_conn *c);
/* Under its lock: it is TCP's for good, was reset, or is gone. */
void rs_owner_ended(struct rs_conn *c, bool reset);

/* ---- in others ---- */

/*
 * `c` is foreign and about to be used: returns when it is plain, or reset because the owner did not
 * answer. Waits for as long as the descriptor may block, else 10 s at most.
 */
void rs_owner_claim(struct rs_conn *c);
/* The same, but one that has fallen to us, for its owner is dead, has only begun to leave. */
void rs_owner_adopt(struct rs_conn *c);
/* The same, but at once, or not at all. */
void rs_owner_inherit(struct rs_conn *c);
/* Under its lock: `c` is closed here, its owner goes on with it. */
void rs_owner_let_go(struct rs_conn *c);
/*
 * The owner of `c` (NULL: of any that is foreign) was killed. Nobody reads what the peer then writes on
 * its way to TCP, and our kernel would answer that with RST: claim it before the descriptor goes.
 */
bool rs_owner_dead(const struct rs_conn *c);
/*
 * A peer that leaves waits for the owner's RESUME, and a child that never uses the connection would not
 * see that it has to be the one to write it. So a child that stays has its control thread wait for the
 * death of owners, and call rs_owner_died(). A child that is about to become another program need not.
 */
extern bool rs_owner_unwatched; /* there are foreign connections, and that is still to be done: */
void rs_owner_watch(void);
bool rs_owner_watches(void);
void rs_owner_timer(uint64_t now);
extern void (*rs_owner_died)(void);

#endif
