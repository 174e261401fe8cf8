/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * chan.c - one end of a stream on a shared-memory link, whose peer writes anything into all that both
 * have mapped, between any two steps
 *
 * Each ring, and each segment's head, is memory of its own: one byte too far is seen. What is read comes
 * out of the ring, at the place that its offset says, and is no more than was announced.
 */
#include <errno.h>
#include <sys/eventfd.h>

#include "conn_mgr/conn_edge.h"
#include "rsock/bell.h"
#include "rsock/shm.h"
#include "rsock/sys.h"
#include "tests/fuzz/fuzz.h"

#define ID 3u
#define PEER_ID 70u
#define PIECE ((size_t)1 << 16) /* usually; conn_io.c takes an eighth of it */
#define MOST ((size_t)3 << 20)

static struct rs_shm_link link_;
static struct rs_state state;
static struct rs_conn conn; /* as much of one as conn_fast.c looks at */
static struct rs_chan *const c = &state.ch;
static struct rs_shm_head *mine, *peer;
static uint8_t *rx_ring[RS_TIERS], *tx_ring[RS_TIERS];

static size_t size_of(int tier)
{
	return (size_t)1 << rs_shm_shift[tier];
}

static void set_up(void)
{
	mine = aligned_alloc(64, sizeof(*mine));
	peer = aligned_alloc(64, sizeof(*peer));
	for (int t = 0; t < RS_TIERS; t++) {
		rx_ring[t] = malloc(size_of(t));
		tx_ring[t] = malloc(size_of(t));
		/* Of which ring, and where. */
		for (size_t i = 0; i < size_of(t); i++)
			rx_ring[t][i] = (uint8_t)((i * 31 + i / 251) % 85 + (size_t)t * 85);
	}
	memset(link_.bell_fd, 0xff, sizeof(link_.bell_fd));
	link_.bell_fd[0] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	link_.mine[0] = mine;
	link_.peer[0] = peer;
	link_.nmine = link_.npeer = 1;
}

static void begin(uint64_t rx, uint64_t tx)
{
	CHECK(rs_chan_bind(c, &link_, ID, PEER_ID));
	memcpy(c->rx_ring, rx_ring, sizeof(rx_ring));
	memcpy(c->tx_ring, tx_ring, sizeof(tx_ring));
	rs_slot_reset(c->mine);
	rs_slot_reset(c->peer);
	rs_chan_rx_begin(c, rx);
	rs_chan_tx_begin(c, tx);
	memset(&conn, 0, sizeof(conn));
	memset(&state.sm, 0, sizeof(state.sm));
	conn.st = &state;
	state.sm.rx = RS_RX_FAST;
	state.sm.tx = RS_TX_FAST;
	state.sm.rx_off = rx;
	state.sm.tx_off = tx;
}

/* What conn_fast.c leaves to others. */

void rs_conn_settle(struct rs_conn *of)
{
	rs_stream_todo(&of->st->sm);
	of->st->sm.nmsgs = 0;
}

void rs_conn_end_orphan(struct rs_conn *of)
{
	(void)of;
}

ssize_t rs_conn_recv_empty(struct rs_conn *of, int fd, void *buf, size_t n, int flags)
{
	(void)fd;
	(void)buf;
	(void)n;
	(void)flags;
	rs_unlock(&of->lock);
	return -EAGAIN;
}

/* ---- the peer ---- */

static void scribble(struct fuzz_in *in)
{
	struct rs_shm_slot *s = c->mine, *p = c->peer;
	uint8_t what = (uint8_t)fuzz_int(in, 1);
	uint64_t near = what & 128 ? s->tail : c->head;

	switch (what % 16) {
	case 0:
	case 1:
		s->tail = fuzz_wild(in, near);
		break;
	case 2:
	case 3:
		s->seg[what / 16 % RS_SEGS] = fuzz_wild(in, near) << 2 | (what >> 4 & 3);
		break;
	case 4:
		s->nseg = (uint32_t)fuzz_int(in, 1);
		break;
	case 5:
		s->fin = fuzz_wild(in, near);
		break;
	case 6:
		p->head = fuzz_wild(in, what & 128 ? c->tail : c->tx_head);
		break;
	case 7:
		p->rx_limit = (uint32_t)fuzz_wild(in, 4096);
		break;
	case 8:
		p->rx_mask = (uint32_t)fuzz_int(in, 4);
		p->tx_mask = p->rx_mask;
		break;
	case 9:
		p->rx_wait = p->tx_wait = (uint32_t)fuzz_int(in, 1);
		break;
	case 10:
		peer->bells[fuzz_int(in, 1) % RS_BELLS].asleep = (uint32_t)fuzz_int(in, 1);
		break;
	case 11: /* words that only this end writes */
		s->head = fuzz_int(in, 8);
		s->rx_mask = s->tx_mask = s->rx_wait = s->tx_wait = ~0u;
		p->tail = p->seg[1] = p->fin = p->nseg = ~0u;
		break;
	case 12: /* and those that nobody reads any more */
		peer->magic = peer->slots = 0;
		memset(peer->tier_shift, 63, sizeof(peer->tier_shift));
		memset(mine->tier_shift, 63, sizeof(mine->tier_shift));
		break;
	default: /* an honest switch */
		s->seg[s->nseg % RS_SEGS] = s->tail << 2 | (what >> 4) % RS_TIERS;
		s->nseg++;
		s->tail += fuzz_int(in, 2);
		break;
	}
}

/* ---- this end ---- */

/* The bytes must be those of one ring after the other, each at the place of its offset. */
static void check_bytes(uint64_t at, const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		int t = p[i] / 85;

		CHECK(t < RS_TIERS && p[i] == rx_ring[t][(at + i) & (size_of(t) - 1)]);
	}
}

static void receive(struct fuzz_in *in)
{
	uint64_t tail = rs_chan_rx_tail(c), before = c->head;
	uint8_t what = (uint8_t)fuzz_int(in, 1);
	size_t n = fuzz_int(in, 2) + 1, most = what & 64 ? MOST : PIECE;
	uint8_t *buf;

	CHECK(tail >= c->head && tail - c->head <= size_of(0) + size_of(1) + size_of(2));
	CHECK(!c->rx_bad || tail == c->head);
	if (what & 64)
		n *= 64;
	if (n > most)
		n = most;
	if (n > tail - c->head)
		n = (size_t)(tail - c->head);
	if (!n || c->rx_bad)
		return;
	buf = malloc(n);
	rs_chan_rx_copy(c, c->head, buf, n);
	if (!c->rx_bad && !(what & 64))
		check_bytes(c->head, buf, n);
	free(buf);
	if (!c->rx_bad && !(what & 128)) {
		rs_chan_rx_consume(c, c->head + n);
		rs_rx_ring(&state.sm, n);
	}
	CHECK(c->head <= before + n);
}

static void transmit(struct fuzz_in *in)
{
	static const uint8_t bytes[PIECE];
	uint8_t what = (uint8_t)fuzz_int(in, 1);
	size_t n = fuzz_int(in, 2) + 1u, room = rs_chan_tx_room(c, what & 1);

	CHECK(c->tx_tier < RS_TIERS && room <= size_of(c->tx_tier));
	CHECK(c->tx_head <= c->tail && c->tx_start <= c->tail);
	if (n > room)
		n = room;
	if (!n)
		return;
	rs_chan_tx_copy(c, c->tail, bytes, n);
	rs_chan_tx_publish(c, c->tail + n);
	rs_tx_ring(&state.sm, n);
}

/* The same by the short way. */
static void quick(struct fuzz_in *in)
{
	static const uintptr_t word = 1;
	const struct rs_conn_found found = { &word, 1 };
	size_t n = fuzz_int(in, 2) % 4096 + 1u;
	uint64_t before = c->head, tail = c->tail;
	uint8_t *buf = malloc(n), again[4096];
	ssize_t r;

	memset(buf, 0, n);
	if (fuzz_int(in, 1) & 1) {
		r = rs_conn_send_fast(&conn, found, buf, n);
		CHECK(r == RS_LONG_WAY || (r == (ssize_t)n && c->tail == tail + n));
	} else {
		r = rs_conn_recv_fast(&conn, found, -1, buf, n, 0);
		CHECK(r == RS_LONG_WAY || r == -EAGAIN || (r > 0 && (size_t)r <= n));
		if (r > 0) {
			CHECK(c->head == before + (size_t)r && state.sm.rx_off == c->head);
			/* Nothing else than by the long way. */
			rs_chan_rx_copy(c, before, again, (size_t)r);
			CHECK(!c->rx_bad && memcmp(buf, again, (size_t)r) == 0);
		}
	}
	free(buf);
}

/* What goes back over TCP. */
static void fetch(struct fuzz_in *in)
{
	uint64_t from = rs_chan_tx_head(c);
	size_t n = fuzz_int(in, 2) % 8192;
	uint8_t *buf;

	CHECK(from <= c->tail && c->tail - from <= size_of(0) + size_of(1) + size_of(2));
	if (n > c->tail - from)
		n = (size_t)(c->tail - from);
	buf = malloc(n + 1);
	rs_chan_tx_fetch(c, from, buf, n);
	free(buf);
}

static void look(void)
{
	uint64_t m, tail = rs_chan_rx_survived(c, c->head);

	CHECK(tail >= c->head && tail - c->head <= size_of(0) + size_of(1) + size_of(2));
	rs_chan_rx_fin(c, &m);
	rs_chan_rx_told(c);
	rs_chan_tx_limit(c);
	rs_chan_tx_writable(c);
	rs_chan_tx_room_now(c);
	rs_chan_tx_fin(c, c->tail);
}

static void wake(struct fuzz_in *in)
{
	rs_shm_wake(&link_, ID, fuzz_int(in, 1) & 1);
	rs_slot_wake(&link_, &c->mine->rx_wait);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = { data, size };
	uint64_t rx, tx;

	if (!mine)
		set_up();
	memset(mine, 0, sizeof(*mine));
	memset(peer, 0, sizeof(*peer));
	rx = fuzz_wild(&in, 0) >> 2;
	tx = fuzz_wild(&in, 0) >> 2;
	begin(rx, tx);
	for (int budget = 200; in.left && !c->rx_bad && budget; budget--) {
		switch (fuzz_int(&in, 1) % 9) {
		case 0:
		case 1:
		case 2:
			scribble(&in);
			break;
		case 3:
			receive(&in);
			break;
		case 4:
			transmit(&in);
			break;
		case 5:
			fetch(&in);
			break;
		case 6:
			look();
			break;
		case 7:
			wake(&in);
			break;
		case 8:
			quick(&in);
			break;
		}
	}
	return 0;
}
