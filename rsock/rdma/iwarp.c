/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/rdma/iwarp.h"

#define RESERVE 8u /* twice the notes that can be on their way at once */
#define WORTH(depth) ((depth) / 4)

bool rs_credits_allow(const struct rs_credits *c, bool note)
{
	uint32_t open = c->sent - __atomic_load_n(&c->peer_took, __ATOMIC_SEQ_CST);

	return open < c->depth - (note ? 0 : RESERVE);
}

bool rs_credits_owed(const struct rs_credits *c)
{
	return __atomic_load_n(&c->took, __ATOMIC_RELAXED) -
		       __atomic_load_n(&c->told, __ATOMIC_RELAXED) >=
	       WORTH(c->depth);
}

static void put(uint8_t *p, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(v >> 8 * i);
}

static uint32_t get(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

void rs_note_encode(uint8_t out[RS_NOTE_LEN], uint32_t imm, uint32_t took)
{
	put(out, imm);
	put(out + 4, took);
}

uint32_t rs_note_take(struct rs_credits *c, const uint8_t bytes[RS_NOTE_LEN])
{
	uint32_t took = get(bytes + 4), known = c->peer_took;

	/* Never back, never beyond what was sent: a peer that lies only ends its own connection. */
	if (took - known <= __atomic_load_n(&c->sent, __ATOMIC_RELAXED) - known)
		__atomic_store_n(&c->peer_took, took, __ATOMIC_SEQ_CST);
	return get(bytes);
}
