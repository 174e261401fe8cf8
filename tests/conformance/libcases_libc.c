/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* libcases_libc.c - the rarer functions of libc that take a descriptor, wait, or make a process */
#include "tests/conformance/conf.h"

#include <aio.h>
#include <dirent.h>
#include <dlfcn.h>
#include <execinfo.h>
#include <mqueue.h>
#include <setjmp.h>
#include <sys/inotify.h>
#include <sys/pidfd.h>
#include <sys/signalfd.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <termios.h>
#include <threads.h>
#include <wordexp.h>

extern const char conf_file_libc;
const char conf_file_libc = 1;

static void peer_text(struct conn *k, long n)
{
	char b[2049];
	long r = p_recv(k, b, n);

	if (r < 0)
		peer_ret("peer", r);
	else
		retd("peer", r, b);
}

/* both directions work */
static void alive(struct conn *k)
{
	char b[16];

	ret("send", send(k->fd, "alive", 5, MSG_NOSIGNAL));
	peer_text(k, 5);
	p_send(k, "yes");
	retd("recv", recv(k->fd, b, 16, 0), b);
}

static void reap(const char *label, pid_t pid)
{
	int w = 0;

	while (waitpid(pid, &w, 0) < 0 && errno == EINTR)
		;
	status(label, w);
}

/* ---- asynchronous I/O: threads of libc that read and write by its internal calls ---- */

static long aio_wait(struct aiocb *cb)
{
	const struct aiocb *list[] = { cb };
	const struct timespec second = { 1, 0 };

	for (int i = 0; i < 3 && aio_error(cb) == EINPROGRESS; i++)
		(void)!aio_suspend(list, 1, &second);
	if (aio_error(cb) == EINPROGRESS)
		return -ETIMEDOUT;
	errno = aio_error(cb);
	return aio_return(cb);
}

CASE(libc, aio_read, 0)
{
	struct conn k;
	char b[16];
	struct aiocb cb = { .aio_buf = b, .aio_nbytes = 3 };

	conf_pair(&k);
	cb.aio_fildes = k.fd;
	p_send(&k, "abcdef");
	wait_avail(k.fd, 6);
	ret("aio_read", aio_read(&cb));
	retd("done", aio_wait(&cb), b);
	retd("recv", recv(k.fd, b, 16, 0), b);
	alive(&k);
}

CASE(libc, aio_read_that_waits, 0)
{
	struct conn k;
	char b[16];
	struct aiocb cb = { .aio_buf = b, .aio_nbytes = 16 };

	conf_pair(&k);
	cb.aio_fildes = k.fd;
	ret("aio_read", aio_read(&cb));
	p_later(&k, 50, OP_SEND, 0, 0, "late");
	retd("done", aio_wait(&cb), b);
	p_done();
	alive(&k);
}

CASE(libc, aio_write, 0)
{
	struct conn k;
	char t[] = "abc";
	struct aiocb cb = { .aio_buf = t, .aio_nbytes = 3 };

	conf_pair(&k);
	cb.aio_fildes = k.fd;
	ret("send", send(k.fd, "12", 2, 0));
	ret("aio_write", aio_write(&cb));
	ret("done", aio_wait(&cb));
	peer_text(&k, 5);
	alive(&k);
}

CASE(libc, lio_listio, 0)
{
	struct conn k;
	char b[16], t[] = "abc";
	struct aiocb w = { .aio_buf = t, .aio_nbytes = 3, .aio_lio_opcode = LIO_WRITE };
	struct aiocb r = { .aio_buf = b, .aio_nbytes = 3, .aio_lio_opcode = LIO_READ };
	struct aiocb *list[] = { &w, &r };

	conf_pair(&k);
	w.aio_fildes = k.fd;
	r.aio_fildes = k.fd;
	p_send(&k, "def");
	wait_avail(k.fd, 3);
	ret("lio_listio", lio_listio(LIO_WAIT, list, 2, NULL));
	ret("write", aio_return(&w));
	retd("read", aio_return(&r), b);
	peer_text(&k, 3);
	alive(&k);
}

/* ---- stdio ---- */

/* glibc's own names, which programs that were built long ago have */
extern FILE *_IO_fdopen(int fd, const char *mode);
extern int _IO_fclose(FILE *f);

CASE(libc, io_fdopen, 0)
{
	struct conn k;
	char b[16];
	FILE *f;

	conf_pair(&k);
	p_send(&k, "line\nrest");
	wait_avail(k.fd, 9);
	f = _IO_fdopen(k.fd, "r");
	if (!f || !fgets(b, sizeof(b), f))
		bail("fgets");
	out(" %.4s", b);
	ret("send", send(k.fd, "abc", 3, 0));
	peer_text(&k, 3);
	ret("fclose", _IO_fclose(f));
	mask("peer_poll", (int)p_poll(&k, POLLRDHUP, 1000));
}

CASE(libc, freopen_of_a_socket, 0)
{
	struct conn k;
	FILE *f;

	conf_pair(&k);
	f = fdopen(k.fd, "r+");
	if (!f)
		bail("fdopen");
	fputs("abc", f);
	f = freopen("/dev/null", "r", f);
	yes("freopen", f != NULL);
	peer_text(&k, 4);
}

/* stdio uses 0, 1 and 2 by itself, wherever they came from */
static void as_standard(int fd)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(conf_family, 4, &ss, &l), c, a;
	int saved = fcntl(fd, F_DUPFD_CLOEXEC, 100);
	char b[32];

	close(fd);
	c = socket(ss.ss_family, SOCK_STREAM, 0);
	yes("number", c == fd);
	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	a = accept(ls, NULL, NULL);
	for (int i = 0; i < 5; i++) { /* in use, and time to enter */
		nap(10);
		send(a, "x", 1, 0);
		retd("r", recv(c, b, 8, 0), b);
		send(c, "y", 1, 0);
		retd("r", recv(a, b, 8, 0), b);
	}
	if (fd) {
		puts("line");
		fflush(stdout);
		retd("line", recv(a, b, sizeof(b), 0), b);
	} else {
		send(a, "abc\n", 4, 0);
		out(" line=%.3s", fgets(b, sizeof(b), stdin));
	}
	yes("back", dup2(saved, fd) == fd);
}

CASE(libc, socket_is_0, ONE)
{
	as_standard(0);
}

CASE(libc, socket_is_1, ONE)
{
	as_standard(1);
}

/* ---- what writes or reads a descriptor by the way ---- */

CASE(libc, backtrace_symbols_fd, 0)
{
	struct conn k;
	void *none[] = { NULL };
	char b[16];

	conf_pair(&k);
	ret("send", send(k.fd, "12", 2, 0));
	backtrace_symbols_fd(none, 1, k.fd);
	p_recv(&k, b, 7);
	out(" %.7s", b);
	alive(&k);
}

CASE(libc, eventfd_calls, 0)
{
	struct conn k;
	eventfd_t v = 0;

	conf_pair(&k);
	p_send(&k, "01234567rest");
	wait_avail(k.fd, 12);
	ret("read", eventfd_read(k.fd, &v));
	out(" %.8s", (char *)&v);
	ret("write", eventfd_write(k.fd, v));
	peer_text(&k, 8);
	ret("left", recv(k.fd, &v, sizeof(v), 0));
	alive(&k);
}

CASE(libc, sendfile_to_a_pipe, 0)
{
	struct conn k;
	char b[16];
	int p[2];

	conf_pair(&k);
	p_send(&k, "abcdef");
	wait_avail(k.fd, 6);
	retd("recv", recv(k.fd, b, 2, 0), b);
	if (pipe(p))
		bail("pipe");
	ret("sendfile", sendfile(p[1], k.fd, NULL, 2));
	retd("pipe", read(p[0], b, 16), b);
	retd("recv", recv(k.fd, b, 16, 0), b);
	p_later(&k, 50, OP_SEND, 0, 0, "late");
	ret("sendfile", sendfile(p[1], k.fd, NULL, 16));
	retd("pipe", read(p[0], b, 16), b);
	p_done();
	alive(&k);
}

CASE(libc, sendfile_to_a_file, 0)
{
	struct conn k;
	int f = temp_file(0, 1);

	conf_pair(&k);
	p_send(&k, "abcdef");
	wait_avail(k.fd, 6);
	ret("sendfile", sendfile(f, k.fd, NULL, 2));
	alive(&k);
}

CASE(libc, wordexp_of_a_command, 0)
{
	struct conn k;
	wordexp_t w;

	conf_pair(&k);
	if (dup2(k.fd, 9) != 9)
		bail("dup2");
	p_send(&k, "one two");
	ret("wordexp", wordexp("$(head -c 7 <&9)", &w, 0));
	out(" %zu", w.we_wordc);
	for (size_t i = 0; i < w.we_wordc; i++)
		out(" %s", w.we_wordv[i]);
	ret("send", send(k.fd, "abc", 3, 0));
	peer_text(&k, 3);
}

CASE(libc, zerocopy_receive, 0)
{
	struct conn k;
	char b[16];
	struct {
		uint64_t address;
		uint32_t length, recv_skip_hint, inq;
		int32_t err;
		uint64_t copybuf_address;
		int32_t copybuf_len;
		uint32_t flags;
	} zc = { .length = 4096 };
	socklen_t len = sizeof(zc);
	void *map;

	conf_pair(&k);
	p_send(&k, "abcdef");
	wait_avail(k.fd, 6);
	map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, k.fd, 0);
	yes("mmap", map != MAP_FAILED);
	zc.address = (uint64_t)(uintptr_t)map;
	zc.copybuf_address = (uint64_t)(uintptr_t)b;
	zc.copybuf_len = 4;
	ret("getsockopt", getsockopt(k.fd, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, &zc, &len));
	out(" length=%u hint=%u copied=%d", zc.length, zc.recv_skip_hint, zc.copybuf_len);
	retd("recv", recv(k.fd, b, 16, 0), b);
	alive(&k);
}

CASE(libc, sockatmark, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	p_send(&k, "ab");
	wait_avail(k.fd, 2);
	ret("at", sockatmark(k.fd));
	p_send_flags(&k, "X", MSG_OOB);
	p_send(&k, "cd");
	wait_ev(k.fd, POLLPRI);
	ret("at", sockatmark(k.fd));
	retd("recv", recv(k.fd, b, 1, 0), b);
	ret("at", sockatmark(k.fd));
	retd("recv", recv(k.fd, b, 16, 0), b);
	ret("at", sockatmark(k.fd));
	retd("oob", recv(k.fd, b, 16, MSG_OOB), b);
	wait_avail(k.fd, 2);
	retd("recv", recv(k.fd, b, 16, 0), b);
	ret("at", sockatmark(k.fd));
}

/* ---- what a socket does not know: the kernel's errors ---- */

CASE(libc, not_for_sockets, 0)
{
	struct conn k;
	char b[16] = "";
	struct stat st;
	struct statfs fs;
	struct termios t;
	struct itimerspec its = { 0 };
	struct mq_attr attr;
	sigset_t none;
	int f = temp_file(16, 1), p[2];
	loff_t zero = 0;
	struct iovec iov = { b, 1 };
	DIR *dir;

	conf_pair(&k);
	if (pipe(p))
		bail("pipe");
	p_send(&k, "abc");
	wait_avail(k.fd, 3);
	ret("lseek", lseek(k.fd, 0, SEEK_CUR));
	ret("pread", pread(k.fd, b, 1, 0));
	ret("pwrite", pwrite(k.fd, b, 1, 0));
	ret("preadv", preadv(k.fd, &iov, 1, 0));
	ret("pwritev", pwritev(k.fd, &iov, 1, 0));
	ret("ftruncate", ftruncate(k.fd, 0));
	ret("fsync", fsync(k.fd));
	ret("fdatasync", fdatasync(k.fd));
	ret("fadvise", -posix_fadvise(k.fd, 0, 0, POSIX_FADV_NORMAL));
	out("%s", err_name(posix_fadvise(k.fd, 0, 0, POSIX_FADV_NORMAL)));
	out(" fallocate=%s", err_name(posix_fallocate(k.fd, 0, 1)));
	ret("readahead", readahead(k.fd, 0, 1));
	ret("sync_file_range", sync_file_range(k.fd, 0, 1, 0));
	ret("copy_from", copy_file_range(k.fd, NULL, f, NULL, 1, 0));
	ret("copy_to", copy_file_range(f, &zero, k.fd, NULL, 1, 0));
	ret("tee", tee(k.fd, p[1], 1, SPLICE_F_NONBLOCK));
	ret("tee_to", tee(p[0], k.fd, 1, SPLICE_F_NONBLOCK));
	ret("vmsplice", vmsplice(k.fd, &iov, 1, 0));
	ret("isatty", isatty(k.fd));
	out(" ttyname=%s", err_name(ttyname_r(k.fd, b, sizeof(b))));
	ret("tcgetattr", tcgetattr(k.fd, &t));
	ret("tcdrain", tcdrain(k.fd));
	ret("tcgetpgrp", tcgetpgrp(k.fd));
	ret("lockf", lockf(k.fd, F_TEST, 0));
	ret("fstat", fstat(k.fd, &st));
	yes("S_ISSOCK", S_ISSOCK(st.st_mode));
	ret("isfdtype", isfdtype(k.fd, S_IFSOCK));
	ret("fstatfs", fstatfs(k.fd, &fs));
	ret("fpathconf", fpathconf(k.fd, _PC_PIPE_BUF));
	ret("fchdir", fchdir(k.fd));
	dir = fdopendir(k.fd);
	ret("fdopendir", dir ? closedir(dir) : -1);
	ret("getdents64", getdents64(k.fd, b, sizeof(b)));
	ret("timerfd", timerfd_settime(k.fd, 0, &its, NULL));
	ret("inotify", inotify_add_watch(k.fd, "/", IN_CREATE));
	sigemptyset(&none);
	ret("signalfd", signalfd(k.fd, &none, 0));
	ret("mq_getattr", mq_getattr(k.fd, &attr));
	ret("epoll_wait", epoll_wait(k.fd, &(struct epoll_event){ 0 }, 1, 0));
	ret("pidfd", pidfd_send_signal(k.fd, 0, NULL, 0));
	ret("setns", setns(k.fd, 0));
	ret("fgetxattr", fgetxattr(k.fd, "user.none", b, sizeof(b)));
	retd("recv", recv(k.fd, b, 16, 0), b);
	alive(&k);
}

/* ---- another descriptor for the same connection ---- */

static void duplicate_by_pidfd(bool by_number)
{
	struct conn k;
	char b[16];
	int self = pidfd_open(getpid(), 0), d;

	conf_pair(&k);
	p_send(&k, "abcdef");
	wait_avail(k.fd, 6);
	retd("orig", recv(k.fd, b, 2, 0), b);
	d = by_number ? (int)syscall(SYS_pidfd_getfd, self, k.fd, 0) : pidfd_getfd(self, k.fd, 0);
	yes("got", d >= 0);
	retd("got", recv(d, b, 2, MSG_DONTWAIT), b);
	ret("send", send(d, "12", 2, 0));
	ret("send", send(k.fd, "3", 1, 0));
	peer_text(&k, 3);
	close(k.fd);
	retd("got", recv(d, b, 16, MSG_DONTWAIT), b);
}

CASE(libc, pidfd_getfd_of_ourselves, 0)
{
	duplicate_by_pidfd(false);
}

CASE(libc, pidfd_getfd_by_number, 0)
{
	duplicate_by_pidfd(true);
}

CASE(libc, pidfd_getfd_of_the_parent, 0)
{
	struct conn k;
	char b[16];
	pid_t pid;

	conf_pair(&k);
	p_send(&k, "abcdef");
	wait_avail(k.fd, 6);
	nap(250); /* not for the child, as what a server looks at and forks is */
	pid = fork();
	if (pid == 0) {
		int d = pidfd_getfd(pidfd_open(getppid(), 0), k.fd, 0);

		close(k.fd);
		retd("child", recv(d, b, 3, MSG_WAITALL), b);
		ret("child", send(d, "child", 5, 0));
		_exit(0);
	}
	reap("status", pid);
	peer_text(&k, 5);
	retd("parent", recv(k.fd, b, 3, MSG_WAITALL), b);
}

/* ---- functions that are found past the names that are interposed ---- */

CASE(libc, dlsym_in_libc, 0)
{
	struct conn k;
	char b[16];
	void *h = dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD), *p;
	ssize_t (*its_recv)(int, void *, size_t, int);

	if (!h)
		bail("dlopen");
	p = dlsym(h, "recv");
	memcpy(&its_recv, &p, sizeof(p));
	conf_pair(&k);
	p_send(&k, "abc");
	wait_avail(k.fd, 3);
	retd("recv", its_recv(k.fd, b, 16, MSG_DONTWAIT), b);
}

static void recv_by(void *p)
{
	struct conn k;
	char b[16];
	ssize_t (*its_recv)(int, void *, size_t, int);

	if (!p)
		bail("no recv");
	memcpy(&its_recv, &p, sizeof(p));
	conf_pair(&k);
	p_send(&k, "abc");
	wait_avail(k.fd, 3);
	retd("recv", its_recv(k.fd, b, 16, MSG_DONTWAIT), b);
}

CASE(libc, dlvsym_in_libc, 0)
{
	recv_by(dlvsym(dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD), "recv", "GLIBC_2.2.5"));
}

/* it depends on who asks: behind this program stands what is preloaded */
CASE(libc, dlsym_next, 0)
{
	recv_by(dlsym(RTLD_NEXT, "recv"));
}

CASE(libc, dlsym_errors, NOSTATE)
{
	void *h = dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD);
	const char *text;

	yes("found", dlsym(h, "recv"));
	yes("no_error", !dlerror());
	yes("found", dlsym(h, "recv_nothing"));
	text = dlerror();
	out(" %s", text ? strrchr(text, ':') : "no-error");
	yes("found", dlsym(RTLD_NEXT, "recv_nothing"));
	text = dlerror();
	out(" %s", text ? strstr(text, "conformance") ? "of-program" : "of-other" : "no-error");
}

/* ---- processes ---- */

struct child {
	struct conn k;
};

static int child_reads(void *arg)
{
	struct child *c = arg;
	char b[16];

	if (!conf_two)
		close(c->k.peer);
	retd("child", recv(c->k.fd, b, 3, 0), b);
	ret("child", send(c->k.fd, "child", 5, MSG_NOSIGNAL));
	return 0;
}

static void unseen_child(bool by_clone)
{
	static char stack[65536] __attribute__((aligned(16)));
	struct child c;
	char b[16];
	pid_t pid;
	long r;

	conf_pair(&c.k);
	p_send(&c.k, "abcdef");
	wait_avail(c.k.fd, 6);
	if (by_clone) {
		pid = clone(child_reads, stack + sizeof(stack), SIGCHLD, &c);
	} else {
		pid = _Fork();
		if (!pid) {
			child_reads(&c);
			_exit(0);
		}
	}
	reap("status", pid);
	nap(20);
	r = p_recvnb(&c.k, b, 5);
	if (r < 0)
		peer_ret("peer", r);
	else
		retd("peer", r, b);
	retd("parent", recv(c.k.fd, b, 16, MSG_DONTWAIT), b);
	alive(&c.k);
}

CASE(libc, fork_without_handlers, 0)
{
	unseen_child(false);
}

CASE(libc, clone_function, 0)
{
	unseen_child(true);
}

static void becomes_a_daemon(int fd)
{
	if (sendn(fd, 150000, 4) != 150000 || daemon(1, 0))
		_exit(6);
	_exit(send(fd, "more", 4, 0) == 4 ? 0 : 5);
}

CASE(libc, daemon, ONE)
{
	pid_t pid;
	int fd = with_child(becomes_a_daemon, 60, &pid);
	char b[16];

	reap("status", pid);
	ret("recvn", recvn(fd, 150000, 4));
	retd("more", recv(fd, b, 4, MSG_WAITALL), b);
	ret("eof", recv(fd, b, 1, 0));
}

static void execs_by_number(int fd)
{
	char num[16];
	char *argv[] = { (char *)(uintptr_t)conf_self, (char *)(uintptr_t) "--exec-child", num,
			 NULL };

	snprintf(num, sizeof(num), "%d", fd);
	syscall(SYS_execve, conf_self, argv, environ);
}

CASE(libc, execve_by_number, ONE)
{
	pid_t pid;
	int fd = with_child(execs_by_number, 60, &pid);
	char b[16];

	for (int i = 0; i < 2; i++) {
		ret("send", send(fd, "12345", 5, MSG_NOSIGNAL));
		retd("recv", recv(fd, b, 9, MSG_WAITALL), b);
	}
	ret("eof", recv(fd, b, 1, 0));
	reap("status", pid);
}

/* ---- the end of a process whose connection has left the fast path, and whose peer reads nothing yet ---- */

static long *owed;

static void owes(int fd)
{
	nonblock(fd, true);
	*owed = fill(fd);
	set_int(fd, SOL_SOCKET, SO_SNDBUF, 65536); /* TCP takes little at a time now */
	fcntl(fd, F_SETOWN, getpid());
}

static void owing_exits(int fd)
{
	owes(fd);
	exit(0);
}

static void owing_quick_exits(int fd)
{
	owes(fd);
	quick_exit(0);
}

static void owing_daemon(int fd)
{
	owes(fd);
	_exit(daemon(1, 1) ? 5 : 0);
}

static void owing_aborts(int fd)
{
	owes(fd);
	abort();
}

/* `ms`: when it writes. At once, the way onto the fast path is given up in the middle. */
static void all_arrives(void (*how)(int fd), int ms)
{
	pid_t pid;
	long n = 0, r;
	int fd;

	owed = mmap(NULL, sizeof(*owed), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	fd = with_child(how, ms, &pid);
	reap("status", pid);
	for (;;) {
		char b[65536];

		r = recv(fd, b, sizeof(b), 0);
		if (r <= 0)
			break;
		if (!pattern_ok(b, (size_t)r, (uint64_t)n, 7))
			bail("another byte");
		n += r;
	}
	yes("all_or_told", r < 0 || n == *owed);
	if (how != owing_aborts)
		ret("end", r);
}

CASE(libc, owing_exit, ONE)
{
	all_arrives(owing_exits, 60);
}

CASE(libc, owing_quick_exit, ONE)
{
	all_arrives(owing_quick_exits, 60);
}

CASE(libc, owing_daemon, ONE)
{
	all_arrives(owing_daemon, 60);
}

CASE(libc, owing_abort, ONE)
{
	all_arrives(owing_aborts, 60);
}

CASE(libc, owing_exit_at_once, ONE)
{
	all_arrives(owing_exits, 0);
}

CASE(libc, owing_quick_exit_at_once, ONE)
{
	all_arrives(owing_quick_exits, 0);
}

CASE(libc, owing_daemon_at_once, ONE)
{
	all_arrives(owing_daemon, 0);
}

CASE(libc, owing_abort_at_once, ONE)
{
	all_arrives(owing_aborts, 0);
}

/* ---- the end of main ---- */

static int other_thread(void *arg)
{
	pthread_t *main_thread = arg;

	nap(50);
	if (main_thread)
		pthread_cancel(*main_thread);
	nap(50);
	return 0;
}

static void main_ends_by_thrd_exit(int fd)
{
	thrd_t t;

	send(fd, "bye", 3, 0);
	thrd_create(&t, other_thread, NULL);
	thrd_exit(0);
}

static void main_is_cancelled(int fd)
{
	static pthread_t self;
	thrd_t t;
	char b[1];

	self = pthread_self();
	send(fd, "bye", 3, 0);
	thrd_create(&t, other_thread, &self);
	recv(fd, b, 1, 0);
}

static void without_main(void (*how)(int fd))
{
	pid_t pid;
	int fd = with_child(how, 60, &pid), w = -1;
	char b[16];

	retd("recv", recv(fd, b, 3, MSG_WAITALL), b);
	for (int i = 0; i < 200 && waitpid(pid, &w, WNOHANG) == 0; i++)
		nap(10);
	if (w == -1) {
		out(" still there");
		kill(pid, SIGKILL);
	} else {
		status("status", w);
	}
	ret("eof", recv(fd, b, 1, 0));
}

static int connects_late(void *arg)
{
	struct sockaddr_storage *ss = arg;
	int fd = socket(ss->ss_family, SOCK_STREAM, 0);
	char b[1];

	nap(50);
	if (connect(fd, (struct sockaddr *)ss, sizeof(*ss)) == 0 && send(fd, "bye", 3, 0) == 3)
		recv(fd, b, 1, 0); /* it is in use, and stays open */
	return 0;
}

static struct sockaddr_storage late_address;

static void main_ends_before(int fd)
{
	thrd_t t;

	close(fd);
	nap(1500); /* what rsock may have started for it is over */
	thrd_create(&t, connects_late, &late_address);
	thrd_exit(0);
}

/* the connection is made when main is no more */
CASE(libc, main_ends_first, ONE)
{
	socklen_t l;
	int ls = conf_listen(conf_family, 4, &late_address, &l), fd, w = -1;
	char b[16];
	pid_t pid;

	fd = with_child(main_ends_before, 60, &pid);
	ret("eof", recv(fd, b, 1, 0));
	fd = accept(ls, NULL, NULL);
	retd("recv", recv(fd, b, 3, MSG_WAITALL), b);
	nap(100);
	ret("send", send(fd, "x", 1, 0));
	for (int i = 0; i < 150 && waitpid(pid, &w, WNOHANG) == 0; i++)
		nap(10);
	if (w == -1) {
		out(" still there");
		kill(pid, SIGKILL);
	} else {
		status("status", w);
	}
}

static void says_more(void *arg)
{
	nap(100);
	send(*(int *)arg, "bye", 3, 0);
}

static void main_cleans_up(int fd)
{
	pthread_cleanup_push(says_more, &fd);
	pthread_exit(NULL);
	pthread_cleanup_pop(0);
}

CASE(libc, main_cleans_up, ONE)
{
	without_main(main_cleans_up);
}

CASE(libc, thrd_exit_of_main, ONE)
{
	without_main(main_ends_by_thrd_exit);
}

CASE(libc, cancel_of_main, ONE)
{
	without_main(main_is_cancelled);
}

/* ---- threads with little stack, handlers that do not come back ---- */

static int big_file;

static void *uses_all(void *arg)
{
	struct conn *k = arg;
	struct pollfd p = { k->fd, POLLOUT, 0 };
	struct epoll_event ev = { .events = EPOLLOUT };
	int ep = epoll_create1(EPOLL_CLOEXEC);
	fd_set w;
	char b[16];

	FD_ZERO(&w);
	FD_SET(k->fd, &w);
	ret("poll", poll(&p, 1, 0));
	ret("select", select(k->fd + 1, NULL, &w, NULL, &(struct timeval){ 0 }));
	ret("add", epoll_ctl(ep, EPOLL_CTL_ADD, k->fd, &ev));
	ret("epoll", epoll_wait(ep, &ev, 1, 100));
	ret("send", send(k->fd, "abc", 3, 0));
	retd("recv", recv(k->fd, b, 3, 0), b);
	ret("sendfile", sendfile(k->fd, big_file, NULL, 100000));
	close(ep);
	return NULL;
}

CASE(libc, small_stack, 0)
{
	struct conn k;
	pthread_attr_t at;
	pthread_t t;

	conf_pair(&k);
	big_file = temp_file(100000, 5);
	p_send(&k, "abc");
	pthread_attr_init(&at);
	ret("size", pthread_attr_setstacksize(&at, 32768));
	if (pthread_create(&t, &at, uses_all, &k))
		bail("pthread_create");
	pthread_join(t, NULL);
	peer_text(&k, 3);
	yes("peer", p_recvn(&k, 100000, 5) == 100000);
	alive(&k);
}

static sigjmp_buf out_of_it;

static void jump(int sig)
{
	(void)sig;
	siglongjmp(out_of_it, 1);
}

static void jumps_out_of(int what)
{
	struct conn k;
	volatile int times = 0;
	struct sigaction sa = { .sa_handler = jump, .sa_flags = SA_RESTART };
	struct epoll_event ev = { .events = EPOLLIN };
	int ep = epoll_create1(EPOLL_CLOEXEC);
	struct pollfd p = { .events = POLLIN };
	char b[16];

	conf_pair(&k);
	p.fd = k.fd;
	epoll_ctl(ep, EPOLL_CTL_ADD, k.fd, &ev);
	sigaction(SIGALRM, &sa, NULL);
	if (what == 3)
		fill(k.fd); /* with seed 7 */
	for (int i = 0; i < 5; i++) {
		if (sigsetjmp(out_of_it, 1)) {
			times++;
			continue;
		}
		alarm_ms(20, 0);
		switch (what) {
		case 0:
			recv(k.fd, b, 16, 0);
			break;
		case 1:
			poll(&p, 1, -1);
			break;
		case 2:
			epoll_wait(ep, &ev, 1, -1);
			break;
		case 3:
			for (;;)
				send(k.fd, "x", 1, 0);
		}
		out(" back");
	}
	out(" times=%d", times);
	if (what == 3) {
		ret("close", close(k.fd));
		yes("some", p_recvall(&k, 7) != 0);
		return;
	}
	alive(&k);
	p_send(&k, "abc");
	ret("poll", poll(&p, 1, 1000));
	ret("epoll", epoll_wait(ep, &ev, 1, 1000));
	retd("recv", recv(k.fd, b, 16, 0), b);
	ret("close", close(k.fd));
	peer_text(&k, 1);
}

CASE(libc, longjmp_out_of_recv, 0)
{
	jumps_out_of(0);
}

CASE(libc, longjmp_out_of_poll, 0)
{
	jumps_out_of(1);
}

CASE(libc, longjmp_out_of_epoll, 0)
{
	jumps_out_of(2);
}

CASE(libc, longjmp_out_of_send, 0)
{
	jumps_out_of(3);
}
