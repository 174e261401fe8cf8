/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "preload/epoll_set.h"

#include "conn_mgr/link.h"
#include "conn_mgr/real.h"
#include "conn_mgr/wait.h"
#include "preload/files.h"
#include "rsock/bell.h"
#include "rsock/config.h"
#include "rsock/sys.h"

#define KERNEL_EVERY_US 50 /* the kernel's fds of a busy set are looked at this often */

/* ---- collecting ---- */

static void take_news(struct rs_conn *c, void *arg)
{
	struct rs_epoll *ep = arg;

	rs_lock(&c->lock);
	for (struct rs_watch *w = c->watches; w; w = w->next) {
		struct rs_item *it = rs_item_of(w);

		if (it->ep == ep && !RS_GET(it->in_kernel) && !RS_GET(it->disarmed))
			rs_item_push(it, true);
	}
	rs_unlock(&c->lock);
	rs_conn_put(c);
}

static void harvest(struct rs_epoll *ep)
{
	if (!RS_GET(ep->bell))
		return;
	for (struct rs_link *l = __atomic_load_n(&rs_links, __ATOMIC_ACQUIRE); l; l = l->next)
		rs_link_harvest(l, RS_GET(ep->bell), take_news, ep);
}

/* What the item's connection is ready for. */
static uint32_t item_mask(struct rs_item *it)
{
	uint32_t events = rs_item_events(it), ask, mask;

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
static uint32_t to_report(struct rs_epoll *ep, struct rs_item *it, bool fresh)
{
	uint32_t mask, old = 0;

	if (RS_GET(it->in_kernel) || RS_GET(it->disarmed))
		return 0;
	/* First: who finds no room meanwhile wants to be told of room although it was there. */
	if (it->events & EPOLLET)
		old = __atomic_exchange_n(&it->watch.told, UINT32_MAX, __ATOMIC_SEQ_CST);
	mask = item_mask(it);
	if ((it->events & EPOLLOUT) && !(mask & EPOLLOUT)) {
		rs_lock(&it->c->lock);
		rs_conn_want(it->c, RS_GET(ep->bell), true);
		rs_unlock(&it->c->lock);
		mask = item_mask(it); /* look again after saying that we wait */
	}
	if (RS_GET(it->in_kernel))
		return 0; /* since a moment ago: the kernel will report it */
	if (it->events & EPOLLET) {
		__atomic_fetch_and(&it->watch.told, mask, __ATOMIC_SEQ_CST);
		/* After the end of the stream no more bytes come: what repeats it is no edge. */
		if (!(mask & ~old) && (!fresh || old & EPOLLRDHUP))
			return 0;
	}
	return mask & (it->events | EPOLLERR | EPOLLHUP);
}

static bool has_data(const struct epoll_event *ev, int n, const struct rs_item *it)
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

	if (!RS_GET(ep->items))
		return n;
	rs_lock(&ep->lock);
	harvest(ep);
	batch = ++ep->batches;
	rounds = __atomic_load_n(&ep->nready, __ATOMIC_SEQ_CST);
	while (rounds-- && n < max) {
		bool fresh = false;
		struct rs_item *it = rs_item_pop(ep, &fresh);
		uint32_t mask;

		if (!it)
			break;
		/* Others may leave the queue meanwhile: then this is one that we have put back. */
		if (it->batch == batch ||
		    (kernel && RS_GET(it->switched) > since && has_data(ev, kernel, it))) {
			rs_item_push(it, fresh);
			continue;
		}
		mask = to_report(ep, it, fresh);
		if (!mask)
			continue;
		ev[n].events = mask;
		ev[n].data = it->data;
		it->batch = batch;
		n++;
		RS_SET(ep->last_cpu, rs_conn_peer_cpu(it->c));
		if (it->events & EPOLLONESHOT)
			RS_SET(it->disarmed, true);
		else if (!(it->events & EPOLLET))
			rs_item_push(it, false);
	}
	rs_epoll_unlock(ep);
	return n;
}

/* ---- sets in sets ---- */

static bool ready_inside(struct rs_epoll *ep, int depth);

/* Makes what the kernel says of the sets in this set true. */
static void look_inside(struct rs_epoll *ep, int depth)
{
	struct rs_epoll *inner;

	for (uint32_t n = 0; rs_epoll_inner(ep, n, &inner); n++)
		if (inner) {
			ready_inside(inner, depth);
			rs_epoll_put(inner);
		}
}

/* ---- the kernel's part ---- */

/* The kernel's part, without the set's bell. Returns events or -errno. */
static int kernel_wait(struct rs_epoll *ep, struct epoll_event *ev, int max,
		       const struct timespec *timeout, const sigset_t *mask)
{
	int epfd, n, out = 0;

	if (RS_GET(ep->inner))
		look_inside(ep, RS_EPOLL_MAX_NESTS);
	epfd = RS_GET(ep->epfd);
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
	RS_SET(ep->kernel_look, out ? 0 : rs_ticks());
	return out;
}

bool rs_epoll_asleep(struct rs_epoll *ep, bool asleep)
{
	bool pending;

	if (asleep)
		__atomic_fetch_add(&ep->sleepers, 1, __ATOMIC_SEQ_CST);
	else if (__atomic_sub_fetch(&ep->sleepers, 1, __ATOMIC_SEQ_CST) != 0)
		asleep = true; /* others sleep still: their alarm must be set again */
	if (!RS_GET(ep->bell))
		return false;
	pending = rs_links_asleep(RS_GET(ep->bell), RS_GET(ep->nested) ? RS_BELL_ALWAYS
						    : asleep	       ? RS_BELL_ONCE
								       : RS_BELL_NEVER);
	return pending;
}

static bool any_ready(struct rs_epoll *ep)
{
	bool ready = false;

	if (!RS_GET(ep->items))
		return false;
	rs_lock(&ep->lock);
	harvest(ep);
	for (uint32_t rounds = RS_GET(ep->nready); rounds && !ready; rounds--) {
		bool fresh = false;
		struct rs_item *it = rs_item_pop(ep, &fresh);

		if (!it)
			break;
		ready = to_report(ep, it, fresh) != 0;
		if (ready) {
			/* That it was told is not true yet. */
			__atomic_store_n(&it->watch.told, 0, __ATOMIC_SEQ_CST);
			rs_item_push(it, fresh);
		}
	}
	rs_epoll_unlock(ep);
	return ready;
}

static bool ready_inside(struct rs_epoll *ep, int depth)
{
	struct pollfd p = { .events = POLLIN };
	bool ready;

	if (RS_GET(ep->inner) && depth > 0)
		look_inside(ep, depth - 1);
	ready = any_ready(ep);
	if (!RS_GET(ep->bell))
		return ready;
	p.fd = rs_bell_fd(RS_GET(ep->bell));
	if (ready) {
		/* We may have taken the news before the ring came that it was to bring. */
		if (__atomic_load_n(&ep->sleepers, __ATOMIC_SEQ_CST) &&
		    rs_sys3(SYS_poll, &p, 1, 0) == 0)
			rs_bell_ring(1u << RS_GET(ep->bell));
		return true;
	}
	if (!rs_bell_clear(RS_GET(ep->bell)))
		return false;
	/* That ring may have been another's: he sleeps on, and must hear of what comes next. */
	if (!__atomic_load_n(&ep->sleepers, __ATOMIC_SEQ_CST))
		return false;
	rs_links_asleep(RS_GET(ep->bell), RS_GET(ep->nested) ? RS_BELL_ALWAYS : RS_BELL_ONCE);
	ready = any_ready(ep);
	if (ready)
		rs_bell_ring(1u << RS_GET(ep->bell));
	return ready;
}

bool rs_epoll_ready(struct rs_epoll *ep)
{
	return ready_inside(ep, RS_EPOLL_MAX_NESTS);
}

/* ---- waiting ---- */

/* Something may be ready: cheap enough to spin on. */
static bool any_news(const struct rs_epoll *ep)
{
	if (__atomic_load_n(&ep->nready, __ATOMIC_RELAXED))
		return true;
	for (struct rs_link *l = __atomic_load_n(&rs_links, __ATOMIC_ACQUIRE); l; l = l->next)
		if (rs_link_alive(l) && (!l->shm.remote || rs_remote_progress(l->shm.remote)) &&
		    __atomic_load_n(&l->shm.mine[0]->bells[RS_GET(ep->bell)].pending,
				    __ATOMIC_RELAXED))
			return true;
	return false;
}

static bool spin(struct rs_epoll *ep, const struct timespec *left)
{
	uint32_t us = rs_spin_us(&ep->spin, rs_links_remote());
	uint64_t end;

	if (!rs_config.spin_us || !RS_GET(ep->bell) || !RS_GET(ep->marked))
		return false;
	if (RS_GET(ep->last_cpu) == (uint32_t)sched_getcpu() + 1)
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
		RS_SET(ep->kernel_last, !RS_GET(ep->kernel_last));
		return RS_GET(ep->kernel_last);
	}
	rs_lock(&ep->lock);
	harvest(ep);
	rs_epoll_unlock(ep);
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
	if (!RS_GET(ep->items)) {
		n = plain_wait(ep, ev, max, timeout, mask);
		if (n != 0 || (!RS_GET(ep->items) && !RS_GET(ep->marked)))
			return n;
	}
	for (bool first = true;; first = false) {
		k = 0;
		since = __atomic_load_n(&ep->switches, __ATOMIC_SEQ_CST);
		if (RS_GET(ep->kernel_fds) && any_news(ep) &&
		    rs_ticks() - RS_GET(ep->kernel_look) > KERNEL_EVERY_US * rs_ticks_per_us()) {
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
		if (spin(ep, timeout ? &left : NULL)) {
			rs_spin_waited(&ep->spin, rs_links_remote(), 0);
			continue;
		}
		if (rs_epoll_asleep(ep, true) || __atomic_load_n(&ep->nready, __ATOMIC_SEQ_CST)) {
			k = kernel_wait(ep, ev, max, &zero, mask);
		} else {
			k = kernel_sleep(ep, ev, max, timeout ? &left : NULL, mask);
		}
		rs_spin_waited(&ep->spin, rs_links_remote(), rs_ticks() - start);
		/* If others sleep on, and there is more than we take, they must hear of it. */
		if (rs_epoll_asleep(ep, false) && RS_GET(ep->sleepers))
			rs_bell_ring(1u << RS_GET(ep->bell));
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

	rs_epoll_renew_nested(ep);
	rs_epoll_put(ep);
	if (n < 0) {
		errno = -n;
		return -1;
	}
	return n;
}
