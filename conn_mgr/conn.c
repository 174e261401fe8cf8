/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/conn.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "conn_mgr/control.h"
#include "conn_mgr/peer.h"
#include "conn_mgr/wait.h"
#include "rsock/bell.h"
#include "rsock/config.h"
#include "rsock/log.h"
#include "rsock/rows.h"
#include "rsock/sys.h"

/* Published in pieces so that the receiver works on the first while we copy the next. */
#define PIECE ((size_t)32 << 10)

static struct rs_lock pool_lock;
static struct rs_conn *pool;

/* ---- life ---- */

struct rs_conn *rs_conn_new(int fd, bool server)
{
	const struct rs_stream_cfg cfg = {
		.mac = rs_hmac,
		.ring_survives = true,
		.enter_ms = rs_config.enter_ms,
		.prefix_ms = 200,
		.hold_ms = 60000,
		.ping_ms = 60000,
	};
	struct rs_conn *c;

	rs_lock(&pool_lock);
	if (!pool) {
		size_t size = 64 * sizeof(*c);
		long p = rs_sys6(SYS_mmap, 0, (long)size, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if ((unsigned long)p > -4096UL) {
			rs_unlock(&pool_lock);
			return NULL;
		}
		for (size_t i = 0; i < 64; i++) {
			c = (struct rs_conn *)p + i;
			c->free_next = pool;
			pool = c;
		}
	}
	c = pool;
	pool = c->free_next;
	rs_unlock(&pool_lock);
	memset(c, 0, sizeof(*c));
	c->fd = fd;
	c->server = server;
	c->reason = RS_REASON_STARTING;
	c->spin = rs_config.spin_us;
	rs_stream_init(&c->sm, &cfg);
	c->row = rs_row_new(fd, server);
	if (c->row)
		c->row->reason = RS_REASON_STARTING;
	__atomic_store_n(&c->refs, 1, __ATOMIC_RELEASE);
	return c;
}

void rs_conns_forget(void)
{
	pool_lock.word = 0;
}

bool rs_conn_get(struct rs_conn *c)
{
	uint32_t refs = __atomic_load_n(&c->refs, __ATOMIC_RELAXED);

	while (refs)
		if (__atomic_compare_exchange_n(&c->refs, &refs, refs + 1, false, __ATOMIC_ACQUIRE,
						__ATOMIC_RELAXED))
			return true;
	return false;
}

void rs_conn_put(struct rs_conn *c)
{
	if (__atomic_sub_fetch(&c->refs, 1, __ATOMIC_ACQ_REL) != 0)
		return;
	rs_row_free(c->row);
	c->row = NULL;
	rs_lock(&pool_lock);
	c->free_next = pool;
	pool = c;
	rs_unlock(&pool_lock);
}

/* ---- telling others ---- */

void rs_conn_ring(struct rs_conn *c)
{
	uint32_t bells = __atomic_load_n(&c->bells, __ATOMIC_SEQ_CST);

	__atomic_fetch_add(&c->news, 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&c->sleepers, __ATOMIC_SEQ_CST))
		rs_futex_wake(&c->news, INT_MAX, true);
	if (c->bound) {
		if (__atomic_exchange_n(&c->ch.mine->rx_wait, 0, __ATOMIC_SEQ_CST))
			rs_futex_wake(&c->ch.mine->rx_wait, INT_MAX, false);
		if (__atomic_exchange_n(&c->ch.mine->tx_wait, 0, __ATOMIC_SEQ_CST))
			rs_futex_wake(&c->ch.mine->tx_wait, INT_MAX, false);
	}
	for (struct rs_watch *w = c->watches; w; w = w->next)
		w->changed(w, c);
	if (bells)
		rs_bell_ring(bells);
}

static void count_move(struct rs_stats_row *row, uint8_t from, uint8_t to)
{
	if (from == RS_PATH_TCP && to != RS_PATH_TCP)
		row->enters++;
	else if (from != RS_PATH_TCP && to == RS_PATH_TCP)
		row->leaves++;
}

static void show_paths(struct rs_conn *c)
{
	int path = rs_conn_path(c);

	if (!c->row)
		return;
	count_move(c->row, c->row->tx_path, (uint8_t)(path & 15));
	count_move(c->row, c->row->rx_path, (uint8_t)(path >> 4));
	c->row->tx_path = (uint8_t)(path & 15);
	c->row->rx_path = (uint8_t)(path >> 4);
	c->row->plain = c->plain;
	c->row->reason = path == (RS_PATH_SHM | RS_PATH_SHM << 4) ? RS_REASON_NONE : c->reason;
}

static void speak(struct rs_conn *c, bool kernel)
{
	for (struct rs_watch *w = c->watches; w; w = w->next)
		w->kernel(w, c, kernel);
}

/* From here on the control thread watches the TCP side and the kernel's epoll sets do not. */
static int manage(struct rs_conn *c)
{
	int r;

	if (c->managed)
		return 0;
	r = rs_control_watch_conn(c->fd, c);
	if (r != 0)
		return r;
	c->managed = true;
	c->watched_tcp = true;
	speak(c, false);
	return 0;
}

static void unwatch_tcp(struct rs_conn *c)
{
	if (!c->watched_tcp)
		return;
	c->watched_tcp = false;
	rs_control_unwatch(c->fd);
}

static void become_plain(struct rs_conn *c)
{
	if (c->plain)
		return;
	unwatch_tcp(c);
	if (c->rd_shut && !c->closed)
		rs_sys2(SYS_shutdown, c->fd, SHUT_RD);
	if (c->row) {
		/* From here on the kernel counts: remember where its counters stand. */
		c->row->ktx_base = c->ktx;
		c->row->krx_base = c->krx;
	}
	__atomic_store_n(&c->plain, true, __ATOMIC_SEQ_CST);
	c->window_end = 0;
	if (c->managed) {
		c->managed = false;
		speak(c, true);
	}
	show_paths(c);
	rs_log(RS_LOG_INFO, "fd %d stays on tcp: %s", c->fd, rs_reason_word(c->reason));
	rs_conn_ring(c);
}

/* ---- the kernel side ---- */

/* Error answers of TCP that mean RST was received, or that our kernel has given up. */
static bool fatal(long r)
{
	return r == -ECONNRESET || r == -EPIPE || r == -ETIMEDOUT || r == -EHOSTUNREACH ||
	       r == -ENETUNREACH || r == -ECONNABORTED || r == -ENOTCONN;
}

static void sync_acks(struct rs_conn *c)
{
	if (!c->bound)
		return;
	rs_tx_acked(&c->sm, rs_chan_tx_head(&c->ch));
	if (c->sm.rx != RS_RX_RAW && c->sm.rx != RS_RX_ARMED)
		rs_rx_landed(&c->sm, rs_chan_rx_tail(&c->ch));
	if (c->ch.rx_bad)
		rs_stream_violation(&c->sm);
}

static void tcp_failed(struct rs_conn *c, long r)
{
	if (!c->err && r != -EPIPE)
		c->err = (int)-r;
	sync_acks(c);
	rs_rx_tcp_reset(&c->sm);
}

/* Writes what the state machine owes to TCP. */
static void flush_out(struct rs_conn *c)
{
	uint8_t buf[16384];
	struct rs_tx_out o;
	long r;

	for (;;) {
		const void *p;
		size_t len;

		rs_tx_out(&c->sm, &o);
		if (!o.len)
			break;
		len = o.len;
		if (o.ctl) {
			p = o.ctl;
		} else {
			if (len > sizeof(buf))
				len = sizeof(buf);
			rs_chan_tx_fetch(&c->ch, o.from, buf, len);
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
		c->ktx += (uint64_t)r;
		rs_tx_wrote(&c->sm, (size_t)r, rs_now_ms());
	}
	c->blocked = false;
}

static void abort_tcp(struct rs_conn *c)
{
	const struct linger lin = { .l_onoff = 1, .l_linger = 0 };
	struct sockaddr sa = { .sa_family = AF_UNSPEC };

	if (c->reset)
		return;
	c->reset = true;
	c->err = ECONNRESET;
	unwatch_tcp(c);
	if (c->closed) {
		rs_sys5(SYS_setsockopt, c->fd, SOL_SOCKET, SO_LINGER, &lin, sizeof(lin));
		if (c->held)
			rs_fd_close(c->fd);
		c->held = false;
	} else {
		/* The program still has descriptors: this sends RST without closing them. */
		rs_sys3(SYS_connect, c->fd, &sa, sizeof(sa));
	}
}

static void send_messages(struct rs_conn *c)
{
	uint8_t n = c->sm.nmsgs;

	c->sm.nmsgs = 0;
	for (uint8_t i = 0; i < n; i++) {
		struct rs_msg_small m = c->sm.msgs[i];

		if (m.type == RS_MSG_FIN) {
			rs_chan_tx_fin(&c->ch, m.offset);
			continue;
		}
		if (m.type == RS_MSG_ENTER_OK)
			rs_chan_rx_begin(&c->ch, m.offset);
		rs_peer_send(c, m.type, m.epoch, m.offset);
	}
}

static void detach(struct rs_conn *c)
{
	rs_stream_gone(&c->sm);
	send_messages(c);
	rs_peer_detach(c);
}

/* Obeys the state machine. Call before every unlock. */
static void settle(struct rs_conn *c)
{
	bool ring = false;
	uint64_t due;

	for (;;) {
		uint32_t todo = rs_stream_todo(&c->sm);

		if (!todo && !c->sm.nmsgs)
			break;
		send_messages(c);
		if (todo & RS_DO_RESET)
			abort_tcp(c);
		if (todo & RS_DO_OUT)
			flush_out(c);
		if (todo & RS_DO_SHUT_WR)
			rs_sys2(SYS_shutdown, c->fd, SHUT_WR);
		if (todo & RS_DO_CLOSE) {
			unwatch_tcp(c);
			if (c->held)
				rs_fd_close(c->fd);
			c->held = false;
		}
		ring |= (todo & (RS_DO_WAKE_RX | RS_DO_WAKE_TX | RS_DO_RESET)) != 0;
	}
	/* A peer that left did so for good. */
	if (c->bound && c->sm.why == RS_REASON_PEER_LEFT)
		c->sm.refuse = true;
	if (c->bound && c->sm.why && c->sm.refuse && !c->left)
		c->reason = c->sm.why;
	if (c->bound && c->sm.refuse && !c->closed && !c->reset && rs_stream_is_raw(&c->sm)) {
		become_plain(c); /* wakes those who sleep on the slot, while it is ours */
		detach(c);
		return;
	}
	if (c->bound && c->closed && c->sm.dead)
		detach(c);
	show_paths(c);
	due = rs_conn_deadline(c);
	if (due)
		rs_control_due(due);
	if (ring)
		rs_conn_ring(c);
}

static void unlock(struct rs_conn *c)
{
	if (c->sm.todo | c->sm.nmsgs)
		settle(c);
	rs_unlock(&c->lock);
}

/*
 * End of file on TCP before or without MARK. What a sender that died had put into the ring, for an
 * entry that never came about or to bring back over TCP, is there still.
 */
static void peer_ended(struct rs_conn *c)
{
	bool unread = rs_chan_tx_head(&c->ch) < c->ch.tail;

	rs_rx_tcp_eof(&c->sm, unread);
	/* A process that died with bytes of ours unread: TCP would have answered them with RST. */
	if (unread && c->sm.rx == RS_RX_DRAIN && c->sm.tx_orphan && !c->broken) {
		c->broken = true;
		c->err = ECONNRESET;
	}
}

static void tcp_ended(struct rs_conn *c)
{
	uint64_t tail = rs_chan_rx_survived(&c->ch, c->sm.rx_off);

	if (tail > c->sm.rx_off)
		rs_chan_rx_begin(&c->ch, c->sm.rx_off);
	rs_rx_landed(&c->sm, tail);
	peer_ended(c);
}

/* Takes control data off the head of TCP, as far as there is any. */
static void take_control(struct rs_conn *c)
{
	uint8_t buf[RS_FRAME_LEN];
	uint64_t n;
	long r;

	for (;;) {
		enum rs_tcp_head head = rs_tcp_head(&c->sm, &n);

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
			sync_acks(c);
			if (r == 0) {
				tcp_ended(c);
				return;
			}
			if (!rs_rx_mark(&c->sm, buf, (size_t)r, false, rs_now_ms())) {
				if (c->sm.rx == RS_RX_ARMED)
					return;
				continue;
			}
			r = rs_sys6(SYS_recvfrom, c->fd, (long)buf, RS_MARK_LEN, MSG_DONTWAIT, 0,
				    0);
			c->krx += RS_MARK_LEN;
			continue;
		case RS_HEAD_FRAME:
			r = rs_sys6(SYS_recvfrom, c->fd, (long)buf, (long)n, MSG_DONTWAIT, 0, 0);
			if (r == -EINTR)
				continue;
			if (r == -EAGAIN)
				return;
			sync_acks(c);
			if (r < 0) {
				tcp_failed(c, r);
				return;
			}
			if (r == 0) {
				peer_ended(c);
				return;
			}
			c->krx += (uint64_t)r;
			rs_rx_frame(&c->sm, buf, (size_t)r, rs_now_ms());
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
				rs_rx_tcp_eof(&c->sm, false);
				return;
			}
			c->krx += (uint64_t)r;
			rs_rx_skipped(&c->sm, (uint64_t)r);
			continue;
		}
	}
}

void rs_conn_tcp_event(struct rs_conn *c)
{
	enum rs_rx before;

	rs_lock(&c->lock);
	if (!c->managed || c->plain || c->reset)
		goto out;
	before = c->sm.rx;
	take_control(c);
	if (c->blocked || c->sm.todo & RS_DO_OUT)
		flush_out(c);
	settle(c);
	if (!c->plain && (before == RS_RX_RAW || before == RS_RX_ARMED || c->sm.tx == RS_TX_RAW))
		rs_conn_ring(c); /* the kernel does not speak: application bytes or room */
out:
	unlock(c);
}

/* ---- entering ---- */

/* The kernel's own byte counts must be ours, or somebody did I/O that we did not see. */
static bool counts_agree(struct rs_conn *c)
{
	struct tcp_info ti;
	socklen_t len = sizeof(ti);
	int inq = 0, outq = 0;

	memset(&ti, 0, sizeof(ti));
	if (rs_sys5(SYS_getsockopt, c->fd, IPPROTO_TCP, TCP_INFO, &ti, &len) != 0 ||
	    rs_sys3(SYS_ioctl, c->fd, FIONREAD, &inq) != 0 ||
	    rs_sys3(SYS_ioctl, c->fd, TIOCOUTQ, &outq) != 0)
		return false;
	if (len < offsetof(struct tcp_info, tcpi_bytes_received) + 8)
		return true; /* a kernel older than these counters */
	if (ti.tcpi_state != 1 /* TCP_ESTABLISHED */)
		return false;
	/* tcpi_bytes_acked counts the SYN of the connecting side. */
	if (ti.tcpi_bytes_received != c->krx + (unsigned int)inq)
		return false;
	return c->ktx + 1 == ti.tcpi_bytes_acked + (unsigned int)outq ||
	       c->ktx == ti.tcpi_bytes_acked + (unsigned int)outq;
}

static void try_enter(struct rs_conn *c, uint64_t now)
{
	if (!c->bound || c->busy || !rs_stream_can_enter(&c->sm))
		return;
	if (!counts_agree(c)) {
		c->sm.refuse = true;
		c->sm.why = RS_REASON_FOREIGN_IO;
		settle(c);
		return;
	}
	rs_chan_tx_begin(&c->ch, c->sm.tx_off);
	c->retry_at = now + ((uint64_t)rs_config.enter_ms << (c->retries < 6 ? c->retries : 6)) * 2;
	c->retries++;
	rs_stream_enter(&c->sm, now);
}

void rs_conn_attach(struct rs_conn *c, const uint8_t key[RS_KEY_LEN])
{
	rs_lock(&c->lock);
	if (c->plain || c->closed || c->bound)
		goto out;
	if (!rs_chan_bind(&c->ch, &c->link->shm, c->id, c->peer_id)) {
		c->reason = RS_REASON_PROTOCOL;
		become_plain(c);
		goto out;
	}
	c->claim = RS_CLAIM_DONE;
	c->window_end = 0;
	c->bound = true;
	rs_stream_attach(&c->sm, key, c->server);
	if (manage(c) != 0) {
		c->sm.refuse = true;
		c->sm.why = RS_REASON_NO_FDS;
	} else {
		__atomic_fetch_or(&c->ch.mine->rx_mask, c->bells, __ATOMIC_SEQ_CST);
		__atomic_fetch_or(&c->ch.mine->tx_mask, c->bells, __ATOMIC_SEQ_CST);
		rs_conn_ring(c); /* sleepers in poll() must sleep our way from now on */
		try_enter(c, rs_now_ms());
	}
	settle(c);
out:
	unlock(c);
}

void rs_conn_message(struct rs_conn *c, const struct rs_msg *m)
{
	rs_lock(&c->lock);
	if (!c->bound)
		goto out;
	sync_acks(c);
	if (m->type == RS_MSG_ENTER && (c->sm.rx == RS_RX_RAW || c->sm.rx == RS_RX_ARMED) &&
	    !c->sm.refuse && !counts_agree(c)) {
		c->sm.refuse = true;
		c->sm.why = RS_REASON_FOREIGN_IO;
	}
	rs_stream_msg(&c->sm, m->type, m->epoch, m->offset, rs_now_ms());
	if (m->type == RS_MSG_LEAVE || m->type == RS_MSG_GONE) {
		if (!c->sm.why)
			c->sm.why = RS_REASON_PEER_LEFT;
		c->sm.refuse = true;
	}
	take_control(c);
	settle(c);
out:
	unlock(c);
}

void rs_conn_give_up(struct rs_conn *c, enum rs_reason why)
{
	rs_lock(&c->lock);
	if (!c->plain && !c->bound) {
		c->reason = (uint8_t)why;
		become_plain(c);
	}
	unlock(c);
}

uint64_t rs_conn_deadline(const struct rs_conn *c)
{
	uint64_t d = 0, t[5];

	if (c->plain)
		return 0;
	t[0] = c->bound ? rs_stream_deadline(&c->sm) : 0;
	t[1] = c->window_end;
	t[2] = c->link_dead_at;
	t[3] = c->bound && rs_stream_can_enter(&c->sm) ? c->retry_at : 0;
	t[4] = c->claim == RS_CLAIM_BACKOFF || c->claim == RS_CLAIM_SENT ? c->claim_at : 0;
	for (size_t i = 0; i < 5; i++)
		if (t[i] && (!d || t[i] < d))
			d = t[i];
	return d;
}

void rs_conn_timer(struct rs_conn *c, uint64_t now)
{
	rs_lock(&c->lock);
	if (c->plain)
		goto out;
	if (c->window_end && now >= c->window_end && !c->bound && c->claim == RS_CLAIM_NONE) {
		c->window_end = 0;
		c->reason = RS_REASON_PEER_PLAIN;
		become_plain(c);
		goto out;
	}
	if (!c->bound && c->claim == RS_CLAIM_SENT && c->claim_at && now >= c->claim_at) {
		c->reason = RS_REASON_NO_ROUTE; /* the peer's control thread does not answer */
		become_plain(c);
		goto out;
	}
	if (c->link_dead_at && now >= c->link_dead_at) {
		c->link_dead_at = 0;
		sync_acks(c);
		c->sm.refuse = true;
		rs_stream_link_dead(&c->sm, RS_REASON_LINK_LOST);
	}
	if (c->bound) {
		rs_stream_timer(&c->sm, now);
		if (c->retry_at && now >= c->retry_at)
			try_enter(c, now);
	}
	settle(c);
out:
	unlock(c);
}

/* ---- receiving ---- */

static size_t iov_bytes(const struct iovec *iov, size_t n)
{
	size_t sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += iov[i].iov_len;
	return sum;
}

/* The kernel would say EFAULT; that much can be known without touching the memory. */
static bool bad_iov(const struct iovec *iov, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (iov[i].iov_len && ((uintptr_t)iov[i].iov_base < 4096 ||
				       (uintptr_t)iov[i].iov_base >= (uintptr_t)1 << 47))
			return true;
	return false;
}

/* Copies ring bytes [head, upto) behind `done` bytes of the iovec; returns how many fitted. */
static size_t ring_to_iov(struct rs_conn *c, const struct iovec *iov, size_t n, size_t done,
			  uint64_t upto, bool peek, bool discard)
{
	uint64_t at = c->ch.head;
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
				rs_chan_rx_copy(&c->ch, at, (uint8_t *)iov[i].iov_base + off, k);
			at += k;
			off += k;
			copied += k;
			if (!peek)
				rs_chan_rx_consume(&c->ch, at);
		}
	}
	return copied;
}

static bool tcp_readable(struct rs_conn *c)
{
	int inq = 0;

	return rs_sys3(SYS_ioctl, c->fd, FIONREAD, &inq) == 0 && inq > 0;
}

/* One attempt. >= 0: bytes (0: end of file when *eof); -EAGAIN with *how: what to wait for. */
static ssize_t recv_once(struct rs_conn *c, int fd, const struct iovec *iov, size_t n, size_t done,
			 int flags, enum rs_wait *how, bool *eof)
{
	size_t want = iov_bytes(iov, n) - done;
	uint64_t limit, tail, m;

again:
	*how = RS_WAIT_TCP;
	switch (rs_rx_plan(&c->sm, &limit)) {
	case RS_RXP_TCP: {
		struct iovec part[16];
		struct msghdr mh = { .msg_iov = part };
		size_t left = want < limit ? want : (size_t)limit, skip = done;
		long r;

		for (size_t i = 0; i < n && mh.msg_iovlen < 16 && left; i++) {
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
		if (c->err) {
			r = -c->err;
			c->err = 0;
			c->rst_told = true;
			return r;
		}
		flags = (flags & (MSG_PEEK | MSG_TRUNC)) | MSG_DONTWAIT;
		if (n == 1) /* with recv's own rules for absurd lengths */
			r = rs_sys6(SYS_recvfrom, fd, (long)iov[0].iov_base + (long)done,
				    (long)(want < limit ? want : limit), flags, 0, 0);
		else
			r = rs_sys3(SYS_recvmsg, fd, &mh, flags);
		if (r > 0 && !(flags & MSG_PEEK)) {
			c->krx += (uint64_t)r;
			rs_rx_tcp(&c->sm, (uint64_t)r);
			if (c->row)
				c->row->rx_bytes = c->sm.rx_off;
		}
		if (r == 0 && !want)
			*eof = true;
		if (r == 0 && want) {
			if (c->bound) {
				tcp_ended(c);
				if (c->sm.rx == RS_RX_DRAIN)
					goto again;
			}
			*eof = true;
		}
		if (r == -EAGAIN && c->rd_shut) {
			*eof = true;
			return 0;
		}
		return r;
	}
	case RS_RXP_MARK:
	case RS_RXP_SKIP: {
		enum rs_rx before = c->sm.rx;
		uint64_t skip = c->sm.rx_skip;

		take_control(c);
		if (c->sm.rx != before || c->sm.rx_skip != skip)
			goto again;
		if (c->rd_shut) {
			*eof = true;
			return 0;
		}
		if (c->err)
			break;
		*how = RS_WAIT_TCP;
		if (before == RS_RX_ARMED && (c->sm.rx_held || (c->in_tcp && tcp_readable(c))))
			*how = RS_WAIT_NEWS;
		return -EAGAIN;
	}
	case RS_RXP_RING:
		tail = rs_chan_rx_tail(&c->ch);
		if (c->ch.rx_bad) {
			rs_stream_violation(&c->sm);
			settle(c);
			break;
		}
		if (tail > limit)
			tail = limit;
		if (tail > c->sm.rx_off && !want) {
			*eof = true;
			return 0;
		}
		if (tail > c->sm.rx_off && bad_iov(iov, n) && !(flags & MSG_TRUNC))
			return -EFAULT;
		if (tail > c->sm.rx_off) {
			size_t k = ring_to_iov(c, iov, n, done, tail, flags & MSG_PEEK,
					       flags & MSG_TRUNC);

			if (!(flags & MSG_PEEK)) {
				rs_rx_ring(&c->sm, k);
				if (c->row) {
					c->row->rx_bytes = c->sm.rx_off;
					c->row->rx_fast_bytes += k;
				}
			}
			return (ssize_t)k;
		}
		if (rs_chan_rx_fin(&c->ch, &m) && !c->sm.rx_fin_known &&
		    m == rs_chan_rx_tail(&c->ch)) {
			rs_rx_fin_hint(&c->sm, m);
			if (c->sm.rx_fin_known)
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
		if (!c->reset && !c->rst_told)
			c->err = c->err ? c->err : ECONNRESET;
		c->rst_told = true;
		break;
	}
	if (c->err) {
		int e = c->err;

		c->err = 0;
		c->rst_told = true;
		return -e;
	}
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

static void keep_error(struct rs_conn *c, ssize_t r)
{
	rs_lock(&c->lock);
	if (!c->err)
		c->err = (int)-r;
	rs_unlock(&c->lock);
}

ssize_t rs_conn_recv(struct rs_conn *c, int fd, const struct iovec *iov, size_t n, int flags)
{
	size_t want = iov_bytes(iov, n), done = 0;
	struct rs_waiter w;
	enum rs_wait how;
	bool eof;
	ssize_t r;

	rs_waiter_init(&w, c, fd, flags, SO_RCVTIMEO);
	for (;;) {
		eof = false;
		if (rs_lock_mine(&c->lock))
			return done ? (ssize_t)done : -EINTR; /* a handler inside our own call */
		rs_lock(&c->lock);
		if (c->plain) {
			rs_unlock(&c->lock);
			return done ? rest_from_kernel(fd, iov, n, done, flags) : -EXDEV;
		}
		r = recv_once(c, fd, iov, n, done, flags, &how, &eof);
		if (r == -EAGAIN && how == RS_WAIT_TCP && rs_waiter_blocks(&w))
			c->in_tcp++;
		else if (how == RS_WAIT_TCP)
			how = RS_WAIT_RING; /* not going to wait */
		unlock(c);
		if (r > 0 && (flags & MSG_PEEK) && (flags & MSG_WAITALL) && (size_t)r < want &&
		    rs_waiter_blocks(&w)) {
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
			if (done && r < 0 && r != -EFAULT)
				keep_error(c, r); /* for the next call, as the kernel does */
			return done ? (ssize_t)done : r;
		}
		w.partial = done != 0;
		r = rs_wait_rx(&w, how);
		if (how == RS_WAIT_TCP) {
			rs_lock(&c->lock);
			c->in_tcp--;
			unlock(c);
		}
		if (r < 0)
			return done ? (ssize_t)done : r;
	}
}

/* ---- sending ---- */

static ssize_t send_tcp(int fd, const struct iovec *iov, size_t n, size_t done, int flags)
{
	struct iovec part[16];
	struct msghdr mh = { .msg_iov = part };

	for (size_t i = 0; i < n && mh.msg_iovlen < 16; i++) {
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
	c->ktx += k;
	rs_tx_tcp(&c->sm, k);
	if (c->row)
		c->row->tx_bytes = c->sm.tx_off;
}

static size_t send_ring(struct rs_conn *c, const struct iovec *iov, size_t n, size_t done,
			bool grow)
{
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
			size_t room = rs_chan_tx_room(&c->ch, grow);
			size_t k = iov[i].iov_len - off;

			if (!room)
				goto out;
			if (k > room)
				k = room;
			if (k > PIECE)
				k = PIECE;
			rs_chan_tx_copy(&c->ch, c->ch.tail, (const uint8_t *)iov[i].iov_base + off,
					k);
			/* Small pieces of one call become one message. */
			if (i + 1 < n && k < 4096 && room - k >= 65536 / 2) {
				c->ch.tail += k;
				off += k;
				sent += k;
				continue;
			}
			rs_chan_tx_publish(&c->ch, c->ch.tail + k);
			off += k;
			sent += k;
		}
	}
out:
	if (sent) {
		if (__atomic_load_n(&c->ch.peer->tail, __ATOMIC_RELAXED) != c->ch.tail)
			rs_chan_tx_publish(&c->ch, c->ch.tail);
		rs_tx_ring(&c->sm, sent);
		if (c->row) {
			c->row->tx_bytes = c->sm.tx_off;
			c->row->tx_fast_bytes += sent;
		}
	}
	return sent;
}

ssize_t rs_conn_send(struct rs_conn *c, int fd, const struct iovec *iov, size_t n, int flags)
{
	size_t want = iov_bytes(iov, n), done = 0;
	bool grow = false;
	struct rs_waiter w;
	ssize_t r;

	rs_waiter_init(&w, c, fd, flags, SO_SNDTIMEO);
	for (;;) {
		enum rs_wait how = RS_WAIT_NEWS;

		if (rs_lock_mine(&c->lock))
			return done ? (ssize_t)done : -EINTR;
		rs_lock(&c->lock);
		if (c->plain) {
			rs_unlock(&c->lock);
			return done ? (ssize_t)done : -EXDEV;
		}
		if (c->err) {
			r = -c->err;
			c->err = 0;
			c->rst_told = true;
			unlock(c);
			return done ? (ssize_t)done : r;
		}
		r = -EAGAIN;
		switch (c->reset || c->broken ? RS_TXP_EPIPE : rs_tx_plan(&c->sm)) {
		case RS_TXP_TCP:
			if (c->busy)
				break;
			r = send_tcp(fd, iov, n, done, (flags & (MSG_MORE)) | MSG_DONTWAIT);
			if (r > 0)
				sent_tcp(c, (size_t)r);
			if (r == -EAGAIN && rs_waiter_blocks(&w)) {
				/*
				 * Sleep in the kernel's own send, for its exact restart and
				 * time-out rules. Nobody else may send, or enter, meanwhile.
				 */
				c->busy = 1;
				rs_unlock(&c->lock);
				w.partial = done != 0;
				r = rs_wait_in_send(&w, iov, n, done);
				rs_lock(&c->lock);
				if (r > 0)
					sent_tcp(c, (size_t)r);
				c->busy = 0;
				rs_conn_ring(c);
				if (r < 0) {
					unlock(c);
					return done ? (ssize_t)done : r;
				}
			}
			break;
		case RS_TXP_RING:
			if (bad_iov(iov, n)) {
				r = -EFAULT;
				break;
			}
			r = (ssize_t)send_ring(c, iov, n, done, grow || !rs_waiter_blocks(&w));
			if (done + (size_t)r < want && !rs_waiter_blocks(&w)) {
				/* Who waits for EPOLLOUT hears of room; look again after saying so. */
				__atomic_fetch_or(&c->ch.mine->tx_mask, c->ch.mine->rx_mask,
						  __ATOMIC_SEQ_CST);
				r += (ssize_t)send_ring(c, iov, n, done + (size_t)r, true);
			}
			if (r == 0 && want > done) {
				r = -EAGAIN;
				how = RS_WAIT_ROOM;
			}
			break;
		case RS_TXP_WAIT:
			flush_out(c);
			if (rs_tx_plan(&c->sm) != RS_TXP_WAIT) {
				unlock(c);
				continue;
			}
			break;
		case RS_TXP_EPIPE:
			r = -EPIPE;
			break;
		}
		unlock(c);
		if (r >= 0) {
			done += (size_t)r;
			if (done >= want || !rs_waiter_blocks(&w))
				return (ssize_t)done;
			continue;
		}
		if (r != -EAGAIN && r != -EINTR)
			return done ? (ssize_t)done : r;
		if (done && !rs_waiter_blocks(&w))
			return (ssize_t)done;
		if (how == RS_WAIT_ROOM && !grow && rs_waiter_blocks(&w)) {
			/* First give the receiver a moment, then take the larger ring. */
			grow = !rs_spin_room(&w);
			continue;
		}
		w.partial = done != 0;
		r = rs_wait_tx(&w, how);
		if (r < 0)
			return done ? (ssize_t)done : r;
	}
}

/* ---- readiness ---- */

uint32_t rs_conn_poll(struct rs_conn *c, uint32_t events, uint32_t *ask_kernel)
{
	const uint32_t in = POLLIN | POLLRDNORM, out = POLLOUT | POLLWRNORM;
	uint32_t mask = 0, ask = 0;
	uint64_t limit, m;
	bool eof = false;

	if (rs_lock_mine(&c->lock)) {
		*ask_kernel = 0;
		return 0;
	}
	rs_lock(&c->lock);
	if (c->plain) {
		*ask_kernel = events | POLLERR | POLLHUP;
		rs_unlock(&c->lock);
		return 0;
	}
	if (c->sm.rx == RS_RX_ARMED || c->sm.rx == RS_RX_DRAIN)
		take_control(c);
	switch (rs_rx_plan(&c->sm, &limit)) {
	case RS_RXP_TCP:
		ask |= in | POLLRDHUP | POLLPRI;
		break;
	case RS_RXP_MARK:
		if (!c->sm.rx_held)
			ask |= in | POLLRDHUP;
		break;
	case RS_RXP_SKIP:
		break;
	case RS_RXP_RING:
		if (rs_chan_rx_tail(&c->ch) > c->sm.rx_off)
			mask |= in;
		if (rs_chan_rx_fin(&c->ch, &m)) {
			mask |= POLLRDHUP;
			eof = true;
			if (m == c->sm.rx_off)
				mask |= in;
		}
		if (c->sm.rx == RS_RX_DRAIN && c->sm.rx_end) {
			mask |= in | POLLRDHUP;
			eof = true;
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
	switch (rs_tx_plan(&c->sm)) {
	case RS_TXP_TCP:
		ask |= out;
		break;
	case RS_TXP_RING:
		if (rs_chan_tx_writable(&c->ch))
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
	/* The kernel's errors count once the stream has nothing of its own to say any more. */
	if (c->sm.tx == RS_TX_RAW || !c->bound)
		ask |= POLLERR | POLLHUP;
	if (c->err)
		mask |= POLLERR | POLLHUP;
	if (c->reset)
		mask |= POLLERR | POLLHUP | in | out | POLLRDHUP;
	unlock(c);
	*ask_kernel = ask & (events | POLLERR | POLLHUP);
	return mask & (events | POLLERR | POLLHUP);
}

long rs_conn_readable(struct rs_conn *c)
{
	uint64_t limit, tail;
	long r = -EAGAIN;

	rs_lock(&c->lock);
	if (!c->plain && c->bound) {
		enum rs_rx_plan plan;

		take_control(c);
		plan = rs_rx_plan(&c->sm, &limit);
		if (plan == RS_RXP_RING) {
			tail = rs_chan_rx_tail(&c->ch);
			r = (long)((tail < limit ? tail : limit) - c->sm.rx_off);
		} else if (plan != RS_RXP_TCP) {
			r = 0;
		}
	}
	unlock(c);
	return r;
}

long rs_conn_unsent(struct rs_conn *c)
{
	long r = -EAGAIN;

	rs_lock(&c->lock);
	if (!c->plain && c->bound && c->sm.tx != RS_TX_RAW) {
		uint64_t flight = c->ch.tail - rs_chan_tx_head(&c->ch);

		/* As on any loopback connection: what fits the peer's buffer, the peer has. */
		r = flight > ((uint64_t)1 << 18) ? (long)flight : 0;
	}
	unlock(c);
	return r;
}

int rs_conn_take_error(struct rs_conn *c)
{
	int e;

	rs_lock(&c->lock);
	if (!c->err && c->bound && !c->rst_told) {
		uint64_t n;

		if (rs_rx_plan(&c->sm, &n) == RS_RXP_RESET) {
			c->err = ECONNRESET;
			c->rst_told = true;
		}
	}
	e = c->err;
	c->err = 0;
	c->rst_told |= e != 0;
	unlock(c);
	return e;
}

int rs_conn_path(struct rs_conn *c)
{
	int path = 0;

	if (c->plain || !c->bound)
		return 0;
	if (c->sm.tx == RS_TX_FAST)
		path |= RS_PATH_SHM;
	if (c->sm.rx == RS_RX_FAST)
		path |= RS_PATH_SHM << 4;
	return path;
}

/* ---- wishes ---- */

void rs_conn_watch(struct rs_conn *c, struct rs_watch *w)
{
	w->next = c->watches;
	c->watches = w;
}

void rs_conn_unwatch(struct rs_conn *c, struct rs_watch *w)
{
	struct rs_watch **p = &c->watches;

	while (*p && *p != w)
		p = &(*p)->next;
	if (*p)
		*p = w->next;
}

void rs_conn_want(struct rs_conn *c, uint32_t bell, bool room)
{
	if (!c->bound)
		return;
	__atomic_fetch_or(room ? &c->ch.mine->tx_mask : &c->ch.mine->rx_mask, 1u << bell,
			  __ATOMIC_SEQ_CST);
}

void rs_conn_set_bell(struct rs_conn *c, uint32_t bell, bool on)
{
	rs_lock(&c->lock);
	if (on) {
		__atomic_fetch_or(&c->bells, 1u << bell, __ATOMIC_SEQ_CST);
		rs_conn_want(c, bell, false);
		rs_conn_want(c, bell, true);
	} else {
		__atomic_fetch_and(&c->bells, ~(1u << bell), __ATOMIC_SEQ_CST);
		if (c->bound) {
			__atomic_fetch_and(&c->ch.mine->rx_mask, ~(1u << bell), __ATOMIC_SEQ_CST);
			__atomic_fetch_and(&c->ch.mine->tx_mask, ~(1u << bell), __ATOMIC_SEQ_CST);
		}
	}
	unlock(c);
}

/* ---- ending ---- */

int rs_conn_shutdown(struct rs_conn *c, int fd, int how)
{
	int r = 0;

	rs_lock(&c->lock);
	if (c->plain || !c->bound) {
		/* A candidate's bytes are all with TCP: the kernel does it right. */
		if (!c->plain && how != SHUT_RD) {
			c->sm.refuse = true;
			c->reason = RS_REASON_CLOSING;
			become_plain(c);
		}
		r = (int)rs_sys2(SYS_shutdown, fd, how);
		rs_unlock(&c->lock);
		return r;
	}
	if (how != SHUT_RD && how != SHUT_WR && how != SHUT_RDWR) {
		r = -EINVAL;
	} else {
		sync_acks(c);
		if (how != SHUT_WR)
			c->rd_shut = true;
		if (how != SHUT_RD)
			rs_stream_shutdown_wr(&c->sm, rs_now_ms());
		settle(c);
		rs_conn_ring(c);
	}
	unlock(c);
	return r;
}

/* SO_LINGER with a time: close waits that long for the peer to take what was sent. */
static void linger(struct rs_conn *c, int fd, uint32_t seconds)
{
	uint64_t end = rs_now_ms() + (uint64_t)seconds * 1000;
	long fl = rs_sys2(SYS_fcntl, fd, F_GETFL);

	if (fl < 0 || fl & O_NONBLOCK)
		return;
	while (c->sm.tx == RS_TX_FAST &&
	       c->ch.tail - rs_chan_tx_head(&c->ch) > ((uint64_t)1 << 18) && rs_now_ms() < end) {
		struct timespec ts = { 0, 1000000 };

		rs_unlock(&c->lock);
		rs_sys4(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &ts, NULL);
		rs_lock(&c->lock);
	}
}

void rs_conn_close(struct rs_conn *c, int fd)
{
	struct linger lin = { 0 };
	socklen_t len = sizeof(lin);
	bool unread = false;
	uint64_t n;

	rs_lock(&c->lock);
	if (c->bound && !c->plain &&
	    rs_sys5(SYS_getsockopt, fd, SOL_SOCKET, SO_LINGER, &lin, &len) == 0 && lin.l_onoff) {
		unread = lin.l_linger == 0; /* abort, as if bytes were left unread */
		if (!unread)
			linger(c, fd, (uint32_t)lin.l_linger);
	}
	c->closed = true;
	c->fd = fd;
	if (c->plain || c->reset)
		goto out;
	if (!c->bound) {
		c->reason = RS_REASON_CLOSING;
		become_plain(c);
		goto out;
	}
	sync_acks(c);
	take_control(c);
	if (c->sm.rx == RS_RX_FAST || c->sm.rx == RS_RX_DRAIN) {
		unread |= rs_chan_rx_tail(&c->ch) > c->sm.rx_off &&
			  rs_rx_plan(&c->sm, &n) == RS_RXP_RING;
	}
	if (rs_tcp_head(&c->sm, &n) == RS_HEAD_APP) {
		int inq = 0;

		rs_sys3(SYS_ioctl, fd, FIONREAD, &inq);
		unread |= inq > 0;
	}
	unwatch_tcp(c);
	rs_stream_close(&c->sm, unread, rs_now_ms());
	settle(c);
	if (c->sm.dead)
		goto out;
	/* The peer may still write control bytes: keep the socket until it says that it will not. */
	{
		long held = rs_sys3(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 3);

		if (held < 0)
			goto out; /* no descriptor: the kernel closes now */
		c->fd = rs_fd_hide((int)held);
		c->held = true;
		if (rs_control_watch_conn(c->fd, c) == 0)
			c->watched_tcp = true;
		take_control(c);
		settle(c);
	}
out:
	unlock(c);
}

void rs_conn_fd_added(struct rs_conn *c)
{
	rs_lock(&c->lock);
	c->nfds++;
	rs_unlock(&c->lock);
}

bool rs_conn_fd_closed(struct rs_conn *c, int fd, int other)
{
	bool last;

	rs_lock(&c->lock);
	last = --c->nfds == 0;
	if (!last && c->fd == fd) {
		bool watched = c->watched_tcp;

		unwatch_tcp(c);
		c->fd = other;
		if (watched && rs_control_watch_conn(other, c) == 0)
			c->watched_tcp = true;
		if (c->row)
			c->row->fd = other;
	}
	unlock(c);
	return last;
}

int rs_conn_leave(struct rs_conn *c, enum rs_reason why, bool consumed, uint32_t wait_ms)
{
	uint64_t end = rs_now_ms() + wait_ms;
	int r = 0;

	rs_lock(&c->lock);
	if (!c->plain && !c->bound) {
		c->reason = (uint8_t)why;
		become_plain(c);
	} else if (!c->plain && !c->reset) {
		sync_acks(c);
		take_control(c);
		c->sm.refuse = true;
		if (!c->left)
			c->reason = (uint8_t)why;
		c->left = true;
		rs_stream_leave(&c->sm, (uint8_t)why, consumed);
		settle(c);
	}
	while (!c->plain && !c->reset && !c->closed) {
		uint32_t news = __atomic_load_n(&c->news, __ATOMIC_SEQ_CST);
		uint64_t now = rs_now_ms();
		struct timespec ts = { 0, 5000000 };

		if (now >= end) {
			r = -ETIMEDOUT;
			break;
		}
		/* What is left in the ring has to be read by the program, unless it comes again. */
		if ((!consumed && c->sm.rx == RS_RX_DRAIN && c->sm.rx_off < c->sm.rx_have) ||
		    (c->sm.rx_fin_frame && c->sm.rx_off < c->sm.rx_fin)) {
			r = -EINPROGRESS;
			break;
		}
		rs_unlock(&c->lock);
		__atomic_fetch_add(&c->sleepers, 1, __ATOMIC_SEQ_CST);
		rs_futex_wait(&c->news, news, &ts, true);
		__atomic_fetch_sub(&c->sleepers, 1, __ATOMIC_SEQ_CST);
		rs_lock(&c->lock);
		if (!c->plain && c->managed) {
			sync_acks(c);
			take_control(c);
			flush_out(c);
			settle(c);
		}
	}
	unlock(c);
	return r;
}
