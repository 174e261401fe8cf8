/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * conn_io.c - moving the bytes of a connection: recv, send
 */
#include <errno.h>
#include <limits.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>

#include "conn_mgr/accepted.h"
#include "conn_mgr/conn.h"
#include "conn_mgr/conn_edge.h"
#include "conn_mgr/rest.h"
#include "conn_mgr/real.h"
#include "conn_mgr/wait.h"
#include "rsock/sys.h"

/* Published in pieces so that the receiver works on the first while we copy the next. */
#define PIECE ((size_t)8 << 10)
#define FRAGMENT \
	((size_t)32 << 10) /* of the kernel's send (net/core/sock.c, skb_page_frag_refill) */
#define MAX_PACES 64 /* times that a call which may not sleep waits for the receiver to move */

/* ---- receiving ---- */

static size_t iov_bytes(const struct iovec *iov, size_t n)
{
	size_t sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += iov[i].iov_len;
	return sum;
}

/*
 * Would the kernel say EFAULT before it has moved `reach` bytes? That much can be known without touching
 * the memory: it looks at all addresses for those that no program has, then at what its copy meets.
 */
static bool bad_iov(const struct iovec *iov, size_t n, size_t reach)
{
	bool bad = false;

	for (size_t i = 0; i < n; i++) {
		if (!iov[i].iov_len)
			continue;
		if ((uintptr_t)iov[i].iov_base >= (uintptr_t)1 << 47)
			return true;
		bad |= reach && (uintptr_t)iov[i].iov_base < 4096;
		reach -= reach < iov[i].iov_len ? reach : iov[i].iov_len;
	}
	return bad;
}

/*
 * For sending: the kernel keeps what it had copied before the fault, in steps of a page fragment. Cuts
 * *n and *want to the buffers in front of the bad one, when they are worth such a step.
 */
static bool cut_iov(const struct iovec *iov, size_t *n, size_t *want, size_t done)
{
	size_t sum = 0, i = 0;

	while (i < *n && (!iov[i].iov_len || (uintptr_t)iov[i].iov_base >= 4096))
		sum += iov[i++].iov_len;
	if (sum < done + FRAGMENT || bad_iov(iov, *n, 0))
		return false;
	*n = i;
	*want = sum;
	return true;
}

/* Copies ring bytes [head, upto) behind `done` bytes of the iovec; returns how many fitted. */
static size_t ring_to_iov(struct rs_conn *c, const struct iovec *iov, size_t n, size_t done,
			  uint64_t upto, bool peek, bool discard)
{
	uint64_t at = c->st->ch.head;
	size_t copied = 0;

	for (size_t i = 0; i < n && at < upto; i++) {
		size_t off = 0;

		if (done >= iov[i].iov_len) {
			done -= iov[i].iov_len;
			continue;
		}
		off = done;
		done = 0;
		while (off < iov[i].iov_len && at < upto) {
			size_t k = iov[i].iov_len - off;

			if (k > upto - at)
				k = (size_t)(upto - at);
			if (k > PIECE)
				k = PIECE;
			if (!discard)
				rs_chan_rx_copy(&c->st->ch, at, (uint8_t *)iov[i].iov_base + off,
						k);
			at += k;
			off += k;
			copied += k;
			if (!peek)
				rs_chan_rx_consume(&c->st->ch, at);
		}
	}
	return copied;
}

static bool tcp_readable(struct rs_conn *c)
{
	int inq = 0;

	return rs_sys3(SYS_ioctl, c->fd, FIONREAD, &inq) == 0 && inq > 0;
}

/* After SHUT_RD: the end of file is not here yet, for the peer has sent before it. */
static bool more_staged(const struct rs_conn *c)
{
	const struct rs_stream *s = &c->st->sm;

	return c->bound && !c->st->ch.remote && !(s->rx_shut && s->rx_off >= s->rx_shut_at) &&
	       rs_chan_rx_survived(&c->st->ch, s->rx_off) > s->rx_off;
}

static ssize_t take_error(struct rs_conn *c)
{
	int e = c->err;

	c->err = 0;
	c->rst_told = true;
	return -e;
}

/* One attempt. >= 0: bytes (0: end of file when *eof); -EAGAIN with *how: what to wait for. */
static ssize_t recv_once(struct rs_conn *c, int fd, const struct iovec *iov, size_t n, size_t done,
			 int flags, enum rs_wait *how, bool *eof)
{
	size_t want = iov_bytes(iov, n) - done;
	uint64_t limit, tail, m;

again:
	*how = RS_WAIT_TCP;
	switch (rs_rx_plan(&c->st->sm, &limit)) {
	case RS_RXP_TCP: {
		struct iovec part[16];
		struct msghdr mh = { .msg_iov = part };
		size_t left = want < limit ? want : (size_t)limit, skip = done;
		bool as_is = done == 0 && want <= limit;
		long r;

		if (as_is) {
			mh.msg_iov = (struct iovec *)(uintptr_t)iov;
			mh.msg_iovlen = n;
		}
		for (size_t i = 0; i < n && mh.msg_iovlen < 16 && left && !as_is; i++) {
			size_t k = iov[i].iov_len;

			if (skip >= k) { /* received before, or empty */
				skip -= k;
				continue;
			}
			k -= skip;
			if (k > left)
				k = left;
			part[mh.msg_iovlen].iov_base = (uint8_t *)iov[i].iov_base + skip;
			part[mh.msg_iovlen++].iov_len = k;
			left -= k;
			skip = 0;
		}
		if (fd < 0) { /* just being closed; whoever comes last has one for us */
			*how = RS_WAIT_NEWS;
			return -EAGAIN;
		}
		flags = (flags & (MSG_PEEK | MSG_TRUNC)) | MSG_DONTWAIT;
		if (n == 1) /* with recv's own rules for absurd lengths */
			r = rs_sys6(SYS_recvfrom, fd, (long)iov[0].iov_base + (long)done,
				    (long)(want < limit ? want : limit), flags, 0, 0);
		else
			r = rs_sys3(SYS_recvmsg, fd, &mh, flags);
		if (c->err && r == -EAGAIN) /* it is behind what had come before */
			return take_error(c);
		if (r > 0 && !(flags & MSG_PEEK)) {
			c->st->krx += (uint64_t)r;
			rs_rx_tcp(&c->st->sm, (uint64_t)r);
			if (c->parked)
				rs_conn_unpark(c);
			if (c->st->sm.refuse)
				rs_conn_settle(c); /* it may have waited for just that */
			if (c->row)
				c->row->rx_bytes = c->st->sm.rx_off;
		}
		if (r == 0 && !want)
			*eof = true;
		if (r == 0 && want) {
			if (c->bound) {
				rs_conn_tcp_ended(c);
				if (c->st->sm.rx == RS_RX_DRAIN)
					goto again;
			} else if (c->st->sm.rx_off < c->st->sm.rx_owed) {
				c->st->sm.rx_owed = 0; /* once */
				c->err = c->err ? c->err : ECONNRESET;
			}
			if (c->err && c->err != EPIPE) /* that is for who sends */
				return take_error(c);
			*eof = true;
		}
		if (r == -EAGAIN && c->rd_shut && !more_staged(c)) {
			*eof = true;
			return 0;
		}
		return r;
	}
	case RS_RXP_MARK:
	case RS_RXP_SKIP: {
		enum rs_rx before = c->st->sm.rx;
		uint64_t skip = c->st->sm.rx_skip;

		rs_conn_take_control(c);
		if (c->st->sm.rx != before || c->st->sm.rx_skip != skip)
			goto again;
		if (c->rd_shut && !more_staged(c)) {
			*eof = true;
			return 0;
		}
		if (c->err)
			break;
		*how = RS_WAIT_TCP;
		if (before == RS_RX_ARMED && (c->st->sm.rx_held || (c->in_tcp && tcp_readable(c))))
			*how = RS_WAIT_NEWS;
		return -EAGAIN;
	}
	case RS_RXP_RING:
		if (c->rests && want && bad_iov(iov, n, want) && !(flags & MSG_TRUNC))
			return -EFAULT;
		if (c->rests && want) {
			ssize_t r = rs_rest_recv(c, iov, n, done, flags);

			rs_rx_ring(&c->st->sm, 0);
			if (r != 0)
				return r;
			goto again;
		}
		tail = rs_chan_rx_tail(&c->st->ch);
		if (c->st->ch.rx_bad) {
			rs_stream_violation(&c->st->sm);
			rs_conn_settle(c);
			break;
		}
		if (tail > limit)
			tail = limit;
		if (tail > c->st->sm.rx_off && !want) {
			*eof = true;
			return 0;
		}
		if (tail > c->st->sm.rx_off && !(flags & MSG_TRUNC) &&
		    bad_iov(iov, n, done + (size_t)(tail - c->st->sm.rx_off)))
			return -EFAULT;
		if (tail > c->st->sm.rx_off) {
			size_t k = ring_to_iov(c, iov, n, done, tail, flags & MSG_PEEK,
					       flags & MSG_TRUNC);

			if (c->st->ch.rx_bad)
				goto again;
			if (!(flags & MSG_PEEK)) {
				rs_rx_ring(&c->st->sm, k);
				if (c->row) {
					c->row->rx_bytes = c->st->sm.rx_off;
					c->row->rx_fast_bytes += k;
				}
				/* What TCP has kept of it meanwhile must make way. */
				if (c->st->sm.rx == RS_RX_DRAIN)
					rs_conn_take_control(c);
			}
			return (ssize_t)k;
		}
		if (rs_chan_rx_fin(&c->st->ch, &m) && !c->st->sm.rx_fin_known &&
		    m == rs_chan_rx_tail(&c->st->ch)) {
			rs_rx_fin_hint(&c->st->sm, m);
			if (c->st->sm.rx_fin_known)
				goto again;
		}
		if (c->rd_shut) {
			*eof = true;
			return 0;
		}
		if (c->err)
			break;
		*how = RS_WAIT_RING;
		return -EAGAIN;
	case RS_RXP_EOF:
		*eof = true;
		return 0;
	case RS_RXP_RESET:
		if (c->st->rst_in_kernel)
			c->err = rs_conn_kernel_error(c);
		else if (!c->reset && !c->rst_told)
			c->err = c->err ? c->err : ECONNRESET;
		c->rst_told = true;
		break;
	}
	if (c->err)
		return take_error(c);
	*eof = true;
	return 0;
}

/* The stream became plain in the middle of a MSG_WAITALL. */
static ssize_t rest_from_kernel(int fd, const struct iovec *iov, size_t n, size_t done, int flags)
{
	size_t got = done;

	for (size_t i = 0; i < n; i++) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		size_t k = iov[i].iov_len;
		ssize_t r;

		if (done >= k) {
			done -= k;
			continue;
		}
		/* An error is for the next call; a signal ends this one. */
		if (!(flags & MSG_DONTWAIT) &&
		    (rs_sys3(SYS_poll, &p, 1, -1) < 0 || p.revents & POLLERR))
			break;
		r = rs_sys6(SYS_recvfrom, fd, (long)iov[i].iov_base + (long)done, (long)(k - done),
			    flags, 0, 0);
		if (r < 0)
			break;
		got += (size_t)r;
		if ((size_t)r < k - done)
			break;
		done = 0;
	}
	return (ssize_t)got;
}

/* Of a call that has moved bytes: for the next one, as the kernel does. */
static void keep_error(struct rs_conn *c, ssize_t r)
{
	if (r != -ECONNRESET && r != -ETIMEDOUT && r != -EHOSTUNREACH && r != -ENETUNREACH)
		return; /* not of the connection, or what every call gives */
	rs_lock(&c->lock);
	if (!c->err)
		__atomic_store_n(&c->err, (int)-r, __ATOMIC_RELAXED);
	rs_unlock(&c->lock);
}

/*
 * The peer left; should it die before all is with TCP, its kernel's FIN would look like the end of the
 * stream. 0: what is owed has come; else -ECONNRESET for an end that comes too early, or 1.
 */
static int check_owed(struct rs_conn *c, int fd, bool eof)
{
	struct tcp_info ti = { 0 };
	socklen_t len = sizeof(ti);
	uint64_t owed = __atomic_load_n(&c->owed, __ATOMIC_RELAXED), got;

	if (rs_sys5(SYS_getsockopt, fd, IPPROTO_TCP, TCP_INFO, &ti, &len) != 0 ||
	    len < offsetof(struct tcp_info, tcpi_bytes_received) + 8)
		return 0;
	got = ti.tcpi_bytes_received - (eof && rs_conn_fin_came(fd)); /* FIN counts as a byte */
	if (got < owed && !eof)
		return 1;
	__atomic_store_n(&c->owed, 0, __ATOMIC_RELAXED);
	return got < owed ? -ECONNRESET : 0;
}

/* A receive of a plain connection to which something is owed, or of which we know an error. */
static ssize_t recv_owed(struct rs_conn *c, int fd, const struct iovec *iov, size_t n, int flags)
{
	struct msghdr mh = { .msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = n };
	int saved = errno, e;
	ssize_t r = rs_real.recvmsg(fd, &mh, flags);

	if (r < 0)
		r = -errno;
	errno = saved;
	if (r == -ECONNRESET) /* it was told: what follows is the end */
		__atomic_store_n(&c->owed, 0, __ATOMIC_RELAXED);
	if (r < 0 || !iov_bytes(iov, n))
		return r;
	e = 0;
	/* EPIPE is for who sends. */
	if (r == 0 && __atomic_load_n(&c->err, __ATOMIC_RELAXED) != EPIPE)
		e = -rs_conn_take_error(c);
	if (e == 0)
		e = check_owed(c, fd, r == 0);
	return e < 0 ? e : r;
}

static ssize_t do_recv(struct rs_waiter *w, const struct iovec *iov, size_t n, int flags)
{
	size_t want = iov_bytes(iov, n), done = 0;
	struct rs_conn *c = w->c;
	enum rs_wait how;
	bool eof;
	ssize_t r;

	for (;;) {
		eof = false;
		if (rs_lock_mine(&c->lock))
			return done ? (ssize_t)done : -EINTR; /* a handler inside our own call */
		rs_lock(&c->lock);
		if (w->in_tcp)
			rs_waiter_awake(w);
		if (c->st->sm.rx_shut && !c->plain) {
			rs_conn_sync(c); /* what has come since then is not for the program */
			rs_conn_settle(c);
		}
		if (c->plain) {
			int fd = c->orphan ? c->fd : w->fd;
			bool orphan = c->orphan;

			r = 0;
			if (c->rest && want && !done)
				r = bad_iov(iov, n, want) && !(flags & MSG_TRUNC)
					    ? -EFAULT
					    : rs_rest_recv(c, iov, n, 0, flags);
			if (r == 0 && want)
				__atomic_store_n(&c->rest, false, __ATOMIC_RELAXED);
			rs_conn_unlock(c);
			if (r != 0)
				return r;
			if (!done && (__atomic_load_n(&c->owed, __ATOMIC_RELAXED) ||
				      __atomic_load_n(&c->err, __ATOMIC_RELAXED)))
				return recv_owed(c, fd, iov, n, flags);
			return done || orphan ? rest_from_kernel(fd, iov, n, done, flags) : -EXDEV;
		}
		r = recv_once(c, c->fd, iov, n, done, flags, &how, &eof);
		if (r == -EAGAIN && rs_waiter_blocks(w))
			rs_waiter_enter(w, how == RS_WAIT_TCP);
		else if (r != -EAGAIN && !(flags & MSG_WAITALL))
			rs_waiter_leave(w);
		rs_conn_unlock(c);
		if (r > 0 && (flags & MSG_PEEK) && (flags & MSG_WAITALL) && (size_t)r < want &&
		    rs_waiter_blocks(w)) {
			/* To wait for more without taking any: only the kernel can. */
			rs_conn_leave(c, RS_REASON_CALL, true, 2000);
			return c->plain ? -EXDEV : r;
		}
		if (r > 0) {
			done += (size_t)r;
			if (!(flags & MSG_WAITALL) || (flags & MSG_PEEK) || done == want)
				return (ssize_t)done;
			continue;
		}
		if (r == 0 && !eof)
			continue;
		if (r == 0 || (r != -EAGAIN && r != -EINTR)) {
			if (done && r < 0)
				keep_error(c, r);
			return done ? (ssize_t)done : r;
		}
		w->partial = done != 0;
		r = rs_wait_rx(w, how);
		if (r < 0)
			return done ? (ssize_t)done : r;
	}
}

ssize_t rs_conn_recv(struct rs_conn *c, int fd, const struct iovec *iov, size_t n, int flags)
{
	struct rs_waiter w;
	ssize_t r;

	rs_accepted_used(c);
	rs_waiter_init(&w, c, fd, flags, SO_RCVTIMEO);
	r = do_recv(&w, iov, n, flags);
	rs_waiter_end(&w);
	return r;
}

ssize_t rs_conn_recv_empty(struct rs_conn *c, int fd, void *buf, size_t n, int flags)
{
	struct rs_waiter w;
	ssize_t r;

	rs_waiter_init(&w, c, fd, flags, SO_RCVTIMEO);
	if (!rs_waiter_blocks(&w) || !rs_conn_get(c)) {
		rs_conn_unlock(c);
		rs_waiter_end(&w);
		return -EAGAIN;
	}
	rs_waiter_enter(&w, false);
	rs_conn_unlock(c);
	r = rs_wait_rx(&w, RS_WAIT_RING);
	if (r == 0) {
		rs_lock(&c->lock);
		r = (ssize_t)rs_conn_take_ring(c, buf, n, flags & MSG_WAITALL);
		if (r)
			rs_waiter_leave(&w);
		rs_conn_unlock(c);
		if (r == 0)
			r = do_recv(&w, &(struct iovec){ buf, n }, 1, flags);
	}
	rs_waiter_end(&w);
	rs_conn_put(c);
	return r;
}

/* ---- sending ---- */

static ssize_t send_tcp(int fd, const struct iovec *iov, size_t n, size_t done, int flags)
{
	struct iovec part[16];
	struct msghdr mh = { .msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = n };

	if (done) { /* the rest of a call that sleeps in between: it comes back for more */
		mh.msg_iov = part;
		mh.msg_iovlen = 0;
	}
	for (size_t i = 0; mh.msg_iov == part && i < n && mh.msg_iovlen < 16; i++) {
		if (done >= iov[i].iov_len) {
			done -= iov[i].iov_len;
			continue;
		}
		part[mh.msg_iovlen].iov_base = (uint8_t *)iov[i].iov_base + done;
		part[mh.msg_iovlen++].iov_len = iov[i].iov_len - done;
		done = 0;
	}
	return rs_sys3(SYS_sendmsg, fd, &mh, flags | MSG_NOSIGNAL);
}

static void sent_tcp(struct rs_conn *c, size_t k)
{
	c->st->ktx += k;
	rs_tx_tcp(&c->st->sm, k);
	if (c->parked)
		rs_conn_unpark(c);
	if (c->row)
		c->row->tx_bytes = c->st->sm.tx_off;
}

static size_t send_ring(struct rs_conn *c, const struct iovec *iov, size_t n, size_t done,
			bool grow)
{
	/* Over RDMA each costs a system call, or a doorbell, and the reader more than that. */
	const size_t piece = c->st->ch.remote ? RS_REMOTE_CUT : PIECE;
	bool unseen = false; /* appended, not published */
	size_t sent = 0;

	for (size_t i = 0; i < n; i++) {
		size_t off;

		if (done >= iov[i].iov_len) {
			done -= iov[i].iov_len;
			continue;
		}
		off = done;
		done = 0;
		while (off < iov[i].iov_len) {
			size_t room = rs_chan_tx_room(&c->st->ch, grow);
			size_t k = iov[i].iov_len - off;

			if (!room)
				goto out;
			if (k > room)
				k = room;
			if (k > piece)
				k = piece;
			rs_chan_tx_copy(&c->st->ch, c->st->ch.tail,
					(const uint8_t *)iov[i].iov_base + off, k);
			/* Small pieces of one call become one message. */
			if (i + 1 < n && k < 4096 && room - k >= 65536 / 2) {
				c->st->ch.tail += k;
				off += k;
				sent += k;
				unseen = true;
				continue;
			}
			rs_chan_tx_publish(&c->st->ch, c->st->ch.tail + k);
			unseen = false;
			off += k;
			sent += k;
		}
	}
out:
	if (sent) {
		if (unseen)
			rs_chan_tx_publish(&c->st->ch, c->st->ch.tail);
		rs_tx_ring(&c->st->sm, sent);
		if (c->row) {
			c->row->tx_bytes = c->st->sm.tx_off;
			c->row->tx_fast_bytes += sent;
		}
	}
	return sent;
}

static enum rs_tx_plan send_plan(const struct rs_conn *c)
{
	enum rs_tx_plan plan = rs_tx_plan(&c->st->sm);

	if (c->reset || c->broken || plan == RS_TXP_EPIPE)
		return RS_TXP_EPIPE;
	/* As long as nobody has seen our MARK it is TCP that tells what the peer does. */
	return c->tcp_closed || (plan == RS_TXP_RING && c->st->sm.tx != RS_TX_FAST &&
				 rs_conn_tcp_closed(c))
		       ? RS_TXP_TCP
		       : plan;
}

static ssize_t do_send(struct rs_waiter *w, const struct iovec *iov, size_t n, int flags)
{
	size_t want = iov_bytes(iov, n), done = 0;
	struct rs_conn *c = w->c;
	bool grow = false;
	int paces = 0;
	ssize_t r;

	for (;;) {
		enum rs_wait how = RS_WAIT_NEWS;

		if (rs_lock_mine(&c->lock))
			return done ? (ssize_t)done : -EINTR;
		rs_lock(&c->lock);
		if (c->plain) {
			bool orphan = c->orphan;

			r = done ? 0 : -c->err;
			if (r)
				__atomic_store_n(&c->err, 0, __ATOMIC_RELAXED);
			rs_unlock(&c->lock);
			if (r)
				return r;
			if (done || !orphan)
				return done ? (ssize_t)done : -EXDEV;
			return rs_wait_in_send(w, iov, n, 0);
		}
		if (c->err && done) { /* it is for the next call, as in the kernel */
			rs_conn_unlock(c);
			return (ssize_t)done;
		}
		if (c->err) {
			r = -c->err;
			c->err = 0;
			c->rst_told = true;
			rs_conn_unlock(c);
			return r;
		}
		r = -EAGAIN;
		switch (send_plan(c)) {
		case RS_TXP_TCP:
			if (c->busy)
				break;
			r = send_tcp(c->fd, iov, n, done, (flags & (MSG_MORE)) | MSG_DONTWAIT);
			c->rst_told |= r == -ECONNRESET;
			if (r > 0)
				sent_tcp(c, (size_t)r);
			if (r == -EAGAIN && rs_waiter_blocks(w)) {
				/*
				 * Sleep in the kernel's own send, for its exact restart and
				 * time-out rules. Nobody else may send, or enter, meanwhile.
				 */
				rs_conn_untell(c, POLLOUT | POLLWRNORM);
				rs_waiter_enter(w, false);
				rs_waiter_busy(w, true);
				rs_unlock(&c->lock);
				w->partial = done != 0;
				r = rs_wait_in_send(w, iov, n, done);
				rs_lock(&c->lock);
				if (r > 0)
					sent_tcp(c, (size_t)r);
				rs_waiter_busy(w, false);
				rs_conn_not_busy(c);
				rs_conn_ring(c);
				if (r < 0) {
					rs_conn_unlock(c);
					if (done)
						keep_error(c, r);
					return done ? (ssize_t)done : r;
				}
			}
			break;
		case RS_TXP_RING:
			if (bad_iov(iov, n, want) && !cut_iov(iov, &n, &want, done)) {
				r = -EFAULT;
				break;
			}
			r = (ssize_t)send_ring(c, iov, n, done, grow);
			if (grow && done + (size_t)r < want && !rs_waiter_blocks(w)) {
				/* Who waits for EPOLLOUT hears of room; look again after saying so. */
				__atomic_fetch_or(&c->st->ch.mine->tx_mask, c->st->ch.mine->rx_mask,
						  __ATOMIC_SEQ_CST);
				r += (ssize_t)send_ring(c, iov, n, done + (size_t)r, true);
			}
			if (done + (size_t)r < want)
				how = RS_WAIT_ROOM;
			if (r == 0 && want > done)
				r = -EAGAIN;
			break;
		case RS_TXP_WAIT:
			rs_conn_flush_out(c);
			if (rs_tx_plan(&c->st->sm) != RS_TXP_WAIT) {
				rs_conn_unlock(c);
				continue;
			}
			break;
		case RS_TXP_EPIPE:
			r = c->reset ? 0 : -rs_conn_kernel_error(c); /* as sk_stream_error() */
			r = r ? r : -EPIPE;
			break;
		}
		if (r == -EAGAIN && (how == RS_WAIT_NEWS || grow) && rs_waiter_blocks(w))
			rs_waiter_enter(w, false);
		if (r == -EAGAIN || (r >= 0 && (size_t)r < want - done))
			rs_conn_untell(c, POLLOUT | POLLWRNORM);
		rs_asked = how != RS_WAIT_ROOM;
		if (how == RS_WAIT_ROOM && c->st->ch.remote)
			rs_remote_credit_now(&c->st->ch);
		rs_conn_unlock(c);
		if (r > 0)
			done += (size_t)r;
		else if (r < 0 && r != -EAGAIN && r != -EINTR) {
			if (done)
				keep_error(c, r);
			return done ? (ssize_t)done : r;
		}
		if (done >= want)
			return (ssize_t)done;
		if (how == RS_WAIT_ROOM && !grow) {
			/*
			 * While the receiver is at work, follow it through the small, warm ring
			 * (a call that may not sleep: for a bounded while); then take a larger one.
			 */
			grow = !rs_spin_room(w) || (!rs_waiter_blocks(w) && ++paces >= MAX_PACES);
			continue;
		}
		if (!rs_waiter_blocks(w))
			return done ? (ssize_t)done : r;
		if (r > 0)
			continue;
		w->partial = done != 0;
		r = rs_wait_tx(w, how);
		if (r < 0)
			return done ? (ssize_t)done : r;
	}
}

ssize_t rs_conn_send(struct rs_conn *c, int fd, const struct iovec *iov, size_t n, int flags)
{
	struct rs_waiter w;
	ssize_t r;

	rs_accepted_used(c);
	rs_waiter_init(&w, c, fd, flags, SO_SNDTIMEO);
	r = do_send(&w, iov, n, flags);
	rs_waiter_end(&w);
	return r;
}
