/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/owner.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include "conn_mgr/conn_edge.h"
#include "conn_mgr/control.h"
#include "conn_mgr/link.h"
#include "conn_mgr/rest.h"
#include "rsock/log.h"
#include "rsock/sys.h"

#define CHILDREN 256u /* that live and have connections of ours */
#define ANCESTORS 16u
#define ASK_MS 20 /* an owner that does not answer may have died */
#define CLAIM_MS 10000
#define YOUNG_MS 200
#define MOURN_MS 100 /* who kills a process often kills its children too */

/*
 * A fork of ours. The child, and whoever it forks, has the pipe's other end, and loses it when it ends
 * or becomes another program.
 */
struct child {
	int pipe;
	uint32_t fork;
};

/* A process whose connections came to us by fork. */
struct rs_owner {
	int ask; /* eventfd: its control thread looks for who has asked */
	int pid; /* pidfd */
	int pipe; /* our end of the one that tells it of us: its own is gone when it has become another program */
};

static struct rs_lock lock; /* `child` */
static struct child child[CHILDREN];
static uint32_t children;
static int ask = -1, pid = -1; /* our own */
static int pipe_end = -1; /* the child's, around the fork */
static struct rs_owner owner[ANCESTORS];
static uint32_t owners;
static uint32_t yielding;
static uint32_t foreign; /* connections that need the rings that came with a fork */
bool rs_owner_unwatched;
static bool watched; /* the owners, by the control thread */
static uint64_t died_due; /* ms: one has died, and rs_owner_died() is to be called; 0: none */
void (*rs_owner_died)(void);
static struct rs_shm_link nowhere; /* of a channel that nobody listens at */

/* ---- around a fork ---- */

/* Under the lock. False: no memory. */
static bool copy_state(struct rs_conn *c, const struct rs_state *of)
{
	if (!c->mem.own && !rs_state_take(&c->mem))
		return false;
	c->st = c->mem.own;
	*c->st = *of;
	return true;
}

static bool has_ended(int pipe)
{
	struct pollfd p = { .fd = pipe };
	const struct timespec now = { 0 };

	return rs_sys5(SYS_ppoll, &p, 1, &now, NULL, 8) == 1 && p.revents & (POLLHUP | POLLERR);
}

/* Under the lock. Many connections may ask at the same time, at exit for example. */
static void forget_ended(void)
{
	static uint64_t looked;
	uint64_t now = rs_now_ms();

	if (now == looked)
		return;
	looked = now;
	for (uint32_t i = 0; i < children;) {
		if (!has_ended(child[i].pipe)) {
			i++;
			continue;
		}
		rs_fd_close(child[i].pipe);
		child[i] = child[--children];
	}
}

static void answer(struct rs_conn *c)
{
	rs_conn_leave(c, RS_REASON_FORKED, true, 0);
	rs_lock(&c->lock);
	if (!c->ended && !c->given && rs_tx_is_raw(&c->st->sm) && rs_rx_is_stuck(&c->st->sm) &&
	    !rs_rest_declare(c)) {
		__atomic_store_n(&c->mem.shared->stuck_at, c->mem.ends + 1, __ATOMIC_SEQ_CST);
		rs_futex_wake(&c->mem.shared->ends, INT_MAX, false);
	}
	rs_conn_unlock(c);
}

static void asked(struct rs_source *s, uint32_t events)
{
	(void)s;
	(void)events;
	rs_eventfd_clear(__atomic_load_n(&ask, __ATOMIC_RELAXED));
	rs_control_take_added();
	for (struct rs_conn *c = rs_control_conns; c; c = c->next)
		if (__atomic_load_n(&c->mem.shared->asked, __ATOMIC_SEQ_CST) == c->mem.ends + 1)
			answer(c);
}

static bool make_ask(void)
{
	static struct rs_source source = { asked };
	long fd = ask;

	if (fd < 0) {
		fd = rs_sys2(SYS_eventfd2, 0, EFD_NONBLOCK | EFD_CLOEXEC);
		if (fd < 0)
			return false;
		__atomic_store_n(&ask, rs_fd_hide((int)fd), __ATOMIC_RELAXED);
	}
	if (pid < 0) {
		fd = rs_sys2(SYS_pidfd_open, rs_sys0(SYS_getpid), 0);
		if (fd < 0)
			return false;
		pid = rs_fd_hide((int)fd);
	}
	return rs_control_watch(ask, EPOLLIN, &source) == 0;
}

bool rs_owner_prepare(uint32_t fork)
{
	int ends[2];
	bool room;

	if (rs_lock_mine(&lock) || pipe_end >= 0)
		return false; /* a handler that interrupted us */
	rs_lock(&lock);
	forget_ended();
	room = children < CHILDREN && owners < ANCESTORS;
	rs_unlock(&lock);
	if (!room || !rs_fd_room() || !make_ask() ||
	    rs_sys2(SYS_pipe2, ends, O_CLOEXEC | O_NONBLOCK) != 0)
		return false;
	ends[0] = rs_fd_hide(ends[0]);
	pipe_end = rs_fd_hide(ends[1]);
	rs_lock(&lock);
	child[children++] = (struct child){ ends[0], fork };
	rs_unlock(&lock);
	return true;
}

void rs_owner_ready(void)
{
	/* For who may have to leave in our place: the rings of all that were kept are there by now. */
	rs_links_inherit(false);
}

/*
 * Who looks at the first bytes of a new connection and forks means the rest for the child, which may
 * become another program: that can only have it from TCP, and not any more when the peer has ended.
 */
static bool is_for_child(const struct rs_conn *c)
{
	return rs_now_ms() < c->born + YOUNG_MS && c->st->sm.rx == RS_RX_FAST &&
	       rs_chan_rx_told(&c->st->ch) > c->st->sm.rx_off;
}

bool rs_owner_keep(struct rs_conn *c, uint32_t fork, bool always)
{
	bool keep;

	if (c->foreign) {
		c->kept = fork;
		return true;
	}
	if (rs_lock_mine(&c->lock))
		return false; /* a handler that interrupted our own call */
	rs_lock(&c->lock);
	keep = pipe_end >= 0 && c->mem.seen && c->bound && !c->plain && !c->reset &&
	       (always || !is_for_child(c));
	if (keep) {
		c->kept = fork;
		c->kept_ends = c->mem.ends;
		if (!c->kept_first)
			c->kept_first = fork;
	}
	rs_unlock(&c->lock);
	return keep;
}

void rs_owner_forked(bool is_child, bool prepared)
{
	if (!is_child) {
		if (pipe_end >= 0)
			rs_fd_close(pipe_end);
		pipe_end = -1;
		if (prepared) {
			rs_links_disinherit();
		}
		return;
	}
	lock.word = 0;
	for (uint32_t i = 0; i < children; i++)
		rs_fd_close(child[i].pipe);
	children = 0;
	yielding = 0;
	foreign = 0;
	rs_owner_unwatched = false;
	watched = false;
	died_due = 0;
	if (prepared) {
		owner[owners++] = (struct rs_owner){ ask, pid, pipe_end };
	} else {
		if (pipe_end >= 0)
			rs_fd_close(pipe_end);
		if (ask >= 0)
			rs_fd_close(ask);
		if (pid >= 0)
			rs_fd_close(pid);
	}
	pipe_end = -1;
	ask = -1;
	pid = -1;
}

void rs_owner_disown(struct rs_conn *c)
{
	if (c->rest) {
		const struct rs_state *st = c->mem.seen ? c->mem.seen : c->st;

		c->kept_first = 0;
		foreign++; /* its ring must stay, whatever becomes of the others */
		rs_conn_forget_state(c, false);
		if (!copy_state(c, st)) {
			c->rest = false;
			c->err = ECONNRESET;
		}
		return;
	}
	if (c->disowned == c->kept)
		return; /* another descriptor of it */
	c->disowned = c->kept;
	if (!c->foreign) {
		c->foreign = true;
		c->theirs = c->mem.seen;
		c->others = c->mem.shared;
		c->owner = &owner[owners - 1];
	}
	c->kept_first = 0;
	foreign++;
	rs_owner_unwatched = true;
	rs_conn_forget_state(c, false);
}

/* ---- in the owner ---- */

bool rs_owner_shared(struct rs_conn *c)
{
	bool shared = false;

	if (c->others && !c->foreign && !c->rest)
		return true; /* a dead owner's: others that it had forked may have it */
	if (!c->kept_first)
		return false;
	if (rs_lock_mine(&lock))
		return true; /* a handler: perhaps */
	rs_lock(&lock);
	forget_ended();
	for (uint32_t i = 0; i < children; i++)
		shared |= child[i].fork >= c->kept_first;
	rs_unlock(&lock);
	if (!shared)
		c->kept_first = 0;
	return shared;
}

bool rs_owner_give(struct rs_conn *c)
{
	c->given = rs_rest_declare(c);
	return c->given;
}

bool rs_owner_leave_rest(struct rs_conn *c)
{
	bool declared;

	if (rs_lock_mine(&c->lock))
		return false;
	rs_lock(&c->lock);
	declared = rs_rest_declare(c);
	rs_conn_unlock(c);
	return declared;
}

void rs_owner_bequeath(struct rs_conn *c, uint32_t lingerer)
{
	if (rs_lock_mine(&c->lock))
		return; /* exit() in a handler that interrupted our own call: as if killed */
	rs_lock(&c->lock);
	if (c->bound && c->kept_first && !c->ended && !c->given) {
		if (rs_rest_declare(c))
			;
		else if (lingerer && !rs_tx_is_raw(&c->st->sm))
			__atomic_store_n(&c->mem.shared->lingers, lingerer, __ATOMIC_SEQ_CST);
		else
			__atomic_store_n(&c->mem.shared->given_at, c->mem.ends + 1,
					 __ATOMIC_SEQ_CST);
		rs_futex_wake(&c->mem.shared->ends, INT_MAX, false);
	}
	rs_unlock(&c->lock);
}

bool rs_owner_given_up(struct rs_conn *c)
{
	return c->given && !rs_owner_shared(c);
}

void rs_owner_count_yielding(int change)
{
	__atomic_fetch_add(&yielding, (uint32_t)change, __ATOMIC_SEQ_CST);
	rs_futex_wake(&yielding, INT_MAX, true);
}

uint32_t rs_owner_yielding(uint32_t wait_ms)
{
	uint64_t end = rs_now_ms() + wait_ms;

	for (;;) {
		uint32_t n = __atomic_load_n(&yielding, __ATOMIC_SEQ_CST);
		const struct timespec ts = { 0, 5000000 };

		if (!n || rs_now_ms() >= end)
			return n;
		rs_futex_wait(&yielding, n, &ts, true);
	}
}

static void tell(struct rs_shared *sh, uint32_t ends, uint64_t owed, bool reset)
{
	if (reset)
		__atomic_store_n(&sh->reset_at, ends, __ATOMIC_SEQ_CST);
	__atomic_store_n(&sh->owed, owed, __ATOMIC_SEQ_CST);
	__atomic_store_n(&sh->ends, ends, __ATOMIC_SEQ_CST);
	if (__atomic_exchange_n(&sh->asked, 0, __ATOMIC_SEQ_CST))
		rs_futex_wake(&sh->ends, INT_MAX, false);
}

void rs_owner_ended(struct rs_conn *c, bool reset)
{
	if (c->ended)
		return;
	c->ended = true;
	if (c->rests)
		rs_rest_end(c);
	if (c->mem.shared) {
		c->mem.ends += 2;
		tell(c->mem.shared, c->mem.ends, c->owed, reset);
	}
	/* Which was a dead process's. */
	if (c->others)
		tell(c->others, c->others->ends + 2, c->owed, reset);
	c->others = NULL;
}

/* ---- in others ---- */

static bool is_dead(const struct rs_owner *o)
{
	struct pollfd p[] = { { .fd = o->pid, .events = POLLIN }, { .fd = o->pipe } };
	const struct timespec now = { 0 };

	return rs_sys5(SYS_ppoll, p, 2, &now, NULL, 8) > 0 &&
	       (p[0].revents & POLLIN || p[1].revents & POLLERR);
}

bool rs_owner_dead(const struct rs_conn *c)
{
	bool dead = false;

	if (c)
		return c->foreign && is_dead(c->owner);
	for (uint32_t i = 0; i < owners; i++)
		dead |= is_dead(&owner[i]);
	return dead;
}

/* Others have the same files: to close ours would not end it. */
static void unwatch(const struct rs_owner *o)
{
	rs_control_unwatch(o->pid);
	rs_control_unwatch(o->pipe);
}

static void owner_event(struct rs_source *s, uint32_t events)
{
	(void)s;
	(void)events;
	for (uint32_t i = 0; i < owners; i++)
		if (is_dead(&owner[i]))
			unwatch(&owner[i]);
	died_due = rs_now_ms() + MOURN_MS;
	rs_control_due(died_due);
}

void rs_owner_timer(uint64_t now)
{
	if (!died_due)
		return;
	if (now < died_due) {
		rs_control_due(died_due);
		return;
	}
	died_due = 0;
	rs_owner_died();
}

void rs_owner_watch(void)
{
	static struct rs_source source = { owner_event };

	if (rs_control_locked() ||
	    !__atomic_exchange_n(&rs_owner_unwatched, false, __ATOMIC_SEQ_CST))
		return;
	__atomic_store_n(&watched, true, __ATOMIC_SEQ_CST);
	if (rs_control_start() != 0) {
		__atomic_store_n(&watched, false, __ATOMIC_SEQ_CST);
		return;
	}
	for (uint32_t i = 0; i < owners; i++) {
		rs_control_watch(owner[i].pid, EPOLLIN, &source);
		rs_control_watch(owner[i].pipe, 0, &source);
	}
}

bool rs_owner_watches(void)
{
	return __atomic_load_n(&watched, __ATOMIC_SEQ_CST);
}

static void forget_owners(void)
{
	rs_links_unmap_inherited();
	rs_states_unmap_inherited();
	__atomic_store_n(&rs_owner_unwatched, false, __ATOMIC_RELAXED);
	while (owners) {
		owners--;
		if (watched)
			unwatch(&owner[owners]);
		rs_fd_close(owner[owners].ask);
		rs_fd_close(owner[owners].pid);
		rs_fd_close(owner[owners].pipe);
	}
	__atomic_store_n(&watched, false, __ATOMIC_SEQ_CST);
}

void rs_owner_disowned(bool inside)
{
	rs_states_seal(inside);
	if (!foreign)
		forget_owners();
}

/* Under the lock. With the last of them goes what of other people's bytes came with the fork. */
static void not_foreign(struct rs_conn *c)
{
	c->theirs = NULL;
	c->others = NULL;
	c->ended = true;
	__atomic_store_n(&c->foreign, false, __ATOMIC_SEQ_CST);
	if (__atomic_sub_fetch(&foreign, 1, __ATOMIC_SEQ_CST) == 0)
		forget_owners();
}

void rs_owner_let_go(struct rs_conn *c)
{
	__atomic_store_n(&c->plain, true, __ATOMIC_SEQ_CST);
	not_foreign(c);
}

/* Under the lock: the owner has ended it. */
static void accept_end(struct rs_conn *c)
{
	bool reset = __atomic_load_n(&c->others->reset_at, __ATOMIC_SEQ_CST) == c->kept_ends + 2;

	c->reason = RS_REASON_FORKED;
	if (reset) {
		rs_conn_kernel_error(
			c); /* what the owner's abort has left there would be a second one */
		c->reset = true;
		c->err = ECONNRESET;
		rs_conn_forget_state(c, true);
	} else {
		uint64_t owed = __atomic_load_n(&c->others->owed, __ATOMIC_SEQ_CST);

		/* Else it is told of another connection by now, and this one was at its end. */
		if (__atomic_load_n(&c->others->ends, __ATOMIC_SEQ_CST) == c->kept_ends + 2)
			c->owed = owed;
		__atomic_store_n(&c->plain, true, __ATOMIC_SEQ_CST);
	}
	not_foreign(c);
}

/* Under the lock: what is not in the kernel cannot be had here. */
static void give_up(struct rs_conn *c)
{
	c->reset = true;
	c->err = ECONNRESET;
	c->reason = RS_REASON_FORKED;
	rs_conn_forget_state(c, true);
	not_foreign(c);
}

/* Under the lock: the kernel's, but for the ring, which any process may read. Its memory stays. */
static void share_rest(struct rs_conn *c)
{
	if (!copy_state(c, c->theirs)) {
		give_up(c);
		return;
	}
	if (!rs_rest_declared(c->others, c->kept_ends))
		return; /* the copy may be of what came after it */
	c->rest = true;
	c->theirs = NULL;
	c->ended = true;
	c->reason = RS_REASON_FORKED;
	__atomic_store_n(&c->plain, true, __ATOMIC_SEQ_CST);
	__atomic_store_n(&c->foreign, false, __ATOMIC_SEQ_CST);
}

/* Under the lock: nobody will ever say what of it is in the kernel. */
static void give_up_all(struct rs_conn *c)
{
	const struct sockaddr none = { .sa_family = AF_UNSPEC };

	rs_sys3(SYS_connect, c->fd, &none, sizeof(none)); /* RST */
	tell(c->others, c->kept_ends + 2, c->owed, true);
	give_up(c);
}

/*
 * Under the lock: carries on in the place of the owner, which has done with it, or was killed, perhaps in the
 * midst of a call. What does not fit together then is found by who reads it, as a violation of the protocol.
 */
static bool take_over(struct rs_conn *c)
{
	struct rs_state *st;

	if (c->theirs->sm.dead || c->theirs->ch.remote)
		return false; /* over RDMA: what it had not sent yet is lost, and what it had not read */
	if (!copy_state(c, c->theirs))
		return false;
	st = c->st;
	for (uint32_t b = 0; b < RS_BELLS; b++)
		nowhere.bell_fd[b] = -1;
	st->ch.link = &nowhere;
	c->theirs = NULL;
	c->link = NULL;
	c->ended = false;
	c->kept_first = 0;
	c->reason = RS_REASON_FORKED;
	c->bound = true;
	__atomic_store_n(&c->foreign, false, __ATOMIC_SEQ_CST);
	if (rs_control_start() != 0 || rs_conn_manage(c) != 0) {
		rs_stream_violation(&st->sm);
		rs_conn_settle(c);
		return true;
	}
	c->left = true;
	st->sm.refuse = true;
	st->sm.handover = true;
	rs_conn_sync(c);
	rs_conn_take_control(c);
	rs_conn_check_gone(c);
	rs_stream_link_dead(&st->sm, RS_REASON_FORKED);
	rs_stream_leave(&st->sm, RS_REASON_FORKED, true);
	rs_conn_settle(c);
	rs_control_add(c, 0);
	return true;
}

/* Under the lock: true: this process is the one to do it. */
static bool is_ours(struct rs_conn *c)
{
	uint32_t none = 0, me = (uint32_t)rs_sys0(SYS_getpid);

	return __atomic_compare_exchange_n(&c->others->taker, &none, me, false, __ATOMIC_SEQ_CST,
					   __ATOMIC_SEQ_CST) ||
	       none == me;
}

/* Under the lock: nobody leads it back to TCP. */
static bool is_left(const struct rs_conn *c)
{
	uint32_t lingers = __atomic_load_n(&c->others->lingers, __ATOMIC_SEQ_CST);

	if (__atomic_load_n(&c->others->given_at, __ATOMIC_SEQ_CST) == c->kept_ends + 1)
		return true;
	return is_dead(c->owner) && !(lingers && rs_sys2(SYS_kill, lingers, 0) != -ESRCH);
}

/* Under the lock: one step. True: it is foreign no more. `late`: no more waiting for another process. */
static bool step(struct rs_conn *c, bool blocks, bool late)
{
	uint32_t ends = __atomic_load_n(&c->others->ends, __ATOMIC_SEQ_CST);

	if (ends != c->kept_ends) {
		accept_end(c);
	} else if (rs_rest_declared(c->others, ends)) {
		share_rest(c);
	} else if (is_left(c)) {
		bool ours = is_ours(c);

		if ((ours && !take_over(c)) || (!ours && late))
			give_up_all(c);
	} else if ((late && !blocks) ||
		   __atomic_load_n(&c->others->stuck_at, __ATOMIC_SEQ_CST) == ends + 1) {
		give_up(c);
	} else {
		__atomic_store_n(&c->others->asked, ends + 1, __ATOMIC_SEQ_CST);
		rs_eventfd_ring(c->owner->ask);
	}
	return !c->foreign;
}

void rs_owner_claim(struct rs_conn *c)
{
	rs_owner_adopt(c);
	/* Ours to lead back to TCP, now. */
	if (c->bound && c->left)
		rs_conn_leave(c, RS_REASON_FORKED, true, CLAIM_MS);
}

void rs_owner_adopt(struct rs_conn *c)
{
	uint64_t end = rs_now_ms() + CLAIM_MS;
	const struct timespec ts = { 0, ASK_MS * 1000000 };
	struct rs_shared *others;
	bool blocks, over;
	uint32_t ends;
	long fl;

	if (rs_lock_mine(&c->lock))
		return; /* a handler that interrupted our own call */
	fl = rs_sys2(SYS_fcntl, c->fd, F_GETFL);
	blocks = fl >= 0 && !(fl & O_NONBLOCK);
	for (;;) {
		rs_lock(&c->lock);
		over = !c->foreign || step(c, blocks, rs_now_ms() >= end);
		others = c->others;
		ends = c->kept_ends;
		rs_unlock(&c->lock);
		if (over)
			break;
		rs_futex_wait(&others->ends, ends, &ts, false);
	}
}

void rs_owner_inherit(struct rs_conn *c)
{
	if (rs_lock_mine(&c->lock))
		return; /* a handler that interrupted our own call */
	rs_lock(&c->lock);
	if (c->foreign)
		step(c, true, false);
	rs_unlock(&c->lock);
}
