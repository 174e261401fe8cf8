/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * tcp.c - model TCP
 *
 * Per direction one byte queue: written, arrived, read. Each byte carries a tag - the application
 * byte's offset, or "control" - which the model uses to check the grammar of what is written and to
 * tell a RST that plain TCP would have sent too from one that only control bytes or bytes sent twice
 * have caused.
 */
#include "sim.h"

uint32_t tcp_space(const struct world *w, int e)
{
	const struct tcp_dir *d = &w->dir[e];

	return d->sndbuf > d->w - d->a ? d->sndbuf - (d->w - d->a) : 0;
}

uint32_t tcp_readable(const struct world *w, int e)
{
	return w->dir[!e].a - w->dir[!e].r;
}

bool tcp_at_eof(const struct world *w, int e)
{
	return w->dir[!e].fin_arrived && !tcp_readable(w, e);
}

static void put(struct tcp_dir *d, uint8_t byte, uint32_t tag)
{
	d->data[d->w % TCPQ] = byte;
	d->tag[d->w % TCPQ] = tag;
	d->w++;
}

/* Whether nobody reads the stream that end `e` writes any more. */
static bool unheard(const struct world *w, int e)
{
	return w->end[!e].app_closed || !w->end[!e].alive || w->sock[e].reset;
}

void tcp_write_app(struct world *w, int e, const uint8_t *p, uint64_t offset, uint32_t n)
{
	struct tcp_dir *d = &w->dir[e];

	if (d->fin)
		fail(w, "write after FIN", "end %d, offset %lu", e, (unsigned long)offset);
	if ((d->grammar != G_RAW || d->unit_len) && !has(w, F_FORGE) && !unheard(w, e))
		fail(w, "application byte between MARK and RESUME", "end %d, offset %lu", e,
		     (unsigned long)offset);
	for (uint32_t i = 0; i < n; i++)
		put(d, p[i], (uint32_t)(offset + i));
}

static void unit_done(struct world *w, int e)
{
	struct tcp_dir *d = &w->dir[e];

	d->unit_len = 0;
	if (d->grammar == G_RAW) {
		d->grammar = G_FRAMES;
		return;
	}
	switch (d->unit_type) {
	case RS_FRAME_RESUME:
		d->grammar = G_RAW;
		break;
	case RS_FRAME_FIN:
		d->grammar = G_FIN;
		cover(w, C_FIN_FRAME);
		break;
	default:
		cover(w, C_PING);
		break;
	}
}

void tcp_write_ctl(struct world *w, int e, const uint8_t *p, uint32_t n, bool mark)
{
	struct tcp_dir *d = &w->dir[e];

	if (!has(w, F_FORGE)) {
		if (d->fin || d->grammar == G_FIN)
			fail(w, "control byte after FIN", "end %d", e);
		if (!d->unit_len && mark != (d->grammar == G_RAW))
			fail(w,
			     mark ? "MARK inside MARK ... RESUME" : "frame outside MARK ... RESUME",
			     "end %d", e);
		if (w->sock[!e].closed && !w->sock[!e].killed && !w->dir[!e].rst &&
		    !w->end[!e].lingering)
			fail(w, "control byte to a closed socket", "end %d", e);
	}
	for (uint32_t i = 0; i < n; i++) {
		if (!d->unit_len)
			d->unit_type = p[i];
		put(d, p[i], TAG_CTL);
		d->unit_len++;
		if (d->unit_len == (d->grammar == G_RAW ? RS_MARK_LEN : RS_FRAME_LEN))
			unit_done(w, e);
	}
}

void tcp_shutdown(struct world *w, int e)
{
	struct tcp_dir *d = &w->dir[e];

	if (d->fin || w->sock[e].reset || w->sock[e].closed)
		return;
	if ((d->grammar == G_FRAMES || d->unit_len) && !unheard(w, e) && !has(w, F_FORGE))
		fail(w, "FIN between MARK and RESUME without a FIN frame", "end %d", e);
	if (d->grammar == G_RAW)
		cover(w, C_FIN_RAW);
	trace(w, "e%d kernel: shutdown(WR)", e);
	d->fin = true;
}

/* RST: what is still in the sender's kernel is thrown away, what is on the wire may arrive. */
static void send_rst(struct world *w, int e, bool legit)
{
	struct tcp_dir *d = &w->dir[e];

	trace(w, "e%d kernel: RST%s", e, legit ? "" : " (plain TCP would not)");
	if (!d->rst) {
		d->w = d->a + rnd(w, d->w - d->a + 1);
		if (!d->fin_arrived)
			d->fin = false;
	}
	d->rst = true;
	d->rst_legit |= legit;
}

/* Whether the bytes from `from` hold one that end `e`'s application has not had before. */
static bool news(const struct world *w, int e, uint32_t from, uint32_t to)
{
	const struct tcp_dir *d = &w->dir[!e];

	for (uint32_t i = from; i != to; i++) {
		uint32_t tag = d->tag[i % TCPQ];

		if (tag != TAG_CTL && tag >= w->end[e].got)
			return true;
	}
	return false;
}

static void discard_input(struct world *w, int e)
{
	w->dir[!e].r = w->dir[!e].a;
}

void tcp_abort(struct world *w, int e, bool legit)
{
	if (w->sock[e].closed)
		return;
	w->sock[e].closed = true;
	if (!w->sock[e].reset)
		send_rst(w, e, legit);
	discard_input(w, e);
}

void tcp_close(struct world *w, int e, bool killed)
{
	const struct tcp_dir *in = &w->dir[!e];

	if (w->sock[e].closed)
		return;
	w->sock[e].closed = true;
	w->sock[e].killed = killed;
	trace(w, "e%d kernel: close", e);
	if (w->sock[e].reset)
		return;
	if (in->a != in->r)
		send_rst(w, e, killed || w->end[e].lingering || news(w, e, in->r, in->a));
	else
		w->dir[e].fin = true;
	discard_input(w, e);
}

/* Bytes that arrive for a closed socket. */
static void answer_rst(struct world *w, int e)
{
	struct tcp_dir *in = &w->dir[!e];
	bool fresh = news(w, e, in->a, in->w);

	cover(w, C_DATA_TO_CLOSED);
	in->a = in->w;
	in->r = in->a;
	if (!w->sock[e].reset)
		send_rst(w, e, fresh || w->sock[e].killed || w->end[e].lingering);
}

static void arrived(struct world *w, int e)
{
	struct end *x = &w->end[e];

	if (x->rx_sleep_plan != RS_RXP_RING)
		x->rx_sleep = false;
}

static void drained(struct world *w, int e)
{
	if (w->end[e].tx_sleep_plan == RS_TXP_TCP)
		w->end[e].tx_sleep = false;
}

bool tcp_deliver(struct world *w, int e, bool all)
{
	struct tcp_dir *d = &w->dir[e];
	struct tcp_sock *to = &w->sock[!e];
	uint32_t n = d->w - d->a;

	if (n && to->closed) {
		answer_rst(w, !e);
		drained(w, e);
		return true;
	}
	n = min32(n, d->rcvbuf - min32(d->rcvbuf, d->a - d->r));
	if (n && !all)
		n = rnd(w, 3) ? 1 + rnd(w, n) : 1 + rnd(w, min32(n, 20));
	if (n) {
		d->a += n;
		trace(w, "tcp %d->%d: %u bytes", e, !e, n);
		arrived(w, !e);
		drained(w, e);
		if (!all)
			return true;
	}
	if (d->w != d->a)
		return n != 0;
	if (d->rst && !to->reset) {
		struct tcp_dir *back = &w->dir[!e];

		trace(w, "tcp %d->%d: RST", e, !e);
		to->reset = true;
		to->reset_legit = d->rst_legit;
		back->w = back->a;
		arrived(w, !e);
		drained(w, !e);
		return true;
	}
	if (d->fin && !d->fin_arrived) {
		trace(w, "tcp %d->%d: FIN", e, !e);
		d->fin_arrived = true;
		arrived(w, !e);
		return true;
	}
	return n != 0;
}
