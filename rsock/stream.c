/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/stream.h"

#include <string.h>

#include "rsock/faults.h"
#include "rsock/reason.h"

enum { END_TCP, END_EOF, END_RESET };

/* So much of what TCP brings again stays there until the program has read it from the ring. */
#define KEPT_MAX 65536

static void rx_enter(struct rs_stream *s, uint32_t epoch, uint64_t n);

static uint64_t max64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static void msg(struct rs_stream *s, uint8_t type, uint32_t epoch, uint64_t offset)
{
	if (!s->linked || s->gone_sent || s->nmsgs == RS_STREAM_MSGS)
		return;
	s->msgs[s->nmsgs++] = (struct rs_msg_small){ type, epoch, offset };
}

void rs_stream_gone(struct rs_stream *s)
{
	msg(s, RS_MSG_GONE, s->tx_epoch, s->tx_ctl);
	s->gone_sent = true;
}

static void wake_rx(struct rs_stream *s)
{
	if (!RS_FAULT(LOST_WAKEUP))
		s->todo |= RS_DO_WAKE_RX;
}

static void stop(struct rs_stream *s)
{
	s->dead = true;
	s->t_enter = 0;
	s->t_prefix = 0;
	s->t_hold = 0;
	s->t_ping = 0;
	rs_stream_gone(s);
}

static void reset(struct rs_stream *s, uint8_t why)
{
	if (s->dead)
		return;
	s->why = why;
	stop(s);
	s->todo |= RS_DO_RESET | RS_DO_WAKE_TX;
	wake_rx(s);
}

void rs_stream_violation(struct rs_stream *s)
{
	reset(s, RS_REASON_PROTOCOL);
}

void rs_stream_init(struct rs_stream *s, const struct rs_stream_cfg *cfg)
{
	memset(s, 0, sizeof(*s));
	s->cfg = *cfg;
}

void rs_stream_attach(struct rs_stream *s, const uint8_t key[RS_KEY_LEN], bool server)
{
	memcpy(s->key, key, RS_KEY_LEN);
	s->dir = server;
	s->linked = true;
	s->rx_proved = false;
	s->gone_sent = false;
	s->gone_recv = false;
}

bool rs_stream_may_reuse(const struct rs_stream *s)
{
	if (RS_FAULT(EARLY_REUSE))
		return true;
	/* A dead queue pair writes no more; a process that still maps a dead shm link's slab may. */
	return s->gone_recv || (!s->linked && !s->cfg.ring_survives);
}

uint32_t rs_stream_todo(struct rs_stream *s)
{
	uint32_t todo = s->todo;

	s->todo = 0;
	return todo;
}

/* ---- sending ---- */

static bool flushing(const struct rs_stream *s)
{
	return s->tx_raw < s->tx_off;
}

enum rs_tx_plan rs_tx_plan(const struct rs_stream *s)
{
	if (s->dead || s->fin_wanted || s->tx == RS_TX_DONE)
		return RS_TXP_EPIPE;
	switch (s->tx) {
	case RS_TX_RAW:
		return s->ctl_len || flushing(s) ? RS_TXP_WAIT : RS_TXP_TCP;
	case RS_TX_ARMED:
	case RS_TX_MARK:
		/* What a staging link accepts here would be lost, untold, with the process. */
		return s->cfg.ring_survives ? RS_TXP_RING : RS_TXP_WAIT;
	default:
		return RS_TXP_RING;
	}
}

/* Whether the peer has, or may have, a MARK in the stream without its RESUME. */
static bool rx_entered(const struct rs_stream *s)
{
	return s->rx == RS_RX_FAST || (s->rx == RS_RX_ARMED && s->rx_ok_sent);
}

/*
 * Closed, and all is written: the socket goes when no control byte and no byte that we have had
 * already can reach it any more, since the kernel would answer with RST.
 */
static void check_close(struct rs_stream *s)
{
	bool last = s->gone_recv && s->gone_epoch == s->rx_epoch && s->rx_ctl >= s->gone_ctl;
	bool open = (rx_entered(s) && !last) || (s->rx == RS_RX_DRAIN && s->rx_end == END_TCP);

	if (!s->closing || !s->fin_shut || s->ctl_len || s->dead)
		return;
	if (last && s->rx_ctl > s->gone_ctl) {
		/* What was taken for the start of a frame were bytes for a closed socket. */
		reset(s, RS_REASON_CLOSING);
		return;
	}
	if (open && !s->rx_eof && !RS_FAULT(CLOSE_EARLY))
		return;
	stop(s);
	s->todo |= RS_DO_CLOSE;
}

/* Everything that was sent is with TCP. */
static void shut_wr(struct rs_stream *s)
{
	if (s->fin_shut)
		return;
	s->tx = RS_TX_DONE;
	s->fin_shut = true;
	s->todo |= RS_DO_SHUT_WR;
	check_close(s);
}

/* Everything that was accepted is with TCP: what waited for that may happen. */
static void tx_flushed(struct rs_stream *s)
{
	if (s->tx != RS_TX_RAW || s->ctl_len || flushing(s))
		return;
	if (s->fin_wanted)
		shut_wr(s);
	s->todo |= RS_DO_WAKE_TX;
}

void rs_tx_tcp(struct rs_stream *s, uint64_t n)
{
	s->tx_off += n;
	s->tx_raw += n;
}

static void try_fin(struct rs_stream *s)
{
	struct rs_frame f = { .type = RS_FRAME_FIN, .epoch = s->tx_epoch, .a = s->tx_off };

	if (s->tx != RS_TX_FAST || !s->fin_wanted)
		return;
	/* The kernel's FIN must never overtake a byte that the link could still lose. */
	if (!RS_FAULT(FIN_EARLY) && (s->cfg.ring_survives ? s->tx_post : s->tx_ack) < s->tx_off)
		return;
	if (s->closing)
		f.flags |= RS_FRAME_CLOSING;
	rs_frame_encode(s->cfg.mac, s->key, s->dir, &f, s->ctl + s->ctl_len);
	s->ctl_len = (uint8_t)(s->ctl_len + RS_FRAME_LEN);
	s->tx = RS_TX_DONE;
	s->t_ping = 0;
	s->todo |= RS_DO_OUT;
}

void rs_tx_ring(struct rs_stream *s, uint64_t n)
{
	s->tx_off += n;
	if (s->cfg.ring_survives && s->tx == RS_TX_FAST)
		s->tx_post = s->tx_off;
}

bool rs_tx_may_post(const struct rs_stream *s)
{
	return s->tx == RS_TX_FAST && s->rx_proved && !s->dead;
}

void rs_tx_posted(struct rs_stream *s, uint64_t upto)
{
	s->tx_post = max64(s->tx_post, upto);
	try_fin(s);
}

void rs_tx_acked(struct rs_stream *s, uint64_t upto)
{
	if (s->tx != RS_TX_FAST)
		return;
	if (upto > s->tx_post) {
		rs_stream_violation(s);
		return;
	}
	s->tx_ack = max64(s->tx_ack, upto);
	try_fin(s);
}

void rs_tx_out(const struct rs_stream *s, struct rs_tx_out *o)
{
	*o = (struct rs_tx_out){ 0 };
	if (s->dead)
		return;
	if (s->ctl_len) {
		o->ctl = s->ctl + s->ctl_pos;
		o->len = (size_t)(s->ctl_len - s->ctl_pos);
		o->more = s->tx == RS_TX_DONE || (s->tx == RS_TX_RAW && flushing(s));
		return;
	}
	if (s->tx != RS_TX_RAW || !flushing(s))
		return;
	if (RS_FAULT(WAIT_RESUME) && s->tx_left && s->rx == RS_RX_FAST)
		return;
	o->from = s->tx_raw;
	o->to = s->tx_off;
	o->len = (size_t)(o->to - o->from);
}

void rs_tx_wrote(struct rs_stream *s, size_t n, uint64_t now)
{
	if (!s->ctl_len) {
		s->tx_raw += n;
		tx_flushed(s);
		return;
	}
	s->ctl_pos = (uint8_t)(s->ctl_pos + n);
	s->tx_ctl += n;
	if (s->ctl_pos < s->ctl_len)
		return;
	s->ctl_len = 0;
	s->ctl_pos = 0;
	if (s->tx == RS_TX_MARK) {
		s->tx = RS_TX_FAST;
		if (s->cfg.ring_survives)
			s->tx_post = s->tx_off;
		else if (!s->rx_proved)
			s->t_enter = now + s->cfg.enter_ms;
		s->t_ping = now + s->cfg.ping_ms;
		s->todo |= RS_DO_WAKE_TX;
		try_fin(s);
	} else if (s->tx == RS_TX_DONE) {
		shut_wr(s);
	} else {
		s->todo |= RS_DO_OUT;
		tx_flushed(s);
	}
}

/* The entry does not happen: no MARK was written and none will be for this epoch. */
static void abandon(struct rs_stream *s)
{
	s->tx = RS_TX_RAW;
	s->tx_raw = s->tx_n;
	s->ctl_len = 0;
	s->ctl_pos = 0;
	s->t_enter = 0;
	msg(s, RS_MSG_LEFT, s->tx_epoch, 0);
	s->todo |= RS_DO_OUT;
	tx_flushed(s);
}

/* Leaves with RESUME: a MARK is in the stream, or will be completed first. */
static void resume(struct rs_stream *s)
{
	bool have = s->rx == RS_RX_FAST;
	bool consumed = s->handover && !RS_FAULT(HANDOVER_RECEIVED);
	struct rs_frame f = {
		.type = RS_FRAME_RESUME,
		.flags = s->closing ? RS_FRAME_CLOSING : 0,
		.epoch = s->tx_epoch,
		.have_epoch = have ? s->rx_epoch : 0,
		.a = RS_FAULT(FLUSH_FROM_POSTED) ? s->tx_post : s->tx_ack,
		.b = have ? (consumed ? s->rx_off : s->rx_tail) : 0,
		.c = s->tx_off,
	};

	rs_frame_encode(s->cfg.mac, s->key, s->dir, &f, s->ctl + s->ctl_len);
	s->ctl_len = (uint8_t)(s->ctl_len + RS_FRAME_LEN);
	s->rx_said = f.b;
	s->tx = RS_TX_RAW;
	s->tx_raw = f.a;
	s->tx_left = true;
	s->t_enter = 0;
	s->t_ping = 0;
	msg(s, RS_MSG_LEFT, s->tx_epoch, 1);
	s->todo |= RS_DO_OUT;
}

static void tx_leave(struct rs_stream *s)
{
	switch (s->tx) {
	case RS_TX_ARMED:
		if (RS_FAULT(RESUME_RAW)) {
			s->tx_raw = s->tx_n;
			resume(s);
			break;
		}
		abandon(s);
		break;
	case RS_TX_MARK:
		if (s->ctl_pos == 0)
			abandon(s);
		else
			resume(s);
		break;
	case RS_TX_FAST:
		resume(s);
		break;
	default:
		break;
	}
}

/*
 * The peer reads no control byte any more: it closed, or died. What it has not consumed is lost to
 * it, as with TCP; what we send from now on goes to its kernel, which answers as it likes.
 */
static void tx_orphan(struct rs_stream *s)
{
	if (s->tx_orphan)
		return;
	if (RS_FAULT(CTL_TO_CLOSED)) {
		tx_leave(s);
		return;
	}
	s->tx_orphan = true;
	s->t_enter = 0;
	s->t_ping = 0;
	if (s->tx == RS_TX_ARMED || (s->tx == RS_TX_MARK && s->ctl_pos == 0)) {
		abandon(s);
		return;
	}
	if (s->tx == RS_TX_FAST || s->ctl_len) {
		s->ctl_len = 0;
		s->ctl_pos = 0;
		s->tx = RS_TX_RAW;
		s->tx_raw = s->tx_off;
		tx_flushed(s);
	}
}

/* ---- receiving ---- */

static uint64_t fin_or(const struct rs_stream *s, uint64_t other)
{
	return s->rx_fin_known ? s->rx_fin : other;
}

enum rs_rx_plan rs_rx_plan(const struct rs_stream *s, uint64_t *n)
{
	*n = UINT64_MAX;
	if (s->dead) {
		*n = s->rx_have;
		return s->rx_answered && s->rx_off < s->rx_have ? RS_RXP_RING : RS_RXP_RESET;
	}
	switch (s->rx) {
	case RS_RX_RAW:
		return RS_RXP_TCP;
	case RS_RX_ARMED:
		if (RS_FAULT(READ_PAST_N))
			return s->rx_off == s->rx_n ? RS_RXP_MARK : RS_RXP_TCP;
		if (s->rx_off < s->rx_n + s->rx_late) {
			*n = s->rx_n + s->rx_late - s->rx_off;
			return RS_RXP_TCP;
		}
		return RS_RXP_MARK;
	case RS_RX_FAST:
		*n = fin_or(s, UINT64_MAX);
		if (s->rx_fin_known && s->rx_off >= s->rx_fin)
			return RS_RXP_EOF;
		if (s->rx_shut && *n > s->rx_shut_at)
			*n = s->rx_shut_at;
		return RS_RXP_RING;
	case RS_RX_DRAIN:
		if (s->rx_off < s->rx_have) {
			*n = s->rx_have;
			return RS_RXP_RING;
		}
		if (s->rx_end == END_EOF)
			return RS_RXP_EOF;
		if (s->rx_end == END_RESET)
			return RS_RXP_RESET;
		*n = s->rx_skip;
		return RS_RXP_SKIP;
	}
	return RS_RXP_RESET;
}

enum rs_tcp_head rs_tcp_head(const struct rs_stream *s, uint64_t *n)
{
	*n = 0;
	if (s->dead)
		return RS_HEAD_APP;
	if (s->rx == RS_RX_ARMED && s->rx_off == s->rx_n + s->rx_late)
		return RS_HEAD_MARK;
	if (s->rx == RS_RX_FAST && !s->rx_eof) {
		*n = (uint64_t)(RS_FRAME_LEN - s->frame_len);
		return RS_HEAD_FRAME;
	}
	if (s->rx == RS_RX_RAW && s->closing && !s->rx_eof) {
		*n = 1; /* whatever comes now is for a closed socket */
		return RS_HEAD_FRAME;
	}
	if (s->rx == RS_RX_DRAIN && s->rx_end == END_TCP) {
		uint64_t unread = s->rx_off < s->rx_have ? s->rx_have - s->rx_off : 0;

		/* As long as TCP has them, what is not read can go to another process. */
		if (unread > KEPT_MAX || s->closing)
			unread = 0;
		if (s->rx_skip > unread) {
			*n = s->rx_skip - unread;
			return RS_HEAD_SKIP;
		}
	}
	return RS_HEAD_APP;
}

/* Armed and read up to N: let the sender write MARK. */
static void try_enter_ok(struct rs_stream *s)
{
	if (s->rx != RS_RX_ARMED || s->rx_ok_sent || s->rx_off != s->rx_n)
		return;
	s->rx_ok_sent = true;
	msg(s, RS_MSG_ENTER_OK, s->rx_epoch, s->rx_n);
}

static void rx_raw(struct rs_stream *s)
{
	s->rx = RS_RX_RAW;
	s->rx_late = 0;
	s->rx_held = 0;
	s->rx_ok_sent = false;
	s->t_prefix = 0;
	wake_rx(s);
	if (s->pend_epoch) {
		uint32_t epoch = s->pend_epoch;

		s->pend_epoch = 0;
		rx_enter(s, epoch, s->pend_n);
	}
	check_close(s);
}

/* DRAIN is over when the ring is read and the overlap discarded. */
static void try_rx_raw(struct rs_stream *s)
{
	if (s->rx == RS_RX_DRAIN && s->rx_off >= s->rx_have && !s->rx_skip && s->rx_end == END_TCP)
		rx_raw(s);
}

/* The rest of the ring is not read, but what TCP brings again, if it has all of it. */
static void drain_from_tcp(struct rs_stream *s)
{
	uint64_t unread = s->rx_off < s->rx_have ? s->rx_have - s->rx_off : 0;

	if (s->rx != RS_RX_DRAIN || s->rx_end != END_TCP || s->rx_skip < unread)
		return;
	s->rx_skip -= unread;
	s->rx_have = s->rx_off;
	try_rx_raw(s);
}

/* An ENTER that is newer than all before. */
static void rx_enter(struct rs_stream *s, uint32_t epoch, uint64_t n)
{
	if (rx_entered(s) || s->rx == RS_RX_DRAIN) {
		/* The sender is ahead of the MARK or RESUME that we have still to read. */
		s->pend_epoch = epoch;
		s->pend_n = n;
		return;
	}
	s->rx_epoch = epoch;
	s->rx_late = 0;
	s->rx_held = 0;
	s->rx_ok_sent = false;
	s->t_prefix = 0;
	if (s->refuse || s->handover || s->closing || s->dead || s->rx_eof || s->rx_off > n ||
	    (s->rx_shut && n >= s->rx_shut_at)) {
		s->rx = RS_RX_RAW;
		msg(s, RS_MSG_NAK, epoch, n);
		return;
	}
	s->rx = RS_RX_ARMED;
	s->rx_n = n;
	s->rx_ctl = 0;
	try_enter_ok(s);
}

static void drain(struct rs_stream *s, uint64_t have, uint64_t skip, uint8_t end)
{
	s->rx = RS_RX_DRAIN;
	s->rx_have = max64(have, s->rx_off);
	s->rx_skip = skip;
	s->rx_end = end;
	wake_rx(s);
	try_rx_raw(s);
}

/* As TCP in FIN_WAIT, when nobody will read what comes. */
static void answer_shut(struct rs_stream *s)
{
	reset(s, RS_REASON_CLOSING);
	s->rx = RS_RX_DRAIN;
	s->rx_have = RS_FAULT(SHUT_UNREAD) ? s->rx_off : max64(s->rx_shut_at, s->rx_off);
	s->rx_end = END_RESET;
	s->rx_answered = true;
}

/*
 * RST came while armed: whether a MARK was lost behind N, nobody knows. What the sender had staged for
 * the entry by then is there, where the ring survives and the caller has reported it.
 */
static void armed_cut(struct rs_stream *s)
{
	if (s->rx == RS_RX_ARMED && s->rx_eof && s->rx_off >= s->rx_n)
		drain(s, s->cfg.ring_survives ? s->rx_tail : s->rx_off, 0, END_RESET);
}

void rs_rx_tcp(struct rs_stream *s, uint64_t n)
{
	s->rx_off += n;
	try_enter_ok(s);
	armed_cut(s);
}

void rs_rx_ring(struct rs_stream *s, uint64_t n)
{
	s->rx_off += n;
	try_rx_raw(s);
}

void rs_rx_skipped(struct rs_stream *s, uint64_t n)
{
	s->rx_skip -= n < s->rx_skip ? n : s->rx_skip;
	try_rx_raw(s);
}

size_t rs_rx_mark(struct rs_stream *s, const uint8_t *p, size_t n, bool eof, uint64_t now)
{
	uint8_t mark[RS_MARK_LEN];
	size_t rest = (size_t)(RS_MARK_LEN - s->rx_late);

	if (s->rx != RS_RX_ARMED || s->rx_off != s->rx_n + s->rx_late)
		return 0;
	if (n > rest)
		n = rest;
	if (n == 0) {
		if (eof)
			rx_raw(s);
		return 0;
	}
	rs_mark_make(s->cfg.mac, s->key, !s->dir, s->rx_epoch, s->rx_n, mark);
	if (!RS_FAULT(MARK_UNCHECKED) && !rs_mem_equal(p, mark + s->rx_late, n)) {
		rx_raw(s); /* the sender abandoned the entry: this is application data */
		return 0;
	}
	if (n < rest) {
		if (eof) {
			rx_raw(s);
		} else if (s->rx_held != n || !s->t_prefix) {
			s->rx_held = (uint8_t)n;
			if (!s->t_prefix)
				s->t_prefix = now + s->cfg.prefix_ms;
		}
		return 0;
	}
	if (s->rx_late) {
		/* Its first bytes were handed on as data after the hold. */
		rs_stream_violation(s);
		return 0;
	}
	s->rx = RS_RX_FAST;
	s->rx_said = 0;
	s->rx_ctl = RS_MARK_LEN;
	s->rx_proved = true;
	if (s->tx == RS_TX_FAST)
		s->t_enter = 0;
	s->rx_fin_known = false;
	s->rx_fin_frame = false;
	s->rx_end = END_TCP;
	s->rx_tail = max64(s->rx_tail, s->rx_n);
	s->frame_len = 0;
	s->t_prefix = 0;
	s->rx_held = 0;
	wake_rx(s);
	check_close(s);
	return RS_MARK_LEN;
}

static void frame_fin(struct rs_stream *s, const struct rs_frame *f)
{
	if (f->epoch != s->rx_epoch || f->a < s->rx_off || f->a < s->rx_tail || s->rx_fin_frame ||
	    (s->rx_fin_known && s->rx_fin != f->a)) {
		rs_stream_violation(s);
		return;
	}
	s->rx_fin = f->a;
	s->rx_fin_known = true;
	s->rx_fin_frame = true;
	wake_rx(s);
	if (f->flags & RS_FRAME_CLOSING) {
		s->why = RS_REASON_PEER_CLOSED;
		tx_orphan(s);
		rs_stream_gone(s);
	}
}

static void frame_resume(struct rs_stream *s, const struct rs_frame *f)
{
	/* What we have said that we have, the peer may not bring back. */
	uint64_t have = s->handover ? max64(s->rx_off, s->rx_said) : s->rx_tail;

	if (f->epoch != s->rx_epoch || s->rx_fin_frame || f->a < s->rx_n || f->c < s->rx_tail ||
	    f->a > f->c || (!RS_FAULT(START_UNCHECKED) && f->a > have)) {
		rs_stream_violation(s);
		return;
	}
	if (s->tx == RS_TX_FAST && f->have_epoch == s->tx_epoch) {
		if (!RS_FAULT(HAVE_UNCHECKED) && f->b > s->tx_post) {
			rs_stream_violation(s);
			return;
		}
		s->tx_ack = max64(s->tx_ack, f->b); /* the link may have told us more since */
	}
	if (s->rx_shut && !s->dead && f->c > s->rx_shut_at) {
		answer_shut(s);
		return;
	}
	s->rx_owed = f->c;
	s->rx_fin_known = false;
	drain(s, have, RS_FAULT(KEEP_OVERLAP) ? 0 : have - f->a, END_TCP);
	if (f->flags & RS_FRAME_CLOSING) {
		s->why = RS_REASON_PEER_CLOSED;
		tx_orphan(s);
		rs_stream_gone(s);
		return;
	}
	rs_stream_leave(s, RS_REASON_PEER_LEFT, s->handover);
}

void rs_rx_frame(struct rs_stream *s, const uint8_t *p, size_t n, uint64_t now)
{
	struct rs_frame f;

	(void)now;
	if (s->rx == RS_RX_RAW && s->closing && n)
		reset(s, RS_REASON_CLOSING);
	if (s->rx != RS_RX_FAST || n > (size_t)(RS_FRAME_LEN - s->frame_len))
		return;
	memcpy(s->frame + s->frame_len, p, n);
	s->frame_len = (uint8_t)(s->frame_len + n);
	s->rx_ctl += n;
	if (s->frame_len < RS_FRAME_LEN) {
		check_close(s);
		return;
	}
	s->frame_len = 0;
	if (rs_frame_decode(s->cfg.mac, s->key, !s->dir, s->frame, &f) != 0) {
		/* An orphaned sender's application bytes, for a closed socket; or a lie. */
		reset(s, s->closing ? RS_REASON_CLOSING : RS_REASON_PROTOCOL);
		return;
	}
	switch (f.type) {
	case RS_FRAME_FIN:
		frame_fin(s, &f);
		break;
	case RS_FRAME_RESUME:
		frame_resume(s, &f);
		break;
	default:
		break;
	}
	if (s->closing && s->rx_off < s->rx_have && s->rx == RS_RX_DRAIN)
		reset(s, RS_REASON_CLOSING);
	check_close(s);
}

void rs_rx_landed(struct rs_stream *s, uint64_t tail)
{
	s->rx_tail = max64(s->rx_tail, tail);
	if (s->closing && s->rx == RS_RX_FAST && s->rx_tail > s->rx_off)
		reset(s, RS_REASON_CLOSING); /* bytes for a closed socket: RST, as TCP does */
	else if (s->rx_shut && !s->dead && s->rx == RS_RX_FAST && s->rx_tail > s->rx_shut_at &&
		 !RS_FAULT(SHUT_UNANSWERED))
		answer_shut(s);
}

void rs_rx_tcp_eof(struct rs_stream *s, bool peer_unread)
{
	bool survives = s->cfg.ring_survives;
	uint64_t tail = s->rx_tail;

	if (s->rx_eof) {
		/* RST was seen before what it cut off: the rest of that is in the ring. */
		if (s->rx == RS_RX_RAW && survives && tail > s->rx_off)
			drain(s, tail, 0, END_RESET);
		return;
	}
	s->rx_eof = true;
	wake_rx(s);
	switch (s->rx) {
	case RS_RX_RAW:
	case RS_RX_ARMED:
		if (survives && tail > s->rx_off)
			/* A sender that died while it brought ring bytes back over TCP. */
			drain(s, tail, 0, peer_unread ? END_RESET : END_EOF);
		else if (s->rx_off < s->rx_owed && !RS_FAULT(SILENT_CUT))
			drain(s, s->rx_off, 0, END_RESET);
		else if (s->rx == RS_RX_ARMED)
			rx_raw(s);
		break;
	case RS_RX_FAST:
		if (s->rx_fin_frame) {
			if (tail < s->rx_fin)
				drain(s, tail, 0, RS_FAULT(SILENT_CUT) ? END_EOF : END_RESET);
			break;
		}
		/* No FIN frame: the peer died. */
		if (s->frame_len && !survives)
			peer_unread = true;
		drain(s, tail, 0,
		      (survives && !peer_unread) || RS_FAULT(SILENT_CUT) ? END_EOF : END_RESET);
		s->why = RS_REASON_PEER_CLOSED;
		tx_orphan(s);
		break;
	case RS_RX_DRAIN:
		if (s->rx_end != END_TCP)
			break;
		s->rx_skip = 0;
		s->rx_have = survives ? max64(s->rx_have, tail) : s->rx_have;
		s->rx_end = s->rx_have >= s->rx_owed || RS_FAULT(SILENT_CUT) ? END_EOF : END_RESET;
		wake_rx(s);
		tx_orphan(s);
		break;
	}
	check_close(s);
}

void rs_rx_tcp_reset(struct rs_stream *s)
{
	s->rx_eof = true;
	switch (s->rx) {
	case RS_RX_FAST:
		if (!s->rx_fin_frame || s->rx_tail < s->rx_fin)
			drain(s, s->rx_tail, 0, END_RESET);
		break;
	case RS_RX_DRAIN:
		if (s->rx_end == END_TCP) {
			s->rx_skip = 0;
			s->rx_end = END_RESET;
			wake_rx(s);
		}
		break;
	default:
		armed_cut(s);
		break;
	}
	tx_orphan(s);
	s->tx_raw = s->tx_off;
	s->ctl_len = 0;
	s->ctl_pos = 0;
	if (s->tx == RS_TX_DONE)
		shut_wr(s);
	else
		tx_flushed(s);
	check_close(s);
}

void rs_rx_fin_hint(struct rs_stream *s, uint64_t m)
{
	if (s->rx != RS_RX_FAST || s->rx_fin_known || m < s->rx_off)
		return;
	s->rx_fin = m;
	s->rx_fin_known = true;
	wake_rx(s);
}

/* ---- control ---- */

bool rs_stream_can_enter(const struct rs_stream *s)
{
	if (!s->linked || s->refuse || s->gone_sent || s->gone_recv || s->dead)
		return false;
	if (s->tx != RS_TX_RAW || s->ctl_len || flushing(s))
		return false;
	if (s->fin_wanted || s->closing || s->tx_orphan || s->rx_eof || s->handover)
		return false;
	/* Both RESUMEs of the last epoch must have been sent and received. */
	return !s->tx_left || (s->rx != RS_RX_FAST && s->rx != RS_RX_DRAIN);
}

void rs_stream_enter(struct rs_stream *s, uint64_t now)
{
	s->tx_epoch++;
	s->tx = RS_TX_ARMED;
	s->tx_n = s->tx_off;
	s->tx_post = s->tx_off;
	s->tx_ack = s->tx_off;
	s->tx_left = false;
	s->tx_ctl = 0;
	s->t_enter = now + s->cfg.enter_ms;
	s->todo |= RS_DO_WAKE_TX; /* who slept on a full TCP may have room in the ring */
	msg(s, RS_MSG_ENTER, s->tx_epoch, s->tx_n + (RS_FAULT(N_OFF_BY_ONE) ? 1 : 0));
}

static void got_enter_ok(struct rs_stream *s, uint32_t epoch)
{
	if (s->tx != RS_TX_ARMED || (epoch != s->tx_epoch && !RS_FAULT(LATE_OK)))
		return;
	s->t_enter = 0;
	s->tx = RS_TX_MARK;
	rs_mark_make(s->cfg.mac, s->key, s->dir, s->tx_epoch, s->tx_n, s->ctl);
	s->ctl_len = RS_MARK_LEN;
	s->ctl_pos = 0;
	s->todo |= RS_DO_OUT;
	if (RS_FAULT(NO_MARK)) {
		s->ctl_len = 0;
		s->tx = RS_TX_FAST;
	}
}

void rs_stream_msg(struct rs_stream *s, uint8_t type, uint32_t epoch, uint64_t offset, uint64_t now)
{
	(void)now;
	if (!s->linked || s->gone_recv)
		return;
	switch (type) {
	case RS_MSG_ENTER:
		if (epoch > s->rx_epoch && epoch > s->pend_epoch)
			rx_enter(s, epoch, offset);
		break;
	case RS_MSG_ENTER_OK:
		got_enter_ok(s, epoch);
		break;
	case RS_MSG_NAK:
		if (s->tx == RS_TX_ARMED && epoch == s->tx_epoch)
			abandon(s);
		break;
	case RS_MSG_LEAVE:
		if (s->tx != RS_TX_FAST && s->tx != RS_TX_MARK && s->tx != RS_TX_ARMED)
			msg(s, RS_MSG_LEFT, s->tx_epoch, s->tx_left || s->tx == RS_TX_DONE);
		rs_stream_leave(s, RS_REASON_PEER_LEFT, s->handover);
		break;
	case RS_MSG_LEFT:
		/* No MARK was written for this epoch, and none will be. */
		if (s->rx == RS_RX_ARMED && epoch == s->rx_epoch && offset == 0) {
			rx_raw(s);
		} else if (epoch == s->pend_epoch && offset == 0) {
			s->pend_epoch = 0;
		}
		break;
	case RS_MSG_GONE:
		s->gone_recv = true;
		s->gone_epoch = epoch;
		s->gone_ctl = offset;
		if (s->tx == RS_TX_ARMED)
			abandon(s);
		check_close(s);
		break;
	case RS_MSG_FIN:
		rs_rx_fin_hint(s, offset);
		break;
	default:
		break;
	}
}

void rs_stream_leave(struct rs_stream *s, uint8_t why, bool handover)
{
	bool entered = rx_entered(s);

	if (s->dead)
		return;
	if (handover)
		s->handover = true;
	/* When both leave a dead link, or we have asked for it, the peer's RESUME is not the reason. */
	if (why != RS_REASON_PEER_LEFT ||
	    (s->why != RS_REASON_LINK_LOST && s->why != RS_REASON_PARKED))
		s->why = why;
	tx_leave(s);
	if (handover)
		drain_from_tcp(s);
	if (s->rx == RS_RX_ARMED && !s->rx_ok_sent) {
		msg(s, RS_MSG_NAK, s->rx_epoch, s->rx_n);
		rx_raw(s);
	} else if (entered && why != RS_REASON_PEER_LEFT) {
		msg(s, RS_MSG_LEAVE, 0, 0);
	}
}

void rs_stream_link_dead(struct rs_stream *s, uint8_t why)
{
	if (!s->linked)
		return;
	s->linked = false;
	s->pend_epoch = 0;
	rs_stream_leave(s, why, s->handover);
}

void rs_stream_peer_gone(struct rs_stream *s)
{
	if (s->dead)
		return;
	s->why = RS_REASON_PEER_CLOSED;
	tx_orphan(s);
	check_close(s);
}

void rs_stream_shutdown_wr(struct rs_stream *s, uint64_t now)
{
	(void)now;
	if (s->fin_wanted)
		return;
	s->fin_wanted = true;
	s->todo |= RS_DO_WAKE_TX;
	switch (s->tx) {
	case RS_TX_ARMED:
		abandon(s);
		break;
	case RS_TX_MARK:
		if (s->ctl_pos == 0)
			abandon(s);
		break;
	case RS_TX_FAST:
		msg(s, RS_MSG_FIN, s->tx_epoch, s->tx_off);
		try_fin(s);
		break;
	default:
		tx_flushed(s);
		break;
	}
}

void rs_stream_shutdown_both(struct rs_stream *s, uint64_t have)
{
	if (s->dead || s->rx_shut)
		return;
	s->rx_shut = true;
	s->rx_shut_at = max64(have, s->rx_off);
	if (s->rx == RS_RX_ARMED && !s->rx_ok_sent && have <= s->rx_n) {
		s->refuse = true;
		msg(s, RS_MSG_NAK, s->rx_epoch, s->rx_n);
		rx_raw(s);
	}
	drain_from_tcp(s);
}

void rs_stream_close(struct rs_stream *s, bool unread, uint64_t now)
{
	s->closing = true;
	s->refuse = true;
	s->pend_epoch = 0;
	if (unread) {
		reset(s, RS_REASON_CLOSING);
		return;
	}
	if (s->rx == RS_RX_ARMED && !s->rx_ok_sent) {
		msg(s, RS_MSG_NAK, s->rx_epoch, s->rx_n);
		s->rx = RS_RX_RAW;
	}
	rs_stream_shutdown_wr(s, now);
	check_close(s);
	if (s->dead)
		return;
	s->t_hold = now + s->cfg.hold_ms;
	/* Whoever is told by FIN or RESUME answers with GONE; who is not must be asked to leave. */
	if (s->rx == RS_RX_FAST || s->rx == RS_RX_ARMED)
		msg(s, RS_MSG_LEAVE, 0, 0);
}

bool rs_tx_is_raw(const struct rs_stream *s)
{
	return s->tx == RS_TX_RAW ? !s->ctl_len && !flushing(s) : s->fin_shut;
}

bool rs_rx_is_raw(const struct rs_stream *s)
{
	switch (s->rx) {
	case RS_RX_RAW:
		return true;
	case RS_RX_FAST:
		return s->rx_eof && s->rx_fin_frame && s->rx_off >= s->rx_fin;
	case RS_RX_DRAIN:
		return s->rx_end == END_EOF && s->rx_off >= s->rx_have;
	default:
		return false;
	}
}

bool rs_rx_is_stuck(const struct rs_stream *s)
{
	switch (s->rx) {
	case RS_RX_FAST:
		return s->rx_fin_frame && s->rx_off < s->rx_fin;
	case RS_RX_DRAIN:
		return s->rx_off < s->rx_have || s->rx_end == END_RESET;
	default:
		return false;
	}
}

bool rs_rx_ends(const struct rs_stream *s, bool *reset)
{
	*reset = s->rx == RS_RX_DRAIN && s->rx_end == END_RESET;
	return s->rx_eof && (s->rx == RS_RX_FAST || (s->rx == RS_RX_DRAIN && s->rx_end != END_TCP));
}

bool rs_stream_is_raw(const struct rs_stream *s)
{
	return rs_tx_is_raw(s) && rs_rx_is_raw(s);
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
	if (!a || !b)
		return a | b;
	return a < b ? a : b;
}

uint64_t rs_stream_deadline(const struct rs_stream *s)
{
	return earlier(earlier(s->t_enter, s->t_prefix), earlier(s->t_hold, s->t_ping));
}

void rs_stream_postpone(struct rs_stream *s, uint64_t ms)
{
	if (s->t_enter)
		s->t_enter += ms;
}

void rs_stream_timer(struct rs_stream *s, uint64_t now)
{
	if (s->t_enter && now >= s->t_enter) {
		s->t_enter = 0;
		if (s->tx == RS_TX_ARMED)
			abandon(s);
		else if (s->tx == RS_TX_FAST)
			rs_stream_leave(s, RS_REASON_NO_PROOF, s->handover);
	}
	if (s->t_prefix && now >= s->t_prefix) {
		s->t_prefix = 0;
		s->rx_late = (uint8_t)(s->rx_late + s->rx_held);
		s->rx_held = 0;
		wake_rx(s);
	}
	if (s->t_hold && now >= s->t_hold) {
		if (!s->fin_shut) {
			/* Unsent bytes are lost: a FIN would hide that from who reads plain TCP. */
			reset(s, RS_REASON_CLOSING);
			return;
		}
		stop(s);
		s->todo |= RS_DO_CLOSE;
		return;
	}
	if (s->t_ping && now >= s->t_ping) {
		struct rs_frame f = { .type = RS_FRAME_PING, .epoch = s->tx_epoch };

		s->t_ping = now + s->cfg.ping_ms;
		if (s->tx == RS_TX_FAST && !s->ctl_len && !s->tx_orphan) {
			rs_frame_encode(s->cfg.mac, s->key, s->dir, &f, s->ctl);
			s->ctl_len = RS_FRAME_LEN;
			s->todo |= RS_DO_OUT;
		}
	}
}
