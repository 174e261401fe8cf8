/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * remote.c - the verbs link (rsock/remote.h) over two model queue pairs, in random schedules
 *
 *   remote [--schedules=N] [--seed=S]
 *
 * Both ends of a link live in this process. What they post goes into a model of a reliable connection:
 * it arrives in order, as late as it likes, and is read from the sender's memory only then. Checked all
 * the time: every byte arrives once, in order; nothing is overwritten that has not been read; a stream that was closed posts nothing more; messages come in
 * order; a broken queue pair is noticed; of one stream no more small writes are on their way than are
 * allowed; larger rings come and go, and no work request needs memory that has gone. At the end of each
 * schedule an end that does nothing any more is woken for what it kept back, everything that was sent must
 * arrive, and larger rings that nobody needs go. One violation ends the run with status 1; `--seed` and
 * `--schedules=1` repeat it.
 */
#include <getopt.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "rsock/remote.h"
#include "rsock/sys.h"

#define STREAMS 5u
#define DEPTH 512u /* of a send queue, at most */
#define SHALLOW 24u /* small, so that it is full now and then */
#define STEPS 4000
#define IDLE 400 /* rounds without news after which the link stands still */
#define SETTLED 20
#define LEN_MASK 0x1ffffu /* of immediate data */
#define PHASE 500 /* steps */
#define REGIONS 128u

struct work {
	bool message;
	bool small;
	const uint8_t *from; /* of a write; inline: NULL, and in `bytes` */
	uint8_t bytes[256];
	uint32_t len, imm;
	uint8_t *to;
};

struct rs_qp {
	struct rs_qp *peer;
	struct work sq[DEPTH];
	uint32_t posted, arrived,
		known; /* counts: by us, at the peer, completed as far as we polled */
	uint32_t polled; /* of the peer's, taken by our poll */
	uint32_t depth;
	bool full, broken, told;
	bool armed, readable; /* the completion channel */
};

struct end {
	struct rs_remote *remote;
	struct rs_shm_link link;
	struct rs_qp qp;
	struct rs_chan chan[STREAMS];
	struct rs_remote_block block[STREAMS];
	uint64_t sent[STREAMS], got[STREAMS];
	bool closed[STREAMS];
	uint32_t said, heard; /* messages */
};

/* Of a larger ring: a message that is not one of those that are counted. */
struct ring_msg {
	enum { WANT, RING, DROP } type;
	uint32_t stream;
	struct rs_remote_block block;
};

/* Memory that an end's device knows. */
struct region {
	const uint8_t *at;
	size_t len;
	struct rs_qp *qp;
};

static struct end end[2];
static uint64_t seed, state;
static int schedule;
static bool slow; /* little arrives: much is on its way */
static bool big; /* much is sent at a time, */
static bool calm; /* little is, now */
static uint32_t kept; /* how often something was kept back, in all schedules */
static uint32_t came, went; /* larger rings, in all schedules */
static struct region region[REGIONS];

static uint32_t pick(uint32_t n)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (uint32_t)(state >> 32) % n;
}

__attribute__((format(printf, 1, 2), noreturn)) static void violated(const char *format, ...)
{
	va_list ap;

	printf("# seed %llu, schedule %d: ", (unsigned long long)seed, schedule);
	va_start(ap, format);
	vprintf(format, ap);
	va_end(ap);
	printf("\n");
	exit(1);
}

static uint8_t byte_at(uint32_t stream, uint64_t offset)
{
	return (uint8_t)(((offset + stream * 1000003u) * 0x9e3779b97f4a7c15u) >> 56);
}

/* ---- the model of a reliable connection ---- */

static int post(struct rs_qp *qp, const struct work *w)
{
	if (qp->broken)
		return -EPIPE;
	if (qp->posted - qp->known == qp->depth) {
		qp->full = true;
		return -EAGAIN;
	}
	qp->sq[qp->posted++ % DEPTH] = *w;
	return 0;
}

static int post_msg(struct rs_qp *qp, const void *bytes, size_t len)
{
	struct work w = { .message = true, .len = (uint32_t)len };

	memcpy(w.bytes, bytes, len);
	return post(qp, &w);
}

static int post_write(struct rs_qp *qp, const void *from, uint32_t len, uint32_t lkey, uint64_t to,
		      uint32_t rkey, uint32_t imm)
{
	struct end *e = &end[qp == &end[1].qp];
	uint32_t stream = imm >> 18, before = 0;
	struct work w = { .len = len, .imm = imm, .to = (uint8_t *)(uintptr_t)to };

	(void)lkey;
	(void)rkey;
	/* The number is the peer's; both ends use the same here. */
	if ((imm & LEN_MASK) && e->closed[stream])
		violated("a write after the stream was closed");
	w.small = (imm & LEN_MASK) && len < RS_REMOTE_SMALL;
	for (uint32_t i = qp->known; w.small && i != qp->posted; i++)
		before += qp->sq[i % DEPTH].small && qp->sq[i % DEPTH].imm >> 18 == stream;
	/* Those before the one that is waited for, that one, and those after it. */
	if (before >= 2 * RS_RDMA_SIGNAL_EVERY)
		violated("%u small writes of one stream on their way", before + 1);
	if (len <= sizeof(w.bytes))
		memcpy(w.bytes, from, len);
	else
		w.from = from;
	return post(qp, &w);
}

static uint32_t posted(struct rs_qp *qp)
{
	return qp->posted;
}

static bool pending(struct rs_qp *qp, uint32_t n)
{
	if ((int32_t)(n - qp->known) <= 0)
		return false;
	qp->full = true;
	return true;
}

/* A completion for `qp`. */
static void notify(struct rs_qp *qp)
{
	qp->readable |= qp->armed;
	qp->armed = false;
}

static bool known_to(const struct rs_qp *qp, const uint8_t *at, size_t len)
{
	for (uint32_t i = 0; i < REGIONS; i++)
		if (region[i].qp == qp && at >= region[i].at &&
		    at + len <= region[i].at + region[i].len)
			return true;
	return false;
}

/* The next work request of `qp` arrives at its peer. */
static bool arrive(struct rs_qp *qp)
{
	struct work *w = &qp->sq[qp->arrived % DEPTH];

	/* The peer has as many receive buffers as we have places: it may be that late. */
	if (qp->broken || qp->arrived == qp->posted || qp->arrived - qp->peer->polled == DEPTH)
		return false;
	if (!w->message && w->from && !known_to(qp, w->from, w->len))
		violated("a write from memory that is gone");
	if (!w->message && !known_to(qp->peer, w->to, w->len))
		violated("a write to memory that is gone");
	if (!w->message)
		memcpy(w->to, w->from ? w->from : w->bytes, w->len);
	qp->arrived++;
	notify(qp->peer);
	return true;
}

static int poll_cq(struct rs_qp *qp, int max, rs_rdma_done_fn fn, void *arg)
{
	struct rs_rdma_done d = { 0 };
	uint32_t before = qp->known;
	int n = 0;

	for (; n < max && qp->polled != qp->peer->arrived; n++) {
		struct work *w = &qp->peer->sq[qp->polled % DEPTH];

		d = (struct rs_rdma_done){ .kind = w->message ? RS_RDMA_MSG : RS_RDMA_DATA,
					   .imm = w->imm,
					   .bytes = w->bytes,
					   .len = w->len };
		fn(arg, &d);
		qp->polled++;
		notify(qp->peer);
	}
	if (qp->broken && !qp->told) {
		qp->told = true;
		d.kind = RS_RDMA_BROKEN;
		fn(arg, &d);
		n++;
	}
	/* A place is free once its work request was taken, too: the model keeps the bytes there. */
	qp->known = qp->peer->polled;
	if (qp->full && qp->known != before) {
		qp->full = false;
		d.kind = RS_RDMA_ROOM;
		fn(arg, &d);
	}
	return n;
}

static int arm(struct rs_qp *qp)
{
	qp->armed = true;
	return 0;
}

static void disarm(struct rs_qp *qp)
{
	qp->readable = false;
}

static int nothing(struct rs_qp *qp)
{
	(void)qp;
	return 0;
}

static void nothing_to(struct rs_qp *qp)
{
	(void)qp;
}

/* Larger rings cannot always be had. */
static int map(struct rs_qp *qp, struct rs_rdma_mem *m, bool remote)
{
	uint32_t i = 0;

	(void)remote;
	if (end[1].link.remote && end[1].block[STREAMS - 1].addr && pick(8) == 0)
		return -ENOMEM;
	while (region[i].qp)
		i++;
	region[i] = (struct region){ m->addr, m->len, qp };
	m->mr = &region[i];
	return 0;
}

static void unmap(struct rs_rdma_mem *m)
{
	went += ((struct region *)m->mr)->qp->broken == false;
	*(struct region *)m->mr = (struct region){ 0 };
	m->mr = NULL;
}

static void watch(struct rs_remote *r, bool on)
{
	(void)r;
	(void)on;
}

static const struct rs_rdma_ops ops = {
	.map = map,
	.unmap = unmap,
	.post_msg = post_msg,
	.post_write = post_write,
	.posted = posted,
	.pending = pending,
	.settle = nothing,
	.poll = poll_cq,
	.disarm = disarm,
	.arm = arm,
	.drop = nothing_to,
};

/* ---- the two ends ---- */

static void again(void *arg, uint32_t id)
{
	struct end *e = arg;

	rs_remote_post(&e->chan[id]);
	rs_remote_credit(&e->chan[id]);
}

static void tell(struct end *e, const struct ring_msg *m)
{
	if (rs_remote_send(e->remote, (const uint8_t *)m, sizeof(*m)) != 0)
		violated("a message could not be sent");
}

static void want(void *arg, uint32_t id)
{
	struct end *e = arg;
	bool made = rs_remote_make(e->remote, id, false) == 0;

	if (rs_remote_want(&e->chan[id], made))
		tell(e, &(struct ring_msg){ WANT, id, { 0 } });
}

static void told(struct end *e, const struct ring_msg *m)
{
	struct rs_chan *c = &e->chan[m->stream];
	struct ring_msg answer = { RING, m->stream, { 0 } };

	switch (m->type) {
	case WANT:
		rs_remote_offer(c, rs_remote_make(e->remote, m->stream, true) == 0, &answer.block);
		tell(e, &answer);
		break;
	case RING:
		came += rs_remote_offered(c, &m->block);
		break;
	case DROP:
		rs_remote_dropped(c);
		break;
	}
}

static uint32_t used(void *arg, uint32_t id)
{
	struct end *e = arg;
	struct rs_chan *c = &e->chan[id];

	if (!e->closed[id] && rs_remote_look(c))
		tell(e, &(struct ring_msg){ DROP, id, { 0 } });
	return (c->rx_ring[1] ? RS_USES_IN : 0) | (c->tx_ring[1] ? RS_USES_OUT : 0);
}

/* What the control thread does when it is woken. */
static void control(struct end *e)
{
	uint8_t bytes[RS_MSG_MAX];
	uint32_t number;
	size_t len;

	while (rs_remote_receive(e->remote, bytes, &len)) {
		if (len == sizeof(struct ring_msg)) {
			struct ring_msg m;

			memcpy(&m, bytes, sizeof(m));
			told(e, &m);
			continue;
		}
		memcpy(&number, bytes, sizeof(number));
		if (len != 40 || number != e->heard)
			violated("message %u in place of %u", number, e->heard);
		e->heard++;
	}
	if (e->qp.readable)
		rs_remote_event(e->remote);
	rs_remote_retry(e->remote, again, e);
	rs_remote_wanted(e->remote, want, e);
}

static void send_some(struct end *e, uint32_t s)
{
	struct rs_chan *c = &e->chan[s];
	size_t room = e->closed[s] ? 0 : rs_chan_tx_room(c, pick(2));
	uint32_t n = 1 + pick(calm || (!big && (slow || pick(4))) ? 300 : 200000);
	static uint8_t buf[200000];

	if (n > room)
		n = (uint32_t)room;
	if (!n)
		return;
	for (uint32_t i = 0; i < n; i++)
		buf[i] = byte_at(s, e->sent[s] + i);
	rs_chan_tx_copy(c, c->tail, buf, n);
	e->sent[s] += n;
	rs_chan_tx_publish(c, c->tail + n);
	kept += c->held && c->tail - c->posted < RS_REMOTE_SMALL;
}

static bool receive_some(struct end *e, uint32_t s, bool all)
{
	struct rs_chan *c = &e->chan[s];
	uint64_t there = rs_chan_rx_tail(c) - c->head;
	uint32_t n = there > 100000 ? 100000 : (uint32_t)there;
	static uint8_t buf[100000];

	if (c->rx_bad)
		violated("more bytes than the ring holds");
	if (n && !all)
		n = 1 + pick(n);
	if (!n)
		return false;
	rs_chan_rx_copy(c, c->head, buf, n);
	for (uint32_t i = 0; i < n; i++)
		if (buf[i] != byte_at(s, e->got[s] + i))
			violated("stream %u: a wrong byte (at %llu)", s,
				 (unsigned long long)(e->got[s] + i));
	e->got[s] += n;
	rs_chan_rx_consume(c, c->head + n);
	return true;
}

static void say(struct end *e)
{
	uint8_t bytes[40] = { 0 };

	memcpy(bytes, &e->said, sizeof(e->said));
	if (rs_remote_send(e->remote, bytes, sizeof(bytes)) == 0)
		e->said++;
}

static void set_up(void)
{
	memset(end, 0, sizeof(end));
	slow = pick(2);
	big = pick(2);
	for (int i = 0; i < 2; i++) {
		end[i].qp.peer = &end[!i].qp;
		end[i].qp.depth = pick(2) ? SHALLOW : DEPTH;
		end[i].qp.armed = true;
		end[i].link.mine[0] = rs_shm_private();
		end[i].link.nmine = 1;
		end[i].remote = rs_remote_new(&ops, &end[i].qp, &end[i].link, watch);
		end[i].link.remote = end[i].remote;
		end[i].remote->may_grow = true;
		for (uint32_t s = 0; s < STREAMS; s++)
			if (rs_remote_block(end[i].remote, s, &end[i].block[s]) != 0)
				violated("no memory");
	}
	for (int i = 0; i < 2; i++)
		for (uint32_t s = 0; s < STREAMS; s++) {
			struct rs_chan *c = &end[i].chan[s];

			rs_slot_reset(&end[i].link.mine[0]->slot[s]);
			if (!rs_remote_bind(c, end[i].remote, s, s, &end[!i].block[s]))
				violated("cannot bind");
			rs_chan_rx_begin(c, 0);
			rs_chan_tx_begin(c, 0);
			/* As SO_SNDBUF sets it; less than what is told of at a time. */
			c->tx_limit = pick(4) ? 0 : 32768;
			rs_remote_open(c, true);
		}
}

static void tear_down(void)
{
	for (int i = 0; i < 2; i++) {
		rs_remote_close(end[i].remote);
		rs_remote_free(end[i].remote);
		rs_shm_private_free(end[i].link.mine[0]);
	}
}

static void step(void)
{
	struct end *e = &end[pick(2)];
	uint32_t s = pick(STREAMS);

	switch (pick(10)) {
	case 0:
	case 1:
		send_some(e, s);
		break;
	case 2:
		receive_some(e, s, pick(2));
		break;
	case 3:
	case 4:
		for (uint32_t n = pick(20); n && (!slow || !pick(10)) && arrive(&e->qp); n--)
			;
		break;
	case 5:
		rs_remote_progress(e->remote);
		break;
	case 6:
		control(e);
		break;
	case 7:
		say(e);
		break;
	case 8:
		if (pick(100) == 0 && !e->closed[s]) {
			/* LEFT goes out: nothing may follow. What was not posted goes another way. */
			rs_remote_open(&e->chan[s], false);
			e->closed[s] = true;
			e->sent[s] = e->chan[s].posted;
		}
		break;
	case 9:
		/* The control thread may find time for several where little arrives. */
		for (uint32_t n = pick(calm ? 2 : 6) ? 0 : pick(10); n; n--)
			rs_remote_sweep(e->remote, used, e);
		break;
	}
}

static bool drained(void)
{
	for (int i = 0; i < 2; i++) {
		if (end[i].heard != end[!i].said)
			return false;
		for (uint32_t s = 0; s < STREAMS; s++)
			if (end[i].got[s] != end[!i].sent[s])
				return false;
	}
	return true;
}

/* This end goes away to do something else: only its control thread is there for what it has sent. */
static void leave_alone(struct end *e)
{
	struct end *peer = &end[e == &end[0]];

	for (int idle = 0; idle < SETTLED; idle++) {
		while (arrive(&e->qp) || arrive(&peer->qp))
			idle = 0;
		rs_remote_progress(peer->remote);
		control(peer);
		for (uint32_t s = 0; s < STREAMS; s++)
			while (receive_some(peer, s, true))
				idle = 0;
		if (e->qp.readable || e->remote->room || e->remote->wanted)
			control(e);
	}
	for (uint32_t s = 0; s < STREAMS; s++)
		if (!e->closed[s] && e->chan[s].posted != e->chan[s].tail)
			violated("stream %u: what was kept back is forgotten", s);
}

/* No more is sent: what was must arrive, and leave room for as much again. */
static void drain(void)
{
	int idle = 0;

	/* Credit may be on its way when all bytes are there. */
	while (idle++ < (drained() ? SETTLED : IDLE))
		for (int i = 0; i < 2; i++) {
			while (arrive(&end[i].qp))
				idle = 0;
			rs_remote_progress(end[i].remote);
			control(&end[i]);
			for (uint32_t s = 0; s < STREAMS; s++)
				while (receive_some(&end[i], s, true))
					idle = 0;
		}
	if (!drained())
		violated("it stands still");
	for (int i = 0; i < 2; i++)
		for (uint32_t s = 0; s < STREAMS; s++) {
			struct rs_chan *c = &end[i].chan[s];
			size_t least =
				c->tx_limit ? RS_REMOTE_CUT : RS_REMOTE_RING - RS_REMOTE_TELL;

			if (!end[i].closed[s] && rs_chan_tx_room(c, false) < least)
				violated("stream %u: credit was lost", s);
			if (!end[i].closed[s] && !c->tx_tier && c->nseg && c->tail > c->tx_start &&
			    rs_chan_tx_head(c) < c->tx_start)
				violated("stream %u: the larger ring is read, and nobody says so",
					 s);
		}
}

/* Nothing is sent for a while: only the rings of streams that were closed may stay. */
static void idle_rings(void)
{
	for (uint32_t n = 0; n < 4 * RS_REMOTE_IDLE; n++)
		for (int i = 0; i < 2; i++) {
			rs_remote_sweep(end[i].remote, used, &end[i]);
			while (arrive(&end[i].qp))
				;
			rs_remote_progress(end[!i].remote);
			control(&end[!i]);
			rs_remote_progress(end[i].remote);
		}
	for (int i = 0; i < 2; i++)
		for (const struct rs_remote_extra *x = end[i].remote->extra; x; x = x->next)
			if (!end[0].closed[x->id] && !end[1].closed[x->id])
				violated("stream %u: a larger ring was not given back", x->id);
}

static void broken_link(void)
{
	end[0].qp.broken = true;
	end[1].qp.broken = true;
	for (int i = 0; i < 2; i++) {
		rs_remote_progress(end[i].remote);
		if (!rs_remote_broken(end[i].remote))
			violated("a broken queue pair was not noticed");
	}
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "schedules", required_argument, NULL, 'n' },
		{ "seed", required_argument, NULL, 's' },
		{ 0 },
	};
	int schedules = 60, opt;

	seed = 1;
	while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (opt == 'n')
			schedules = atoi(optarg);
		else if (opt == 's')
			seed = strtoull(optarg, NULL, 10);
		else
			return 2;
	}
	printf("1..1\n");
	for (schedule = 1; schedule <= schedules; schedule++, seed++) {
		state = seed * 0x9e3779b97f4a7c15u + 1;
		set_up();
		for (int i = 0; i < STEPS; i++) {
			calm = i / PHASE % 2;
			step();
		}
		leave_alone(&end[pick(2)]);
		drain();
		idle_rings();
		broken_link();
		tear_down();
	}
	if (schedules >= 10 && !(kept && came && went)) {
		printf("not ok 1 - kept back %u times, %u larger rings came, %u went\n", kept, came,
		       went);
		return 1;
	}
	printf("ok 1 - %d schedules of the verbs link\n", schedules);
	return 0;
}
