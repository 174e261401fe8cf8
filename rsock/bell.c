/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/bell.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>

#include "rsock/lock.h"
#include "rsock/sys.h"

#define FULL (UINT64_MAX - 1) /* the most that an eventfd counts: it says that there is no room */

struct bell {
	int set; /* + 1, of its triggers; 0: not made */
	int own; /* our trigger */
};

static struct rs_lock lock;
static struct bell bells[RS_BELLS];
static uint32_t in_use = 1; /* bell 0 always is */

static long pull(int trigger)
{
	uint64_t one;
	struct iovec iov = { &one, sizeof(one) };

	return rs_sys6(SYS_preadv2, trigger, (long)&iov, 1, -1, -1, RWF_NOWAIT);
}

static int new_trigger(int set)
{
	/* After a pull there is room, and whoever waits for that is told of each pull. */
	struct epoll_event ev = { .events = EPOLLOUT | EPOLLET };
	const uint64_t full = FULL;
	long fd, r;

	fd = rs_sys2(SYS_eventfd2, 0, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC);
	if (fd < 0)
		return (int)fd;
	fd = rs_fd_hide((int)fd);
	r = rs_sys3(SYS_write, fd, &full, sizeof(full));
	if (r > 0)
		r = rs_sys4(SYS_epoll_ctl, set, EPOLL_CTL_ADD, fd, &ev);
	if (r == 0)
		return (int)fd;
	rs_fd_close((int)fd);
	return (int)r;
}

static int make(uint32_t bell)
{
	int set, own;
	long fd;

	if (bells[bell].set)
		return 0;
	fd = rs_sys1(SYS_epoll_create1, EPOLL_CLOEXEC);
	if (fd < 0)
		return (int)fd;
	set = rs_fd_hide((int)fd);
	own = new_trigger(set);
	/* Kernels before 5.8 cannot read an eventfd so. */
	if (own >= 0 && pull(own) != sizeof(uint64_t)) {
		rs_fd_close(own);
		own = -EOPNOTSUPP;
	}
	if (own < 0) {
		rs_fd_close(set);
		return own;
	}
	bells[bell].own = own;
	__atomic_store_n(&bells[bell].set, set + 1, __ATOMIC_RELEASE);
	rs_bell_clear(bell);
	return 0;
}

int rs_bell_init(void)
{
	int r;

	rs_lock(&lock);
	r = make(0);
	/* Passed on with the first link, and not when the program makes and closes descriptors. */
	if (r == 0)
		make(1);
	rs_unlock(&lock);
	return r;
}

uint32_t rs_bell_get(void)
{
	uint32_t bell = 0, free_bells;

	rs_lock(&lock);
	free_bells = ~in_use;
	if (free_bells) {
		bell = (uint32_t)__builtin_ctz(free_bells);
		if (make(bell) == 0)
			__atomic_fetch_or(&in_use, 1u << bell, __ATOMIC_SEQ_CST);
		else
			bell = 0;
	}
	rs_unlock(&lock);
	return bell;
}

void rs_bell_put(uint32_t bell)
{
	if (!bell)
		return;
	rs_lock(&lock);
	__atomic_fetch_and(&in_use, ~(1u << bell), __ATOMIC_SEQ_CST);
	rs_unlock(&lock);
}

int rs_bell_fd(uint32_t bell)
{
	return __atomic_load_n(&bells[bell].set, __ATOMIC_ACQUIRE) - 1;
}

uint32_t rs_bell_used(void)
{
	return __atomic_load_n(&in_use, __ATOMIC_SEQ_CST) & ~1u;
}

void rs_bell_ring(uint32_t mask)
{
	for (; mask; mask &= mask - 1) {
		uint32_t bell = (uint32_t)__builtin_ctz(mask);

		if (rs_bell_fd(bell) >= 0)
			rs_trigger_pull(bells[bell].own);
	}
}

bool rs_bell_clear(uint32_t bell)
{
	/* What finds no room here rings on, and is cleared next time. */
	struct epoll_event ev[32];

	return rs_sys6(SYS_epoll_pwait, rs_bell_fd(bell), (long)ev, 32, 0, 0, 0) > 0;
}

int rs_bell_trigger(uint32_t bell)
{
	return new_trigger(rs_bell_fd(bell));
}

void rs_bell_untrigger(uint32_t bell, int trigger)
{
	struct epoll_event ev = { 0 };

	rs_sys4(SYS_epoll_ctl, rs_bell_fd(bell), EPOLL_CTL_DEL, trigger, &ev);
	rs_fd_close(trigger);
}

void rs_trigger_pull(int trigger)
{
	pull(trigger);
}

uint32_t rs_bell_made(void)
{
	uint32_t mask = 0;

	for (uint32_t b = 0; b < RS_BELLS; b++)
		if (rs_bell_fd(b) >= 0)
			mask |= 1u << b;
	return mask;
}

void rs_bell_forget(void)
{
	for (uint32_t b = 0; b < RS_BELLS; b++)
		if (bells[b].set) {
			rs_fd_close(bells[b].set - 1);
			rs_fd_close(bells[b].own);
			bells[b].set = 0;
		}
	in_use = 1;
	lock.word = 0;
}
