/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * conn_poll.c - what a connection is ready for, and what it has to say when asked
 */
#include <errno.h>
#include <poll.h>
#include <sys/ioctl.h>

#include "conn_mgr/accepted.h"
#include "conn_mgr/conn.h"
#include "conn_mgr/conn_edge.h"
#include "conn_mgr/rest.h"
#include "rsock/sys.h"

/* The bits that are there for sure, and in *ask_kernel those of which the kernel's answer counts. */
static uint32_t look(const struct rs_conn *c, uint32_t *ask_kernel)
{
	const uint32_t in = POLLIN | POLLRDNORM, out = POLLOUT | POLLWRNORM;
	uint32_t mask = 0, ask = POLLPRI; /* urgent data is TCP's alone */
	uint64_t limit, m;
	bool eof = false;

	switch (rs_rx_plan(&c->st->sm, &limit)) {
	case RS_RXP_TCP:
		/* The end, or RST, may be there behind bytes that only the program will take. */
		ask |= in | POLLRDHUP | POLLERR | POLLHUP;
		break;
	case RS_RXP_MARK:
		if (!c->st->sm.rx_held)
			ask |= in | POLLRDHUP;
		break;
	case RS_RXP_SKIP:
		break;
	case RS_RXP_RING:
		if (rs_chan_rx_tail(&c->st->ch) > c->st->sm.rx_off)
			mask |= in;
		if (rs_chan_rx_fin(&c->st->ch, &m)) {
			mask |= POLLRDHUP;
			eof = true;
			if (m == c->st->sm.rx_off)
				mask |= in;
		}
		if (c->st->sm.rx == RS_RX_DRAIN && c->st->sm.rx_end) {
			mask |= in | POLLRDHUP;
			eof = true;
		} else if (c->st->sm.rx == RS_RX_DRAIN) {
			ask |= POLLRDHUP; /* the end may be there behind what TCP keeps */
		}
		break;
	case RS_RXP_EOF:
		mask |= in | POLLRDHUP;
		eof = true;
		break;
	case RS_RXP_RESET:
		mask |= in | POLLRDHUP | POLLHUP;
		if (!c->rst_told)
			mask |= POLLERR;
		eof = true;
		break;
	}
	if (c->rd_shut) {
		mask |= in | POLLRDHUP;
		eof = true;
	}
	switch (rs_tx_plan(&c->st->sm)) {
	case RS_TXP_TCP:
		ask |= out;
		break;
	case RS_TXP_RING:
		if (rs_chan_tx_writable(&c->st->ch))
			mask |= out;
		break;
	case RS_TXP_WAIT:
		break;
	case RS_TXP_EPIPE:
		mask |= out;
		if (eof)
			mask |= POLLHUP;
		break;
	}
	/*
	 * The kernel's errors count once the stream has nothing of its own to say any more. As long
	 * as frames are expected from TCP, who reads them finds the error, and recv() gives it.
	 */
	if (!c->bound ||
	    (c->st->sm.tx == RS_TX_RAW && (c->st->sm.rx != RS_RX_FAST || c->st->sm.rx_eof)))
		ask |= POLLERR | POLLHUP;
	if (c->err)
		mask |= POLLERR | POLLHUP;
	if (c->broken || c->reset)
		mask |= POLLHUP | in | out | POLLRDHUP;
	*ask_kernel = ask;
	return mask;
}

uint32_t rs_conn_poll(struct rs_conn *c, uint32_t events, uint32_t *ask_kernel)
{
	uint32_t mask = 0, ask = UINT32_MAX;

	*ask_kernel = 0;
	if (rs_lock_mine(&c->lock))
		return 0;
	rs_accepted_used(c);
	rs_lock(&c->lock);
	if (!c->plain) {
		if (c->st->sm.rx == RS_RX_ARMED || c->st->sm.rx == RS_RX_DRAIN)
			rs_conn_take_control(c);
		if (c->rests)
			rs_rest_bytes(c); /* others may have read some */
		mask = look(c, &ask);
	} else if (c->err) {
		mask = POLLERR | POLLHUP; /* EPIPE: who sends is told next */
	}
	rs_conn_unlock(c);
	*ask_kernel = ask & (events | POLLERR | POLLHUP);
	return mask & (events | POLLERR | POLLHUP);
}

uint32_t rs_conn_ready(const struct rs_conn *c, uint32_t events)
{
	struct pollfd p = { .fd = c->fd };
	uint32_t mask = 0, ask = UINT32_MAX;

	if (!c->plain)
		mask = look(c, &ask);
	ask &= events | POLLERR | POLLHUP;
	p.events = (short)ask;
	if (ask && c->fd >= 0 && rs_sys3(SYS_poll, &p, 1, 0) > 0)
		mask |= (uint32_t)(unsigned short)p.revents & ask;
	return mask & (events | POLLERR | POLLHUP);
}

bool rs_conn_arrived(struct rs_conn *c, struct rs_watch *w)
{
	uint64_t limit, upto = c->st->sm.rx_off;
	bool more;
	int inq = 0;

	switch (rs_rx_plan(&c->st->sm, &limit)) {
	case RS_RXP_TCP:
		if (c->fd >= 0 && rs_sys3(SYS_ioctl, c->fd, FIONREAD, &inq) == 0)
			upto += (uint64_t)inq < limit ? (uint64_t)inq : limit;
		break;
	case RS_RXP_RING:
		/* The bell may have told of them when they could not be seen yet. */
		upto = rs_chan_rx_tail(&c->st->ch);
		break;
	default:
		return false; /* what TCP has are control bytes, or comes twice */
	}
	more = upto > w->arrived;
	w->arrived = upto;
	return more;
}

long rs_conn_readable(struct rs_conn *c)
{
	uint64_t limit, tail;
	long r = -EAGAIN;

	if (rs_lock_mine(&c->lock))
		return r;
	rs_lock(&c->lock);
	if (!c->plain && c->bound) {
		enum rs_rx_plan plan;

		rs_conn_take_control(c);
		if (c->rests)
			rs_rest_bytes(c);
		plan = rs_rx_plan(&c->st->sm, &limit);
		if (plan == RS_RXP_RING) {
			tail = rs_chan_rx_tail(&c->st->ch);
			r = (long)((tail < limit ? tail : limit) - c->st->sm.rx_off);
		} else if (plan != RS_RXP_TCP) {
			r = 0;
		}
	} else if (c->rest) {
		r = (long)rs_rest_bytes(c);
	}
	rs_conn_unlock(c);
	return r;
}

long rs_conn_unsent(struct rs_conn *c)
{
	long r = -EAGAIN;

	if (rs_lock_mine(&c->lock))
		return r;
	rs_lock(&c->lock);
	if (!c->plain && c->bound && c->st->sm.tx != RS_TX_RAW) {
		uint64_t flight = c->st->ch.tail - rs_chan_tx_head(&c->st->ch);

		/* As on any loopback connection: what fits the peer's buffer, the peer has. */
		r = flight > ((uint64_t)1 << 18) ? (long)flight : 0;
	}
	rs_conn_unlock(c);
	return r;
}

int rs_conn_take_error(struct rs_conn *c)
{
	int e;

	if (rs_lock_mine(&c->lock))
		return 0;
	rs_lock(&c->lock);
	if (!c->err && c->bound && !c->rst_told) {
		uint64_t n;

		if (rs_rx_plan(&c->st->sm, &n) == RS_RXP_RESET) {
			c->err = ECONNRESET;
			c->rst_told = true;
		}
	}
	e = c->err;
	__atomic_store_n(&c->err, 0, __ATOMIC_RELAXED);
	c->rst_told |= e != 0;
	rs_conn_unlock(c);
	return e;
}

uint32_t rs_conn_peer_cpu(struct rs_conn *c)
{
	uint32_t cpu = 0;

	rs_lock(&c->lock);
	if (c->bound)
		cpu = __atomic_load_n(&c->st->ch.mine->tx_cpu, __ATOMIC_RELAXED);
	rs_unlock(&c->lock);
	return cpu;
}

int rs_conn_path(struct rs_conn *c)
{
	int path = 0, fast = c->st->ch.remote ? RS_PATH_RDMA : RS_PATH_SHM;

	if (c->plain || !c->bound)
		return 0;
	if (c->st->sm.tx == RS_TX_FAST)
		path |= fast;
	if (c->st->sm.rx == RS_RX_FAST)
		path |= fast << 4;
	return path;
}
