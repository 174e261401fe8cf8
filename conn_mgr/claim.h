/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * claim.h - pairing the two ends of a connection over a link
 *
 * The connecting side claims: CLAIM{4-tuple, hash of its secret} + O_PATH descriptor of its socket.
 * The accepting side checks the descriptor against sock_diag and answers CLAIM_OK{its secret} + its
 * own descriptor, which the connecting side checks likewise before REVEAL{its secret}. The key of the
 * stream is a hash of both secrets: neither side chose it. Other answers: unknown, not yet accepted,
 * redirect to another process, refused. For the control thread, except where noted.
 */
#ifndef CONN_MGR_CLAIM_H
#define CONN_MGR_CLAIM_H

#include <stdbool.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rsock/reason.h"
#include "rsock/wire.h"

struct rs_conn;
struct rs_link;
struct rs_qp;
struct rs_rdma_ops;
struct rs_tuple;

void rs_claim_asked(struct rs_link *l, const struct rs_msg *m, int handle);
void rs_claim_ok(struct rs_link *l, const struct rs_msg *m, int handle);
void rs_claim_no(struct rs_link *l, const struct rs_msg *m);
void rs_claim_reveal(struct rs_link *l, const struct rs_msg *m);
/* Connections that waited for this link go on / look for another way. */
void rs_claim_link_up(struct rs_link *l);
void rs_claim_link_lost(struct rs_conn *c, uint64_t now);
/* Somebody who waits for the link has not been refused often enough yet. */
bool rs_claim_tries_again(const struct rs_link *l);
/* The link could not be made: connections that waited for it stay on TCP. */
void rs_claim_link_refused(struct rs_link *l, enum rs_reason why);
/* Accepted connections whose window has passed are plain; when (ms) to come again, UINT64_MAX: never. */
uint64_t rs_claim_expire(uint64_t now);
/* The control thread lets go of a connection, which may be in the middle of a claim. */
void rs_claim_drop(struct rs_conn *c);
/* The peer will not go on with a claim that we have accepted. */
void rs_claim_gone(struct rs_conn *c);
void rs_claim_forget(void);

/* What claims need of links (peer.c). `sock` is owned by the link from then on; NULL: refused. */
struct rs_link *rs_link_new(int sock, const char *name);
/* Over RDMA; `to`: the connection that it is made for, NULL: the peer made it. */
struct rs_link *rs_link_new_remote(const struct rs_rdma_ops *ops, struct rs_qp *qp,
				   const struct rs_tuple *to);
/* The queue pair is connected / could not be, or is not any more. */
void rs_link_remote_up(struct rs_link *l);
void rs_link_failed(struct rs_link *l, int error);
void rs_link_kill(struct rs_link *l, uint64_t now);
int rs_link_send(struct rs_link *l, const struct rs_msg *m, const int *fds, size_t nfds);
/* Another live link to the same process, else `l` itself. */
struct rs_link *rs_link_same_process(struct rs_link *l);
/* `name` leads to the process of `l` too. */
void rs_link_alias(struct rs_link *l, const char *name);
bool rs_link_named(const struct rs_link *l, const char *name);
/* A slot for `c` (sets c->link, c->id). 0 or -errno. */
int rs_link_slot_get(struct rs_link *l, struct rs_conn *c);
/* The peer never learned of the slot, or will not use it. */
void rs_link_slot_unused(struct rs_link *l, uint32_t id);
/*
 * The peer knows of the slot and will not be served (or `c`, which it was for, is no more): it is free
 * when the peer's GONE has come. False: the slot is not c's any more.
 */
bool rs_link_slot_refuse(struct rs_link *l, uint32_t id, struct rs_conn *c);
/* `c` lets go of the slot of a claim that is not answered yet: rs_link_slot_orphan() is then true. */
void rs_link_slot_leave(struct rs_link *l, uint32_t id, struct rs_conn *c);
bool rs_link_slot_orphan(struct rs_link *l, uint32_t id);

#endif
