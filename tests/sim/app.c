/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * app.c - model applications: send, receive, shutdown, close, hand over, die
 *
 * A receiver or sender that finds nothing to do sleeps, and looks again only when something wakes
 * it; check.c looks whether it sleeps although it could go on. After a hand-over the application is
 * another process without rsock, which reads and writes the kernel socket.
 */
#include "sim.h"

#include "rsock/reason.h"

#define SENT_MAX 60000u

/* Handed over, or so far that the other process can read, or write, the kernel socket. */
static bool reads_plain(const struct end *x)
{
	return x->plain || (x->handover && rs_rx_is_raw(&x->s));
}

static bool writes_plain(const struct end *x)
{
	return x->plain || (x->handover && rs_tx_is_raw(&x->s));
}

static bool open_app(const struct end *x)
{
	return x->alive && !x->app_closed && !x->saw_reset;
}

static void fill(int e, uint64_t offset, uint8_t *buf, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		buf[i] = app_byte(e, offset + i);
}

static uint32_t send_tcp(struct world *w, int e, uint32_t k)
{
	struct end *x = &w->end[e];
	uint8_t buf[RING_MAX];
	uint32_t n = min32(min32(k, tcp_space(w, e)), RING_MAX);

	fill(e, x->sent, buf, n);
	if (n)
		tcp_write_app(w, e, buf, x->sent, n);
	x->sent += n;
	return n;
}

static uint32_t send_ring(struct world *w, int e, uint32_t k)
{
	struct end *x = &w->end[e];
	struct ring *r = &w->ring[!e];
	uint8_t *mem = has(w, F_VERBS) ? r->staging : r->mem;
	uint64_t room;

	edge_sync(w, e);
	room = edge_room(w, e);
	if (k > room)
		k = (uint32_t)room;
	if (!k)
		return 0;
	if (!has(w, F_VERBS) && r->released && !has(w, F_FORGE))
		fail(w, "ring memory reused early", "end %d appends to it", e);
	for (uint32_t i = 0; i < k; i++)
		mem[(x->sent + i) % w->ring_size] = app_byte(e, x->sent + i);
	x->sent += k;
	rs_tx_ring(&x->s, k);
	if (!has(w, F_VERBS))
		r->accepted = x->s.tx_off;
	return k;
}

static void sleep_tx(struct end *x, enum rs_tx_plan plan)
{
	x->tx_sleep = true;
	x->tx_sleep_plan = (uint8_t)plan;
}

bool app_send(struct world *w, int e, uint32_t k)
{
	struct end *x = &w->end[e];
	enum rs_tx_plan plan;
	uint32_t n = 0;

	if (!open_app(x) || x->app_shut || x->tx_sleep || x->sent + k > SENT_MAX)
		return false;
	if ((x->handover && !writes_plain(x)) || w->sock[e].closed)
		return false;
	plan = x->handover ? RS_TXP_TCP : rs_tx_plan(&x->s);
	if (plan == RS_TXP_TCP && w->sock[e].reset) {
		trace(w, "e%d send: EPIPE", e);
		if (!x->handover && !x->reset_told)
			edge_tcp_end(w, e);
		return false;
	}
	switch (plan) {
	case RS_TXP_TCP:
		n = send_tcp(w, e, k);
		if (n && !x->handover)
			rs_tx_tcp(&x->s, n);
		break;
	case RS_TXP_RING:
		n = send_ring(w, e, k);
		break;
	case RS_TXP_WAIT:
		break;
	case RS_TXP_EPIPE:
		trace(w, "e%d send: EPIPE", e);
		return false;
	}
	trace(w, "e%d send: %u of %u on plan %d, now %lu", e, n, k, (int)plan,
	      (unsigned long)x->sent);
	if (x->handover)
		return n != 0;
	if (!n)
		sleep_tx(x, plan);
	edge_obey(w, e);
	return n != 0;
}

static uint32_t recv_tcp(struct world *w, int e, uint32_t k)
{
	struct tcp_dir *d = &w->dir[!e];
	struct end *x = &w->end[e];

	k = min32(k, tcp_readable(w, e));
	for (uint32_t i = 0; i < k; i++, d->r++) {
		if (d->tag[d->r % TCPQ] == TAG_CTL && has(w, F_SLOW) && x->s.rx_late)
			x->poisoned = true;
		else if (d->tag[d->r % TCPQ] == TAG_CTL && !has(w, F_FORGE))
			fail(w, "control byte delivered as data", "to end %d at %lu", e,
			     (unsigned long)x->got);
		check_byte(w, e, d->data[d->r % TCPQ]);
	}
	return k;
}

static uint32_t recv_ring(struct world *w, int e, uint32_t k, uint64_t limit)
{
	struct end *x = &w->end[e];
	uint64_t tail = edge_tail(w, e), upto;

	if (x->s.rx == RS_RX_DRAIN) {
		tail = limit;
		if (!has(w, F_VERBS) && !w->end[!e].alive)
			cover(w, C_KILL_RING);
	}
	upto = tail < limit ? tail : limit;
	if (has(w, F_FORGE) && upto > x->s.rx_off + w->ring_size) {
		rs_stream_violation(&x->s);
		return 0;
	}
	if (upto <= x->s.rx_off)
		return 0;
	if (k > upto - x->s.rx_off)
		k = (uint32_t)(upto - x->s.rx_off);
	for (uint32_t i = 0; i < k; i++)
		check_byte(w, e, w->ring[e].mem[x->got % w->ring_size]);
	return k;
}

static bool got_eof(struct world *w, int e)
{
	struct end *x = &w->end[e];

	if (x->saw_eof)
		return false;
	trace(w, "e%d recv: EOF at %lu", e, (unsigned long)x->got);
	x->saw_eof = true;
	cover(w, C_EOF);
	check_eof(w, e);
	return true;
}

static bool got_reset(struct world *w, int e)
{
	struct end *x = &w->end[e];

	trace(w, "e%d recv: ECONNRESET at %lu", e, (unsigned long)x->got);
	x->saw_reset = true;
	cover(w, C_RESET);
	check_reset(w, e);
	return true;
}

static bool sleep_rx(struct end *x, enum rs_rx_plan plan)
{
	x->rx_sleep = true;
	x->rx_sleep_plan = (uint8_t)plan;
	return false;
}

static bool recv_plain(struct world *w, int e, uint32_t k)
{
	uint32_t n = recv_tcp(w, e, k);

	if (n) {
		trace(w, "e%d plain recv: %u", e, n);
		cover(w, C_PLAIN_READ);
		return true;
	}
	if (w->sock[e].reset)
		return got_reset(w, e);
	return tcp_at_eof(w, e) && got_eof(w, e);
}

/* A recv() of up to k bytes: true when it gave bytes, EOF or an error. */
static bool recv_stream(struct world *w, int e, uint32_t k)
{
	struct end *x = &w->end[e];
	struct rs_stream *s = &x->s;
	uint64_t limit;
	uint32_t n;

	for (int tries = 0; tries < 8 && !w->invariant; tries++) {
		enum rs_rx_plan plan = rs_rx_plan(s, &limit);

		switch (plan) {
		case RS_RXP_TCP:
			n = recv_tcp(w, e, limit < k ? (uint32_t)limit : k);
			if (n) {
				rs_rx_tcp(s, n);
				trace(w, "e%d recv: %u from TCP, now %lu", e, n,
				      (unsigned long)x->got);
				edge_obey(w, e);
				return true;
			}
			if (edge_tcp_end(w, e))
				continue;
			if (w->sock[e].reset)
				return got_reset(w, e);
			if (tcp_at_eof(w, e))
				return got_eof(w, e);
			return sleep_rx(x, plan);
		case RS_RXP_RING:
			edge_sync(w, e);
			n = recv_ring(w, e, k, limit);
			if (n)
				rs_rx_ring(s, n);
			edge_obey(w, e);
			if (!n)
				return s->dead ? false : sleep_rx(x, plan);
			trace(w, "e%d recv: %u from the ring, now %lu", e, n,
			      (unsigned long)x->got);
			return true;
		case RS_RXP_MARK:
			if (edge_mark(w, e))
				continue;
			if (w->sock[e].reset)
				return got_reset(w, e);
			return sleep_rx(x, plan);
		case RS_RXP_SKIP:
			if (edge_skip(w, e, limit) || edge_tcp_end(w, e))
				continue;
			return sleep_rx(x, plan);
		case RS_RXP_EOF:
			return got_eof(w, e);
		case RS_RXP_RESET:
			return got_reset(w, e);
		}
	}
	if (!w->invariant)
		fail(w, "recv turns in circles", "end %d", e);
	return false;
}

/*
 * While an end hands over, the owner must deliver what is left in its ring and cannot come back
 * over TCP, since the peer has shut its direction or died. And when ENTER_OK was sent on a link that
 * is dead now, only the peer's next byte tells whether a MARK is on its way: the owner looks at it.
 * So, too, for a prefix of MARK that was held long enough, and for bytes that a RESUME of either
 * side had made its business before the hand-over was asked for.
 */
static bool left_over(const struct end *x)
{
	return (x->s.rx == RS_RX_FAST && x->s.rx_fin_frame) ||
	       (x->s.rx == RS_RX_DRAIN &&
		(x->had_left || x->s.rx_end || x->s.rx_off >= x->s.rx_have)) ||
	       (x->s.rx == RS_RX_ARMED && (!x->s.linked || x->s.rx_late));
}

bool app_recv(struct world *w, int e, uint32_t k)
{
	struct end *x = &w->end[e];

	if (!open_app(x) || x->rx_sleep)
		return false;
	if (reads_plain(x))
		return recv_plain(w, e, k);
	return (!x->handover || left_over(x)) && recv_stream(w, e, k);
}

bool app_shutdown(struct world *w, int e)
{
	struct end *x = &w->end[e];

	if (!open_app(x) || x->app_shut || (x->handover && !writes_plain(x)))
		return false;
	trace(w, "e%d shutdown(WR) at %lu", e, (unsigned long)x->sent);
	x->app_shut = true;
	if (x->handover) {
		tcp_shutdown(w, e);
		return true;
	}
	edge_sync(w, e);
	rs_stream_shutdown_wr(&x->s, w->now);
	edge_obey(w, e);
	return true;
}

bool app_shutdown_both(struct world *w, int e)
{
	struct end *x = &w->end[e];

	if (!open_app(x) || x->shut_both || x->handover || x->s.rx != RS_RX_FAST)
		return false;
	edge_sync(w, e);
	if (x->s.dead)
		return false;
	x->shut_at = edge_tail(w, e);
	trace(w, "e%d shutdown(RDWR) at %lu/%lu of %lu", e, (unsigned long)x->sent,
	      (unsigned long)x->got, (unsigned long)x->shut_at);
	cover(w, x->got < x->shut_at ? C_SHUT_UNREAD : C_SHUT_BOTH);
	x->app_shut = true;
	x->shut_both = true;
	rs_stream_shutdown_wr(&x->s, w->now);
	rs_stream_shutdown_both(&x->s, x->shut_at);
	edge_obey(w, e);
	return true;
}

static bool unread(struct world *w, int e)
{
	struct rs_stream *s = &w->end[e].s;
	uint64_t n, tail = edge_tail(w, e);

	if ((s->rx == RS_RX_FAST && tail > s->rx_off) ||
	    (s->rx == RS_RX_DRAIN && s->rx_have > s->rx_off))
		return true;
	return rs_tcp_head(s, &n) == RS_HEAD_APP && tcp_readable(w, e);
}

bool app_close(struct world *w, int e, bool linger)
{
	struct end *x = &w->end[e];
	bool lost;

	if (!x->alive || x->app_closed || (x->handover && !x->plain))
		return false;
	if (x->plain) {
		trace(w, "e%d plain close", e);
		x->app_closed = true;
		x->app_shut = true;
		if (linger)
			tcp_abort(w, e, true);
		else
			tcp_close(w, e, false);
		return true;
	}
	while (edge_watch(w, e) && !w->invariant)
		;
	edge_sync(w, e);
	lost = linger || unread(w, e);
	trace(w, "e%d close at %lu%s", e, (unsigned long)x->sent, lost ? ", unread" : "");
	if (lost)
		cover(w, C_CLOSE_UNREAD);
	x->app_closed = true;
	x->app_shut = true;
	x->rx_sleep = x->tx_sleep = false;
	rs_stream_close(&x->s, lost, w->now);
	edge_obey(w, e);
	if (!w->sock[e].closed)
		cover(w, C_HELD);
	return true;
}

bool app_handover(struct world *w, int e)
{
	struct end *x = &w->end[e];

	if (!open_app(x) || x->handover)
		return false;
	trace(w, "e%d hand-over", e);
	cover(w, C_HANDOVER);
	if (x->s.rx == RS_RX_FAST && edge_tail(w, e) > x->s.rx_off)
		cover(w, C_HANDED_UNREAD);
	x->handover = true;
	x->had_left = x->s.rx == RS_RX_DRAIN || (x->s.tx_left && x->s.rx_said != 0);
	x->rx_sleep = x->tx_sleep = false;
	edge_sync(w, e);
	rs_stream_leave(&x->s, RS_REASON_PASSED, true);
	edge_obey(w, e);
	return true;
}

bool app_take_over(struct world *w, int e)
{
	struct end *x = &w->end[e];

	if (!x->handover || x->plain || !x->alive)
		return false;
	if (!rs_stream_is_raw(&x->s) && !x->saw_reset)
		return false;
	trace(w, "e%d handed over at %lu/%lu", e, (unsigned long)x->sent, (unsigned long)x->got);
	x->plain = true;
	x->rx_sleep = x->tx_sleep = false;
	cover(w, C_HANDED);
	return true;
}

bool app_kill(struct world *w, int e)
{
	struct end *x = &w->end[e];

	if (!x->alive || x->app_closed)
		return false;
	trace(w, "e%d killed in tx %d rx %d", e, (int)x->s.tx, (int)x->s.rx);
	cover(w, C_KILL_RAW + x->s.tx);
	x->alive = false;
	x->rx_sleep = x->tx_sleep = false;
	tcp_close(w, e, true);
	link_cut(w, e);
	return true;
}
