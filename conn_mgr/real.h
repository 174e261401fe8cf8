/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * real.h - libc's own functions behind the ones that the preload interposes
 *
 * They are what a plain connection uses, and where a thread may be cancelled or must restart exactly
 * as in libc. Before rs_real_load() (a malloc interposer may run that early) they are raw system
 * calls. All set errno.
 */
#ifndef CONN_MGR_REAL_H
#define CONN_MGR_REAL_H

#include <aio.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <wordexp.h>

/* X(result, name, parameters) */
#define RS_REAL_CALLS(X)                                                                         \
	X(int, socket, (int, int, int))                                                          \
	X(int, connect, (int, const struct sockaddr *, socklen_t))                               \
	X(int, accept, (int, struct sockaddr *, socklen_t *))                                    \
	X(int, accept4, (int, struct sockaddr *, socklen_t *, int))                              \
	X(int, listen, (int, int))                                                               \
	X(int, close, (int))                                                                     \
	X(int, shutdown, (int, int))                                                             \
	X(ssize_t, read, (int, void *, size_t))                                                  \
	X(ssize_t, write, (int, const void *, size_t))                                           \
	X(ssize_t, readv, (int, const struct iovec *, int))                                      \
	X(ssize_t, writev, (int, const struct iovec *, int))                                     \
	X(ssize_t, preadv2, (int, const struct iovec *, int, off_t, int))                        \
	X(ssize_t, pwritev2, (int, const struct iovec *, int, off_t, int))                       \
	X(ssize_t, recv, (int, void *, size_t, int))                                             \
	X(ssize_t, recvfrom, (int, void *, size_t, int, struct sockaddr *, socklen_t *))         \
	X(ssize_t, recvmsg, (int, struct msghdr *, int))                                         \
	X(int, recvmmsg, (int, struct mmsghdr *, unsigned int, int, struct timespec *))          \
	X(ssize_t, send, (int, const void *, size_t, int))                                       \
	X(ssize_t, sendto, (int, const void *, size_t, int, const struct sockaddr *, socklen_t)) \
	X(ssize_t, sendmsg, (int, const struct msghdr *, int))                                   \
	X(int, sendmmsg, (int, struct mmsghdr *, unsigned int, int))                             \
	X(ssize_t, sendfile, (int, int, off_t *, size_t))                                        \
	X(ssize_t, splice, (int, off_t *, int, off_t *, size_t, unsigned int))                   \
	X(int, poll, (struct pollfd *, nfds_t, int))                                             \
	X(int, ppoll, (struct pollfd *, nfds_t, const struct timespec *, const sigset_t *))      \
	X(int, select, (int, fd_set *, fd_set *, fd_set *, struct timeval *))                    \
	X(int, pselect,                                                                          \
	  (int, fd_set *, fd_set *, fd_set *, const struct timespec *, const sigset_t *))        \
	X(int, epoll_create1, (int))                                                             \
	X(int, epoll_ctl, (int, int, int, struct epoll_event *))                                 \
	X(int, epoll_wait, (int, struct epoll_event *, int, int))                                \
	X(int, epoll_pwait, (int, struct epoll_event *, int, int, const sigset_t *))             \
	X(int, epoll_pwait2,                                                                     \
	  (int, struct epoll_event *, int, const struct timespec *, const sigset_t *))           \
	X(int, getsockopt, (int, int, int, void *, socklen_t *))                                 \
	X(int, setsockopt, (int, int, int, const void *, socklen_t))                             \
	X(int, dup, (int))                                                                       \
	X(int, dup2, (int, int))                                                                 \
	X(int, dup3, (int, int, int))                                                            \
	X(int, close_range, (unsigned int, unsigned int, int))                                   \
	X(void, closefrom, (int))                                                                \
	X(FILE *, fdopen, (int, const char *))                                                   \
	X(int, fclose, (FILE *))                                                                 \
	X(int, execve, (const char *, char *const *, char *const *))                             \
	X(int, execvpe, (const char *, char *const *, char *const *))                            \
	X(int, fexecve, (int, char *const *, char *const *))                                     \
	X(int, execveat, (int, const char *, char *const *, char *const *, int))                 \
	X(int, posix_spawn,                                                                      \
	  (pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *, \
	   char *const *, char *const *))                                                        \
	X(int, posix_spawnp,                                                                     \
	  (pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *, \
	   char *const *, char *const *))                                                        \
	X(int, system, (const char *))                                                           \
	X(FILE *, popen, (const char *, const char *))                                           \
	X(pid_t, _Fork, (void))                                                                  \
	X(int, unshare, (int))                                                                   \
	X(int, setns, (int, int))                                                                \
	X(void, _exit, (int))                                                                    \
	X(int, sigaction, (int, const struct sigaction *, struct sigaction *))                   \
	X(sighandler_t, signal, (int, sighandler_t))                                             \
	X(sighandler_t, sysv_signal, (int, sighandler_t))                                        \
	X(sighandler_t, sigset, (int, sighandler_t))                                             \
	X(int, siginterrupt, (int, int))                                                         \
	X(int, vdprintf, (int, const char *, va_list))                                           \
	X(int, aio_read, (struct aiocb *))                                                       \
	X(int, aio_read64, (struct aiocb64 *))                                                   \
	X(int, aio_write, (struct aiocb *))                                                      \
	X(int, aio_write64, (struct aiocb64 *))                                                  \
	X(int, lio_listio, (int, struct aiocb *const *, int, struct sigevent *))                 \
	X(int, lio_listio64, (int, struct aiocb64 *const *, int, struct sigevent *))             \
	X(void, backtrace_symbols_fd, (void *const *, int, int))                                 \
	X(int, wordexp, (const char *, wordexp_t *, int))

struct rs_real {
#define X(ret, name, params) ret(*name) params;
	RS_REAL_CALLS(X)
#undef X
	int (*fcntl)(int, int, ...);
	int (*ioctl)(int, unsigned long, ...);
	int (*clone)(int (*)(void *), void *, int, void *, ...);
};

extern struct rs_real rs_real;

/* What stands before libc's functions, if anything does. */
extern struct rs_hooks {
	ssize_t (*read)(int, void *, size_t);
	ssize_t (*write)(int, const void *, size_t);
} rs_hooks;

/* Resolves all of them (dlsym RTLD_NEXT). Idempotent; called by the library's constructor. */
void rs_real_load(void);

#endif
