/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * poll.c - poll and select over descriptors of which some are streams
 *
 * A call that covers no stream is the kernel's. Otherwise: look at the streams, ask the kernel about
 * the rest, spin if that tends to pay, then sleep in the kernel's ppoll with a bell beside the
 * descriptors that the kernel can speak for.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "conn_mgr/link.h"
#include "conn_mgr/real.h"
#include "conn_mgr/wait.h"
#include "preload/epoll.h"
#include "preload/files.h"
#include "preload/process.h"
#include "preload/socket.h"
#include "rsock/bell.h"
#include "rsock/config.h"
#include "rsock/rsock.h"
#include "rsock/sys.h"

#define ON_STACK 64

/* One descriptor of the call. */
struct target {
	struct rs_conn *c; /* with a reference; NULL: the kernel's */
	struct rs_epoll *ep; /* likewise */
	uint32_t ask; /* of a stream: bits for which the kernel's answer counts */
};

struct set {
	struct pollfd *fds;
	struct pollfd *k; /* what the kernel is asked, n + 1 entries */
	struct target *t;
	nfds_t n;
	uint32_t bell; /* while asleep */
	void *heap[3]; /* allocated for the call */
};

static bool any_stream(const struct pollfd *fds, nfds_t n)
{
	if ((uintptr_t)fds < 4096)
		return false; /* the kernel says EFAULT */
	for (nfds_t i = 0; i < n; i++) {
		uintptr_t word = fds[i].fd >= 0 ? rs_file(fds[i].fd) : 0;

		if (rs_file_kind(word) == RS_KIND_EPOLL)
			return true;
		if (rs_file_kind(word) == RS_KIND_CONN) {
			const struct rs_conn *c = rs_file_pointer(word);

			if (!__atomic_load_n(&c->plain, __ATOMIC_RELAXED) ||
			    __atomic_load_n(&c->err, __ATOMIC_RELAXED))
				return true;
		}
	}
	return false;
}

/* Readiness of the streams; fills in what to ask the kernel. Returns how many are ready. */
static int look(struct set *s)
{
	int ready = 0;

	for (nfds_t i = 0; i < s->n; i++) {
		struct pollfd *p = &s->fds[i];
		struct target *t = &s->t[i];

		s->k[i] = *p;
		p->revents = 0;
		if (t->c) {
			uint32_t ev = (uint32_t)(unsigned short)p->events;

			p->revents = (short)rs_conn_poll(t->c, ev, &t->ask);
			s->k[i].events = (short)(t->ask & ev);
			/* Errors are reported unasked: leave it out when they do not count. */
			if (!t->ask)
				s->k[i].fd = -1;
		} else if (t->ep) {
			/* Before the kernel is asked, which hears of streams by their bell only. */
			if (rs_epoll_ready(t->ep))
				p->revents = p->events & (POLLIN | POLLRDNORM);
		}
		if (p->revents)
			ready++;
	}
	return ready;
}

/* Adds the kernel's answers. Returns how many descriptors are ready in all. */
static int merge(struct set *s)
{
	int ready = 0;

	for (nfds_t i = 0; i < s->n; i++) {
		struct pollfd *p = &s->fds[i];
		short r = s->k[i].fd < 0 ? 0 : s->k[i].revents;

		if (s->t[i].c)
			r &= (short)(s->t[i].ask | POLLNVAL);
		p->revents |= r;
		if (p->revents)
			ready++;
	}
	return ready;
}

static bool for_kernel(const struct set *s)
{
	for (nfds_t i = 0; i < s->n; i++)
		if (s->k[i].fd >= 0)
			return true;
	return false;
}

static int ask_kernel(struct set *s)
{
	long r = 0;

	if (for_kernel(s))
		r = rs_sys3(SYS_poll, s->k, s->n, 0);
	if (r < 0)
		return (int)r;
	/* A stream's state may have changed with what the kernel just reported: look again. */
	for (nfds_t i = 0; r > 0 && i < s->n; i++) {
		struct target *t = &s->t[i];
		uint32_t ev = (uint32_t)(unsigned short)s->fds[i].events;

		if (t->c && s->k[i].fd >= 0 && s->k[i].revents)
			s->fds[i].revents |= (short)rs_conn_poll(t->c, ev, &t->ask);
	}
	return merge(s);
}

static void arm(struct set *s, uint32_t bell, bool on)
{
	for (nfds_t i = 0; i < s->n; i++) {
		if (s->t[i].c && on)
			rs_conn_set_bell(s->t[i].c, bell,
					 (uint32_t)(unsigned short)s->fds[i].events);
		else if (s->t[i].c)
			rs_conn_clear_bell(s->t[i].c, bell);
		else if (s->t[i].ep)
			rs_epoll_asleep(s->t[i].ep, on);
	}
}

static __thread struct rs_spin budget __attribute__((tls_model("initial-exec")));

static bool spin(struct set *s, uint64_t end_ns)
{
	uint64_t end;
	bool streams = false;

	if (!rs_config.spin_us || s->n > 8)
		return false;
	for (nfds_t i = 0; i < s->n; i++) {
		if (!s->t[i].c)
			continue;
		if (rs_peer_needs_cpu(s->t[i].c))
			return false;
		streams |= rs_may_spin(s->t[i].c);
	}
	if (!streams)
		return false;
	end = rs_ticks() + rs_spin_us(&budget, rs_links_remote()) * rs_ticks_per_us();
	do {
		for (nfds_t i = 0; i < s->n; i++) {
			uint32_t ask;

			if (s->t[i].c &&
			    rs_conn_poll(s->t[i].c, (uint32_t)(unsigned short)s->fds[i].events,
					 &ask)) {
				return true;
			}
		}
		rs_cpu_relax();
	} while (rs_ticks() < end && (!end_ns || rs_now_ns() < end_ns));
	return false;
}

static void awake(struct set *s)
{
	if (!s->bell)
		return;
	rs_links_asleep(s->bell, RS_BELL_NEVER);
	arm(s, s->bell, false);
	/* Who rings later wakes the next that has it, in vain. */
	if (s->k[s->n].revents)
		rs_bell_clear(s->bell);
	rs_bell_put(s->bell);
}

static void release(struct set *s)
{
	for (nfds_t i = 0; i < s->n; i++)
		if (s->t[i].c)
			rs_conn_put(s->t[i].c);
		else if (s->t[i].ep)
			rs_epoll_put(s->t[i].ep);
	for (size_t i = 0; i < 3; i++)
		free(s->heap[i]);
}

static void cancelled(void *arg)
{
	awake(arg);
	release(arg);
}

static int kernel_ppoll(struct set *s, const struct timespec *timeout, const sigset_t *mask)
{
	int r;

	pthread_cleanup_push(cancelled, s);
	r = rs_real.ppoll(s->k, s->n + 1, timeout, mask);
	pthread_cleanup_pop(0);
	return r < 0 ? -errno : r;
}

/* All bells are in use: nobody wakes us for a stream. */
static int doze_in_kernel(struct set *s, const struct timespec *timeout, const sigset_t *mask)
{
	static const struct timespec doze = { .tv_nsec = 1000000 };
	bool all = timeout && !timeout->tv_sec && timeout->tv_nsec < doze.tv_nsec;

	s->k[s->n] = (struct pollfd){ .fd = -1 };
	return look(s) ? 1 : kernel_ppoll(s, all ? timeout : &doze, mask);
}

static int sleep_in_kernel(struct set *s, const struct timespec *timeout, const sigset_t *mask)
{
	int r;

	s->bell = rs_bell_get();
	if (!s->bell)
		return doze_in_kernel(s, timeout, mask);
	rs_links_send_bells();
	arm(s, s->bell, true);
	rs_links_asleep(s->bell, RS_BELL_ONCE);
	s->k[s->n] = (struct pollfd){ .fd = rs_bell_fd(s->bell), .events = POLLIN };
	r = look(s) ? 1 /* while we were arming */ : kernel_ppoll(s, timeout, mask);
	awake(s);
	return r;
}

static int wait_set(struct set *s, const struct timespec *timeout, const sigset_t *mask)
{
	uint64_t end = 0;
	uint64_t start;
	bool first = true;

	if (timeout)
		end = rs_now_ns() + (uint64_t)timeout->tv_sec * 1000000000u +
		      (uint64_t)timeout->tv_nsec;
	for (;;) {
		struct timespec left;
		int r;

		look(s);
		r = ask_kernel(s);
		if (r != 0)
			return r;
		if (timeout) {
			uint64_t now = rs_now_ns();

			if (now >= end &&
			    (!first || end == 0 || !(timeout->tv_sec | timeout->tv_nsec)))
				return 0;
			now = now < end ? end - now : 0;
			left.tv_sec = (time_t)(now / 1000000000u);
			left.tv_nsec = (long)(now % 1000000000u);
		}
		first = false;
		start = rs_ticks();
		if (!mask && spin(s, timeout ? end : 0)) {
			rs_spin_waited(&budget, rs_links_remote(), 0);
			continue;
		}
		r = sleep_in_kernel(s, timeout ? &left : NULL, mask);
		rs_spin_waited(&budget, rs_links_remote(), rs_ticks() - start);
		if (r < 0) {
			look(s);
			return merge(s) && r == -EINTR && ask_kernel(s) > 0 ? ask_kernel(s) : r;
		}
	}
}

/* `heap`: what to free should the thread be cancelled. */
static int do_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout,
		    const sigset_t *mask, void *heap)
{
	struct pollfd k_stack[ON_STACK + 1];
	struct target t_stack[ON_STACK];
	struct set s = { .fds = fds, .k = k_stack, .t = t_stack, .n = n, .heap = { heap } };
	struct rlimit rl;
	int r, saved = errno;

	rs_process_waits();
	if (!fds || !any_stream(fds, n))
		return rs_real.ppoll(fds, n, timeout, mask);
	if (timeout &&
	    (timeout->tv_sec < 0 || timeout->tv_nsec < 0 || timeout->tv_nsec >= 1000000000)) {
		errno = EINVAL;
		return -1;
	}
	if (n > ON_STACK) {
		if (rs_sys4(SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, &rl) == 0 && n > rl.rlim_cur) {
			errno = EINVAL;
			return -1;
		}
		s.k = calloc(n + 1, sizeof(*s.k));
		s.t = calloc(n, sizeof(*s.t));
		if (!s.k || !s.t) {
			free(s.k);
			free(s.t);
			errno = ENOMEM;
			return -1;
		}
		s.heap[1] = s.k;
		s.heap[2] = s.t;
	}
	for (nfds_t i = 0; i < n; i++) {
		uintptr_t word = fds[i].fd >= 0 ? rs_file(fds[i].fd) : 0;

		s.t[i] = (struct target){ 0 };
		if (rs_file_kind(word) == RS_KIND_CONN)
			s.t[i].c = rs_file_conn(fds[i].fd);
		else if (rs_file_kind(word) == RS_KIND_EPOLL)
			s.t[i].ep = rs_epoll_of(fds[i].fd);
	}
	r = wait_set(&s, timeout, mask);
	s.heap[0] = NULL; /* the caller's again */
	release(&s);
	if (r < 0) {
		errno = -r;
		return -1;
	}
	errno = saved;
	return r;
}

int rsock_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask)
{
	return do_ppoll(fds, n, timeout, mask, NULL);
}

int rsock_poll(struct pollfd *fds, nfds_t n, int timeout)
{
	struct timespec ts = { timeout / 1000, timeout % 1000 * 1000000L };

	rs_process_waits();
	if (!fds || !any_stream(fds, n))
		return rs_real.poll(fds, n, timeout);
	return rsock_ppoll(fds, n, timeout < 0 ? NULL : &ts, NULL);
}

/* ---- select ---- */

/* Programs that need it allocate more than an fd_set: the bits go on behind it. */

static bool is_set(int fd, const fd_set *s)
{
	return s && ((const unsigned long *)s)[fd / NFDBITS] >> (fd % NFDBITS) & 1;
}

static void clear(int fd, fd_set *s)
{
	((unsigned long *)s)[fd / NFDBITS] &= ~(1UL << (fd % NFDBITS));
}

static bool select_has_stream(int n, const fd_set *r, const fd_set *w, const fd_set *e)
{
	for (int fd = 0; fd < n; fd++) {
		uintptr_t word;

		if (!(is_set(fd, r) || is_set(fd, w) || is_set(fd, e)))
			continue;
		word = rs_file(fd);
		if (rs_file_kind(word) == RS_KIND_EPOLL)
			return true;
		if (rs_file_kind(word) == RS_KIND_CONN &&
		    !__atomic_load_n(&((struct rs_conn *)rs_file_pointer(word))->plain,
				     __ATOMIC_ACQUIRE))
			return true;
	}
	return false;
}

/*
 * The size of the descriptor table: the kernel looks at no more bits than that, and programs rely on
 * it when they pass getdtablesize() with an fd_set of the usual size.
 */
static int table_size(void)
{
	static const char key[] = "\nFDSize:";
	char buf[1024], *p;
	long fd = rs_sys4(SYS_openat, AT_FDCWD, "/proc/self/status", O_RDONLY | O_CLOEXEC, 0), n;

	if (fd < 0)
		return FD_SETSIZE;
	n = rs_sys3(SYS_read, fd, buf, sizeof(buf) - 1);
	rs_sys1(SYS_close, fd);
	buf[n > 0 ? n : 0] = '\0';
	p = strstr(buf, key);
	n = p ? strtol(p + sizeof(key) - 1, NULL, 10) : 0;
	return n > 0 && n < INT_MAX ? (int)n : FD_SETSIZE;
}

/* How many bits count of the `n` that the program names. */
static int bits(int n)
{
	int size = n > FD_SETSIZE ? table_size() : n;

	return n < size ? n : size;
}

static int do_select(int n, fd_set *r, fd_set *w, fd_set *e, const struct timespec *timeout,
		     const sigset_t *mask)
{
	struct pollfd *fds = calloc((size_t)n, sizeof(*fds));
	nfds_t k = 0;
	int ret, count = 0;

	if (!fds) {
		errno = ENOMEM;
		return -1;
	}
	for (int fd = 0; fd < n; fd++) {
		short ev = 0;

		if (is_set(fd, r))
			ev |= POLLIN | POLLRDNORM | POLLRDBAND;
		if (is_set(fd, w))
			ev |= POLLOUT | POLLWRNORM | POLLWRBAND;
		if (is_set(fd, e))
			ev |= POLLPRI;
		if (ev)
			fds[k++] = (struct pollfd){ .fd = fd, .events = ev };
	}
	ret = do_ppoll(fds, k, timeout, mask, fds);
	for (nfds_t i = 0; ret > 0 && i < k; i++)
		if (fds[i].revents & POLLNVAL) {
			errno = EBADF;
			ret = -1;
		}
	if (ret < 0) {
		free(fds);
		return -1;
	}
	for (nfds_t i = 0; i < k; i++) {
		short ev = fds[i].events, rev = fds[i].revents;
		int fd = fds[i].fd;

		if (ev & POLLIN) {
			if (rev & (POLLIN | POLLRDNORM | POLLRDBAND | POLLHUP | POLLERR))
				count++;
			else
				clear(fd, r);
		}
		if (ev & POLLOUT) {
			if (rev & (POLLOUT | POLLWRNORM | POLLWRBAND | POLLERR))
				count++;
			else
				clear(fd, w);
		}
		if (ev & POLLPRI) {
			if (rev & POLLPRI)
				count++;
			else
				clear(fd, e);
		}
	}
	free(fds);
	return count;
}

int rsock_select(int n, fd_set *r, fd_set *w, fd_set *e, struct timeval *timeout)
{
	struct timespec ts;
	uint64_t end = 0, now;
	int ret;

	rs_process_waits();
	n = bits(n);
	if (n <= 0 || !select_has_stream(n, r, w, e))
		return rs_real.select(n, r, w, e, timeout);
	if (!timeout)
		return do_select(n, r, w, e, NULL, NULL);
	if (timeout->tv_sec < 0 || timeout->tv_usec < 0) {
		errno = EINVAL;
		return -1;
	}
	ts.tv_sec = timeout->tv_sec + timeout->tv_usec / 1000000;
	ts.tv_nsec = timeout->tv_usec % 1000000 * 1000;
	end = rs_now_ns() + (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
	ret = do_select(n, r, w, e, &ts, NULL);
	/* Linux tells how much time was left. */
	now = rs_now_ns();
	now = now < end ? (end - now) / 1000 : 0;
	timeout->tv_sec = (time_t)(now / 1000000);
	timeout->tv_usec = (suseconds_t)(now % 1000000);
	return ret;
}

int rsock_pselect(int n, fd_set *r, fd_set *w, fd_set *e, const struct timespec *timeout,
		  const sigset_t *mask)
{
	rs_process_waits();
	n = bits(n);
	if (n <= 0 || !select_has_stream(n, r, w, e))
		return rs_real.pselect(n, r, w, e, timeout, mask);
	return do_select(n, r, w, e, timeout, mask);
}

/* ---- epoll's entry points ---- */

static int made(int epfd)
{
	struct rs_epoll *ep;

	if (epfd < 0 || rs_config.off || rs_files_foreign())
		return epfd;
	ep = rs_epoll_new(epfd);
	if (ep && !rs_file_set(epfd, (uintptr_t)ep | RS_KIND_EPOLL))
		rs_epoll_fd_closed(ep, epfd, NULL);
	return epfd;
}

int rsock_epoll_create1(int flags)
{
	return made(rs_real.epoll_create1(flags));
}

int rsock_epoll_create(int size)
{
	if (size <= 0) {
		errno = EINVAL;
		return -1;
	}
	return made(rs_real.epoll_create1(0));
}

int rsock_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev)
{
	struct rs_epoll *ep = rs_epoll_of(epfd);
	int r;

	if (rs_file_foreign(fd)) {
		struct rs_conn *c = rs_file_conn(fd); /* becomes ours, or plain */

		if (c)
			rs_conn_put(c);
	}
	if (ep) {
		if (op == EPOLL_CTL_ADD)
			rs_socket_watched(fd);
		r = rs_epoll_ctl_ep(ep, epfd, op, fd, ev);
		rs_epoll_put(ep);
		return r;
	}
	if (op == EPOLL_CTL_ADD && rs_file_kind(rs_file(fd)) == RS_KIND_CONN) {
		/* A set that we do not know (inherited, passed): the kernel must speak for it. */
		struct rs_conn *c = rs_file_conn(fd);

		if (c) {
			rs_conn_leave(c, RS_REASON_CALL, true, 2000);
			rs_conn_put(c);
		}
	}
	return rs_real.epoll_ctl(epfd, op, fd, ev);
}

int rsock_epoll_pwait2(int epfd, struct epoll_event *ev, int max, const struct timespec *timeout,
		       const sigset_t *mask)
{
	struct rs_epoll *ep = rs_epoll_of(epfd);

	rs_process_waits();
	if (!ep)
		return rs_real.epoll_pwait2(epfd, ev, max, timeout, mask);
	return rs_epoll_wait_ep(ep, ev, max, timeout, mask);
}

int rsock_epoll_pwait(int epfd, struct epoll_event *ev, int max, int timeout, const sigset_t *mask)
{
	struct timespec ts = { timeout / 1000, timeout % 1000 * 1000000L };
	struct rs_epoll *ep = rs_epoll_of(epfd);

	rs_process_waits();
	if (!ep)
		return rs_real.epoll_pwait(epfd, ev, max, timeout, mask);
	return rs_epoll_wait_ep(ep, ev, max, timeout < 0 ? NULL : &ts, mask);
}

int rsock_epoll_wait(int epfd, struct epoll_event *ev, int max, int timeout)
{
	struct timespec ts = { timeout / 1000, timeout % 1000 * 1000000L };
	struct rs_epoll *ep = rs_epoll_of(epfd);

	rs_process_waits();
	if (!ep)
		return rs_real.epoll_wait(epfd, ev, max, timeout);
	return rs_epoll_wait_ep(ep, ev, max, timeout < 0 ? NULL : &ts, NULL);
}
