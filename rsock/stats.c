/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/rows.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "rsock/lock.h"
#include "rsock/sys.h"

#define ROWS 16384u
#define SIZE (sizeof(struct rs_stats_head) + ROWS * sizeof(struct rs_stats_row))

static struct rs_lock lock;
static struct rs_stats_head *head;
static int head_fd = -1;
static uint32_t next_row; /* rows never used start here */
static uint32_t free_rows[ROWS], nfree;

static struct rs_stats_row *row_at(uint32_t i)
{
	return (struct rs_stats_row *)(head + 1) + i;
}

static bool open_segment(void)
{
	struct rlimit rl;
	long fd, p;

	if (head)
		return true;
	if (!rs_fd_room())
		return false;
	if (rs_sys4(SYS_prlimit64, 0, RLIMIT_FSIZE, NULL, &rl) == 0 && rl.rlim_cur < SIZE)
		return false;
	fd = rs_sys2(SYS_memfd_create, RS_STATS_MEMFD, MFD_CLOEXEC);
	if (fd < 0)
		return false;
	fd = rs_fd_hide((int)fd);
	if (rs_sys2(SYS_ftruncate, fd, SIZE) != 0)
		goto close_fd;
	p = rs_sys6(SYS_mmap, 0, (long)SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd,
		    0);
	if ((unsigned long)p > -4096UL)
		goto close_fd;
	head = (struct rs_stats_head *)p;
	rs_sys3(SYS_madvise, p, SIZE, MADV_DONTFORK);
	head_fd = (int)fd;
	head->version = RS_STATS_VERSION;
	head->row_size = sizeof(struct rs_stats_row);
	head->rows = ROWS;
	head->pid = (uint32_t)rs_sys0(SYS_getpid);
	__atomic_store_n(&head->magic, RS_STATS_MAGIC, __ATOMIC_RELEASE);
	return true;
close_fd:
	rs_fd_close((int)fd);
	return false;
}

struct rs_stats_row *rs_row_new(int fd, bool server)
{
	struct rs_stats_row *r = NULL;

	rs_lock(&lock);
	if (!open_segment())
		goto out;
	if (nfree)
		r = row_at(free_rows[--nfree]);
	else if (next_row < ROWS)
		r = row_at(next_row++);
	else
		head->lost++;
	if (r) {
		uint32_t gen = r->gen;

		__atomic_store_n(&r->gen, gen + 1, __ATOMIC_SEQ_CST);
		memset((char *)r + sizeof(r->gen), 0, sizeof(*r) - sizeof(r->gen));
		r->fd = fd;
		r->server = server;
		r->reason = RS_REASON_STARTING;
		r->used = 1;
		__atomic_store_n(&r->gen, gen + 2, __ATOMIC_RELEASE);
	}
out:
	rs_unlock(&lock);
	return r;
}

void rs_row_free(struct rs_stats_row *r)
{
	if (!r)
		return;
	rs_lock(&lock);
	if (head) {
		__atomic_store_n(&r->gen, r->gen + 2, __ATOMIC_RELEASE);
		__atomic_store_n(&r->used, 0, __ATOMIC_RELEASE);
		free_rows[nfree++] = (uint32_t)(r - row_at(0));
	}
	rs_unlock(&lock);
}

void rs_row_address(struct rs_stats_row *r, uint8_t family, const struct rs_stats_addr *local,
		    const struct rs_stats_addr *peer)
{
	if (!r)
		return;
	__atomic_store_n(&r->gen, r->gen + 1, __ATOMIC_SEQ_CST);
	r->family = family;
	r->local = *local;
	r->peer = *peer;
	__atomic_store_n(&r->gen, r->gen + 1, __ATOMIC_RELEASE);
}

void rs_row_device(struct rs_stats_row *r, const char *name)
{
	size_t len = strnlen(name, sizeof(r->device) - 1);

	if (!r)
		return;
	__atomic_store_n(&r->gen, r->gen + 1, __ATOMIC_SEQ_CST);
	memset(r->device, 0, sizeof(r->device));
	memcpy(r->device, name, len);
	__atomic_store_n(&r->gen, r->gen + 1, __ATOMIC_RELEASE);
}

bool rs_rows_locked(void)
{
	return rs_lock_mine(&lock);
}

void rs_rows_forget(void)
{
	/* The mapping did not come over the fork; the descriptor did. */
	if (head_fd >= 0)
		rs_fd_close(head_fd);
	head_fd = -1;
	head = NULL;
	next_row = 0;
	nfree = 0;
	lock.word = 0;
}
