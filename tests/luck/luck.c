/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * luck.c - one process of a random program: does what tests/luck/play.py tells it, one step at a time
 *
 *     luck ADDRESS NAME SLOT=FD,...
 *
 * It connects to the abstract unix socket ADDRESS, says "hello NAME PID", and then answers each command
 * with what it saw: nothing of that depends on times, pids, ports or descriptor numbers. Descriptors
 * have names of their own, *slots*. A fork's child, and a program that it executes, connects anew. The
 * same source is also linked statically: a process that rsock cannot reach.
 */
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SLOTS 1000
#define WORDS 12
#define WAIT_MS 3000 /* for what is on its way; what does not come is an answer too */
#define SETTLE_MS 1000
#define CONTROL 900 /* descriptors out of the program's way */
#define MAILBOX 901

static int slots[SLOTS];
static const char *address;
static char name[32];
static char said[4096]; /* the answer to this command */
static size_t said_n;
static int (*fd_path)(int);

static void __attribute__((format(printf, 1, 2))) say(const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(said + said_n, sizeof(said) - said_n, fmt, ap);
	va_end(ap);
	if (n > 0 && said_n + (size_t)n < sizeof(said))
		said_n += (size_t)n;
}

/* " what=0", or the error's name. */
static long ret(const char *what, long r)
{
	if (r < 0)
		say(" %s=%s", what, strerrorname_np(errno));
	else
		say(" %s=%ld", what, r);
	return r;
}

/* " what=ok": the value is a number that the kernel may choose. */
static int ok(const char *what, int r)
{
	if (r < 0)
		ret(what, r);
	else
		say(" %s=ok", what);
	return r;
}

static void __attribute__((noreturn)) give_up(const char *why)
{
	fprintf(stderr, "luck: %s: %s: %s\n", name, why, strerror(errno));
	abort();
}

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void nap_us(long us)
{
	struct timespec ts = { us / 1000000, us % 1000000 * 1000 };

	nanosleep(&ts, NULL);
}

/* ---- the line to play.py, and the box for descriptors from others ---- */

static socklen_t unix_name(struct sockaddr_un *a, const char *of)
{
	int n;

	memset(a, 0, sizeof(*a));
	a->sun_family = AF_UNIX;
	n = snprintf(a->sun_path + 1, sizeof(a->sun_path) - 1, "%s%s%s", address, *of ? "." : "",
		     of);
	return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
}

static void move_to(int fd, int to)
{
	if (fd < 0 || dup3(fd, to, O_CLOEXEC) < 0)
		give_up("control");
	close(fd);
}

static void hello(void)
{
	struct sockaddr_un a;
	socklen_t n = unix_name(&a, "");
	char line[80];
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&a, n) < 0)
		give_up("connect");
	move_to(fd, CONTROL);
	n = unix_name(&a, name);
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&a, n) < 0)
		give_up("mailbox");
	move_to(fd, MAILBOX);
	snprintf(line, sizeof(line), "hello %s %d", name, getpid());
	if (send(CONTROL, line, strlen(line), 0) < 0)
		give_up("hello");
}

/* In a child: its parent keeps the line and the box. */
static void new_name(const char *to)
{
	close(CONTROL);
	close(MAILBOX);
	snprintf(name, sizeof(name), "%s", to);
	hello();
}

/* ---- slots ---- */

static int fd_of(const char *slot)
{
	return slots[atoi(slot) % SLOTS];
}

static int set_slot(const char *slot, int fd)
{
	slots[atoi(slot) % SLOTS] = fd;
	return fd;
}

static void slots_from(char *list)
{
	for (int i = 0; i < SLOTS; i++)
		slots[i] = -1;
	char *save = NULL;

	for (char *p = strtok_r(list, ",", &save); p; p = strtok_r(NULL, ",", &save)) {
		char *fd = strchr(p, '=');

		if (fd)
			set_slot(p, atoi(fd + 1));
	}
}

/* The argument that tells the next program which slots it has; `inetd`: this one is 0, 1 and 2. */
static const char *slots_to(int inetd)
{
	static char list[16 * SLOTS];
	size_t n = 0;

	list[0] = '\0';
	for (int i = inetd >= 0 ? 3 : 0; i < SLOTS; i++) {
		int fl = slots[i] < 0 ? -1 : fcntl(slots[i], F_GETFD);

		if (fl >= 0 && !(fl & FD_CLOEXEC))
			n += (size_t)snprintf(list + n, sizeof(list) - n, "%d=%d,", i, slots[i]);
	}
	if (inetd >= 0)
		snprintf(list + n, sizeof(list) - n, "0=0,1=1,2=2");
	return list;
}

/* ---- TCP ---- */

static socklen_t loopback(int family, int port, struct sockaddr_storage *ss)
{
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)ss;
	struct sockaddr_in *four = (struct sockaddr_in *)ss;

	memset(ss, 0, sizeof(*ss));
	if (family == 6) {
		six->sin6_family = AF_INET6;
		six->sin6_port = htons((uint16_t)port);
		six->sin6_addr = in6addr_loopback;
		return sizeof(*six);
	}
	four->sin_family = AF_INET;
	four->sin_port = htons((uint16_t)port);
	four->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return sizeof(*four);
}

static int tcp_socket(int family, int flags)
{
	return socket(family == 6 ? AF_INET6 : AF_INET, SOCK_STREAM | flags, 0);
}

/* A line of its own for play.py, not for the log: the port. */
static void do_listen(char **w)
{
	struct sockaddr_storage ss;
	int family = atoi(w[2]);
	socklen_t n = loopback(family, 0, &ss);
	int fd = set_slot(w[1], tcp_socket(family, atoi(w[3]) ? SOCK_CLOEXEC : 0));
	char line[32];

	bind(fd, (struct sockaddr *)&ss, n);
	ret("listen", listen(fd, 64));
	n = sizeof(ss);
	getsockname(fd, (struct sockaddr *)&ss, &n);
	snprintf(line, sizeof(line), "port %d", ntohs(((struct sockaddr_in *)&ss)->sin_port));
	send(CONTROL, line, strlen(line), 0);
}

static void do_connect(char **w)
{
	struct sockaddr_storage ss;
	int family = atoi(w[3]), nonblock = atoi(w[4]), on = 1;
	socklen_t n = loopback(family, atoi(w[2]), &ss);
	int fd = tcp_socket(family,
			    (nonblock ? SOCK_NONBLOCK : 0) | (atoi(w[5]) ? SOCK_CLOEXEC : 0));
	int r = connect(fd, (struct sockaddr *)&ss, n);

	set_slot(w[1], fd);
	if (nonblock && r < 0 && errno == EINPROGRESS) {
		struct pollfd p = { .fd = fd, .events = POLLOUT };
		int err = -1;

		poll(&p, 1, WAIT_MS);
		n = sizeof(err);
		getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &n);
		errno = err;
		r = err ? -1 : 0;
	}
	ret("connect", r);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

/* How to send and receive, by number. */
static ssize_t send_by(int how, int fd, char *b, size_t n)
{
	struct iovec v[2] = { { b, n / 3 }, { b + n / 3, n - n / 3 } };
	struct msghdr m = { .msg_iov = v, .msg_iovlen = 2 };

	switch (how % 5) {
	case 0:
		return send(fd, b, n, 0);
	case 1:
		return write(fd, b, n);
	case 2:
		return writev(fd, v, 2);
	case 3:
		return sendmsg(fd, &m, MSG_NOSIGNAL);
	default:
		return sendto(fd, b, n, 0, NULL, 0);
	}
}

static ssize_t recv_by(int how, int fd, char *b, size_t n)
{
	struct iovec v[2] = { { b, n / 2 }, { b + n / 2, n - n / 2 } };
	struct msghdr m = { .msg_iov = v, .msg_iovlen = 2 };

	switch (how % 5) {
	case 0:
		return recv(fd, b, n, 0);
	case 1:
		return read(fd, b, n);
	case 2:
		return readv(fd, v, 2);
	case 3:
		return recvmsg(fd, &m, 0);
	default:
		return recv(fd, b, n, MSG_WAITALL);
	}
}

static char *bytes(size_t n)
{
	static char *buf;
	static size_t size;

	if (n > size) {
		free(buf);
		size = n;
		buf = malloc(n);
		if (!buf)
			give_up("memory");
	}
	return buf;
}

/* Bytes of a message tell which message and where in it. */
static char *message(size_t n, uint32_t seed)
{
	char *b = bytes(n);

	for (size_t i = 0; i < n; i++)
		b[i] = (char)((seed * 2654435761u + (uint32_t)i * 40503u) >> 16);
	return b;
}

static void wait_for(int fd, int events)
{
	struct pollfd p = { .fd = fd, .events = (short)events };

	poll(&p, 1, WAIT_MS);
}

static void do_send(char **w)
{
	int fd = fd_of(w[1]), how = atoi(w[4]);
	size_t n = (size_t)atol(w[2]), done = 0;
	char *b = message(n, (uint32_t)atoi(w[3]));
	ssize_t r = 0;

	while (done < n) {
		r = send_by(how, fd, b + done, n - done);
		if (r < 0 && errno == EAGAIN) {
			wait_for(fd, POLLOUT);
			continue;
		}
		if (r <= 0)
			break;
		done += (size_t)r;
	}
	ret("sent", r < 0 ? r : (long)done);
	if (r < 0 && done)
		say(" after=%zu", done);
	/* the answer to bytes for a peer that has gone */
	if (atoi(w[5])) {
		struct pollfd p = { .fd = fd };

		ret("reset", poll(&p, 1, WAIT_MS));
	}
}

static uint32_t hash_more(uint32_t h, const char *b, size_t n)
{
	for (size_t i = 0; i < n; i++)
		h = (h ^ (unsigned char)b[i]) * 16777619u;
	return h;
}

/* Exactly so many bytes, or all before the end. */
static void do_recv(char **w)
{
	int fd = fd_of(w[1]), how = atoi(w[3]);
	size_t n = (size_t)atol(w[2]), done = 0;
	uint32_t h = 2166136261u;
	char *b = bytes(65536);
	ssize_t r = 0;

	while (done < n) {
		r = recv_by(how, fd, b, n - done < 65536 ? n - done : 65536);
		if (r < 0 && errno == EAGAIN && how < 100) {
			wait_for(fd, POLLIN);
			continue;
		}
		if (r <= 0)
			break;
		h = hash_more(h, b, (size_t)r);
		done += (size_t)r;
	}
	say(" got=%zu hash=%08x", done, h);
	if (r < 0)
		ret("end", r);
	else if (!r && n)
		say(" end=eof");
}

/* When `want` bytes have come: what one call without waiting takes (recvnb) or shows (peek). */
static void do_now(char **w, bool peek)
{
	int fd = fd_of(w[1]), have = 0;
	size_t n = (size_t)atol(w[2]), want = (size_t)atol(w[3]), done = 0;
	int64_t end = now_ms() + WAIT_MS;
	char *b = bytes(65536);
	uint32_t h = 2166136261u;
	ssize_t r = 0;

	while (ioctl(fd, FIONREAD, &have) == 0 && (size_t)have < want && now_ms() < end)
		nap_us(200);
	if (atoi(w[4]))
		wait_for(fd, POLLIN); /* and its end, if that has come */
	while (done < n) {
		r = recv(fd, b, n - done, MSG_DONTWAIT | (peek ? MSG_PEEK : 0));
		if (r <= 0)
			break;
		h = hash_more(h, b, (size_t)r);
		done += (size_t)r;
		if (peek)
			break;
	}
	say(" now=%zu hash=%08x", done, h);
	if (r < 0)
		ret("end", r);
	else if (!r && n)
		say(" end=eof");
}

static void say_events(int e)
{
	static const struct {
		int bit;
		const char *name;
	} bits[] = { { POLLIN, "IN" },	 { POLLOUT, "OUT" }, { POLLRDHUP, "RDHUP" },
		     { POLLHUP, "HUP" }, { POLLERR, "ERR" }, { POLLNVAL, "NVAL" } };

	say(" events=");
	for (size_t i = 0; i < sizeof(bits) / sizeof(bits[0]); i++)
		if (e & bits[i].bit)
			say("%s,", bits[i].name);
}

/* Both by poll and by epoll, whose bits are the same. */
static int look(int fd, int mask, bool by_epoll, int ms)
{
	struct epoll_event ev = { .events = (uint32_t)mask };
	struct pollfd p = { .fd = fd, .events = (short)mask };
	int e = 0, ep;

	if (!by_epoll)
		return poll(&p, 1, ms) > 0 ? p.revents : 0;
	ep = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) == 0 && epoll_wait(ep, &ev, 1, ms) == 1)
		e = (int)ev.events;
	close(ep);
	return e;
}

static void do_poll(char **w)
{
	int fd = fd_of(w[1]), mask = atoi(w[2]), expect = atoi(w[3]), e;
	bool by_epoll = atoi(w[4]);
	int64_t end = now_ms() + WAIT_MS;

	do {
		e = look(fd, mask, by_epoll, expect ? 20 : 0);
		if ((e & expect) != expect)
			nap_us(500);
	} while ((e & expect) != expect && now_ms() < end);
	say_events(e);
}

/* Until poll shows all of these, for a while: says nothing. */
static void do_settle(char **w)
{
	int fd = fd_of(w[1]), mask = atoi(w[2]);
	int64_t end = now_ms() + SETTLE_MS;

	while ((look(fd, mask, false, 20) & mask) != mask && now_ms() < end)
		nap_us(500);
}

/* Waits as long as it takes. */
static void do_sleep(char **w)
{
	say_events(look(fd_of(w[1]), POLLIN, atoi(w[2]), -1));
}

/*
 * Bytes there and back until the connection is on the fast path, or has had its time: says so to
 * play.py only. Both ends may be in one process, or this is done by both.
 */
static void do_warm(char **w)
{
	int fd = fd_of(w[1]);
	bool first = atoi(w[2]);
	char b = 'w';

	if (first && send(fd, &b, 1, MSG_NOSIGNAL) != 1)
		ret("warm", -1);
	else if (!first && recv(fd, &b, 1, MSG_WAITALL) != 1)
		ret("warm", -1);
}

/* ---- descriptors ---- */

static void do_dup(char **w)
{
	int fd = fd_of(w[1]), how = atoi(w[3]), r;

	if (how == 0)
		r = dup(fd);
	else if (how == 1)
		r = fcntl(fd, F_DUPFD, 40);
	else
		r = fcntl(fd, F_DUPFD_CLOEXEC, 60);
	set_slot(w[2], ok("dup", r));
}

/* Onto a descriptor that is open: closes that. */
static void do_dup_onto(char **w)
{
	int fd = fd_of(w[1]), to = fd_of(w[2]);
	int r = atoi(w[3]) ? dup3(fd, to, O_CLOEXEC) : dup2(fd, to);

	say(" dup=%s", r == to ? "ok" : strerrorname_np(errno));
}

static void do_inetd(char **w)
{
	int fd = fd_of(w[1]);

	for (int i = 0; i < 3; i++) {
		ok("dup2", dup2(fd, i));
		slots[i] = i;
	}
}

static void do_cloexec(char **w)
{
	ret("setfd", fcntl(fd_of(w[1]), F_SETFD, atoi(w[2]) ? FD_CLOEXEC : 0));
}

static void do_nonblock(char **w)
{
	int fd = fd_of(w[1]), fl = fcntl(fd, F_GETFL), on = atoi(w[2]);

	if (atoi(w[3]))
		ret("fionbio", ioctl(fd, FIONBIO, &on));
	else
		ret("setfl", fcntl(fd, F_SETFL, on ? fl | O_NONBLOCK : fl & ~O_NONBLOCK));
}

static void do_close(char **w)
{
	int fd = fd_of(w[1]);

	set_slot(w[1], -1);
	if (atoi(w[2]))
		ret("close_range", close_range((unsigned int)fd, (unsigned int)fd, 0));
	else
		ret("close", close(fd));
}

/* As a daemon does. */
static void do_close_all(char **w)
{
	for (int i = 0; i < SLOTS; i++)
		if (slots[i] >= 3)
			slots[i] = -1;
	if (atoi(w[1]))
		ret("close_range", close_range(3, CONTROL - 1, 0));
	else
		for (int i = 3; i < CONTROL; i++)
			close(i);
}

static void do_pass(char **w)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { .space = { 0 } };
	struct sockaddr_un a;
	char byte = 'f';
	struct iovec v = { &byte, 1 };
	struct msghdr m = {
		.msg_name = &a,
		.msg_namelen = unix_name(&a, w[2]),
		.msg_iov = &v,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	int fd = fd_of(w[1]);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	if (atoi(w[3])) {
		struct mmsghdr mm = { .msg_hdr = m };

		ret("sendmmsg", sendmmsg(MAILBOX, &mm, 1, 0));
	} else {
		ret("sendmsg", sendmsg(MAILBOX, &m, 0));
	}
}

static void do_take(char **w)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int))];
	} control = { .space = { 0 } };
	char byte;
	struct iovec v = { &byte, 1 };
	struct mmsghdr mm = { .msg_hdr = { .msg_iov = &v,
					   .msg_iovlen = 1,
					   .msg_control = &control,
					   .msg_controllen = sizeof(control) } };
	int flags = atoi(w[3]) ? MSG_CMSG_CLOEXEC : 0, fd = -1;
	struct cmsghdr *c;

	if (atoi(w[2]))
		ret("recvmmsg", recvmmsg(MAILBOX, &mm, 1, flags, NULL));
	else
		ret("recvmsg", recvmsg(MAILBOX, &mm.msg_hdr, flags));
	c = CMSG_FIRSTHDR(&mm.msg_hdr);
	if (c && c->cmsg_type == SCM_RIGHTS)
		memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	say(" fd=%s", fd >= 0 ? "ok" : "none");
	set_slot(w[1], fd);
}

static void do_getfd(char **w)
{
	int pidfd = (int)syscall(SYS_pidfd_open, atoi(w[2]), 0);
	int fd = (int)syscall(SYS_pidfd_getfd, pidfd, atoi(w[3]), 0);

	ok("getfd", fd);
	if (fd >= 0 && !atoi(w[4]))
		fcntl(fd, F_SETFD, 0);
	set_slot(w[1], fd);
	close(pidfd);
}

/* ---- processes ---- */

static char **with_preload(bool on)
{
	static char value[8192];
	const char *library = getenv("LUCK_PRELOAD");

	if (on && library && *library) {
		snprintf(value, sizeof(value), "%s", library);
		setenv("LD_PRELOAD", value, 1);
	} else {
		unsetenv("LD_PRELOAD");
	}
	return environ;
}

/* The next program: self, plain (no LD_PRELOAD), static, setuid. */
struct next {
	const char *path;
	char *argv[5];
	char **env;
};

static void next_program(struct next *x, const char *kind, const char *as, int inetd)
{
	static char a0[] = "luck", a1[100], a2[32], a3[16 * SLOTS];

	x->path = getenv(!strcmp(kind, "static")   ? "LUCK_STATIC"
			 : !strcmp(kind, "setuid") ? "LUCK_SETUID"
						   : "LUCK_SELF");
	snprintf(a1, sizeof(a1), "%s", address);
	snprintf(a2, sizeof(a2), "%s", as);
	snprintf(a3, sizeof(a3), "%s", slots_to(inetd));
	memcpy(x->argv, ((char *[]){ a0, a1, a2, a3, NULL }), sizeof(x->argv));
	x->env = with_preload(strcmp(kind, "plain") != 0);
}

static void do_exec(char **w)
{
	struct next x;

	next_program(&x, w[1], name, -1);
	execve(x.path, x.argv, x.env);
	ret("exec", -1);
}

static void do_exec_fails(void)
{
	ret("exec", execl("/nonexistent/program", "x", (char *)NULL));
}

static void do_vfork(char **w)
{
	int inetd = atoi(w[3]);
	int fd = inetd >= 0 ? slots[inetd % SLOTS] : -1;
	struct next x;
	pid_t pid;

	next_program(&x, w[2], w[1], inetd);
	/* cppcheck-suppress vforkCalled */
	pid = vfork();
	if (!pid) {
		for (int i = 0; i < 3 && fd >= 0; i++)
			dup2(fd, i);
		execve(x.path, x.argv, x.env);
		_exit(127);
	}
	ok("vfork", pid);
}

static void do_spawn(char **w)
{
	int inetd = atoi(w[3]), err;
	posix_spawn_file_actions_t fa;
	struct next x;
	pid_t pid;

	next_program(&x, w[2], w[1], inetd);
	posix_spawn_file_actions_init(&fa);
	for (int i = 0; i < 3 && inetd >= 0; i++)
		posix_spawn_file_actions_adddup2(&fa, slots[inetd % SLOTS], i);
	err = posix_spawn(&pid, x.path, inetd >= 0 ? &fa : NULL, NULL, x.argv, x.env);
	say(" spawn=%s", strerrorname_np(err));
	posix_spawn_file_actions_destroy(&fa);
}

static void serve(void);

static int cloned(void *as)
{
	new_name(as);
	serve();
	return 0;
}

static void do_fork(char **w)
{
	const char *how = w[2];
	pid_t pid;

	if (!strcmp(how, "clone")) {
		size_t n = 1 << 20;
		char *stack =
			mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		pid = clone(cloned, stack + n, SIGCHLD, w[1]);
		ok("clone", pid);
		munmap(stack, n);
		return;
	}
	pid = !strcmp(how, "_Fork") ? _Fork() : fork();
	if (!pid) {
		if (!strcmp(how, "daemon")) {
			setsid();
			if (fork())
				_exit(0);
		}
		new_name(w[1]);
		said_n = 0;
		return;
	}
	ok("fork", pid);
	if (!strcmp(how, "daemon") && pid > 0) {
		int st;

		waitpid(pid, &st, 0);
		say(" status=%d", st);
	}
}

static void do_wait(char **w)
{
	int st = 0;
	pid_t r = waitpid(atoi(w[1]), &st, 0);

	if (r < 0)
		ret("wait", r);
	else if (WIFSIGNALED(st))
		say(" signal=%d", WTERMSIG(st));
	else
		say(" exit=%d", WEXITSTATUS(st));
}

/* A shell writes to it. (bash, because dash knows descriptors of one digit only) */
static void do_system(char **w)
{
	char command[100];
	FILE *f;

	if (atoi(w[3])) {
		snprintf(command, sizeof(command), "exec bash -c 'cat >&%d'", fd_of(w[1]));
		f = popen(command, "w");
		if (!f)
			give_up("popen");
		fputs(w[2], f);
		ret("pclose", pclose(f));
	} else {
		snprintf(command, sizeof(command), "exec bash -c 'printf %s >&%d'", w[2],
			 fd_of(w[1]));
		ret("system", system(command));
	}
}

/* A program behind a shell reads so many bytes of it. */
static void do_popen(char **w)
{
	char command[100], b[4096];
	size_t n;
	FILE *f;

	snprintf(command, sizeof(command), "exec bash -c 'head -c %d <&%d'", atoi(w[2]),
		 fd_of(w[1]));
	f = popen(command, "r");
	if (!f)
		give_up("popen");
	n = fread(b, 1, sizeof(b), f);
	say(" read=%zu hash=%08x", n, hash_more(2166136261u, b, n));
	ret("pclose", pclose(f));
}

static void do_kill(char **w)
{
	ret("kill", kill(atoi(w[1]), atoi(w[2])));
}

/* ---- commands ---- */

/* False: return from main. */
static bool command(char **w)
{
	static const struct {
		const char *name;
		void (*run)(char **w);
	} table[] = {
		{ "listen", do_listen },
		{ "connect", do_connect },
		{ "send", do_send },
		{ "recv", do_recv },
		{ "poll", do_poll },
		{ "sleep", do_sleep },
		{ "settle", do_settle },
		{ "warm", do_warm },
		{ "dup", do_dup },
		{ "onto", do_dup_onto },
		{ "inetd", do_inetd },
		{ "cloexec", do_cloexec },
		{ "nonblock", do_nonblock },
		{ "close", do_close },
		{ "closeall", do_close_all },
		{ "pass", do_pass },
		{ "take", do_take },
		{ "getfd", do_getfd },
		{ "exec", do_exec },
		{ "vfork", do_vfork },
		{ "spawn", do_spawn },
		{ "fork", do_fork },
		{ "wait", do_wait },
		{ "system", do_system },
		{ "popen", do_popen },
		{ "kill", do_kill },
	};
	const char *what = w[0];

	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		if (!strcmp(what, table[i].name)) {
			table[i].run(w);
			return true;
		}
	if (!strcmp(what, "accept")) {
		int flags = atoi(w[3]) ? SOCK_CLOEXEC : 0, on = 1;
		/* cppcheck-suppress nullPointer */
		int fd = accept4(fd_of(w[2]), NULL, NULL, flags);

		set_slot(w[1], ok("accept", fd));
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	} else if (!strcmp(what, "recvnb") || !strcmp(what, "peek")) {
		do_now(w, what[0] == 'p');
	} else if (!strcmp(what, "shut")) {
		ret("shutdown", shutdown(fd_of(w[1]), atoi(w[2])));
	} else if (!strcmp(what, "linger0")) {
		struct linger l = { 1, 0 };

		ret("linger", setsockopt(fd_of(w[1]), SOL_SOCKET, SO_LINGER, &l, sizeof(l)));
	} else if (!strcmp(what, "soerror")) {
		int err = 0;
		socklen_t n = sizeof(err);

		getsockopt(fd_of(w[1]), SOL_SOCKET, SO_ERROR, &err, &n);
		say(" error=%s", err ? strerrorname_np(err) : "0");
	} else if (!strcmp(what, "badexec")) {
		do_exec_fails();
	} else if (!strcmp(what, "path")) {
		say(" %d", fd_path ? fd_path(fd_of(w[1])) : 0);
	} else if (!strcmp(what, "fd")) {
		say(" %d", fd_of(w[1]));
	} else if (!strcmp(what, "exit")) {
		exit(atoi(w[1]));
	} else if (!strcmp(what, "_exit")) {
		_exit(atoi(w[1]));
	} else if (!strcmp(what, "quick_exit")) {
		quick_exit(atoi(w[1]));
	} else if (!strcmp(what, "return")) {
		return false;
	} else {
		say(" unknown command %s", what);
	}
	return true;
}

static void serve(void)
{
	char line[512], zero[] = "0", *w[WORDS];

	for (;;) {
		ssize_t n = recv(CONTROL, line, sizeof(line) - 1, 0);
		char *save = NULL;

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			_exit(99); /* play.py has gone */
		line[n] = '\0';
		for (int i = 0; i < WORDS; i++)
			w[i] = zero;
		w[0] = strtok_r(line, " ", &save);
		for (int i = 1; i < WORDS - 1; i++) {
			char *p = strtok_r(NULL, " ", &save);

			if (!p)
				break;
			w[i] = p;
		}
		said_n = 0;
		said[0] = '\0';
		if (!command(w))
			return;
		/* The child of a fork has no one waiting for an answer. */
		if (said_n && send(CONTROL, said, said_n, MSG_NOSIGNAL) < 0)
			_exit(98);
		if (!said_n && strcmp(w[0], "fork") != 0)
			send(CONTROL, " done", 5, MSG_NOSIGNAL);
	}
}

int main(int argc, char **argv)
{
	static char none[] = "";
	const char *preload = getenv("LD_PRELOAD");

	if (argc < 3) {
		fprintf(stderr, "luck: run by tests/luck/run\n");
		return 2;
	}
	if (preload && *preload)
		setenv("LUCK_PRELOAD", preload, 1);
	signal(SIGPIPE, SIG_IGN);
	address = argv[1];
	snprintf(name, sizeof(name), "%s", argv[2]);
	slots_from(argc > 3 ? argv[3] : none);
#ifndef LUCK_STATIC
	void *p = dlsym(RTLD_DEFAULT, "rsock_fd_path");

	memcpy(&fd_path, &p, sizeof(p));
#endif
	hello();
	serve();
	return 7;
}
