/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * sched.c - one schedule: a random phase, then a fair drain that must come to an end
 */
#include "sim.h"

#include <stdarg.h>
#include <string.h>

#include "rsock/reason.h"

void trace_line(struct world *w, const char *fmt, ...)
{
	va_list ap;

	printf("# %4u t=%-5lu ", w->step, (unsigned long)w->now);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
}

void fail(struct world *w, const char *invariant, const char *fmt, ...)
{
	va_list ap;

	if (w->invariant)
		return;
	w->invariant = invariant;
	va_start(ap, fmt);
	vsnprintf(w->detail, sizeof(w->detail), fmt, ap);
	va_end(ap);
	trace(w, "VIOLATED: %s: %s", invariant, w->detail);
}

/* ---- the random phase ---- */

enum action {
	A_SEND,
	A_RECV,
	A_TCP,
	A_LINK,
	A_WATCH,
	A_OUT,
	A_POST,
	A_ACK,
	A_TIME,
	A_TIMER,
	A_ENTER,
	A_LEAVE,
	A_NOTICE,
	A_ATTACH,
	A_SHUT,
	A_BOTH,
	A_CLOSE,
	A_LINGER,
	A_HANDOVER,
	A_TAKE_OVER,
	A_CUT,
	A_KILL,
	A_FORGE,
	A_COUNT
};

static const struct {
	uint8_t weight;
	uint32_t feature;
} actions[A_COUNT] = {
	[A_SEND] = { 40, 0 },
	[A_RECV] = { 40, 0 },
	[A_TCP] = { 44, 0 },
	[A_LINK] = { 40, 0 },
	[A_WATCH] = { 24, 0 },
	[A_OUT] = { 16, 0 },
	[A_POST] = { 20, F_VERBS },
	[A_ACK] = { 10, F_VERBS },
	[A_TIME] = { 6, 0 },
	[A_TIMER] = { 6, 0 },
	[A_ENTER] = { 20, 0 },
	[A_LEAVE] = { 4, F_LEAVE },
	[A_NOTICE] = { 6, F_CUT | F_KILL },
	[A_ATTACH] = { 10, F_REATTACH },
	[A_SHUT] = { 2, F_SHUT },
	[A_BOTH] = { 2, F_BOTH },
	[A_CLOSE] = { 2, F_CLOSE },
	[A_LINGER] = { 1, F_LINGER },
	[A_HANDOVER] = { 2, F_HANDOVER },
	[A_TAKE_OVER] = { 6, F_HANDOVER },
	[A_CUT] = { 3, F_CUT },
	[A_KILL] = { 1, F_KILL },
	[A_FORGE] = { 12, F_FORGE },
};

struct table {
	uint8_t action[512];
	uint32_t n;
};

static void make_table(const struct world *w, struct table *t)
{
	t->n = 0;
	for (uint8_t a = 0; a < A_COUNT; a++) {
		if (actions[a].feature && !has(w, actions[a].feature))
			continue;
		for (uint8_t i = 0; i < actions[a].weight; i++)
			t->action[t->n++] = a;
	}
}

static uint32_t size(struct world *w)
{
	return rnd(w, 4) ? 1 + rnd(w, 12) : 1 + rnd(w, 100);
}

static void enter(struct world *w, int e)
{
	struct end *x = &w->end[e];

	if (!x->alive || x->plain || !rs_stream_can_enter(&x->s) || (has(w, F_ONEWAY) && e == 0))
		return;
	trace(w, "e%d enter at %lu", e, (unsigned long)x->sent);
	if (x->s.tx_left)
		cover(w, C_REENTER);
	rs_stream_enter(&x->s, w->now);
	edge_obey(w, e);
}

static void leave(struct world *w, int e)
{
	struct end *x = &w->end[e];

	if (!x->alive || x->plain || x->app_closed)
		return;
	trace(w, "e%d leave", e);
	edge_sync(w, e);
	rs_stream_leave(&x->s, RS_REASON_PARKED, false);
	edge_obey(w, e);
}

static void act(struct world *w, enum action a, int e)
{
	switch (a) {
	case A_SEND:
		app_send(w, e, size(w));
		break;
	case A_RECV:
		app_recv(w, e, size(w));
		break;
	case A_TCP:
		tcp_deliver(w, e, !rnd(w, 4));
		break;
	case A_LINK:
		link_deliver(w, e);
		break;
	case A_WATCH:
		edge_watch(w, e);
		break;
	case A_OUT:
		if (edge_out(w, e))
			edge_obey(w, e);
		break;
	case A_POST:
		link_post(w, e, rnd(w, 2));
		break;
	case A_ACK:
		link_ack(w, e);
		break;
	case A_TIME:
		w->now += 1 + rnd(w, 4);
		break;
	case A_TIMER:
		edge_timer(w, e);
		break;
	case A_ENTER:
		enter(w, e);
		break;
	case A_LEAVE:
		leave(w, e);
		break;
	case A_NOTICE:
		link_notice(w, e);
		break;
	case A_ATTACH:
		if (link_may_attach(w))
			link_attach(w);
		break;
	case A_SHUT:
		app_shutdown(w, e);
		break;
	case A_BOTH:
		app_shutdown_both(w, e);
		break;
	case A_CLOSE:
		app_close(w, e, false);
		break;
	case A_LINGER:
		app_close(w, e, true);
		break;
	case A_HANDOVER:
		app_handover(w, e);
		break;
	case A_TAKE_OVER:
		app_take_over(w, e);
		break;
	case A_CUT:
		link_cut(w, -1);
		break;
	case A_KILL:
		app_kill(w, e);
		break;
	case A_FORGE:
		forge(w);
		break;
	case A_COUNT:
		break;
	}
}

/* ---- the drain ---- */

static bool drain_end(struct world *w, int e)
{
	bool any = edge_timer(w, e) | link_notice(w, e);

	while (link_deliver(w, e) && !w->invariant)
		any = true;
	any |= tcp_deliver(w, e, true);
	while (edge_watch(w, e) && !w->invariant)
		any = true;
	while (edge_out(w, e) && !w->invariant) {
		edge_obey(w, e);
		any = true;
	}
	any |= link_post(w, e, true);
	any |= link_ack(w, e);
	any |= app_take_over(w, e);
	while (app_recv(w, e, 64) && !w->invariant && !w->end[e].saw_eof)
		any = true;
	return any;
}

static uint64_t next_deadline(const struct world *w)
{
	uint64_t next = 0;

	for (int e = 0; e < 2; e++) {
		const struct rs_stream *s = &w->end[e].s;
		uint64_t t[] = { s->t_enter, s->t_prefix, s->t_hold };

		if (!w->end[e].alive || w->end[e].plain)
			continue;
		for (int i = 0; i < 3; i++) {
			if (t[i] && (!next || t[i] < next))
				next = t[i];
		}
	}
	return next;
}

/* Lets everything happen that can, until only the applications could go on. */
static void quiesce(struct world *w, const char *when)
{
	for (int rounds = 0; rounds < 400; rounds++) {
		bool any = false;

		w->step++;
		for (int e = 0; e < 2; e++)
			any |= drain_end(w, e);
		check_step(w);
		if (w->invariant)
			return;
		if (!any) {
			uint64_t t = next_deadline(w);

			if (!t)
				return;
			trace(w, "nothing to do: time passes");
			w->now = t > w->now ? t : w->now;
		}
	}
	fail(w, "no end", "%s", when);
}

static bool may_enter(const struct world *w, int e)
{
	const struct end *x = &w->end[e];

	return x->alive && !x->app_closed && !x->handover && !w->sock[e].reset &&
	       rs_stream_can_enter(&x->s) && rs_stream_is_raw(&x->s);
}

/* An entry that nothing stands against must succeed, and carry bytes. */
static void drain_enter(struct world *w)
{
	if (!w->link.up || has(w, F_FORGE) || !may_enter(w, 0) || !may_enter(w, 1))
		return;
	trace(w, "-- drain: both enter");
	for (int e = 0; e < 2; e++) {
		rs_stream_enter(&w->end[e].s, w->now);
		edge_obey(w, e);
	}
	quiesce(w, "both enter");
	for (int e = 0; e < 2; e++) {
		const struct rs_stream *s = &w->end[e].s;

		if (s->tx != RS_TX_FAST && !has(w, F_SLOW) && !w->invariant)
			fail(w, "entry came to nothing", "end %d, tx %d", e, (int)s->tx);
		app_send(w, e, size(w));
	}
	cover(w, C_ENTER_DRAIN);
	quiesce(w, "both sent");
	check_delivered(w, "both sent");
}

static void drain(struct world *w)
{
	w->draining = true;
	trace(w, "-- drain: both read");
	quiesce(w, "both read");
	check_delivered(w, "both read");
	if (rnd(w, 2) && !w->invariant)
		drain_enter(w);
	trace(w, "-- drain: both shut");
	for (int e = 0; e < 2; e++)
		app_shutdown(w, e);
	if (has(w, F_FORGE)) {
		app_kill(w, 1);
		tcp_close(w, 1, true);
	}
	quiesce(w, "both shut");
	check_delivered(w, "both shut");
	for (int e = 0; e < 2 && !w->invariant; e++) {
		const struct end *x = &w->end[e];

		if (x->alive && !x->app_closed && !x->saw_eof && !x->saw_reset && !x->s.dead &&
		    !(has(w, F_FORGE) && e == 1))
			fail(w, "no end of file", "end %d, rx %d", e, (int)x->s.rx);
	}
	trace(w, "-- drain: both close");
	for (int e = 0; e < 2; e++)
		app_close(w, e, false);
	quiesce(w, "both close");
	for (int e = 0; e < 2 && !w->invariant; e++) {
		if (w->end[e].alive && !w->sock[e].closed)
			fail(w, "socket never closed", "end %d, tx %d rx %d", e,
			     (int)w->end[e].s.tx, (int)w->end[e].s.rx);
	}
}

/* ---- the whole ---- */

static uint32_t draw_features(struct world *w)
{
	/* One in ... */
	static const uint8_t odds[FEATURE_COUNT] = {
		[BIT_VERBS] = 2,      [BIT_SHUT] = 3,	   [BIT_CLOSE] = 2,  [BIT_LINGER] = 20,
		[BIT_LEAVE] = 2,      [BIT_HANDOVER] = 6,  [BIT_CUT] = 3,    [BIT_REATTACH] = 2,
		[BIT_KILL] = 5,	      [BIT_FORGE] = 12,	   [BIT_PREFIX] = 4, [BIT_SLOW] = 20,
		[BIT_PING] = 4,	      [BIT_HOLDFIRE] = 12, [BIT_SMALL] = 3,  [BIT_ONEWAY] = 6,
		[BIT_SPLITMARK] = 20, [BIT_BOTH] = 6,
	};
	uint32_t features = 0;

	for (uint32_t i = 0; i < FEATURE_COUNT; i++)
		features |= (uint32_t)!rnd(w, odds[i]) << i;
	return features;
}

static void setup(struct world *w, uint64_t seed, uint32_t mask)
{
	struct rs_stream_cfg cfg = { .mac = sim_mac };

	memset(w->end, 0, sizeof(w->end));
	memset(w->sock, 0, sizeof(w->sock));
	w->seed = seed;
	w->rng = seed * 0xd1342543de82ef95u + 1;
	rnd64(w);
	w->features = draw_features(w) & mask;
	if (has(w, F_SPLITMARK))
		w->features &= ~(uint32_t)F_KILL; /* half a MARK of a dead process is data */
	w->step = 0;
	w->steps = 40 + rnd(w, 220);
	w->ring_size = 16u << rnd(w, 4);
	w->now = 1;
	w->link_gen = 0;
	w->draining = false;
	w->invariant = NULL;
	w->detail[0] = '\0';
	w->link.up = false;
	for (int e = 0; e < 2; e++) {
		struct tcp_dir *d = &w->dir[e];

		w->link.first[e] = w->link.count[e] = 0;
		d->w = d->a = d->r = 0;
		d->sndbuf = has(w, F_SMALL) ? 16 + rnd(w, 32) : 64 + rnd(w, 256);
		d->rcvbuf = has(w, F_SMALL) ? 16 + rnd(w, 32) : 64 + rnd(w, 256);
		d->fin = d->fin_arrived = d->rst = d->rst_legit = false;
		d->grammar = G_RAW;
		d->unit_len = 0;
		w->ring[e].head = w->ring[e].tail = w->ring[e].accepted = 0;
		w->ring[e].released = false;
	}
	cfg.ring_survives = !has(w, F_VERBS);
	cfg.enter_ms = 10;
	cfg.prefix_ms = has(w, F_SLOW) ? 5 : 1000000;
	cfg.hold_ms = has(w, F_HOLDFIRE) ? 1 + rnd(w, 6) : 10000000;
	cfg.ping_ms = has(w, F_PING) ? 4 : 1000000000;
	for (int e = 0; e < 2; e++) {
		rs_stream_init(&w->end[e].s, &cfg);
		w->end[e].alive = true;
	}
}

void schedule_run(struct world *w, uint64_t seed, uint32_t mask, uint32_t max_steps)
{
	struct table t;

	setup(w, seed, mask);
	make_table(w, &t);
	if (w->verbose) {
		static const char *const names[] = {
#define X(name, text) #name " ",
			FEATURES(X)
#undef X
		};
		char line[256] = "";

		for (int i = 0; i < FEATURE_COUNT; i++) {
			if (w->features & (1u << i))
				strcat(line, names[i]);
		}
		trace(w, "seed %lu: %u steps, ring %u, %s", (unsigned long)seed, w->steps,
		      w->ring_size, line);
	}
	if (rnd(w, 4))
		link_attach(w);
	while (w->step < w->steps && w->step < max_steps && !w->invariant) {
		uint32_t r = rnd(w, t.n * 2);

		w->step++;
		act(w, t.action[r >> 1], r & 1);
		check_step(w);
	}
	if (!w->invariant)
		drain(w);
}
