/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * test_iwarp.c - credits: no SEND without a receive buffer, no stand-still, whatever the peer says
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "rsock/rdma.h"
#include "rsock/rdma/iwarp.h"

#define DEPTH 512u

static void notes(void **state)
{
	static const uint8_t expect[RS_NOTE_LEN] = { 4, 3, 2, 1, 8, 7, 6, 5 };
	struct rs_credits c = { .depth = DEPTH, .sent = 0x05060708 };
	uint8_t bytes[RS_NOTE_LEN];

	(void)state;
	rs_note_encode(bytes, 0x01020304, 0x05060708);
	assert_memory_equal(bytes, expect, sizeof(bytes));
	assert_int_equal(rs_note_take(&c, bytes), 0x01020304);
	assert_int_equal(c.peer_took, 0x05060708);
}

static uint32_t fill(struct rs_credits *c, bool note)
{
	uint32_t n = 0;

	for (; rs_credits_allow(c, note); n++)
		c->sent++;
	return n;
}

static void never_more_than_buffers(void **state)
{
	for (uint32_t start = 0; start < 2; start++) {
		const uint32_t base = start ? UINT32_MAX - 3 : 0; /* the counts go round */
		struct rs_credits c = { .depth = DEPTH, .sent = base, .peer_took = base };
		uint32_t first = fill(&c, false), reserve = fill(&c, true);
		uint8_t bytes[RS_NOTE_LEN];

		(void)state;
		assert_int_equal(first + reserve, DEPTH);
		assert_true(reserve > 0);
		rs_note_encode(bytes, RS_NOTE_NONE, base + DEPTH / 4);
		assert_int_equal(rs_note_take(&c, bytes), RS_NOTE_NONE);
		assert_int_equal(fill(&c, false), DEPTH / 4 - reserve);
	}
}

static void lies(void **state)
{
	struct rs_credits c = { .depth = DEPTH, .sent = 100, .peer_took = 50 };
	static const uint32_t said[] = { 101, 49, 0, UINT32_MAX, 50 + 0x80000000u };
	uint8_t bytes[RS_NOTE_LEN];

	(void)state;
	for (size_t i = 0; i < sizeof(said) / sizeof(said[0]); i++) {
		rs_note_encode(bytes, 7, said[i]);
		assert_int_equal(rs_note_take(&c, bytes), 7);
		assert_int_equal(c.peer_took, 50);
	}
}

/* Both send as fast as they may, and neither reads what the other has to say until it must. */
static void no_stand_still(void **state)
{
	struct rs_credits a = { .depth = DEPTH }, b = { .depth = DEPTH };
	uint8_t bytes[RS_NOTE_LEN];

	(void)state;
	for (int round = 0; round < 10000; round++) {
		uint32_t n = fill(&a, false);

		assert_true(n > 0);
		b.took += n;
		assert_true(rs_credits_owed(&b) || round == 0 || n < DEPTH / 4);
		if (!rs_credits_owed(&b))
			continue;
		assert_true(rs_credits_allow(&b, true));
		b.sent++;
		b.told = b.took;
		rs_note_encode(bytes, RS_NOTE_NONE, b.took);
		rs_note_take(&a, bytes);
		a.took++;
		if (rs_credits_owed(&a)) {
			a.sent++;
			a.told = a.took;
			rs_note_encode(bytes, RS_NOTE_NONE, a.took);
			rs_note_take(&b, bytes);
			b.took++;
		}
	}
}

/* One end with its receive buffers, in the order in which they were filled. */
struct side {
	struct rs_credits c;
	uint8_t in[DEPTH][RS_NOTE_LEN];
	uint32_t filled, polled;
};

static void post(struct side *from, struct side *to, uint32_t imm)
{
	assert_true(to->filled - to->polled < DEPTH); /* or the connection ends */
	from->c.sent++;
	from->c.told = from->c.took;
	rs_note_encode(to->in[to->filled++ % DEPTH], imm, from->c.took);
}

static void settle(struct side *me, struct side *peer)
{
	if (rs_credits_owed(&me->c) && rs_credits_allow(&me->c, true))
		post(me, peer, RS_NOTE_NONE);
}

static void poll_some(struct side *me, struct side *peer, uint32_t n)
{
	settle(me, peer); /* what could not go before */
	for (; n && me->polled != me->filled; n--) {
		rs_note_take(&me->c, me->in[me->polled++ % DEPTH]);
		me->c.took++;
		settle(me, peer);
	}
}

static uint32_t send_some(struct side *me, struct side *peer, uint32_t n)
{
	uint32_t sent = 0;

	for (; sent < n && rs_credits_allow(&me->c, false); sent++)
		post(me, peer, sent);
	return sent;
}

/* Both send data until they may not, each before it has read what the other sent. */
static void both_send(void **state)
{
	static struct side a, b;
	uint32_t x = 2463534242u;

	(void)state;
	for (uint32_t start = 0; start < 2; start++) {
		const uint32_t base = start ? UINT32_MAX - 3 * DEPTH : 0;
		const struct rs_credits c = {
			.depth = DEPTH, .sent = base, .took = base, .told = base, .peer_took = base
		};

		a = (struct side){ .c = c };
		b = (struct side){ .c = c };
		for (int round = 0; round < 20000; round++) {
			x ^= x << 13;
			x ^= x >> 17;
			x ^= x << 5;
			send_some(&a, &b, x & 1 ? DEPTH : x >> 8 & 255);
			send_some(&b, &a, x & 2 ? DEPTH : x >> 16 & 255);
			poll_some(&a, &b, x & 4 ? UINT32_MAX : x >> 12 & 255);
			poll_some(&b, &a, x & 8 ? UINT32_MAX : x >> 20 & 255);
			if (x >> 4 & 7)
				continue;
			while (a.polled != a.filled || b.polled != b.filled) {
				poll_some(&a, &b, UINT32_MAX);
				poll_some(&b, &a, UINT32_MAX);
			}
			/* All is read, and nothing is on its way that could free anybody. */
			assert_true(send_some(&a, &b, DEPTH) >= DEPTH / 4);
			assert_true(send_some(&b, &a, DEPTH) >= DEPTH / 4);
		}
	}
}

static void ports(void **state)
{
	(void)state;
	for (uint32_t p = 1; p < 65536; p++) {
		uint16_t to = rs_rdma_iwarp_port((uint16_t)p);

		assert_true(to >= 61000 && to < 65500); /* above ip_local_port_range */
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(notes),     cmocka_unit_test(never_more_than_buffers),
		cmocka_unit_test(lies),	     cmocka_unit_test(no_stand_still),
		cmocka_unit_test(both_send), cmocka_unit_test(ports),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
