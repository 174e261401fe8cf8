/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* libconf.c - the framework under the conformance cases; see conf.h */
#include "tests/conformance/conf.h"

#include <dlfcn.h>
#include <stdarg.h>

#include "tests/conformance/libconf.h"

bool conf_two;
bool conf_server;
int conf_family = AF_INET;
const char *conf_self = "";
static enum conf_state state;
static struct conf_text *text_out;
static int peer_chan = -1;
volatile sig_atomic_t sig_count[65];
void *volatile conf_bad = (void *)8;
void *volatile conf_null;
volatile int conf_minus = -1;
volatile size_t conf_max = (size_t)-1;

/* exported by the preload only */
static int (*fd_path)(int);
static int (*fd_leave)(int);
static int (*fd_renew)(int);

/* ------------------------------------------------------------------ printing */

static void out_raw(const char *s, size_t n)
{
	size_t at = text_out->len;

	if (n > sizeof(text_out->text) - 1 - at)
		n = sizeof(text_out->text) - 1 - at;
	memcpy(text_out->text + at, s, n);
	text_out->text[at + n] = 0;
	text_out->len = at + n;
}

void out(const char *fmt, ...)
{
	char buf[1024];
	va_list ap;
	int e = errno;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(buf, sizeof(buf), fmt, ap);
	va_end(ap);
	if (n > 0)
		out_raw(buf, (size_t)n < sizeof(buf) ? (size_t)n : sizeof(buf) - 1);
	errno = e;
}

const char *err_name(int e)
{
	const char *s = e ? strerrorname_np(e) : "0";

	return s ? s : "E?";
}

long ret(const char *label, long r)
{
	if (r < 0)
		out(" %s=%s", label, err_name(errno));
	else
		out(" %s=%ld", label, r);
	return r;
}

static void out_bytes(const void *buf, long n)
{
	const unsigned char *p = buf;
	long show = n > 64 ? 64 : n;

	out(" \"");
	for (long i = 0; i < show; i++) {
		if (p[i] >= 32 && p[i] < 127 && p[i] != '"' && p[i] != '\\')
			out("%c", p[i]);
		else
			out("\\x%02x", p[i]);
	}
	out(show < n ? "...\"" : "\"");
}

long retd(const char *label, long r, const void *buf)
{
	ret(label, r);
	if (r > 0)
		out_bytes(buf, r);
	return r;
}

int peer_ret(const char *label, long r)
{
	if (r < 0)
		out(" %s=%s", label, err_name((int)-r));
	else
		out(" %s=%ld", label, r);
	return (int)r;
}

void yes(const char *label, bool v)
{
	out(" %s=%s", label, v ? "yes" : "no");
}

struct bit {
	unsigned int bit;
	const char *name;
};

static void out_bits(const char *label, unsigned int v, const struct bit *b)
{
	const char *sep = "";

	out(" %s=", label);
	if (!v)
		out("0");
	for (; b->name; b++) {
		if (v & b->bit) {
			out("%s%s", sep, b->name);
			sep = "|";
			v &= ~b->bit;
		}
	}
	if (v)
		out("%s0x%x", sep, v);
}

void mask(const char *label, int revents)
{
	static const struct bit bits[] = {
		{ POLLIN, "IN" },	  { POLLPRI, "PRI" },	    { POLLOUT, "OUT" },
		{ POLLERR, "ERR" },	  { POLLHUP, "HUP" },	    { POLLNVAL, "NVAL" },
		{ POLLRDHUP, "RDHUP" },	  { POLLRDNORM, "RDNORM" }, { POLLRDBAND, "RDBAND" },
		{ POLLWRNORM, "WRNORM" }, { POLLWRBAND, "WRBAND" }, { 0, NULL },
	};

	if (revents < 0)
		out(" %s=%s", label, err_name(-revents));
	else
		out_bits(label, (unsigned int)revents, bits);
}

void emask(const char *label, uint32_t events)
{
	static const struct bit bits[] = {
		{ EPOLLIN, "IN" },
		{ EPOLLPRI, "PRI" },
		{ EPOLLOUT, "OUT" },
		{ EPOLLERR, "ERR" },
		{ EPOLLHUP, "HUP" },
		{ EPOLLRDHUP, "RDHUP" },
		{ EPOLLRDNORM, "RDNORM" },
		{ EPOLLRDBAND, "RDBAND" },
		{ EPOLLWRNORM, "WRNORM" },
		{ EPOLLWRBAND, "WRBAND" },
		{ 0, NULL },
	};

	out_bits(label, events, bits);
}

void status(const char *label, int w)
{
	if (WIFSIGNALED(w))
		out(" %s=SIG%s", label, sigabbrev_np(WTERMSIG(w)));
	else
		out(" %s=exit:%d", label, WEXITSTATUS(w));
}

void bail(const char *why)
{
	out(" BAIL(%s: %s)", why, err_name(errno));
	_exit(0);
}

/* ------------------------------------------------------------------ bytes and time */

static uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ULL;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

void pattern(void *buf, size_t n, uint64_t offset, uint64_t seed)
{
	unsigned char *p = buf;

	for (size_t i = 0; i < n;) {
		uint64_t o = offset + i;
		uint64_t w = mix((o >> 3) + seed * 0x9e3779b97f4a7c15ULL + 1);

		for (unsigned int b = (unsigned int)(o & 7); b < 8 && i < n; b++, i++)
			p[i] = (unsigned char)(w >> (8 * b));
	}
}

bool pattern_ok(const void *buf, size_t n, uint64_t offset, uint64_t seed)
{
	const unsigned char *p = buf;
	unsigned char tmp[4096];

	while (n) {
		size_t c = n < sizeof(tmp) ? n : sizeof(tmp);

		pattern(tmp, c, offset, seed);
		if (memcmp(tmp, p, c))
			return false;
		p += c;
		offset += c;
		n -= c;
	}
	return true;
}

long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

void nap(int ms)
{
	struct timespec ts = { ms / 1000, (ms % 1000) * 1000000L };

	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
}

void took(const char *label, long from, long low, long high)
{
	long d = now_ms() - from;
	const char *how = "in-time";

	if (d < low)
		how = "too-early";
	else if (d > high)
		how = "too-late";
	out(" %s=%s", label, how);
}

int set_int(int fd, int level, int name, int value)
{
	return setsockopt(fd, level, name, &value, sizeof(value));
}

int get_int(int fd, int level, int name)
{
	int v = -1;
	socklen_t l = sizeof(v);

	if (getsockopt(fd, level, name, &v, &l))
		return -errno;
	return v;
}

void nonblock(int fd, bool on)
{
	int fl = fcntl(fd, F_GETFL);

	fcntl(fd, F_SETFL, on ? fl | O_NONBLOCK : fl & ~O_NONBLOCK);
}

int poll1(int fd, int events, int ms)
{
	struct pollfd p = { .fd = fd, .events = (short)events };
	int r = poll(&p, 1, ms);

	return r < 0 ? -errno : p.revents;
}

void poll_say(const char *label, int fd, int events, int ms)
{
	mask(label, poll1(fd, events, ms));
}

bool wait_ev(int fd, int events)
{
	long end = now_ms() + 2000;

	while (now_ms() < end) {
		int r = poll1(fd, events, 2000);

		if (r > 0 && (r & events) == events)
			return true;
		nap(2);
	}
	return false;
}

bool wait_avail(int fd, int n)
{
	long end = now_ms() + 2000;

	while (now_ms() < end) {
		int have = 0;

		if (ioctl(fd, FIONREAD, &have))
			return false;
		if (have >= n)
			return true;
		nap(1);
	}
	return false;
}

bool wait_taken(int fd)
{
	int have = 1;

	for (long end = now_ms() + 2000; have && now_ms() < end; nap(1))
		if (ioctl(fd, FIONREAD, &have))
			return false;
	return !have;
}

static long send_pat(int fd, long n, long seed, int flags)
{
	char buf[65536];
	long done = 0;

	while (done < n) {
		long c = n - done < (long)sizeof(buf) ? n - done : (long)sizeof(buf);
		ssize_t r;

		pattern(buf, (size_t)c, (uint64_t)done, (uint64_t)seed);
		r = send(fd, buf, (size_t)c, flags);
		if (r < 0)
			return done && !flags ? done : -errno;
		done += r;
	}
	return done;
}

long sendn(int fd, long n, long seed)
{
	return send_pat(fd, n, seed, MSG_NOSIGNAL);
}

/* want < 0: up to the end of the stream */
static long recv_pat(int fd, long want, long seed)
{
	char buf[65536];
	long done = 0;

	while (want < 0 || done < want) {
		size_t c = sizeof(buf);
		ssize_t r;

		if (want >= 0 && want - done < (long)c)
			c = (size_t)(want - done);
		r = recv(fd, buf, c, 0);
		if (r < 0)
			return -errno;
		if (!r)
			return done;
		if (!pattern_ok(buf, (size_t)r, (uint64_t)done, (uint64_t)seed))
			return -EILSEQ;
		done += r;
	}
	return done;
}

long recvn(int fd, long n, long seed)
{
	return recv_pat(fd, n, seed);
}

/*
 * A kernel socket takes bytes as soon as there is any room, long before poll says POLLOUT, and room comes
 * back a little while after the last send: so it is full when nothing was taken for a while.
 */
long fill(int fd)
{
	char buf[16384];
	long done = 0, end = 0;

	for (;;) {
		ssize_t r;

		pattern(buf, sizeof(buf), (uint64_t)done, 7);
		r = send(fd, buf, sizeof(buf), MSG_DONTWAIT | MSG_NOSIGNAL);
		if (r < 0 && errno != EAGAIN)
			return -errno;
		if (r > 0) {
			done += r;
			end = 0;
		} else if (!end) {
			end = now_ms() + 120;
		} else if (now_ms() > end) {
			return done;
		} else {
			nap(3);
		}
		if (done > 64L << 20)
			return -EFBIG;
	}
}

int temp_file(size_t n, long seed)
{
	int fd = memfd_create("conf", MFD_CLOEXEC);
	char buf[65536];
	size_t done = 0;
	const char *dir = getenv("TMPDIR");
	char name[256];

	/* a real file when there is a place for it, because memfds and files differ in sendfile */
	snprintf(name, sizeof(name), "%s", dir ? dir : "/tmp");
	if (fd >= 0) {
		int f = open(name, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

		if (f >= 0) {
			close(fd);
			fd = f;
		}
	}
	while (fd >= 0 && done < n) {
		size_t c = n - done < sizeof(buf) ? n - done : sizeof(buf);

		pattern(buf, c, done, (uint64_t)seed);
		if (pwrite(fd, buf, c, (off_t)done) != (ssize_t)c)
			bail("temp_file");
		done += c;
	}
	return fd;
}

void *bad_tail(size_t good)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	size_t len = (good + page - 1) / page * page;
	char *p =
		mmap(NULL, len + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		bail("mmap");
	mprotect(p + len, page, PROT_NONE);
	return p + len - good;
}

/* ------------------------------------------------------------------ signals */

static void on_signal(int sig)
{
	sig_count[sig]++;
}

void sig_catch(int sig, int flags)
{
	struct sigaction sa = { .sa_handler = on_signal, .sa_flags = flags };

	sigaction(sig, &sa, NULL);
}

void alarm_ms(int first, int every)
{
	struct itimerval it = {
		.it_value = { first / 1000, (first % 1000) * 1000L },
		.it_interval = { every / 1000, (every % 1000) * 1000L },
	};

	setitimer(ITIMER_REAL, &it, NULL);
}

/* ------------------------------------------------------------------ addresses */

socklen_t conf_addr(int family, int port, struct sockaddr_storage *ss)
{
	memset(ss, 0, sizeof(*ss));
	if (family == AF_INET6) {
		struct sockaddr_in6 *a = (struct sockaddr_in6 *)ss;

		a->sin6_family = AF_INET6;
		a->sin6_port = htons((uint16_t)port);
		a->sin6_addr = in6addr_loopback;
		return sizeof(*a);
	}
	struct sockaddr_in *a = (struct sockaddr_in *)ss;

	a->sin_family = AF_INET;
	a->sin_port = htons((uint16_t)port);
	a->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return sizeof(*a);
}

int conf_port(int fd)
{
	struct sockaddr_storage ss;
	socklen_t l = sizeof(ss);

	if (getsockname(fd, (struct sockaddr *)&ss, &l))
		return -errno;
	if (ss.ss_family == AF_INET6)
		return ntohs(((struct sockaddr_in6 *)&ss)->sin6_port);
	return ntohs(((struct sockaddr_in *)&ss)->sin_port);
}

int conf_listen(int family, int backlog, struct sockaddr_storage *ss, socklen_t *len)
{
	int s = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_storage a;
	socklen_t l = conf_addr(family, 0, &a);

	if (s < 0 || bind(s, (struct sockaddr *)&a, l) || listen(s, backlog))
		bail("listen");
	if (ss) {
		*len = sizeof(*ss);
		if (getsockname(s, (struct sockaddr *)ss, len))
			bail("getsockname");
	}
	return s;
}

/* ------------------------------------------------------------------ operations of the other end */

static struct {
	pthread_t thread;
	bool running;
	struct conf_req req;
	struct conf_rsp rsp;
} later;

static void op_now(const struct conf_req *q, struct conf_rsp *s);

static void *later_main(void *arg)
{
	(void)arg;
	nap(later.req.later);
	later.req.later = 0;
	op_now(&later.req, &later.rsp);
	return NULL;
}

static void op_later(const struct conf_req *q)
{
	sigset_t all, old;

	if (later.running)
		abort();
	later.req = *q;
	memset(&later.rsp, 0, sizeof(later.rsp));
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	if (pthread_create(&later.thread, NULL, later_main, NULL))
		abort();
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	later.running = true;
}

/* recv with a limit of time, so that a lost byte becomes an answer and not a hang */
static long recv_some(int fd, char *buf, long n)
{
	long got = 0;
	long end = now_ms() + 3000;

	while (got < n) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		int left = (int)(end - now_ms());
		ssize_t r;

		if (left <= 0)
			return got ? got : -ETIME;
		if (poll(&p, 1, left) <= 0)
			continue;
		r = recv(fd, buf + got, (size_t)(n - got), MSG_DONTWAIT);
		if (r < 0 && errno == EAGAIN)
			continue;
		if (r < 0)
			return got ? got : -errno;
		if (!r)
			break;
		got += r;
	}
	return got;
}

static long op_connect(int family, int port)
{
	struct sockaddr_storage ss;
	socklen_t l = conf_addr(family, port, &ss);
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&ss, l))
		return -errno;
	return fd;
}

static long op_do(const struct conf_req *q, struct conf_rsp *s)
{
	struct linger lg = { 1, 0 };
	ssize_t r;

	switch (q->op) {
	case OP_LISTEN: {
		int fd = conf_listen((int)q->n, 16, NULL, NULL);

		s->len = (size_t)conf_port(fd);
		return fd;
	}
	case OP_CONNECT:
		return op_connect((int)q->n, (int)q->m);
	case OP_ACCEPT:
		/* cppcheck-suppress nullPointer */
		r = accept4(q->fd, NULL, NULL, SOCK_CLOEXEC);
		break;
	case OP_SEND:
		r = send(q->fd, q->data, q->len, MSG_NOSIGNAL | q->flags);
		break;
	case OP_SENDN:
		return sendn(q->fd, q->n, q->m);
	case OP_RECV:
		r = recv_some(q->fd, s->data, q->n);
		s->len = r > 0 ? (size_t)r : 0;
		return r;
	case OP_RECVNB:
		r = recv(q->fd, s->data, (size_t)q->n, MSG_DONTWAIT | q->flags);
		s->len = r > 0 ? (size_t)r : 0;
		break;
	case OP_RECVN:
		return recv_pat(q->fd, q->n, q->m);
	case OP_RECVALL:
		return recv_pat(q->fd, -1, q->m);
	case OP_SHUT:
		r = shutdown(q->fd, (int)q->n);
		break;
	case OP_CLOSE:
		r = close(q->fd);
		break;
	case OP_RST:
		setsockopt(q->fd, SOL_SOCKET, SO_LINGER, &lg, sizeof(lg));
		r = close(q->fd);
		break;
	case OP_SETOPT:
		r = set_int(q->fd, (int)q->n, (int)q->m, (int)q->v);
		break;
	case OP_PATH:
		return fd_path ? fd_path(q->fd) : -ENOSYS;
	case OP_LEAVE:
		return fd_leave ? fd_leave(q->fd) : -ENOSYS;
	case OP_POLL:
		return poll1(q->fd, (int)q->n, (int)q->m);
	case OP_RAISE:
		r = kill((pid_t)q->n, (int)q->m);
		break;
	case OP_EXIT:
		exit(0);
	case OP_KILL:
		kill(getpid(), SIGKILL);
		return -EINVAL;
	case OP_PID:
		return getpid();
	case OP_NOP:
		return 0;
	default:
		return -EINVAL;
	}
	return r < 0 ? -errno : r;
}

static void op_now(const struct conf_req *q, struct conf_rsp *s)
{
	memset(s, 0, offsetof(struct conf_rsp, data));
	if (q->later > 0) {
		op_later(q);
	} else if (q->op == OP_DONE) {
		if (!later.running) {
			s->ret = -ESRCH;
			return;
		}
		pthread_join(later.thread, NULL);
		later.running = false;
		*s = later.rsp;
	} else {
		s->ret = op_do(q, s);
	}
}

/* the main loop of `conformance --peer` */
int conf_peer_main(int chan)
{
	struct conf_req q;
	struct conf_rsp s;

	signal(SIGPIPE, SIG_IGN);
	conf_find_hooks();
	while (recv(chan, &q, sizeof(q), 0) == (ssize_t)sizeof(q)) {
		op_now(&q, &s);
		if (send(chan, &s, sizeof(s), MSG_NOSIGNAL) != (ssize_t)sizeof(s))
			break;
	}
	return 0;
}

long p_call(struct conf_req *q, struct conf_rsp *s)
{
	if (!conf_two) {
		op_now(q, s);
		return s->ret;
	}
	/* these calls are the test's own: signals that it plays with must not break them */
	for (;;) {
		ssize_t r = send(peer_chan, q, sizeof(*q), MSG_NOSIGNAL);

		if (r == (ssize_t)sizeof(*q))
			break;
		if (errno != EINTR)
			return s->ret = -ECHILD;
	}
	for (;;) {
		ssize_t r = recv(peer_chan, s, sizeof(*s), 0);

		if (r == (ssize_t)sizeof(*s))
			break;
		if (r >= 0 || errno != EINTR)
			return s->ret = -ECHILD;
	}
	return s->ret;
}

static long p_op(int op, int fd, long n, long m)
{
	struct conf_req q = { .op = op, .fd = fd, .n = n, .m = m };
	struct conf_rsp s;

	return p_call(&q, &s);
}

long p_send_flags(struct conn *k, const char *text, int flags)
{
	struct conf_req q = { .op = OP_SEND, .fd = k->peer, .flags = flags, .len = strlen(text) };
	struct conf_rsp s;

	if (q.len > sizeof(q.data))
		return -E2BIG;
	memcpy(q.data, text, q.len);
	return p_call(&q, &s);
}

long p_send(struct conn *k, const char *text)
{
	return p_send_flags(k, text, 0);
}

long p_sendn(struct conn *k, long n, long seed)
{
	return p_op(OP_SENDN, k->peer, n, seed);
}

static long p_take(int op, struct conn *k, char *buf, long n)
{
	struct conf_req q = { .op = op, .fd = k->peer, .n = n };
	struct conf_rsp s;
	long r;

	buf[0] = 0;
	if (n > (long)sizeof(s.data))
		return -E2BIG;
	r = p_call(&q, &s);
	if (r > 0) {
		memcpy(buf, s.data, (size_t)r);
		buf[r] = 0;
	}
	return r;
}

long p_recv(struct conn *k, char *buf, long n)
{
	return p_take(OP_RECV, k, buf, n);
}

long p_recvnb(struct conn *k, char *buf, long n)
{
	return p_take(OP_RECVNB, k, buf, n);
}

long p_recvn(struct conn *k, long n, long seed)
{
	return p_op(OP_RECVN, k->peer, n, seed);
}

long p_recvall(struct conn *k, long seed)
{
	return p_op(OP_RECVALL, k->peer, 0, seed);
}

long p_shut(struct conn *k, int how)
{
	return p_op(OP_SHUT, k->peer, how, 0);
}

long p_close(struct conn *k)
{
	return p_op(OP_CLOSE, k->peer, 0, 0);
}

long p_rst(struct conn *k)
{
	return p_op(OP_RST, k->peer, 0, 0);
}

long p_setopt(struct conn *k, int level, int name, int value)
{
	struct conf_req q = { .op = OP_SETOPT, .fd = k->peer, .n = level, .m = name, .v = value };
	struct conf_rsp s;

	return p_call(&q, &s);
}

long p_poll(struct conn *k, int events, int ms)
{
	return p_op(OP_POLL, k->peer, events, ms);
}

long p_later(struct conn *k, int ms, int op, long n, long m, const char *text)
{
	struct conf_req q = { .op = op, .fd = k ? k->peer : -1, .n = n, .m = m, .later = ms };
	struct conf_rsp s;

	if (text) {
		q.len = strlen(text);
		memcpy(q.data, text, q.len);
	}
	return p_call(&q, &s);
}

long p_done(void)
{
	return p_op(OP_DONE, -1, 0, 0);
}

pid_t p_pid(void)
{
	return (pid_t)p_op(OP_PID, -1, 0, 0);
}

long p_exit(int op)
{
	long r = p_op(op, -1, 0, 0);

	return r == -ECHILD ? 0 : r;
}

/* ------------------------------------------------------------------ connections */

/* the listener of the newest pair, ours or the other end's, until conf_settle() */
static int listener = -1, peer_listener = -1;

static void close_listeners(void)
{
	if (listener >= 0)
		close(listener);
	if (peer_listener >= 0)
		p_op(OP_CLOSE, peer_listener, 0, 0);
	listener = -1;
	peer_listener = -1;
}

void conf_pair_raw(struct conn *k, int family, bool server)
{
	struct conf_req q = { .n = family };
	struct conf_rsp s;

	close_listeners();
	if (server) {
		listener = conf_listen(family, 16, NULL, NULL);
		q.op = OP_CONNECT;
		q.m = conf_port(listener);
		k->peer = (int)p_call(&q, &s);
		if (k->peer < 0) {
			errno = -k->peer;
			bail("peer connect");
		}
		/* cppcheck-suppress nullPointer */
		k->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (k->fd < 0)
			bail("accept");
	} else {
		long r;

		q.op = OP_LISTEN;
		peer_listener = (int)p_call(&q, &s);
		if (peer_listener < 0)
			bail("peer listen");
		r = op_connect(family, (int)s.len);
		if (r < 0) {
			errno = (int)-r;
			bail("connect");
		}
		k->fd = (int)r;
		q.op = OP_ACCEPT;
		q.fd = peer_listener;
		k->peer = (int)p_call(&q, &s);
		if (k->peer < 0)
			bail("peer accept");
	}
	/* most servers go on listening; when the state does not matter be one that does not */
	if (state == STATE_BEFORE || state == STATE_WHILE)
		close_listeners();
}

static void exchange(struct conn *k, int round)
{
	char buf[64];

	snprintf(buf, sizeof(buf), "warm-up %08d", round);
	char got[64];

	if (send(k->fd, buf, 16, MSG_NOSIGNAL) != 16)
		bail("warm-up send");
	if (p_recv(k, got, 16) != 16 || memcmp(buf, got, 16))
		bail("warm-up: wrong bytes at the peer");
	if (p_send(k, got) != 16)
		bail("warm-up peer send");
	if (recv_some(k->fd, got, 16) != 16 || memcmp(buf, got, 16))
		bail("warm-up: wrong bytes from the peer");
}

static bool both_fast(int p)
{
	return p >= 0 && (p & 0x0f) && (p & 0xf0);
}

/* the same byte exchange with and without rsock, at least `min` rounds, until `want` is reached */
static void warm_up(struct conn *k, bool fast)
{
	long end = now_ms() + 3000;
	int round = 0;
	int a = 0, b = 0;

	for (;;) {
		bool there = !fd_path;

		if (fast)
			exchange(k, round);
		if (fd_path) {
			a = fd_path(k->fd);
			b = (int)p_op(OP_PATH, k->peer, 0, 0);
			there = fast ? both_fast(a) && both_fast(b) : !a && !b;
		}
		if (there && ++round >= 3)
			return;
		if (now_ms() > end) {
			out(" state-not-reached(%s: path 0x%02x, peer 0x%02x)",
			    fast ? "entered" : "left", a < 0 ? 0xff : a, b < 0 ? 0xff : b);
			_exit(0);
		}
		nap(round < 3 ? 1 : 5);
	}
}

void conf_settle(struct conn *k)
{
	struct timespec ts;

	switch (state) {
	case STATE_BEFORE:
		break;
	case STATE_WHILE:
		clock_gettime(CLOCK_MONOTONIC, &ts);
		ts.tv_sec = 0;
		ts.tv_nsec = (long)(mix((uint64_t)ts.tv_nsec + (uint64_t)getpid()) % 3000000);
		nanosleep(&ts, NULL);
		break;
	case STATE_ENTERED:
		warm_up(k, true);
		break;
	case STATE_LEFT:
		warm_up(k, true);
		if (fd_leave)
			fd_leave(k->fd);
		warm_up(k, false);
		break;
	case STATE_AGAIN:
		warm_up(k, true);
		if (fd_renew)
			fd_renew(k->fd);
		warm_up(k, true);
		break;
	}
	close_listeners();
}

void conf_pair_one_shot(struct conn *k)
{
	conf_pair_raw(k, conf_family, conf_server);
	close_listeners();
	conf_settle(k);
}

void conf_pair_fam(struct conn *k, int family, bool server)
{
	conf_pair_raw(k, family, server);
	set_int(k->fd, IPPROTO_TCP, TCP_NODELAY, 1);
	p_setopt(k, IPPROTO_TCP, TCP_NODELAY, 1);
	conf_settle(k);
}

void conf_pair(struct conn *k)
{
	conf_pair_fam(k, conf_family, conf_server);
}

/* ------------------------------------------------------------------ set-up */

static void *find(const char *name)
{
	return dlsym(RTLD_DEFAULT, name);
}

void conf_find_hooks(void)
{
	void *p = find("rsock_fd_path");

	memcpy(&fd_path, &p, sizeof(p));
	p = find("rsock_fd_leave");
	memcpy(&fd_leave, &p, sizeof(p));
	p = find("rsock_fd_renew");
	memcpy(&fd_renew, &p, sizeof(p));
}

void conf_setup(enum conf_state st, struct conf_text *text, int chan)
{
	state = st;
	text_out = text;
	peer_chan = chan;
	conf_find_hooks();
}

int with_child(void (*child)(int fd), int ms, pid_t *pid)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(conf_family, 4, &ss, &l), fd;
	char w[2];

	*pid = fork();
	if (!*pid) {
		fd = socket(ss.ss_family, SOCK_STREAM, 0);
		if (connect(fd, (struct sockaddr *)&ss, l))
			_exit(9);
		if (send(fd, "hi", 2, 0) != 2 || read(fd, &w, 2) != 2)
			_exit(8);
		nap(ms);
		child(fd);
		_exit(7);
	}
	fd = accept(ls, NULL, NULL);
	close(ls);
	if (read(fd, &w, 2) != 2 || write(fd, "ho", 2) != 2)
		bail("greet");
	return fd;
}
