/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "preload/epoll_set.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "conn_mgr/link.h"
#include "conn_mgr/real.h"
#include "preload/files.h"
#include "preload/process.h"
#include "rsock/bell.h"
#include "rsock/config.h"
#include "rsock/sys.h"

static struct rs_lock pool_lock;
static struct rs_epoll *pool;

/* ---- sets ---- */

struct rs_epoll *rs_epoll_new(int epfd)
{
	struct rs_epoll *ep;

	rs_lock(&pool_lock);
	ep = pool;
	if (ep)
		pool = ep->free_next;
	rs_unlock(&pool_lock);
	if (!ep && posix_memalign((void **)&ep, 64, (sizeof(*ep) + 63) & ~(size_t)63) != 0)
		return NULL;
	memset(ep, 0, sizeof(*ep));
	ep->epfd = epfd;
	ep->nfds = 1;
	ep->ready_tail = &ep->ready;
	rs_sys3(SYS_getrandom, &ep->tag, sizeof(ep->tag), 0);
	__atomic_store_n(&ep->refs, 1, __ATOMIC_RELEASE);
	return ep;
}

/* A reference, unless the set is gone. */
bool rs_epoll_get(struct rs_epoll *ep)
{
	uint32_t refs = __atomic_load_n(&ep->refs, __ATOMIC_RELAXED);

	while (refs)
		if (__atomic_compare_exchange_n(&ep->refs, &refs, refs + 1, false, __ATOMIC_SEQ_CST,
						__ATOMIC_RELAXED))
			return true;
	return false;
}

/*
 * A set that came by a fork: the parent's streams go back to the kernel's set, which is ours too. We do
 * it again, for the parent may have ended, or closed the set.
 */
static void claim_set(struct rs_epoll *ep, int epfd)
{
	struct rs_item *it = __atomic_exchange_n(&ep->inherited, NULL, __ATOMIC_SEQ_CST);

	if (it)
		rs_process_claim_watched();
	for (; it; it = it->hash_next) {
		struct epoll_event ev = { .events = it->events, .data = it->data };

		if (it->disarmed)
			ev.events &= (uint32_t)RS_ONESHOT_PRIVATE;
		if (rs_file(it->fd) == ((uintptr_t)it->c | RS_KIND_CONN) &&
		    rs_sys4(SYS_epoll_ctl, epfd, EPOLL_CTL_ADD, it->fd, &ev) == 0)
			__atomic_fetch_add(&ep->kernel_fds, 1, __ATOMIC_RELAXED);
	}
}

struct rs_epoll *rs_epoll_of(int epfd)
{
	for (;;) {
		uintptr_t word = rs_file(epfd);
		struct rs_epoll *ep = rs_file_pointer(word);

		if (rs_file_kind(word) != RS_KIND_EPOLL)
			return NULL;
		if (rs_epoll_get(ep)) {
			if (rs_file(epfd) == word) {
				if (__builtin_expect(RS_GET(ep->inherited) != NULL, 0))
					claim_set(ep, epfd);
				return ep;
			}
			rs_epoll_put(ep);
		}
		/* Closed, perhaps reused, meanwhile. */
	}
}

bool rs_epoll_fd_added(struct rs_epoll *ep)
{
	if (!rs_epoll_get(ep))
		return false;
	rs_lock(&ep->lock);
	ep->nfds++;
	rs_epoll_unlock(ep);
	return true;
}

void rs_epoll_fd_closed(struct rs_epoll *ep, int fd,
			int (*other)(const struct rs_epoll *ep, int fd))
{
	rs_lock(&ep->lock);
	if (--ep->nfds == 0) {
		int own = -EBADF;

		/* Somebody is inside: as in the kernel, the set lives until he comes out. */
		if (__atomic_load_n(&ep->refs, __ATOMIC_SEQ_CST) > 1 && !ep->forked)
			own = rs_fd_dup(fd);
		if (own >= 0) {
			RS_SET(ep->epfd, own);
			ep->own_fd = true;
		}
	} else if (RS_GET(ep->epfd) == fd) {
		RS_SET(ep->epfd, other(ep, fd));
	}
	rs_epoll_unlock(ep);
	rs_epoll_put(ep);
}

void rs_epoll_put(struct rs_epoll *ep)
{
	if (__atomic_sub_fetch(&ep->refs, 1, __ATOMIC_SEQ_CST) != 0)
		return;
	rs_lock(&ep->lock);
	for (uint32_t b = 0; b < RS_EPOLL_BUCKETS; b++)
		while (ep->hash[b])
			rs_item_remove(ep, &ep->hash[b]);
	for (struct rs_inner *i = ep->inner; i; i = ep->inner) {
		ep->inner = i->next;
		free(i);
	}
	rs_bell_put(ep->bell);
	ep->bell = 0;
	if (ep->own_fd)
		rs_fd_close(ep->epfd);
	rs_epoll_unlock(ep);
	rs_lock(&pool_lock);
	ep->free_next = pool;
	pool = ep;
	rs_unlock(&pool_lock);
}

bool rs_epoll_inner(struct rs_epoll *ep, uint32_t n, struct rs_epoll **inner)
{
	const struct rs_inner *i;

	*inner = NULL;
	rs_lock(&ep->lock);
	for (i = ep->inner; i && n > 0; n--)
		i = i->next;
	if (i && rs_file(i->fd) == ((uintptr_t)i->ep | RS_KIND_EPOLL) && i->ep->tag == i->tag &&
	    rs_epoll_get(i->ep))
		*inner = i->ep;
	rs_epoll_unlock(ep);
	return i != NULL;
}

static void forget_one(int fd, uintptr_t word, void *arg)
{
	struct rs_epoll *ep;

	(void)fd;
	(void)arg;
	if (rs_file_kind(word) != RS_KIND_EPOLL)
		return;
	ep = rs_file_pointer(word);
	ep->lock.word = 0;
	ep->stale = false;
	ep->ready_lock.word = 0;
	ep->mark_lock.word = 0;
	ep->bell = 0;
	ep->sleepers = 0;
	ep->forked = true;
	for (uint32_t b = 0; b < RS_EPOLL_BUCKETS; b++)
		for (struct rs_item *it = ep->hash[b], *next; it; it = next) {
			next = it->hash_next;
			if (!it->in_kernel) {
				it->hash_next = ep->inherited;
				ep->inherited = it;
			}
		}
	/* The kernel's set is shared with the parent; our view of its streams is the parent's. */
	memset(ep->hash, 0, sizeof(ep->hash));
	ep->items = 0;
	ep->nready = 0;
	ep->ready = NULL;
	ep->ready_tail = &ep->ready;
}

void rs_epoll_forget(void)
{
	rs_files_each(0, UINT32_MAX, forget_one, NULL);
	pool_lock.word = 0;
}

/* ---- items ---- */

struct rs_item **rs_item_find(struct rs_epoll *ep, int fd, const struct rs_conn *c)
{
	struct rs_item **p = &ep->hash[(unsigned int)fd % RS_EPOLL_BUCKETS];

	while (*p && !((*p)->fd == fd && (*p)->c == c))
		p = &(*p)->hash_next;
	return p;
}

/* Under ep->lock. */
void rs_item_remove(struct rs_epoll *ep, struct rs_item **where)
{
	struct rs_item *it = *where;

	*where = it->hash_next;
	RS_SET(ep->items, ep->items - 1);
	rs_lock(&it->c->lock);
	rs_conn_unwatch(it->c, &it->watch);
	rs_unlock(&it->c->lock);
	rs_item_unqueue(it);
	if (it->in_kernel)
		__atomic_fetch_sub(&ep->kernel_fds, 1, __ATOMIC_RELAXED);
	rs_conn_put(it->c);
	free(it);
}

/* ---- the queue of items that may be ready ---- */

struct rs_item *rs_item_of(struct rs_watch *w)
{
	return (struct rs_item *)(void *)((char *)w - offsetof(struct rs_item, watch));
}

void rs_item_push(struct rs_item *it, bool fresh)
{
	struct rs_epoll *ep = it->ep;

	rs_lock(&ep->ready_lock);
	it->fresh |= fresh;
	if (!it->queued) {
		it->queued = true;
		it->ready_next = NULL;
		*ep->ready_tail = it;
		ep->ready_tail = &it->ready_next;
		__atomic_store_n(&ep->nready, ep->nready + 1, __ATOMIC_SEQ_CST);
	}
	rs_unlock(&ep->ready_lock);
}

struct rs_item *rs_item_pop(struct rs_epoll *ep, bool *fresh)
{
	struct rs_item *it;

	rs_lock(&ep->ready_lock);
	it = ep->ready;
	if (it) {
		ep->ready = it->ready_next;
		if (!ep->ready)
			ep->ready_tail = &ep->ready;
		it->queued = false;
		*fresh = it->fresh;
		it->fresh = false;
		__atomic_store_n(&ep->nready, ep->nready - 1, __ATOMIC_SEQ_CST);
	}
	rs_unlock(&ep->ready_lock);
	return it;
}

void rs_item_unqueue(struct rs_item *it)
{
	struct rs_epoll *ep = it->ep;
	struct rs_item **p;

	rs_lock(&ep->ready_lock);
	for (p = &ep->ready; *p && *p != it; p = &(*p)->ready_next)
		;
	if (*p) {
		*p = it->ready_next;
		if (!*p)
			ep->ready_tail = p;
		__atomic_store_n(&ep->nready, ep->nready - 1, __ATOMIC_SEQ_CST);
	}
	it->queued = false;
	rs_unlock(&ep->ready_lock);
}

/* ---- what connections tell us, under their lock ---- */

void rs_item_say(struct rs_item *it, bool fresh)
{
	rs_item_push(it, fresh);
	if (__atomic_load_n(&it->ep->sleepers, __ATOMIC_SEQ_CST))
		rs_bell_ring(1u << RS_GET(it->ep->bell));
}

uint32_t rs_item_events(const struct rs_item *it)
{
	uint32_t events = it->events & (EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLRDNORM |
					EPOLLRDBAND | EPOLLWRNORM | EPOLLWRBAND);

	/* The end of the stream comes by the ring, and then by TCP: it is one edge. */
	return it->events & EPOLLET ? events | EPOLLRDHUP : events;
}

void rs_item_changed(struct rs_watch *w, struct rs_conn *c)
{
	struct rs_item *it = rs_item_of(w);
	bool edge = it->events & EPOLLET, fresh;
	uint32_t told;

	if (RS_GET(it->in_kernel) || RS_GET(it->disarmed))
		return;
	/* Of TCP's bytes nothing else tells; of the ring's, and of its room, the bell does. */
	fresh = edge && rs_conn_arrived(c, w);
	told = __atomic_load_n(&w->told, __ATOMIC_SEQ_CST);
	if (!edge || fresh || told & RS_TOLD_LOOKING ||
	    rs_conn_ready(c, rs_item_events(it)) & ~told)
		rs_item_say(it, fresh);
}

/*
 * Whether a one-shot has fired in the kernel's set, which tells nobody but /proc: its events are then
 * the internal bits only.
 */
static bool fired_in_kernel(const struct rs_item *it)
{
	char buf[4096], path[48], key[24];
	long fd, n;
	size_t have = 0, len;
	char *at;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", RS_GET(it->ep->epfd));
	len = (size_t)snprintf(key, sizeof(key), "tfd: %8d events:", it->fd);
	fd = rs_sys4(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return false;
	while ((n = rs_sys3(SYS_read, fd, buf + have, sizeof(buf) - 1 - have)) > 0) {
		have += (size_t)n;
		buf[have] = '\0';
		at = strstr(buf, key);
		if (at && strlen(at) > len + 10) {
			rs_sys1(SYS_close, fd);
			return !(strtoul(at + len, NULL, 16) & ~RS_ONESHOT_PRIVATE);
		}
		/* Keep the tail: the line may go on. */
		len = have < 128 ? have : 128;
		memmove(buf, buf + have - len, len);
		have = len;
		len = strlen(key);
	}
	rs_sys1(SYS_close, fd);
	return false;
}

/* The set needs a bell of its own from its first stream on. */
static void mark(struct rs_epoll *ep)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLET, .data.u64 = ep->tag };
	uint32_t bell;

	if (RS_GET(ep->marked) || RS_GET(ep->flat))
		return;
	/* The control thread and a thread of the program may both be first. */
	rs_lock(&ep->mark_lock);
	bell = RS_GET(ep->marked) || RS_GET(ep->flat) ? 0 : rs_bell_get();
	if (bell) {
		/* Before the first event can come: a waiter must know what it is. */
		RS_SET(ep->bell, bell);
		rs_bell_clear(bell); /* a poll may have left it rung */
		__atomic_store_n(&ep->marked, true, __ATOMIC_SEQ_CST);
		if (rs_sys4(SYS_epoll_ctl, RS_GET(ep->epfd), EPOLL_CTL_ADD, rs_bell_fd(bell),
			    &ev) != 0) {
			RS_SET(ep->bell, 0);
			__atomic_store_n(&ep->marked, false, __ATOMIC_SEQ_CST);
			rs_bell_put(bell);
			bell = 0;
		}
	}
	rs_unlock(&ep->mark_lock);
	if (bell)
		rs_links_send_bells();
}

bool rs_epoll_unmark(struct rs_epoll *ep)
{
	struct epoll_event ev = { 0 };
	bool silent = true;

	rs_lock(&ep->lock);
	for (uint32_t b = 0; b < RS_EPOLL_BUCKETS; b++)
		for (const struct rs_item *it = ep->hash[b]; it; it = it->hash_next)
			silent &= RS_GET(it->in_kernel);
	rs_lock(&ep->mark_lock);
	if (silent && RS_GET(ep->marked)) {
		rs_sys4(SYS_epoll_ctl, RS_GET(ep->epfd), EPOLL_CTL_DEL,
			rs_bell_fd(RS_GET(ep->bell)), &ev);
		rs_bell_put(RS_GET(ep->bell));
		RS_SET(ep->bell, 0);
		__atomic_store_n(&ep->marked, false, __ATOMIC_SEQ_CST);
	}
	rs_unlock(&ep->mark_lock);
	rs_epoll_unlock(ep);
	return silent;
}

/* Whether the number under which an item was added still means its connection. Under its lock. */
static bool has_number(const struct rs_item *it, const struct rs_conn *c)
{
	return rs_file(it->fd) == ((uintptr_t)c | RS_KIND_CONN);
}

/*
 * The number was closed while a duplicate lives: the kernel goes on to report such a registration,
 * which no number leads to any more. One is made, under a number that goes away at once.
 */
static void add_nameless(const struct rs_item *it, const struct rs_conn *c, struct epoll_event *ev)
{
	int fd = rs_fd_dup(c->fd);

	if (fd < 0)
		return;
	rs_sys4(SYS_epoll_ctl, RS_GET(it->ep->epfd), EPOLL_CTL_ADD, fd, ev);
	rs_fd_close(fd);
}

/* Nothing in the kernel's set waits to be reported: what did has been, or is just being. */
static bool kernel_is_quiet(const struct rs_epoll *ep)
{
	struct pollfd p = { .fd = RS_GET(ep->epfd), .events = POLLIN };

	return rs_sys3(SYS_poll, &p, 1, 0) == 0;
}

/*
 * The item comes from the kernel's set to us. True: it has to be looked at, for it may have something
 * to report. An edge that the program has been told of is not told again.
 *
 * What the socket says is there, and the lock that the second call takes for it: so the set has been
 * told of all that either has seen, and if the set is quiet, so has the program. What comes while the
 * kernel forgets the item shows when it is asked again, and what comes later the control thread hears.
 */
static bool take_over(struct rs_item *it, struct rs_conn *c)
{
	bool told = it->events & EPOLLET && !(it->events & EPOLLONESHOT) && !c->busy;
	struct epoll_event ev = { 0 };
	uint32_t mask = 0;

	if (told) {
		mask = rs_conn_ready(c, rs_item_events(it));
		rs_conn_arrived(c, &it->watch);
		told = kernel_is_quiet(it->ep);
	}
	rs_sys4(SYS_epoll_ctl, RS_GET(it->ep->epfd), EPOLL_CTL_DEL, it->fd, &ev);
	if (told)
		told = !rs_conn_arrived(c, &it->watch) &&
		       !(rs_conn_ready(c, rs_item_events(it)) & ~mask);
	RS_SET(it->watch.told, told ? mask : 0);
	return !told;
}

/* Who sleeps in the set has not said so to the link that the set has only now. */
static void wake_from_now_on(const struct rs_epoll *ep)
{
	uint32_t bell = RS_GET(ep->bell);

	if (bell && __atomic_load_n(&ep->sleepers, __ATOMIC_SEQ_CST) &&
	    rs_links_asleep(bell, RS_GET(ep->nested) ? RS_BELL_ALWAYS : RS_BELL_ONCE))
		rs_bell_ring(1u << bell);
}

void rs_item_kernel_speaks(struct rs_watch *w, struct rs_conn *c, bool speaks)
{
	struct rs_item *it = rs_item_of(w);
	struct epoll_event ev = { .events = it->events, .data = it->data };
	bool news = true;

	if (speaks) {
		if (!it->in_kernel && !c->closed) {
			RS_SET(it->switched,
			       UINT64_MAX); /* both may have it for a moment, not none */
			if (RS_GET(it->disarmed))
				ev.events &=
					(uint32_t) ~(EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP);
			if (has_number(it, c))
				rs_sys4(SYS_epoll_ctl, RS_GET(it->ep->epfd), EPOLL_CTL_ADD, it->fd,
					&ev);
			else
				add_nameless(it, c, &ev);
			/* A one-shot that fired stays silent: events of 0 report only errors. */
			RS_SET(it->in_kernel, true);
			__atomic_fetch_add(&it->ep->kernel_fds, 1, __ATOMIC_RELAXED);
		}
		rs_item_unqueue(it);
		return;
	}
	if (it->in_kernel) {
		if (!has_number(it, c)) {
			/* The kernel's set cannot be told to forget it. */
			c->st->sm.refuse = true;
			c->st->sm.why = RS_REASON_CALL;
			return;
		}
		if (it->events & EPOLLONESHOT)
			/* It may have fired before it was there, where errors are told all the same. */
			RS_SET(it->disarmed, RS_GET(it->disarmed) || fired_in_kernel(it));
		/* Whoever finds it in the queue waits for the connection's lock. */
		RS_SET(it->switched, UINT64_MAX);
		RS_SET(it->in_kernel, false);
		news = take_over(it, c);
		if (news)
			rs_item_push(it, true);
		__atomic_fetch_sub(&it->ep->kernel_fds, 1, __ATOMIC_RELAXED);
		RS_SET(it->switched, __atomic_add_fetch(&it->ep->switches, 1, __ATOMIC_SEQ_CST));
	}
	mark(it->ep);
	if (!RS_GET(it->ep->bell)) {
		/* No bell is left for this set: its streams stay where the kernel can wake it. */
		c->st->sm.refuse = true;
		c->st->sm.why = RS_REASON_NO_FDS;
	}
	rs_conn_want(c, RS_GET(it->ep->bell), false);
	wake_from_now_on(it->ep);
	if (news)
		rs_item_say(it, true);
}

/* A set that another one watches: set the alarm again, and ring if something is ready still. */
void rs_epoll_renew_nested(struct rs_epoll *ep)
{
	if (!RS_GET(ep->nested) || !RS_GET(ep->bell))
		return;
	rs_links_asleep(RS_GET(ep->bell), RS_BELL_ALWAYS);
	if (rs_epoll_ready(ep))
		rs_bell_ring(1u << RS_GET(ep->bell));
}

void rs_epoll_drop_stale(struct rs_epoll *ep)
{
	rs_lock(&ep->lock);
	RS_SET(ep->stale, false);
	for (uint32_t b = 0; b < RS_EPOLL_BUCKETS; b++)
		for (struct rs_item **p = &ep->hash[b]; *p;) {
			if (__atomic_load_n(&(*p)->c->nfds, __ATOMIC_SEQ_CST) == 0)
				rs_item_remove(ep, p);
			else
				p = &(*p)->hash_next;
		}
	rs_epoll_unlock(ep);
}

void rs_epoll_conn_closed(struct rs_conn *c)
{
	const struct rs_epoll *later = NULL;

	/* A handler: who is interrupted comes here in the end (rs_conn_end_orphan()). */
	if (rs_lock_mine(&c->lock))
		return;
	for (;;) {
		struct rs_epoll *ep = NULL;
		struct rs_item **p;
		int fd = -1;

		rs_lock(&c->lock);
		for (struct rs_watch *w = c->watches; w && !ep; w = w->next)
			if (rs_item_of(w)->ep != later &&
			    rs_epoll_get(
				    rs_item_of(w)
					    ->ep)) { /* else it is about to drop all its items */
				ep = rs_item_of(w)->ep;
				fd = rs_item_of(w)->fd;
			}
		rs_unlock(&c->lock);
		if (!ep)
			return;
		if (rs_lock_mine(&ep->lock)) { /* interrupted by this handler: it does it */
			RS_SET(ep->stale, true);
			rs_epoll_put(ep);
			later = ep;
			continue;
		}
		rs_lock(&ep->lock);
		p = rs_item_find(ep, fd, c);
		if (*p)
			rs_item_remove(ep, p);
		rs_epoll_unlock(ep);
		rs_epoll_put(ep);
	}
}
