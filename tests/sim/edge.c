/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * edge.c - the model of the code around struct rs_stream
 *
 * Obeys messages and todo bits, writes what rs_tx_out() says, watches the TCP side and the timers,
 * in the way that the product's edge must. Rules of it that are not in stream.h's own words:
 *  - shm: the published tail is tx_post, so that bytes appended before MARK is written stay unseen;
 *    only at the sender's death (read() gave 0, and all of TCP was read) does the survivor look at
 *    what was accepted;
 *  - shm: the published head is rx_off, whichever path the bytes came on, so that the room that the
 *    sender computes from it is right at the start of an epoch, too.
 */
#include "sim.h"

#include "rsock/reason.h"

uint64_t edge_tail(const struct world *w, int e)
{
	uint64_t seen = w->end[e].s.rx_tail;

	/* A tail that was seen stays, whatever the peer writes there later. */
	return has(w, F_VERBS) || w->ring[e].tail < seen ? seen : w->ring[e].tail;
}

uint64_t edge_room(const struct world *w, int e)
{
	const struct rs_stream *s = &w->end[e].s;
	uint64_t head = w->ring[!e].head, used;

	/* A lying head must not make us overwrite what we have still to keep. */
	if (head > s->tx_post)
		head = s->tx_post;
	used = s->tx_off - (has(w, F_VERBS) ? s->tx_ack : head);
	return used < w->ring_size ? w->ring_size - used : 0;
}

static void landed(struct world *w, int e, uint64_t tail)
{
	struct rs_stream *s = &w->end[e].s;

	if (tail > s->rx_off && tail - s->rx_off > w->ring_size) {
		if (!has(w, F_FORGE))
			fail(w, "model", "end %d: tail beyond the ring", e);
		rs_stream_violation(s);
		return;
	}
	rs_rx_landed(s, tail);
}

/* shm: tells the stream what it can see in shared memory. */
void edge_sync(struct world *w, int e)
{
	if (has(w, F_VERBS) || w->end[e].plain)
		return;
	rs_tx_acked(&w->end[e].s, w->ring[!e].head);
	landed(w, e, w->ring[e].tail);
}

static void publish(struct world *w, int e)
{
	struct end *x = &w->end[e];
	struct rs_stream *s = &x->s;
	struct ring *in = &w->ring[e], *out = &w->ring[!e];

	if (x->plain)
		return;
	if (has(w, F_VERBS)) {
		if (s->rx_off != x->acked)
			x->want_ack = true;
		return;
	}
	if (s->tx_post > s->tx_n && out->tail < s->tx_post) {
		out->tail = s->tx_post;
		if (w->end[!e].rx_sleep_plan == RS_RXP_RING)
			w->end[!e].rx_sleep = false;
	}
	if (in->head != s->rx_off) {
		in->head = s->rx_off;
		if (w->end[!e].tx_sleep_plan == RS_TXP_RING)
			w->end[!e].tx_sleep = false;
	}
}

static void count_transition(struct world *w, int e)
{
	static const uint8_t tx[5][5] = {
		[RS_TX_RAW] = { [RS_TX_ARMED] = C_ENTER },
		[RS_TX_ARMED] = { [RS_TX_RAW] = C_ABANDON_ARMED },
		[RS_TX_MARK] = { [RS_TX_RAW] = C_ABANDON_MARK, [RS_TX_FAST] = C_MARK_WRITTEN },
	};
	static const uint8_t rx[4][4] = {
		[RS_RX_RAW] = { [RS_RX_ARMED] = C_RX_ARMED },
		[RS_RX_ARMED] = { [RS_RX_RAW] = C_RX_DISARMED, [RS_RX_FAST] = C_MARK_READ },
	};
	struct end *x = &w->end[e];
	uint8_t t = x->last_tx, r = x->last_rx;

	if (t != x->s.tx && (tx[t][x->s.tx] || x->s.tx == RS_TX_ARMED))
		cover(w, tx[t][x->s.tx]);
	if (r != x->s.rx && rx[r][x->s.rx])
		cover(w, rx[r][x->s.rx]);
	if (t == RS_TX_MARK && x->s.tx == RS_TX_FAST && x->has_left)
		cover(w, C_REENTER_FAST);
	x->has_left |= x->s.tx_left;
	if (x->s.tx_orphan && !x->last_orphan)
		cover(w, C_ORPHAN);
	x->last_tx = (uint8_t)x->s.tx;
	x->last_rx = (uint8_t)x->s.rx;
	x->last_orphan = x->s.tx_orphan;
}

static void reset(struct world *w, int e)
{
	struct end *x = &w->end[e];

	if (x->s.why == RS_REASON_PROTOCOL && !w->sock[e].closed) {
		cover(w, C_VIOLATION);
		if (!has(w, F_FORGE | F_SLOW))
			fail(w, "an honest peer was called a liar", "by end %d", e);
	}
	x->app_aborted = true;
	tcp_abort(w, e, true);
}

void edge_obey(struct world *w, int e)
{
	struct end *x = &w->end[e];
	struct rs_stream *s = &x->s;
	uint32_t todo;

	do {
		count_transition(w, e);
		publish(w, e);
		if (s->nmsgs == RS_STREAM_MSGS && !has(w, F_FORGE))
			fail(w, "too many messages at once", "end %d", e);
		for (uint8_t i = 0; i < s->nmsgs; i++) {
			link_send(w, e,
				  (struct item){ .kind = IT_MSG,
						 .type = s->msgs[i].type,
						 .epoch = s->msgs[i].epoch,
						 .a = s->msgs[i].offset });
			trace(w, "e%d sends message %u epoch %u offset %lu", e, s->msgs[i].type,
			      s->msgs[i].epoch, (unsigned long)s->msgs[i].offset);
		}
		s->nmsgs = 0;
		todo = rs_stream_todo(s);
		if (todo & RS_DO_WAKE_RX)
			x->rx_sleep = false;
		if (todo & RS_DO_WAKE_TX)
			x->tx_sleep = false;
		if (todo & RS_DO_OUT)
			x->want_out = true;
		if (todo & RS_DO_RESET)
			reset(w, e);
		if (todo & RS_DO_SHUT_WR)
			tcp_shutdown(w, e);
		if (todo & RS_DO_CLOSE)
			tcp_close(w, e, false);
		if ((todo & RS_DO_OUT) && rnd(w, 4))
			edge_out(w, e);
	} while (s->todo || s->nmsgs);
	if (w->sock[e].closed && x->alive && !w->ring[e].released && rs_stream_may_reuse(s)) {
		w->ring[e].released = true;
		if (s->linked)
			cover(w, C_REUSABLE);
	}
}

/* Writes some of what must go to TCP next. Does not obey what follows from it. */
static bool out_once(struct world *w, int e)
{
	struct end *x = &w->end[e];
	struct rs_stream *s = &x->s;
	struct rs_tx_out o;
	uint8_t buf[RING_MAX];
	uint32_t n, space = tcp_space(w, e);
	bool mark;

	if (w->sock[e].closed || x->plain) {
		x->want_out = false;
		return false;
	}
	rs_tx_out(s, &o);
	if (!o.len) {
		x->want_out = false;
		return false;
	}
	if (w->sock[e].reset) {
		/* The write fails. */
		x->want_out = false;
		x->reset_told = true;
		rs_rx_tcp_reset(s);
		return true;
	}
	n = min32((uint32_t)o.len, space);
	if (n > 1 && !rnd(w, 4))
		n = 1 + rnd(w, n);
	mark = o.ctl && s->ctl_len % RS_FRAME_LEN == RS_MARK_LEN && s->ctl_pos < RS_MARK_LEN;
	if (mark && n < RS_MARK_LEN && !has(w, F_SPLITMARK))
		n = space >= RS_MARK_LEN ? RS_MARK_LEN : 0;
	if (!n)
		return false;
	if (o.ctl) {
		trace(w, "e%d out: %u of %zu control bytes", e, n, o.len);
		tcp_write_ctl(w, e, o.ctl, n, mark);
	} else {
		const uint8_t *mem = has(w, F_VERBS) ? w->ring[!e].staging : w->ring[!e].mem;

		trace(w, "e%d out: %u of %lu..%lu", e, n, (unsigned long)o.from,
		      (unsigned long)o.to);
		if (o.to - o.from > w->ring_size && !(has(w, F_FORGE) && e == 1))
			fail(w, "flush of more than the ring", "end %d", e);
		n = min32(n, w->ring_size);
		for (uint32_t i = 0; i < n; i++)
			buf[i] = mem[(o.from + i) % w->ring_size];
		tcp_write_app(w, e, buf, o.from, n);
	}
	rs_tx_wrote(s, n, w->now);
	return true;
}

bool edge_out(struct world *w, int e)
{
	if (!w->end[e].want_out || !w->end[e].alive)
		return false;
	return out_once(w, e);
}

bool edge_tcp_end(struct world *w, int e)
{
	struct end *x = &w->end[e];
	const struct ring *out = &w->ring[!e];

	if (w->sock[e].reset) {
		if (x->reset_told)
			return false;
		trace(w, "e%d finds RST", e);
		x->reset_told = true;
		edge_sync(w, e);
		rs_rx_tcp_reset(&x->s);
	} else if (tcp_at_eof(w, e) && !x->s.rx_eof) {
		trace(w, "e%d finds FIN", e);
		edge_sync(w, e);
		if (!has(w, F_VERBS))
			landed(w, e, w->ring[e].accepted);
		rs_rx_tcp_eof(&x->s, !has(w, F_VERBS) && out->head < out->tail);
	} else {
		return false;
	}
	edge_obey(w, e);
	return true;
}

bool edge_mark(struct world *w, int e)
{
	struct end *x = &w->end[e];
	struct rs_stream *s = &x->s;
	struct tcp_dir *d = &w->dir[!e];
	uint32_t n = min32(tcp_readable(w, e), RS_MARK_LEN);
	uint8_t buf[RS_MARK_LEN], held = s->rx_held;
	uint32_t epoch = s->rx_epoch;
	size_t took;

	if (w->sock[e].reset && n < RS_MARK_LEN && !x->reset_told) {
		x->reset_told = true;
		rs_rx_tcp_reset(s);
		edge_obey(w, e);
		return true;
	}
	if (!n)
		return edge_tcp_end(w, e);
	for (uint32_t i = 0; i < n; i++)
		buf[i] = d->data[(d->r + i) % TCPQ];
	took = rs_rx_mark(s, buf, n, d->fin_arrived, w->now);
	if (s->dead && s->why == RS_REASON_PROTOCOL)
		cover(w, C_MARK_LATE);
	if (took) {
		trace(w, "e%d takes MARK", e);
		for (uint32_t i = 0; i < took; i++) {
			if (d->tag[(d->r + i) % TCPQ] != TAG_CTL && !has(w, F_FORGE))
				fail(w, "application bytes taken for a MARK", "by end %d", e);
		}
		d->r += (uint32_t)took;
		x->mark_gen = w->link_gen;
	}
	if (s->rx_held && s->rx_held != held)
		cover(w, C_PREFIX_HELD);
	edge_obey(w, e);
	return took || s->rx != RS_RX_ARMED || s->rx_held != held || s->rx_epoch != epoch ||
	       s->dead;
}

uint32_t edge_skip(struct world *w, int e, uint64_t n)
{
	struct tcp_dir *d = &w->dir[!e];
	uint32_t k = min32(tcp_readable(w, e), n < TCPQ ? (uint32_t)n : TCPQ);

	if (!k)
		return 0;
	trace(w, "e%d discards %u bytes", e, k);
	cover(w, C_SKIP);
	for (uint32_t i = 0; i < k; i++) {
		if (d->tag[(d->r + i) % TCPQ] == TAG_CTL && !has(w, F_FORGE))
			fail(w, "control byte discarded as overlap", "by end %d", e);
	}
	d->r += k;
	rs_rx_skipped(&w->end[e].s, k);
	edge_obey(w, e);
	return k;
}

static bool frame(struct world *w, int e, uint64_t n)
{
	struct end *x = &w->end[e];
	struct tcp_dir *d = &w->dir[!e];
	uint32_t k = min32(tcp_readable(w, e), (uint32_t)n);
	uint8_t buf[RS_FRAME_LEN], rx = (uint8_t)x->s.rx;
	bool left = x->s.tx_left;

	if (!k)
		return edge_tcp_end(w, e);
	if (!rnd(w, 4))
		k = 1 + rnd(w, k);
	for (uint32_t i = 0; i < k; i++) {
		buf[i] = d->data[(d->r + i) % TCPQ];
		if (d->tag[(d->r + i) % TCPQ] != TAG_CTL && !has(w, F_FORGE) && !x->app_closed)
			fail(w, "application byte read as a frame", "by end %d", e);
	}
	d->r += k;
	edge_sync(w, e);
	if (x->s.rx != rx) {
		edge_obey(w, e);
		return true;
	}
	rs_rx_frame(&x->s, buf, k, w->now);
	trace(w, "e%d takes %u bytes of a frame: tx %d rx %d", e, k, (int)x->s.tx, (int)x->s.rx);
	if (x->s.rx != rx) {
		cover(w, C_RESUME);
		if (left)
			cover(w, C_RESUME_BOTH);
	}
	edge_obey(w, e);
	return true;
}

/* The control thread looks at the TCP side. */
bool edge_watch(struct world *w, int e)
{
	struct end *x = &w->end[e];
	uint64_t n;

	if (!x->alive || x->plain || w->sock[e].closed)
		return false;
	if (x->app_closed || x->shut_both) {
		edge_sync(w, e);
		if (x->s.todo) {
			edge_obey(w, e);
			return true;
		}
	}
	switch (rs_tcp_head(&x->s, &n)) {
	case RS_HEAD_FRAME:
		return frame(w, e, n);
	case RS_HEAD_MARK:
		return edge_mark(w, e);
	case RS_HEAD_SKIP:
		return edge_skip(w, e, n) || edge_tcp_end(w, e);
	case RS_HEAD_APP:
		/* EPOLLERR shows at once, EOF only to who reads. */
		return w->sock[e].reset && edge_tcp_end(w, e);
	}
	return false;
}

bool edge_timer(struct world *w, int e)
{
	struct end *x = &w->end[e];
	uint64_t t = rs_stream_deadline(&x->s);

	if (!x->alive || x->plain || !t || t > w->now)
		return false;
	trace(w, "e%d timer", e);
	if (x->s.t_hold && x->s.t_hold <= w->now) {
		cover(w, C_HOLD_EXPIRED);
		/* On a dead link there is no GONE, and who has read `closing` writes no RESUME. */
		if (w->draining && !has(w, F_HOLDFIRE | F_FORGE | F_SLOW | F_SPLITMARK) &&
		    x->s.linked)
			fail(w, "closed socket held for nothing", "end %d", e);
		x->lingering = true;
	}
	if (x->s.t_prefix && x->s.t_prefix <= w->now)
		cover(w, C_PREFIX_LATE);
	edge_sync(w, e);
	if (x->s.t_enter && x->s.t_enter <= w->now && !w->draining && !rnd(w, 8)) {
		cover(w, C_STOOD_STILL);
		rs_stream_postpone(&x->s, 1 + rnd(w, 100));
	}
	rs_stream_timer(&x->s, w->now);
	edge_obey(w, e);
	return true;
}
