/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * iwarp.c - credits of a peer that lies in its notes: they go neither back nor beyond what was sent
 */
#include "rsock/rdma/iwarp.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = { data, size };
	struct rs_credits c = { .depth = 512 };
	uint8_t note[RS_NOTE_LEN];
	uint32_t n, imm;

	/* The counts wrap around. */
	c.sent = c.peer_took = c.took = c.told = (uint32_t)fuzz_wild(&in, 0);
	while (in.left) {
		uint32_t before = c.peer_took, open = c.sent - before;

		switch (fuzz_int(&in, 1) % 4) {
		case 0:
			n = (uint32_t)fuzz_int(&in, 2);
			while (n-- && rs_credits_allow(&c, false))
				c.sent++;
			break;
		case 1:
			if (rs_credits_allow(&c, true))
				c.sent++;
			break;
		case 2:
			c.took += (uint32_t)fuzz_int(&in, 1);
			if (rs_credits_owed(&c))
				c.told = c.took;
			break;
		case 3:
			n = (uint32_t)fuzz_wild(&in, fuzz_int(&in, 1) % 2 ? c.sent : before);
			rs_note_encode(note, (uint32_t)fuzz_int(&in, 4), n);
			imm = (uint32_t)note[0] | (uint32_t)note[1] << 8 | (uint32_t)note[2] << 16 |
			      (uint32_t)note[3] << 24;
			CHECK(rs_note_take(&c, note) == imm);
			CHECK(c.peer_took - before <= open);
			break;
		}
		CHECK(c.sent - c.peer_took <= c.depth);
	}
	return 0;
}
