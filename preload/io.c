/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * io.c - the read and write families
 */
#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "conn_mgr/real.h"
#include "preload/files.h"
#include "preload/process.h"
#include "rsock/rsock.h"
#include "rsock/sys.h"

/* Flags of which the fast path knows the meaning; as the kernel, it ignores what it does not know. */
#define RECV_FLAGS \
	(MSG_PEEK | MSG_WAITALL | MSG_DONTWAIT | MSG_TRUNC | MSG_NOSIGNAL | MSG_CMSG_CLOEXEC)
#define SEND_FLAGS (MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE | MSG_EOR | MSG_CONFIRM | MSG_DONTROUTE)

/* rs_conn_recv() and rs_conn_send() say this when the stream has become plain meanwhile. */
#define NOW_PLAIN (-EXDEV)

static ssize_t result(ssize_t r)
{
	if (r >= 0)
		return r;
	errno = (int)-r;
	return -1;
}

/*
 * Arguments for which the kernel has an error of its own, or (no bytes at all) a rule of its own, are
 * left to it.
 */
static bool usable(const struct iovec *iov, int n)
{
	size_t sum = 0;

	if (n <= 0 || n > IOV_MAX || (uintptr_t)iov < 4096)
		return false;
	for (int i = 0; i < n; i++) {
		if (iov[i].iov_len > SSIZE_MAX || sum + iov[i].iov_len > SSIZE_MAX)
			return false;
		sum += iov[i].iov_len;
	}
	return sum != 0;
}

static bool usable_msg(const struct msghdr *m)
{
	if ((uintptr_t)m < 4096 || m->msg_iovlen > IOV_MAX ||
	    (m->msg_iovlen && (uintptr_t)m->msg_iov < 4096))
		return false;
	for (size_t i = 0; i < m->msg_iovlen; i++)
		if (m->msg_iov[i].iov_len > SSIZE_MAX)
			return false;
	return true;
}

/* The kernel has a word for lengths that no buffer has. */
static bool absurd(size_t n)
{
	return n > SSIZE_MAX;
}

/* The kernel looks at an address before it ignores it. */
static bool odd_address(const struct sockaddr *addr, socklen_t len)
{
	return addr && ((uintptr_t)addr < 4096 || len > sizeof(struct sockaddr_storage));
}

/* NOW_PLAIN: do it in the kernel. */
static ssize_t conn_recv(struct rs_conn *c, int fd, const struct iovec *iov, size_t n, int flags)
{
	ssize_t r;

	pthread_testcancel();
	if (flags & (MSG_OOB | MSG_ERRQUEUE)) {
		/* Neither takes a byte of the stream, and who sends urgent data has left before. */
		rs_conn_put(c);
		return NOW_PLAIN;
	}
	r = rs_conn_recv(c, fd, iov, n, flags & RECV_FLAGS);
	rs_conn_put(c);
	return r;
}

static ssize_t conn_send(struct rs_conn *c, int fd, const struct iovec *iov, size_t n, int flags)
{
	ssize_t r;

	pthread_testcancel();
	if (flags & (MSG_OOB | MSG_ZEROCOPY | MSG_FASTOPEN)) {
		rs_conn_put(c);
		r = rs_process_leave_fd(fd, RS_REASON_CALL);
		return r < 0 ? r : NOW_PLAIN;
	}
	r = rs_conn_send(c, fd, iov, n, flags & SEND_FLAGS);
	rs_conn_put(c);
	if (r == -EPIPE && !(flags & MSG_NOSIGNAL))
		rs_sys2(SYS_tkill, rs_tid(), SIGPIPE);
	return r;
}

/*
 * A child that no fork handler saw, and flags that mean more than what is to be moved, are not for the
 * short way (conn_mgr/conn_fast.c).
 */
static bool may_be_quick(int flags, int never)
{
	return !(flags & never) && (!rs_alive || *rs_alive);
}

static struct rs_conn_found found_at(const uintptr_t *entry)
{
	return (struct rs_conn_found){ entry, __atomic_load_n(entry, __ATOMIC_ACQUIRE) };
}

/* What does the call in the kernel. */
typedef ssize_t (*plain_recv_fn)(int fd, void *buf, size_t n, int flags);
typedef ssize_t (*plain_send_fn)(int fd, const void *buf, size_t n, int flags);

/* The caller does. */
static ssize_t plain_later(int fd, void *buf, size_t n, int flags)
{
	(void)fd;
	(void)buf;
	(void)n;
	(void)flags;
	return NOW_PLAIN;
}

static ssize_t plain_send_later(int fd, const void *buf, size_t n, int flags)
{
	return plain_later(fd, (void *)(uintptr_t)buf, n, flags);
}

static ssize_t result_or(plain_recv_fn plain, ssize_t r, int fd, void *buf, size_t n, int flags)
{
	return r != NOW_PLAIN ? result(r) : plain(fd, buf, n, flags);
}

/* One buffer, the long way. */
static __attribute__((noinline)) ssize_t recv_long(int fd, void *buf, size_t n, int flags,
						   plain_recv_fn plain)
{
	struct rs_conn *c = absurd(n) ? NULL : rs_file_conn(fd);
	struct iovec iov = { buf, n };

	return result_or(plain, c ? conn_recv(c, fd, &iov, 1, flags) : NOW_PLAIN, fd, buf, n,
			 flags);
}

static __attribute__((noinline)) ssize_t send_long(int fd, const void *buf, size_t n, int flags,
						   plain_send_fn plain)
{
	struct iovec iov = { (void *)(uintptr_t)buf, n };
	struct rs_conn *c = absurd(n) ? NULL : rs_file_conn(fd);
	ssize_t r = c ? conn_send(c, fd, &iov, 1, flags) : NOW_PLAIN;

	return r != NOW_PLAIN ? result(r) : plain(fd, buf, n, flags);
}

/* One buffer, of a descriptor that was a connection just now: `entry` is where its word is. */
static __attribute__((noinline)) ssize_t recv_one(const uintptr_t *entry, int fd, void *buf,
						  size_t n, int flags, plain_recv_fn plain)
{
	struct rs_conn_found found = found_at(entry);
	ssize_t r;

	if (may_be_quick(flags, MSG_PEEK | MSG_TRUNC | MSG_OOB | MSG_ERRQUEUE) &&
	    rs_file_kind(found.word) == RS_KIND_CONN) {
		pthread_testcancel();
		r = rs_conn_recv_fast(rs_file_pointer(found.word), found, fd, buf, n,
				      flags & RECV_FLAGS);
		if (r >= 0)
			return r;
		if (r != RS_LONG_WAY)
			return result_or(plain, r, fd, buf, n, flags);
	}
	return recv_long(fd, buf, n, flags, plain);
}

static __attribute__((noinline)) ssize_t send_one(const uintptr_t *entry, int fd, const void *buf,
						  size_t n, int flags, plain_send_fn plain)
{
	struct rs_conn_found found = found_at(entry);

	if (may_be_quick(flags, MSG_OOB | MSG_ZEROCOPY | MSG_FASTOPEN) &&
	    rs_file_kind(found.word) == RS_KIND_CONN) {
		ssize_t r;

		pthread_testcancel();
		r = rs_conn_send_fast(rs_file_pointer(found.word), found, buf, n);
		if (r != RS_LONG_WAY)
			return r;
	}
	return send_long(fd, buf, n, flags, plain);
}

/* ---- receiving ---- */

ssize_t rsock_recv(int fd, void *buf, size_t n, int flags)
{
	const uintptr_t *entry = rs_file_conn_entry(fd);

	if (entry)
		return recv_one(entry, fd, buf, n, flags, rs_real.recv);
	rs_process_waits();
	return rs_real.recv(fd, buf, n, flags);
}

static ssize_t plain_read(int fd, void *buf, size_t n, int flags)
{
	(void)flags;
	return rs_real.read(fd, buf, n);
}

ssize_t rsock_read(int fd, void *buf, size_t n)
{
	const uintptr_t *entry = rs_file_conn_entry(fd);

	if (entry && n)
		return recv_one(entry, fd, buf, n, 0, plain_read);
	rs_process_waits();
	if (__builtin_expect(rs_own_calls, 0))
		return result(rs_sys3(SYS_read, fd, buf, n));
	return rs_real.read(fd, buf, n);
}

ssize_t rsock_recvfrom(int fd, void *buf, size_t n, int flags, struct sockaddr *addr,
		       socklen_t *len)
{
	const uintptr_t *entry = rs_file_conn_entry(fd);
	ssize_t r = entry ? recv_one(entry, fd, buf, n, flags, plain_later) : NOW_PLAIN;

	if (!entry)
		rs_process_waits();
	if (r == NOW_PLAIN)
		return rs_real.recvfrom(fd, buf, n, flags, addr, len);
	if (r >= 0 && addr && len)
		*len = 0; /* as TCP: no address */
	return r;
}

/* A result as libc has it, or NOW_PLAIN. */
static ssize_t recv_some(const uintptr_t *entry, int fd, const struct iovec *iov, size_t n,
			 int flags)
{
	struct rs_conn *c;
	ssize_t r;

	if (n == 1)
		return recv_one(entry, fd, iov->iov_base, iov->iov_len, flags, plain_later);
	c = rs_file_conn(fd);
	r = c ? conn_recv(c, fd, iov, n, flags) : NOW_PLAIN;
	return r != NOW_PLAIN ? result(r) : r;
}

static ssize_t send_some(const uintptr_t *entry, int fd, const struct iovec *iov, size_t n,
			 int flags)
{
	struct rs_conn *c;
	ssize_t r;

	if (n == 1)
		return send_one(entry, fd, iov->iov_base, iov->iov_len, flags, plain_send_later);
	c = rs_file_conn(fd);
	r = c ? conn_send(c, fd, iov, n, flags) : NOW_PLAIN;
	return r != NOW_PLAIN ? result(r) : r;
}

ssize_t rsock_readv(int fd, const struct iovec *iov, int n)
{
	const uintptr_t *entry = rs_file_conn_entry(fd);
	ssize_t r = NOW_PLAIN;

	if (entry && usable(iov, n))
		r = recv_some(entry, fd, iov, (size_t)n, 0);
	return r != NOW_PLAIN ? r : rs_real.readv(fd, iov, n);
}

ssize_t rsock_preadv2(int fd, const struct iovec *iov, int n, off_t off, int flags)
{
	const uintptr_t *entry = rs_file_conn_entry(fd);
	ssize_t r = NOW_PLAIN;

	if (entry && off == -1 && usable(iov, n) && !(flags & ~(RWF_NOWAIT | RWF_HIPRI)))
		r = recv_some(entry, fd, iov, (size_t)n, flags & RWF_NOWAIT ? MSG_DONTWAIT : 0);
	return r != NOW_PLAIN ? r : rs_real.preadv2(fd, iov, n, off, flags);
}

ssize_t rsock_recvmsg(int fd, struct msghdr *msg, int flags)
{
	const uintptr_t *entry = rs_file_conn_entry(fd);
	ssize_t r = NOW_PLAIN;

	if (entry && usable_msg(msg))
		r = recv_some(entry, fd, msg->msg_iov, msg->msg_iovlen, flags);
	if (!entry)
		rs_process_waits();
	if (r == NOW_PLAIN)
		return rs_real.recvmsg(fd, msg, flags);
	if (r >= 0) {
		msg->msg_namelen = 0;
		msg->msg_controllen = 0;
		msg->msg_flags = 0;
	}
	return r;
}

int rsock_recvmmsg(int fd, struct mmsghdr *msgs, unsigned int n, int flags,
		   struct timespec *timeout)
{
	struct rs_conn *c = rs_file_conn(fd);
	uint64_t end = 0;
	unsigned int i;

	if (c && timeout &&
	    (timeout->tv_sec < 0 || timeout->tv_nsec < 0 || timeout->tv_nsec >= 1000000000)) {
		rs_conn_put(c);
		return (int)result(-EINVAL);
	}
	if (!c)
		return rs_real.recvmmsg(fd, msgs, n, flags, timeout);
	rs_conn_put(c);
	if (timeout)
		end = rs_now_ns() + (uint64_t)timeout->tv_sec * 1000000000u +
		      (uint64_t)timeout->tv_nsec;
	for (i = 0; i < n; i++) {
		ssize_t r = rsock_recvmsg(fd, &msgs[i].msg_hdr, flags & ~MSG_WAITFORONE);

		if (r < 0)
			return i ? (int)i : -1;
		msgs[i].msg_len = (unsigned int)r;
		if (flags & MSG_WAITFORONE)
			flags |= MSG_DONTWAIT;
		if (r == 0 || (timeout && rs_now_ns() >= end)) {
			i++;
			break;
		}
	}
	return (int)i;
}

/* ---- sending ---- */

ssize_t rsock_send(int fd, const void *buf, size_t n, int flags)
{
	const uintptr_t *entry = rs_file_conn_entry(fd);

	return entry ? send_one(entry, fd, buf, n, flags, rs_real.send)
		     : rs_real.send(fd, buf, n, flags);
}

static ssize_t plain_write(int fd, const void *buf, size_t n, int flags)
{
	(void)flags;
	return rs_real.write(fd, buf, n);
}

ssize_t rsock_write(int fd, const void *buf, size_t n)
{
	const uintptr_t *entry = rs_file_conn_entry(fd);

	if (entry)
		return send_one(entry, fd, buf, n, 0, plain_write);
	if (__builtin_expect(rs_own_calls, 0))
		return result(rs_sys3(SYS_write, fd, buf, n));
	return rs_real.write(fd, buf, n);
}

ssize_t rsock_sendto(int fd, const void *buf, size_t n, int flags, const struct sockaddr *addr,
		     socklen_t len)
{
	const uintptr_t *entry = rs_file_conn_entry(fd);
	ssize_t r = NOW_PLAIN;

	if (entry && !odd_address(addr, len))
		r = send_one(entry, fd, buf, n, flags, plain_send_later);
	return r != NOW_PLAIN ? r : rs_real.sendto(fd, buf, n, flags, addr, len);
}

ssize_t rsock_writev(int fd, const struct iovec *iov, int n)
{
	const uintptr_t *entry = rs_file_conn_entry(fd);
	ssize_t r = NOW_PLAIN;

	if (entry && usable(iov, n))
		r = send_some(entry, fd, iov, (size_t)n, 0);
	return r != NOW_PLAIN ? r : rs_real.writev(fd, iov, n);
}

ssize_t rsock_pwritev2(int fd, const struct iovec *iov, int n, off_t off, int flags)
{
	const uintptr_t *entry = rs_file_conn_entry(fd);
	ssize_t r = NOW_PLAIN;

	if (entry && off == -1 && usable(iov, n) && !(flags & ~(RWF_NOWAIT | RWF_HIPRI)))
		r = send_some(entry, fd, iov, (size_t)n, flags & RWF_NOWAIT ? MSG_DONTWAIT : 0);
	return r != NOW_PLAIN ? r : rs_real.pwritev2(fd, iov, n, off, flags);
}

/* Streams whose descriptors travel to another process go back to TCP first. */
static int leave_passed(const struct msghdr *msg)
{
	struct msghdr m = *msg;

	if (!msg->msg_control || msg->msg_controllen < CMSG_LEN(sizeof(int)))
		return 0;
	for (struct cmsghdr *cm = CMSG_FIRSTHDR(&m); cm; cm = CMSG_NXTHDR(&m, cm)) {
		size_t count;

		if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS ||
		    cm->cmsg_len < CMSG_LEN(0))
			continue;
		count = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(cm) + i * sizeof(int), sizeof(fd));
			if (rs_process_give_fd(fd, RS_REASON_PASSED) != 0)
				return -EAGAIN;
		}
	}
	return 0;
}

ssize_t rsock_sendmsg(int fd, const struct msghdr *msg, int flags)
{
	const uintptr_t *entry;
	ssize_t r = NOW_PLAIN;

	if (!usable_msg(msg))
		return rs_real.sendmsg(fd, msg, flags);
	/* Descriptors are passed; per-message options only the kernel knows. */
	if (msg->msg_controllen &&
	    (leave_passed(msg) != 0 || rs_process_leave_fd(fd, RS_REASON_CALL) != 0))
		return result(-EAGAIN);
	entry = rs_file_conn_entry(fd);
	if (!msg->msg_controllen && entry)
		r = send_some(entry, fd, msg->msg_iov, msg->msg_iovlen, flags);
	return r != NOW_PLAIN ? r : rs_real.sendmsg(fd, msg, flags);
}

int rsock_sendmmsg(int fd, struct mmsghdr *msgs, unsigned int n, int flags)
{
	struct rs_conn *c = rs_file_conn(fd);
	unsigned int i;

	if (!c) {
		for (i = 0; i < n && msgs; i++)
			if (msgs[i].msg_hdr.msg_controllen)
				if (leave_passed(&msgs[i].msg_hdr) != 0)
					return (int)result(-EAGAIN);
		return rs_real.sendmmsg(fd, msgs, n, flags);
	}
	rs_conn_put(c);
	for (i = 0; i < n; i++) {
		ssize_t r = rsock_sendmsg(fd, &msgs[i].msg_hdr, flags);

		if (r < 0)
			return i ? (int)i : -1;
		msgs[i].msg_len = (unsigned int)r;
	}
	return (int)i;
}

/* ---- files and pipes ---- */

static bool is_pipe(int fd)
{
	struct stat st;

	return rs_sys2(SYS_fstat, fd, &st) == 0 && S_ISFIFO(st.st_mode);
}

ssize_t rsock_sendfile(int out, int in, off_t *off, size_t n)
{
	struct rs_conn *c = rs_file_conn(out);
	uint8_t buf[8192]; /* threads may have little stack */
	off_t at;
	size_t done = 0;

	if (!c && !off && rs_file_kind(rs_file(in)) == RS_KIND_CONN && is_pipe(out))
		return rsock_splice(in, NULL, out, NULL, n, 0);
	if (!c)
		return rs_real.sendfile(out, in, off, n);
	at = off ? *off : (off_t)rs_sys3(SYS_lseek, in, 0, SEEK_CUR);
	if (at < 0) {
		rs_conn_put(c);
		if (rs_process_leave_fd(out, RS_REASON_CALL) != 0)
			return result(-EAGAIN);
		return rs_real.sendfile(out, in, off, n);
	}
	while (done < n) {
		size_t want = n - done < sizeof(buf) ? n - done : sizeof(buf);
		long got = rs_sys4(SYS_pread64, in, buf, want, at);
		struct iovec iov = { buf, 0 };
		ssize_t r;

		if (got <= 0) {
			if (got < 0 && !done) {
				rs_conn_put(c);
				if (rs_process_leave_fd(out, RS_REASON_CALL) != 0)
					return result(-EAGAIN);
				return rs_real.sendfile(out, in, off, n); /* for its own errno */
			}
			break;
		}
		iov.iov_len = (size_t)got;
		r = rs_conn_send(c, out, &iov, 1, 0);
		if (r == NOW_PLAIN) {
			rs_conn_put(c);
			r = done ? 0 : rs_real.sendfile(out, in, off, n);
			if (!done)
				return r;
			c = NULL;
			break;
		}
		if (r < 0) {
			if (done)
				break;
			rs_conn_put(c);
			if (r == -EPIPE)
				rs_sys2(SYS_tkill, rs_tid(), SIGPIPE);
			return result(r);
		}
		done += (size_t)r;
		at += r;
		if (r < got)
			break;
	}
	if (c)
		rs_conn_put(c);
	if (off)
		*off = at;
	else
		rs_sys3(SYS_lseek, in, at, SEEK_SET);
	return (ssize_t)done;
}

/* From a stream whose rest only we can read, into a pipe. Result or -errno. */
static ssize_t splice_rest(struct rs_conn *c, int in, int out, size_t n, unsigned int flags)
{
	uint8_t buf[4096]; /* PIPE_BUF: what a pipe that polls writable takes at once */
	ssize_t done = 0;

	while ((size_t)done < n) {
		size_t want = n - (size_t)done < sizeof(buf) ? n - (size_t)done : sizeof(buf);
		struct pollfd room = { .fd = out, .events = POLLOUT };
		bool wait = !done && !(flags & SPLICE_F_NONBLOCK);
		struct iovec iov = { buf, want };
		long r = rs_sys3(SYS_poll, &room, 1, wait ? -1 : 0);
		ssize_t got, put = 0;

		if (r <= 0)
			return done ? done : r ? r : -EAGAIN;
		got = rs_conn_recv(c, in, &iov, 1, wait ? 0 : MSG_DONTWAIT);
		if (got <= 0)
			return done ? done : got;
		/* They are taken: another thread that fills the pipe makes us wait. */
		while (put < got) {
			r = rs_sys3(SYS_write, out, buf + put, got - put);
			if (r > 0)
				put += r;
			else if (r == -EAGAIN)
				rs_sys3(SYS_poll, &room, 1, -1);
			else if (r != -EINTR)
				return done + put ? done + put : r;
		}
		done += got;
	}
	return done;
}

ssize_t rsock_splice(int in, off_t *off_in, int out, off_t *off_out, size_t n, unsigned int flags)
{
	struct rs_conn *c;

	/* Pages cannot be moved through a ring: TCP does it. */
	if (rs_process_leave_fd(in, RS_REASON_CALL) != 0 ||
	    rs_process_leave_fd(out, RS_REASON_CALL) != 0)
		return result(-EAGAIN);
	c = off_in || off_out || !is_pipe(out) ? NULL : rs_file_conn(in);
	if (c) {
		ssize_t r = splice_rest(c, in, out, n, flags);

		rs_conn_put(c);
		if (r != NOW_PLAIN)
			return result(r);
	}
	return rs_real.splice(in, off_in, out, off_out, n, flags);
}
