/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * conn_return.c - back onto the fast path, for a connection that left it for what may pass
 *
 * It is a candidate again as soon as both directions are raw: then no control byte of the last time is
 * on its way, and the state machine goes on with its offsets and epochs. Who connected claims anew, after
 * a pause that grows while paths are lost again and again; who accepted waits to be claimed. A stream that
 * was idle leaves too (it is parked), and its pause lasts until it is not.
 */
#include "conn_mgr/claim.h"
#include "conn_mgr/conn_edge.h"
#include "conn_mgr/control.h"
#include "conn_mgr/link.h"
#include "conn_mgr/owner.h"
#include "rsock/config.h"
#include "rsock/log.h"
#include "rsock/sys.h"

#define PAUSE_MS 1000u /* after a loss, doubled each time, */
#define PAUSE_MAX_MS 60000u
#define STEADY_MS 180000u /* unless the path has held for so long */
#define SOON_MS 20u /* the peer has left, on a link that lives */
#define ATTEMPT_MS 10000u /* then comes the next pause */
#define LOOKS 2u /* at an idle stream, half of its time apart, until it is parked */
#define SHORT 4u /* times as long as it was idle before: then twice as long the next time, */
#define SHIFT_MAX 6u
#define LONG 32u /* or half */
#define TRIES 20u /* within a host, where nobody knows of the connection */

/* Nothing has happened that is final. */
static bool goes_on(const struct rs_conn *c)
{
	const struct rs_stream *s = &c->st->sm;

	return !(c->left || c->closed || c->reset || c->broken || c->rd_shut || c->tcp_closed ||
		 c->yields || c->orphan || c->given || c->rests || c->rest || c->foreign ||
		 c->err || s->dead || s->handover || s->tx_orphan || s->rx_eof || s->fin_wanted ||
		 s->rx_shut);
}

/* Another process would not hear of a return. */
static bool has_others(struct rs_conn *c)
{
	return c->others || rs_owner_shared(c);
}

/* Under the lock. */
bool rs_conn_may_return(struct rs_conn *c)
{
	const struct rs_stream *s = &c->st->sm;

	if (c->reason != RS_REASON_LINK_LOST && c->reason != RS_REASON_PEER_LEFT &&
	    c->reason != RS_REASON_PARKED)
		return false;
	return goes_on(c) && s->tx == RS_TX_RAW && s->rx == RS_RX_RAW && !has_others(c);
}

static uint64_t pause_ms(const struct rs_conn *c)
{
	uint32_t n = c->losses + c->return_tries;
	uint64_t ms = (uint64_t)PAUSE_MS << (n < 6 ? n : 6);

	return ms < PAUSE_MAX_MS ? ms : PAUSE_MAX_MS;
}

/* Under the lock. When it is tried next; the accepted side only waits. */
static void set_pause(struct rs_conn *c, uint64_t now, uint64_t ms)
{
	c->return_at = c->parked ? 0 : now + ms;
	if (!c->server && !c->parked)
		rs_control_due(c->return_at);
}

/* Under the lock; bound, and both directions are raw. */
void rs_conn_return(struct rs_conn *c)
{
	bool lost = c->st->ch.remote || !c->link || !rs_link_alive(c->link);
	uint64_t now = rs_now_ms(), ms = SOON_MS;

	c->parked &= c->reason == RS_REASON_PARKED;
	c->park_at = 0;
	if (c->reason == RS_REASON_PARKED) {
		ms = 0;
	} else if (lost) {
		if (now - c->attached_at >= STEADY_MS)
			c->losses = 0;
		ms = pause_ms(c);
		c->losses += c->losses < 6;
	}
	c->st->sm.rx_owed = rs_conn_owed_by_tcp(c);
	rs_conn_unwatch_tcp(c);
	if (c->managed) {
		c->managed = false;
		rs_conn_speak(c, true);
	}
	rs_conn_detach(c); /* wakes those who sleep on the slot, while it is ours */
	c->st->sm.linked = false;
	c->st->sm.refuse = false;
	c->st->sm.why = RS_REASON_NONE;
	c->retries = 0;
	c->retry_at = 0;
	c->link_dead_at = 0;
	c->blocked = false;
	c->returns = true;
	set_pause(c, now, ms);
	rs_conn_show(c);
	rs_log(RS_LOG_INFO, "fd %d goes on by tcp: %s", c->fd, rs_reason_word(c->reason));
	rs_conn_ring(c);
}

/* What does not concern this connection for ever, as what a peer says that refuses it. */
static bool passes(enum rs_reason why)
{
	switch (why) {
	case RS_REASON_PEER_PLAIN:
	case RS_REASON_NO_DEVICE:
	case RS_REASON_NO_ROUTE:
	case RS_REASON_NO_MEMORY:
	case RS_REASON_NO_FDS:
	case RS_REASON_MEMLOCK:
	case RS_REASON_NO_PERMISSION:
	case RS_REASON_RDMA_LIMIT:
		return true;
	default:
		return false;
	}
}

/* Under the lock, on the control thread. */
bool rs_conn_return_later(struct rs_conn *c, enum rs_reason why)
{
	bool nobody = why == RS_REASON_PEER_PLAIN || why == RS_REASON_NO_ROUTE;

	if (!c->returns)
		return false;
	if (!c->server &&
	    (!passes(why) || (nobody && !c->st->ch.remote && c->return_tries >= TRIES)))
		return false;
	rs_claim_drop(c);
	c->link = NULL;
	c->claim = RS_CLAIM_DONE;
	c->window_end = 0;
	set_pause(c, rs_now_ms(), pause_ms(c));
	if (c->return_tries < TRIES)
		c->return_tries++;
	return true;
}

/* Under the lock, on the control thread: the pause is over. */
void rs_conn_return_now(struct rs_conn *c, uint64_t now)
{
	if (!rs_conn_is_established(c)) {
		rs_conn_become_plain(c);
		return;
	}
	c->claim = RS_CLAIM_WANTED;
	c->claim_tries = 0;
	c->claim_index = 0;
	c->claim_again = false;
	c->claim_name[0] = '\0';
	c->claim_port = 0;
	c->redirects = 0;
	c->refusals = 0;
	c->window_end = now + ATTEMPT_MS;
}

void rs_conn_renew(struct rs_conn *c)
{
	if (rs_lock_mine(&c->lock))
		return; /* a handler that interrupted our own call */
	rs_lock(&c->lock);
	if (c->bound && !c->plain && !c->reset && !c->closed && !c->left && !c->foreign) {
		rs_conn_sync(c);
		rs_conn_take_control(c);
		rs_conn_check_gone(c);
		c->st->sm.refuse = true;
		rs_stream_leave(&c->st->sm, RS_REASON_PARKED, false);
		rs_conn_settle(c);
	}
	rs_conn_unlock(c);
}

/* ---- parking ---- */

/* Only the end that connected does: it is the one that can bring the stream back. */
bool rs_conn_parks(const struct rs_conn *c)
{
	return !c->server && rs_config.park_ms && c->bound && c->st->sm.tx == RS_TX_FAST &&
	       c->st->sm.rx == RS_RX_FAST && !c->st->sm.refuse && goes_on(c);
}

static uint64_t idle_ms(const struct rs_conn *c)
{
	return (uint64_t)rs_config.park_ms << c->park_shift;
}

static uint64_t moved(const struct rs_conn *c)
{
	return c->st->sm.tx_off + c->st->sm.rx_off;
}

/*
 * A leave brings the rest over TCP, which may have no room for it. Over RDMA the peer does not tell of each byte
 * that it has read: some come twice, which are few.
 */
static bool all_read(struct rs_conn *c)
{
	return rs_chan_rx_tail(&c->st->ch) == c->st->sm.rx_off &&
	       (c->st->ch.remote || rs_chan_tx_head(&c->st->ch) == c->st->ch.tail);
}

/* The next look. Many connections have theirs at once, so that the thread wakes once for them. */
static void look_later(struct rs_conn *c, uint64_t now)
{
	uint64_t grain = idle_ms(c) / 8 + 1, at = now + idle_ms(c) / 2 + 1;

	c->park_at = (at + grain - 1) / grain * grain;
}

void rs_conn_park(struct rs_conn *c, uint64_t now)
{
	bool first = !c->park_at;

	if (!rs_conn_parks(c)) {
		c->park_at = 0;
		return;
	}
	c->park_looks = first || moved(c) != c->park_moved ? 0 : c->park_looks + 1;
	c->park_moved = moved(c);
	look_later(c, now);
	if (c->park_looks < LOOKS)
		return;
	c->park_looks = 0;
	rs_conn_sync(c);
	if (!all_read(c) || has_others(c))
		return;
	rs_conn_take_control(c);
	if (!rs_conn_parks(c))
		return;
	c->parked = true;
	c->parked_at = now;
	c->st->sm.refuse = true;
	rs_stream_leave(&c->st->sm, RS_REASON_PARKED, false);
}

/* Who is parked for a short time only had better not be. */
void rs_conn_unpark(struct rs_conn *c)
{
	uint64_t now = rs_now_ms(), rested = now - c->parked_at;

	c->parked = false;
	if (rested < SHORT * idle_ms(c) && c->park_shift < SHIFT_MAX)
		c->park_shift++;
	else if (rested > LONG * idle_ms(c) && c->park_shift)
		c->park_shift--;
	if (rs_conn_waits_to_return(c))
		set_pause(c, now, 0);
}
