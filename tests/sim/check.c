/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * check.c - the invariants
 *
 * Every byte once and in order; no silent truncation; no ECONNRESET that TCP would not have given;
 * no sleeper that could go on; nothing for TCP that nobody will write; bounds. Those about control
 * bytes are in tcp.c, those about ring memory in link.c and app.c, where the bytes move.
 */
#include "sim.h"

#include "rsock/reason.h"

void check_byte(struct world *w, int e, uint8_t byte)
{
	struct end *x = &w->end[e];
	bool honest = !has(w, F_FORGE) && !x->poisoned;

	if (honest && byte != app_byte(!e, x->got))
		fail(w, "wrong byte", "to end %d at %lu", e, (unsigned long)x->got);
	if (honest && x->got >= w->end[!e].sent)
		fail(w, "more than was sent", "to end %d at %lu", e, (unsigned long)x->got);
	if (x->shut_both && x->s.rx == RS_RX_FAST && x->got >= x->shut_at)
		fail(w, "read past SHUT_RDWR", "by end %d at %lu", e, (unsigned long)x->got);
	x->got++;
}

/*
 * The one truncation that nobody can tell: the reader is a process without rsock, after a
 * hand-over, and the peer was killed while it still brought staged bytes back to TCP.
 */
static bool untold(const struct world *w, int e)
{
	const struct rs_stream *s = &w->end[!e].s;

	return w->end[e].handover && !w->end[!e].alive && s->tx != RS_TX_DONE &&
	       (s->tx != RS_TX_RAW || s->tx_raw < s->tx_off);
}

void check_eof(struct world *w, int e)
{
	const struct end *x = &w->end[e], *peer = &w->end[!e];

	if (has(w, F_FORGE) || untold(w, e))
		return;
	if (x->got != peer->sent)
		fail(w, "silent truncation", "end %d got %lu of %lu", e, (unsigned long)x->got,
		     (unsigned long)peer->sent);
	if (peer->alive && !peer->app_shut)
		fail(w, "end of file out of nothing", "end %d", e);
}

void check_reset(struct world *w, int e)
{
	const struct end *x = &w->end[e], *peer = &w->end[!e];
	bool verbs = has(w, F_VERBS);

	if (has(w, F_FORGE))
		return;
	if (x->s.rx_answered) {
		cover(w, C_SHUT_ANSWERED);
		if (x->got < x->shut_at)
			fail(w, "bytes before SHUT_RDWR lost", "end %d got %lu of %lu", e,
			     (unsigned long)x->got, (unsigned long)x->shut_at);
		return;
	}
	if (!peer->alive && verbs) {
		if (x->got < peer->sent)
			cover(w, C_KILL_CUT);
		return;
	}
	if (x->s.dead && x->s.why == RS_REASON_PROTOCOL && has(w, F_SLOW))
		return;
	if (w->sock[e].reset && w->sock[e].reset_legit)
		return;
	if (peer->lingering)
		return;
	/* Half a MARK that was given up stays unread in the closed peer's kernel. */
	if (has(w, F_SPLITMARK) && peer->app_closed && x->got == peer->sent)
		return;
	/* Bytes that the dead peer has not read, whether sent before its death or after. */
	if (!peer->alive && !verbs && w->ring[!e].head < w->ring[!e].tail) {
		if (x->got != peer->sent)
			fail(w, "bytes of a dead sender lost", "end %d got %lu of %lu", e,
			     (unsigned long)x->got, (unsigned long)peer->sent);
		return;
	}
	fail(w, "ECONNRESET out of nothing", "end %d at %lu of %lu", e, (unsigned long)x->got,
	     (unsigned long)peer->sent);
}

void check_delivered(struct world *w, const char *when)
{
	if (has(w, F_FORGE))
		return;
	for (int e = 0; e < 2; e++) {
		const struct end *x = &w->end[e], *peer = &w->end[!e];

		if (!x->alive || x->app_closed || x->saw_reset || w->sock[e].reset || x->poisoned)
			continue;
		if (x->shut_both && x->s.rx == RS_RX_FAST && !x->s.dead &&
		    edge_tail(w, e) > x->shut_at)
			fail(w, "bytes after SHUT_RDWR not answered", "%s: end %d", when, e);
		if (x->shut_both)
			continue;
		if ((!peer->alive && has(w, F_VERBS)) || peer->app_aborted || peer->lingering)
			continue;
		if (x->got != peer->sent && !untold(w, e))
			fail(w, "not delivered", "%s: end %d got %lu of %lu, tx %d -> rx %d", when,
			     e, (unsigned long)x->got, (unsigned long)peer->sent, (int)peer->s.tx,
			     (int)x->s.rx);
	}
}

static bool rx_could(const struct world *w, int e)
{
	const struct rs_stream *s = &w->end[e].s;
	bool end = w->sock[e].reset || tcp_at_eof(w, e);
	uint64_t n;

	switch (rs_rx_plan(s, &n)) {
	case RS_RXP_TCP:
	case RS_RXP_SKIP:
		return tcp_readable(w, e) || end;
	case RS_RXP_MARK:
		return tcp_readable(w, e) >= RS_MARK_LEN || end;
	case RS_RXP_RING:
		if (s->rx == RS_RX_DRAIN)
			return true;
		n = n < edge_tail(w, e) ? n : edge_tail(w, e);
		return n > s->rx_off;
	default:
		return true;
	}
}

static bool tx_could(const struct world *w, int e)
{
	switch (rs_tx_plan(&w->end[e].s)) {
	case RS_TXP_TCP:
		return tcp_space(w, e) || w->sock[e].reset;
	case RS_TXP_RING:
		return edge_room(w, e);
	case RS_TXP_WAIT:
		return false;
	default:
		return true;
	}
}

static void check_bounds(struct world *w, int e)
{
	const struct rs_stream *s = &w->end[e].s;

	if (s->ctl_len > sizeof(s->ctl) || s->ctl_pos > s->ctl_len || s->frame_len > RS_FRAME_LEN)
		fail(w, "control buffer overrun", "end %d", e);
	if (s->tx == RS_TX_FAST && (s->tx_ack > s->tx_post || s->tx_post > s->tx_off))
		fail(w, "acknowledged > posted > sent", "end %d: %lu %lu %lu", e,
		     (unsigned long)s->tx_ack, (unsigned long)s->tx_post, (unsigned long)s->tx_off);
	if (s->tx == RS_TX_RAW && s->tx_raw > s->tx_off)
		fail(w, "flushed more than was sent", "end %d", e);
	if (s->rx_skip > UINT32_MAX)
		fail(w, "overlap out of range", "end %d", e);
}

void check_step(struct world *w)
{
	for (int e = 0; e < 2; e++) {
		struct end *x = &w->end[e];
		struct rs_tx_out o;

		if (!x->alive || x->plain || (has(w, F_FORGE) && e == 1))
			continue;
		check_bounds(w, e);
		if (!x->handover && (x->s.rx_off != x->got || x->s.tx_off != x->sent))
			fail(w, "offsets", "end %d: %lu %lu", e, (unsigned long)x->s.rx_off,
			     (unsigned long)x->s.tx_off);
		if (!x->want_out && !w->sock[e].closed) {
			rs_tx_out(&x->s, &o);
			if (o.len)
				fail(w, "lost RS_DO_OUT", "end %d, tx %d", e, (int)x->s.tx);
		}
		if (x->rx_sleep && rx_could(w, e))
			fail(w, "lost wake-up", "receiver of end %d slept on plan %d, rx %d", e,
			     x->rx_sleep_plan, (int)x->s.rx);
		if (x->tx_sleep && tx_could(w, e))
			fail(w, "lost wake-up", "sender of end %d slept on plan %d, tx %d", e,
			     x->tx_sleep_plan, (int)x->s.tx);
	}
}
