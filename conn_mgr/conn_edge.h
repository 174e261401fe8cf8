/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * conn_edge.h - between conn.c, conn_io.c and conn_poll.c: driving the state machine of a connection
 *
 * All of these are called with the connection's lock held. None sleeps or waits for a peer.
 */
#ifndef CONN_MGR_CONN_EDGE_H
#define CONN_MGR_CONN_EDGE_H

#include "conn_mgr/conn.h"

/* Obeys what the state machine wants done: messages, control bytes, wake-ups, ends. */
void rs_conn_settle(struct rs_conn *c);
/* The same, when there is anything, and releases the lock. */
void rs_conn_unlock(struct rs_conn *c);
/* Takes control data (MARK, frames, overlap) off the head of TCP, as far as there is any. */
void rs_conn_take_control(struct rs_conn *c);
/* Writes to TCP what the state machine owes it. */
void rs_conn_flush_out(struct rs_conn *c);
/* TCP is at its end before MARK, or instead of it. */
void rs_conn_tcp_ended(struct rs_conn *c);

#endif
