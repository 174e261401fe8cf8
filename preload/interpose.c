/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * interpose.c - libc's names for rsock's functions
 *
 * Nothing is decided here. The version script exports these names without a version: a versioned
 * definition would silently not interpose.
 */
#include <aio.h>
#include <errno.h>
#include <linux/sched.h>
#include <linux/sockios.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <wordexp.h>

#include "conn_mgr/control.h"
#include "conn_mgr/real.h"
#include "conn_mgr/signals.h"
#include "preload/files.h"
#include "preload/process.h"
#include "preload/socket.h"
#include "rsock/rsock.h"
#include "rsock/sys.h"

#define EXPORT __attribute__((visibility("default")))

#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#pragma GCC diagnostic ignored "-Wnonnull-compare"
#pragma GCC diagnostic ignored "-Wformat-nonliteral"

/* FORWARD(result, libc's name, rsock's name, parameters, arguments) */
#define FORWARD(ret, name, to, params, args) \
	EXPORT ret name params               \
	{                                    \
		return to args;              \
	}

/* libc's headers may have defined these as macros. */
#undef fcntl
#undef fcntl64
#undef recv
#undef read

FORWARD(int, socket, rsock_socket, (int d, int t, int p), (d, t, p))
FORWARD(int, connect, rsock_connect, (int fd, const struct sockaddr *a, socklen_t l), (fd, a, l))
FORWARD(int, __connect, rsock_connect, (int fd, const struct sockaddr *a, socklen_t l), (fd, a, l))
FORWARD(int, listen, rsock_listen, (int fd, int b), (fd, b))
FORWARD(int, accept, rsock_accept, (int fd, struct sockaddr *a, socklen_t *l), (fd, a, l))
FORWARD(int, accept4, rsock_accept4, (int fd, struct sockaddr *a, socklen_t *l, int f),
	(fd, a, l, f))
FORWARD(int, shutdown, rsock_shutdown, (int fd, int how), (fd, how))
FORWARD(int, close, rsock_close, (int fd), (fd))
FORWARD(int, __close, rsock_close, (int fd), (fd))

FORWARD(ssize_t, read, rsock_read, (int fd, void *b, size_t n), (fd, b, n))
FORWARD(ssize_t, __read, rsock_read, (int fd, void *b, size_t n), (fd, b, n))
FORWARD(ssize_t, readv, rsock_readv, (int fd, const struct iovec *v, int n), (fd, v, n))
FORWARD(ssize_t, preadv2, rsock_preadv2, (int fd, const struct iovec *v, int n, off_t o, int f),
	(fd, v, n, o, f))
FORWARD(ssize_t, preadv64v2, rsock_preadv2, (int fd, const struct iovec *v, int n, off_t o, int f),
	(fd, v, n, o, f))
FORWARD(ssize_t, recv, rsock_recv, (int fd, void *b, size_t n, int f), (fd, b, n, f))
FORWARD(ssize_t, recvfrom, rsock_recvfrom,
	(int fd, void *b, size_t n, int f, struct sockaddr *a, socklen_t *l), (fd, b, n, f, a, l))
FORWARD(ssize_t, recvmsg, rsock_recvmsg, (int fd, struct msghdr *m, int f), (fd, m, f))
FORWARD(int, recvmmsg, rsock_recvmmsg,
	(int fd, struct mmsghdr *m, unsigned int n, int f, struct timespec *t), (fd, m, n, f, t))

FORWARD(ssize_t, write, rsock_write, (int fd, const void *b, size_t n), (fd, b, n))
FORWARD(ssize_t, __write, rsock_write, (int fd, const void *b, size_t n), (fd, b, n))
FORWARD(ssize_t, writev, rsock_writev, (int fd, const struct iovec *v, int n), (fd, v, n))
FORWARD(ssize_t, pwritev2, rsock_pwritev2, (int fd, const struct iovec *v, int n, off_t o, int f),
	(fd, v, n, o, f))
FORWARD(ssize_t, pwritev64v2, rsock_pwritev2,
	(int fd, const struct iovec *v, int n, off_t o, int f), (fd, v, n, o, f))
FORWARD(ssize_t, send, rsock_send, (int fd, const void *b, size_t n, int f), (fd, b, n, f))
FORWARD(ssize_t, __send, rsock_send, (int fd, const void *b, size_t n, int f), (fd, b, n, f))
FORWARD(ssize_t, sendto, rsock_sendto,
	(int fd, const void *b, size_t n, int f, const struct sockaddr *a, socklen_t l),
	(fd, b, n, f, a, l))
FORWARD(ssize_t, sendmsg, rsock_sendmsg, (int fd, const struct msghdr *m, int f), (fd, m, f))
FORWARD(int, sendmmsg, rsock_sendmmsg, (int fd, struct mmsghdr *m, unsigned int n, int f),
	(fd, m, n, f))
FORWARD(ssize_t, sendfile, rsock_sendfile, (int o, int i, off_t *off, size_t n), (o, i, off, n))
FORWARD(ssize_t, sendfile64, rsock_sendfile, (int o, int i, off_t *off, size_t n), (o, i, off, n))
FORWARD(ssize_t, splice, rsock_splice,
	(int i, off_t *oi, int o, off_t *oo, size_t n, unsigned int f), (i, oi, o, oo, n, f))

FORWARD(int, poll, rsock_poll, (struct pollfd * p, nfds_t n, int t), (p, n, t))
FORWARD(int, __poll, rsock_poll, (struct pollfd * p, nfds_t n, int t), (p, n, t))
FORWARD(int, ppoll, rsock_ppoll,
	(struct pollfd * p, nfds_t n, const struct timespec *t, const sigset_t *m), (p, n, t, m))
FORWARD(int, select, rsock_select, (int n, fd_set *r, fd_set *w, fd_set *e, struct timeval *t),
	(n, r, w, e, t))
FORWARD(int, __select, rsock_select, (int n, fd_set *r, fd_set *w, fd_set *e, struct timeval *t),
	(n, r, w, e, t))
FORWARD(int, pselect, rsock_pselect,
	(int n, fd_set *r, fd_set *w, fd_set *e, const struct timespec *t, const sigset_t *m),
	(n, r, w, e, t, m))
FORWARD(int, epoll_create, rsock_epoll_create, (int n), (n))
FORWARD(int, epoll_create1, rsock_epoll_create1, (int f), (f))
FORWARD(int, epoll_ctl, rsock_epoll_ctl, (int e, int op, int fd, struct epoll_event *ev),
	(e, op, fd, ev))
FORWARD(int, epoll_wait, rsock_epoll_wait, (int e, struct epoll_event *ev, int n, int t),
	(e, ev, n, t))
FORWARD(int, epoll_pwait, rsock_epoll_pwait,
	(int e, struct epoll_event *ev, int n, int t, const sigset_t *m), (e, ev, n, t, m))
FORWARD(int, epoll_pwait2, rsock_epoll_pwait2,
	(int e, struct epoll_event *ev, int n, const struct timespec *t, const sigset_t *m),
	(e, ev, n, t, m))

FORWARD(int, getsockopt, rsock_getsockopt, (int fd, int l, int o, void *v, socklen_t *n),
	(fd, l, o, v, n))
FORWARD(int, setsockopt, rsock_setsockopt, (int fd, int l, int o, const void *v, socklen_t n),
	(fd, l, o, v, n))
FORWARD(int, dup, rsock_dup, (int fd), (fd))
FORWARD(int, dup2, rsock_dup2, (int fd, int to), (fd, to))
FORWARD(int, __dup2, rsock_dup2, (int fd, int to), (fd, to))
FORWARD(int, dup3, rsock_dup3, (int fd, int to, int f), (fd, to, f))
FORWARD(int, close_range, rsock_close_range, (unsigned int a, unsigned int b, int f), (a, b, f))
FORWARD(int, pidfd_getfd, rs_socket_pidfd_getfd, (int p, int fd, unsigned int f), (p, fd, f))
FORWARD(FILE *, fdopen, rsock_fdopen, (int fd, const char *mode), (fd, mode))
FORWARD(FILE *, _IO_fdopen, rsock_fdopen, (int fd, const char *mode), (fd, mode))

EXPORT void closefrom(int first)
{
	rsock_closefrom(first);
}

#define FCNTL(name)                               \
	EXPORT int name(int fd, int cmd, ...)     \
	{                                         \
		unsigned long arg;                \
		va_list ap;                       \
                                                  \
		va_start(ap, cmd);                \
		arg = va_arg(ap, unsigned long);  \
		va_end(ap);                       \
		return rsock_fcntl(fd, cmd, arg); \
	}
FCNTL(fcntl)
FCNTL(fcntl64)
FCNTL(__fcntl)

EXPORT int ioctl(int fd, unsigned long request, ...)
{
	void *arg;
	va_list ap;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	return rsock_ioctl(fd, request, arg);
}

/* What libc's own are made of. */

EXPORT int sockatmark(int fd)
{
	int at;

	return rsock_ioctl(fd, SIOCATMARK, &at) == 0 ? at : -1;
}

EXPORT int eventfd_read(int fd, eventfd_t *value)
{
	return rsock_read(fd, value, sizeof(*value)) == sizeof(*value) ? 0 : -1;
}

EXPORT int eventfd_write(int fd, eventfd_t value)
{
	return rsock_write(fd, &value, sizeof(value)) == sizeof(value) ? 0 : -1;
}

/* ---- the checked forms that _FORTIFY_SOURCE calls ---- */

static void check(size_t n, size_t size)
{
	if (n > size)
		abort(); /* as __chk_fail() does */
}

EXPORT ssize_t __read_chk(int fd, void *b, size_t n, size_t size)
{
	check(n, size);
	return rsock_read(fd, b, n);
}

EXPORT ssize_t __recv_chk(int fd, void *b, size_t n, size_t size, int f)
{
	check(n, size);
	return rsock_recv(fd, b, n, f);
}

EXPORT ssize_t __recvfrom_chk(int fd, void *b, size_t n, size_t size, int f, struct sockaddr *a,
			      socklen_t *l)
{
	check(n, size);
	return rsock_recvfrom(fd, b, n, f, a, l);
}

EXPORT int __poll_chk(struct pollfd *p, nfds_t n, int t, size_t size)
{
	check(n, size / sizeof(*p));
	return rsock_poll(p, n, t);
}

EXPORT int __ppoll_chk(struct pollfd *p, nfds_t n, const struct timespec *t, const sigset_t *m,
		       size_t size)
{
	check(n, size / sizeof(*p));
	return rsock_ppoll(p, n, t, m);
}

/* ---- other programs ---- */

EXPORT int execve(const char *path, char *const argv[], char *const envp[])
{
	rs_process_before_exec();
	return rs_real.execve(path, argv, envp);
}

EXPORT int execv(const char *path, char *const argv[])
{
	rs_process_before_exec();
	return rs_real.execve(path, argv, environ);
}

EXPORT int execvp(const char *file, char *const argv[])
{
	rs_process_before_exec();
	return rs_real.execvpe(file, argv, environ);
}

EXPORT int execvpe(const char *file, char *const argv[], char *const envp[])
{
	rs_process_before_exec();
	return rs_real.execvpe(file, argv, envp);
}

EXPORT int fexecve(int fd, char *const argv[], char *const envp[])
{
	rs_process_before_exec();
	return rs_real.fexecve(fd, argv, envp);
}

EXPORT int execveat(int dir, const char *path, char *const argv[], char *const envp[], int flags)
{
	rs_process_before_exec();
	return rs_real.execveat(dir, path, argv, envp, flags);
}

/* Collects a variadic argument list, terminated by NULL, into `argv`. */
#define COLLECT(first)                                           \
	va_list ap;                                              \
	size_t n = 1;                                            \
                                                                 \
	va_start(ap, first);                                     \
	while (va_arg(ap, const char *))                         \
		n++;                                             \
	va_end(ap);                                              \
	char **argv = __builtin_alloca((n + 1) * sizeof(*argv)); \
	va_start(ap, first);                                     \
	argv[0] = (char *)(uintptr_t)(first);                    \
	for (size_t i = 1; i <= n; i++)                          \
	argv[i] = va_arg(ap, char *)

EXPORT int execl(const char *path, const char *arg, ...)
{
	COLLECT(arg);

	va_end(ap);
	return execv(path, argv);
}

EXPORT int execlp(const char *file, const char *arg, ...)
{
	COLLECT(arg);

	va_end(ap);
	return execvp(file, argv);
}

EXPORT int execle(const char *path, const char *arg, ...)
{
	char **envp;
	COLLECT(arg);

	envp = va_arg(ap, char **);
	va_end(ap);
	return execve(path, argv, envp);
}

EXPORT int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *fa,
		       const posix_spawnattr_t *at, char *const argv[], char *const envp[])
{
	if (fa)
		rs_process_before_spawn();
	else
		rs_process_before_start();
	return rs_real.posix_spawn(pid, path, fa, at, argv, envp);
}

EXPORT int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *fa,
			const posix_spawnattr_t *at, char *const argv[], char *const envp[])
{
	if (fa)
		rs_process_before_spawn();
	else
		rs_process_before_start();
	return rs_real.posix_spawnp(pid, file, fa, at, argv, envp);
}

EXPORT int system(const char *command)
{
	rs_process_before_start();
	return rs_real.system(command);
}

EXPORT FILE *popen(const char *command, const char *mode)
{
	rs_process_before_start();
	return rs_real.popen(command, mode);
}

EXPORT FILE *_IO_popen(const char *command, const char *mode)
{
	return popen(command, mode);
}

EXPORT int wordexp(const char *words, wordexp_t *result, int flags)
{
	if (strstr(words, "$(") || strchr(words, '`')) /* a shell does it */
		rs_process_before_start();
	return rs_real.wordexp(words, result, flags);
}

/* ---- forks that libc's fork handlers do not see ---- */

EXPORT pid_t _Fork(void)
{
	pid_t pid;

	rs_real_load();
	rs_process_before_fork();
	pid = rs_real._Fork();
	rs_process_after_fork(pid == 0);
	return pid;
}

struct cloned {
	int (*fn)(void *);
	void *arg;
};

/* Where `fn` returns, libc ends the thread, not the process; the child may have one of ours by then. */
static int run_cloned(void *arg)
{
	struct cloned *x = arg;

	rs_process_after_fork(true);
	_exit(x->fn(x->arg));
}

EXPORT int clone(int (*fn)(void *), void *stack, int flags, void *arg, ...)
{
	struct cloned x = { fn, arg };
	pid_t *parent_tid, *child_tid;
	void *tls;
	va_list ap;
	int pid;

	/* Those that the caller did not give are not looked at. */
	va_start(ap, arg);
	parent_tid = va_arg(ap, pid_t *);
	tls = va_arg(ap, void *);
	child_tid = va_arg(ap, pid_t *);
	va_end(ap);
	rs_real_load();
	if (flags & CLONE_VM || !fn || !stack)
		return rs_real.clone(fn, stack, flags, arg, parent_tid, tls, child_tid);
	rs_process_before_fork();
	pid = rs_real.clone(run_cloned, stack, flags, &x, parent_tid, tls, child_tid);
	rs_process_after_fork(false);
	return pid;
}

EXPORT int __clone(int (*fn)(void *), void *stack, int flags, void *arg, ...)
	__attribute__((alias("clone"), copy(clone)));

/* ---- name spaces ---- */

/* The kernel refuses some of these to a process with more than one thread. */
EXPORT int unshare(int flags)
{
	bool paused = rs_control_pause();
	int r = rs_real.unshare(flags), saved;

	/* A thread that was joined may not be gone from the kernel yet. */
	for (int i = 0; r != 0 && errno == EINVAL && paused && i < 50; i++) {
		struct timespec ms = { 0, 1000000 };

		rs_sys4(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &ms, NULL);
		r = rs_real.unshare(flags);
	}
	saved = errno;

	if (paused)
		rs_control_start();
	errno = saved;
	return r;
}

EXPORT int setns(int fd, int type)
{
	bool paused = rs_control_pause();
	int r = rs_real.setns(fd, type), saved = errno;

	if (paused)
		rs_control_start();
	errno = saved;
	return r;
}

/* ---- calls that only the kernel can do ---- */

static int leave(int fd)
{
	int r = rs_process_leave_fd(fd, RS_REASON_CALL);

	if (r == 0)
		return 0;
	errno = -r;
	return -1;
}

/* ---- system calls by number ---- */

static bool has_stream(int fd)
{
	struct rs_conn *c = rs_file_conn(fd);

	if (c)
		rs_conn_put(c);
	return c != NULL;
}

/* Whether it is for us: what changes who knows a descriptor always is, I/O if it is on a stream. */
static bool ours(long n, int fd)
{
	switch (n) {
	case SYS_dup:
	case SYS_dup2:
	case SYS_dup3:
	case SYS_fcntl:
	case SYS_splice:
	case SYS_close:
	case SYS_close_range:
	case SYS_pidfd_getfd:
		return true;
	case SYS_read:
	case SYS_write:
	case SYS_readv:
	case SYS_writev:
	case SYS_preadv2:
	case SYS_pwritev2:
	case SYS_sendto:
	case SYS_recvfrom:
	case SYS_sendmsg:
	case SYS_recvmsg:
	case SYS_sendmmsg:
	case SYS_recvmmsg:
	case SYS_sendfile:
	case SYS_shutdown:
	case SYS_ioctl:
		return has_stream(fd);
	default:
		return false;
	}
}

/*
 * Whether it makes a process with memory of its own that carries on where this one does. With another
 * stack it could not return from here, nor from libc's syscall().
 */
static bool forks(long n, const long a[6])
{
	const struct clone_args *x = (const struct clone_args *)a[0];

	switch (n) {
	case SYS_fork:
		return true;
	case SYS_clone:
		return !(a[0] & CLONE_VM) && a[1] == 0;
	case SYS_clone3:
		return x && (size_t)a[1] >= sizeof(x->flags) && !(x->flags & CLONE_VM) &&
		       ((size_t)a[1] < offsetof(struct clone_args, tls) || x->stack == 0);
	default:
		return false;
	}
}

/* By our function of the same name. */
static long by_name(long n, const long a[6])
{
	int fd = (int)a[0];
	void *p = (void *)a[1];

	switch (n) {
	case SYS_read:
		return rsock_read(fd, p, (size_t)a[2]);
	case SYS_write:
		return rsock_write(fd, p, (size_t)a[2]);
	case SYS_readv:
		return rsock_readv(fd, p, (int)a[2]);
	case SYS_writev:
		return rsock_writev(fd, p, (int)a[2]);
	case SYS_preadv2:
		return rsock_preadv2(fd, p, (int)a[2], a[3], (int)a[5]);
	case SYS_pwritev2:
		return rsock_pwritev2(fd, p, (int)a[2], a[3], (int)a[5]);
	case SYS_sendto:
		return rsock_sendto(fd, p, (size_t)a[2], (int)a[3], (void *)a[4], (socklen_t)a[5]);
	case SYS_recvfrom:
		return rsock_recvfrom(fd, p, (size_t)a[2], (int)a[3], (void *)a[4], (void *)a[5]);
	case SYS_sendmsg:
		return rsock_sendmsg(fd, p, (int)a[2]);
	case SYS_recvmsg:
		return rsock_recvmsg(fd, p, (int)a[2]);
	case SYS_sendmmsg:
		return rsock_sendmmsg(fd, p, (unsigned int)a[2], (int)a[3]);
	case SYS_recvmmsg:
		return rsock_recvmmsg(fd, p, (unsigned int)a[2], (int)a[3], (void *)a[4]);
	case SYS_sendfile:
		return rsock_sendfile(fd, (int)a[1], (off_t *)a[2], (size_t)a[3]);
	case SYS_shutdown:
		return rsock_shutdown(fd, (int)a[1]);
	case SYS_dup:
		return rsock_dup(fd);
	case SYS_dup2:
		return rsock_dup2(fd, (int)a[1]);
	case SYS_dup3:
		return rsock_dup3(fd, (int)a[1], (int)a[2]);
	case SYS_fcntl:
		return rsock_fcntl(fd, (int)a[1], (unsigned long)a[2]);
	case SYS_ioctl:
		return rsock_ioctl(fd, (unsigned long)a[1], (void *)a[2]);
	case SYS_splice:
		return rsock_splice(fd, (off_t *)a[1], (int)a[2], (off_t *)a[3], (size_t)a[4],
				    (unsigned int)a[5]);
	case SYS_close:
		return rsock_close(fd);
	case SYS_pidfd_getfd:
		return rs_socket_pidfd_getfd(fd, (int)a[1], (unsigned int)a[2]);
	default: /* SYS_close_range */
		return rsock_close_range((unsigned int)a[0], (unsigned int)a[1], (int)a[2]);
	}
}

/*
 * Of one thread, and ours is another, which must not keep what the program gives up. What other threads
 * than the first do so is meant for them alone.
 */
static bool changes_credentials(long n)
{
	switch (n) {
	case SYS_setuid:
	case SYS_setgid:
	case SYS_setreuid:
	case SYS_setregid:
	case SYS_setresuid:
	case SYS_setresgid:
	case SYS_setfsuid:
	case SYS_setfsgid:
	case SYS_setgroups:
	case SYS_capset:
		return rs_sys0(SYS_gettid) == rs_process_pid;
	default:
		return false;
	}
}

EXPORT long syscall(long n, ...)
{
	long a[6], r;
	int cancel;
	va_list ap;

	va_start(ap, n);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	if (n == SYS_exit_group)
		rs_process_exits();
	if (n == SYS_execve || n == SYS_execveat)
		rs_process_before_exec();
	if (ours(n, (int)a[0])) {
		/* A system call is no place to be cancelled. */
		pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
		r = by_name(n, a);
		pthread_setcancelstate(cancel, NULL);
		return r;
	}
	if (forks(n, a)) {
		rs_process_before_fork();
		r = rs_sys6(n, a[0], a[1], a[2], a[3], a[4], a[5]);
		rs_process_after_fork(r == 0);
	} else {
		r = rs_sys6(n, a[0], a[1], a[2], a[3], a[4], a[5]);
		if (n == SYS_io_uring_setup && r >= 0)
			rs_process_has_ring();
		if (r >= 0 && changes_credentials(n))
			rs_control_call(n, a);
	}
	if ((unsigned long)r > -4096UL) {
		errno = (int)-r;
		return -1;
	}
	return r;
}

EXPORT __attribute__((noreturn)) void _exit(int status)
{
	rs_process_exits();
	rs_real._exit(status);
	__builtin_unreachable();
}

EXPORT __attribute__((noreturn)) void _Exit(int status)
{
	_exit(status);
}

/* ---- what reads and writes within libc ---- */

/* Threads of libc do it. */
static int leave_for_aio(int fd, bool reads)
{
	struct rs_conn *c;
	bool stays;

	if (leave(fd) != 0)
		return -1;
	c = rs_file_conn(fd);
	stays = c && !__atomic_load_n(&c->plain, __ATOMIC_ACQUIRE);
	if (c)
		rs_conn_put(c);
	if (reads && stays) {
		/* The peer has ended, and what is left to read is in the ring: only read() has it. */
		errno = EAGAIN;
		return -1;
	}
	return 0;
}

#define AIO(name, cb, reads)                                                            \
	EXPORT int name(struct cb *c)                                                   \
	{                                                                               \
		return leave_for_aio(c->aio_fildes, reads) == 0 ? rs_real.name(c) : -1; \
	}
AIO(aio_read, aiocb, true)
AIO(aio_read64, aiocb64, true)
AIO(aio_write, aiocb, false)
AIO(aio_write64, aiocb64, false)

#define LIO_LISTIO(name, cb)                                                            \
	EXPORT int name(int mode, struct cb *const list[], int n, struct sigevent *sig) \
	{                                                                               \
		for (int i = 0; i < n; i++)                                             \
			if (list[i] && list[i]->aio_lio_opcode != LIO_NOP &&            \
			    leave_for_aio(list[i]->aio_fildes,                          \
					  list[i]->aio_lio_opcode == LIO_READ) != 0)    \
				return -1;                                              \
		return rs_real.name(mode, list, n, sig);                                \
	}
LIO_LISTIO(lio_listio, aiocb)
LIO_LISTIO(lio_listio64, aiocb64)

EXPORT void backtrace_symbols_fd(void *const *frames, int n, int fd)
{
	if (leave(fd) == 0)
		rs_real.backtrace_symbols_fd(frames, n, fd);
}

EXPORT void __backtrace_symbols_fd(void *const *frames, int n, int fd)
{
	backtrace_symbols_fd(frames, n, fd);
}

static int stdio_to_null(void)
{
	int fd = open("/dev/null", O_RDWR);
	struct stat st;

	if (fd < 0)
		return -1;
	if (fstat(fd, &st) != 0 || !S_ISCHR(st.st_mode) || st.st_rdev != makedev(1, 3)) {
		rsock_close(fd);
		errno = ENODEV;
		return -1;
	}
	for (int to = STDIN_FILENO; to <= STDERR_FILENO; to++)
		rsock_dup2(fd, to);
	if (fd > STDERR_FILENO)
		rsock_close(fd);
	return 0;
}

/* libc's ends the parent by its own _exit(), and with it what TCP has yet to take. */
EXPORT int daemon(int stay_in_dir, int keep_stdio)
{
	pid_t pid = fork();

	if (pid > 0)
		_exit(0);
	if (pid < 0 || setsid() < 0)
		return -1;
	if (!stay_in_dir && chdir("/") != 0)
		return -1;
	return keep_stdio ? 0 : stdio_to_null();
}

/* ---- stdio on a socket ---- */

EXPORT int vdprintf(int fd, const char *format, va_list ap)
{
	if (leave(fd) != 0)
		return -1;
	return rs_real.vdprintf(fd, format, ap);
}

EXPORT int __vdprintf_chk(int fd, int flag, const char *format, va_list ap)
{
	(void)flag;
	if (leave(fd) != 0)
		return -1;
	return rs_real.vdprintf(fd, format, ap);
}

EXPORT int dprintf(int fd, const char *format, ...)
{
	va_list ap;
	int r;

	va_start(ap, format);
	r = vdprintf(fd, format, ap);
	va_end(ap);
	return r;
}

EXPORT int __dprintf_chk(int fd, int flag, const char *format, ...)
{
	va_list ap;
	int r;

	(void)flag;
	va_start(ap, format);
	r = vdprintf(fd, format, ap);
	va_end(ap);
	return r;
}

EXPORT int fclose(FILE *f)
{
	int fd = f ? fileno(f) : -1;

	/* libc closes the descriptor past us: drop what we know of it (plain since fdopen). */
	if (fd >= 0 && !has_stream(fd))
		rs_socket_forget(fd);
	return rs_real.fclose(f);
}

EXPORT int _IO_fclose(FILE *f)
{
	return fclose(f);
}

/* ---- handlers: how they want calls to end that they interrupt ---- */

__attribute__((constructor)) static void tell_of_hooks(void)
{
	rs_hooks = (struct rs_hooks){ read, write };
	rs_signals_changed();
}

EXPORT int sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	int r;

	rs_real_load();
	r = rs_real.sigaction(sig, act, old);
	if (act)
		rs_signals_changed();
	return r;
}

EXPORT sighandler_t signal(int sig, sighandler_t handler)
{
	sighandler_t r;

	rs_real_load();
	r = rs_real.signal(sig, handler);
	rs_signals_changed();
	return r;
}

EXPORT sighandler_t sysv_signal(int sig, sighandler_t handler)
{
	sighandler_t r;

	rs_real_load();
	r = rs_real.sysv_signal(sig, handler);
	rs_signals_changed();
	return r;
}

EXPORT sighandler_t sigset(int sig, sighandler_t handler)
{
	sighandler_t r;

	rs_real_load();
	r = rs_real.sigset(sig, handler);
	rs_signals_changed();
	return r;
}

EXPORT int siginterrupt(int sig, int flag)
{
	int r;

	rs_real_load();
	r = rs_real.siginterrupt(sig, flag);
	rs_signals_changed();
	return r;
}

EXPORT int __sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	return sigaction(sig, act, old);
}

EXPORT sighandler_t bsd_signal(int sig, sighandler_t handler)
{
	return signal(sig, handler);
}

EXPORT sighandler_t ssignal(int sig, sighandler_t handler)
{
	return signal(sig, handler);
}

EXPORT sighandler_t __sysv_signal(int sig, sighandler_t handler)
{
	return sysv_signal(sig, handler);
}
