/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/conn_edge.h"

#include <limits.h>
#include <linux/socket.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>

#include "conn_mgr/accepted.h"
#include "conn_mgr/control.h"
#include "conn_mgr/owner.h"
#include "rsock/bell.h"
#include "rsock/config.h"
#include "rsock/log.h"
#include "rsock/rows.h"
#include "rsock/sys.h"

#define POOL 64u /* that many at a time */

static struct rs_lock pool_lock;
static struct rs_conn *pool;
/* Of connections that have none of their own. */
static struct rs_state state_none, state_dead = { .sm.dead = true };

/* ---- life ---- */

static void *map(size_t size)
{
	long p = rs_sys6(SYS_mmap, 0, (long)size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return (unsigned long)p > -4096UL ? NULL : (void *)p;
}

/* Under pool_lock. */
static struct rs_conn *new_conn(void)
{
	struct rs_conn *c = pool;

	if (!c) {
		struct rs_conn *more = map(POOL * sizeof(*more));

		for (size_t i = 0; more && i < POOL; i++) {
			more[i].free_next = pool;
			pool = &more[i];
		}
		c = pool;
	}
	if (c && !c->mem.own && !rs_state_take(&c->mem))
		return NULL;
	if (c)
		pool = c->free_next;
	return c;
}

static void init_state(struct rs_conn *c)
{
	const struct rs_stream_cfg cfg = {
		.mac = rs_hmac,
		.ring_survives = true,
		.enter_ms = rs_config.enter_ms,
		.prefix_ms = 200,
		.hold_ms = 60000,
		.ping_ms = 60000,
	};

	c->st = c->mem.own;
	memset(c->st, 0, sizeof(*c->st));
	rs_stream_init(&c->st->sm, &cfg);
	c->mem.shared->lingers = 0;
	c->mem.shared->taker = 0;
}

void rs_conn_forget_state(struct rs_conn *c, bool reset)
{
	c->mem = (struct rs_state_mem){ 0 };
	c->st = reset ? &state_dead : &state_none;
}

bool rs_conn_renew_state(struct rs_conn *c)
{
	rs_conn_forget_state(c, false);
	if (!rs_state_take(&c->mem))
		return false;
	init_state(c);
	return true;
}

struct rs_conn *rs_conn_new(int fd, bool server)
{
	struct rs_conn *c;

	rs_lock(&pool_lock);
	c = new_conn();
	rs_unlock(&pool_lock);
	if (!c)
		return NULL;
	rs_lock(&c->lock); /* somebody may be about to find that it is gone */
	memset(&c->st, 0, sizeof(*c) - offsetof(struct rs_conn, st));
	c->fd = fd;
	c->server = server;
	c->reason = RS_REASON_STARTING;
	c->spin = (struct rs_spin){ 0 };
	init_state(c);
	c->born = rs_now_ms();
	c->row = rs_row_new(fd, server);
	__atomic_store_n(&c->refs, 1, __ATOMIC_RELEASE);
	rs_unlock(&c->lock);
	return c;
}

void rs_conns_forget(void)
{
	pool_lock.word = 0;
	/* A thread that the child does not have may have been about to find that one of these is gone. */
	pool = NULL;
	rs_states_forget();
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
	if (c->hashed)
		rs_accepted_drop(c);
	rs_row_free(c->row);
	c->row = NULL;
	rs_owner_ended(c, false);
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
		rs_slot_wake(c->st->ch.link, &c->st->ch.mine->rx_wait);
		rs_slot_wake(c->st->ch.link, &c->st->ch.mine->tx_wait);
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

void rs_conn_show(struct rs_conn *c)
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

void rs_conn_speak(struct rs_conn *c, bool kernel)
{
	for (struct rs_watch *w = c->watches; w; w = w->next)
		w->kernel(w, c, kernel);
}

int rs_conn_manage(struct rs_conn *c)
{
	int r;

	if (c->managed)
		return 0;
	r = rs_control_watch_conn(c->fd, c);
	if (r != 0)
		return r;
	c->managed = true;
	c->watched_tcp = true;
	rs_conn_speak(c, false);
	return 0;
}

void rs_conn_unwatch_tcp(struct rs_conn *c)
{
	if (!c->watched_tcp)
		return;
	c->watched_tcp = false;
	rs_control_unwatch(c->fd);
}

/*
 * Up to which byte of the stream TCP must bring it: to the end that RESUME has told; or, when the peer
 * gave up an entry that had no MARK yet, to that of what it had put into the ring by then.
 */
uint64_t rs_conn_owed_by_tcp(const struct rs_conn *c)
{
	uint64_t in_ring;

	if (!c->bound)
		return c->st->sm.rx_owed;
	in_ring = c->st->ch.remote ? 0 : rs_chan_rx_told(&c->st->ch);
	return in_ring > c->st->sm.rx_owed ? in_ring : c->st->sm.rx_owed;
}

void rs_conn_become_plain(struct rs_conn *c)
{
	uint64_t end;

	if (c->plain)
		return;
	rs_conn_unwatch_tcp(c);
	/* An end before that would be a cut (rs_conn_recv() looks). */
	end = rs_conn_owed_by_tcp(c);
	if (end > c->st->sm.rx_off && !c->st->sm.rx_eof)
		__atomic_store_n(&c->owed, c->st->krx + (end - c->st->sm.rx_off), __ATOMIC_RELAXED);
	if (c->rd_shut && !c->closed)
		rs_sys2(SYS_shutdown, c->fd, SHUT_RD);
	if (c->row) {
		/* From here on the kernel counts: remember where its counters stand. */
		c->row->ktx_base = c->st->ktx;
		c->row->krx_base = c->st->krx;
	}
	__atomic_store_n(&c->plain, true, __ATOMIC_SEQ_CST);
	c->window_end = 0;
	if (c->managed) {
		c->managed = false;
		rs_conn_speak(c, true);
	}
	rs_owner_ended(c, false);
	if (c->server)
		rs_accepted_refused(c);
	rs_conn_show(c);
	rs_log(RS_LOG_INFO, "fd %d stays on tcp: %s", c->fd, rs_reason_word(c->reason));
	rs_conn_ring(c);
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

void rs_conn_untell(struct rs_conn *c, uint32_t bits)
{
	for (struct rs_watch *w = c->watches; w; w = w->next)
		__atomic_fetch_and(&w->told, ~bits, __ATOMIC_SEQ_CST);
}

void rs_conn_want(struct rs_conn *c, uint32_t bell, bool room)
{
	if (!c->bound)
		return;
	__atomic_fetch_or(room ? &c->st->ch.mine->tx_mask : &c->st->ch.mine->rx_mask, 1u << bell,
			  __ATOMIC_SEQ_CST);
}

void rs_conn_set_bell(struct rs_conn *c, uint32_t bell, uint32_t events)
{
	if (rs_lock_mine(&c->lock))
		return; /* poll() in a handler that interrupted our own call */
	rs_lock(&c->lock);
	__atomic_fetch_or(&c->bells, 1u << bell, __ATOMIC_SEQ_CST);
	rs_conn_want(c, bell, false);
	if (events & (POLLOUT | POLLWRNORM | POLLWRBAND))
		rs_conn_want(c, bell, true);
	rs_conn_unlock(c);
}

void rs_conn_clear_bell(struct rs_conn *c, uint32_t bell)
{
	if (rs_lock_mine(&c->lock))
		return;
	rs_lock(&c->lock);
	__atomic_fetch_and(&c->bells, ~(1u << bell), __ATOMIC_SEQ_CST);
	if (c->bound) {
		__atomic_fetch_and(&c->st->ch.mine->rx_mask, ~(1u << bell), __ATOMIC_SEQ_CST);
		__atomic_fetch_and(&c->st->ch.mine->tx_mask, ~(1u << bell), __ATOMIC_SEQ_CST);
	}
	rs_conn_unlock(c);
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
	c->st->ch.tx_limit = (uint32_t)snd;
	/* Half of it is for the kernel's own overhead (tcp_adv_win_scale). */
	__atomic_store_n(&c->st->ch.mine->rx_limit, (uint32_t)rcv / 2, __ATOMIC_RELAXED);
}
