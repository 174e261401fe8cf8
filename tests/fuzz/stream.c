/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * stream.c - the state machine of one connection, whose peer says anything: messages, MARKs and frames
 * (it has the key), bytes on TCP in any pieces, heads and tails
 *
 * The edge here is the least that obeys the state machine: TCP is a queue of bytes, the ring is two
 * offsets. Checked all the time: nothing is read that was not announced, nothing is written that the
 * program has not sent or that the ring need not have any more, and a stream that is dead does nothing.
 */
#include "rsock/stream.h"
#include "tests/fuzz/fuzz.h"

#define RING ((uint64_t)1 << 20)
#define TCP_ROOM 512u

static struct rs_stream s;
static struct {
	uint8_t bytes[TCP_ROOM];
	size_t n;
	bool eof, reset;
} tcp; /* what has come */
static uint64_t now;
static uint64_t tail; /* of our ring, as the peer has said */
static uint64_t head; /* of the peer's ring, likewise, as far as it can be true */
static bool closed, over; /* over: the end was told */

/* Not a good one: what counts here is that both ends have it. */
static void weak_mac(const uint8_t key[RS_KEY_LEN], const void *msg, size_t len, uint8_t *out,
		     size_t out_len)
{
	uint64_t h = key[0] + 0xcbf29ce484222325u;

	for (size_t i = 0; i < len; i++)
		h = (h ^ ((const uint8_t *)msg)[i]) * 0x100000001b3u;
	for (size_t i = 0; i < out_len; i++, h = h * 0x9e3779b97f4a7c15u + 1)
		out[i] = (uint8_t)(h >> 56);
}

/* ---- what has come on TCP ---- */

static void tcp_take(size_t n)
{
	CHECK(n <= tcp.n);
	memmove(tcp.bytes, tcp.bytes + n, tcp.n - n);
	tcp.n -= n;
}

static void tcp_bring(const void *p, size_t n)
{
	if (tcp.eof || tcp.reset)
		return;
	if (n > TCP_ROOM - tcp.n)
		n = TCP_ROOM - tcp.n;
	memcpy(tcp.bytes + tcp.n, p, n);
	tcp.n += n;
}

/* ---- what must always be so ---- */

static void check(void)
{
	struct rs_tx_out o;
	uint64_t n;

	CHECK(s.ctl_pos <= s.ctl_len && s.ctl_len <= sizeof(s.ctl));
	CHECK(s.frame_len < RS_FRAME_LEN && s.nmsgs < RS_STREAM_MSGS);
	CHECK(s.rx_late < RS_MARK_LEN && s.rx_held < RS_MARK_LEN);
	CHECK(s.tx_ack <= s.tx_post || s.tx != RS_TX_FAST);
	CHECK(s.tx_raw <= s.tx_off);
	rs_tx_out(&s, &o);
	if (o.len && o.ctl) {
		CHECK(o.ctl >= s.ctl && o.ctl + o.len <= s.ctl + s.ctl_len);
	} else if (o.len) {
		/* It has to be in the ring still. */
		CHECK(o.to == s.tx_off && o.len == o.to - o.from && o.len <= RING);
		CHECK(o.from >= s.tx_n);
	}
	if (s.dead) {
		CHECK(!o.len && rs_rx_plan(&s, &n) == RS_RXP_RESET &&
		      rs_tx_plan(&s) == RS_TXP_EPIPE);
		CHECK(rs_stream_deadline(&s) == 0 && rs_tcp_head(&s, &n) == RS_HEAD_APP);
	}
	if (s.rx == RS_RX_DRAIN && s.rx_skip)
		/* No more comes twice than this epoch has brought. */
		CHECK(s.rx_skip <= s.rx_have - s.rx_n);
}

/* ---- the edge ---- */

static void obey(void)
{
	for (;;) {
		uint32_t todo = rs_stream_todo(&s);

		if (!todo && !s.nmsgs)
			break;
		CHECK(!over || !(todo & (RS_DO_RESET | RS_DO_CLOSE)));
		for (uint8_t i = 0; i < s.nmsgs; i++) {
			CHECK(s.msgs[i].type >= RS_MSG_ENTER && s.msgs[i].type <= RS_MSG_FIN);
			if (s.msgs[i].type == RS_MSG_ENTER_OK && s.cfg.ring_survives)
				tail = s.msgs[i].offset;
		}
		s.nmsgs = 0;
		over = s.dead;
	}
	check();
}

/* As rs_conn_sync(). */
static void sync_all(void)
{
	if (!s.cfg.ring_survives && s.tx == RS_TX_FAST)
		rs_tx_posted(&s, s.tx_off);
	rs_tx_acked(&s, head);
	if (s.rx == RS_RX_RAW || s.rx == RS_RX_ARMED)
		return;
	/* As rs_chan_rx_tail() has it. */
	if (tail < s.rx_off || tail - s.rx_off > RING)
		rs_stream_violation(&s);
	else
		rs_rx_landed(&s, tail);
}

static void take_control(struct fuzz_in *in)
{
	for (int turns = 0; turns < 64; turns++) {
		uint64_t n;
		size_t k = fuzz_int(in, 1) + 1u;
		bool fin;

		switch (rs_tcp_head(&s, &n)) {
		case RS_HEAD_APP:
			return;
		case RS_HEAD_MARK:
			if (tcp.reset)
				return;
			if (!tcp.n && !tcp.eof)
				return;
			sync_all();
			if (!tcp.n) {
				rs_rx_tcp_eof(&s, k & 1);
				return;
			}
			k = tcp.n < RS_MARK_LEN ? tcp.n : RS_MARK_LEN;
			k = rs_rx_mark(&s, tcp.bytes, k, false, now);
			CHECK(k == 0 || k == RS_MARK_LEN);
			tcp_take(k);
			if (!k)
				return;
			break;
		case RS_HEAD_FRAME:
			CHECK(n && n <= RS_FRAME_LEN);
			if (k > n)
				k = (size_t)n;
			if (k > tcp.n)
				k = tcp.n;
			if (!k && !tcp.eof)
				return;
			sync_all();
			fin = s.rx == RS_RX_FAST && s.rx_fin_frame;
			if (k)
				rs_rx_frame(&s, tcp.bytes, k, now);
			/* Nothing that matters comes behind a FIN frame. */
			CHECK(!k || !fin || s.dead || s.rx == RS_RX_FAST);
			if (!k)
				rs_rx_tcp_eof(&s, n & 1);
			tcp_take(k);
			if (!k)
				return;
			break;
		case RS_HEAD_SKIP:
			CHECK(n && n <= s.rx_skip);
			if (!tcp.n) {
				if (tcp.eof)
					rs_rx_tcp_eof(&s, false);
				return;
			}
			k = n < tcp.n ? (size_t)n : tcp.n;
			rs_rx_skipped(&s, k);
			tcp_take(k);
			break;
		}
		obey();
	}
}

/* The program reads. */
static void receive(struct fuzz_in *in)
{
	uint64_t n, before = s.rx_off, want = fuzz_wild(in, 1) & 0xffffff;

	switch (rs_rx_plan(&s, &n)) {
	case RS_RXP_TCP:
		CHECK(n);
		n = n < tcp.n ? n : tcp.n;
		n = n < want ? n : want;
		if (!tcp.n && tcp.eof && !closed) {
			rs_rx_tcp_eof(&s, false);
			break;
		}
		tcp_take((size_t)n);
		rs_rx_tcp(&s, n);
		CHECK(s.rx_off == before + n);
		break;
	case RS_RXP_MARK:
	case RS_RXP_SKIP:
		take_control(in);
		break;
	case RS_RXP_RING:
		sync_all();
		if (s.dead || tail <= s.rx_off)
			break;
		n = n < tail ? n : tail;
		CHECK(n > s.rx_off || s.rx_fin_known);
		if (n <= s.rx_off)
			break;
		n -= s.rx_off;
		n = n < want ? n : want;
		rs_rx_ring(&s, n);
		CHECK(s.rx_off <= tail);
		break;
	case RS_RXP_EOF:
	case RS_RXP_RESET:
		break;
	}
}

/* The program writes; TCP takes what it has to. */
static void transmit(struct fuzz_in *in)
{
	uint64_t n = fuzz_wild(in, 1) & 0xfffff;

	switch (rs_tx_plan(&s)) {
	case RS_TXP_TCP:
		rs_tx_tcp(&s, n);
		break;
	case RS_TXP_RING: {
		/* As rs_chan_tx_head() has it: from where this epoch began. */
		uint64_t from = head > s.tx_n && head <= s.tx_off ? head : s.tx_n, most;

		if (s.tx == RS_TX_FAST && s.tx_ack > from)
			from = s.tx_ack;
		CHECK(s.tx_off - from <= RING);
		most = RING - (s.tx_off - from);
		rs_tx_ring(&s, n < most ? n : most);
		break;
	}
	case RS_TXP_WAIT:
	case RS_TXP_EPIPE:
		break;
	}
}

static void write_out(struct fuzz_in *in)
{
	struct rs_tx_out o;
	size_t n = (size_t)fuzz_wild(in, RS_FRAME_LEN);

	rs_tx_out(&s, &o);
	if (o.len)
		rs_tx_wrote(&s, n < o.len ? n : o.len, now);
}

/* ---- the peer ---- */

static uint64_t some_offset(struct fuzz_in *in)
{
	const uint64_t near[] = { s.rx_off, s.rx_n,   s.rx_tail, tail,
				  s.tx_off, s.tx_ack, s.rx_fin,	 s.rx_have };

	return fuzz_wild(in, near[fuzz_int(in, 1) % 8]);
}

static uint32_t some_epoch(struct fuzz_in *in)
{
	uint8_t how = (uint8_t)fuzz_int(in, 1);

	return (how & 1 ? s.rx_epoch : s.tx_epoch) + (how & 2 ? (uint32_t)how >> 4 : 0) +
	       (how & 4 ? 1 : 0);
}

static void lie_frame(struct fuzz_in *in)
{
	uint8_t what = (uint8_t)fuzz_int(in, 1), wild = (uint8_t)fuzz_int(in, 1);
	uint8_t bytes[RS_FRAME_LEN];
	struct rs_frame f = {
		.type = what & 3,
		.flags = what >> 2 & 3,
		.epoch = what & 16 ? some_epoch(in) : s.rx_epoch,
		.have_epoch = what & 32 ? some_epoch(in) : s.tx_epoch,
		.a = what & 64 ? some_offset(in) : s.rx_n,
		.b = wild & 1 ? some_offset(in) : s.tx_ack,
		.c = wild & 2 ? some_offset(in) : s.rx_tail,
	};

	rs_frame_encode(weak_mac, s.key, !s.dir, &f, bytes);
	tcp_bring(bytes, what & 128 ? fuzz_int(in, 1) % RS_FRAME_LEN : RS_FRAME_LEN);
}

static void lie_mark(struct fuzz_in *in)
{
	uint8_t what = (uint8_t)fuzz_int(in, 1), bytes[RS_MARK_LEN];

	rs_mark_make(weak_mac, s.key, !s.dir, s.rx_epoch, s.rx_n, bytes);
	tcp_bring(bytes, what % 4 ? RS_MARK_LEN : what % RS_MARK_LEN);
}

static void peer(struct fuzz_in *in, uint8_t op)
{
	uint8_t junk[32];

	switch (op % 8) {
	case 0:
		lie_frame(in);
		break;
	case 1:
		lie_mark(in);
		break;
	case 2: {
		uint8_t type = (uint8_t)(RS_MSG_ENTER + fuzz_int(in, 1) % 8);
		uint32_t epoch = some_epoch(in);

		sync_all();
		rs_stream_msg(&s, type, epoch, some_offset(in), now);
		break;
	}
	case 3: /* as an honest one enters */
		sync_all();
		rs_stream_msg(&s, RS_MSG_ENTER, s.rx_epoch + 1, s.rx_off + op / 8 % 4, now);
		break;
	case 4:
		tail = some_offset(in);
		break;
	case 5: {
		uint64_t h = some_offset(in);

		/* As rs_chan_tx_head() has it. */
		if (h > head && h <= s.tx_off && s.tx == RS_TX_FAST)
			head = h;
		sync_all();
		break;
	}
	case 6:
		fuzz_bytes(in, junk, sizeof(junk));
		tcp_bring(junk, fuzz_int(in, 1) % sizeof(junk));
		break;
	case 7:
		if (fuzz_int(in, 1) % 4 == 0)
			tcp.eof = true;
		else
			rs_stream_msg(&s, RS_MSG_ENTER_OK, s.tx_epoch, s.tx_n, now);
		break;
	}
}

/* ---- the rest of this end ---- */

static void program(struct fuzz_in *in, uint8_t op)
{
	switch (op % 4) {
	case 0:
		receive(in);
		break;
	case 1:
		transmit(in);
		break;
	case 2:
		write_out(in);
		break;
	case 3:
		take_control(in);
		break;
	}
}

static void control(struct fuzz_in *in, uint8_t op)
{
	sync_all();
	switch (op % 8) {
	case 0:
	case 1:
		if (!closed && rs_stream_can_enter(&s)) {
			head = s.tx_off;
			rs_stream_enter(&s, now);
		}
		break;
	case 2:
		rs_stream_leave(&s, 1, op & 128);
		break;
	case 3:
		if (op & 128)
			rs_stream_link_dead(&s, 2);
		else
			rs_stream_gone(&s);
		break;
	case 4:
		rs_stream_shutdown_wr(&s, now);
		break;
	case 5:
		if (!closed)
			rs_stream_close(&s, op & 128, now);
		closed = true;
		break;
	case 6:
		now += fuzz_wild(in, 100) & 0xffff;
		rs_stream_timer(&s, now);
		break;
	case 7:
		if (fuzz_int(in, 1) % 4 == 0) {
			tcp.reset = true;
			rs_rx_tcp_reset(&s);
		} else {
			rs_rx_fin_hint(&s, some_offset(in));
		}
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t key[RS_KEY_LEN] = { 42 };
	struct rs_stream_cfg cfg = { .mac = weak_mac,
				     .enter_ms = 250,
				     .prefix_ms = 200,
				     .hold_ms = 60000,
				     .ping_ms = 60000 };
	struct fuzz_in in = { data, size };
	uint8_t how = (uint8_t)fuzz_int(&in, 1);

	cfg.ring_survives = how & 1;
	memset(&tcp, 0, sizeof(tcp));
	now = 1;
	tail = head = 0;
	closed = over = false;
	rs_stream_init(&s, &cfg);
	if (how & 4) { /* some of it went before */
		rs_rx_tcp(&s, 1000);
		rs_tx_tcp(&s, 5000);
		tail = 1000;
		head = 5000;
	}
	rs_stream_attach(&s, key, how & 2);
	while (in.left && !(closed && s.dead)) {
		uint8_t op = (uint8_t)fuzz_int(&in, 1);

		if (op % 4 < 2)
			peer(&in, op / 4);
		else if (op % 4 == 2 && !closed)
			program(&in, op / 4);
		else
			control(&in, op / 4);
		obey();
	}
	return 0;
}
