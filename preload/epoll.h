/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * epoll.h - epoll sets that hold streams
 *
 * The kernel's epoll set stays the real one for everything that the kernel can speak for. A stream
 * for which it cannot (it is on, or about to be on, the fast path) is taken out of it and kept here
 * only; an eventfd (the set's bell) in the kernel's set wakes its sleepers, which also makes poll()
 * on the epoll descriptor and nested sets work. Functions set errno as epoll(7) says.
 */
#ifndef PRELOAD_EPOLL_H
#define PRELOAD_EPOLL_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <time.h>

struct rs_conn;
struct rs_epoll;

/* A new set for `epfd`; NULL: out of memory (the descriptor is then the kernel's alone). */
struct rs_epoll *rs_epoll_new(int epfd);
/* The set behind `epfd` with a reference; NULL: none that we know. */
struct rs_epoll *rs_epoll_of(int epfd);
void rs_epoll_put(struct rs_epoll *ep);
/* The program has one more descriptor of it; false: the set is gone. */
bool rs_epoll_fd_added(struct rs_epoll *ep);
/*
 * And one less. `other`: called under the set's lock for one that remains, or -1: then those that remain
 * are being closed by other threads, which have still to come here. Who is inside meanwhile waits on.
 */
void rs_epoll_fd_closed(struct rs_epoll *ep, int fd,
			int (*other)(const struct rs_epoll *ep, int fd));
int rs_epoll_ctl_ep(struct rs_epoll *ep, int epfd, int op, int fd, struct epoll_event *ev);
/* `timeout`: NULL for ever. Takes over the caller's reference. */
int rs_epoll_wait_ep(struct rs_epoll *ep, struct epoll_event *ev, int max,
		     const struct timespec *timeout, const sigset_t *mask);
/*
 * Whether a wait would return something of ours now (for poll() on the epoll descriptor). If not, the
 * kernel does not say so either, until there is news.
 */
bool rs_epoll_ready(struct rs_epoll *ep);
/* Prepares for a sleeper that waits for the set from outside (poll on epfd). */
bool rs_epoll_asleep(struct rs_epoll *ep, bool asleep);
/* The last descriptor of a connection is closed: no set speaks of it any more. */
void rs_epoll_conn_closed(struct rs_conn *c);
/* In a forked child. */
void rs_epoll_forget(void);

#endif
