/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * remote.c - one end of a verbs link, whose peer sends any messages and immediate data and writes
 * anything into the memory that it was given, between any two steps
 *
 * The queue pair is a model: completions come from the input. Rings are memory of their own, of exactly
 * their size. What is posted must come from the staging ring, and go to where the peer has its block.
 */
#include "rsock/remote.h"
#include "rsock/sys.h"
#include "rsock/wire.h"
#include "tests/fuzz/fuzz.h"

#define STREAMS 2u
#define PAGE 4096u
#define DEPTH 16u
#define PEER_BLOCK(s) (((uint64_t)(s) + 1) << 40)
#define PEER_KEY(s) (77u + (s))
#define LEN_MASK 0x1ffffu
#define LARGE 0x20000u /* of immediate data: in the larger ring */

struct rs_qp {
	struct fuzz_in *in;
	uint32_t posted, known;
	bool full;
};

static struct rs_shm_link link_;
static struct rs_qp qp;
static struct rs_remote *remote;
static struct rs_chan chan[STREAMS];
static uint8_t *rx_ring[STREAMS], *tx_ring[STREAMS];
static uint64_t announced[STREAMS]; /* bytes that came, as the peer says, */
static bool elsewhere[STREAMS]; /* perhaps in a ring that there is not */

/* ---- the queue pair ---- */

static int post(void)
{
	if (qp.posted - qp.known == DEPTH) {
		qp.full = true;
		return -EAGAIN;
	}
	qp.posted++;
	return 0;
}

static int post_msg(struct rs_qp *q, const void *bytes, size_t len)
{
	(void)q;
	(void)bytes;
	CHECK(len <= RS_MSG_MAX);
	return post();
}

static int post_write(struct rs_qp *q, const void *from, uint32_t len, uint32_t lkey, uint64_t to,
		      uint32_t rkey, uint32_t imm)
{
	uint32_t stream = imm >> 18;
	uint64_t at = to - PEER_BLOCK(stream);

	(void)q;
	(void)lkey;
	CHECK(stream < STREAMS && rkey == PEER_KEY(stream) && len);
	if (imm & LEN_MASK) {
		const uint8_t *p = from;

		CHECK(!(imm & LARGE) && len == (imm & LEN_MASK) && len <= RS_REMOTE_CUT);
		CHECK(at >= PAGE && at - PAGE + len <= RS_REMOTE_RING);
		CHECK(p == tx_ring[stream] + (at - PAGE));
	} else {
		CHECK(len == 8 && at == offsetof(struct rs_shm_slot, head));
	}
	return post();
}

static uint32_t posted(struct rs_qp *q)
{
	return q->posted;
}

static bool pending(struct rs_qp *q, uint32_t n)
{
	if ((int32_t)(n - q->known) <= 0)
		return false;
	q->full = true;
	return true;
}

static void announce(uint32_t imm)
{
	if (imm >> 18 >= STREAMS)
		return;
	announced[imm >> 18] += imm & LEN_MASK;
	elsewhere[imm >> 18] |= imm & LARGE;
}

/* What the peer has sent, and what has become of ours. */
static int poll_cq(struct rs_qp *q, int max, rs_rdma_done_fn fn, void *arg)
{
	uint8_t bytes[RS_MSG_MAX + 1];
	int n = 0;

	for (; n < max && q->in->left && q->in->p[0] % 4 == 0; n++) {
		uint8_t what = (uint8_t)(fuzz_int(q->in, 1) / 4);
		struct rs_rdma_done d = { 0 };

		switch (what % 8) {
		case 0:
		case 1:
		case 2:
			d.kind = RS_RDMA_DATA;
			d.imm = (uint32_t)(what / 8 % (STREAMS + 1)) << 18;
			d.imm |= (uint32_t)fuzz_wild(q->in, RS_REMOTE_CUT) & (LEN_MASK | LARGE);
			announce(d.imm);
			break;
		case 3:
			d.kind = RS_RDMA_DATA;
			d.imm = (uint32_t)fuzz_int(q->in, 4);
			announce(d.imm);
			break;
		case 4: {
			uint8_t *copy;

			d.kind = RS_RDMA_MSG;
			d.len = (uint32_t)fuzz_int(q->in, 1) % (RS_MSG_MAX + 1);
			fuzz_bytes(q->in, bytes, d.len);
			/* Of exactly that size. */
			copy = malloc(d.len + 1u);
			memcpy(copy, bytes, d.len);
			d.bytes = copy;
			fn(arg, &d);
			free(copy);
			continue;
		}
		case 5:
			q->known = q->posted;
			if (!q->full)
				continue;
			q->full = false;
			d.kind = RS_RDMA_ROOM;
			break;
		case 6:
			d.kind = RS_RDMA_OWES;
			break;
		case 7:
			if (what / 8 % 8)
				continue;
			d.kind = RS_RDMA_BROKEN;
			break;
		}
		fn(arg, &d);
	}
	return n;
}

static int nothing(struct rs_qp *q)
{
	(void)q;
	return 0;
}

static void nothing_to(struct rs_qp *q)
{
	(void)q;
}

static int map(struct rs_qp *q, struct rs_rdma_mem *m, bool remote_)
{
	(void)remote_;
	m->mr = q;
	return 0;
}

static void unmap(struct rs_rdma_mem *m)
{
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
	.disarm = nothing_to,
	.arm = nothing,
	.drop = nothing_to,
};

/* ---- this end ---- */

static void set_up(void)
{
	link_.mine[0] = aligned_alloc(64, sizeof(struct rs_shm_head));
	link_.nmine = 1;
	for (uint32_t s = 0; s < STREAMS; s++) {
		rx_ring[s] = malloc(RS_REMOTE_RING);
		tx_ring[s] = malloc(RS_REMOTE_RING);
		for (size_t i = 0; i < RS_REMOTE_RING; i++)
			rx_ring[s][i] = (uint8_t)(i * 31 + i / 251);
	}
}

static void bind_stream(struct fuzz_in *in, uint32_t s)
{
	const struct rs_remote_block there = { PEER_BLOCK(s), PEER_KEY(s) };
	struct rs_remote_block here;
	struct rs_chan *c = &chan[s];

	CHECK(rs_remote_block(remote, s, &here) == 0);
	CHECK(!rs_remote_bind(c, remote, s, RS_REMOTE_STREAMS, &there));
	CHECK(rs_remote_bind(c, remote, s, s, &there));
	c->rx_ring[0] = rx_ring[s];
	c->tx_ring[0] = tx_ring[s];
	rs_chan_rx_begin(c, fuzz_wild(in, 0) >> 1);
	rs_chan_tx_begin(c, fuzz_wild(in, 0) >> 1);
	announced[s] = c->head;
	elsewhere[s] = false;
	rs_remote_open(c, true);
}

static void scribble(struct fuzz_in *in, struct rs_chan *c)
{
	uint8_t what = (uint8_t)fuzz_int(in, 1);

	/* All of the first page of the block is the peer's to write. */
	if (what & 1)
		c->peer->head = fuzz_wild(in, what & 2 ? c->tail : c->tx_head);
	else if (what & 2)
		c->peer->rx_limit = (uint32_t)fuzz_wild(in, 4096);
	else
		memset(c->peer, what, sizeof(*c->peer));
}

static void receive(struct fuzz_in *in, uint32_t s)
{
	struct rs_chan *c = &chan[s];
	uint64_t tail = rs_chan_rx_tail(c);
	size_t n = (size_t)fuzz_wild(in, 1) % RS_REMOTE_RING + 1;
	uint8_t *buf;

	CHECK(c->rx_bad || (tail >= c->head && tail - c->head <= RS_REMOTE_RING));
	if (!c->rx_bad)
		CHECK(tail == announced[s]);
	if (n > tail - c->head)
		n = (size_t)(tail - c->head);
	if (!n || c->rx_bad)
		return;
	buf = malloc(n);
	rs_chan_rx_copy(c, c->head, buf, n);
	CHECK(!c->rx_bad || elsewhere[s]);
	for (size_t i = 0; i < n && !c->rx_bad; i += 61)
		CHECK(buf[i] == rx_ring[s][(c->head + i) % RS_REMOTE_RING]);
	free(buf);
	if (c->rx_bad)
		return;
	rs_chan_rx_consume(c, c->head + n);
}

static void transmit(struct fuzz_in *in, struct rs_chan *c)
{
	static const uint8_t bytes[RS_REMOTE_RING];
	size_t n = (size_t)fuzz_wild(in, 1) % RS_REMOTE_RING + 1, room = rs_chan_tx_room(c, false);

	CHECK(c->tx_tier == 0 && room <= RS_REMOTE_RING && c->tx_head <= c->tail);
	CHECK(c->tail - c->tx_head <= RS_REMOTE_RING && c->posted <= c->tail);
	if (n > room)
		n = room;
	if (!n)
		return;
	rs_chan_tx_copy(c, c->tail, bytes, n);
	rs_chan_tx_publish(c, c->tail + n);
}

static void again(void *arg, uint32_t id)
{
	(void)arg;
	if (id >= STREAMS) /* a slot without a stream: the peer writes for any */
		return;
	rs_remote_post(&chan[id]);
	rs_remote_credit(&chan[id]);
}

static void control(void)
{
	uint8_t bytes[RS_MSG_MAX];
	struct rs_msg m;
	size_t len;

	while (rs_remote_receive(remote, bytes, &len)) {
		CHECK(len <= RS_MSG_MAX);
		rs_msg_decode(bytes, len, &m);
	}
	rs_remote_event(remote);
	rs_remote_retry(remote, again, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = { data, size };
	const uint8_t message[40] = { 0 };

	if (!link_.nmine)
		set_up();
	memset(link_.mine[0], 0, sizeof(*link_.mine[0]));
	qp = (struct rs_qp){ .in = &in };
	remote = rs_remote_new(&ops, &qp, &link_, watch);
	link_.remote = remote;
	for (uint32_t s = 0; s < STREAMS; s++)
		bind_stream(&in, s);
	for (int budget = 200; in.left && budget; budget--) {
		uint8_t op = (uint8_t)fuzz_int(&in, 1);
		uint32_t s = op / 8 % STREAMS;

		switch (op % 8) {
		case 0:
			scribble(&in, &chan[s]);
			break;
		case 1:
			receive(&in, s);
			break;
		case 2:
		case 3:
			transmit(&in, &chan[s]);
			break;
		case 4:
			rs_remote_progress(remote);
			break;
		case 5:
			control();
			break;
		case 6:
			rs_remote_send(remote, message, sizeof(message));
			break;
		case 7:
			if (op / 16 % 4 == 1) {
				/* Answers to what was not asked. */
				CHECK(!rs_remote_offered(&chan[s],
							 &(struct rs_remote_block){ 1, 2 }));
				rs_remote_dropped(&chan[s]);
			} else if (op / 16 % 4)
				rs_chan_tx_writable(&chan[s]);
			else
				rs_remote_open(&chan[s], op & 128);
			break;
		}
	}
	rs_remote_close(remote);
	rs_remote_free(remote);
	return 0;
}
