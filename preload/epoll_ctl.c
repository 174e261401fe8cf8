/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "preload/epoll_set.h"

#include <stdlib.h>

#include "conn_mgr/accepted.h"
#include "conn_mgr/real.h"
#include "preload/files.h"
#include "rsock/sys.h"

#define FLATTEN_MS 2000 /* to wait for a stream that goes back to TCP */

/* What may stand beside EPOLLEXCLUSIVE. */
#define EXCLUSIVE_OK                                                                   \
	((uint32_t)(EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLWAKEUP | EPOLLET | \
		    EPOLLEXCLUSIVE))

/* ---- items ---- */

static int add_item(struct rs_epoll *ep, struct rs_conn *c, int fd, struct epoll_event *ev)
{
	struct rs_item *it, **p = rs_item_find(ep, fd, c);
	bool silent;
	int r = 0;

	if (*p) {
		errno = EEXIST;
		return -1;
	}
	it = calloc(1, sizeof(*it));
	if (!it) {
		errno = ENOMEM;
		return -1;
	}
	it->watch.changed = rs_item_changed;
	it->watch.kernel = rs_item_kernel_speaks;
	it->ep = ep;
	it->c = c;
	it->fd = fd;
	it->events = ev->events;
	it->data = ev->data;
	rs_lock(&c->lock);
	if (!c->managed) {
		r = (int)rs_sys4(SYS_epoll_ctl, ep->epfd, EPOLL_CTL_ADD, fd, ev);
		it->in_kernel = true;
	}
	if (r == 0) {
		__atomic_fetch_add(&c->refs, 1, __ATOMIC_RELAXED);
		rs_conn_watch(c, &it->watch);
		if (it->in_kernel)
			__atomic_fetch_add(&ep->kernel_fds, 1, __ATOMIC_RELAXED);
		else
			rs_item_kernel_speaks(&it->watch, c, false);
	}
	/* Without a bell nothing would tell of a stream that is fast already. */
	silent = !it->in_kernel && !RS_GET(ep->bell);
	rs_unlock(&c->lock);
	if (r != 0) {
		free(it);
		errno = -r;
		return -1;
	}
	p = &ep->hash[(unsigned int)fd % RS_EPOLL_BUCKETS];
	it->hash_next = *p;
	*p = it;
	RS_SET(ep->items, ep->items + 1);
	if (silent)
		rs_conn_leave(c, RS_REASON_NO_FDS, true, 0);
	return 0;
}

static int modify_item(struct rs_epoll *ep, struct rs_item *it, struct epoll_event *ev)
{
	int r = 0;

	if ((it->events & EPOLLEXCLUSIVE) || (ev->events & EPOLLEXCLUSIVE)) {
		errno = EINVAL;
		return -1;
	}
	rs_lock(&it->c->lock);
	if (it->in_kernel)
		r = (int)rs_sys4(SYS_epoll_ctl, ep->epfd, EPOLL_CTL_MOD, it->fd, ev);
	if (r == 0) {
		it->events = ev->events;
		it->data = ev->data;
		RS_SET(it->disarmed, false);
		__atomic_store_n(&it->watch.told, 0, __ATOMIC_SEQ_CST);
		if (!it->in_kernel)
			rs_item_say(it, true);
	}
	rs_unlock(&it->c->lock);
	if (r != 0) {
		errno = -r;
		return -1;
	}
	return 0;
}

static int delete_item(struct rs_epoll *ep, struct rs_item **p)
{
	struct epoll_event ev = { 0 };
	struct rs_item *it = *p;
	int r = 0;

	rs_lock(&it->c->lock);
	if (it->in_kernel)
		r = (int)rs_sys4(SYS_epoll_ctl, ep->epfd, EPOLL_CTL_DEL, it->fd, &ev);
	rs_unlock(&it->c->lock);
	rs_item_remove(ep, p);
	if (r != 0) {
		errno = -r;
		return -1;
	}
	return 0;
}

/* ---- sets in sets ---- */

/* From now on every piece of news of `fd` rings: a sleeper in another set depends on it. */
static void nest(struct rs_epoll *ep, int fd)
{
	struct rs_epoll *inner = rs_epoll_of(fd);
	struct rs_inner *i;

	if (!inner)
		return;
	if (!__atomic_exchange_n(&inner->nested, true, __ATOMIC_SEQ_CST))
		__atomic_fetch_add(&inner->sleepers, 1, __ATOMIC_SEQ_CST);
	rs_epoll_renew_nested(inner);
	i = calloc(1, sizeof(*i));
	if (i) { /* else it may report once too often */
		*i = (struct rs_inner){ .ep = inner, .tag = inner->tag, .fd = fd };
		rs_lock(&ep->lock);
		i->next = ep->inner;
		RS_SET(ep->inner, i);
		rs_epoll_unlock(ep);
	}
	rs_epoll_put(inner);
}

/* The registration of `fd`, or what is closed since. */
static void unnest(struct rs_epoll *ep, int fd)
{
	struct rs_inner **p = &ep->inner, *i;

	rs_lock(&ep->lock);
	while ((i = *p)) {
		if (i->fd == fd || rs_file(i->fd) != ((uintptr_t)i->ep | RS_KIND_EPOLL) ||
		    RS_GET(i->ep->tag) != i->tag) {
			RS_SET(*p, i->next);
			free(i);
		} else {
			p = &i->next;
		}
	}
	rs_epoll_unlock(ep);
}

/* The streams of a set go back to TCP. */
static void leave_all(struct rs_epoll *ep)
{
	RS_SET(ep->flat, true);
	for (;;) {
		struct rs_conn *c = NULL;

		rs_lock(&ep->lock);
		for (uint32_t b = 0; b < RS_EPOLL_BUCKETS && !c; b++)
			for (struct rs_item *it = ep->hash[b]; it && !c; it = it->hash_next)
				if (!RS_GET(it->in_kernel) && !it->evicted && rs_conn_get(it->c)) {
					it->evicted = true;
					c = it->c;
				}
		rs_epoll_unlock(ep);
		if (!c)
			break;
		rs_conn_leave(c, RS_REASON_CALL, true, FLATTEN_MS);
		rs_conn_put(c);
	}
}

/*
 * A bell is a set in a set too, and one more way by which others are woken. When that is more than the
 * kernel takes, the streams in `ep` and in the sets below do without. True: it may be enough now.
 */
static bool flatten(struct rs_epoll *ep, int depth)
{
	bool did = false;

	if (!RS_GET(ep->flat)) {
		leave_all(ep);
		did = rs_epoll_unmark(ep);
	}
	for (uint32_t n = 0; depth > 0; n++) {
		struct rs_epoll *inner;

		if (!rs_epoll_inner(ep, n, &inner))
			break;
		if (inner) {
			did |= flatten(inner, depth - 1);
			rs_epoll_put(inner);
		}
	}
	return did;
}

/* What is not, or need not be, a stream of ours. */
static int kernel_ctl(struct rs_epoll *ep, int epfd, int op, int fd, struct epoll_event *ev)
{
	bool set = rs_file_kind(rs_file(fd)) == RS_KIND_EPOLL && epfd != fd;
	int before = errno, r = rs_real.epoll_ctl(epfd, op, fd, ev);

	if (r != 0 && set && op == EPOLL_CTL_ADD && (errno == ELOOP || errno == EINVAL)) {
		struct rs_epoll *inner = rs_epoll_of(fd);
		int why = errno;

		errno = before;
		if (inner && flatten(inner, RS_EPOLL_MAX_NESTS))
			r = rs_real.epoll_ctl(epfd, op, fd, ev);
		else
			errno = why;
		if (inner)
			rs_epoll_put(inner);
	}
	if (r == 0 && op == EPOLL_CTL_ADD)
		__atomic_fetch_add(&ep->kernel_fds, 1, __ATOMIC_RELAXED);
	if (r == 0)
		RS_SET(ep->kernel_look, 0); /* it may be ready */
	if (r == 0 && op != EPOLL_CTL_MOD && set) {
		unnest(ep, fd);
		if (op == EPOLL_CTL_ADD)
			nest(ep, fd);
	}
	return r;
}

int rs_epoll_ctl_ep(struct rs_epoll *ep, int epfd, int op, int fd, struct epoll_event *ev)
{
	uintptr_t word = rs_file(fd);
	struct rs_conn *c;
	struct rs_item **p;
	int r;

	if (rs_file_kind(word) != RS_KIND_CONN || (op != EPOLL_CTL_DEL && !ev) || epfd == fd ||
	    (!RS_GET(ep->items) && RS_GET(((struct rs_conn *)rs_file_pointer(word))->plain)))
		return kernel_ctl(ep, epfd, op, fd, ev);
	c = rs_file_pointer(word);
	if (!rs_conn_get(c))
		return rs_real.epoll_ctl(epfd, op, fd, ev);
	rs_accepted_used(c);
	rs_lock(&ep->lock);
	if (!ep->own_fd) /* else the program has closed all, since this call began */
		RS_SET(ep->epfd, epfd); /* a duplicate may be all that is left */
	p = rs_item_find(ep, fd, c);
	if (op == EPOLL_CTL_ADD && ev->events & EPOLLEXCLUSIVE && ev->events & ~EXCLUSIVE_OK) {
		errno = EINVAL;
		r = -1;
	} else if (op == EPOLL_CTL_ADD && !*p && RS_GET(c->plain)) {
		r = rs_real.epoll_ctl(epfd, op, fd, ev);
		if (r == 0)
			__atomic_fetch_add(&ep->kernel_fds, 1, __ATOMIC_RELAXED);
	} else if (op == EPOLL_CTL_ADD) {
		r = add_item(ep, c, fd, ev);
	} else if (!*p) {
		/* Never added here, or added while plain: the kernel knows. */
		r = rs_real.epoll_ctl(epfd, op, fd, ev);
	} else if (op == EPOLL_CTL_MOD) {
		r = modify_item(ep, *p, ev);
	} else if (op == EPOLL_CTL_DEL) {
		r = delete_item(ep, p);
	} else {
		errno = EINVAL;
		r = -1;
	}
	rs_epoll_unlock(ep);
	rs_conn_put(c);
	return r;
}
