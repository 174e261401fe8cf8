/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * rsock.h - sockets whose TCP connections move to shared memory or RDMA while they run
 *
 * For programs that link with librsock instead of running under `rsock run`. Each function is the
 * POSIX or Linux function of the same name without the prefix - same arguments, results and errno -
 * for any descriptor; those of TCP connections may be on the fast path. A program must use these
 * functions, and not libc's, for every descriptor that rsock_socket(), rsock_accept() or a dup of
 * those gave it, and for epoll sets that hold such descriptors. Thread-safe.
 */
#ifndef RSOCK_H
#define RSOCK_H

#ifndef _GNU_SOURCE
#error "rsock.h needs _GNU_SOURCE (accept4, struct mmsghdr, epoll_pwait2 ...)"
#endif

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

int rsock_socket(int domain, int type, int protocol);
int rsock_connect(int fd, const struct sockaddr *addr, socklen_t len);
int rsock_listen(int fd, int backlog);
int rsock_accept(int fd, struct sockaddr *addr, socklen_t *len);
int rsock_accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags);
int rsock_shutdown(int fd, int how);
int rsock_close(int fd);

ssize_t rsock_read(int fd, void *buf, size_t n);
ssize_t rsock_readv(int fd, const struct iovec *iov, int n);
ssize_t rsock_preadv2(int fd, const struct iovec *iov, int n, off_t off, int flags);
ssize_t rsock_recv(int fd, void *buf, size_t n, int flags);
ssize_t rsock_recvfrom(int fd, void *buf, size_t n, int flags, struct sockaddr *addr,
		       socklen_t *len);
ssize_t rsock_recvmsg(int fd, struct msghdr *msg, int flags);
int rsock_recvmmsg(int fd, struct mmsghdr *msgs, unsigned int n, int flags,
		   struct timespec *timeout);

ssize_t rsock_write(int fd, const void *buf, size_t n);
ssize_t rsock_writev(int fd, const struct iovec *iov, int n);
ssize_t rsock_pwritev2(int fd, const struct iovec *iov, int n, off_t off, int flags);
ssize_t rsock_send(int fd, const void *buf, size_t n, int flags);
ssize_t rsock_sendto(int fd, const void *buf, size_t n, int flags, const struct sockaddr *addr,
		     socklen_t len);
ssize_t rsock_sendmsg(int fd, const struct msghdr *msg, int flags);
int rsock_sendmmsg(int fd, struct mmsghdr *msgs, unsigned int n, int flags);
ssize_t rsock_sendfile(int out, int in, off_t *off, size_t n);
ssize_t rsock_splice(int in, off_t *off_in, int out, off_t *off_out, size_t n, unsigned int flags);

int rsock_poll(struct pollfd *fds, nfds_t n, int timeout);
int rsock_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask);
int rsock_select(int n, fd_set *r, fd_set *w, fd_set *e, struct timeval *timeout);
int rsock_pselect(int n, fd_set *r, fd_set *w, fd_set *e, const struct timespec *timeout,
		  const sigset_t *mask);
int rsock_epoll_create(int size);
int rsock_epoll_create1(int flags);
int rsock_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev);
int rsock_epoll_wait(int epfd, struct epoll_event *ev, int max, int timeout);
int rsock_epoll_pwait(int epfd, struct epoll_event *ev, int max, int timeout, const sigset_t *mask);
int rsock_epoll_pwait2(int epfd, struct epoll_event *ev, int max, const struct timespec *timeout,
		       const sigset_t *mask);

int rsock_getsockopt(int fd, int level, int name, void *val, socklen_t *len);
int rsock_setsockopt(int fd, int level, int name, const void *val, socklen_t len);
int rsock_fcntl(int fd, int cmd, unsigned long arg);
int rsock_ioctl(int fd, unsigned long request, void *arg);
int rsock_dup(int fd);
int rsock_dup2(int fd, int to);
int rsock_dup3(int fd, int to, int flags);
int rsock_close_range(unsigned int first, unsigned int last, int flags);
void rsock_closefrom(int first);
FILE *rsock_fdopen(int fd, const char *mode);

/*
 * Which path the directions of a connection are on: that of sending | that of receiving << 4, each
 * 0 (TCP), 1 (shared memory) or 2 (RDMA). 0 also for what is no connection.
 */
int rsock_fd_path(int fd);
/* Moves a connection back to TCP, for good. 0, or -1 with errno ETIMEDOUT. */
int rsock_fd_leave(int fd);
/*
 * Starts to move a connection back to TCP, from where it comes back by itself: at once when the connecting
 * end does this, else when that end looks for us again. 0.
 */
int rsock_fd_renew(int fd);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif
