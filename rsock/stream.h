/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * stream.h - the state machine of one TCP connection: which path each direction is on
 *
 * PURE: no socket, ring, clock, lock or thread is in here. The caller (the "edge") reports what it
 * saw and did - bytes moved, messages, time in milliseconds - and obeys what comes out: rs_tx_plan()
 * and rs_rx_plan() say where the next application byte goes or comes from, rs_stream_todo() what
 * else to do. tests/sim drives the same code through millions of schedules.
 *
 * The caller serialises all calls on one stream (a lock) and obeys `todo` before it releases it.
 *
 * The TCP byte stream of each direction has the grammar  raw (MARK frame* RESUME raw)*.  All offsets
 * count application bytes of one direction from the start of the connection.
 *
 * Sending direction ("tx")            Receiving direction ("rx")
 *   RAW     bytes go to TCP             RAW    bytes come from TCP
 *   ARMED   ENTER sent, N fixed         ARMED  ENTER received: read up to N, then look for MARK
 *   MARK    MARK is being written       FAST   bytes come from the ring, TCP carries frames
 *   FAST    bytes go to the ring        DRAIN  RESUME received: rest of the ring, then skip overlap
 *   DONE    FIN written
 */
#ifndef RSOCK_STREAM_H
#define RSOCK_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rsock/wire.h"

enum rs_tx { RS_TX_RAW, RS_TX_ARMED, RS_TX_MARK, RS_TX_FAST, RS_TX_DONE };
enum rs_rx { RS_RX_RAW, RS_RX_ARMED, RS_RX_FAST, RS_RX_DRAIN };

/* What to do after a call, besides the messages. */
#define RS_DO_WAKE_RX 0x01u /* receivers must look again at rs_rx_plan() */
#define RS_DO_WAKE_TX 0x02u /* senders must look again at rs_tx_plan() */
#define RS_DO_OUT 0x04u /* rs_tx_out() has something for TCP */
#define RS_DO_SHUT_WR 0x08u /* shutdown(SHUT_WR) of the kernel socket */
#define RS_DO_RESET 0x10u /* abort: the peer must get RST (SO_LINGER {1,0}, close) */
#define RS_DO_CLOSE 0x20u /* the held kernel socket may be closed */

#define RS_STREAM_MSGS 8

struct rs_stream_cfg {
	rs_mac_fn mac;
	/*
	 * The ring is in memory that outlives the sender and that the peer sees at once (shm):
	 * appended means posted, the peer's identity was proved before, and what a killed sender
	 * had appended is still delivered. Without it (verbs) the sender keeps a staging ring.
	 */
	bool ring_survives;
	uint32_t enter_ms; /* an unanswered ENTER is abandoned after this */
	uint32_t prefix_ms; /* a proper prefix of MARK is held this long */
	uint32_t hold_ms; /* a closed socket is held this long for the peer's frames */
	uint32_t ping_ms; /* PING interval while sending on the fast path */
};

struct rs_stream {
	struct rs_stream_cfg cfg;
	uint8_t key[RS_KEY_LEN];
	uint8_t dir; /* direction number of what we send: 0 for the connecting side */
	bool linked; /* ids and rings are there at both ends, link alive */
	bool refuse; /* enter no more, answer ENTER with NAK */
	bool gone_sent, gone_recv;
	uint32_t gone_epoch; /* what GONE said: the peer's epoch, */
	uint64_t gone_ctl; /* and how many control bytes it has written in it */
	bool closing; /* the application has closed it */
	bool handover; /* leaving for another process: what is not consumed comes over TCP */
	bool dead; /* reset or closed for good */

	enum rs_tx tx;
	uint32_t tx_epoch;
	uint64_t tx_n; /* where the current epoch entered */
	uint64_t tx_off; /* next byte from the application */
	uint64_t tx_raw; /* next byte for TCP, when tx is RAW: < tx_off means staged bytes wait */
	uint64_t tx_post; /* posted to the peer's ring up to here */
	uint64_t tx_ack; /* the peer has consumed up to here, as far as we know */
	bool tx_left; /* a RESUME was written since the last enter */
	bool tx_orphan; /* the peer reads no control byte any more */
	bool fin_wanted; /* shutdown(WR) or close was called */
	bool fin_shut; /* RS_DO_SHUT_WR was given */
	uint8_t ctl[2 * RS_FRAME_LEN + RS_MARK_LEN];
	uint8_t ctl_len, ctl_pos;
	uint64_t tx_ctl; /* control bytes written in the current epoch */

	enum rs_rx rx;
	uint32_t rx_epoch;
	uint64_t rx_n; /* ARMED: N; FAST: where the epoch entered */
	uint64_t rx_off; /* consumed by the application */
	uint64_t rx_tail; /* landed in the ring, as last reported */
	uint64_t rx_said; /* rx_have of the RESUME that we wrote in this epoch of theirs */
	uint64_t rx_have; /* DRAIN: the ring is good up to here */
	uint64_t rx_skip; /* DRAIN: overlap still to discard from TCP */
	uint64_t rx_owed; /* RESUME's end: an EOF before it is a cut */
	uint64_t rx_fin; /* M, valid with rx_fin_known */
	bool rx_fin_known; /* from a hint or a frame */
	bool rx_fin_frame;
	bool rx_ok_sent; /* ARMED: ENTER_OK was sent */
	bool rx_proved; /* a MARK was seen: the link peer is the TCP peer */
	bool rx_eof; /* the kernel's FIN was seen */
	bool rx_shut; /* both directions are shut: bytes behind rx_shut_at are answered by RST, */
	bool rx_answered; /* and were: what is before rx_have may still be read */
	uint8_t rx_end; /* what follows rx_have: 0 TCP, 1 end of file, 2 ECONNRESET */
	uint8_t rx_late; /* MARK-like bytes that were handed on as data after the hold */
	uint8_t rx_held; /* length of the proper prefix at N */
	uint32_t pend_epoch; /* ENTER that waits for the end of the current epoch */
	uint64_t pend_n;
	uint8_t frame[RS_FRAME_LEN];
	uint8_t frame_len;
	uint64_t rx_ctl; /* control bytes read in the current epoch */
	uint64_t rx_shut_at;

	uint64_t t_enter, t_prefix, t_hold, t_ping; /* deadlines, ms; 0: off */

	uint32_t todo;
	uint8_t nmsgs;
	uint8_t why; /* enum rs_reason of the last leave */
	struct rs_msg_small {
		uint8_t type;
		uint32_t epoch;
		uint64_t offset;
	} msgs[RS_STREAM_MSGS];
};

/* A stream at offset 0 in both directions, on TCP. */
void rs_stream_init(struct rs_stream *s, const struct rs_stream_cfg *cfg);
/* Ids and rings exist at both ends. `key` is shared by both; `server` is the accepting side. */
void rs_stream_attach(struct rs_stream *s, const uint8_t key[RS_KEY_LEN], bool server);

/* ---- sending ---- */

/*
 * What a shm link shows of a ring, so that the same stream can enter again and again:
 *  - tail is tx_post (while tx_post > tx_n): bytes appended before MARK is written stay unseen, for
 *    the receiver may still read an older epoch;
 *  - accepted is tx_off after each append: who reads 0 from TCP takes it for the tail, once, before
 *    rs_rx_tcp_eof(), and so gets what a killed sender had appended;
 *  - head is rx_off, whichever path the bytes came on; a byte fits while tx_off - head < size, where
 *    a head beyond tx_post counts as tx_post.
 */
enum rs_tx_plan {
	RS_TXP_TCP, /* hand application bytes to TCP, then rs_tx_tcp() */
	RS_TXP_RING, /* append them to the ring (or staging), then rs_tx_ring() */
	RS_TXP_WAIT, /* wait for RS_DO_WAKE_TX; rs_tx_out() must go first */
	RS_TXP_EPIPE, /* the direction is shut */
};

enum rs_tx_plan rs_tx_plan(const struct rs_stream *s);
void rs_tx_tcp(struct rs_stream *s, uint64_t n);
void rs_tx_ring(struct rs_stream *s, uint64_t n);
/* Staging links only: whether appended bytes may travel on the link now. */
bool rs_tx_may_post(const struct rs_stream *s);
void rs_tx_posted(struct rs_stream *s, uint64_t upto);
/* The peer says it has consumed up to `upto`: untrusted; out of range resets the stream. */
void rs_tx_acked(struct rs_stream *s, uint64_t upto);

struct rs_tx_out {
	const uint8_t *ctl; /* control bytes, or NULL: */
	uint64_t from, to; /* staged application bytes of this range */
	size_t len; /* bytes to write; 0: nothing */
	bool more; /* MSG_MORE */
};

/* What must be written to TCP next; nothing else may be written before it. */
void rs_tx_out(const struct rs_stream *s, struct rs_tx_out *o);
void rs_tx_wrote(struct rs_stream *s, size_t n, uint64_t now);

/* ---- receiving ---- */

enum rs_rx_plan {
	RS_RXP_TCP, /* at most *n bytes may be read from TCP for the application: rs_rx_tcp() */
	RS_RXP_RING, /* ring bytes up to offset *n (UINT64_MAX: the tail): rs_rx_ring() */
	RS_RXP_MARK, /* peek at up to RS_MARK_LEN bytes of TCP: rs_rx_mark() */
	RS_RXP_SKIP, /* read and drop *n bytes of TCP: rs_rx_skipped() */
	RS_RXP_EOF,
	RS_RXP_RESET, /* ECONNRESET */
};

enum rs_rx_plan rs_rx_plan(const struct rs_stream *s, uint64_t *n);
void rs_rx_tcp(struct rs_stream *s, uint64_t n);
void rs_rx_ring(struct rs_stream *s, uint64_t n);
void rs_rx_skipped(struct rs_stream *s, uint64_t n);
/*
 * `n` bytes were peeked at the head of TCP (fewer than RS_MARK_LEN: no more there; `eof`: and none
 * will come). Returns how many of them to take off TCP now (RS_MARK_LEN or 0).
 */
size_t rs_rx_mark(struct rs_stream *s, const uint8_t *p, size_t n, bool eof, uint64_t now);

/* What the head of TCP holds, for whoever watches the TCP side. */
enum rs_tcp_head {
	RS_HEAD_APP, /* application bytes: leave them */
	RS_HEAD_MARK, /* as RS_RXP_MARK */
	RS_HEAD_FRAME, /* read *n bytes: rs_rx_frame(); after close this may be any byte */
	RS_HEAD_SKIP, /* as RS_RXP_SKIP */
};

enum rs_tcp_head rs_tcp_head(const struct rs_stream *s, uint64_t *n);
void rs_rx_frame(struct rs_stream *s, const uint8_t *p, size_t n, uint64_t now);
/* The ring holds bytes up to `tail`. To be reported before frames, ends and while closing. */
void rs_rx_landed(struct rs_stream *s, uint64_t tail);
/*
 * read() on TCP gave 0. `peer_unread`: the peer left bytes of ours unread in its ring (only known
 * when the ring survives), which on TCP would have been a reset.
 */
void rs_rx_tcp_eof(struct rs_stream *s, bool peer_unread);
/* TCP got RST. */
void rs_rx_tcp_reset(struct rs_stream *s);
/* The peer's hint, through the link, that its direction ends at `m`. */
void rs_rx_fin_hint(struct rs_stream *s, uint64_t m);

/* ---- control ---- */

bool rs_stream_can_enter(const struct rs_stream *s);
/* Starts to move our sending direction to the fast path; rs_stream_can_enter() must hold. */
void rs_stream_enter(struct rs_stream *s, uint64_t now);
/* One message for this stream (ENTER ... FIN) from the link. */
void rs_stream_msg(struct rs_stream *s, uint8_t type, uint32_t epoch, uint64_t offset,
		   uint64_t now);
/* Both directions go back to TCP. `why`: enum rs_reason. */
void rs_stream_leave(struct rs_stream *s, uint8_t why, bool handover);
/* The link died: no message or ring byte will come any more. */
void rs_stream_link_dead(struct rs_stream *s, uint8_t why);
void rs_stream_shutdown_wr(struct rs_stream *s, uint64_t now);
/*
 * Both directions are shut. What has come, up to `have`, the program may still read; what comes behind
 * it is answered by RST, as TCP does, and seen in ring bytes that are reported and in RESUME.
 */
void rs_stream_shutdown_both(struct rs_stream *s, uint64_t have);
/* close() of the last descriptor. `unread`: TCP or ring hold bytes that were not read. */
void rs_stream_close(struct rs_stream *s, bool unread, uint64_t now);
/* The stream needs the link no more: says GONE, once. */
void rs_stream_gone(struct rs_stream *s);
/*
 * The peer has ended, and its socket with it: it reads no control byte any more, but our next byte is
 * answered by RST.
 */
void rs_stream_peer_gone(struct rs_stream *s);
/* The link peer broke the protocol. */
void rs_stream_violation(struct rs_stream *s);

/*
 * The direction is plain TCP at an application byte, or at the end of file: another process could
 * carry on. Whoever hands over lets it read as soon as rx is raw, even while tx still flushes: two
 * ends that wait for each other's flush would wait for ever.
 */
bool rs_tx_is_raw(const struct rs_stream *s);
bool rs_rx_is_raw(const struct rs_stream *s);
/* Whether only the program can bring receiving on: it has to read the ring, or be told of a reset. */
bool rs_rx_is_stuck(const struct rs_stream *s);
/* Whether nothing comes behind what is in the ring; `reset`: but ECONNRESET. */
bool rs_rx_ends(const struct rs_stream *s, bool *reset);
/* Both are. */
bool rs_stream_is_raw(const struct rs_stream *s);
/*
 * The peer's writes to our ring are over: ring and index may serve another stream. With a dead shm
 * link that never comes without GONE: its slab goes as a whole.
 */
bool rs_stream_may_reuse(const struct rs_stream *s);

/* The earliest deadline (ms), 0: none; rs_stream_timer() is to be called then. */
uint64_t rs_stream_deadline(const struct rs_stream *s);
void rs_stream_timer(struct rs_stream *s, uint64_t now);
/* The peer gets `ms` more for the answer to an entry: the caller has not run meanwhile. */
void rs_stream_postpone(struct rs_stream *s, uint64_t ms);

/* Takes the pending RS_DO_ bits; the messages are s->msgs[0 .. s->nmsgs), to be cleared by 0. */
uint32_t rs_stream_todo(struct rs_stream *s);

#endif
