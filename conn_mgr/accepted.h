/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * accepted.h - connections that this process has accepted, by 4-tuple
 *
 * For some time, its window, such a connection waits for the other end to claim it; then it is plain.
 * Thread-safe.
 */
#ifndef CONN_MGR_ACCEPTED_H
#define CONN_MGR_ACCEPTED_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

struct rs_conn;
struct rs_tuple;

/* `c` was accepted on `port` from `peer`; it may be claimed. */
void rs_accepted_add(struct rs_conn *c, uint16_t port, const struct sockaddr *peer);
/* Forgets it. */
void rs_accepted_drop(struct rs_conn *c);
/* The one with that 4-tuple, with a reference, or NULL. */
struct rs_conn *rs_accepted_find(const struct rs_tuple *t);
bool rs_accepted_has(const struct rs_tuple *t);
/* Under its lock: claimed. From here on it is among those that the control thread looks after. */
void rs_accepted_adopt(struct rs_conn *c);
/* Those whose window has passed are plain; when (ms) to come again, UINT64_MAX: never. */
uint64_t rs_accepted_expire(uint64_t now);
/* In a forked child. */
void rs_accepted_forget(void);

#endif
