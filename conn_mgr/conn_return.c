/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * conn_return.c - back onto the fast path, for a connection that left it for what may pass
 *
 * It is a candidate again as soon as both directions are raw: then no control byte of the last time is
 * on its way, and the state machine goes on with its offsets and epochs. Who connected claims anew, after
 * a pause that grows while paths are lost again and again; who accepted waits to be claimed.
 */
#include "conn_mgr/claim.h"
#include "conn_mgr/conn_edge.h"
#include "conn_mgr/control.h"
#include "conn_mgr/link.h"
#include "conn_mgr/owner.h"
#include "rsock/log.h"
#include "rsock/sys.h"

#define PAUSE_MS 1000u /* after a loss, doubled each time, */
#define PAUSE_MAX_MS 60000u
#define STEADY_MS 180000u /* unless the path has held for so long */
#define SOON_MS 20u /* the peer has left, on a link that lives */
#define ATTEMPT_MS 10000u /* then comes the next pause */
#define TRIES 20u /* within a host, where nobody knows of the connection */

/* Under the lock. */
bool rs_conn_may_return(struct rs_conn *c)
{
	const struct rs_stream *s = &c->st->sm;

	if (c->reason != RS_REASON_LINK_LOST && c->reason != RS_REASON_PEER_LEFT &&
	    c->reason != RS_REASON_PARKED)
		return false;
	if (c->left || c->closed || c->reset || c->broken || c->rd_shut || c->tcp_closed ||
	    c->yields || c->orphan || c->given || c->rests || c->rest || c->foreign || c->err)
		return false;
	if (s->tx != RS_TX_RAW || s->rx != RS_RX_RAW || s->dead || s->handover || s->tx_orphan ||
	    s->rx_eof || s->fin_wanted || s->rx_shut)
		return false;
	/* Another process would not hear of it. */
	return !c->others && !rs_owner_shared(c);
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
	c->return_at = now + ms;
	if (!c->server)
		rs_control_due(c->return_at);
}

/* Under the lock; bound, and both directions are raw. */
void rs_conn_return(struct rs_conn *c)
{
	bool lost = c->st->ch.remote || !c->link || !rs_link_alive(c->link);
	uint64_t now = rs_now_ms(), ms = SOON_MS;

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
