/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * epoll_set.h - between epoll.c, epoll_ctl.c and epoll_wait.c: what a set is made of
 *
 * epoll.c keeps sets, and hears from connections; epoll_ctl.c puts items in and takes them out;
 * epoll_wait.c reports those that are ready.
 */
#ifndef PRELOAD_EPOLL_SET_H
#define PRELOAD_EPOLL_SET_H

#include "conn_mgr/conn.h"
#include "preload/epoll.h"
#include "rsock/lock.h"

#define RS_EPOLL_BUCKETS 64u
#define RS_EPOLL_MAX_NESTS 5 /* the kernel's own limit */
/* Beside the bits of poll(2) in a watch's `told`: somebody is just looking what there is to tell. */
#define RS_TOLD_LOOKING (1u << 31)
/* What the kernel leaves of a one-shot's events when it has fired. */
#define RS_ONESHOT_PRIVATE ((unsigned long)(EPOLLWAKEUP | EPOLLONESHOT | EPOLLET | EPOLLEXCLUSIVE))

struct rs_item {
	struct rs_watch watch;
	struct rs_epoll *ep;
	struct rs_conn *c; /* holds a reference */
	int fd;
	uint32_t events;
	epoll_data_t data;
	bool in_kernel; /* the kernel's set speaks for it */
	bool disarmed; /* EPOLLONESHOT has fired */
	bool evicted; /* was told to leave for TCP, for the set has no room for a bell */
	bool queued;
	bool fresh; /* bytes or room came: an edge, whatever was told before */
	uint64_t batch; /* the last one of the set that it was in */
	uint64_t switched; /* ep->switches when it left the kernel's set; UINT64_MAX: meanwhile */
	struct rs_item *hash_next, *ready_next;
};

/* Words that are read without the lock under which they are written. */
#define RS_GET(x) __atomic_load_n(&(x), __ATOMIC_RELAXED)
#define RS_SET(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELAXED)

/* A set that was added to another one. It may be gone: `tag` tells. */
struct rs_inner {
	struct rs_epoll *ep;
	uint64_t tag;
	int fd;
	struct rs_inner *next;
};

struct rs_epoll {
	uint32_t refs; /* descriptors, and calls in progress */
	uint32_t nfds; /* descriptors */
	struct rs_lock lock; /* the items; taken before connection locks */
	struct rs_lock ready_lock; /* the queue; a leaf */
	struct rs_lock mark_lock; /* the bell */
	int epfd; /* one of its descriptors; */
	bool own_fd; /* the program has none any more, and this is ours */
	bool stale; /* a handler that interrupted who has the lock closed connections */
	bool forked; /* `refs` counts threads of the parent too */
	struct rs_item
		*inherited; /* it came by a fork with these, which only the parent's mirror had */
	struct rs_inner *inner;
	struct rs_item *hash[RS_EPOLL_BUCKETS];
	struct rs_item *ready, **ready_tail;
	uint32_t nready;
	uint32_t items;
	uint32_t kernel_fds; /* descriptors that the program added to the kernel's set */
	uint32_t bell;
	bool marked; /* the bell is in the kernel's set */
	uint64_t tag; /* the bell's data word there */
	uint32_t sleepers;
	bool nested; /* some other set watches this one: its bell must always be heard */
	bool flat; /* it is nested as deep as the kernel allows: there is no room for a bell */
	struct rs_spin spin; /* of the threads that wait */
	uint64_t batches; /* that were collected */
	uint64_t switches; /* items that have left the kernel's set */
	uint64_t kernel_look; /* ticks; 0: the last look at the kernel's descriptors found some */
	bool kernel_last; /* whose turn it is when the caller takes one event at a time */
	uint32_t last_cpu; /* where the last ready stream's peer ran */
	struct rs_epoll *free_next;
};

/* ---- epoll.c ---- */

void rs_epoll_drop_stale(struct rs_epoll *ep);

static inline void rs_epoll_unlock(struct rs_epoll *ep)
{
	rs_unlock(&ep->lock);
	if (__builtin_expect(RS_GET(ep->stale), 0))
		rs_epoll_drop_stale(ep);
}

/* A reference, unless the set is gone. */
bool rs_epoll_get(struct rs_epoll *ep);
/* The `n`-th set in this one, with a reference (NULL: it is gone); false: there are not so many. */
bool rs_epoll_inner(struct rs_epoll *ep, uint32_t n, struct rs_epoll **inner);
/* Sets that watch this one hear of its news again. */
void rs_epoll_renew_nested(struct rs_epoll *ep);
/* The kernel's set without the bell, for good; false: it has streams that need one still. */
bool rs_epoll_unmark(struct rs_epoll *ep);

struct rs_item *rs_item_of(struct rs_watch *w);
/* The bits of poll(2) that it asks for. */
uint32_t rs_item_events(const struct rs_item *it);
/* Under ep->lock: where in the hash chain `fd`'s item hangs (*result NULL: there is none) ... */
struct rs_item **rs_item_find(struct rs_epoll *ep, int fd, const struct rs_conn *c);
/* ... and to take it out and free it. */
void rs_item_remove(struct rs_epoll *ep, struct rs_item **where);

/* The queue of items that may be ready; `fresh`: bytes or room came. */
void rs_item_push(struct rs_item *it, bool fresh);
struct rs_item *rs_item_pop(struct rs_epoll *ep, bool *fresh);
void rs_item_unqueue(struct rs_item *it);

/* As rs_item_push(), and wakes who waits. */
void rs_item_say(struct rs_item *it, bool fresh);
/* What connections tell us, under their lock (struct rs_watch). */
void rs_item_changed(struct rs_watch *w, struct rs_conn *c);
void rs_item_kernel_speaks(struct rs_watch *w, struct rs_conn *c, bool speaks);
#endif
