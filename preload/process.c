/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "preload/process.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "conn_mgr/control.h"
#include "conn_mgr/peer.h"
#include "conn_mgr/proof.h"
#include "conn_mgr/real.h"
#include "preload/epoll.h"
#include "preload/files.h"
#include "rsock/bell.h"
#include "rsock/config.h"
#include "rsock/rows.h"
#include "rsock/sys.h"

#define LEAVE_MS 2000 /* a peer that does not answer holds up fork or exec no longer than this */

long rs_process_pid;
const uint32_t *rs_alive;
static uint32_t *alive_page;

static void start_leaving(int fd, uintptr_t word, void *arg)
{
	struct rs_conn *c;

	(void)fd;
	if (rs_file_kind(word) != RS_KIND_CONN)
		return;
	c = rs_file_pointer(word);
	if (!__atomic_load_n(&c->plain, __ATOMIC_RELAXED))
		rs_conn_leave(c, *(enum rs_reason *)arg, true, 0);
}

static void finish_leaving(int fd, uintptr_t word, void *arg)
{
	uint64_t end = *(uint64_t *)arg, now = rs_now_ms();
	struct rs_conn *c;

	(void)fd;
	if (rs_file_kind(word) != RS_KIND_CONN)
		return;
	c = rs_file_pointer(word);
	if (!__atomic_load_n(&c->plain, __ATOMIC_RELAXED))
		rs_conn_leave(c, RS_REASON_FORKED, true, end > now ? (uint32_t)(end - now) : 0);
}

static void before_fork(void)
{
	enum rs_reason why = RS_REASON_FORKED;
	uint64_t end = rs_now_ms() + LEAVE_MS;

	if (rs_sys0(SYS_getpid) != rs_process_pid)
		return;
	/* All at once first: the peers answer in parallel. */
	rs_files_each(0, UINT32_MAX, start_leaving, &why);
	rs_files_each(0, UINT32_MAX, finish_leaving, &end);
}

/* What the parent could not hand over in time stays with the parent. */
static void disown(int fd, uintptr_t word, void *arg)
{
	struct rs_conn *c;

	(void)fd;
	(void)arg;
	if (rs_file_kind(word) != RS_KIND_CONN)
		return;
	c = rs_file_pointer(word);
	c->lock.word = 0;
	c->row = NULL;
	c->watches = NULL;
	c->link = NULL;
	c->watched_tcp = false;
	c->managed = false;
	c->listed = false;
	c->hashed = false;
	if (!c->plain) {
		c->bound = false;
		c->reset = true; /* its bytes are not all in the kernel: never a silent cut */
		c->err = ECONNRESET;
		c->reason = RS_REASON_FORKED;
	}
}

static void after_fork_child(void)
{
	rs_tid_cache = 0;
	rs_process_pid = rs_sys0(SYS_getpid);
	if (alive_page)
		*alive_page = 1;
	rs_conns_forget();
	rs_rows_forget();
	rs_control_forget();
	rs_peer_forget();
	rs_proof_forget();
	rs_epoll_forget();
	rs_bell_forget();
	rs_files_each(0, UINT32_MAX, disown, NULL);
}

void rs_process_forked(void)
{
	after_fork_child();
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
	pthread_atfork(before_fork, NULL, after_fork_child);
}

/* ---- exec ---- */

static void leave_if_inherited(int fd, uintptr_t word, void *arg)
{
	long fl;

	if (rs_file_kind(word) != RS_KIND_CONN)
		return;
	fl = rs_sys2(SYS_fcntl, fd, F_GETFD);
	if (fl < 0 || fl & FD_CLOEXEC)
		return;
	rs_conn_leave(rs_file_pointer(word), RS_REASON_EXEC, true, *(uint32_t *)arg);
}

void rs_process_before_exec(void)
{
	uint32_t ms = 0;

	rs_files_each(0, UINT32_MAX, leave_if_inherited, &ms);
	ms = LEAVE_MS;
	rs_files_each(0, UINT32_MAX, leave_if_inherited, &ms);
}

void rs_process_before_spawn(void)
{
	enum rs_reason why = RS_REASON_EXEC;
	uint64_t end = rs_now_ms() + LEAVE_MS;

	rs_files_each(0, UINT32_MAX, start_leaving, &why);
	rs_files_each(0, UINT32_MAX, finish_leaving, &end);
}

void rs_process_leave_fd(int fd, enum rs_reason why)
{
	struct rs_conn *c = rs_file_conn(fd);

	if (!c)
		return;
	rs_conn_leave(c, why, true, LEAVE_MS);
	rs_conn_put(c);
}
