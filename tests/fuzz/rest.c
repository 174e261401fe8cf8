/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * rest.c - what is left in a ring whose sender has ended, read while other processes that have the
 * connection write anything into the words that they share, and the sender into its own
 *
 * What the owner has declared is in the ring, and nobody reads more than that.
 */
#include "conn_mgr/rest.h"
#include "rsock/sys.h"
#include "tests/fuzz/fuzz.h"

static struct rs_shm_link link_;
static struct rs_conn c;
static struct rs_state *state;
static struct rs_shared shared;
static uint8_t *ring[RS_TIERS];
static uint64_t all; /* bytes that a ring of each size holds */

static void set_up(void)
{
	state = malloc(sizeof(*state));
	link_.mine[0] = aligned_alloc(64, sizeof(struct rs_shm_head));
	link_.peer[0] = aligned_alloc(64, sizeof(struct rs_shm_head));
	link_.nmine = link_.npeer = 1;
	for (int t = 0; t < RS_TIERS; t++) {
		ring[t] = calloc(1, (size_t)1 << rs_shm_shift[t]);
		all += (uint64_t)1 << rs_shm_shift[t];
	}
}

static void begin(struct fuzz_in *in)
{
	struct rs_stream *s = &state->sm;
	uint8_t how = (uint8_t)fuzz_int(in, 1);
	uint64_t at = fuzz_wild(in, 0) >> 2;

	memset(link_.mine[0], 0, sizeof(struct rs_shm_head));
	memset(link_.peer[0], 0, sizeof(struct rs_shm_head));
	memset(state, 0, sizeof(*state));
	memset(&c, 0, sizeof(c));
	memset(&shared, 0, sizeof(shared));
	c.st = state;
	c.mem.shared = &shared;
	c.bound = true;
	CHECK(rs_chan_bind(&state->ch, &link_, 0, 0));
	memcpy(state->ch.rx_ring, ring, sizeof(ring));
	rs_chan_rx_begin(&state->ch, at);
	/* Nothing more is sent, and TCP has brought the end: of one kind or the other. */
	s->cfg.ring_survives = true;
	s->rx_eof = true;
	s->rx_off = at;
	if (how & 1) {
		s->rx = RS_RX_FAST;
		s->rx_fin_known = s->rx_fin_frame = true;
		s->rx_fin = at + (fuzz_wild(in, 100) >> (how >> 3));
	} else {
		s->rx = RS_RX_DRAIN;
		s->rx_end = how >> 1 & 3;
		s->rx_have = at + (fuzz_wild(in, 100) >> (how >> 3));
		if (s->rx_have < at) /* as drain() */
			s->rx_have = at;
	}
	state->ch.mine->tail = at + (how & 2 ? fuzz_wild(in, 100) >> (how >> 3) : 100);
}

/* The sender, and the other readers. */
static void scribble(struct fuzz_in *in)
{
	struct rs_shm_slot *s = state->ch.mine;
	uint8_t what = (uint8_t)fuzz_int(in, 1);

	switch (what % 8) {
	case 0:
		s->tail = fuzz_wild(in, state->sm.rx_off);
		break;
	case 1:
		s->seg[what / 8 % RS_SEGS] = fuzz_wild(in, state->sm.rx_off) << 2 | (what >> 5 & 3);
		break;
	case 2:
		s->nseg = (uint32_t)fuzz_int(in, 1);
		break;
	case 3:
		shared.rest = fuzz_int(in, 8);
		break;
	default:
		shared.rest = (uint64_t)1 << 32 | (uint32_t)fuzz_wild(in, shared.rest);
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = { data, size };
	uint64_t end, got = 0, first;

	if (!state)
		set_up();
	begin(&in);
	first = state->sm.rx_off;
	end = rs_chan_rx_told(&state->ch);
	if (!rs_rest_declare(&c))
		return 0;
	CHECK(end >= first && end - first <= all);
	CHECK((shared.rest & UINT32_MAX) <= end - first);
	while (in.left) {
		size_t n = fuzz_int(&in, 2), done = fuzz_int(&in, 1) % (n + 1);
		uint8_t what = (uint8_t)fuzz_int(&in, 1), *buf = malloc(n + 1);
		struct iovec iov[2] = { { buf, n / 2 }, { buf + n / 2, n - n / 2 } };
		uint64_t before = state->sm.rx_off;
		ssize_t r;

		if (what & 64)
			scribble(&in);
		CHECK(rs_rest_bytes(&c) <= end - first);
		CHECK(state->sm.rx_off >= before);
		before = state->sm.rx_off;
		r = rs_rest_recv(&c, iov, 2, done, what & 1 ? MSG_PEEK : 0);
		free(buf);
		if (r < 0)
			break;
		CHECK((size_t)r <= n - done);
		if (what & 1)
			continue;
		CHECK(state->sm.rx_off >= before + (size_t)r);
		got += (size_t)r;
		CHECK(got <= end - first && state->sm.rx_off <= end);
	}
	return 0;
}
