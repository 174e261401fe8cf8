/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * claim.h - pairing the two ends of a connection over a link
 *
 * The connecting side claims: CLAIM{4-tuple, hash of its secret} + O_PATH descriptor of its socket.
 * The accepting side checks the descriptor against sock_diag and answers CLAIM_OK{its secret} + its
 * own descriptor, which the connecting side checks likewise before REVEAL{its secret}. The key of the
 * stream is a hash of both secrets: neither side chose it. Other answers: unknown, not yet accepted,
 * redirect to another process, refused. For the control thread.
 */
#ifndef CONN_MGR_CLAIM_H
#define CONN_MGR_CLAIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rsock/reason.h"
#include "rsock/wire.h"

struct rs_conn;
struct rs_link;

/* Connected: find the peer process and claim. Called again at c->claim_at. */
void rs_claim_begin(struct rs_conn *c, uint64_t now);

/* What came on a link; `handle`: the descriptor that came with it, or -1. */
void rs_claim_asked(struct rs_link *l, const struct rs_msg *m, int handle);
void rs_claim_ok(struct rs_link *l, const struct rs_msg *m, int handle);
void rs_claim_no(struct rs_link *l, const struct rs_msg *m);
void rs_claim_reveal(struct rs_link *l, const struct rs_msg *m);
/* Connections that waited for this link go on / look for another way. */
void rs_claim_link_up(struct rs_link *l);
void rs_claim_link_lost(struct rs_conn *c, uint64_t now);
/* Somebody who waits for the link has not been refused often enough yet. */
bool rs_claim_tries_again(const struct rs_link *l);
enum rs_claim_again {
	RS_CLAIM_NEVER,
	RS_CLAIM_AGAIN, /* nobody answers there: a few times */
	RS_CLAIM_WAITS, /* for the server to accept it */
};

/* The link could not be made: connections that waited for it try again, or stay on TCP. */
void rs_claim_link_refused(struct rs_link *l, enum rs_reason why, enum rs_claim_again again);
/* The control thread lets go of a connection, which may be in the middle of a claim. */
void rs_claim_drop(struct rs_conn *c);
/* The peer will not go on with a claim that we have accepted. */
void rs_claim_gone(struct rs_conn *c);

#endif
