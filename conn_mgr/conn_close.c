/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/conn_edge.h"

#include <fcntl.h>
#include <sys/ioctl.h>

#include "conn_mgr/accepted.h"
#include "conn_mgr/control.h"
#include "conn_mgr/owner.h"
#include "conn_mgr/rest.h"
#include "conn_mgr/wait.h"
#include "rsock/sys.h"

/* ---- by the program ---- */

/*
 * Under the lock: both directions are shut. What has come by now may still be read, and the control thread
 * looks for what comes later.
 */
static void shut_both(struct rs_conn *c)
{
	struct rs_stream *s = &c->st->sm;
	uint64_t have = s->rx_tail;
	int inq = 0;
	bool all;

	rs_sys3(SYS_ioctl, c->fd, FIONREAD, &inq);
	all = s->rx == RS_RX_DRAIN && (uint64_t)inq >= s->rx_skip;
	if (s->rx == RS_RX_RAW || s->rx == RS_RX_ARMED) {
		uint64_t in_tcp = s->rx_off + (uint64_t)inq;

		if (s->rx == RS_RX_ARMED && in_tcp > s->rx_n)
			in_tcp = s->rx_n; /* then MARK */
		/* What is staged for an entry was sent by now: it takes its course. */
		have = c->st->ch.remote ? in_tcp : rs_chan_rx_survived(&c->st->ch, in_tcp);
		all = have == in_tcp;
		s->refuse |= all;
	}
	rs_stream_shutdown_both(s, have);
	/* Nothing but TCP will bring anything: the kernel can do it by itself. */
	if (s->rx == RS_RX_RAW && all)
		rs_sys2(SYS_shutdown, c->fd, SHUT_RD);
	rs_chan_rx_watch(&c->st->ch);
	rs_conn_sync(c);
}

int rs_conn_shutdown(struct rs_conn *c, int fd, int how)
{
	int r = 0;

	if (rs_lock_mine(&c->lock)) {
		/*
		 * A handler that interrupted our own call. The kernel's FIN without a frame is what
		 * the peer would see of a process that ends: all of the ring, then end of file.
		 */
		if (how != SHUT_WR)
			c->rd_shut = true;
		return how == SHUT_RD ? 0 : (int)rs_sys2(SYS_shutdown, fd, SHUT_WR);
	}
	rs_lock(&c->lock);
	if (c->plain || !c->bound) {
		/*
		 * A candidate's bytes are all with TCP: the kernel does it right. Nor could it enter,
		 * for after SHUT_RD the end of file hides what the peer writes.
		 */
		if (!c->plain && how >= SHUT_RD && how <= SHUT_RDWR) {
			c->st->sm.refuse = true;
			c->reason = RS_REASON_CLOSING;
			rs_conn_become_plain(c);
		}
		r = (int)rs_sys2(SYS_shutdown, fd, how);
		rs_unlock(&c->lock);
		return r;
	}
	if (how != SHUT_RD && how != SHUT_WR && how != SHUT_RDWR) {
		r = -EINVAL;
	} else {
		uint64_t m;

		/* Both directions have ended: TCP would be closed (tcp(7), inet_shutdown). */
		if (c->reset || c->broken || rs_conn_tcp_closed(c) ||
		    (c->st->sm.fin_wanted &&
		     (c->st->sm.rx_fin_known || c->st->sm.rx_eof ||
		      (c->st->sm.rx == RS_RX_FAST && rs_chan_rx_fin(&c->st->ch, &m)))))
			r = -ENOTCONN;
		rs_conn_sync(c);
		if (how != SHUT_WR)
			c->rd_shut = true;
		if (how != SHUT_RD) {
			rs_stream_shutdown_wr(&c->st->sm, rs_now_ms());
			/* On TCP too it was us who ended it, and not our death. */
			if (!c->st->ch.remote && !c->st->ch.mute)
				rs_chan_tx_fin(&c->st->ch, c->st->sm.tx_off);
		}
		if (c->rd_shut && c->st->sm.fin_wanted && !c->st->sm.rx_shut)
			shut_both(c);
		rs_conn_settle(c);
		rs_conn_untell(c, UINT32_MAX); /* as inet_shutdown() wakes all */
		rs_conn_ring(c);
	}
	rs_conn_unlock(c);
	return r;
}

/* Under the lock: whether the peer's host does not have all that was sent, on whatever path. */
static bool unsent(const struct rs_conn *c, int fd)
{
	const struct rs_stream *s = &c->st->sm;
	int outq = 0;

	if (c->plain || c->reset || s->dead)
		return false;
	if (rs_sys3(SYS_ioctl, fd, TIOCOUTQ, &outq) == 0 && outq > 0)
		return true; /* what is before the ring */
	if (s->tx == RS_TX_RAW)
		return s->tx_raw < s->tx_off;
	/* As on any loopback connection: what fits the peer's buffer, the peer has. */
	return s->tx != RS_TX_DONE &&
	       c->st->ch.tail - rs_chan_tx_head(&c->st->ch) > ((uint64_t)1 << 18);
}

/* SO_LINGER with a time: close waits that long for the peer to take what was sent. */
static void linger(struct rs_conn *c, int fd, uint32_t seconds)
{
	uint64_t end = rs_now_ms() + (uint64_t)seconds * 1000;
	long fl = rs_sys2(SYS_fcntl, fd, F_GETFL);

	if (fl < 0 || fl & O_NONBLOCK)
		return;
	while (unsent(c, fd) && rs_now_ms() < end) {
		struct timespec ts = { 0, 1000000 };

		rs_unlock(&c->lock);
		rs_sys4(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &ts, NULL);
		rs_lock(&c->lock);
	}
}

/* Under the lock. */
static void start_leaving(struct rs_conn *c, enum rs_reason why, bool consumed)
{
	/* First: the peer's RESUME may be there to be read, and is answered by what we have. */
	if (consumed)
		c->st->sm.handover = true;
	rs_conn_sync(c);
	rs_conn_take_control(c);
	rs_conn_check_gone(c);
	c->st->sm.refuse = true;
	if (!c->left)
		c->reason = (uint8_t)why;
	c->left = true;
	rs_stream_leave(&c->st->sm, (uint8_t)why, consumed);
	rs_conn_settle(c);
}

/*
 * Another process has the socket, so it does not end: we only cease to be its owner. What the peer has
 * yet to be told, and to tell, needs a descriptor.
 */
static bool yield(struct rs_conn *c, int fd)
{
	int held;

	if (!c->bound || c->plain || c->reset || !rs_owner_shared(c))
		return false;
	held = rs_fd_dup(fd);
	rs_conn_unwatch_tcp(c);
	c->fd = held;
	if (held < 0) {
		c->fd = fd;
		rs_stream_violation(&c->st->sm); /* never a silent cut */
		rs_conn_settle(c);
		return false;
	}
	c->held = true;
	c->yields = true;
	rs_owner_count_yielding(1);
	if (rs_control_watch_conn(c->fd, c) == 0)
		c->watched_tcp = true;
	start_leaving(c, RS_REASON_FORKED, true);
	return true;
}

bool rs_conn_close(struct rs_conn *c, int fd)
{
	struct linger lin = { 0 };
	socklen_t len = sizeof(lin);
	bool unread = false;
	uint64_t n;

	if (c->server)
		rs_accepted_drop(c);
	if (rs_owner_dead(c))
		rs_owner_adopt(c);
	rs_lock(&c->lock);
	rs_accepted_unshare(c);
	if (c->foreign) {
		rs_owner_let_go(c);
		c->closed = true;
		goto out;
	}
	if (yield(c, fd)) {
		rs_conn_unlock(c);
		return false;
	}
	if (c->bound && !c->plain &&
	    rs_sys5(SYS_getsockopt, fd, SOL_SOCKET, SO_LINGER, &lin, &len) == 0 && lin.l_onoff) {
		unread = lin.l_linger == 0; /* abort, as if bytes were left unread */
		if (!unread)
			linger(c, fd, (uint32_t)lin.l_linger);
	}
	c->closed = true;
	c->fd = fd;
	if (c->reset && c->bound)
		rs_conn_detach(c);
	if (c->plain || c->reset)
		goto out;
	if (!c->bound) {
		c->reason = RS_REASON_CLOSING;
		rs_conn_become_plain(c);
		goto out;
	}
	rs_conn_sync(c);
	rs_conn_take_control(c);
	if (c->st->sm.rx == RS_RX_FAST || c->st->sm.rx == RS_RX_DRAIN) {
		unread |= rs_chan_rx_tail(&c->st->ch) > c->st->sm.rx_off &&
			  rs_rx_plan(&c->st->sm, &n) == RS_RXP_RING;
	}
	if (rs_tcp_head(&c->st->sm, &n) == RS_HEAD_APP) {
		int inq = 0;

		rs_sys3(SYS_ioctl, fd, FIONREAD, &inq);
		unread |= inq > 0;
	}
	rs_conn_unwatch_tcp(c);
	rs_stream_close(&c->st->sm, unread, rs_now_ms());
	rs_conn_settle(c);
	if (c->st->sm.dead)
		goto out;
	/* The peer may still write control bytes: keep the socket until it says that it will not. */
	{
		int held = rs_fd_dup(fd);

		if (held < 0) {
			/* No descriptor to read the peer's last words with: as a process that dies. */
			rs_stream_violation(&c->st->sm);
			rs_conn_settle(c);
			if (c->bound)
				rs_conn_detach(c);
			goto out;
		}
		c->fd = held;
		c->held = true;
		if (rs_control_watch_conn(c->fd, c) == 0)
			c->watched_tcp = true;
		rs_conn_take_control(c);
		rs_conn_settle(c);
	}
out:
	/* The number is the program's to close, and then anybody's. */
	if (!c->held)
		c->fd = -1;
	rs_conn_unlock(c);
	return true;
}

void rs_conn_fd_added(struct rs_conn *c)
{
	__atomic_fetch_add(&c->nfds, 1, __ATOMIC_SEQ_CST);
}

enum rs_conn_left rs_conn_fd_closed(struct rs_conn *c, int fd,
				    int (*other)(const struct rs_conn *c, int fd))
{
	enum rs_conn_left left = RS_FDS_REMAIN;
	int own = -EBADF;
	bool handler = rs_lock_mine(&c->lock); /* it interrupted one of our own calls */

	if (!handler)
		rs_lock(&c->lock);
	if (!handler)
		rs_waiters_stale(c, __builtin_frame_address(0));
	if (__atomic_sub_fetch(&c->nfds, 1, __ATOMIC_SEQ_CST) == 0) {
		if ((c->waiting || handler) && !c->reset)
			own = rs_fd_dup(fd);
		left = own >= 0 && rs_conn_get(c) ? RS_FDS_IN_USE : RS_FDS_NONE;
		if (left == RS_FDS_IN_USE) {
			__atomic_store_n(&c->orphan, true, __ATOMIC_RELAXED);
		}
	}
	/* -1: those that remained then were just being closed; we are the last of them. */
	if (left == RS_FDS_IN_USE || (left == RS_FDS_REMAIN && c->fd == fd)) {
		bool watched = c->watched_tcp;

		rs_conn_unwatch_tcp(c);
		c->fd = left == RS_FDS_IN_USE ? own : other(c, fd);
		/* Who found no other before has ended the watch. */
		watched |= c->managed && !c->plain && !c->reset;
		if (watched && c->fd >= 0 && rs_control_watch_conn(c->fd, c) == 0)
			c->watched_tcp = true;
		if (c->row)
			c->row->fd = c->fd;
		if (left == RS_FDS_IN_USE && !handler)
			rs_conn_ring(c);
	}
	if (!handler)
		rs_conn_unlock(c);
	return left;
}

void (*rs_conn_nameless)(struct rs_conn *c);

void rs_conn_end_orphan(struct rs_conn *c)
{
	bool closes;
	int fd;

	rs_lock(&c->lock);
	closes = c->orphan && !c->waiting && !c->orphan_closed;
	c->orphan_closed |= closes;
	fd = c->fd;
	rs_unlock(&c->lock);
	if (!closes)
		return;
	if (rs_conn_nameless)
		rs_conn_nameless(c);
	rs_conn_close(c, fd);
	rs_fd_close(fd);
	rs_conn_put(c);
}

void rs_conn_abort(struct rs_conn *c)
{
	const struct sockaddr none = { .sa_family = AF_UNSPEC };

	if (rs_lock_mine(&c->lock)) { /* a handler that interrupted our own call */
		if (!c->plain && !c->reset)
			rs_sys3(SYS_connect, c->fd, &none, sizeof(none)); /* RST */
		return;
	}
	rs_lock(&c->lock);
	if (c->rest)
		rs_sys3(SYS_connect, c->fd, &none, sizeof(none));
	if (!c->plain && !c->reset) {
		rs_stream_violation(&c->st->sm);
		rs_conn_settle(c);
	}
	rs_conn_unlock(c);
}

/* ---- leaving the fast path ---- */

bool rs_conn_flush(struct rs_conn *c)
{
	bool flushing;

	if (rs_lock_mine(&c->lock))
		return false; /* exit() in a signal handler, inside our own call */
	rs_lock(&c->lock);
	if (c->bound && !c->plain && !c->reset && c->st->sm.tx == RS_TX_RAW && !c->st->sm.dead) {
		rs_conn_flush_out(c);
		rs_conn_settle(c);
	}
	flushing = c->bound && !c->plain && !c->reset && !c->st->sm.dead &&
		   c->st->sm.tx == RS_TX_RAW && c->st->sm.tx_raw < c->st->sm.tx_off;
	rs_conn_unlock(c);
	return flushing;
}

void rs_conn_hand_over(struct rs_conn *c)
{
	if (rs_lock_mine(&c->lock))
		return; /* a handler that interrupted our own call */
	rs_lock(&c->lock);
	if (c->bound)
		c->st->sm.handover = true;
	rs_unlock(&c->lock);
}

int rs_conn_leave(struct rs_conn *c, enum rs_reason why, bool consumed, uint32_t wait_ms)
{
	uint64_t end = rs_now_ms() + wait_ms;
	int r = 0;

	if (rs_lock_mine(&c->lock))
		return -ETIMEDOUT; /* a handler that interrupted our own call */
	if (c->foreign)
		rs_owner_claim(c);
	rs_lock(&c->lock);
	if (!c->plain && !c->bound) {
		c->reason = (uint8_t)why;
		rs_conn_become_plain(c);
	} else if (!c->plain && !c->reset) {
		start_leaving(c, why, consumed);
	}
	if (c->rest && rs_rest_bytes(c))
		r = -EINPROGRESS;
	while (!c->plain && !c->reset && !c->closed) {
		uint32_t news = __atomic_load_n(&c->news, __ATOMIC_SEQ_CST);
		uint64_t now = rs_now_ms();
		struct timespec ts = { 0, 5000000 };

		if (now >= end) {
			r = -ETIMEDOUT;
			break;
		}
		if (rs_tx_is_raw(&c->st->sm) && rs_rx_is_stuck(&c->st->sm)) {
			r = -EINPROGRESS;
			break;
		}
		rs_unlock(&c->lock);
		__atomic_fetch_add(&c->sleepers, 1, __ATOMIC_SEQ_CST);
		rs_futex_wait(&c->news, news, &ts, true);
		__atomic_fetch_sub(&c->sleepers, 1, __ATOMIC_SEQ_CST);
		rs_lock(&c->lock);
		if (!c->plain && c->managed) {
			rs_conn_sync(c);
			rs_conn_take_control(c);
			rs_conn_flush_out(c);
			rs_conn_settle(c);
		}
	}
	rs_conn_unlock(c);
	return r;
}

/* ---- the end of the process ---- */

/* Under the lock: whether there is something that ends with this process, and must not. */
static bool staged(const struct rs_conn *c)
{
	return c->bound && c->st->ch.remote && !c->plain && !c->reset && !c->st->sm.dead;
}

bool rs_conn_expects(struct rs_conn *c)
{
	bool expects = false;
	uint64_t m;

	if (rs_lock_mine(&c->lock))
		return false; /* exit() in a signal handler, inside our own call */
	rs_lock(&c->lock);
	if (c->bound && !c->plain && !c->reset && !c->st->sm.dead) {
		rs_conn_sync(c);
		rs_conn_take_control(c);
		rs_conn_flush_out(c);
		rs_conn_settle(c);
		expects = c->st->sm.rx == RS_RX_ARMED
				  ? c->st->sm.rx_ok_sent
				  : c->st->sm.rx == RS_RX_FAST && !c->st->sm.rx_fin_frame &&
					    rs_chan_rx_fin(&c->st->ch, &m);
		expects &=
			c->bound && !c->plain && !c->reset && !c->st->sm.dead && !c->st->sm.rx_eof;
	}
	rs_conn_unlock(c);
	return expects;
}

void rs_conn_exit(struct rs_conn *c)
{
	uint64_t n;

	if (rs_lock_mine(&c->lock))
		return; /* exit() in a signal handler, inside our own call */
	rs_lock(&c->lock);
	if (staged(c)) {
		rs_conn_sync(c);
		rs_conn_take_control(c);
		c->st->sm.refuse = true;
		/* What is unread then, TCP answers with RST: so do we. */
		if (!c->closed && rs_rx_plan(&c->st->sm, &n) == RS_RXP_RING &&
		    rs_chan_rx_tail(&c->st->ch) > c->st->sm.rx_off)
			rs_stream_close(&c->st->sm, true, rs_now_ms());
		else
			rs_stream_leave(&c->st->sm, RS_REASON_CLOSING, false);
		rs_conn_settle(c);
	}
	rs_conn_unlock(c);
}

bool rs_conn_exited(struct rs_conn *c, bool hurry)
{
	bool over = true;
	int outq = 0;

	if (rs_lock_mine(&c->lock))
		return true;
	rs_lock(&c->lock);
	if (staged(c)) {
		rs_remote_progress(c->st->ch.remote);
		rs_conn_sync(c);
		rs_conn_take_control(c);
		rs_conn_flush_out(c);
		rs_conn_settle(c);
		over = !staged(c);
		/*
		 * What the peer still writes, a closed socket answers with RST. That throws away
		 * what the peer's kernel does not have by then.
		 */
		if (!over && hurry && rs_tx_is_raw(&c->st->sm))
			over = rs_sys3(SYS_ioctl, c->fd, TIOCOUTQ, &outq) != 0 || outq == 0;
	}
	rs_conn_unlock(c);
	return over;
}
