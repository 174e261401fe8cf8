/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "preload/epoll.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "conn_mgr/conn.h"
#include "conn_mgr/peer.h"
#include "conn_mgr/real.h"
#include "conn_mgr/wait.h"
#include "preload/files.h"
#include "rsock/bell.h"
#include "rsock/config.h"
#include "rsock/sys.h"

#define BUCKETS 64u
#define KERNEL_EVERY_US 50 /* the kernel's fds of a busy set are looked at this often */
#define MAX_NESTS 5 /* the kernel's own limit */
/* What the kernel leaves of a one-shot's events when it has fired. */
#define ONESHOT_PRIVATE ((unsigned long)(EPOLLWAKEUP | EPOLLONESHOT | EPOLLET | EPOLLEXCLUSIVE))
/* What may stand beside EPOLLEXCLUSIVE. */
#define EXCLUSIVE_OK                                                                   \
	((uint32_t)(EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLWAKEUP | EPOLLET | \
		    EPOLLEXCLUSIVE))

struct item {
	struct rs_watch watch;
	struct rs_epoll *ep;
	struct rs_conn *c; /* holds a reference */
	int fd;
	uint32_t events;
	epoll_data_t data;
	bool in_kernel; /* the kernel's set speaks for it */
	bool disarmed; /* EPOLLONESHOT has fired */
	bool queued;
	bool fresh; /* bytes or room came: an edge, whatever was told before */
	uint32_t seen; /* EPOLLET: what it was ready for when last looked at, */
	uint32_t told; /* and when last reported */
	uint64_t batch; /* the last one of the set that it was in */
	uint64_t switched; /* ep->switches when it left the kernel's set; UINT64_MAX: meanwhile */
	struct item *hash_next, *ready_next;
};

/* Words that are read without the lock under which they are written. */
#define GET(x) __atomic_load_n(&(x), __ATOMIC_RELAXED)
#define SET(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELAXED)

/* A set that was added to another one. It may be gone: `tag` tells. */
struct inner {
	struct rs_epoll *ep;
	uint64_t tag;
	int fd;
	struct inner *next;
};

struct rs_epoll {
	uint32_t refs; /* descriptors, and calls in progress */
	uint32_t nfds; /* descriptors */
	struct rs_lock lock; /* the items; taken before connection locks */
	struct rs_lock ready_lock; /* the queue; a leaf */
	struct rs_lock mark_lock; /* the bell */
	int epfd; /* one of its descriptors; */
	bool own_fd; /* the program has none any more, and this is ours */
	bool forked; /* `refs` counts threads of the parent too */
	struct inner *inner;
	struct item *hash[BUCKETS];
	struct item *ready, **ready_tail;
	uint32_t nready;
	uint32_t items;
	uint32_t kernel_fds; /* descriptors that the program added to the kernel's set */
	uint32_t bell;
	bool marked; /* the bell's eventfd is in the kernel's set */
	uint64_t tag; /* data word of the bell's eventfd */
	uint32_t sleepers;
	bool nested; /* some other set watches this one: its bell must always be heard */
	uint32_t spin;
	uint64_t batches; /* that were collected */
	uint64_t switches; /* items that have left the kernel's set */
	uint64_t kernel_look; /* ticks; 0: the last look at the kernel's descriptors found some */
	bool kernel_last; /* whose turn it is when the caller takes one event at a time */
	uint32_t last_cpu; /* where the last ready stream's peer ran */
	struct rs_epoll *free_next;
};

static struct rs_lock pool_lock;
static struct rs_epoll *pool;

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
	ep->spin = rs_config.spin_us;
	rs_sys3(SYS_getrandom, &ep->tag, sizeof(ep->tag), 0);
	__atomic_store_n(&ep->refs, 1, __ATOMIC_RELEASE);
	return ep;
}

/* A reference, unless the set is gone. */
static bool get(struct rs_epoll *ep)
{
	uint32_t refs = __atomic_load_n(&ep->refs, __ATOMIC_RELAXED);

	while (refs)
		if (__atomic_compare_exchange_n(&ep->refs, &refs, refs + 1, false, __ATOMIC_SEQ_CST,
						__ATOMIC_RELAXED))
			return true;
	return false;
}

struct rs_epoll *rs_epoll_of(int epfd)
{
	for (;;) {
		uintptr_t word = rs_file(epfd);
		struct rs_epoll *ep = rs_file_pointer(word);

		if (rs_file_kind(word) != RS_KIND_EPOLL)
			return NULL;
		if (get(ep)) {
			if (rs_file(epfd) == word)
				return ep;
			rs_epoll_put(ep);
		}
		/* Closed, perhaps reused, meanwhile. */
	}
}

static struct item *item_of(struct rs_watch *w)
{
	return (struct item *)(void *)((char *)w - offsetof(struct item, watch));
}

/* ---- the queue of items that may be ready ---- */

static void push(struct item *it, bool fresh)
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

static struct item *pop(struct rs_epoll *ep, bool *fresh)
{
	struct item *it;

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

static void unqueue(struct item *it)
{
	struct rs_epoll *ep = it->ep;
	struct item **p;

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

static void say(struct item *it, bool fresh)
{
	push(it, fresh);
	if (__atomic_load_n(&it->ep->sleepers, __ATOMIC_SEQ_CST))
		rs_bell_ring(1u << GET(it->ep->bell));
}

static void changed(struct rs_watch *w, struct rs_conn *c)
{
	struct item *it = item_of(w);
	/* Of TCP's bytes and room nothing else tells; of the ring's, take_news(). RST ends both. */
	bool fresh = c->sm.rx == RS_RX_RAW || c->sm.rx == RS_RX_ARMED ||
		     (c->sm.tx == RS_TX_RAW && !c->err && !c->rst_told);

	if (!GET(it->in_kernel) && !GET(it->disarmed))
		say(it, fresh);
}

/*
 * Whether a one-shot has fired in the kernel's set, which tells nobody but /proc: its events are then
 * the internal bits only.
 */
static bool fired_in_kernel(const struct item *it)
{
	char buf[4096], path[48], key[24];
	long fd, n;
	size_t have = 0, len;
	char *at;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", GET(it->ep->epfd));
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
			return !(strtoul(at + len, NULL, 16) & ~ONESHOT_PRIVATE);
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

	if (GET(ep->marked))
		return;
	/* The control thread and a thread of the program may both be first. */
	rs_lock(&ep->mark_lock);
	bell = GET(ep->marked) ? 0 : rs_bell_get();
	if (bell) {
		/* Before the first event can come: a waiter must know what it is. */
		SET(ep->bell, bell);
		__atomic_store_n(&ep->marked, true, __ATOMIC_SEQ_CST);
		if (rs_sys4(SYS_epoll_ctl, GET(ep->epfd), EPOLL_CTL_ADD, rs_bell_fd(bell), &ev) !=
		    0) {
			SET(ep->bell, 0);
			__atomic_store_n(&ep->marked, false, __ATOMIC_SEQ_CST);
			rs_bell_put(bell);
			bell = 0;
		}
	}
	rs_unlock(&ep->mark_lock);
	if (bell)
		rs_peer_bells();
}

/* Whether the number under which an item was added still means its connection. Under its lock. */
static bool has_number(const struct item *it, const struct rs_conn *c)
{
	return rs_file(it->fd) == ((uintptr_t)c | RS_KIND_CONN);
}

/*
 * The number was closed while a duplicate lives: the kernel goes on to report such a registration,
 * which no number leads to any more. One is made, under a number that goes away at once.
 */
static void add_nameless(const struct item *it, const struct rs_conn *c, struct epoll_event *ev)
{
	long fd = rs_sys3(SYS_fcntl, c->fd, F_DUPFD_CLOEXEC, 3);

	if (fd < 0)
		return;
	fd = rs_fd_hide((int)fd);
	rs_sys4(SYS_epoll_ctl, GET(it->ep->epfd), EPOLL_CTL_ADD, fd, ev);
	rs_fd_close((int)fd);
}

static void kernel_speaks(struct rs_watch *w, struct rs_conn *c, bool speaks)
{
	struct item *it = item_of(w);
	struct epoll_event ev = { .events = it->events, .data = it->data };

	if (speaks) {
		if (!it->in_kernel && !c->closed) {
			SET(it->switched, UINT64_MAX); /* both may have it for a moment, not none */
			if (GET(it->disarmed))
				ev.events &=
					(uint32_t) ~(EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP);
			if (has_number(it, c))
				rs_sys4(SYS_epoll_ctl, GET(it->ep->epfd), EPOLL_CTL_ADD, it->fd,
					&ev);
			else
				add_nameless(it, c, &ev);
			/* A one-shot that fired stays silent: events of 0 report only errors. */
			SET(it->in_kernel, true);
			__atomic_fetch_add(&it->ep->kernel_fds, 1, __ATOMIC_RELAXED);
		}
		unqueue(it);
		return;
	}
	if (it->in_kernel) {
		if (!has_number(it, c)) {
			/* The kernel's set cannot be told to forget it. */
			c->sm.refuse = true;
			c->sm.why = RS_REASON_CALL;
			return;
		}
		if (it->events & EPOLLONESHOT)
			SET(it->disarmed, fired_in_kernel(it));
		/* Whoever finds it in the queue waits for the connection's lock. */
		SET(it->switched, UINT64_MAX);
		SET(it->in_kernel, false);
		push(it, true);
		rs_sys4(SYS_epoll_ctl, GET(it->ep->epfd), EPOLL_CTL_DEL, it->fd, &ev);
		__atomic_fetch_sub(&it->ep->kernel_fds, 1, __ATOMIC_RELAXED);
		SET(it->switched, __atomic_add_fetch(&it->ep->switches, 1, __ATOMIC_SEQ_CST));
	}
	mark(it->ep);
	if (!GET(it->ep->bell)) {
		/* No bell is left for this set: its streams stay where the kernel can wake it. */
		c->sm.refuse = true;
		c->sm.why = RS_REASON_NO_FDS;
	}
	rs_conn_want(c, GET(it->ep->bell), false);
	if (GET(it->ep->nested))
		rs_links_asleep(GET(it->ep->bell), RS_BELL_ALWAYS);
	say(it, true);
}

/* A set that another one watches: set the alarm again, and ring if something is ready still. */
static void renew_nested(struct rs_epoll *ep)
{
	if (!GET(ep->nested) || !GET(ep->bell))
		return;
	rs_links_asleep(GET(ep->bell), RS_BELL_ALWAYS);
	if (rs_epoll_ready(ep))
		rs_bell_ring(1u << GET(ep->bell));
}

/* ---- items ---- */

static struct item **find(struct rs_epoll *ep, int fd, const struct rs_conn *c)
{
	struct item **p = &ep->hash[(unsigned int)fd % BUCKETS];

	while (*p && !((*p)->fd == fd && (*p)->c == c))
		p = &(*p)->hash_next;
	return p;
}

/* Under ep->lock. */
static void remove_item(struct rs_epoll *ep, struct item **where)
{
	struct item *it = *where;

	*where = it->hash_next;
	SET(ep->items, ep->items - 1);
	rs_lock(&it->c->lock);
	rs_conn_unwatch(it->c, &it->watch);
	rs_unlock(&it->c->lock);
	unqueue(it);
	if (it->in_kernel)
		__atomic_fetch_sub(&ep->kernel_fds, 1, __ATOMIC_RELAXED);
	rs_conn_put(it->c);
	free(it);
}

bool rs_epoll_fd_added(struct rs_epoll *ep)
{
	if (!get(ep))
		return false;
	rs_lock(&ep->lock);
	ep->nfds++;
	rs_unlock(&ep->lock);
	return true;
}

void rs_epoll_fd_closed(struct rs_epoll *ep, int fd, int other)
{
	rs_lock(&ep->lock);
	if (--ep->nfds == 0) {
		long own = -EBADF;

		/* Somebody is inside: as in the kernel, the set lives until he comes out. */
		if (__atomic_load_n(&ep->refs, __ATOMIC_SEQ_CST) > 1 && !ep->forked)
			own = rs_sys3(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 3);
		if (own >= 0) {
			SET(ep->epfd, rs_fd_hide((int)own));
			ep->own_fd = true;
		}
	} else if (GET(ep->epfd) == fd && other >= 0) {
		SET(ep->epfd, other);
	}
	rs_unlock(&ep->lock);
	rs_epoll_put(ep);
}

void rs_epoll_put(struct rs_epoll *ep)
{
	if (__atomic_sub_fetch(&ep->refs, 1, __ATOMIC_SEQ_CST) != 0)
		return;
	rs_lock(&ep->lock);
	for (uint32_t b = 0; b < BUCKETS; b++)
		while (ep->hash[b])
			remove_item(ep, &ep->hash[b]);
	for (struct inner *i = ep->inner; i; i = ep->inner) {
		ep->inner = i->next;
		free(i);
	}
	rs_bell_put(ep->bell);
	ep->bell = 0;
	if (ep->own_fd)
		rs_fd_close(ep->epfd);
	rs_unlock(&ep->lock);
	rs_lock(&pool_lock);
	ep->free_next = pool;
	pool = ep;
	rs_unlock(&pool_lock);
}

void rs_epoll_conn_closed(struct rs_conn *c)
{
	for (;;) {
		struct rs_epoll *ep = NULL;
		struct item **p;
		int fd = -1;

		rs_lock(&c->lock);
		for (struct rs_watch *w = c->watches; w && !ep; w = w->next)
			if (get(item_of(w)->ep)) { /* else it is about to drop all its items */
				ep = item_of(w)->ep;
				fd = item_of(w)->fd;
			}
		rs_unlock(&c->lock);
		if (!ep)
			return;
		rs_lock(&ep->lock);
		p = find(ep, fd, c);
		if (*p)
			remove_item(ep, p);
		rs_unlock(&ep->lock);
		rs_epoll_put(ep);
	}
}

static int add_item(struct rs_epoll *ep, struct rs_conn *c, int fd, struct epoll_event *ev)
{
	struct item *it, **p = find(ep, fd, c);
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
	it->watch.changed = changed;
	it->watch.kernel = kernel_speaks;
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
			kernel_speaks(&it->watch, c, false);
	}
	rs_unlock(&c->lock);
	if (r != 0) {
		free(it);
		errno = -r;
		return -1;
	}
	p = &ep->hash[(unsigned int)fd % BUCKETS];
	it->hash_next = *p;
	*p = it;
	SET(ep->items, ep->items + 1);
	return 0;
}

static int modify_item(struct rs_epoll *ep, struct item *it, struct epoll_event *ev)
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
		SET(it->disarmed, false);
		if (!it->in_kernel)
			say(it, true);
	}
	rs_unlock(&it->c->lock);
	if (r != 0) {
		errno = -r;
		return -1;
	}
	return 0;
}

static int delete_item(struct rs_epoll *ep, struct item **p)
{
	struct epoll_event ev = { 0 };
	struct item *it = *p;
	int r = 0;

	rs_lock(&it->c->lock);
	if (it->in_kernel)
		r = (int)rs_sys4(SYS_epoll_ctl, ep->epfd, EPOLL_CTL_DEL, it->fd, &ev);
	rs_unlock(&it->c->lock);
	remove_item(ep, p);
	if (r != 0) {
		errno = -r;
		return -1;
	}
	return 0;
}

/* From now on every piece of news of `fd` rings: a sleeper in another set depends on it. */
static void nest(struct rs_epoll *ep, int fd)
{
	struct rs_epoll *inner = rs_epoll_of(fd);
	struct inner *i;

	if (!inner)
		return;
	if (!__atomic_exchange_n(&inner->nested, true, __ATOMIC_SEQ_CST))
		__atomic_fetch_add(&inner->sleepers, 1, __ATOMIC_SEQ_CST);
	renew_nested(inner);
	i = calloc(1, sizeof(*i));
	if (i) { /* else it may report once too often */
		*i = (struct inner){ .ep = inner, .tag = inner->tag, .fd = fd };
		rs_lock(&ep->lock);
		i->next = ep->inner;
		SET(ep->inner, i);
		rs_unlock(&ep->lock);
	}
	rs_epoll_put(inner);
}

/* The registration of `fd`, or what is closed since. */
static void unnest(struct rs_epoll *ep, int fd)
{
	struct inner **p = &ep->inner, *i;

	rs_lock(&ep->lock);
	while ((i = *p)) {
		if (i->fd == fd || rs_file(i->fd) != ((uintptr_t)i->ep | RS_KIND_EPOLL) ||
		    GET(i->ep->tag) != i->tag) {
			SET(*p, i->next);
			free(i);
		} else {
			p = &i->next;
		}
	}
	rs_unlock(&ep->lock);
}

int rs_epoll_ctl_ep(struct rs_epoll *ep, int epfd, int op, int fd, struct epoll_event *ev)
{
	uintptr_t word = rs_file(fd);
	struct rs_conn *c;
	struct item **p;
	int r;

	if (rs_file_kind(word) != RS_KIND_CONN || (op != EPOLL_CTL_DEL && !ev) || epfd == fd ||
	    (!GET(ep->items) && GET(((struct rs_conn *)rs_file_pointer(word))->plain))) {
		r = rs_real.epoll_ctl(epfd, op, fd, ev);
		if (r == 0 && op == EPOLL_CTL_ADD)
			__atomic_fetch_add(&ep->kernel_fds, 1, __ATOMIC_RELAXED);
		if (r == 0 && op != EPOLL_CTL_MOD && rs_file_kind(word) == RS_KIND_EPOLL) {
			unnest(ep, fd);
			if (op == EPOLL_CTL_ADD)
				nest(ep, fd);
		}
		return r;
	}
	c = rs_file_pointer(word);
	if (!rs_conn_get(c))
		return rs_real.epoll_ctl(epfd, op, fd, ev);
	rs_lock(&ep->lock);
	SET(ep->epfd, epfd); /* a duplicate may be all that is left */
	p = find(ep, fd, c);
	if (op == EPOLL_CTL_ADD && ev->events & EPOLLEXCLUSIVE && ev->events & ~EXCLUSIVE_OK) {
		errno = EINVAL;
		r = -1;
	} else if (op == EPOLL_CTL_ADD && !*p && c->plain) {
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
	rs_unlock(&ep->lock);
	rs_conn_put(c);
	return r;
}

/* ---- waiting ---- */

static void take_news(struct rs_conn *c, void *arg)
{
	struct rs_epoll *ep = arg;

	rs_lock(&c->lock);
	for (struct rs_watch *w = c->watches; w; w = w->next) {
		struct item *it = item_of(w);

		if (it->ep == ep && !GET(it->in_kernel) && !GET(it->disarmed))
			push(it, true);
	}
	rs_unlock(&c->lock);
	rs_conn_put(c);
}

static void harvest(struct rs_epoll *ep)
{
	if (!GET(ep->bell))
		return;
	for (struct rs_link *l = __atomic_load_n(&rs_links, __ATOMIC_ACQUIRE); l; l = l->next)
		rs_link_harvest(l, GET(ep->bell), take_news, ep);
}

/* What the item's connection is ready for. */
static uint32_t item_mask(struct item *it)
{
	uint32_t events = it->events & (EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP | EPOLLRDNORM |
					EPOLLRDBAND | EPOLLWRNORM | EPOLLWRBAND);
	uint32_t ask, mask;

	if (it->events & EPOLLET)
		events |= EPOLLRDHUP; /* the end of the stream, for to_report() */
	mask = rs_conn_poll(it->c, events, &ask);
	if (ask) {
		struct pollfd p = { .events = (short)ask };
		long r = 0;

		/* The number that it was added by may be closed, and another file's. */
		rs_lock(&it->c->lock);
		p.fd = it->c->fd;
		if (!it->c->closed)
			r = rs_sys3(SYS_poll, &p, 1, 0);
		rs_unlock(&it->c->lock);
		if (r > 0 && !(p.revents & POLLNVAL)) {
			/* What the kernel has may be a control byte that came just now. */
			mask = rs_conn_poll(it->c, events, &ask);
			mask |= (uint32_t)(unsigned short)p.revents & ask;
		}
	}
	return mask;
}

/* What the item has to report now. `fresh`: as it was queued. */
static uint32_t to_report(struct rs_epoll *ep, struct item *it, bool fresh)
{
	uint32_t mask;

	if (GET(it->in_kernel) || GET(it->disarmed))
		return 0;
	mask = item_mask(it);
	if ((it->events & EPOLLOUT) && !(mask & EPOLLOUT)) {
		rs_lock(&it->c->lock);
		rs_conn_want(it->c, GET(ep->bell), true);
		rs_unlock(&it->c->lock);
		mask = item_mask(it); /* look again after saying that we wait */
	}
	if (GET(it->in_kernel))
		return 0; /* since a moment ago: the kernel will report it */
	if (it->events & EPOLLET) {
		/*
		 * The ring tells of the end of the stream, and then TCP does. After it no more
		 * bytes come: what repeats it is no edge.
		 */
		it->seen = mask;
		it->told &= mask;
		if (it->told & EPOLLRDHUP && !fresh && it->told == mask)
			return 0;
	}
	return mask & (it->events | EPOLLERR | EPOLLHUP);
}

static bool has_data(const struct epoll_event *ev, int n, const struct item *it)
{
	for (int i = 0; i < n; i++)
		if (ev[i].data.u64 == it->data.u64)
			return true;
	return false;
}

/*
 * Puts what is ready on the fast path behind the `n` events of the kernel that are in `ev`; returns
 * how many there are then. No descriptor may come twice. `since`: ep->switches from before the kernel
 * was asked: what came from or to the kernel since then may be among the `n`. All there is to see is the
 * program's data word, which others may have too, so such an item waits for the next call.
 */
static int collect(struct rs_epoll *ep, struct epoll_event *ev, int n, int max, uint64_t since)
{
	const int kernel = n;
	uint64_t batch;
	uint32_t rounds;

	if (!GET(ep->items))
		return n;
	rs_lock(&ep->lock);
	harvest(ep);
	batch = ++ep->batches;
	rounds = __atomic_load_n(&ep->nready, __ATOMIC_SEQ_CST);
	while (rounds-- && n < max) {
		bool fresh = false;
		struct item *it = pop(ep, &fresh);
		uint32_t mask;

		if (!it)
			break;
		/* Others may leave the queue meanwhile: then this is one that we have put back. */
		if (it->batch == batch ||
		    (kernel && GET(it->switched) > since && has_data(ev, kernel, it))) {
			push(it, fresh);
			continue;
		}
		mask = to_report(ep, it, fresh);
		if (!mask)
			continue;
		ev[n].events = mask;
		ev[n].data = it->data;
		it->told = it->seen;
		it->batch = batch;
		n++;
		SET(ep->last_cpu, rs_conn_peer_cpu(it->c));
		if (it->events & EPOLLONESHOT)
			SET(it->disarmed, true);
		else if (!(it->events & EPOLLET))
			push(it, false);
	}
	rs_unlock(&ep->lock);
	return n;
}

static bool ready_inside(struct rs_epoll *ep, int depth);

/* Makes what the kernel says of the sets in this set true. */
static void look_inside(struct rs_epoll *ep, int depth)
{
	for (uint32_t n = 0;; n++) {
		struct rs_epoll *inner = NULL;
		struct inner *i;

		rs_lock(&ep->lock);
		i = ep->inner;
		for (uint32_t k = 0; i && k < n; k++)
			i = i->next;
		if (i && rs_file(i->fd) == ((uintptr_t)i->ep | RS_KIND_EPOLL) &&
		    i->ep->tag == i->tag && get(i->ep))
			inner = i->ep;
		rs_unlock(&ep->lock);
		if (inner) {
			ready_inside(inner, depth);
			rs_epoll_put(inner);
		} else if (!i) {
			break;
		}
	}
}

/* The kernel's part, without our own eventfd. Returns events or -errno. */
static int kernel_wait(struct rs_epoll *ep, struct epoll_event *ev, int max,
		       const struct timespec *timeout, const sigset_t *mask)
{
	int epfd, n, out = 0;

	if (GET(ep->inner))
		look_inside(ep, MAX_NESTS);
	epfd = GET(ep->epfd);
	if (timeout && !timeout->tv_sec && !timeout->tv_nsec) {
		n = (int)rs_sys6(SYS_epoll_pwait, epfd, (long)ev, max, 0, (long)mask, 8);
		if (n < 0)
			return n;
	} else if (timeout) {
		n = rs_real.epoll_pwait2(epfd, ev, max, timeout, mask);
		if (n < 0 && errno == ENOSYS)
			n = rs_real.epoll_pwait(epfd, ev, max,
						(int)(timeout->tv_sec * 1000 +
						      (timeout->tv_nsec + 999999) / 1000000),
						mask);
	} else {
		n = rs_real.epoll_pwait(epfd, ev, max, -1, mask);
	}
	if (n < 0)
		return -errno;
	for (int i = 0; i < n; i++) {
		/* It may be in the set before `marked` says so. */
		if (ev[i].data.u64 != ep->tag)
			ev[out++] = ev[i];
	}
	SET(ep->kernel_look, out ? 0 : rs_ticks());
	return out;
}

bool rs_epoll_asleep(struct rs_epoll *ep, bool asleep)
{
	bool pending;

	if (asleep)
		__atomic_fetch_add(&ep->sleepers, 1, __ATOMIC_SEQ_CST);
	else if (__atomic_sub_fetch(&ep->sleepers, 1, __ATOMIC_SEQ_CST) != 0)
		asleep = true; /* others sleep still: their alarm must be set again */
	if (!GET(ep->bell))
		return false;
	pending = rs_links_asleep(GET(ep->bell), GET(ep->nested) ? RS_BELL_ALWAYS
						 : asleep	 ? RS_BELL_ONCE
								 : RS_BELL_NEVER);
	return pending;
}

static bool any_ready(struct rs_epoll *ep)
{
	bool ready = false;

	if (!GET(ep->items))
		return false;
	rs_lock(&ep->lock);
	harvest(ep);
	for (uint32_t rounds = GET(ep->nready); rounds && !ready; rounds--) {
		bool fresh = false;
		struct item *it = pop(ep, &fresh);

		if (!it)
			break;
		ready = to_report(ep, it, fresh) != 0;
		if (ready)
			push(it, fresh);
	}
	rs_unlock(&ep->lock);
	return ready;
}

static bool ready_inside(struct rs_epoll *ep, int depth)
{
	struct pollfd p = { .events = POLLIN };
	uint64_t count;
	bool ready;

	if (GET(ep->inner) && depth > 0)
		look_inside(ep, depth - 1);
	ready = any_ready(ep);
	if (!GET(ep->bell))
		return ready;
	p.fd = rs_bell_fd(GET(ep->bell));
	if (ready) {
		/* We may have taken the news before the ring came that it was to bring. */
		if (__atomic_load_n(&ep->sleepers, __ATOMIC_SEQ_CST) &&
		    rs_sys3(SYS_poll, &p, 1, 0) == 0)
			rs_bell_ring(1u << GET(ep->bell));
		return true;
	}
	if (rs_sys3(SYS_read, p.fd, &count, sizeof(count)) < 0)
		return false;
	/* That ring may have been another's: he sleeps on, and must hear of what comes next. */
	if (!__atomic_load_n(&ep->sleepers, __ATOMIC_SEQ_CST))
		return false;
	rs_links_asleep(GET(ep->bell), GET(ep->nested) ? RS_BELL_ALWAYS : RS_BELL_ONCE);
	ready = any_ready(ep);
	if (ready)
		rs_bell_ring(1u << GET(ep->bell));
	return ready;
}

bool rs_epoll_ready(struct rs_epoll *ep)
{
	return ready_inside(ep, MAX_NESTS);
}

/* Something may be ready: cheap enough to spin on. */
static bool any_news(const struct rs_epoll *ep)
{
	if (__atomic_load_n(&ep->nready, __ATOMIC_RELAXED))
		return true;
	for (struct rs_link *l = __atomic_load_n(&rs_links, __ATOMIC_ACQUIRE); l; l = l->next)
		if (rs_link_alive(l) && (!l->shm.remote || rs_remote_progress(l->shm.remote)) &&
		    __atomic_load_n(&l->shm.mine[0]->bells[GET(ep->bell)].pending,
				    __ATOMIC_RELAXED))
			return true;
	return false;
}

static bool spin(struct rs_epoll *ep, const struct timespec *left)
{
	uint32_t us = __atomic_load_n(&ep->spin, __ATOMIC_RELAXED);
	uint64_t end;

	if (!rs_config.spin_us || !GET(ep->bell) || !GET(ep->marked))
		return false;
	if (GET(ep->last_cpu) == (uint32_t)sched_getcpu() + 1)
		return false;
	if (left && left->tv_sec == 0 && left->tv_nsec < (long)us * 1000)
		us = (uint32_t)(left->tv_nsec / 1000);
	end = rs_ticks() + us * rs_ticks_per_us();
	do {
		for (int i = 0; i < 8; i++) {
			if (any_news(ep))
				return true;
			rs_cpu_relax();
		}
	} while (rs_ticks() < end);
	return false;
}

static void cancelled(void *ep)
{
	rs_epoll_asleep(ep, false);
	rs_epoll_put(ep);
}

static int kernel_sleep(struct rs_epoll *ep, struct epoll_event *ev, int max,
			const struct timespec *timeout, const sigset_t *mask)
{
	int n;

	pthread_cleanup_push(cancelled, ep);
	n = kernel_wait(ep, ev, max, timeout, mask);
	pthread_cleanup_pop(0);
	return n;
}

/* A set without streams: the kernel's, but for a bell that may have come, or remained. */
static int plain_wait(struct rs_epoll *ep, struct epoll_event *ev, int max,
		      const struct timespec *timeout, const sigset_t *mask)
{
	int n;

	rs_epoll_asleep(ep, true);
	n = kernel_sleep(ep, ev, max, timeout, mask);
	rs_epoll_asleep(ep, false);
	return n;
}

/* The kernel's share of a batch, so that neither it nor the streams starve. */
static int kernel_share(struct rs_epoll *ep, int max)
{
	int ready;

	if (max == 1) {
		SET(ep->kernel_last, !GET(ep->kernel_last));
		return GET(ep->kernel_last);
	}
	rs_lock(&ep->lock);
	harvest(ep);
	rs_unlock(&ep->lock);
	ready = (int)__atomic_load_n(&ep->nready, __ATOMIC_SEQ_CST);
	return max - (ready < max / 2 ? ready : max / 2);
}

/* Returns events or -errno. */
static int wait_ep(struct rs_epoll *ep, struct epoll_event *ev, int max,
		   const struct timespec *timeout, const sigset_t *mask)
{
	static const struct timespec zero;
	const bool poll_only = timeout && !timeout->tv_sec && !timeout->tv_nsec;
	struct timespec left;
	uint64_t end = 0, start, since;
	int n, k;

	if (max <= 0 || (uintptr_t)ev < 4096) /* for its errno */
		return kernel_wait(ep, ev, max, &zero, mask);
	if (timeout)
		end = rs_now_ns() + (uint64_t)timeout->tv_sec * 1000000000u +
		      (uint64_t)timeout->tv_nsec;
	if (!GET(ep->items)) {
		n = plain_wait(ep, ev, max, timeout, mask);
		if (n != 0 || (!GET(ep->items) && !GET(ep->marked)))
			return n;
	}
	for (bool first = true;; first = false) {
		k = 0;
		since = __atomic_load_n(&ep->switches, __ATOMIC_SEQ_CST);
		if (GET(ep->kernel_fds) && any_news(ep) &&
		    rs_ticks() - GET(ep->kernel_look) > KERNEL_EVERY_US * rs_ticks_per_us()) {
			int share = kernel_share(ep, max);

			k = share ? kernel_wait(ep, ev, share, &zero, NULL) : 0;
			if (k < 0)
				k = 0;
		}
		n = collect(ep, ev, k, max, since);
		if (n)
			return n;
		if (poll_only)
			return kernel_wait(ep, ev, max, &zero, mask);
		if (timeout) {
			uint64_t now = rs_now_ns();

			if (now >= end && !first)
				return 0;
			now = now < end ? end - now : 0;
			left.tv_sec = (time_t)(now / 1000000000u);
			left.tv_nsec = (long)(now % 1000000000u);
		}
		start = rs_ticks();
		if (spin(ep, timeout ? &left : NULL))
			continue;
		if (rs_epoll_asleep(ep, true) || __atomic_load_n(&ep->nready, __ATOMIC_SEQ_CST)) {
			k = kernel_wait(ep, ev, max, &zero, mask);
		} else {
			k = kernel_sleep(ep, ev, max, timeout ? &left : NULL, mask);
		}
		SET(ep->spin, rs_spin_next(GET(ep->spin), rs_ticks() - start,
					   rs_spin_most(rs_links_remote())));
		/* If others sleep on, and there is more than we take, they must hear of it. */
		if (rs_epoll_asleep(ep, false) && GET(ep->sleepers))
			rs_bell_ring(1u << GET(ep->bell));
		n = collect(ep, ev, k < 0 ? 0 : k, max, since);
		if (n)
			return n;
		if (k < 0)
			return k;
	}
}

int rs_epoll_wait_ep(struct rs_epoll *ep, struct epoll_event *ev, int max,
		     const struct timespec *timeout, const sigset_t *mask)
{
	int n = wait_ep(ep, ev, max, timeout, mask);

	renew_nested(ep);
	rs_epoll_put(ep);
	if (n < 0) {
		errno = -n;
		return -1;
	}
	return n;
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
	ep->ready_lock.word = 0;
	ep->mark_lock.word = 0;
	ep->bell = 0;
	ep->sleepers = 0;
	ep->forked = true;
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
