/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/conn_edge.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/ioctl.h>

#include "conn_mgr/link.h"
#include "rsock/config.h"
#include "rsock/rows.h"
#include "rsock/sys.h"

#define BUSY_MS 2
#define REMOTE_ENTER 12 /* times as long as on one host */

/* 1: the kernel's counts are ours; 0: they are not; -1: they were changing. */
static int compare_counts(struct rs_conn *c)
{
	struct tcp_info ti;
	socklen_t len = sizeof(ti);
	int inq = 0, outq = 0, inq2 = 0, outq2 = 0;

	memset(&ti, 0, sizeof(ti));
	if (rs_sys3(SYS_ioctl, c->fd, FIONREAD, &inq) != 0 ||
	    rs_sys3(SYS_ioctl, c->fd, TIOCOUTQ, &outq) != 0 ||
	    rs_sys5(SYS_getsockopt, c->fd, IPPROTO_TCP, TCP_INFO, &ti, &len) != 0 ||
	    rs_sys3(SYS_ioctl, c->fd, FIONREAD, &inq2) != 0 ||
	    rs_sys3(SYS_ioctl, c->fd, TIOCOUTQ, &outq2) != 0)
		return 0;
	if (len < offsetof(struct tcp_info, tcpi_bytes_received) + 8)
		return 1; /* a kernel older than these counters */
	if (ti.tcpi_state != 1 /* TCP_ESTABLISHED */)
		return 0;
	if (inq != inq2 || outq != outq2)
		return -1; /* bytes or acknowledgements came meanwhile */
	/* tcpi_bytes_acked counts the SYN of the connecting side. */
	return ti.tcpi_bytes_received == c->st->krx + (unsigned int)inq &&
	       (c->st->ktx + 1 == ti.tcpi_bytes_acked + (unsigned int)outq ||
		c->st->ktx == ti.tcpi_bytes_acked + (unsigned int)outq);
}

/* The kernel's own byte counts must be ours, or somebody did I/O that we did not see. */
static bool counts_agree(struct rs_conn *c)
{
	int r = -1;

	for (int i = 0; i < 100 && r < 0; i++)
		r = compare_counts(c);
	return r != 0;
}

static void try_enter(struct rs_conn *c, uint64_t now)
{
	if (!c->bound || !rs_stream_can_enter(&c->st->sm))
		return;
	if (c->busy) { /* a thread sleeps in the kernel's send: where it will end is not known */
		c->retry_at = now + BUSY_MS;
		return;
	}
	if (!counts_agree(c)) {
		c->st->sm.refuse = true;
		c->st->sm.why = RS_REASON_FOREIGN_IO;
		rs_conn_settle(c);
		return;
	}
	rs_chan_tx_begin(&c->st->ch, c->st->sm.tx_off);
	c->st->ch.staging = !c->st->ch.remote;
	c->retry_at = now + ((uint64_t)rs_config.enter_ms << (c->retries < 6 ? c->retries : 6)) * 2;
	c->retries++;
	rs_stream_enter(&c->st->sm, now);
}

void rs_conn_not_busy(struct rs_conn *c)
{
	uint64_t now;

	if (!c->bound || !c->retry_at || !rs_stream_can_enter(&c->st->sm))
		return;
	now = rs_now_ms();
	if (now >= c->retry_at)
		try_enter(c, now);
}

void rs_conn_attach(struct rs_conn *c, const uint8_t key[RS_KEY_LEN])
{
	struct rs_remote *remote;

	rs_lock(&c->lock);
	if (c->plain || c->closed || c->bound)
		goto out;
	remote = c->link->shm.remote;
	if (!(remote ? rs_remote_bind(&c->st->ch, remote, c->id, c->peer_id, &c->peer_block)
		     : rs_chan_bind(&c->st->ch, &c->link->shm, c->id, c->peer_id))) {
		c->reason = RS_REASON_PROTOCOL;
		rs_conn_become_plain(c);
		goto out;
	}
	c->claim = RS_CLAIM_DONE;
	c->window_end = 0;
	c->attached_at = rs_now_ms();
	if (c->returns)
		c->reason = RS_REASON_STARTING;
	c->returns = false;
	c->return_tries = 0;
	__atomic_store_n(&c->bound, true, __ATOMIC_RELAXED);
	c->st->sm.cfg.ring_survives = !remote;
	if (remote && remote->qp)
		rs_row_device(c->row, remote->ops->device(remote->qp));
	/*
	 * To be late with the proof is final. It comes behind all that TCP has queued in both
	 * directions, which over a network takes the program seconds to read.
	 */
	c->st->sm.cfg.enter_ms = rs_config.enter_ms * (remote ? REMOTE_ENTER : 1);
	rs_stream_attach(&c->st->sm, key, c->server);
	rs_conn_buffers(c);
	if (rs_conn_manage(c) != 0) {
		c->st->sm.refuse = true;
		c->st->sm.why = RS_REASON_NO_FDS;
	} else {
		__atomic_fetch_or(&c->st->ch.mine->rx_mask, c->bells, __ATOMIC_SEQ_CST);
		__atomic_fetch_or(&c->st->ch.mine->tx_mask, c->bells, __ATOMIC_SEQ_CST);
		rs_conn_ring(c); /* sleepers in poll() must sleep our way from now on */
		try_enter(c, rs_now_ms());
	}
	rs_conn_settle(c);
out:
	rs_conn_unlock(c);
}

void rs_conn_message(struct rs_conn *c, const struct rs_msg *m)
{
	bool fast;

	rs_lock(&c->lock);
	if (!c->bound)
		goto out;
	rs_conn_sync(c);
	if (m->type == RS_MSG_ENTER && (c->st->sm.rx == RS_RX_RAW || c->st->sm.rx == RS_RX_ARMED) &&
	    !c->st->sm.refuse && !counts_agree(c)) {
		c->st->sm.refuse = true;
		c->st->sm.why = RS_REASON_FOREIGN_IO;
	}
	fast = c->st->sm.tx == RS_TX_FAST && !c->st->sm.tx_orphan;
	rs_stream_msg(&c->st->sm, m->type, m->epoch, m->offset, rs_now_ms());
	if (fast && c->st->sm.tx_orphan)
		rs_conn_peer_closed(c);
	if (m->type == RS_MSG_LEAVE || m->type == RS_MSG_GONE) {
		if (!c->st->sm.why)
			c->st->sm.why = RS_REASON_PEER_LEFT;
		c->st->sm.refuse = true;
	}
	rs_conn_take_control(c);
	rs_conn_settle(c);
out:
	rs_conn_unlock(c);
}

void rs_conn_give_up(struct rs_conn *c, enum rs_reason why)
{
	rs_lock(&c->lock);
	if (!c->plain && !c->bound && !rs_conn_return_later(c, why)) {
		if (!c->returns) /* else the reason is why it left */
			c->reason = (uint8_t)why;
		rs_conn_become_plain(c);
	}
	rs_conn_unlock(c);
}

uint64_t rs_conn_deadline(const struct rs_conn *c)
{
	uint64_t d = 0, t[7];

	if (c->plain)
		return 0;
	t[0] = c->bound ? rs_stream_deadline(&c->st->sm) : 0;
	t[1] = c->claim == RS_CLAIM_NONE ? c->window_end : 0;
	t[2] = c->link_dead_at;
	t[3] = c->bound && rs_stream_can_enter(&c->st->sm) ? c->retry_at : 0;
	t[4] = c->claim == RS_CLAIM_BACKOFF || c->claim == RS_CLAIM_SENT ? c->claim_at : 0;
	t[5] = rs_conn_waits_to_return(c) && !c->server ? c->return_at : 0;
	t[6] = c->bound ? c->park_at : 0;
	for (size_t i = 0; i < 7; i++)
		if (t[i] && (!d || t[i] < d))
			d = t[i];
	return d;
}

void rs_conn_postpone(struct rs_conn *c, uint64_t ms)
{
	rs_lock(&c->lock);
	if (c->bound)
		rs_stream_postpone(&c->st->sm, ms);
	else if (c->claim == RS_CLAIM_SENT && c->claim_at)
		c->claim_at += ms;
	if (c->window_end)
		c->window_end += ms;
	rs_unlock(&c->lock);
}

void rs_conn_timer(struct rs_conn *c, uint64_t now)
{
	rs_lock(&c->lock);
	if (c->plain)
		goto out;
	if (c->window_end && now >= c->window_end && !c->bound && c->claim == RS_CLAIM_NONE) {
		c->window_end = 0;
		c->reason = RS_REASON_PEER_PLAIN;
		rs_conn_become_plain(c);
		goto out;
	}
	if (!c->bound && c->claim == RS_CLAIM_SENT && c->claim_at && now >= c->claim_at) {
		/* The peer's control thread does not answer. */
		if (!rs_conn_return_later(c, RS_REASON_NO_ROUTE)) {
			if (!c->returns)
				c->reason = RS_REASON_NO_ROUTE;
			rs_conn_become_plain(c);
		}
		goto out;
	}
	if (rs_conn_waits_to_return(c) && !c->server && !c->parked && now >= c->return_at) {
		rs_conn_return_now(c, now);
		goto out;
	}
	if (c->link_dead_at && now >= c->link_dead_at) {
		c->link_dead_at = 0;
		rs_conn_sync(c);
		rs_conn_check_gone(c);
		c->st->sm.refuse = true;
		rs_stream_link_dead(&c->st->sm, RS_REASON_LINK_LOST);
	}
	if (c->bound) {
		rs_stream_timer(&c->st->sm, now);
		/* Who could not prove it in time may be somebody else: not another MARK for him. */
		if (c->st->ch.remote && c->st->sm.why == RS_REASON_NO_PROOF)
			c->st->sm.refuse = true;
		if (c->retry_at && now >= c->retry_at)
			try_enter(c, now);
		if (c->park_at && now >= c->park_at)
			rs_conn_park(c, now);
	}
	rs_conn_settle(c);
out:
	rs_conn_unlock(c);
}
