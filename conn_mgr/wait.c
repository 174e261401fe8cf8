/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/wait.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "conn_mgr/conn.h"
#include "conn_mgr/conn_edge.h"
#include "conn_mgr/control.h"
#include "conn_mgr/real.h"
#include "conn_mgr/signals.h"
#include "rsock/config.h"
#include "rsock/sys.h"

/* The kernel's part of a software device may need this very CPU. */
#define YIELD_EVERY 16u

void rs_waiter_init(struct rs_waiter *w, struct rs_conn *c, int fd, int flags, int timeo)
{
	w->c = c;
	w->fd = fd;
	w->flags = flags;
	w->timeo = timeo;
	w->blocks = flags & MSG_DONTWAIT ? 0 : -1;
	w->timed = false;
	w->partial = false;
	w->waits = false;
	w->in_tcp = false;
	w->busy = false;
	w->sleeps = false;
	w->rests = false;
	w->leads = false;
	w->slept = false;
	w->slot = -1;
	w->end = 0;
	w->news = __atomic_load_n(&c->news, __ATOMIC_SEQ_CST);
}

/* Stacks grow down: a call that was interrupted, and is not over, has its frame above ours, intact. */
static bool interrupted(const struct rs_waiting *k, const void *frame)
{
	return k->frame > (uintptr_t)frame &&
	       __atomic_load_n((const uint64_t *)k->frame, __ATOMIC_RELAXED) == k->mark;
}

void rs_waiters_stale(struct rs_conn *c, const void *frame)
{
	bool any = false;

	for (size_t i = 0; c->waiting && i < RS_WAITERS; i++) {
		struct rs_waiting *k = &c->waiter[i];

		if (k->tid != rs_tid() || interrupted(k, frame))
			continue;
		c->in_tcp -= k->in_tcp;
		if (k->busy)
			c->busy = 0;
		c->waiting--;
		*k = (struct rs_waiting){ 0 };
		any = true;
	}
	if (any)
		rs_conn_ring(c); /* others may have stood back for it */
}

/* The record of this call, unless it was found stale, or never had one. */
static struct rs_waiting *record(const struct rs_waiter *w)
{
	struct rs_waiting *k = &w->c->waiter[w->slot < 0 ? 0 : w->slot];

	return w->slot >= 0 && k->tid == rs_tid() && k->frame == (uintptr_t)w ? k : NULL;
}

static bool counted(const struct rs_waiter *w)
{
	return w->waits && (w->slot < 0 || record(w));
}

static void enrol(struct rs_waiter *w)
{
	struct rs_conn *c = w->c;
	int8_t slot = 0;

	if (c->waiting)
		rs_waiters_stale(c, w);
	while (slot < RS_WAITERS && c->waiter[slot].tid)
		slot++;
	w->mark = rs_ticks() ^ (uintptr_t)c;
	w->slot = slot < RS_WAITERS ? slot : -1;
	if (w->slot >= 0)
		c->waiter[slot] = (struct rs_waiting){ .tid = rs_tid(),
						       .frame = (uintptr_t)w,
						       .mark = w->mark };
	c->waiting++;
	w->waits = true;
}

void rs_waiter_enter(struct rs_waiter *w, bool in_tcp)
{
	struct rs_conn *c = w->c;

	if (!w->waits)
		enrol(w);
	if (in_tcp && counted(w)) {
		struct rs_waiting *k = record(w);

		c->in_tcp++;
		w->in_tcp = true;
		if (k)
			k->in_tcp = true;
	}
	w->fd = c->fd; /* good as long as we are counted */
}

void rs_waiter_awake(struct rs_waiter *w)
{
	struct rs_waiting *k = record(w);

	if (w->in_tcp && counted(w))
		w->c->in_tcp--;
	w->in_tcp = false;
	if (k)
		k->in_tcp = false;
}

void rs_waiter_busy(struct rs_waiter *w, bool busy)
{
	struct rs_waiting *k = record(w);

	if (busy || (w->busy && counted(w)))
		w->c->busy = busy;
	w->busy = busy;
	if (k)
		k->busy = busy;
}

void rs_waiter_leave(struct rs_waiter *w)
{
	struct rs_conn *c = w->c;
	struct rs_waiting *k;

	if (w->in_tcp)
		rs_waiter_awake(w);
	if (w->busy)
		rs_waiter_busy(w, false);
	k = record(w);
	if (w->waits && (k || w->slot < 0))
		c->waiting--;
	if (k)
		*k = (struct rs_waiting){ 0 };
	w->waits = false;
}

void rs_waiter_end(struct rs_waiter *w)
{
	struct rs_conn *c = w->c;

	w->mark = 0;

	if (w->waits | w->in_tcp | w->busy) {
		bool stood_in = w->in_tcp || w->busy;

		rs_lock(&c->lock);
		rs_waiter_leave(w);
		/* What woke us may have been MARK, which nobody else has taken for our sake. */
		if (stood_in && c->managed && !c->plain)
			rs_conn_take_control(c);
		if (stood_in)
			rs_conn_ring(c);
		rs_conn_unlock(c);
	}
	if (__builtin_expect(__atomic_load_n(&c->orphan, __ATOMIC_RELAXED), 0))
		rs_conn_end_orphan(c);
}

/* The thread is cancelled in its sleep: the caller will not come back to do any of this. */
static void cancelled(void *arg)
{
	struct rs_waiter *w = arg;

	if (w->rests && w->leads)
		rs_remote_led(w->c->st->ch.remote, true, true);
	else if (w->rests)
		rs_remote_awake(w->c->st->ch.remote);
	if (w->sleeps)
		__atomic_fetch_sub(&w->c->sleepers, 1, __ATOMIC_SEQ_CST);
	rs_waiter_end(w);
	rs_conn_put(w->c);
}

static uint64_t timeout_of(int fd, int name)
{
	struct timeval tv = { 0, 0 };
	socklen_t len = sizeof(tv);

	if (rs_sys5(SYS_getsockopt, fd, SOL_SOCKET, name, &tv, &len) != 0)
		return 0;
	return (uint64_t)tv.tv_sec * 1000000000u + (uint64_t)tv.tv_usec * 1000u;
}

void rs_conn_modes_changed(struct rs_conn *c)
{
	__atomic_fetch_add(&c->modes, 1, __ATOMIC_SEQ_CST);
}

/* The socket's time-out (ns) in the direction of this wait, asked for once for each `modes`. */
static uint64_t time_out(struct rs_waiter *w, uint32_t modes)
{
	struct rs_conn *c = w->c;
	bool rcv = w->timeo == SO_RCVTIMEO;
	uint64_t *cache = rcv ? &c->rcv_timeo : &c->snd_timeo;
	uint32_t *known = rcv ? &c->rcv_timeo_known : &c->snd_timeo_known;
	uint64_t timeo;

	if (__atomic_load_n(known, __ATOMIC_ACQUIRE) == modes + 1)
		return __atomic_load_n(cache, __ATOMIC_RELAXED);
	timeo = timeout_of(w->fd, w->timeo);
	__atomic_store_n(cache, timeo, __ATOMIC_RELAXED);
	__atomic_store_n(known, modes + 1, __ATOMIC_RELEASE);
	return timeo;
}

bool rs_waiter_ask(struct rs_waiter *w)
{
	struct rs_conn *c = w->c;
	uint32_t modes = __atomic_load_n(&c->modes, __ATOMIC_SEQ_CST);
	uint64_t timeo;

	if (w->timeo == SO_RCVTIMEO &&
	    __atomic_load_n(&c->blocks_for_ever, __ATOMIC_ACQUIRE) == modes + 1) {
		w->blocks = true;
		return true;
	}
	if (__atomic_load_n(&c->modes_known, __ATOMIC_ACQUIRE) != modes + 1) {
		long fl = rs_sys2(SYS_fcntl, w->fd, F_GETFL);

		__atomic_store_n(&c->nonblock, fl < 0 || fl & O_NONBLOCK, __ATOMIC_RELAXED);
		/* What has changed since `modes` was read makes this stale. */
		__atomic_store_n(&c->modes_known, modes + 1, __ATOMIC_RELEASE);
	}
	w->blocks = !__atomic_load_n(&c->nonblock, __ATOMIC_RELAXED);
	timeo = w->blocks ? time_out(w, modes) : 0;
	if (timeo) {
		w->timed = true;
		w->end = rs_now_ns() + timeo;
	}
	if (w->blocks && !timeo && w->timeo == SO_RCVTIMEO)
		__atomic_store_n(&c->blocks_for_ever, modes + 1, __ATOMIC_RELEASE);
	return w->blocks;
}

bool rs_peer_needs_cpu(const struct rs_conn *c)
{
	return __atomic_load_n(&c->bound, __ATOMIC_RELAXED) &&
	       __atomic_load_n(&c->st->ch.mine->tx_cpu, __ATOMIC_RELAXED) ==
		       (uint32_t)sched_getcpu() + 1;
}

bool rs_may_spin(const struct rs_conn *c)
{
	return rs_config.spin_us && __atomic_load_n(&c->bound, __ATOMIC_RELAXED) &&
	       !rs_peer_needs_cpu(c);
}

/* The three ways to sleep, as cancellation points. */

static long futex_wait(struct rs_waiter *w, uint32_t *word, uint32_t val,
		       const struct timespec *timeout, bool private)
{
	long r;
	int old;

	pthread_cleanup_push(cancelled, w);
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &old);
	r = rs_futex_wait(word, val, timeout, private);
	pthread_setcanceltype(old, NULL);
	pthread_cleanup_pop(0);
	return r;
}

static int kernel_poll(struct rs_waiter *w, short events, int ms)
{
	struct pollfd p = { .fd = w->fd, .events = events };
	int r;

	pthread_cleanup_push(cancelled, w);
	r = rs_real.poll(&p, 1, ms);
	pthread_cleanup_pop(0);
	return r < 0 ? -errno : r;
}

static int kernel_peek(struct rs_waiter *w)
{
	char byte;
	ssize_t r;

	pthread_cleanup_push(cancelled, w);
	r = rs_real.recv(w->fd, &byte, 1, MSG_PEEK);
	pthread_cleanup_pop(0);
	return r < 0 ? -errno : 0;
}

static ssize_t kernel_send(struct rs_waiter *w, const struct msghdr *mh)
{
	ssize_t r;

	pthread_cleanup_push(cancelled, w);
	r = rs_real.sendmsg(w->fd, mh, (w->flags & MSG_MORE) | MSG_NOSIGNAL);
	pthread_cleanup_pop(0);
	return r < 0 ? -errno : r;
}

/* Sleeps on a futex as a cancellation point. 0, -EAGAIN (time-out), -EINTR. */
static int sleep_on(struct rs_waiter *w, uint32_t *word, uint32_t val, bool private)
{
	struct timespec ts, *timeout = NULL;
	long r;

	if (w->timed) {
		uint64_t now = rs_now_ns(), left;

		if (now >= w->end)
			return -EAGAIN;
		left = w->end - now;
		ts.tv_sec = (time_t)(left / 1000000000u);
		ts.tv_nsec = (long)(left % 1000000000u);
		timeout = &ts;
	}
	if (!timeout && w->partial) {
		/* A futex with a time-out is never restarted. */
		ts = (struct timespec){ .tv_sec = INT32_MAX };
		timeout = &ts;
	}
	r = futex_wait(w, word, val, timeout, private);
	if (r == -EINTR)
		return -EINTR;
	if (r == -ETIMEDOUT)
		return -EAGAIN;
	return 0;
}

static int wait_news(struct rs_waiter *w)
{
	struct rs_conn *c = w->c;
	int r;

	__atomic_fetch_add(&c->sleepers, 1, __ATOMIC_SEQ_CST);
	w->sleeps = true;
	r = sleep_on(w, &c->news, w->news, true);
	w->sleeps = false;
	__atomic_fetch_sub(&c->sleepers, 1, __ATOMIC_SEQ_CST);
	return r;
}

static int leader_poll(struct rs_waiter *w, struct pollfd p[2], int ms)
{
	int r;

	pthread_cleanup_push(cancelled, w);
	r = rs_real.poll(p, 2, ms);
	pthread_cleanup_pop(0);
	return r < 0 ? -errno : r;
}

/* As sleep_on(), on the queue pair's own channel. */
static int sleep_leading(struct rs_waiter *w, struct pollfd p[2])
{
	int ms = -1, r;

	if (w->timed) {
		uint64_t now = rs_now_ns();

		if (now >= w->end)
			return -EAGAIN;
		ms = (int)((w->end - now + 999999) / 1000000);
	}
	r = leader_poll(w, p, ms);
	if (r > 0)
		return 0;
	if (r == -EINTR && !w->timed && !w->partial && rs_signals_agree() == RS_SIGNALS_RESTART)
		return 0;
	return r == 0 ? -EAGAIN : r;
}

/* Poll() is never restarted after a handler; nor is a call with a time-out, or with some bytes moved. */
static bool may_lead(const struct rs_waiter *w)
{
	return w->timed || w->partial || rs_signals_agree() != RS_SIGNALS_MIXED;
}

/* A word of the slot says how one sleeps there; others may too. What it is then. */
static uint32_t say(uint32_t *word, uint32_t how)
{
	return __atomic_fetch_or(word, how, __ATOMIC_SEQ_CST) | how;
}

/* As below. A queue pair needs to know who sleeps. */
static int sleep_remote(struct rs_waiter *w, struct rs_remote *remote, uint32_t *word,
			bool (*look)(struct rs_waiter *w))
{
	struct pollfd p[2] = { { .events = POLLIN }, { .events = POLLIN } };
	int saved = errno, r = 0, fds[2];

	if (rs_remote_interrupted(remote))
		return -EINTR; /* a handler: what it waits for can come only when it has returned */
	w->leads = rs_remote_rest(remote, may_lead(w), fds);
	w->rests = true;
	if (w->leads) {
		p[0].fd = fds[0];
		p[1].fd = fds[1];
		say(word, RS_SLEEP_LEADS);
		w->slept = !look(w);
		if (w->slept)
			r = sleep_leading(w, p);
		/* Our own poll need not wake us. */
		__atomic_fetch_and(word, ~(uint32_t)RS_SLEEP_LEADS, __ATOMIC_SEQ_CST);
		rs_remote_led(remote, p[0].revents != 0, p[1].revents != 0);
	} else {
		uint32_t val = say(word, RS_SLEEP_FUTEX);

		w->slept = !look(w);
		if (w->slept)
			r = sleep_on(w, word, val, false);
		rs_remote_awake(remote);
	}
	w->rests = false;
	w->leads = false;
	errno = saved; /* the provider may have changed it */
	return r;
}

/* Sleeps until `word`, one of the slot's, is woken; `look` says whether that is needed. */
static int sleep_in_slot(struct rs_waiter *w, uint32_t *word, bool (*look)(struct rs_waiter *w))
{
	struct rs_remote *remote = w->c->st->ch.remote;
	uint32_t val;

	if (remote)
		return sleep_remote(w, remote, word, look);
	val = say(word, RS_SLEEP_FUTEX);
	return look(w) ? 0 : sleep_on(w, word, val, false);
}

static bool ring_has(struct rs_conn *c)
{
	const struct rs_shm_slot *s = c->st->ch.mine;

	return __atomic_load_n(&s->tail, __ATOMIC_SEQ_CST) != c->st->sm.rx_off ||
	       __atomic_load_n(&s->fin, __ATOMIC_SEQ_CST) != 0;
}

static bool spin_ring(struct rs_waiter *w, uint64_t end)
{
	struct rs_conn *c = w->c;
	struct rs_remote *r = c->st->ch.remote;
	bool found = false;
	uint32_t n = 0;

	if (r)
		rs_remote_spin(r);
	do {
		if (r)
			rs_remote_progress(r);
		for (int i = 0; i < 8 && !found; i++) {
			found = ring_has(c);
			if (!found)
				rs_cpu_relax();
		}
		if (r && ++n % YIELD_EVERY == 0)
			rs_sys0(SYS_sched_yield);
		found |= __atomic_load_n(&c->news, __ATOMIC_SEQ_CST) != w->news;
	} while (!found && rs_ticks() < end);
	if (r)
		rs_remote_unspin(r);
	return found;
}

static bool rx_news(struct rs_waiter *w)
{
	return ring_has(w->c) || __atomic_load_n(&w->c->news, __ATOMIC_SEQ_CST) != w->news;
}

static bool tx_news(struct rs_waiter *w)
{
	return rs_chan_tx_room_now(&w->c->st->ch) ||
	       __atomic_load_n(&w->c->news, __ATOMIC_SEQ_CST) != w->news;
}

static int sleep_in_ring(struct rs_waiter *w)
{
	int r = sleep_in_slot(w, &w->c->st->ch.mine->rx_wait, rx_news);

	__atomic_store_n(&w->c->sleeps, w->slept, __ATOMIC_RELAXED);
	return r;
}

static int wait_ring(struct rs_waiter *w)
{
	struct rs_conn *c = w->c;
	bool remote = c->st->ch.remote != NULL;
	uint64_t start;
	int r;

	if (!rs_config.spin_us)
		return sleep_in_ring(w);
	start = rs_ticks();
	if (rs_may_spin(c) &&
	    spin_ring(w, start + rs_spin_us(&c->spin, remote) * rs_ticks_per_us())) {
		__atomic_store_n(&c->sleeps, false, __ATOMIC_RELAXED);
		rs_spin_waited(&c->spin, remote, 0);
		return 0;
	}
	r = sleep_in_ring(w);
	rs_spin_waited(&c->spin, remote, rs_ticks() - start);
	return r;
}

/* poll() is never restarted: for calls that a signal ends with what they have. */
static int wait_poll(struct rs_waiter *w, short events)
{
	int ms = -1, r;

	if (w->timed) {
		uint64_t now = rs_now_ns();

		if (now >= w->end)
			return -EAGAIN;
		ms = (int)((w->end - now + 999999) / 1000000);
	}
	r = kernel_poll(w, events, ms);
	if (r == 0)
		return -EAGAIN;
	return r < 0 ? r : 0;
}

/* Until the kernel socket has something: its own recv sleeps, and takes nothing. */
static int wait_tcp(struct rs_waiter *w)
{
	int r;

	if (w->partial) {
		r = wait_poll(w, POLLIN);
		return r < 0 ? r : 0;
	}
	return kernel_peek(w);
}

int rs_wait_rx(struct rs_waiter *w, enum rs_wait how)
{
	int saved, r;

	if (!rs_waiter_blocks(w))
		return -EAGAIN;
	if (how == RS_WAIT_RING) {
		r = wait_ring(w);
	} else {
		saved = errno;
		r = how == RS_WAIT_TCP ? wait_tcp(w) : wait_news(w);
		errno = saved;
	}
	w->news = __atomic_load_n(&w->c->news, __ATOMIC_SEQ_CST);
	return r;
}

bool rs_spin_room(struct rs_waiter *w)
{
	struct rs_conn *c = w->c;
	uint64_t head = __atomic_load_n(&c->st->ch.peer->head, __ATOMIC_ACQUIRE);
	uint64_t end = rs_ticks() + rs_config.spin_us * rs_ticks_per_us();

	if (__atomic_load_n(&c->st->ch.mine->tx_cpu, __ATOMIC_RELAXED) ==
	    (uint32_t)sched_getcpu() + 1)
		return false;
	for (uint32_t n = 1; rs_ticks() < end; n++) {
		if (c->st->ch.remote)
			rs_remote_progress(c->st->ch.remote);
		if (c->st->ch.remote && n % YIELD_EVERY == 0)
			rs_sys0(SYS_sched_yield);
		if (__atomic_load_n(&c->st->ch.peer->head, __ATOMIC_ACQUIRE) != head)
			return true;
		if (__atomic_load_n(&c->news, __ATOMIC_SEQ_CST) != w->news)
			return true;
		rs_cpu_relax();
	}
	return false;
}

int rs_wait_tx(struct rs_waiter *w, enum rs_wait how)
{
	struct rs_conn *c = w->c;
	int r;

	if (!rs_waiter_blocks(w))
		return -EAGAIN;
	if (how == RS_WAIT_ROOM) {
		r = sleep_in_slot(w, &c->st->ch.mine->tx_wait, tx_news);
	} else {
		r = wait_news(w);
	}
	w->news = __atomic_load_n(&c->news, __ATOMIC_SEQ_CST);
	return r;
}

ssize_t rs_wait_in_send(struct rs_waiter *w, const struct iovec *iov, size_t n, size_t done)
{
	struct iovec part[16];
	struct msghdr mh = { .msg_iov = part };
	int saved = errno;
	ssize_t r;

	for (size_t i = 0; i < n && mh.msg_iovlen < 16; i++) {
		if (done >= iov[i].iov_len) {
			done -= iov[i].iov_len;
			continue;
		}
		part[mh.msg_iovlen].iov_base = (char *)iov[i].iov_base + done;
		part[mh.msg_iovlen++].iov_len = iov[i].iov_len - done;
		done = 0;
	}
	r = w->partial ? wait_poll(w, POLLOUT) : kernel_send(w, &mh);
	errno = saved;
	return r;
}
