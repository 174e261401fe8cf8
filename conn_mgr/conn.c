/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/conn.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/epoll.h>
#include <sys/mman.h>

#include "conn_mgr/conn_edge.h"
#include "conn_mgr/control.h"
#include "conn_mgr/peer.h"
#include "conn_mgr/wait.h"
#include "rsock/bell.h"
#include "rsock/config.h"
#include "rsock/log.h"
#include "rsock/rows.h"
#include "rsock/sys.h"

#define BUSY_MS 2
#define REMOTE_ENTER 12 /* times as long as on one host */

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
	c->row->reason = path & 15 && path >> 4 ? RS_REASON_NONE : c->reason;
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
	/* An end before that would be a cut (rs_conn_recv() looks). */
	if (c->bound && c->sm.rx_owed > c->sm.rx_off && !c->sm.rx_eof)
		__atomic_store_n(&c->owed, c->krx + (c->sm.rx_owed - c->sm.rx_off),
				 __ATOMIC_RELAXED);
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
	if (c->ch.remote && c->sm.tx == RS_TX_FAST)
		rs_tx_posted(&c->sm, c->ch.posted);
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
void rs_conn_flush_out(struct rs_conn *c)
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

		if (m.type == RS_MSG_FIN && !c->ch.remote) {
			rs_chan_tx_fin(&c->ch, m.offset);
			continue;
		}
		/* LEFT says that no write follows. */
		if (m.type == RS_MSG_LEFT && c->ch.remote)
			rs_remote_open(&c->ch, false);
		if (m.type == RS_MSG_ENTER_OK)
			rs_chan_rx_begin(&c->ch, m.offset);
		rs_peer_send(c, m.type, m.epoch, m.offset);
	}
}

static void detach(struct rs_conn *c)
{
	rs_stream_gone(&c->sm);
	send_messages(c);
	rs_conn_ring(c); /* who sleeps in the slot must not stay there */
	rs_peer_detach(c);
}

/* What the queue pair needs to know, and who waits for acknowledgements, without a thread asleep. */
static void settle_remote(struct rs_conn *c)
{
	bool open = rs_tx_may_post(&c->sm);

	if (open != c->ch.open)
		rs_remote_open(&c->ch, open);
	if (c->sm.fin_wanted)
		__atomic_fetch_or(&c->ch.mine->tx_mask, 1, __ATOMIC_SEQ_CST);
	if (c->closed)
		__atomic_fetch_or(&c->ch.mine->rx_mask, 1, __ATOMIC_SEQ_CST);
	if (c->sm.rx_fin_known && !c->ch.eager) {
		c->ch.eager = true;
		rs_remote_credit(&c->ch);
	}
}

void rs_conn_poke(struct rs_conn *c)
{
	rs_lock(&c->lock);
	if (c->bound && !c->plain) {
		if (c->ch.remote) {
			rs_remote_post(&c->ch);
			rs_remote_credit(&c->ch);
			sync_acks(c);
		}
		rs_conn_settle(c);
	}
	rs_conn_ring(c);
	rs_conn_unlock(c);
}

/* Obeys the state machine. Call before every unlock. */
void rs_conn_settle(struct rs_conn *c)
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
			rs_conn_flush_out(c);
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
	/* Last: the MARK that was just written may be what the bytes had to wait for. */
	if (c->bound && c->ch.remote)
		settle_remote(c);
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

void rs_conn_unlock(struct rs_conn *c)
{
	if (c->sm.todo | c->sm.nmsgs)
		rs_conn_settle(c);
	rs_unlock(&c->lock);
}

/*
 * End of file on TCP before or without MARK. What a sender that died had put into the ring, for an
 * entry that never came about or to bring back over TCP, is there still.
 */
static void peer_ended(struct rs_conn *c)
{
	bool unread = !c->ch.remote && rs_chan_tx_head(&c->ch) < c->ch.tail;

	rs_rx_tcp_eof(&c->sm, unread);
	/* A process that died with bytes of ours unread: TCP would have answered them with RST. */
	if (unread && c->sm.rx == RS_RX_DRAIN && c->sm.tx_orphan && !c->broken) {
		c->broken = true;
		c->err = ECONNRESET;
	}
}

void rs_conn_tcp_ended(struct rs_conn *c)
{
	uint64_t tail = rs_chan_rx_survived(&c->ch, c->sm.rx_off);

	if (tail > c->sm.rx_off && !c->ch.remote)
		rs_chan_rx_begin(&c->ch, c->sm.rx_off);
	rs_rx_landed(&c->sm, tail);
	peer_ended(c);
}

/*
 * The peer closed. What we put into its ring after that it will not see; TCP would have answered with
 * RST (EPIPE, for its FIN came before).
 */
static void peer_closed(struct rs_conn *c)
{
	if (c->broken || c->closed || c->ch.remote || rs_chan_tx_head(&c->ch) >= c->ch.tail)
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
				rs_conn_tcp_ended(c);
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
			fast = c->sm.tx == RS_TX_FAST && !c->sm.tx_orphan;
			rs_rx_frame(&c->sm, buf, (size_t)r, rs_now_ms());
			if (fast && c->sm.tx_orphan)
				peer_closed(c);
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

/*
 * RST behind the peer's FIN: nothing is left to read that would tell, but TCP is closed although our
 * direction is open. As tcp_reset() does it in CLOSE_WAIT: EPIPE, and what came before stays readable.
 */
static void check_reset_after_fin(struct rs_conn *c)
{
	struct tcp_info ti = { 0 };
	socklen_t len = sizeof(ti);

	if (!c->bound || c->closed || c->broken || c->err || c->sm.fin_wanted || c->sm.dead ||
	    !c->sm.rx_fin_frame)
		return;
	if (rs_sys5(SYS_getsockopt, c->fd, IPPROTO_TCP, TCP_INFO, &ti, &len) != 0 ||
	    ti.tcpi_state != 7 /* TCP_CLOSE */)
		return;
	c->broken = true;
	c->err = EPIPE;
	rs_conn_ring(c);
}

void rs_conn_tcp_event(struct rs_conn *c, uint32_t events)
{
	enum rs_rx before;

	rs_lock(&c->lock);
	if (!c->managed || c->plain || c->reset)
		goto out;
	before = c->sm.rx;
	rs_conn_take_control(c);
	if (c->blocked || c->sm.todo & RS_DO_OUT)
		rs_conn_flush_out(c);
	rs_conn_settle(c);
	if (events & (EPOLLERR | EPOLLHUP) && !c->plain)
		check_reset_after_fin(c);
	if (!c->plain && (before == RS_RX_RAW || before == RS_RX_ARMED || c->sm.tx == RS_TX_RAW))
		rs_conn_ring(c); /* the kernel does not speak: application bytes or room */
out:
	rs_conn_unlock(c);
}

/* ---- entering ---- */

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
	return ti.tcpi_bytes_received == c->krx + (unsigned int)inq &&
	       (c->ktx + 1 == ti.tcpi_bytes_acked + (unsigned int)outq ||
		c->ktx == ti.tcpi_bytes_acked + (unsigned int)outq);
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
	if (!c->bound || !rs_stream_can_enter(&c->sm))
		return;
	if (c->busy) { /* a thread sleeps in the kernel's send: where it will end is not known */
		c->retry_at = now + BUSY_MS;
		return;
	}
	if (!counts_agree(c)) {
		c->sm.refuse = true;
		c->sm.why = RS_REASON_FOREIGN_IO;
		rs_conn_settle(c);
		return;
	}
	rs_chan_tx_begin(&c->ch, c->sm.tx_off);
	c->retry_at = now + ((uint64_t)rs_config.enter_ms << (c->retries < 6 ? c->retries : 6)) * 2;
	c->retries++;
	rs_stream_enter(&c->sm, now);
}

/* What the program has set, as opposed to what TCP would tune by itself. Under the lock. */
void rs_conn_buffers(struct rs_conn *c)
{
	int locked = 0, snd = 0, rcv = 0;
	socklen_t len = sizeof(int);

	if (!c->bound ||
	    rs_sys5(SYS_getsockopt, c->fd, SOL_SOCKET, SO_BUF_LOCK, &locked, &len) != 0)
		return; /* a kernel older than 5.14: not known, not limited */
	if (locked & SOCK_SNDBUF_LOCK)
		rs_sys5(SYS_getsockopt, c->fd, SOL_SOCKET, SO_SNDBUF, &snd, &len);
	if (locked & SOCK_RCVBUF_LOCK)
		rs_sys5(SYS_getsockopt, c->fd, SOL_SOCKET, SO_RCVBUF, &rcv, &len);
	c->ch.tx_limit = (uint32_t)snd;
	/* Half of it is for the kernel's own overhead (tcp_adv_win_scale). */
	__atomic_store_n(&c->ch.mine->rx_limit, (uint32_t)rcv / 2, __ATOMIC_RELAXED);
}

void rs_conn_attach(struct rs_conn *c, const uint8_t key[RS_KEY_LEN])
{
	struct rs_remote *remote;

	rs_lock(&c->lock);
	if (c->plain || c->closed || c->bound)
		goto out;
	remote = c->link->shm.remote;
	if (!(remote ? rs_remote_bind(&c->ch, remote, c->id, c->peer_id, &c->peer_block)
		     : rs_chan_bind(&c->ch, &c->link->shm, c->id, c->peer_id))) {
		c->reason = RS_REASON_PROTOCOL;
		become_plain(c);
		goto out;
	}
	c->claim = RS_CLAIM_DONE;
	c->window_end = 0;
	__atomic_store_n(&c->bound, true, __ATOMIC_RELAXED);
	c->sm.cfg.ring_survives = !remote;
	/*
	 * To be late with the proof is final. It comes behind all that TCP has queued in both
	 * directions, which over a network takes the program seconds to read.
	 */
	if (remote)
		c->sm.cfg.enter_ms *= REMOTE_ENTER;
	rs_stream_attach(&c->sm, key, c->server);
	rs_conn_buffers(c);
	if (manage(c) != 0) {
		c->sm.refuse = true;
		c->sm.why = RS_REASON_NO_FDS;
	} else {
		__atomic_fetch_or(&c->ch.mine->rx_mask, c->bells, __ATOMIC_SEQ_CST);
		__atomic_fetch_or(&c->ch.mine->tx_mask, c->bells, __ATOMIC_SEQ_CST);
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
	sync_acks(c);
	if (m->type == RS_MSG_ENTER && (c->sm.rx == RS_RX_RAW || c->sm.rx == RS_RX_ARMED) &&
	    !c->sm.refuse && !counts_agree(c)) {
		c->sm.refuse = true;
		c->sm.why = RS_REASON_FOREIGN_IO;
	}
	fast = c->sm.tx == RS_TX_FAST && !c->sm.tx_orphan;
	rs_stream_msg(&c->sm, m->type, m->epoch, m->offset, rs_now_ms());
	if (fast && c->sm.tx_orphan)
		peer_closed(c);
	if (m->type == RS_MSG_LEAVE || m->type == RS_MSG_GONE) {
		if (!c->sm.why)
			c->sm.why = RS_REASON_PEER_LEFT;
		c->sm.refuse = true;
	}
	rs_conn_take_control(c);
	rs_conn_settle(c);
out:
	rs_conn_unlock(c);
}

void rs_conn_give_up(struct rs_conn *c, enum rs_reason why)
{
	rs_lock(&c->lock);
	if (!c->plain && !c->bound) {
		c->reason = (uint8_t)why;
		become_plain(c);
	}
	rs_conn_unlock(c);
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
	rs_conn_settle(c);
out:
	rs_conn_unlock(c);
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
	rs_conn_unlock(c);
}

/* ---- ending ---- */

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
		uint64_t m;

		/* Both directions have ended: TCP would be closed (tcp(7), inet_shutdown). */
		if (c->reset || c->broken ||
		    (c->sm.fin_wanted && (c->sm.rx_fin_known || c->sm.rx_eof ||
					  (c->sm.rx == RS_RX_FAST && rs_chan_rx_fin(&c->ch, &m)))))
			r = -ENOTCONN;
		sync_acks(c);
		if (how != SHUT_WR)
			c->rd_shut = true;
		if (how != SHUT_RD)
			rs_stream_shutdown_wr(&c->sm, rs_now_ms());
		rs_conn_settle(c);
		rs_conn_ring(c);
	}
	rs_conn_unlock(c);
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

	if (c->server)
		rs_peer_unaccept(c);
	rs_lock(&c->lock);
	if (c->bound && !c->plain &&
	    rs_sys5(SYS_getsockopt, fd, SOL_SOCKET, SO_LINGER, &lin, &len) == 0 && lin.l_onoff) {
		unread = lin.l_linger == 0; /* abort, as if bytes were left unread */
		if (!unread)
			linger(c, fd, (uint32_t)lin.l_linger);
	}
	c->closed = true;
	c->fd = fd;
	if (c->reset && c->bound)
		detach(c);
	if (c->plain || c->reset)
		goto out;
	if (!c->bound) {
		c->reason = RS_REASON_CLOSING;
		become_plain(c);
		goto out;
	}
	sync_acks(c);
	rs_conn_take_control(c);
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
	rs_conn_settle(c);
	if (c->sm.dead)
		goto out;
	/* The peer may still write control bytes: keep the socket until it says that it will not. */
	{
		long held = rs_sys3(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 3);

		if (held < 0) {
			/* No descriptor to read the peer's last words with: as a process that dies. */
			rs_stream_violation(&c->sm);
			rs_conn_settle(c);
			if (c->bound)
				detach(c);
			goto out;
		}
		c->fd = rs_fd_hide((int)held);
		c->held = true;
		if (rs_control_watch_conn(c->fd, c) == 0)
			c->watched_tcp = true;
		rs_conn_take_control(c);
		rs_conn_settle(c);
	}
out:
	rs_conn_unlock(c);
}

void rs_conn_fd_added(struct rs_conn *c)
{
	__atomic_fetch_add(&c->nfds, 1, __ATOMIC_SEQ_CST);
}

enum rs_conn_left rs_conn_fd_closed(struct rs_conn *c, int fd, int other)
{
	enum rs_conn_left left = RS_FDS_REMAIN;
	bool handler = rs_lock_mine(&c->lock); /* it interrupted one of our own calls */

	if (!handler)
		rs_lock(&c->lock);
	if (!handler)
		rs_waiters_stale(c, __builtin_frame_address(0));
	if (__atomic_sub_fetch(&c->nfds, 1, __ATOMIC_SEQ_CST) == 0) {
		long own = -EBADF;

		if ((c->waiting || handler) && !c->reset)
			own = rs_sys3(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 3);
		left = own >= 0 && rs_conn_get(c) ? RS_FDS_IN_USE : RS_FDS_NONE;
		if (left == RS_FDS_IN_USE) {
			__atomic_store_n(&c->orphan, true, __ATOMIC_RELAXED);
			other = rs_fd_hide((int)own);
		}
	}
	if (left != RS_FDS_NONE && c->fd == fd) {
		bool watched = c->watched_tcp;

		unwatch_tcp(c);
		c->fd = other;
		if (watched && rs_control_watch_conn(other, c) == 0)
			c->watched_tcp = true;
		if (c->row)
			c->row->fd = other;
	}
	if (!handler)
		rs_conn_unlock(c);
	return left;
}

void rs_conn_close_orphan(struct rs_conn *c)
{
	int fd = c->fd;

	rs_conn_close(c, fd);
	rs_fd_close(fd);
	rs_conn_put(c);
}

void rs_conn_abort(struct rs_conn *c)
{
	rs_lock(&c->lock);
	if (!c->plain && !c->reset) {
		rs_stream_violation(&c->sm);
		rs_conn_settle(c);
	}
	rs_conn_unlock(c);
}

bool rs_conn_flush(struct rs_conn *c)
{
	bool flushing;

	rs_lock(&c->lock);
	if (c->bound && !c->plain && !c->reset && c->sm.tx == RS_TX_RAW && !c->sm.dead) {
		rs_conn_flush_out(c);
		rs_conn_settle(c);
	}
	flushing = c->bound && !c->plain && !c->reset && !c->sm.dead && c->sm.tx == RS_TX_RAW &&
		   c->sm.tx_raw < c->sm.tx_off;
	rs_conn_unlock(c);
	return flushing;
}

int rs_conn_leave(struct rs_conn *c, enum rs_reason why, bool consumed, uint32_t wait_ms)
{
	uint64_t end = rs_now_ms() + wait_ms;
	int r = 0;

	if (rs_lock_mine(&c->lock))
		return -ETIMEDOUT; /* a handler that interrupted our own call */
	rs_lock(&c->lock);
	if (!c->plain && !c->bound) {
		c->reason = (uint8_t)why;
		become_plain(c);
	} else if (!c->plain && !c->reset) {
		sync_acks(c);
		rs_conn_take_control(c);
		c->sm.refuse = true;
		if (!c->left)
			c->reason = (uint8_t)why;
		c->left = true;
		rs_stream_leave(&c->sm, (uint8_t)why, consumed);
		rs_conn_settle(c);
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
	return c->bound && c->ch.remote && !c->plain && !c->reset && !c->sm.dead;
}

void rs_conn_exit(struct rs_conn *c)
{
	uint64_t n;

	if (rs_lock_mine(&c->lock))
		return; /* exit() in a signal handler, inside our own call */
	rs_lock(&c->lock);
	if (staged(c)) {
		sync_acks(c);
		rs_conn_take_control(c);
		c->sm.refuse = true;
		/* What is unread then, TCP answers with RST: so do we. */
		if (!c->closed && rs_rx_plan(&c->sm, &n) == RS_RXP_RING &&
		    rs_chan_rx_tail(&c->ch) > c->sm.rx_off)
			rs_stream_close(&c->sm, true, rs_now_ms());
		else
			rs_stream_leave(&c->sm, RS_REASON_CLOSING, false);
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
		rs_remote_progress(c->ch.remote);
		sync_acks(c);
		rs_conn_take_control(c);
		rs_conn_flush_out(c);
		rs_conn_settle(c);
		over = !staged(c);
		/*
		 * What the peer still writes, a closed socket answers with RST. That throws away
		 * what the peer's kernel does not have by then.
		 */
		if (!over && hurry && rs_tx_is_raw(&c->sm))
			over = rs_sys3(SYS_ioctl, c->fd, TIOCOUTQ, &outq) != 0 || outq == 0;
	}
	rs_conn_unlock(c);
	return over;
}
