/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * sys.h - direct system calls, futexes and time
 *
 * rsock's own kernel calls must neither be interposed (they are about the kernel socket, not the
 * stream), nor be cancellation points, nor touch errno: each returns the result or -errno.
 */
#ifndef RSOCK_SYS_H
#define RSOCK_SYS_H

#include <errno.h>
#include <linux/futex.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
static inline long rs_sys6(long n, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long ret;

	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}
#else
static inline long rs_sys6(long n, long a, long b, long c, long d, long e, long f)
{
	int saved = errno;
	long ret = syscall(n, a, b, c, d, e, f);

	if (ret == -1)
		ret = -errno;
	errno = saved;
	return ret;
}
#endif

#define rs_sys0(n) rs_sys6(n, 0, 0, 0, 0, 0, 0)
#define rs_sys1(n, a) rs_sys6(n, (long)(a), 0, 0, 0, 0, 0)
#define rs_sys2(n, a, b) rs_sys6(n, (long)(a), (long)(b), 0, 0, 0, 0)
#define rs_sys3(n, a, b, c) rs_sys6(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define rs_sys4(n, a, b, c, d) rs_sys6(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define rs_sys5(n, a, b, c, d, e) \
	rs_sys6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)

static inline void rs_cpu_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#else
	__asm__ volatile("" ::: "memory");
#endif
}

/* `private`: the word is in memory of this process alone. `timeout` is relative; NULL: none. */
static inline long rs_futex_wait(uint32_t *word, uint32_t val, const struct timespec *timeout,
				 bool private)
{
	return rs_sys4(SYS_futex, word, private ? FUTEX_WAIT_PRIVATE : FUTEX_WAIT, val, timeout);
}

static inline long rs_futex_wake(uint32_t *word, int n, bool private)
{
	return rs_sys3(SYS_futex, word, private ? FUTEX_WAKE_PRIVATE : FUTEX_WAKE, n);
}

/* CLOCK_MONOTONIC. */
static inline uint64_t rs_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline uint64_t rs_now_ms(void)
{
	return rs_now_ns() / 1000000u;
}

/* A cheap clock of unspecified unit; rs_ticks_per_us() of them pass in a microsecond. */
static inline uint64_t rs_ticks(void)
{
#if defined(__x86_64__)
	return __builtin_ia32_rdtsc();
#else
	return rs_now_ns();
#endif
}

uint64_t rs_ticks_per_us(void);

/*
 * Set while a library works on our behalf (rdma.h): then the interposed read() and write() are no
 * cancellation points of this thread, but on connections, which only a handler can mean. Who sets it
 * puts back what was there, for handlers interrupt.
 */
extern __thread bool rs_own_calls __attribute__((tls_model("initial-exec")));

/* Moves `fd` to a high number (CLOEXEC) where programs do not look; returns it, or `fd` itself. */
int rs_fd_hide(int fd);
/*
 * A private duplicate of `fd`, or -errno. Unlike what is made and then hidden, it has not even for a
 * moment the lowest free number, which another thread of the program may be about to get, or have just
 * closed; unless that is the only one left.
 */
int rs_fd_dup(int fd);
/* Whether private descriptors can be had without taking numbers that the program needs. */
bool rs_fd_room(void);
/* Whether one of these gave that number and it is still open. */
bool rs_fd_private(int fd);
/* Closes a private descriptor. */
void rs_fd_close(int fd);
/* The next private descriptor >= from, or -1. */
int rs_fd_next_private(int from);
/*
 * What the kernel calls the file behind `fd` ("socket:[123]", "anon_inode:[eventfd]", a path), cut to
 * `size` with its NUL; false: unknown. Asks nothing of the file itself, which may belong to a hostile
 * file system.
 */
bool rs_fd_describe(int fd, char *out, size_t size);
/* Fills in "/proc/self/fd/N". */
void rs_fd_path(int fd, char out[32]);
bool rs_fd_is_eventfd(int fd);
/*
 * Closes a descriptor that somebody else chose, in a thread of its own: the last close of a socket that
 * lingers, or of a file of a hostile file system, may wait for as long as that somebody likes.
 */
void rs_fd_close_aside(int fd);
/* How many such closes are going on. */
uint32_t rs_fd_asides(void);
/*
 * Write 1 to an eventfd that processes related to us have too, or empty it. They can clear O_NONBLOCK, fill
 * it and empty it at any time: neither call waits for them. (A write has no flag that says so: it is
 * skipped when the eventfd is full, and waits should it be filled in between.)
 */
void rs_eventfd_ring(int fd);
void rs_eventfd_clear(int fd);

#endif
