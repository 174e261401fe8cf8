/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/conn_edge.h"

#include <limits.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>

#include "conn_mgr/link.h"
#include "conn_mgr/owner.h"
#include "conn_mgr/proof.h"
#include "rsock/sys.h"

/* ---- to TCP ---- */

/* Error answers of TCP that mean RST was received, or that our kernel has given up. */
static bool fatal(long r)
{
	return r == -ECONNRESET || r == -EPIPE || r == -ETIMEDOUT || r == -EHOSTUNREACH ||
	       r == -ENETUNREACH || r == -ECONNABORTED || r == -ENOTCONN;
}

void rs_conn_sync(struct rs_conn *c)
{
	if (!c->bound)
		return;
	if (c->st->ch.remote && c->st->sm.tx == RS_TX_FAST)
		rs_tx_posted(&c->st->sm, c->st->ch.posted);
	rs_tx_acked(&c->st->sm, rs_chan_tx_head(&c->st->ch));
	if (c->st->sm.rx != RS_RX_RAW && c->st->sm.rx != RS_RX_ARMED)
		rs_rx_landed(&c->st->sm, rs_chan_rx_tail(&c->st->ch));
	if (c->st->ch.rx_bad)
		rs_stream_violation(&c->st->sm);
}

/* What a sender that has died had put into the ring, for an entry that never came about, is there. */
static void land_staged(struct rs_conn *c)
{
	uint64_t n = c->st->sm.rx_n, tail;

	if (c->st->sm.rx != RS_RX_ARMED || !c->bound || c->st->ch.remote)
		return;
	tail = rs_chan_rx_survived(&c->st->ch, n);
	if (tail <= n)
		return;
	rs_chan_rx_begin(&c->st->ch, n);
	rs_rx_landed(&c->st->sm, tail);
}

static void tcp_failed(struct rs_conn *c, long r)
{
	if (!c->err && r != -EPIPE)
		c->err = (int)-r;
	rs_conn_sync(c);
	land_staged(c);
	rs_rx_tcp_reset(&c->st->sm);
}

/*
 * RST is all that there is to read, and others have the socket: the error is whose who uses it next, and
 * stays where all of them look.
 */
static bool reset_is_next(struct rs_conn *c)
{
	int inq = 0;

	if (!c->kept_first || rs_sys3(SYS_ioctl, c->fd, FIONREAD, &inq) != 0 || inq ||
	    !rs_conn_tcp_closed(c) || rs_conn_fin_came(c->fd))
		return false;
	c->rst_told = true;
	c->st->rst_in_kernel = true;
	rs_conn_sync(c);
	land_staged(c);
	rs_rx_tcp_reset(&c->st->sm);
	return true;
}

/* Writes what the state machine owes to TCP. */
void rs_conn_flush_out(struct rs_conn *c)
{
	uint8_t buf[8192]; /* threads may have little stack */
	struct rs_tx_out o;
	long r;

	if (c->fd < 0) { /* closed, or about to be by another thread */
		c->blocked = true;
		return;
	}
	for (;;) {
		const void *p;
		size_t len;

		rs_tx_out(&c->st->sm, &o);
		if (!o.len)
			break;
		len = o.len;
		if (o.ctl) {
			p = o.ctl;
		} else {
			if (len > sizeof(buf))
				len = sizeof(buf);
			rs_chan_tx_fetch(&c->st->ch, o.from, buf, len);
			p = buf;
		}
		r = rs_sys6(SYS_sendto, c->fd, (long)p, (long)len,
			    MSG_DONTWAIT | MSG_NOSIGNAL | (o.more ? MSG_MORE : 0), 0, 0);
		if (r == -EINTR)
			continue;
		if (r == -EAGAIN) {
			c->blocked = true;
			return;
		}
		if (r < 0) {
			tcp_failed(c, r);
			break;
		}
		c->st->ktx += (uint64_t)r;
		rs_tx_wrote(&c->st->sm, (size_t)r, rs_now_ms());
	}
	c->blocked = false;
}

/* Of the duplicate that outlives the program's close. */
static void drop_held(struct rs_conn *c)
{
	if (!c->held)
		return;
	c->held = false;
	rs_fd_close(c->fd);
	c->fd = -1;
}

/* It is the other processes'. */
static void end_yield(struct rs_conn *c)
{
	c->yields = false;
	c->closed = true;
	rs_conn_unwatch_tcp(c);
	drop_held(c);
	rs_owner_count_yielding(-1);
}

static void abort_tcp(struct rs_conn *c)
{
	const struct linger lin = { .l_onoff = 1, .l_linger = 0 };
	struct sockaddr sa = { .sa_family = AF_UNSPEC };

	if (c->reset)
		return;
	c->reset = true;
	c->err = ECONNRESET;
	rs_conn_unwatch_tcp(c);
	rs_owner_ended(c, true);
	if (c->closed) {
		rs_sys5(SYS_setsockopt, c->fd, SOL_SOCKET, SO_LINGER, &lin, sizeof(lin));
		drop_held(c);
	} else {
		/* The program still has descriptors: this sends RST without closing them. */
		rs_sys3(SYS_connect, c->fd, &sa, sizeof(sa));
	}
	if (c->yields)
		end_yield(c);
}

/* ---- to the peer ---- */

static void send_messages(struct rs_conn *c)
{
	uint8_t n = c->st->sm.nmsgs;

	c->st->sm.nmsgs = 0;
	for (uint8_t i = 0; i < n; i++) {
		struct rs_msg_small m = c->st->sm.msgs[i];

		if (m.type == RS_MSG_FIN && !c->st->ch.remote) {
			rs_chan_tx_fin(&c->st->ch, m.offset);
			continue;
		}
		/* LEFT says that no write follows. */
		if (m.type == RS_MSG_LEFT && c->st->ch.remote)
			rs_remote_open(&c->st->ch, false);
		/* Once both have said it, the peer's slot and its memory are another stream's. */
		if (m.type == RS_MSG_GONE)
			c->st->ch.mute = true;
		if (m.type == RS_MSG_ENTER_OK) {
			const int on = 1;

			rs_chan_rx_begin(&c->st->ch, m.offset);
			/* Nagle's algorithm would keep MARK back until what is before it is acknowledged. */
			rs_sys5(SYS_setsockopt, c->fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof(on));
		}
		rs_link_tell(c, m.type, m.epoch, m.offset);
	}
}

void rs_conn_detach(struct rs_conn *c)
{
	rs_stream_gone(&c->st->sm);
	send_messages(c);
	rs_conn_ring(c); /* who sleeps in the slot must not stay there */
	rs_link_detach(c);
}

/* What the queue pair needs to know, and who waits for acknowledgements, without a thread asleep. */
static void settle_remote(struct rs_conn *c)
{
	bool open = rs_tx_may_post(&c->st->sm);

	if (open != c->st->ch.open)
		rs_remote_open(&c->st->ch, open);
	if (c->st->sm.fin_wanted)
		__atomic_fetch_or(&c->st->ch.mine->tx_mask, 1, __ATOMIC_SEQ_CST);
	if (c->closed)
		__atomic_fetch_or(&c->st->ch.mine->rx_mask, 1, __ATOMIC_SEQ_CST);
	if (c->st->sm.rx_fin_known && !c->st->ch.eager) {
		c->st->ch.eager = true;
		rs_remote_credit(&c->st->ch);
	}
}

void rs_conn_poke(struct rs_conn *c)
{
	rs_lock(&c->lock);
	if (c->bound && !c->plain) {
		if (c->st->ch.remote) {
			rs_remote_post(&c->st->ch);
			rs_remote_credit(&c->st->ch);
		}
		rs_conn_sync(c);
		rs_conn_settle(c);
	}
	rs_conn_ring(c);
	rs_conn_unlock(c);
}

/* ---- what the state machine wants ---- */

/*
 * The peer's process may be dead, and what it had staged for an entry be in the ring only: TCP must have been
 * read to its end, or to those bytes. For another process that would be too late: it gets what TCP has.
 */
static bool may_have_staged(const struct rs_conn *c)
{
	return !c->left && !c->st->ch.remote && c->link && !rs_link_alive(c->link) &&
	       c->st->sm.rx == RS_RX_RAW &&
	       rs_chan_rx_survived(&c->st->ch, c->st->sm.rx_off) > c->st->sm.rx_off;
}

/* Obeys the state machine. Call before every unlock. */
void rs_conn_settle(struct rs_conn *c)
{
	bool ring = false;
	uint64_t due;

	for (;;) {
		uint32_t todo = rs_stream_todo(&c->st->sm);

		if (!todo && !c->st->sm.nmsgs)
			break;
		send_messages(c);
		if (todo & RS_DO_RESET)
			abort_tcp(c);
		if (todo & RS_DO_OUT)
			rs_conn_flush_out(c);
		if (todo & RS_DO_SHUT_WR)
			rs_sys2(SYS_shutdown, c->fd, SHUT_WR);
		if (todo & RS_DO_CLOSE) {
			rs_conn_unwatch_tcp(c);
			drop_held(c);
		}
		ring |= (todo & (RS_DO_WAKE_RX | RS_DO_WAKE_TX | RS_DO_RESET)) != 0;
	}
	if (c->st->sm.tx == RS_TX_FAST)
		__atomic_store_n(&c->st->ch.staging, false, __ATOMIC_RELAXED);
	/* Last: the MARK that was just written may be what the bytes had to wait for. */
	if (c->bound && c->st->ch.remote)
		settle_remote(c);
	/* A peer that left did so for good. */
	if (c->bound && c->st->sm.why == RS_REASON_PEER_LEFT)
		c->st->sm.refuse = true;
	if (c->bound && c->st->sm.why && c->st->sm.refuse && !c->left)
		c->reason = c->st->sm.why;
	if (c->bound && c->st->sm.refuse && !c->closed && !c->reset &&
	    rs_stream_is_raw(&c->st->sm) && !may_have_staged(c)) {
		if (c->broken)
			rs_conn_reset_to_kernel(c);
		if (rs_conn_may_return(c)) {
			rs_conn_return(c);
			return;
		}
		rs_conn_become_plain(c); /* wakes those who sleep on the slot, while it is ours */
		rs_conn_detach(c);
		if (c->yields)
			end_yield(c);
		return;
	}
	if (c->bound && c->closed && c->st->sm.dead)
		rs_conn_detach(c);
	if (c->yields && rs_owner_give(c))
		end_yield(c);
	rs_conn_show(c);
	if (!c->park_at && rs_conn_parks(c))
		rs_conn_park(c, rs_now_ms());
	due = rs_conn_deadline(c);
	if (due)
		rs_control_due(due);
	if (ring)
		rs_conn_ring(c);
}

/* ---- from TCP ---- */

/*
 * End of file on TCP before or without MARK. What a sender that died had put into the ring, for an
 * entry that never came about or to bring back over TCP, is there still.
 */
static void peer_ended(struct rs_conn *c)
{
	bool unread = !c->st->ch.remote && rs_chan_tx_head(&c->st->ch) < c->st->ch.tail;

	rs_rx_tcp_eof(&c->st->sm, unread);
	/* A process that died with bytes of ours unread: TCP would have answered them with RST. */
	if (unread && c->st->sm.rx == RS_RX_DRAIN && c->st->sm.tx_orphan && !c->broken) {
		c->broken = true;
		c->err = ECONNRESET;
	}
}

void rs_conn_tcp_ended(struct rs_conn *c)
{
	uint64_t tail = rs_chan_rx_survived(&c->st->ch, c->st->sm.rx_off);

	if (tail > c->st->sm.rx_off && !c->st->ch.remote)
		rs_chan_rx_begin(&c->st->ch, c->st->sm.rx_off);
	rs_rx_landed(&c->st->sm, tail);
	peer_ended(c);
}

void rs_conn_peer_closed(struct rs_conn *c)
{
	if (c->broken || c->closed || c->st->ch.remote ||
	    rs_chan_tx_head(&c->st->ch) >= c->st->ch.tail)
		return;
	c->broken = true;
	c->err = EPIPE;
	rs_conn_ring(c);
}

/* Takes control data off the head of TCP, as far as there is any. */
void rs_conn_take_control(struct rs_conn *c)
{
	uint8_t buf[RS_FRAME_LEN];
	uint64_t n;
	bool fast;
	long r;

	if (c->fd < 0)
		return; /* closed, or about to be by another thread */
	for (;;) {
		enum rs_tcp_head head = rs_tcp_head(&c->st->sm, &n);

		if (head != RS_HEAD_APP && reset_is_next(c))
			return;
		switch (head) {
		case RS_HEAD_APP:
			return;
		case RS_HEAD_MARK:
			/*
			 * A thread that sleeps in the kernel's recv is woken by MARK, and by nothing
			 * else: whoever is the last to come out of there takes it.
			 */
			if (c->in_tcp)
				return;
			r = rs_sys6(SYS_recvfrom, c->fd, (long)buf, RS_MARK_LEN,
				    MSG_PEEK | MSG_DONTWAIT, 0, 0);
			if (r == -EINTR)
				continue;
			if (r < 0 && fatal(r)) {
				tcp_failed(c, r);
				return;
			}
			if (r < 0)
				return;
			rs_conn_sync(c);
			if (r == 0) {
				rs_conn_tcp_ended(c);
				return;
			}
			if (!rs_rx_mark(&c->st->sm, buf, (size_t)r, false, rs_now_ms())) {
				if (c->st->sm.rx == RS_RX_ARMED)
					return;
				continue;
			}
			r = rs_sys6(SYS_recvfrom, c->fd, (long)buf, RS_MARK_LEN, MSG_DONTWAIT, 0,
				    0);
			c->st->krx += RS_MARK_LEN;
			continue;
		case RS_HEAD_FRAME:
			r = rs_sys6(SYS_recvfrom, c->fd, (long)buf, (long)n, MSG_DONTWAIT, 0, 0);
			if (r == -EINTR)
				continue;
			if (r == -EAGAIN)
				return;
			rs_conn_sync(c);
			if (r < 0) {
				tcp_failed(c, r);
				return;
			}
			if (r == 0) {
				peer_ended(c);
				return;
			}
			c->st->krx += (uint64_t)r;
			fast = c->st->sm.tx == RS_TX_FAST && !c->st->sm.tx_orphan;
			rs_rx_frame(&c->st->sm, buf, (size_t)r, rs_now_ms());
			if (fast && c->st->sm.tx_orphan)
				rs_conn_peer_closed(c);
			continue;
		case RS_HEAD_SKIP:
			r = rs_sys6(SYS_recvfrom, c->fd, 0, (long)(n < INT_MAX ? n : INT_MAX),
				    MSG_TRUNC | MSG_DONTWAIT, 0, 0);
			if (r == -EINTR)
				continue;
			if (r == -EAGAIN)
				return;
			if (r < 0) {
				tcp_failed(c, r);
				return;
			}
			if (r == 0) {
				rs_rx_tcp_eof(&c->st->sm, false);
				return;
			}
			c->st->krx += (uint64_t)r;
			rs_rx_skipped(&c->st->sm, (uint64_t)r);
			continue;
		}
	}
}

static bool in_state(const struct rs_conn *c, uint8_t state)
{
	struct tcp_info ti = { 0 };
	socklen_t len = sizeof(ti);

	return rs_sys5(SYS_getsockopt, c->fd, IPPROTO_TCP, TCP_INFO, &ti, &len) == 0 &&
	       ti.tcpi_state == state;
}

bool rs_conn_tcp_closed(const struct rs_conn *c)
{
	return in_state(c, 7); /* TCP_CLOSE */
}

bool rs_conn_is_established(const struct rs_conn *c)
{
	return in_state(c, 1); /* TCP_ESTABLISHED */
}

bool rs_conn_fin_came(int fd)
{
	struct tcp_zerocopy_receive zc = { 0 };
	socklen_t len = offsetof(struct tcp_zerocopy_receive, recv_skip_hint);

	/* EIO */
	return rs_sys5(SYS_getsockopt, fd, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &zc, &len) != 0;
}

int rs_conn_kernel_error(const struct rs_conn *c)
{
	socklen_t len = sizeof(int);
	int e = 0;

	rs_sys5(SYS_getsockopt, c->fd, SOL_SOCKET, SO_ERROR, &e, &len);
	return e;
}

void rs_conn_reset_to_kernel(struct rs_conn *c)
{
	const struct sockaddr none = { .sa_family = AF_UNSPEC };
	int inq = 0;

	if (c->st->rst_in_kernel || rs_conn_tcp_closed(c) ||
	    rs_sys3(SYS_ioctl, c->fd, FIONREAD, &inq) != 0 || inq ||
	    rs_sys3(SYS_connect, c->fd, &none, sizeof(none)) != 0)
		return;
	rs_sys2(SYS_shutdown, c->fd, SHUT_RDWR); /* it says so although it has no peer any more */
	if (c->err == EPIPE || (!c->err && c->rst_told))
		rs_conn_kernel_error(c);
	else
		c->err = 0;
	c->rst_told = true;
	c->st->rst_in_kernel = true;
}

/* The end of a direction alone does not say so. */
static bool has_no_socket(struct rs_conn *c)
{
	int64_t inode = rs_proof_inode(&c->tuple, !c->server);

	return inode == 0 || inode == -ENOENT;
}

void rs_conn_check_gone(struct rs_conn *c)
{
	const uint32_t fin_came =
		1u << 6 | 1u << 7 | 1u << 8 | 1u << 9 | 1u << 11; /* TCP_TIME_WAIT ... */
	struct tcp_info ti = { 0 };
	socklen_t len = sizeof(ti);
	bool unread, told;
	uint64_t m;

	if (!c->bound || c->plain || c->reset || c->broken || c->closed || c->st->ch.remote ||
	    c->st->sm.tx == RS_TX_RAW || c->st->sm.tx == RS_TX_DONE ||
	    (c->link && rs_link_alive(c->link)))
		return;
	unread = rs_chan_tx_head(&c->st->ch) < c->st->ch.tail;
	told = c->st->sm.rx_fin_frame || rs_chan_rx_fin(&c->st->ch, &m);
	if (rs_sys5(SYS_getsockopt, c->fd, IPPROTO_TCP, TCP_INFO, &ti, &len) != 0 ||
	    !(fin_came >> ti.tcpi_state & 1) || ((told || !unread) && !has_no_socket(c)))
		return;
	/* A RESUME would be answered by RST. */
	rs_stream_peer_gone(&c->st->sm);
	if (!unread)
		return;
	c->broken = true;
	c->err = told ? EPIPE : ECONNRESET; /* as tcp_reset() has it */
	rs_conn_ring(c);
}

/*
 * RST behind the peer's FIN: nothing is left to read that would tell, but TCP is closed although our
 * direction is open. As tcp_reset() does it in CLOSE_WAIT: EPIPE, and what came before stays readable.
 */
static void check_reset_after_fin(struct rs_conn *c)
{
	socklen_t len = sizeof(c->err);

	if (!c->bound || c->closed || c->broken || c->err || c->st->sm.fin_wanted ||
	    c->st->sm.dead || !c->st->sm.rx_fin_frame || !rs_conn_tcp_closed(c))
		return;
	c->broken = true;
	/* The kernel's error, unless it has told it already: the program must have it once. */
	rs_sys5(SYS_getsockopt, c->fd, SOL_SOCKET, SO_ERROR, &c->err, &len);
	rs_conn_ring(c);
}

void rs_conn_tcp_event(struct rs_conn *c, uint32_t events)
{
	enum rs_rx before;

	rs_lock(&c->lock);
	if (!c->managed || c->plain || c->reset)
		goto out;
	before = c->st->sm.rx;
	rs_conn_take_control(c);
	if (c->blocked || c->st->sm.todo & RS_DO_OUT)
		rs_conn_flush_out(c);
	rs_conn_settle(c);
	if (events & (EPOLLERR | EPOLLHUP) && !c->plain) {
		check_reset_after_fin(c);
		/* Bytes that the program has not read may hide it from who looks for frames. */
		if (!c->tcp_closed && c->bound && !c->closed && rs_conn_tcp_closed(c)) {
			c->tcp_closed = true;
			rs_conn_ring(c);
		}
	}
	if (events & (EPOLLRDHUP | EPOLLHUP))
		rs_conn_check_gone(c);
	if (!c->plain &&
	    (before == RS_RX_RAW || before == RS_RX_ARMED || c->st->sm.tx == RS_TX_RAW))
		rs_conn_ring(c); /* the kernel does not speak: application bytes or room */
out:
	rs_conn_unlock(c);
}
