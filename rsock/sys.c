/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/sys.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/uio.h>

#define ASIDE_STACK ((size_t)256 << 10)

__thread bool rs_own_calls __attribute__((tls_model("initial-exec")));

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

/* A duplicate of `fd` where private descriptors live; -errno. */
static long dup_high(int fd)
{
	struct rlimit rl, more;
	bool raise;
	long base = high_base(&rl, &raise), high;

	if (base < 0)
		return base;
	if (raise) {
		more = rl;
		more.rlim_cur = rl.rlim_max < rl.rlim_cur + 4096 ? rl.rlim_max : rl.rlim_cur + 4096;
		rs_sys4(SYS_prlimit64, 0, RLIMIT_NOFILE, &more, NULL);
	}
	high = rs_sys3(SYS_fcntl, fd, F_DUPFD_CLOEXEC, base);
	if (raise)
		rs_sys4(SYS_prlimit64, 0, RLIMIT_NOFILE, &rl, NULL);
	if (high >= 0)
		mark((int)high, true);
	return high;
}

int rs_fd_hide(int fd)
{
	long high;

	if (fd < 0)
		return fd;
	high = dup_high(fd);
	if (high < 0) {
		mark(fd, true);
		return fd;
	}
	rs_sys1(SYS_close, fd);
	return (int)high;
}

int rs_fd_dup(int fd)
{
	long r = dup_high(fd);

	if (r < 0) {
		r = rs_sys3(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 3);
		if (r >= 0)
			mark((int)r, true);
	}
	return (int)r;
}

/* ---- descriptors of others ---- */

void rs_fd_path(int fd, char out[32])
{
	static const char dir[] = "/proc/self/fd/";
	size_t n = 0, at = sizeof(dir) - 1;
	char digits[12];

	memcpy(out, dir, at);
	do
		digits[n++] = (char)('0' + fd % 10);
	while ((fd /= 10) != 0);
	while (n)
		out[at++] = digits[--n];
	out[at] = '\0';
}

bool rs_fd_describe(int fd, char *out, size_t size)
{
	char path[32];
	long r;

	if (fd < 0)
		return false;
	rs_fd_path(fd, path);
	r = rs_sys4(SYS_readlinkat, AT_FDCWD, path, out, size - 1);
	if (r < 0)
		return false;
	out[r] = '\0';
	return true;
}

bool rs_fd_is_eventfd(int fd)
{
	char what[32];

	/* The path of a real file begins with a slash. */
	return rs_fd_describe(fd, what, sizeof(what)) && strcmp(what, "anon_inode:[eventfd]") == 0;
}

static uint32_t asides;

static void *close_aside(void *arg)
{
	rs_fd_close((int)(intptr_t)arg);
	__atomic_fetch_sub(&asides, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

void rs_fd_close_aside(int fd)
{
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	__atomic_fetch_add(&asides, 1, __ATOMIC_SEQ_CST);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, ASIDE_STACK);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	r = pthread_create(&thread, &attr, close_aside, (void *)(intptr_t)fd);
	pthread_attr_destroy(&attr);
	if (r != 0)
		close_aside((void *)(intptr_t)fd);
}

uint32_t rs_fd_asides(void)
{
	return __atomic_load_n(&asides, __ATOMIC_SEQ_CST);
}

static bool ready(int fd, short event)
{
	const struct timespec now = { 0, 0 };
	struct pollfd p = { .fd = fd, .events = event };

	return rs_sys5(SYS_ppoll, &p, 1, &now, NULL, 0) == 1 && (p.revents & event);
}

void rs_eventfd_ring(int fd)
{
	uint64_t one = 1;

	/* A full one is readable: its owner is awake, or wants to sleep. */
	if (fd >= 0 && ready(fd, POLLOUT))
		rs_sys3(SYS_write, fd, &one, sizeof(one));
}

void rs_eventfd_clear(int fd)
{
	uint64_t count;
	struct iovec iov = { &count, sizeof(count) };

	/* Kernels before 5.8 do not know this for eventfds. */
	if (fd >= 0 && rs_sys6(SYS_preadv2, fd, (long)&iov, 1, -1, -1, RWF_NOWAIT) == -EOPNOTSUPP &&
	    ready(fd, POLLIN))
		rs_sys3(SYS_read, fd, &count, sizeof(count));
}
