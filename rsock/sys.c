/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/sys.h"

#include <fcntl.h>
#include <sys/resource.h>

uint64_t rs_ticks_per_us(void)
{
#if defined(__x86_64__)
	static uint64_t cached;
	uint64_t v = __atomic_load_n(&cached, __ATOMIC_RELAXED);

	if (!v) {
		uint64_t t0 = rs_now_ns(), c0 = rs_ticks(), t1;

		do
			t1 = rs_now_ns();
		while (t1 - t0 < 50000);
		v = (rs_ticks() - c0) * 1000u / (t1 - t0);
		__atomic_store_n(&cached, v ? v : 1, __ATOMIC_RELAXED);
	}
	return v;
#else
	return 1000;
#endif
}

#define MAX_PRIVATE (1 << 20)
static uint64_t private_fds[MAX_PRIVATE / 64];

static void mark(int fd, bool on)
{
	uint64_t bit = (uint64_t)1 << (fd & 63);

	if (fd < 0 || fd >= MAX_PRIVATE)
		return;
	if (on)
		__atomic_fetch_or(&private_fds[fd / 64], bit, __ATOMIC_RELAXED);
	else
		__atomic_fetch_and(&private_fds[fd / 64], ~bit, __ATOMIC_RELAXED);
}

bool rs_fd_private(int fd)
{
	return fd >= 0 && fd < MAX_PRIVATE &&
	       (__atomic_load_n(&private_fds[fd / 64], __ATOMIC_RELAXED) >> (fd & 63) & 1);
}

int rs_fd_next_private(int from)
{
	for (int w = from / 64; w < MAX_PRIVATE / 64; w++) {
		uint64_t bits = __atomic_load_n(&private_fds[w], __ATOMIC_RELAXED);

		if (w == from / 64)
			bits &= ~(uint64_t)0 << (from & 63);
		if (bits)
			return w * 64 + __builtin_ctzll(bits);
	}
	return -1;
}

void rs_fd_close(int fd)
{
	mark(fd, false);
	rs_sys1(SYS_close, fd);
}

/*
 * Where private descriptors live. A limit on descriptors is one on their numbers: those above the
 * soft limit take nothing away from the program. With a large limit, numbers from 1024 on are out of
 * the way of select() and of loops that close all small ones.
 */
static long high_base(struct rlimit *rl, bool *raise)
{
	*raise = false;
	if (rs_sys4(SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, rl) != 0)
		return -1;
	if (rl->rlim_cur > 4096)
		return 1024;
	*raise = rl->rlim_max > rl->rlim_cur;
	if (*raise)
		return (long)rl->rlim_cur;
	return (long)(rl->rlim_cur - rl->rlim_cur / 4);
}

bool rs_fd_room(void)
{
	struct rlimit rl;

	return rs_sys4(SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, &rl) == 0 &&
	       (rl.rlim_max > rl.rlim_cur || rl.rlim_cur >= 512);
}

int rs_fd_hide(int fd)
{
	struct rlimit rl, more;
	bool raise;
	long high, base;

	if (fd < 0)
		return fd;
	base = high_base(&rl, &raise);
	if (base < 0) {
		mark(fd, true);
		return fd;
	}
	if (raise) {
		more = rl;
		more.rlim_cur = rl.rlim_max < rl.rlim_cur + 4096 ? rl.rlim_max : rl.rlim_cur + 4096;
		rs_sys4(SYS_prlimit64, 0, RLIMIT_NOFILE, &more, NULL);
	}
	high = rs_sys3(SYS_fcntl, fd, F_DUPFD_CLOEXEC, base);
	if (raise)
		rs_sys4(SYS_prlimit64, 0, RLIMIT_NOFILE, &rl, NULL);
	if (high < 0) {
		mark(fd, true);
		return fd;
	}
	rs_sys1(SYS_close, fd);
	mark((int)high, true);
	return (int)high;
}

void rs_eventfd_ring(int fd)
{
	uint64_t one = 1;

	if (fd >= 0)
		rs_sys3(SYS_write, fd, &one, sizeof(one));
}
