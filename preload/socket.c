/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * socket.c - making, naming, duplicating and closing sockets
 */
#include <errno.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>

#include "conn_mgr/accepted.h"
#include "conn_mgr/control.h"
#include "conn_mgr/link.h"
#include "conn_mgr/rdma.h"
#include "conn_mgr/real.h"
#include "conn_mgr/rendezvous.h"
#include "preload/epoll.h"
#include "preload/files.h"
#include "preload/process.h"
#include "preload/socket.h"
#include "rsock/config.h"
#include "rsock/rsock.h"
#include "rsock/sys.h"

#define CLAIM_AFTER_MS 2

static int fail(long r)
{
	errno = (int)-r;
	return -1;
}

static bool inet(int family)
{
	return family == AF_INET || family == AF_INET6;
}

static bool is_tcp(int fd)
{
	int domain = 0, protocol = 0;
	socklen_t len = sizeof(int);

	return rs_sys5(SYS_getsockopt, fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 &&
	       inet(domain) &&
	       rs_sys5(SYS_getsockopt, fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &len) == 0 &&
	       protocol == IPPROTO_TCP;
}

static uint16_t local_port(int fd)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);

	memset(&sa, 0, sizeof(sa));
	if (rs_sys3(SYS_getsockname, fd, &sa, &len) != 0 || !inet(sa.ss_family))
		return 0;
	/* sin_port and sin6_port are at the same place. */
	return ntohs(((struct sockaddr_in *)(void *)&sa)->sin_port);
}

/* ---- closing ---- */

static int other_fd(const struct rs_conn *c, int fd)
{
	return rs_files_other(fd, (uintptr_t)c | RS_KIND_CONN);
}

static int other_epfd(const struct rs_epoll *ep, int fd)
{
	return rs_files_other(fd, (uintptr_t)ep | RS_KIND_EPOLL);
}

/* The table entry of `fd` goes away; what precedes the kernel's close. */
static void forget(int fd, uintptr_t word)
{
	enum rs_conn_left left;
	struct rs_conn *c;

	switch (rs_file_kind(word)) {
	case RS_KIND_LISTENER:
		if (rs_files_other(fd, word) < 0)
			rs_rendezvous_close((uint16_t)(word >> 3));
		break;
	case RS_KIND_EPOLL:
		rs_epoll_fd_closed(rs_file_pointer(word), fd, other_epfd);
		break;
	case RS_KIND_CONN:
		c = rs_file_pointer(word);
		left = rs_conn_fd_closed(c, fd, other_fd);
		if (left == RS_FDS_IN_USE || (left == RS_FDS_NONE && rs_conn_close(c, fd)))
			rs_epoll_conn_closed(c);
		rs_conn_put(c);
		break;
	default:
		break;
	}
}

void rs_socket_forget(int fd)
{
	uintptr_t word = rs_file(fd);

	if (word && !rs_files_foreign()) {
		word = rs_file_take(fd);
		if (word)
			forget(fd, word);
	}
}

int rsock_close(int fd)
{
	uintptr_t word = rs_file(fd);

	if (!word) {
		if (!rs_fd_private(fd))
			return rs_real.close(fd);
		if (!rs_control_self())
			return fail(-EBADF);
		rs_fd_close(fd); /* the RDMA libraries, which close what they have opened */
		return 0;
	}
	if (!rs_files_foreign()) {
		word = rs_file_take(fd);
		if (word) {
			int saved = errno;

			forget(fd, word);
			errno = saved;
		}
	}
	return rs_real.close(fd);
}

static void forget_each(int fd, uintptr_t word, void *arg)
{
	(void)arg;
	word = rs_file_take(fd);
	if (word)
		forget(fd, word);
}

int rsock_close_range(unsigned int first, unsigned int last, int flags)
{
	int private, r = 0;

	if (first > last)
		return fail(-EINVAL);
	if (!(flags & (int)CLOSE_RANGE_CLOEXEC) && !rs_files_foreign())
		rs_files_each(first, last, forget_each, NULL);
	/* Around rsock's own descriptors. */
	while (r == 0 && first <= last && first <= INT32_MAX &&
	       (private = rs_fd_next_private((int)first)) >= 0 && (unsigned int)private <= last) {
		if ((unsigned int)private > first)
			r = rs_real.close_range(first, (unsigned int)private - 1, flags);
		first = (unsigned int)private + 1;
	}
	if (r == 0 && first <= last)
		r = rs_real.close_range(first, last, flags);
	return r;
}

void rsock_closefrom(int first)
{
	int saved = errno;

	if (rsock_close_range(first < 0 ? 0 : (unsigned int)first, UINT32_MAX, 0) != 0) {
		errno = saved;
		rs_real.closefrom(first);
	}
}

/* ---- duplicates ---- */

static void copy_entry(int from, int to)
{
	uintptr_t word = rs_file(from);

	if (!word || to < 0)
		return;
	if (rs_files_foreign()) {
		/* A vfork child: the program that it will start may use the duplicate. */
		rs_process_give_fd(from, RS_REASON_EXEC);
		return;
	}
	if (rs_file_kind(word) == RS_KIND_CONN) {
		struct rs_conn *c = rs_file_pointer(word);
		bool handler, set;

		if (!rs_conn_get(c))
			return;
		handler = rs_lock_mine(&c->lock); /* it interrupted one of our own calls */
		if (!handler)
			rs_lock(&c->lock);
		rs_conn_fd_added(c);
		set = rs_file_set(to, word);
		if (!handler)
			rs_unlock(&c->lock);
		if (to <= 2) /* where stdio is, and stdio passes every hook */
			rs_conn_leave(c, RS_REASON_CALL, true, 2000);
		if (!set) {
			rs_conn_leave(c, RS_REASON_NO_MEMORY, true, 2000);
			rs_conn_put(c);
		}
	} else if (rs_file_kind(word) == RS_KIND_EPOLL) {
		struct rs_epoll *ep = rs_file_pointer(word);

		if (rs_epoll_fd_added(ep) && !rs_file_set(to, word))
			rs_epoll_fd_closed(ep, to, other_epfd);
	} else {
		rs_file_set(to, word);
	}
}

int rsock_dup(int fd)
{
	int r = rs_real.dup(fd);

	copy_entry(fd, r);
	return r;
}

/* `to` is about to be replaced by `fd`, which is valid. */
static void replace(int fd, int to)
{
	uintptr_t word = rs_file(to);

	if (!word || rs_files_foreign() || rs_sys2(SYS_fcntl, fd, F_GETFD) < 0)
		return;
	word = rs_file_take(to);
	if (word)
		forget(to, word);
}

int rsock_dup2(int fd, int to)
{
	int r;

	if (fd == to)
		return rs_real.dup2(fd, to);
	if (rs_fd_private(to))
		return fail(-EBUSY);
	replace(fd, to);
	r = rs_real.dup2(fd, to);
	if (r >= 0)
		copy_entry(fd, to);
	return r;
}

int rsock_dup3(int fd, int to, int flags)
{
	int r;

	if (fd == to || flags & ~O_CLOEXEC)
		return rs_real.dup3(fd, to, flags);
	if (rs_fd_private(to))
		return fail(-EBUSY);
	replace(fd, to);
	r = rs_real.dup3(fd, to, flags);
	if (r >= 0)
		copy_entry(fd, to);
	return r;
}

static uint64_t cookie(int fd)
{
	uint64_t v = 0;
	socklen_t len = sizeof(v);

	rs_sys5(SYS_getsockopt, fd, SOL_SOCKET, SO_COOKIE, &v, &len);
	return v;
}

struct same {
	uint64_t cookie;
	int fd;
};

static void find_same(int fd, uintptr_t word, void *arg)
{
	struct same *s = arg;

	if (s->fd < 0 && rs_file_kind(word) == RS_KIND_CONN && cookie(fd) == s->cookie)
		s->fd = fd;
}

int rs_socket_pidfd_getfd(int pidfd, int fd, unsigned int flags)
{
	long r = rs_sys3(SYS_pidfd_getfd, pidfd, fd, flags);
	struct same s = { .fd = -1 };

	if (r < 0)
		return fail(r);
	s.cookie = cookie((int)r);
	if (s.cookie)
		rs_files_each(0, UINT32_MAX, find_same, &s);
	if (s.fd >= 0)
		copy_entry(s.fd, (int)r);
	return (int)r;
}

static void modes_changed(int fd)
{
	struct rs_conn *c = rs_file_conn(fd);

	if (!c)
		return;
	rs_conn_modes_changed(c);
	rs_conn_put(c);
}

static void buffers_changed(int fd)
{
	struct rs_conn *c = rs_file_conn(fd);

	if (!c)
		return;
	if (!rs_lock_mine(&c->lock)) {
		rs_lock(&c->lock);
		rs_conn_buffers(c);
		rs_unlock(&c->lock);
	}
	rs_conn_put(c);
}

int rsock_fcntl(int fd, int cmd, unsigned long arg)
{
	int r;

	if (cmd == F_SETOWN || cmd == F_SETSIG || cmd == F_SETOWN_EX ||
	    (cmd == F_SETFL && arg & O_ASYNC))
		rs_process_leave_fd(fd, RS_REASON_OPTION);
	r = rs_real.fcntl(fd, cmd, arg);
	if (cmd == F_SETFL)
		modes_changed(fd);
	if (r >= 0 && (cmd == F_DUPFD || cmd == F_DUPFD_CLOEXEC))
		copy_entry(fd, r);
	return r;
}

static __attribute__((noinline)) int conn_ioctl(int fd, unsigned long request, void *arg)
{
	struct rs_conn *c = rs_file_conn(fd);
	long n = -EAGAIN;

	if (!c)
		return rs_real.ioctl(fd, request, arg);
	if (request == FIONREAD && arg)
		n = rs_conn_readable(c);
	else if (request == SIOCATMARK && arg)
		n = rs_conn_readable(c) > 0 ? 0 : -EAGAIN; /* the mark is behind the ring's bytes */
	else if ((request == SIOCOUTQ || request == SIOCOUTQNSD) && arg)
		n = rs_conn_unsent(c);
	else if (request == FIOASYNC || request == FIOSETOWN || request == SIOCSPGRP)
		rs_conn_leave(c, RS_REASON_OPTION, true, 2000);
	if (n < 0) {
		int r = rs_real.ioctl(fd, request, arg);

		if (request == FIONBIO)
			rs_conn_modes_changed(c);
		rs_conn_put(c);
		return r;
	}
	rs_conn_put(c);
	*(int *)arg = (int)n;
	return 0;
}

/* Libraries that work for us arm a completion queue with it. */
int rsock_ioctl(int fd, unsigned long request, void *arg)
{
	return rs_file_conn_entry(fd) ? conn_ioctl(fd, request, arg)
				      : rs_real.ioctl(fd, request, arg);
}

static ssize_t cookie_read(void *cookie, char *buf, size_t n)
{
	return rsock_read((int)(intptr_t)cookie, buf, n);
}

static ssize_t cookie_write(void *cookie, const char *buf, size_t n)
{
	ssize_t r = rsock_write((int)(intptr_t)cookie, buf, n);

	return r < 0 ? 0 : r; /* fopencookie(3): 0 is the error */
}

static int cookie_close(void *cookie)
{
	return rsock_close((int)(intptr_t)cookie);
}

FILE *rsock_fdopen(int fd, const char *mode)
{
	const cookie_io_functions_t calls = { cookie_read, cookie_write, NULL, cookie_close };
	struct rs_conn *c;
	FILE *f;

	/* stdio does its I/O past every hook. */
	rs_process_leave_fd(fd, RS_REASON_CALL);
	c = rs_file_conn(fd);
	if (!c)
		return rs_real.fdopen(fd, mode);
	/* The peer has ended and what it sent is in the ring only: stdio on top of our own calls. */
	rs_conn_put(c);
	f = fopencookie((void *)(intptr_t)fd, mode, calls);
	if (f)
		f->_fileno = fd;
	return f;
}

/* ---- connections ---- */

int rsock_socket(int domain, int type, int protocol)
{
	int fd = rs_real.socket(domain, type, protocol);

	if (fd >= 0 && inet(domain) && (type & ~(SOCK_NONBLOCK | SOCK_CLOEXEC)) == SOCK_STREAM &&
	    (protocol == 0 || protocol == IPPROTO_TCP) && !rs_config.off && !rs_files_foreign())
		rs_file_set(fd, RS_KIND_SOCKET);
	return fd;
}

/* A connection that rsock will not touch, but shows. */
static void plain(struct rs_conn *c, enum rs_reason why)
{
	rs_conn_give_up(c, why);
}

static struct rs_conn *new_conn(int fd, bool server)
{
	struct rs_conn *c = rs_conn_new(fd, server);

	if (!c)
		return NULL;
	c->nfds = 1;
	if (!rs_file_set(fd, (uintptr_t)c | RS_KIND_CONN)) {
		rs_conn_put(c);
		return NULL;
	}
	return c;
}

/* Whether a connection that we make stays on this host. */
static bool same_host(int fd, const struct sockaddr *addr)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);
	const uint8_t *ip;

	if (addr->sa_family == AF_INET) {
		const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)addr;

		if ((ntohl(in->sin_addr.s_addr) >> 24) == 127 || in->sin_addr.s_addr == 0)
			return true;
	} else {
		const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)addr;

		ip = in6->sin6_addr.s6_addr;
		if (IN6_IS_ADDR_LOOPBACK(&in6->sin6_addr) ||
		    IN6_IS_ADDR_UNSPECIFIED(&in6->sin6_addr) ||
		    (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr) && ip[12] == 127))
			return true;
	}
	/* An address of this host is reached from itself. */
	memset(&sa, 0, sizeof(sa));
	if (rs_sys3(SYS_getsockname, fd, &sa, &len) != 0 || sa.ss_family != addr->sa_family)
		return false;
	if (addr->sa_family == AF_INET)
		return ((struct sockaddr_in *)(void *)&sa)->sin_addr.s_addr ==
		       ((const struct sockaddr_in *)(const void *)addr)->sin_addr.s_addr;
	return memcmp(&((struct sockaddr_in6 *)(void *)&sa)->sin6_addr,
		      &((const struct sockaddr_in6 *)(const void *)addr)->sin6_addr, 16) == 0;
}

/* Stdio passes every hook, and so does an io_uring. */
static bool passes_hooks(int fd)
{
	return fd <= STDERR_FILENO || __atomic_load_n(&rs_process_rings, __ATOMIC_SEQ_CST);
}

static void look_for_peer(struct rs_conn *c, int fd, const struct sockaddr *addr)
{
	uint16_t port = ntohs(((const struct sockaddr_in *)(const void *)addr)->sin_port);
	bool local = same_host(fd, addr);
	int r;

	if (passes_hooks(fd)) {
		plain(c, RS_REASON_CALL);
		return;
	}
	if (!local) {
		if (!rs_rdma_likely()) {
			plain(c, rs_rdma_why_not());
			return;
		}
	} else if (rs_rendezvous_known_plain(port)) {
		plain(c, RS_REASON_PEER_PLAIN);
		return;
	}
	r = rs_control_start();
	if (r != 0) {
		plain(c, r == -EMFILE || r == -ENFILE ? RS_REASON_NO_FDS : RS_REASON_NO_THREAD);
		return;
	}
	/* A connection that is over in a moment is not worth a claim. */
	if (local)
		c->tuple.server_port = port;
	c->claim_at = rs_now_ms() + CLAIM_AFTER_MS;
	c->claim = RS_CLAIM_BACKOFF;
	rs_control_add(c, c->claim_at);
}

void rs_socket_watched(int fd)
{
	int listening = 0;
	socklen_t len = sizeof(listening);

	if (rs_file_kind(rs_file(fd)) == RS_KIND_SOCKET && !rs_files_foreign() &&
	    rs_sys5(SYS_getsockopt, fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) == 0 &&
	    !listening)
		new_conn(fd, false);
}

int rsock_connect(int fd, const struct sockaddr *addr, socklen_t len)
{
	uintptr_t word = rs_file(fd);
	int r, saved;

	if (rs_file_kind(word) == RS_KIND_CONN && addr && len >= sizeof(sa_family_t) &&
	    addr->sa_family == AF_UNSPEC)
		rs_process_leave_fd(fd, RS_REASON_CALL);
	saved = errno;
	r = rs_real.connect(fd, addr, len);
	if (r != 0 && errno != EINPROGRESS && errno != EINTR)
		return r;
	if (rs_file_kind(word) == RS_KIND_CONN && len >= sizeof(struct sockaddr_in) &&
	    inet(addr->sa_family) && !rs_files_foreign()) {
		struct rs_conn *c = rs_file_pointer(word);
		int e = errno;

		if (c->claim == RS_CLAIM_NONE && !c->server &&
		    !__atomic_load_n(&c->plain, __ATOMIC_ACQUIRE))
			look_for_peer(c, fd, addr);
		errno = r == 0 ? saved : e;
	}
	if (rs_file_kind(word) == RS_KIND_SOCKET && len >= sizeof(struct sockaddr_in) &&
	    inet(addr->sa_family) && !rs_files_foreign()) {
		int e = errno;

		struct rs_conn *c = new_conn(fd, false);

		if (c)
			look_for_peer(c, fd, addr);
		errno = r == 0 ? saved : e;
	}
	return r;
}

int rsock_listen(int fd, int backlog)
{
	int r = rs_real.listen(fd, backlog), saved = errno;
	uintptr_t word = rs_file(fd);
	uint16_t port;

	if (r == 0 && rs_file_kind(word) == RS_KIND_CONN && !rs_files_foreign()) {
		/* Was put into an epoll set before listen(): no connection after all. */
		plain(rs_file_pointer(word), RS_REASON_CALL);
		errno = saved;
		return r;
	}
	if (r != 0 || rs_file_kind(word) != RS_KIND_SOCKET || rs_files_foreign())
		return r;
	port = local_port(fd);
	if (port && rs_control_start() == 0 && rs_rendezvous_open(port) == 0)
		rs_file_set(fd, (uintptr_t)port << 3 | RS_KIND_LISTENER);
	errno = saved;
	return r;
}

/* The port of a listener, known or (inherited over exec, passed) not yet known. 0: not TCP. */
static uint16_t listener_port(int fd)
{
	uintptr_t word = rs_file(fd);
	uint16_t port = (uint16_t)(word >> 3);

	if (rs_file_kind(word) == RS_KIND_LISTENER) {
		if (!rs_control_running() && rs_control_start() != 0)
			return 0;
		return rs_rendezvous_ensure(port) ? port : 0;
	}
	if (rs_config.off || !is_tcp(fd))
		return 0;
	port = local_port(fd);
	if (!port || rs_control_start() != 0 || rs_rendezvous_open(port) != 0)
		return 0;
	rs_file_set(fd, (uintptr_t)port << 3 | RS_KIND_LISTENER);
	return port;
}

static void accepted(int fd, int listener, const struct sockaddr_storage *peer)
{
	uint16_t port;
	struct rs_conn *c;

	if (!inet(peer->ss_family) || rs_files_foreign())
		return;
	port = listener_port(listener);
	if (!port)
		return;
	c = new_conn(fd, true);
	if (!c)
		return;
	if (passes_hooks(fd))
		plain(c, RS_REASON_CALL);
	else
		rs_accepted_add(c, port, (const struct sockaddr *)(const void *)peer);
}

static int do_accept(int fd, struct sockaddr *addr, socklen_t *len, int flags, bool four)
{
	struct sockaddr_storage peer;
	socklen_t peer_len = sizeof(peer);
	int r, saved = errno;

	rs_process_waits();
	if (rs_config.off || (addr && (!len || (int)*len < 0)))
		return four ? rs_real.accept4(fd, addr, len, flags) : rs_real.accept(fd, addr, len);
	memset(&peer, 0, sizeof(peer));
	r = four ? rs_real.accept4(fd, (struct sockaddr *)&peer, &peer_len, flags)
		 : rs_real.accept(fd, (struct sockaddr *)&peer, &peer_len);
	if (r < 0)
		return r;
	if (addr) {
		memcpy(addr, &peer, *len < peer_len ? *len : peer_len);
		*len = peer_len;
	}
	accepted(r, fd, &peer);
	errno = saved;
	return r;
}

int rsock_accept(int fd, struct sockaddr *addr, socklen_t *len)
{
	return do_accept(fd, addr, len, 0, false);
}

int rsock_accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
	return do_accept(fd, addr, len, flags, true);
}

int rsock_shutdown(int fd, int how)
{
	struct rs_conn *c = rs_file_conn(fd);
	int r;

	if (!c)
		return rs_real.shutdown(fd, how);
	r = rs_conn_shutdown(c, fd, how);
	rs_conn_put(c);
	return r < 0 ? fail(r) : 0;
}

/* ---- options ---- */

int rsock_getsockopt(int fd, int level, int name, void *val, socklen_t *len)
{
	if (level == SOL_SOCKET && name == SO_ERROR && val && len && *len >= sizeof(int)) {
		struct rs_conn *c = rs_file_conn(fd);

		if (c) {
			int e = rs_conn_take_error(c);

			rs_conn_put(c);
			if (e) {
				*(int *)val = e;
				*len = sizeof(int);
				return 0;
			}
		}
	}
	/* It maps what TCP has received. */
	if (level == IPPROTO_TCP && name == TCP_ZEROCOPY_RECEIVE &&
	    rs_process_leave_fd(fd, RS_REASON_OPTION) != 0)
		return fail(-EAGAIN);
	return rs_real.getsockopt(fd, level, name, val, len);
}

/* Options that only the kernel's TCP path can honour. */
static bool needs_tcp(int level, int name, const void *val, socklen_t len)
{
	int v = 0;

	/* The value may point to nothing: the kernel will say so. */
	if (len >= sizeof(v)) {
		struct iovec here = { &v, sizeof(v) },
			     there = { (void *)(uintptr_t)val, sizeof(v) };

		rs_sys6(SYS_process_vm_readv, rs_process_pid, (long)&here, 1, (long)&there, 1, 0);
	}
	if (level == SOL_SOCKET)
		return ((name == SO_ZEROCOPY || name == SO_TIMESTAMP || name == SO_TIMESTAMPNS ||
			 name == SO_TIMESTAMPING || name == SO_RXQ_OVFL) &&
			v) ||
		       (name == SO_RCVLOWAT && v > 1) || (name == SO_PEEK_OFF && v >= 0) ||
		       name == SO_ATTACH_FILTER || name == SO_ATTACH_BPF;
	if (level == IPPROTO_TCP)
		return name == TCP_ULP || name == TCP_REPAIR || name == TCP_MD5SIG ||
		       name == TCP_INQ;
	return false;
}

int rsock_setsockopt(int fd, int level, int name, const void *val, socklen_t len)
{
	if ((level == SOL_SOCKET || (level == IPPROTO_TCP && name != TCP_NODELAY)) &&
	    rs_file_kind(rs_file(fd)) != RS_KIND_NONE && needs_tcp(level, name, val, len)) {
		if (rs_file_kind(rs_file(fd)) == RS_KIND_SOCKET)
			rs_file_set(fd, 0); /* before connect: never a candidate */
		else
			rs_process_leave_fd(fd, RS_REASON_OPTION);
	}
	{
		int r = rs_real.setsockopt(fd, level, name, val, len);

		if (level == SOL_SOCKET)
			modes_changed(fd); /* perhaps a time-out */
		if (level == SOL_SOCKET && (name == SO_SNDBUF || name == SO_RCVBUF ||
					    name == SO_SNDBUFFORCE || name == SO_RCVBUFFORCE))
			buffers_changed(fd);
		return r;
	}
}

/* ---- paths ---- */

int rsock_fd_path(int fd)
{
	struct rs_conn *c = rs_file_foreign(fd) ? NULL : rs_file_conn(fd);
	int path;

	if (!c)
		return 0;
	rs_lock(&c->lock);
	path = rs_conn_path(c);
	rs_unlock(&c->lock);
	rs_conn_put(c);
	return path;
}

int rsock_fd_leave(int fd)
{
	struct rs_conn *c = rs_file_conn(fd);
	int r;

	if (!c)
		return 0;
	r = rs_conn_leave(c, RS_REASON_CALL, false, 2000);
	rs_conn_put(c);
	return r < 0 && r != -EINPROGRESS ? fail(r) : 0;
}

int rsock_fd_renew(int fd)
{
	struct rs_conn *c = rs_file_conn(fd);

	if (!c)
		return 0;
	rs_conn_renew(c);
	rs_conn_put(c);
	return 0;
}
