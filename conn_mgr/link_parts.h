/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * link_parts.h - between link.c, link_msg.c, link_slot.c, link_bell.c and link_ring.c
 *
 * For the control thread, except where noted.
 */
#ifndef CONN_MGR_LINK_PARTS_H
#define CONN_MGR_LINK_PARTS_H

#include "conn_mgr/link.h"

/* Accepted links whose peer has not said HELLO. */
extern uint32_t rs_links_pending;
extern enum rs_reason rs_links_why;

/* ---- link_msg.c ---- */

struct rs_queued {
	struct rs_queued *next;
	size_t len;
	uint8_t bytes[RS_MSG_MAX];
};

void rs_link_hello(struct rs_link *l);
/* A message that has come; descriptors that it keeps it sets to -1. */
void rs_link_message(struct rs_link *l, const struct rs_msg *m, int *fds, size_t nfds);
/* Something is to be done on the link's socket. */
void rs_link_event(struct rs_source *s, uint32_t events);

/* ---- link_slot.c ---- */

/* Room for RS_SHM_SLOTS more streams. 0 or -errno. */
int rs_link_add_segment(struct rs_link *l);
void rs_link_drop_segment(struct rs_shm_head *h, int fd);
/* Under l->lock: the slot serves another stream, if nobody can write it any more. */
void rs_link_slot_release(struct rs_link *l, uint32_t id);
/* Gives back the memory of slots that no stream wanted for a while. */
void rs_link_slots_timer(struct rs_link *l, uint64_t now);

/* ---- link_bell.c ---- */

/*
 * The peer's own trigger of a bell of ours, made for it now; -errno, also when it has one. And it is over
 * with it. Both thread-safe.
 */
int rs_link_trigger(struct rs_link *l, uint32_t bell);
void rs_link_untrigger(struct rs_link *l, uint32_t bell);

/* Messages, room and death of a queue pair, whoever has polled it. */
void rs_link_look(struct rs_link *l);
/* Rings for the peer whom it could not ring itself. */
void rs_link_scan(struct rs_link *l);

/* ---- link_ring.c: over RDMA ---- */

/* WANT, RING or DROP has come. */
void rs_link_ring_message(struct rs_link *l, const struct rs_msg *m);
/* Asks for larger rings where streams want them. */
void rs_link_rings_ask(struct rs_link *l);
/* Looks, now and then, which are not needed any more. */
void rs_link_rings_timer(struct rs_link *l, uint64_t now);

#endif
