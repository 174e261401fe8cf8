/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * iwarp.h - what iWARP lacks: immediate data, and patience with a full receive queue (pure)
 *
 * There is no RDMA write with immediate data (RFC 5040): a note, a SEND of 8 bytes right behind the
 * write, stands for it. And a SEND that finds no receive buffer ends the connection, so each end counts
 * the buffers of the other (credits): a note also says how many the sender of it has taken and given
 * back, and one without immediate data goes when that has become worth telling. The last few buffers are
 * kept for those.
 *
 * `sent` belongs to who posts, `took` and `told` to who polls, `peer_took` is written by who polls and
 * read by both; each of the two has a lock of the caller's.
 */
#ifndef RSOCK_RDMA_IWARP_H
#define RSOCK_RDMA_IWARP_H

#include <stdbool.h>
#include <stdint.h>

#define RS_NOTE_LEN 8u
#define RS_NOTE_NONE UINT32_MAX /* no immediate data */

struct rs_credits {
	uint32_t depth; /* receive buffers of each end */
	uint32_t sent; /* SENDs posted */
	uint32_t took, told; /* of the peer's SENDs; and as far as it knows */
	uint32_t peer_took; /* of ours */
};

/* Whether the peer has a buffer for one more SEND; `note`: one without immediate data. */
bool rs_credits_allow(const struct rs_credits *c, bool note);
/* The peer should hear of what we have taken. */
bool rs_credits_owed(const struct rs_credits *c);

void rs_note_encode(uint8_t out[RS_NOTE_LEN], uint32_t imm, uint32_t took);
/* Takes what it says of our SENDs, if that can be, and returns its immediate data. */
uint32_t rs_note_take(struct rs_credits *c, const uint8_t bytes[RS_NOTE_LEN]);

#endif
