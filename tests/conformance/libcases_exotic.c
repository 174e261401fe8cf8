/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* libcases_exotic.c - what only kernel TCP can do, on a connection that has been in use already */
#include "tests/conformance/conf.h"

#include <dirent.h>
#include <dlfcn.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <sys/prctl.h>

extern const char conf_file_exotic;
const char conf_file_exotic = 1;

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

static struct {
	int fd;
	char *sq, *cq;
	struct io_uring_sqe *sqe;
	struct io_uring_params p;
} ring;

static bool ring_open(void)
{
	size_t sq_len, cq_len;

	ring.fd = (int)syscall(SYS_io_uring_setup, 8, &ring.p);
	if (ring.fd < 0)
		return false;
	sq_len = ring.p.sq_off.array + ring.p.sq_entries * sizeof(uint32_t);
	cq_len = ring.p.cq_off.cqes + ring.p.cq_entries * sizeof(struct io_uring_cqe);
	ring.sq = mmap(NULL, sq_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd,
		       IORING_OFF_SQ_RING);
	ring.cq = mmap(NULL, cq_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd,
		       IORING_OFF_CQ_RING);
	ring.sqe =
		mmap(NULL, ring.p.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQES);
	return ring.sq != MAP_FAILED && ring.cq != MAP_FAILED && ring.sqe != MAP_FAILED;
}

/* one operation, waited for */
static long ring_do(unsigned char op, int fd, void *buf, unsigned int len)
{
	uint32_t *tail = (uint32_t *)(void *)(ring.sq + ring.p.sq_off.tail);
	uint32_t *array = (uint32_t *)(void *)(ring.sq + ring.p.sq_off.array);
	uint32_t *head = (uint32_t *)(void *)(ring.cq + ring.p.cq_off.head);
	struct io_uring_cqe *cqe = (struct io_uring_cqe *)(void *)(ring.cq + ring.p.cq_off.cqes);
	uint32_t i = *tail & (ring.p.sq_entries - 1);
	long r;

	memset(&ring.sqe[i], 0, sizeof(ring.sqe[i]));
	ring.sqe[i].opcode = op;
	ring.sqe[i].fd = fd;
	ring.sqe[i].addr = (uint64_t)(uintptr_t)buf;
	ring.sqe[i].len = len;
	array[i] = i;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring.fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return -errno;
	r = cqe[*head & (ring.p.cq_entries - 1)].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return r;
}

CASE(exotic, io_uring, 0)
{
	struct conn k;
	char b[16], t[] = "uring";

	conf_pair(&k);
	p_send(&k, "abcdef");
	wait_avail(k.fd, 6);
	retd("recv", recv(k.fd, b, 3, 0), b);
	if (!ring_open()) {
		out(" io_uring_setup=%s", err_name(errno));
		return;
	}
	memset(b, 0, sizeof(b));
	peer_ret("uring_recv", ring_do(IORING_OP_RECV, k.fd, b, 16));
	out(" %s", b);
	peer_ret("uring_send", ring_do(IORING_OP_SEND, k.fd, t, 5));
	peer_text(&k, 5);
	p_later(&k, 50, OP_SEND, 0, 0, "late");
	memset(b, 0, sizeof(b));
	peer_ret("uring_read", ring_do(IORING_OP_READ, k.fd, b, 16));
	out(" %s", b);
	p_done();
	alive(&k);
}

CASE(exotic, io_uring_opened_first, 0)
{
	struct conn k;
	char b[16], t[] = "uring";

	if (!ring_open()) {
		out(" io_uring_setup=%s", err_name(errno));
		return;
	}
	conf_pair_raw(&k, conf_family, conf_server);
	nap(30);
	peer_ret("uring_send", ring_do(IORING_OP_SEND, k.fd, t, 5));
	peer_text(&k, 5);
	p_later(&k, 50, OP_SEND, 0, 0, "late");
	memset(b, 0, sizeof(b));
	peer_ret("uring_read", ring_do(IORING_OP_READ, k.fd, b, 16));
	out(" %s", b);
	p_done();
	alive(&k);
}

/* the ring is older than its process */
CASE(exotic, io_uring_inherited, 0)
{
	struct conn k;
	char b[16], t[] = "uring";
	int st;
	pid_t pid;

	if (!ring_open()) {
		out(" io_uring_setup=%s", err_name(errno));
		return;
	}
	pid = fork();
	if (pid == 0) {
		conf_pair_raw(&k, conf_family, conf_server);
		for (int i = 0; i < 50; i++) { /* time, and reasons, for the fast path */
			nap(4);
			p_send(&k, "x");
			recv(k.fd, b, 1, 0);
			send(k.fd, "y", 1, 0);
			p_recv(&k, b, 1);
		}
		peer_ret("uring_send", ring_do(IORING_OP_SEND, k.fd, t, 5));
		peer_text(&k, 5);
		p_send(&k, "back");
		memset(b, 0, sizeof(b));
		peer_ret("uring_read", ring_do(IORING_OP_READ, k.fd, b, 16));
		out(" %s", b);
		alive(&k);
		_exit(0);
	}
	waitpid(pid, &st, 0);
	status("status", st);
}

/* past every hook, as liburing does it */
static long inline_call(long n, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = 0;
	register long r9 __asm__("r9") = 0;
	long r;

	__asm__ volatile("syscall"
			 : "=a"(r)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return r;
}

static void by_liburing(const char *name)
{
	void *lib = dlopen("liburing.so.2", RTLD_NOW | RTLD_GLOBAL);
	union {
		void *p;
		int (*init)(unsigned int n, void *r, unsigned int flags);
		int (*params)(unsigned int n, void *r, struct io_uring_params *p);
		int (*setup)(unsigned int n, struct io_uring_params *p);
		int (*mmap)(int fd, struct io_uring_params *p, void *r);
	} f = { dlsym(RTLD_DEFAULT, name) };
	struct io_uring_params p = { 0 };
	uint64_t r[128] = { 0 }; /* struct io_uring, and more */
	struct conn k;
	char b[16] = "";
	long v;

	if (!lib) {
		out(" no-library");
		return;
	}
	conf_pair(&k);
	p_send(&k, "abcdef");
	wait_avail(k.fd, 6);
	retd("recv", recv(k.fd, b, 3, 0), b);
	if (!strcmp(name, "io_uring_queue_init"))
		v = f.init(8, r, 0);
	else if (!strcmp(name, "io_uring_queue_init_params"))
		v = f.params(8, r, &p);
	else if (!strcmp(name, "io_uring_setup"))
		v = f.setup(8, &p) > 0;
	else
		v = f.mmap((int)inline_call(SYS_io_uring_setup, 8, (long)&p, 0, 0), &p, r);
	peer_ret("library", v);
	memset(b, 0, sizeof(b));
	peer_ret("inline_recv", inline_call(SYS_recvfrom, k.fd, (long)b, 3, MSG_WAITALL));
	out(" %s", b);
	alive(&k);
}

CASE(exotic, liburing_init, 0)
{
	by_liburing("io_uring_queue_init");
}

CASE(exotic, liburing_init_params, 0)
{
	by_liburing("io_uring_queue_init_params");
}

CASE(exotic, liburing_setup, 0)
{
	by_liburing("io_uring_setup");
}

CASE(exotic, liburing_mmap, 0)
{
	by_liburing("io_uring_queue_mmap");
}

/* libc's syscall() function, which some programs use for what libc lacks */
CASE(exotic, syscall_function, 0)
{
	struct conn k;
	char b[16];

	conf_pair(&k);
	ret("write", syscall(SYS_write, k.fd, "abc", 3));
	peer_text(&k, 3);
	p_send(&k, "def");
	wait_ev(k.fd, POLLIN);
	memset(b, 0, sizeof(b));
	retd("read", syscall(SYS_read, k.fd, b, 16), b);
	ret("sendto", syscall(SYS_sendto, k.fd, "ghi", 3, 0, NULL, 0));
	peer_text(&k, 3);
	alive(&k);
}

CASE(exotic, syscall_after_end, 0)
{
	struct conn k;
	char b[16];
	struct iovec iov = { b, 2 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	long d;

	conf_pair(&k);
	p_send(&k, "abcdefghij");
	p_close(&k);
	wait_ev(k.fd, POLLRDHUP);
	nap(50);
	retd("read", syscall(SYS_read, k.fd, b, 2), b);
	retd("readv", syscall(SYS_readv, k.fd, &iov, 1), b);
	retd("recvfrom", syscall(SYS_recvfrom, k.fd, b, 2, 0, NULL, NULL), b);
	retd("recvmsg", syscall(SYS_recvmsg, k.fd, &m, 0), b);
	d = syscall(SYS_dup, k.fd);
	close(k.fd);
	retd("dup", syscall(SYS_read, (int)d, b, 16), b);
	ret("end", syscall(SYS_read, (int)d, b, 16));
}

CASE(exotic, unshare_user, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("unshare", unshare(CLONE_NEWUSER));
	alive(&k);
}

CASE(exotic, unshare_net, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("unshare", unshare(CLONE_NEWNET));
	alive(&k);
}

/* every thread of the process must follow a change of the user id, or none but `me` */
static void uids(unsigned int want, pid_t me)
{
	DIR *d = opendir("/proc/self/task");
	struct dirent *e;
	bool same = true;

	while (d && (e = readdir(d))) {
		char path[300], line[200];
		FILE *f;

		if (e->d_name[0] == '.' || atoi(e->d_name) == me)
			continue;
		snprintf(path, sizeof(path), "/proc/self/task/%s/status", e->d_name);
		f = fopen(path, "r");
		while (f && fgets(line, sizeof(line), f)) {
			unsigned int r, ef, s, fs;

			if (sscanf(line, "Uid: %u %u %u %u", &r, &ef, &s, &fs) == 4)
				same = same && r == want && ef == want && s == want && fs == want;
		}
		if (f)
			fclose(f);
	}
	yes("all_threads", same);
	if (d)
		closedir(d);
}

CASE(exotic, setuid, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("setuid", setuid(65534));
	uids(65534, 0);
	alive(&k);
}

CASE(exotic, setresuid_raw, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("setresuid", syscall(SYS_setresuid, 65534, 65534, 65534));
	uids(65534, 0);
	alive(&k);
}

static void *becomes_another(void *arg)
{
	(void)arg;
	ret("setresuid", syscall(SYS_setresuid, 65534, 65534, 65534));
	uids(getuid() == 65534 ? 0 : 1, gettid());
	return NULL;
}

/* as file servers do it, for one request */
CASE(exotic, setresuid_raw_in_thread, 0)
{
	struct conn k;
	pthread_t t;

	conf_pair(&k);
	pthread_create(&t, NULL, becomes_another, NULL);
	pthread_join(t, NULL);
	alive(&k);
}

CASE(exotic, no_new_privs, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("prctl", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	ret("get", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	alive(&k);
}

CASE(exotic, chroot_and_chdir, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("chroot", chroot("/proc/self/fdinfo"));
	ret("chdir", chdir("/"));
	alive(&k);
}

CASE(exotic, ulp_tls, 0)
{
	struct conn k;
	int r;

	conf_pair(&k);
	r = setsockopt(k.fd, IPPROTO_TCP, TCP_ULP, "tls", 4);
	yes("set", !r || errno == ENOENT || errno == ENOPROTOOPT);
	alive(&k);
}

CASE(exotic, attach_filter, 0)
{
	struct conn k;
	struct sock_filter f = { BPF_RET | BPF_K, 0, 0, 0xffffffff };
	struct sock_fprog prog = { 1, &f };

	conf_pair(&k);
	ret("attach", setsockopt(k.fd, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof(prog)));
	alive(&k);
}

CASE(exotic, setown_and_setsig, 0)
{
	struct conn k;

	conf_pair(&k);
	ret("setown", fcntl(k.fd, F_SETOWN, getpid()));
	yes("getown", fcntl(k.fd, F_GETOWN) == getpid());
	ret("setsig", fcntl(k.fd, F_SETSIG, SIGRTMIN));
	ret("getsig", fcntl(k.fd, F_GETSIG));
	alive(&k);
}

CASE(exotic, fastopen, ONE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(conf_family, 4, &ss, &l), a;
	int c = socket(ss.ss_family, SOCK_STREAM, 0);
	char b[16];

	yes("option", set_int(ls, IPPROTO_TCP, TCP_FASTOPEN, 5) == 0);
	ret("sendto", sendto(c, "first", 5, MSG_FASTOPEN, (struct sockaddr *)&ss, l));
	a = accept(ls, NULL, NULL);
	retd("recv", recv(a, b, 5, MSG_WAITALL), b);
	for (int i = 0; i < 5; i++) {
		nap(3);
		send(a, "x", 1, 0);
		retd("r", recv(c, b, 8, 0), b);
		send(c, "y", 1, 0);
		retd("r", recv(a, b, 8, 0), b);
	}
}

CASE(exotic, fastopen_connect, ONE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(conf_family, 4, &ss, &l), a;
	int c = socket(ss.ss_family, SOCK_STREAM, 0);
	char b[16];

	ret("option", set_int(c, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1));
	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	ret("send", send(c, "first", 5, 0));
	a = accept(ls, NULL, NULL);
	retd("recv", recv(a, b, 5, MSG_WAITALL), b);
	send(a, "x", 1, 0);
	retd("r", recv(c, b, 8, 0), b);
}

CASE(exotic, defer_accept, ONE)
{
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = conf_listen(conf_family, 4, &ss, &l), a;
	int c = socket(ss.ss_family, SOCK_STREAM, 0);
	char b[16];

	ret("option", set_int(ls, IPPROTO_TCP, TCP_DEFER_ACCEPT, 3));
	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	poll_say("listener", ls, POLLIN, 40);
	ret("send", send(c, "first", 5, 0));
	poll_say("listener", ls, POLLIN, 1000);
	a = accept(ls, NULL, NULL);
	retd("recv", recv(a, b, 8, 0), b);
	send(a, "x", 1, 0);
	retd("recv", recv(c, b, 8, 0), b);
}

CASE(exotic, so_reuseaddr_rebind_after_close, ONE)
{
	/* a server restarts at once on its port, with an old connection still there */
	struct sockaddr_storage ss;
	socklen_t l;
	int ls = socket(AF_INET, SOCK_STREAM, 0), a, ls2;
	int c = socket(AF_INET, SOCK_STREAM, 0);
	char b[8];

	l = conf_addr(AF_INET, 0, &ss);
	set_int(ls, SOL_SOCKET, SO_REUSEADDR, 1);
	ret("bind", bind(ls, (struct sockaddr *)&ss, l));
	ret("listen", listen(ls, 4));
	getsockname(ls, (struct sockaddr *)&ss, &l);
	connect(c, (struct sockaddr *)&ss, l);
	a = accept(ls, NULL, NULL);
	send(a, "x", 1, 0);
	retd("recv", recv(c, b, 8, 0), b);
	close(ls);
	ls2 = socket(AF_INET, SOCK_STREAM, 0);
	ret("busy", bind(ls2, (struct sockaddr *)&ss, l));
	close(a);
	ret("eof", recv(c, b, 8, 0));
	close(c);
	set_int(ls2, SOL_SOCKET, SO_REUSEADDR, 1);
	ret("bind", bind(ls2, (struct sockaddr *)&ss, l));
	ret("listen", listen(ls2, 4));
	c = socket(AF_INET, SOCK_STREAM, 0);
	ret("connect", connect(c, (struct sockaddr *)&ss, l));
	a = accept(ls2, NULL, NULL);
	send(a, "y", 1, 0);
	retd("recv", recv(c, b, 8, 0), b);
}
