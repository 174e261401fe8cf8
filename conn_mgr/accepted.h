/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * accepted.h - connections that this process has accepted, by 4-tuple
 *
 * An accepted connection belongs to the process that uses it first, for a server may fork in between; if
 * none does, for half a second, to the one that accepted it, unless that forks for its connections. From
 * then on it can be claimed. For some time, its window, it waits for the other end to do that; then it
 * is plain. Thread-safe.
 */
#ifndef CONN_MGR_ACCEPTED_H
#define CONN_MGR_ACCEPTED_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "conn_mgr/conn.h"

struct rs_tuple;

/* `c` was accepted on `port` from `peer`. */
void rs_accepted_add(struct rs_conn *c, uint16_t port, const struct sockaddr *peer);
void rs_accepted_take(struct rs_conn *c);
/* `c` is about to be read, written or watched: if nobody has used it yet, it is ours. */
static inline void rs_accepted_used(struct rs_conn *c)
{
	if (__builtin_expect(__atomic_load_n(&c->fresh, __ATOMIC_RELAXED), false))
		rs_accepted_take(c);
}
/*
 * Before a fork, once for each; `fork` is its number: the child may use the connection as well. False:
 * it is used, or was not accepted.
 */
bool rs_accepted_share(struct rs_conn *c, uint32_t fork);
/* Under its lock: the last descriptor is closed; who has it as well may use it. */
void rs_accepted_unshare(struct rs_conn *c);
/* This process ends, or (`stays_open`) becomes another program, which nobody can be sure about. */
void rs_accepted_leave(struct rs_conn *c, bool stays_open);
/* Under its lock: it is plain, and whoever is asked for it from now on should be able to say why. */
void rs_accepted_refused(const struct rs_conn *c);
/* Forgets it. */
void rs_accepted_drop(struct rs_conn *c);
/* The one with that 4-tuple, with a reference, or NULL. */
struct rs_conn *rs_accepted_find(const struct rs_tuple *t);
bool rs_accepted_has(const struct rs_tuple *t);
/* Under its lock: claimed. From here on it is among those that the control thread looks after. */
void rs_accepted_adopt(struct rs_conn *c);
/* Those whose window has passed are plain; when (ms) to come again, UINT64_MAX: never. */
uint64_t rs_accepted_expire(uint64_t now);
/* This process has stood still for `ms`: the windows are so much longer. */
void rs_accepted_postpone(uint64_t ms);
/* In a forked child. */
void rs_accepted_forget(void);

#endif
