/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "preload/process.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "conn_mgr/accepted.h"
#include "conn_mgr/control.h"
#include "conn_mgr/elsewhere.h"
#include "conn_mgr/link.h"
#include "conn_mgr/owner.h"
#include "conn_mgr/proof.h"
#include "conn_mgr/rdma.h"
#include "conn_mgr/real.h"
#include "conn_mgr/rendezvous.h"
#include "preload/epoll.h"
#include "preload/files.h"
#include "rsock/bell.h"
#include "rsock/config.h"
#include "rsock/log.h"
#include "rsock/rows.h"
#include "rsock/sys.h"

#define LEAVE_MS 2000 /* a peer that does not answer holds up fork no longer than this */
#define EXEC_MS 10000 /* what exec loses cannot be had again */
#define LINGER_MS 60000
#define LAST_WORDS_MS 250 /* of peers, which write them at once */

long rs_process_pid;
const uint32_t *rs_alive;
static uint32_t *alive_page;

static uint32_t forks; /* calls of fork() */
static struct rs_lock fork_lock; /* one at a time */
static __thread uint32_t forking
	__attribute__((tls_model("initial-exec"))); /* its number; 0: none */
static bool keeps; /* the fork that is going on leaves streams with us, or with whose they are */
static bool prepared; /* with us */

/* With a reference; NULL: nothing that has to leave. */
static struct rs_conn *not_plain(uintptr_t word)
{
	struct rs_conn *c = rs_file_pointer(word);

	if (rs_file_kind(word) != RS_KIND_CONN || __atomic_load_n(&c->plain, __ATOMIC_RELAXED))
		return NULL;
	return rs_conn_get(c) ? c : NULL;
}

/* Before the first leaves: the other end of one may be another of ours, and hear of it at once. */
static void hand_over(int fd, uintptr_t word, void *arg)
{
	struct rs_conn *c = not_plain(word);

	(void)fd;
	(void)arg;
	if (!c)
		return;
	rs_conn_hand_over(c);
	rs_conn_put(c);
}

static void start_leaving(int fd, uintptr_t word, void *arg)
{
	struct rs_conn *c = not_plain(word);

	(void)fd;
	if (!c)
		return;
	if (!forking ||
	    !(rs_accepted_share(c, forking) || (keeps && rs_owner_keep(c, forking, false))))
		rs_conn_leave(c, *(enum rs_reason *)arg, true, 0);
	rs_conn_put(c);
}

static void finish_leaving(int fd, uintptr_t word, void *arg)
{
	uint64_t end = *(uint64_t *)arg, now = rs_now_ms();
	struct rs_conn *c = not_plain(word);

	(void)fd;
	if (!c)
		return;
	if ((!forking || !(c->holders || (keeps && c->kept == forking))) &&
	    rs_conn_leave(c, RS_REASON_FORKED, true, end > now ? (uint32_t)(end - now) : 0) != 0 &&
	    forking && keeps)
		rs_owner_keep(c, forking, true); /* later, then, or by who is left */
	rs_conn_put(c);
}

struct linked {
	bool ours, others;
};

static void find_linked(int fd, uintptr_t word, void *arg)
{
	struct rs_conn *c = rs_file_pointer(word);
	struct linked *l = arg;

	(void)fd;
	if (rs_file_kind(word) != RS_KIND_CONN)
		return;
	l->others |= c->foreign;
	l->ours |= !__atomic_load_n(&c->plain, __ATOMIC_RELAXED) &&
		   __atomic_load_n(&c->bound, __ATOMIC_RELAXED);
}

static void before_fork(void)
{
	struct linked linked = { 0 };
	enum rs_reason why = RS_REASON_FORKED;
	uint64_t end = rs_now_ms() + LEAVE_MS;

	if (rs_sys0(SYS_getpid) != rs_process_pid)
		return;
	if (!rs_lock_mine(&fork_lock))
		rs_lock(&fork_lock);
	forking = __atomic_add_fetch(&forks, 1, __ATOMIC_RELAXED);
	rs_files_each(0, UINT32_MAX, find_linked, &linked);
	prepared = linked.ours && rs_owner_prepare(forking);
	keeps = prepared || (linked.others && !linked.ours);
	if (!keeps)
		rs_files_each(0, UINT32_MAX, hand_over, NULL);
	/* All at once first: the peers answer in parallel. */
	rs_files_each(0, UINT32_MAX, start_leaving, &why);
	rs_files_each(0, UINT32_MAX, finish_leaving, &end);
	if (prepared)
		rs_owner_ready();
}

static void after_fork_parent(void)
{
	if (forking) {
		rs_owner_forked(false, prepared);
		rs_unlock(&fork_lock);
	}
	forking = 0;
}

/* What the parent has kept, and what it could not hand over in time, stays with the parent. */
static void disown(int fd, uintptr_t word, void *arg)
{
	struct rs_conn *c;
	bool fresh;

	(void)fd;
	(void)arg;
	if (rs_file_kind(word) != RS_KIND_CONN)
		return;
	c = rs_file_pointer(word);
	c->lock.word = 0;
	c->row = NULL;
	c->watched |= c->watches != NULL;
	c->watches = NULL;
	c->link = NULL;
	c->watched_tcp = false;
	c->managed = false;
	c->listed = false;
	/* Calls of threads that the child does not have. */
	memset(c->waiter, 0, sizeof(c->waiter));
	c->waiting = 0;
	c->in_tcp = 0;
	c->busy = 0;
	c->sleepers = 0;
	c->bells = 0;
	c->hashed = false;
	if (c->queue)
		c->refs--; /* the queue's, which is not the child's */
	c->queue = NULL;
	if (!forking || c->shared != forking)
		c->holders = NULL; /* we were not counted */
	c->bound = false;
	if (c->rest || (forking && keeps && c->kept == forking && !c->plain)) {
		rs_owner_disown(c);
		return;
	}
	c->kept_first = 0;
	fresh = c->fresh && c->holders && forking && !c->plain;
	rs_conn_forget_state(c, false);
	if (fresh) {
		c->plain = !rs_conn_renew_state(c);
		fresh = !c->plain;
	}
	if (!c->plain && !fresh) {
		c->reset = true; /* its bytes are not all in the kernel: never a silent cut */
		c->err = ECONNRESET;
		c->reason = RS_REASON_FORKED;
		rs_conn_forget_state(c, true);
	}
}

/*
 * Data of the first thread, whose destructor tells that it ends while the process goes on: by
 * pthread_exit(), thrd_exit() or cancellation.
 */
static pthread_key_t first_thread = PTHREAD_KEYS_MAX; /* none yet */

static void first_thread_ends(void *value)
{
	(void)value;
	rs_control_main_exits();
}

/* By the parent's thread id. */
static void find_inside(int fd, uintptr_t word, void *arg)
{
	(void)fd;
	if (rs_file_kind(word) == RS_KIND_CONN)
		*(bool *)arg |= rs_lock_mine(&((struct rs_conn *)rs_file_pointer(word))->lock);
}

static void after_fork_child(void)
{
	bool inside = false; /* a handler that interrupted our own call has forked */

	rs_files_each(0, UINT32_MAX, find_inside, &inside);
	rs_tid_cache = 0;
	fork_lock.word = 0;
	rs_process_pid = rs_sys0(SYS_getpid);
	if (alive_page)
		*alive_page = 1;
	rs_conns_forget();
	rs_rows_forget();
	rs_control_forget();
	rs_links_forget(forking && prepared);
	rs_accepted_forget();
	rs_rdma_forget();
	rs_elsewhere_forget();
	rs_rendezvous_forget();
	rs_proof_forget();
	rs_epoll_forget();
	rs_bell_forget();
	rs_owner_forked(true, forking && prepared);
	rs_files_each(0, UINT32_MAX, disown, NULL);
	rs_owner_disowned(inside);
	pthread_setspecific(first_thread, &first_thread); /* it is the one that has forked */
	forking = 0;
}

static bool is_watched(const struct rs_conn *c)
{
	return c->watched;
}

static void claim_if(int fd, uintptr_t word, void *arg)
{
	struct rs_conn *c = rs_file_kind(word) == RS_KIND_CONN ? rs_file_pointer(word) : NULL;
	bool (*const *which)(const struct rs_conn *) = arg;

	(void)fd;
	if (!c || !c->foreign || !(*which)(c) || !rs_conn_get(c))
		return;
	if (*which != rs_owner_dead)
		rs_owner_claim(c);
	else if (rs_control_self())
		rs_owner_inherit(c);
	else
		rs_owner_adopt(c);
	rs_conn_put(c);
}

void rs_process_claim_watched(void)
{
	bool (*which)(const struct rs_conn *) = is_watched;

	rs_files_each(0, UINT32_MAX, claim_if, &which);
}

static void owner_died(void)
{
	bool (*which)(const struct rs_conn *) = rs_owner_dead;

	rs_files_each(0, UINT32_MAX, claim_if, &which);
}

void rs_process_stays(void)
{
	int saved = errno;

	if (!rs_files_foreign())
		rs_owner_watch();
	errno = saved;
}

static void finish_adopted(int fd, uintptr_t word, void *arg)
{
	uint64_t end = *(uint64_t *)arg, now = rs_now_ms();
	struct rs_conn *c = not_plain(word);

	(void)fd;
	if (!c)
		return;
	if (c->bound && c->left)
		rs_conn_leave(c, RS_REASON_FORKED, true, end > now ? (uint32_t)(end - now) : 0);
	rs_conn_put(c);
}

/* Those that nobody but us can bring to an end in order: all begin at once. */
static void claim_orphans(void)
{
	uint64_t end = rs_now_ms() + LAST_WORDS_MS;

	if (!rs_owner_dead(NULL))
		return;
	owner_died();
	rs_files_each(0, UINT32_MAX, finish_adopted, &end);
}

void rs_process_forked(void)
{
	after_fork_child();
}

void rs_process_before_fork(void)
{
	before_fork();
}

void rs_process_after_fork(bool child)
{
	if (child)
		after_fork_child();
	else
		after_fork_parent();
}

/*
 * The linker is told to run this before all other constructors (-z initfirst): they call what we
 * interpose. That is before libc has set `environ`.
 */
__attribute__((constructor)) static void start(int argc, char **argv, char **envp)
{
	(void)argc;
	(void)argv;
	if (!environ)
		environ = envp;
	rs_process_init();
}

void rs_process_init(void)
{
	static bool done;
	long p;

	if (done)
		return;
	done = true;
	rs_real_load();
	rs_config_load();
	rs_process_pid = rs_sys0(SYS_getpid);
	p = rs_sys6(SYS_mmap, 0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if ((unsigned long)p <= -4096UL && rs_sys3(SYS_madvise, p, 4096, MADV_WIPEONFORK) == 0) {
		alive_page = (uint32_t *)p;
		*alive_page = 1;
		rs_alive = alive_page;
	}
	rs_conn_nameless = rs_epoll_conn_closed;
	rs_owner_died = owner_died;
	pthread_atfork(before_fork, after_fork_parent, after_fork_child);
	if (pthread_key_create(&first_thread, first_thread_ends) == 0 &&
	    rs_sys0(SYS_gettid) == rs_process_pid)
		pthread_setspecific(first_thread, &first_thread);
}

/* ---- exec ---- */

/* What is shared with who has forked us, or whom we have. */
static void leave_shared(int fd, uintptr_t word, void *arg)
{
	(void)fd;
	if (rs_file_kind(word) == RS_KIND_CONN)
		rs_accepted_leave(rs_file_pointer(word), *(bool *)arg);
}

/* Another process has it by fork, and nobody will be its owner. */
static bool is_shared(struct rs_conn *c)
{
	bool shared;

	if (c->foreign || rs_lock_mine(&c->lock))
		return false;
	rs_lock(&c->lock);
	shared = rs_owner_shared(c);
	rs_unlock(&c->lock);
	return shared;
}

struct inherit {
	uint64_t end; /* ms */
	bool wait;
	bool becomes; /* this process ends with it */
};

static void leave_if_inherited(int fd, uintptr_t word, void *arg)
{
	const struct inherit *in = arg;
	uint64_t now = rs_now_ms();
	struct rs_conn *c;
	int r;
	long fl;

	if (rs_file_kind(word) != RS_KIND_CONN)
		return;
	fl = rs_sys2(SYS_fcntl, fd, F_GETFD);
	c = rs_file_pointer(word);
	if (fl < 0 || (fl & FD_CLOEXEC && !(in->becomes && is_shared(c))) || !rs_conn_get(c))
		return;
	r = rs_conn_leave(c, RS_REASON_EXEC, true,
			  in->wait && in->end > now ? (uint32_t)(in->end - now) : 0);
	/* The new program must not take a part for the whole. Who has it by fork can read the rest. */
	if (in->wait && r != 0 && !(r == -EINPROGRESS && fl & FD_CLOEXEC && rs_owner_leave_rest(c)))
		rs_conn_abort(c);
	rs_conn_put(c);
}

/* `becomes`: it takes the place of this process. */
static void start_program(bool becomes)
{
	struct inherit in = { .end = rs_now_ms() + EXEC_MS, .becomes = becomes };
	bool stays_open = true;

	if (becomes)
		claim_orphans();
	if (forks && !rs_files_foreign())
		rs_files_each(0, UINT32_MAX, leave_shared, &stays_open);
	/* All at once first: the peers answer in parallel. */
	rs_files_each(0, UINT32_MAX, leave_if_inherited, &in);
	in.wait = true;
	rs_files_each(0, UINT32_MAX, leave_if_inherited, &in);
	if (becomes)
		rs_owner_yielding(EXEC_MS);
}

void rs_process_before_start(void)
{
	start_program(false);
}

void rs_process_before_exec(void)
{
	start_program(!rs_files_foreign());
}

void rs_process_before_spawn(void)
{
	enum rs_reason why = RS_REASON_EXEC;
	uint64_t end = rs_now_ms() + LEAVE_MS;

	rs_files_each(0, UINT32_MAX, hand_over, NULL);
	rs_files_each(0, UINT32_MAX, start_leaving, &why);
	rs_files_each(0, UINT32_MAX, finish_leaving, &end);
}

/* As rs_conn_leave(). As a write does when the peer takes nothing: waits, or says EAGAIN. */
static int leave(struct rs_conn *c, int fd, enum rs_reason why)
{
	long fl;
	int r;

	if (rs_lock_mine(&c->lock))
		return -EAGAIN; /* a handler that interrupted our own call */
	do {
		r = rs_conn_leave(c, why, true, LEAVE_MS);
		fl = r == -ETIMEDOUT ? rs_sys2(SYS_fcntl, fd, F_GETFL) : 0;
	} while (r == -ETIMEDOUT && fl >= 0 && !(fl & O_NONBLOCK));
	return r == -ETIMEDOUT ? -EAGAIN : r;
}

/* ---- io_uring ---- */

bool rs_process_rings;

static void finish_for_good(int fd, uintptr_t word, void *arg)
{
	uint64_t end = *(uint64_t *)arg, now = rs_now_ms();
	struct rs_conn *c = rs_file_kind(word) == RS_KIND_CONN ? rs_file_conn(fd) : NULL;

	if (!c)
		return;
	/* Nobody must take a part for the whole. */
	if (rs_conn_leave(c, RS_REASON_CALL, true, end > now ? (uint32_t)(end - now) : 0) != 0)
		rs_conn_abort(c);
	rs_conn_put(c);
}

void rs_process_has_ring(void)
{
	enum rs_reason why = RS_REASON_CALL;
	uint64_t end = rs_now_ms() + EXEC_MS;

	if (rs_files_foreign())
		return;
	/* First: a connection that is being made is in the table before its thread looks at this. */
	__atomic_store_n(&rs_process_rings, true, __ATOMIC_SEQ_CST);
	rs_files_each(0, UINT32_MAX, hand_over, NULL);
	rs_files_each(0, UINT32_MAX, start_leaving, &why);
	rs_files_each(0, UINT32_MAX, finish_for_good, &end);
}

/* ---- one descriptor ---- */

int rs_process_leave_fd(int fd, enum rs_reason why)
{
	struct rs_conn *c = rs_file_conn(fd);
	int r;

	if (!c)
		return 0;
	r = leave(c, fd, why);
	rs_conn_put(c);
	return r == -EAGAIN ? r : 0;
}

int rs_process_give_fd(int fd, enum rs_reason why)
{
	struct rs_conn *c = rs_file_conn(fd);
	int r;

	if (!c)
		return 0;
	r = leave(c, fd, why);
	if (r == -EINPROGRESS)
		rs_conn_abort(c); /* nobody must take a part for the whole */
	rs_conn_put(c);
	return r == -EAGAIN ? r : 0;
}

/* ---- exit ---- */

#define KEPT_MAX 64

/* Connections for which a leave has bytes that TCP has not taken yet. */
struct unflushed {
	int fds[KEPT_MAX]; /* their descriptors */
	unsigned int n; /* may be more than fit */
};

static void flush(struct rs_conn *c, struct unflushed *u)
{
	if (!rs_conn_flush(c))
		return;
	if (u->n < KEPT_MAX)
		u->fds[u->n] = c->fd;
	u->n++;
}

static void flush_open(int fd, uintptr_t word, void *arg)
{
	(void)fd;
	if (rs_file_kind(word) == RS_KIND_CONN)
		flush(rs_file_pointer(word), arg);
}

/* Without a control thread, whose list it uses. */
static bool flush_all(struct unflushed *u)
{
	u->n = 0;
	rs_files_each(0, UINT32_MAX, flush_open, u);
	for (struct rs_conn *c = rs_control_conns; c; c = c->next)
		if (c->held)
			flush(c, u);
	return u->n != 0;
}

static void expect_open(int fd, uintptr_t word, void *arg)
{
	(void)fd;
	if (rs_file_kind(word) == RS_KIND_CONN)
		*(bool *)arg |= rs_conn_expects(rs_file_pointer(word));
}

/* Without a control thread. */
static void take_last_words(void)
{
	uint64_t end = rs_now_ms() + LAST_WORDS_MS;
	bool more;

	do {
		struct timespec ts = { 0, 200000 };

		more = false;
		rs_files_each(0, UINT32_MAX, expect_open, &more);
		for (struct rs_conn *c = rs_control_conns; c; c = c->next)
			if (c->held)
				more |= rs_conn_expects(c);
		if (more)
			rs_sys4(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &ts, NULL);
	} while (more && rs_now_ms() < end);
}

static int next_kept(const struct unflushed *u, int from)
{
	int next = rs_fd_next_private(from);

	for (unsigned int i = 0; i < u->n; i++)
		if (u->fds[i] >= from && (next < 0 || u->fds[i] < next))
			next = u->fds[i];
	return next;
}

/* What the program had open must not stay open: somebody may wait for its end of file. */
static void close_others(const struct unflushed *u)
{
	int from = 0, kept;

	if (u->n > KEPT_MAX)
		return;
	while ((kept = next_kept(u, from)) >= 0) {
		if (kept > from)
			rs_sys3(SYS_close_range, from, kept - 1, 0);
		from = kept + 1;
	}
	rs_sys3(SYS_close_range, from, INT32_MAX, 0);
}

static void bequeath(int fd, uintptr_t word, void *arg)
{
	(void)fd;
	if (rs_file_kind(word) == RS_KIND_CONN)
		rs_owner_bequeath(rs_file_pointer(word), *(uint32_t *)arg);
}

/* Without a control thread. */
static void bequeath_all(uint32_t lingerer)
{
	rs_files_each(0, UINT32_MAX, bequeath, &lingerer);
	for (struct rs_conn *c = rs_control_conns; c; c = c->next)
		if (c->held)
			rs_owner_bequeath(c, lingerer);
}

/* The statistics did not come with the copy, nor did the threads that have a lock. */
static void forget_row(int fd, uintptr_t word, void *arg)
{
	struct rs_conn *c = rs_file_pointer(word);

	(void)fd;
	(void)arg;
	if (rs_file_kind(word) == RS_KIND_CONN) {
		c->row = NULL;
		c->lock.word = 0;
	}
}

static void __attribute__((noreturn)) linger(struct unflushed *u)
{
	uint64_t end = rs_now_ms() + LINGER_MS;

	rs_tid_cache = 0;
	rs_sys0(SYS_setsid);
	rs_sys1(SYS_chdir, "/");
	close_others(u);
	rs_files_each(0, UINT32_MAX, forget_row, NULL);
	for (struct rs_conn *c = rs_control_conns; c; c = c->next) {
		c->row = NULL;
		c->lock.word = 0;
	}
	while (flush_all(u)) {
		struct timespec ts = { 0, 2000000 };

		if (rs_now_ms() >= end) {
			for (unsigned int i = 0; i < u->n && i < KEPT_MAX; i++) {
				const struct linger lin = { .l_onoff = 1, .l_linger = 0 };

				/* Not all of it: the peer must not take it for the whole. */
				rs_sys5(SYS_setsockopt, u->fds[i], SOL_SOCKET, SO_LINGER, &lin,
					sizeof(lin));
			}
			break;
		}
		rs_sys4(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &ts, NULL);
	}
	bequeath_all(0);
	for (;;)
		rs_sys1(SYS_exit_group, 0);
}

/*
 * Bytes in a ring outlive the process. Those that a leave has yet to hand to TCP do not, although
 * send() took them: a copy of the process stays behind for them, nobody's child, until TCP has them.
 */
static void flush_rest(void)
{
	struct unflushed u;
	long pid;

	if ((!rs_control_running() && !rs_control_conns) || rs_files_foreign() || rs_control_self())
		return;
	rs_rdma_exit();
	if (!rs_control_stop())
		return;
	take_last_words();
	if (!flush_all(&u)) {
		bequeath_all(0);
		return;
	}
	rs_links_inherit(true);
	pid = rs_sys6(SYS_clone, 0, 0, 0, 0, 0, 0);
	if (pid == 0)
		linger(&u);
	bequeath_all(pid > 0 ? (uint32_t)pid : 0);
}

/* Nobody will be the owner of what others have by fork. */
static void leave_to_others(int fd, uintptr_t word, void *arg)
{
	uint64_t end = *(uint64_t *)arg, now = rs_now_ms();
	struct rs_conn *c = not_plain(word);

	(void)fd;
	if (!c)
		return;
	if (is_shared(c))
		rs_conn_leave(c, RS_REASON_FORKED, true, end > now ? (uint32_t)(end - now) : 0);
	rs_conn_put(c);
}

/* What takes longer they carry on with themselves (bequeath_all()). */
static void hand_to_others(void)
{
	uint64_t end = 0;

	claim_orphans();
	rs_files_each(0, UINT32_MAX, leave_to_others, &end);
	end = rs_now_ms() + LAST_WORDS_MS;
	rs_files_each(0, UINT32_MAX, leave_to_others, &end);
	rs_owner_yielding(LAST_WORDS_MS);
}

void rs_process_exits(void)
{
	bool stays_open = false;

	if (forks && !rs_files_foreign() && !rs_control_self())
		hand_to_others();
	flush_rest();
	if (forks && !rs_files_foreign())
		rs_files_each(0, UINT32_MAX, leave_shared, &stays_open);
}

/* quick_exit() ends the process by libc's own _exit(). */
__attribute__((constructor)) static void hear_of_quick_exit(void)
{
	if (at_quick_exit(rs_process_exits) != 0)
		rs_log(RS_LOG_WARN, "no memory: quick_exit() may lose what TCP has yet to take");
}

__attribute__((destructor)) static void at_exit(void)
{
	rs_process_exits();
}
