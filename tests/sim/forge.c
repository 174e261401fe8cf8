/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * forge.c - end 1 lies
 *
 * It holds the key and says anything: messages out of order and range, frames with wild offsets,
 * MARKs that nobody asked for, garbage, heads and tails. End 0 must stay within bounds, and come to
 * an end when the liar is gone.
 */
#include "sim.h"

static uint64_t wild(struct world *w, uint64_t near)
{
	switch (rnd(w, 6)) {
	case 0:
		return UINT64_MAX - rnd(w, 4);
	case 1:
		return (uint64_t)1 << rnd(w, 64);
	case 2:
		return 0;
	default:
		return near + rnd(w, 9) - 4;
	}
}

static void write_ctl(struct world *w, const uint8_t *p, uint32_t n)
{
	if (tcp_space(w, 1) >= n && !w->sock[1].closed && !w->dir[1].fin)
		tcp_write_ctl(w, 1, p, n, false);
}

static void forge_frame(struct world *w)
{
	const struct rs_stream *s = &w->end[0].s;
	struct rs_frame f = {
		.type = (uint8_t)(1 + rnd(w, 3)),
		.flags = (uint8_t)rnd(w, 2),
		.epoch = s->rx_epoch + (rnd(w, 4) ? 0 : rnd(w, 3) - 1),
		.have_epoch = s->tx_epoch + (rnd(w, 4) ? 0 : rnd(w, 3) - 1),
		.a = wild(w, rnd(w, 2) ? s->rx_tail : s->rx_n),
		.b = wild(w, rnd(w, 2) ? s->tx_post : s->tx_ack),
		.c = wild(w, s->rx_tail),
	};
	uint8_t buf[RS_FRAME_LEN];

	if (w->dir[1].grammar != G_FRAMES || w->dir[1].unit_len)
		return; /* it would only be garbage */
	trace(w, "liar: frame %u", f.type);
	rs_frame_encode(sim_mac, s->key, 1, &f, buf);
	write_ctl(w, buf, sizeof(buf));
}

bool forge(struct world *w)
{
	const struct rs_stream *s = &w->end[0].s;
	uint8_t buf[RS_FRAME_LEN];

	if (!w->end[1].alive)
		return false;
	switch (rnd(w, 7)) {
	case 0:
	case 1:
		trace(w, "liar: message");
		link_send(
			w, 1,
			(struct item){ .kind = IT_MSG,
				       .type = (uint8_t)(RS_MSG_ENTER + rnd(w, 7)),
				       .epoch = (rnd(w, 2) ? s->rx_epoch : s->tx_epoch) + rnd(w, 3),
				       .a = wild(w, rnd(w, 2) ? s->rx_off : s->rx_tail) });
		break;
	case 2:
	case 3:
		forge_frame(w);
		break;
	case 4:
		trace(w, "liar: MARK");
		rs_mark_make(sim_mac, s->key, 1, s->rx_epoch, s->rx_n, buf);
		write_ctl(w, buf, 1 + rnd(w, RS_MARK_LEN));
		break;
	case 5:
		trace(w, "liar: garbage");
		for (uint32_t i = 0; i < RS_FRAME_LEN; i++)
			buf[i] = (uint8_t)rnd(w, 256);
		write_ctl(w, buf, 1 + rnd(w, RS_FRAME_LEN));
		break;
	case 6:
		trace(w, "liar: head, tail");
		if (has(w, F_VERBS)) {
			struct item it = { .kind = rnd(w, 2) ? IT_DATA : IT_ACK };

			it.a = wild(w, it.kind == IT_DATA ? s->rx_tail : s->tx_post);
			it.b = it.a + rnd(w, w->ring_size);
			link_send(w, 1, it);
		} else if (rnd(w, 2)) {
			w->ring[0].tail = wild(w, s->rx_tail);
			w->ring[0].accepted = wild(w, s->rx_tail);
		} else {
			w->ring[1].head = wild(w, s->tx_post);
		}
		/* Its doorbell rings, too. */
		w->end[0].rx_sleep = w->end[0].tx_sleep = false;
		break;
	}
	return true;
}
