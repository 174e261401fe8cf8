/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/control.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>

#include "conn_mgr/accepted.h"
#include "conn_mgr/claim.h"
#include "conn_mgr/conn_edge.h"
#include "conn_mgr/link.h"
#include "conn_mgr/owner.h"
#include "conn_mgr/rendezvous.h"
#include "rsock/bell.h"
#include "rsock/lock.h"
#include "rsock/log.h"
#include "rsock/sys.h"

#define TICK_MS 50 /* how often candidates are looked at while there are any */
#define GIVEN_MS 1000 /* how often we look whether a child has ended */
#define STALL_MS 50 /* who wakes that late could not run */
#define STACK ((size_t)256 << 10)
#define EXIT_MS 10000 /* exit() waits that long for TCP to take what was sent, */
#define EXIT_ANSWER_MS 300 /* and that long for the peer to have seen it */
#define CALL_WAITS 100 /* of 10 ms */
#define LINGER_MS 1000 /* idle that long: the thread ends */

/* epoll data words: a source, or a connection with the lowest bit set */
#define CONN_TAG 1u

static struct rs_lock lock; /* start and stop */
static int epfd = -1;
static uint32_t running;
static uint32_t pausing; /* the thread is to end, its work to wait */
static pthread_t thread;
static bool joinable;
static struct rs_lock call_lock;
static long call[4]; /* number and arguments of a system call, while */
static uint32_t calling; /* (futex word) */
static uint32_t main_exited; /* the first thread is ending, and the process is not */
static uint32_t self_tid;
static struct rs_conn *added; /* stack of new connections (lock-free push) */
static uint64_t next_due = UINT64_MAX; /* ms */
struct rs_conn *rs_control_conns;

bool rs_control_running(void)
{
	return __atomic_load_n(&running, __ATOMIC_ACQUIRE);
}

bool rs_control_locked(void)
{
	return rs_lock_mine(&lock);
}

bool rs_control_self(void)
{
	return __atomic_load_n(&self_tid, __ATOMIC_RELAXED) == rs_tid();
}

void rs_control_kick(void)
{
	rs_bell_ring(1);
}

void rs_control_due(uint64_t ms)
{
	uint64_t cur = __atomic_load_n(&next_due, __ATOMIC_SEQ_CST);

	while (ms < cur)
		if (__atomic_compare_exchange_n(&next_due, &cur, ms, false, __ATOMIC_SEQ_CST,
						__ATOMIC_SEQ_CST)) {
			if (!rs_control_self())
				rs_control_kick();
			return;
		}
}

void rs_control_add(struct rs_conn *c, uint64_t due)
{
	struct rs_conn *top = __atomic_load_n(&added, __ATOMIC_RELAXED);

	__atomic_fetch_add(&c->refs, 1, __ATOMIC_RELAXED);
	do
		c->next = top;
	while (!__atomic_compare_exchange_n(&added, &top, c, false, __ATOMIC_RELEASE,
					    __ATOMIC_RELAXED));
	rs_control_due(due ? due : rs_now_ms() + TICK_MS);
}

int rs_control_watch(int fd, uint32_t events, struct rs_source *s)
{
	struct epoll_event ev = { .events = events, .data.u64 = (uintptr_t)s };
	long r = rs_sys4(SYS_epoll_ctl, epfd, EPOLL_CTL_ADD, fd, &ev);

	if (r == -EEXIST)
		r = rs_sys4(SYS_epoll_ctl, epfd, EPOLL_CTL_MOD, fd, &ev);
	return (int)r;
}

void rs_control_unwatch(int fd)
{
	struct epoll_event ev = { 0 };

	rs_sys4(SYS_epoll_ctl, epfd, EPOLL_CTL_DEL, fd, &ev);
}

int rs_control_watch_conn(int fd, struct rs_conn *c)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLET,
				  .data.u64 = (uintptr_t)c | CONN_TAG };
	long r = rs_sys4(SYS_epoll_ctl, epfd, EPOLL_CTL_ADD, fd, &ev);

	if (r == -EEXIST)
		r = rs_sys4(SYS_epoll_ctl, epfd, EPOLL_CTL_MOD, fd, &ev);
	return (int)r;
}

void rs_control_take_added(void)
{
	struct rs_conn *c = __atomic_exchange_n(&added, NULL, __ATOMIC_ACQUIRE), *next;

	for (; c; c = next) {
		next = c->next;
		c->prev = NULL;
		c->next = rs_control_conns;
		if (rs_control_conns)
			rs_control_conns->prev = c;
		rs_control_conns = c;
		c->listed = true;
	}
}

static void drop(struct rs_conn *c)
{
	if (c->prev)
		c->prev->next = c->next;
	else
		rs_control_conns = c->next;
	if (c->next)
		c->next->prev = c->prev;
	c->listed = false;
	/* Who was on a link may be asked for again until it is closed, and then knows why not. */
	if (!c->attached_at)
		rs_accepted_drop(c);
	rs_claim_drop(c);
	rs_conn_put(c);
}

static uint64_t due_of(struct rs_conn *c)
{
	uint64_t d;

	rs_lock(&c->lock);
	d = rs_conn_deadline(c);
	rs_unlock(&c->lock);
	return d;
}

/* Nothing of this connection needs the control thread any more. Under its lock. */
static bool finished(const struct rs_conn *c)
{
	return !c->watched_tcp && !c->held && !c->given && (c->plain || c->closed || c->reset);
}

/* Timers and claims of all connections; returns when to come again. */
static uint64_t look_at_all(uint64_t now)
{
	uint64_t due = UINT64_MAX;
	struct rs_conn *c, *next;

	for (c = rs_control_conns; c; c = next) {
		bool over, waits;
		uint64_t d;

		next = c->next;
		/* A close that is going on has not yet said that it holds the socket. */
		rs_lock(&c->lock);
		if (rs_owner_given_up(c)) {
			c->given = false;
			rs_conn_detach(c);
		}
		over = finished(c);
		d = rs_conn_deadline(c);
		waits = c->bound ? c->st->sm.t_enter != 0 : !c->plain && !c->returns;
		rs_unlock(&c->lock);
		if (over) {
			drop(c);
			continue;
		}
		if (d && now >= d) {
			rs_conn_timer(c, now);
			d = due_of(c);
		}
		if (c->claim == RS_CLAIM_WANTED ||
		    (c->claim == RS_CLAIM_BACKOFF && now >= c->claim_at)) {
			rs_claim_begin(c, now);
			d = due_of(c);
		}
		if (waits && (!d || d > now + TICK_MS))
			d = now + TICK_MS;
		if (c->given && (!d || d > now + GIVEN_MS))
			d = now + GIVEN_MS;
		if (d && d < due)
			due = d;
	}
	return due;
}

/*
 * We, and perhaps the whole machine, have stood still for so long (SIGSTOP, a hypervisor that had no
 * CPU for us). A peer on the same machine had no time to answer in, and what another one has answered
 * may still have to be fetched: that is no reason to give it up.
 */
static void forgive(uint64_t ms)
{
	for (struct rs_conn *c = rs_control_conns; c; c = c->next)
		rs_conn_postpone(c, ms);
	rs_accepted_postpone(ms);
	rs_links_postpone(ms);
}

/* How many ms later than `due` it came out of its sleep. */
static uint64_t wait_and_dispatch(uint64_t due)
{
	struct epoll_event ev[64];
	uint64_t now = rs_now_ms(), woke;
	long n, timeout = -1;

	if (due != UINT64_MAX)
		timeout = due > now ? (long)(due - now) : 0;
	if (timeout > 60000)
		timeout = 60000;
	n = rs_sys6(SYS_epoll_pwait, epfd, (long)ev, 64, timeout, 0, 8);
	woke = rs_now_ms();
	for (long i = 0; i < n; i++) {
		uint64_t word = ev[i].data.u64;

		if (word & CONN_TAG) {
			rs_conn_tcp_event((struct rs_conn *)(uintptr_t)(word & ~(uint64_t)CONN_TAG),
					  ev[i].events);
		} else {
			struct rs_source *s = (struct rs_source *)(uintptr_t)word;

			__atomic_load_n(&s->event, __ATOMIC_RELAXED)(s, ev[i].events);
		}
	}
	if (due < now)
		due = now;
	return woke > due ? woke - due : 0;
}

static void bell_event(struct rs_source *s, uint32_t events)
{
	(void)s;
	(void)events;
	rs_bell_clear(0);
	rs_links_scan();
}

static bool may_stop(void)
{
	bool stop = false;

	rs_lock(&lock);
	if (!rs_control_conns && !__atomic_load_n(&added, __ATOMIC_SEQ_CST) &&
	    rs_accepted_expire(0) == UINT64_MAX && rs_rendezvous_idle() && rs_links_idle() &&
	    !rs_owner_watches() && rs_links_close()) {
		__atomic_store_n(&self_tid, 0, __ATOMIC_RELAXED);
		__atomic_store_n(&running, 0, __ATOMIC_SEQ_CST);
		stop = true;
	}
	rs_unlock(&lock);
	/* A connection that came in between found the thread running: start anew for it. */
	if (stop && __atomic_load_n(&added, __ATOMIC_SEQ_CST))
		rs_control_start();
	return stop;
}

static void check_last_thread(void);

static void make_call(void)
{
	if (!__atomic_load_n(&calling, __ATOMIC_ACQUIRE))
		return;
	rs_sys3(call[0], call[1], call[2], call[3]);
	__atomic_store_n(&calling, 0, __ATOMIC_RELEASE);
	rs_futex_wake(&calling, 1, true);
}

static void *control_main(void *arg)
{
	uint64_t idle_since = 0, late = 0;

	(void)arg;
	__atomic_store_n(&self_tid, rs_tid(), __ATOMIC_RELAXED);
	rs_sys5(SYS_prctl, PR_SET_NAME, "rsock", 0, 0, 0);
	rs_owner_watch();
	for (;;) {
		uint64_t now = rs_now_ms(), due, soon, window;

		if (__atomic_load_n(&pausing, __ATOMIC_SEQ_CST)) {
			__atomic_store_n(&self_tid, 0, __ATOMIC_RELAXED);
			__atomic_store_n(&running, 0, __ATOMIC_SEQ_CST);
			return NULL;
		}
		make_call();
		__atomic_store_n(&next_due, UINT64_MAX, __ATOMIC_SEQ_CST);
		check_last_thread();
		if (late > STALL_MS)
			forgive(late);
		rs_control_take_added();
		due = look_at_all(now);
		window = rs_accepted_expire(now);
		if (window < due)
			due = window;
		rs_links_timer(now);
		rs_rendezvous_timer(now);
		rs_owner_timer(now);
		if (!rs_control_conns && window == UINT64_MAX && rs_rendezvous_idle() &&
		    rs_links_idle() && !rs_owner_watches()) {
			if (!idle_since)
				idle_since = now;
			if (now - idle_since >= LINGER_MS && may_stop())
				return NULL;
			if (due > now + LINGER_MS)
				due = now + LINGER_MS;
		} else {
			idle_since = 0;
		}
		soon = __atomic_load_n(&next_due, __ATOMIC_SEQ_CST);
		if (__atomic_load_n(&added, __ATOMIC_SEQ_CST) && soon > now + TICK_MS)
			soon = now + TICK_MS;
		if (soon < due)
			due = soon;
		/* What becomes due while we sleep is compared with what we sleep for. */
		__atomic_store_n(&next_due, due, __ATOMIC_SEQ_CST);
		late = wait_and_dispatch(due);
	}
}

int rs_control_start(void)
{
	static struct rs_source bell = { bell_event };
	sigset_t all, old;
	pthread_attr_t attr;
	struct sched_param sp = { 0 };
	long fd;
	int r = 0;

	if (rs_control_running())
		return 0;
	if (!rs_fd_room())
		return -EMFILE;
	rs_lock(&lock);
	if (running)
		goto out;
	r = rs_bell_init();
	if (r != 0)
		goto out;
	if (epfd < 0) {
		fd = rs_sys1(SYS_epoll_create1, EPOLL_CLOEXEC);
		if (fd < 0) {
			r = (int)fd;
			goto out;
		}
		epfd = rs_fd_hide((int)fd);
		r = rs_control_watch(rs_bell_fd(0), EPOLLIN, &bell);
		if (r != 0)
			goto out;
	}
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	pthread_attr_setinheritsched(&attr, PTHREAD_EXPLICIT_SCHED);
	pthread_attr_setschedpolicy(&attr, SCHED_OTHER);
	pthread_attr_setschedparam(&attr, &sp);
	__atomic_store_n(&running, 1, __ATOMIC_SEQ_CST);
	if (joinable)
		pthread_join(thread, NULL);
	r = -pthread_create(&thread, &attr, control_main, NULL);
	if (r == -EPERM) { /* SCHED_IDLE is not left without a privilege */
		pthread_attr_setinheritsched(&attr, PTHREAD_INHERIT_SCHED);
		r = -pthread_create(&thread, &attr, control_main, NULL);
	}
	joinable = r == 0;
	if (r != 0)
		__atomic_store_n(&running, 0, __ATOMIC_SEQ_CST);
	pthread_attr_destroy(&attr);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	rs_log(RS_LOG_DEBUG, "control thread: %s", r ? "cannot start" : "started");
out:
	rs_unlock(&lock);
	return r;
}

void rs_control_call(long n, const long a[3])
{
	if (!rs_control_running() || rs_control_self() || rs_lock_mine(&call_lock))
		return;
	rs_lock(&call_lock);
	call[0] = n;
	memcpy(&call[1], a, 3 * sizeof(*a));
	__atomic_store_n(&calling, 1, __ATOMIC_SEQ_CST);
	rs_control_kick();
	/* Not for ever: we may be a signal handler that has interrupted what the thread waits for. */
	for (int i = 0;
	     i < CALL_WAITS && __atomic_load_n(&calling, __ATOMIC_SEQ_CST) && rs_control_running();
	     i++) {
		struct timespec ts = { 0, 10000000 };

		rs_futex_wait(&calling, 1, &ts, true);
	}
	__atomic_store_n(&calling, 0, __ATOMIC_SEQ_CST);
	rs_unlock(&call_lock);
}

bool rs_control_pause(void)
{
	if (!rs_control_running() || rs_control_self())
		return false;
	__atomic_store_n(&pausing, 1, __ATOMIC_SEQ_CST);
	rs_control_kick();
	while (rs_control_running()) { /* not under the lock: it may want that to end by itself */
		struct timespec ts = { 0, 100000 };

		rs_sys4(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &ts, NULL);
	}
	rs_lock(&lock);
	if (joinable)
		pthread_join(thread, NULL);
	joinable = false;
	__atomic_store_n(&pausing, 0, __ATOMIC_SEQ_CST);
	rs_unlock(&lock);
	return true;
}

/* We may be in a signal handler that has interrupted what the thread waits for. */
bool rs_control_stop(void)
{
	if (!rs_control_running())
		return true;
	__atomic_store_n(&pausing, 1, __ATOMIC_SEQ_CST);
	rs_control_kick();
	for (int i = 0; i < 2000 && rs_control_running(); i++) {
		struct timespec ts = { 0, 100000 };

		rs_sys4(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &ts, NULL);
	}
	__atomic_store_n(&pausing, 0, __ATOMIC_SEQ_CST);
	if (rs_control_running())
		return false;
	if (joinable)
		pthread_join(thread, NULL); /* it is about to return */
	joinable = false;
	return true;
}

static bool all_exited(bool hurry)
{
	bool all = true;

	for (struct rs_conn *c = rs_control_conns; c; c = c->next)
		all &= rs_conn_exited(c, hurry);
	return all;
}

void rs_control_exit(void)
{
	uint64_t start = rs_now_ms(), now = start;

	if (!rs_control_running() || (!rs_control_self() && !rs_control_stop()))
		return;
	/* The list is ours now. */
	rs_control_take_added();
	for (struct rs_conn *c = rs_control_conns; c; c = c->next)
		rs_conn_exit(c);
	while (!all_exited(now > start + EXIT_ANSWER_MS) && now < start + EXIT_MS) {
		struct timespec ts = { 0, 200000 };

		rs_sys4(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &ts, NULL);
		now = rs_now_ms();
	}
}

void rs_control_main_exits(void)
{
	/* Another thread may yet make a connection, and so start ours. */
	__atomic_store_n(&main_exited, 1, __ATOMIC_SEQ_CST);
	if (rs_control_running())
		rs_control_kick();
}

/* The first thread may have handlers to run after it has said that it ends. */
static bool main_is_gone(void)
{
	char buf[128], *name_end = NULL;
	long fd = rs_sys4(SYS_openat, AT_FDCWD, "/proc/self/stat", O_RDONLY | O_CLOEXEC, 0), n;

	if (fd < 0)
		return false;
	n = rs_sys3(SYS_read, fd, buf, sizeof(buf));
	rs_sys1(SYS_close, fd);
	if (n > 0)
		name_end = memrchr(buf, ')', (size_t)n);
	return name_end && name_end + 2 < buf + n && name_end[2] == 'Z';
}

/*
 * A process ends when its last thread does, with exit(0). Without us that would have been the
 * program's last one: the first thread stays listed (as a zombie) until the process ends.
 */
static void check_last_thread(void)
{
	uint8_t buf[1024];
	long fd, n, count = 0;

	if (!__atomic_load_n(&main_exited, __ATOMIC_RELAXED))
		return;
	rs_control_due(rs_now_ms() + 20);
	if (!main_is_gone())
		return;
	fd = rs_sys4(SYS_openat, AT_FDCWD, "/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC,
		     0);
	if (fd < 0)
		return;
	while ((n = rs_sys3(SYS_getdents64, fd, buf, sizeof(buf))) > 0)
		for (long at = 0; at < n; count++)
			at += *(uint16_t *)(void *)(buf + at + 16); /* d_reclen */
	rs_sys1(SYS_close, fd);
	if (count <= 4) /* ".", "..", the first thread, this one */
		exit(0);
}

void rs_control_forget(void)
{
	/* The parent keeps closed sockets for their last frames; a copy here would keep them open. */
	for (struct rs_conn *c = rs_control_conns; c; c = c->next)
		if (c->held)
			rs_fd_close(c->fd);
	joinable = false;
	pausing = 0;
	main_exited = 0;
	if (epfd >= 0)
		rs_fd_close(epfd);
	epfd = -1;
	running = 0;
	self_tid = 0;
	added = NULL;
	rs_control_conns = NULL;
	next_due = UINT64_MAX;
	lock.word = 0;
	call_lock.word = 0;
	calling = 0;
}
