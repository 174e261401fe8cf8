/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * link.c - model link: the rings and an in-order queue in each direction
 *
 * shm: the sender writes into the receiver's ring, both see head and tail at once; only messages are
 * queued. VERBS: data, acknowledgements and messages travel in one queue per direction (one queue
 * pair); the bytes are taken from the sender's staging ring when they land, as a device may do.
 */
#include "sim.h"

#include <string.h>

#include "rsock/reason.h"

/*
 * A cheap keyed mixer in the place of HMAC. Key byte 8 asks for MARKs that begin with as many of the
 * application's own bytes.
 */
void sim_mac(const uint8_t key[RS_KEY_LEN], const void *msg, size_t len, uint8_t *out,
	     size_t out_len)
{
	const uint8_t *p = msg;
	uint64_t h, v, off;

	memcpy(&h, key, 8);
	for (size_t i = 0; i < len; i += 8) {
		v = 0;
		memcpy(&v, p + i, len - i < 8 ? len - i : 8);
		h = (h ^ v) * 0x9fb21c651e98df25u;
		h ^= h >> 29;
	}
	for (size_t i = 0; i < out_len; i += 8) {
		h = (h + i) * 0xd6e8feb86659fd93u;
		h ^= h >> 32;
		memcpy(out + i, &h, out_len - i < 8 ? out_len - i : 8);
	}
	if (len == 24 && key[8]) {
		memcpy(&off, p + 16, 8);
		for (uint8_t i = 0; i < key[8]; i++)
			out[i] = app_byte(p[11], off + i);
	}
}

bool link_may_attach(const struct world *w)
{
	for (int e = 0; e < 2; e++) {
		const struct end *x = &w->end[e];

		if (!x->alive || x->s.linked || x->app_closed || x->handover || x->s.dead)
			return false;
		if (!rs_stream_is_raw(&x->s))
			return false;
	}
	return true;
}

void link_attach(struct world *w)
{
	uint8_t key[RS_KEY_LEN] = { 0 };
	uint64_t k = rnd64(w);

	memcpy(key, &k, 8);
	if (has(w, F_PREFIX))
		key[8] = (uint8_t)(1 + rnd(w, 4));
	if (w->link_gen++)
		cover(w, C_NEW_LINK);
	trace(w, "link %u", w->link_gen);
	w->link.up = true;
	for (int e = 0; e < 2; e++) {
		w->link.count[e] = 0;
		memset(w->ring[e].mem, 0xee, w->ring_size);
		memset(w->ring[e].staging, 0xdd, w->ring_size);
		w->ring[e].tail = w->ring[e].accepted = 0;
		w->ring[e].head = w->end[e].s.rx_off;
		w->end[e].acked = w->end[e].s.rx_off;
		w->end[e].want_ack = false;
		rs_stream_attach(&w->end[e].s, key, e == 1);
	}
	for (int e = 0; e < 2; e++)
		edge_obey(w, e);
}

void link_send(struct world *w, int from, struct item it)
{
	struct link *l = &w->link;

	if (!l->up)
		return;
	if (l->count[!from] == LINKQ) {
		if (!has(w, F_FORGE))
			fail(w, "model", "link queue full");
		return;
	}
	l->q[!from][(l->first[!from] + l->count[!from]++) % LINKQ] = it;
}

/* Bytes of a posted range reach the receiver's memory. */
static void land(struct world *w, int to, uint64_t from, uint64_t upto)
{
	struct ring *r = &w->ring[to];

	if (r->released && from < upto && !has(w, F_FORGE)) {
		fail(w, "ring memory reused early", "a write of end %d landed in it", !to);
		return;
	}
	for (uint64_t o = from; o < upto; o++)
		r->mem[o % w->ring_size] = r->staging[o % w->ring_size];
}

bool link_deliver(struct world *w, int to)
{
	static const char *const names[RS_MSG_COUNT] = {
		[RS_MSG_ENTER] = "ENTER", [RS_MSG_ENTER_OK] = "ENTER_OK", [RS_MSG_NAK] = "NAK",
		[RS_MSG_LEAVE] = "LEAVE", [RS_MSG_LEFT] = "LEFT",	  [RS_MSG_GONE] = "GONE",
		[RS_MSG_FIN] = "FIN",
	};
	struct link *l = &w->link;
	struct end *x = &w->end[to];
	struct item it;
	bool armed = x->s.rx == RS_RX_ARMED, pended = x->s.pend_epoch != 0;

	if (!l->count[to] || !x->alive || !x->s.linked)
		return false;
	it = l->q[to][l->first[to]];
	l->first[to] = (l->first[to] + 1) % LINKQ;
	l->count[to]--;
	switch (it.kind) {
	case IT_MSG:
		trace(w, "link ->%d: %s epoch %u offset %lu", to, names[it.type], it.epoch,
		      (unsigned long)it.a);
		edge_sync(w, to);
		rs_stream_msg(&x->s, it.type, it.epoch, it.a, w->now);
		if (it.type == RS_MSG_NAK)
			cover(w, C_NAK);
		if (it.type == RS_MSG_ENTER && armed && x->s.rx_epoch == it.epoch)
			cover(w, C_SUPERSEDED);
		if (!pended && x->s.pend_epoch)
			cover(w, C_PENDED);
		break;
	case IT_DATA:
		trace(w, "link ->%d: data %lu..%lu", to, (unsigned long)it.a, (unsigned long)it.b);
		if (has(w, F_FORGE) && (it.b < it.a || it.b - x->s.rx_off > w->ring_size)) {
			rs_stream_violation(&x->s);
			break;
		}
		land(w, to, it.a, it.b);
		rs_rx_landed(&x->s, it.b);
		if (x->rx_sleep_plan == RS_RXP_RING)
			x->rx_sleep = false;
		break;
	case IT_ACK:
		trace(w, "link ->%d: ack %lu", to, (unsigned long)it.a);
		rs_tx_acked(&x->s, it.a);
		if (x->tx_sleep_plan == RS_TXP_RING)
			x->tx_sleep = false;
		break;
	}
	edge_obey(w, to);
	return true;
}

/*
 * The link dies (`killed` < 0), or one of its processes. What is in flight is lost from some point
 * on; over shm a dead process's messages stay readable.
 */
void link_cut(struct world *w, int killed)
{
	struct link *l = &w->link;

	if (!l->up)
		return;
	trace(w, "link dead");
	l->up = false;
	for (int to = 0; to < 2; to++) {
		uint32_t keep = rnd(w, l->count[to] + 1);

		if (killed >= 0 && !has(w, F_VERBS))
			continue;
		for (uint32_t i = keep; i < l->count[to]; i++) {
			struct item *it = &l->q[to][(l->first[to] + i) % LINKQ];

			if (it->kind == IT_DATA) {
				cover(w, C_LOST_POSTED);
				if (i == keep && it->b > it->a && !has(w, F_FORGE))
					land(w, to, it->a,
					     it->a + rnd(w, (uint32_t)(it->b - it->a) + 1));
			}
		}
		l->count[to] = keep;
	}
}

bool link_notice(struct world *w, int e)
{
	struct end *x = &w->end[e];

	if (w->link.up || !x->s.linked || !x->alive)
		return false;
	/* Most edges take what has arrived before they give up the link. */
	if (rnd(w, 4)) {
		while (link_deliver(w, e))
			;
	}
	trace(w, "e%d sees the dead link", e);
	cover(w, C_CUT_RAW + x->s.tx);
	edge_sync(w, e);
	if (!w->end[!e].alive && rnd(w, 2))
		rs_stream_peer_gone(&x->s);
	rs_stream_link_dead(&x->s, RS_REASON_LINK_LOST);
	edge_obey(w, e);
	return true;
}

bool link_post(struct world *w, int e, bool all)
{
	struct end *x = &w->end[e];
	uint64_t from = x->s.tx_post, upto = x->s.tx_off;

	if (!has(w, F_VERBS) || !x->alive || !rs_tx_may_post(&x->s) || from >= upto)
		return false;
	if (w->link.count[!e] >= LINKQ - 32)
		return false;
	if (x->mark_gen != w->link_gen && !has(w, F_FORGE))
		fail(w, "posted before the peer's MARK was seen", "end %d", e);
	if (!all)
		upto = from + 1 + rnd(w, (uint32_t)(upto - from));
	trace(w, "e%d posts %lu..%lu", e, (unsigned long)from, (unsigned long)upto);
	link_send(w, e, (struct item){ .kind = IT_DATA, .a = from, .b = upto });
	rs_tx_posted(&x->s, upto);
	edge_obey(w, e);
	return true;
}

bool link_ack(struct world *w, int e)
{
	struct end *x = &w->end[e];

	if (!x->want_ack || !x->alive || !x->s.linked || w->link.count[!e] >= LINKQ - 32)
		return false;
	x->want_ack = false;
	x->acked = x->s.rx_off;
	link_send(w, e, (struct item){ .kind = IT_ACK, .a = x->acked });
	return true;
}
