/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/rdma.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "conn_mgr/claim.h"
#include "conn_mgr/control.h"
#include "conn_mgr/link.h"
#include "conn_mgr/rendezvous.h"
#include "rsock/config.h"
#include "rsock/lock.h"
#include "rsock/log.h"
#include "rsock/sys.h"

#define LIBRARY "librsock-rdma.so"
#define DEVICE "/dev/infiniband/rdma_cm"
#define LOOK_AGAIN_MS 5000
#define PLAIN_ENTRIES 64u
#define PLAIN_MIN_MS 500
#define PLAIN_MAX_MS 60000

/* Private data of the request: who asks. What for is said in messages (docs/protocol.md). */
struct hello {
	uint32_t magic; /* little-endian, as all of it */
	uint16_t version;
	uint16_t reserved;
	uint8_t process[16];
} __attribute__((packed));

#define HELLO_MAGIC 0x44524b52u /* "RKRD" */

static enum { UNKNOWN, LOADED, UNUSABLE } state;
static const struct rs_rdma_ops *ops;
static struct rs_source cm_source;
static uint64_t look_at; /* ms: when to look for a device */
static bool likely;

/* ---- hosts where nobody answers ---- */

struct plain {
	uint8_t ip[16];
	uint16_t port;
	uint8_t step;
	uint64_t until; /* ms */
};

static struct plain plain[PLAIN_ENTRIES];
static struct rs_lock plain_lock;

static struct plain *entry(const uint8_t ip[16], uint16_t port)
{
	uint32_t h = port;

	for (size_t i = 0; i < 16; i++)
		h = (h ^ ip[i]) * 16777619u;
	return &plain[(h ^ h >> 15) % PLAIN_ENTRIES];
}

bool rs_rdma_known_plain(const uint8_t ip[16], uint16_t port)
{
	struct plain *p = entry(ip, port);
	bool known;

	rs_lock(&plain_lock);
	known = p->until && p->port == port && memcmp(p->ip, ip, 16) == 0 && rs_now_ms() < p->until;
	rs_unlock(&plain_lock);
	return known;
}

static void remember_plain(const uint8_t ip[16], uint16_t port)
{
	struct plain *p = entry(ip, port);
	uint64_t now = rs_now_ms(), ms;

	rs_lock(&plain_lock);
	if (p->port != port || memcmp(p->ip, ip, 16) != 0 || now > p->until + PLAIN_MAX_MS)
		*p = (struct plain){ .port = port };
	else if (p->step < 16)
		p->step++;
	memcpy(p->ip, ip, 16);
	ms = (uint64_t)PLAIN_MIN_MS << p->step;
	p->until = now + (ms < PLAIN_MAX_MS ? ms : PLAIN_MAX_MS);
	rs_unlock(&plain_lock);
}

/* ---- the library ---- */

bool rs_rdma_likely(void)
{
	uint64_t now;

	if (__atomic_load_n(&state, __ATOMIC_RELAXED) != UNKNOWN)
		return state == LOADED;
	now = rs_now_ms();
	if (now >= __atomic_load_n(&look_at, __ATOMIC_RELAXED)) {
		__atomic_store_n(&likely,
				 rs_sys3(SYS_faccessat, AT_FDCWD, DEVICE, R_OK | W_OK) == 0,
				 __ATOMIC_RELAXED);
		__atomic_store_n(&look_at, now + LOOK_AGAIN_MS, __ATOMIC_RELAXED);
	}
	return __atomic_load_n(&likely, __ATOMIC_RELAXED);
}

static void cm_event(struct rs_source *s, uint32_t events);

/* Beside the library that this code is in, else where the dynamic linker looks. */
static void *load_library(void)
{
	char path[4096];
	Dl_info info;
	const char *slash;
	void *h = NULL;

	if (dladdr(&state, &info) && info.dli_fname) {
		slash = strrchr(info.dli_fname, '/');
		if (slash &&
		    snprintf(path, sizeof(path), "%.*s/" LIBRARY, (int)(slash - info.dli_fname),
			     info.dli_fname) < (int)sizeof(path))
			h = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	}
	return h ? h : dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
}

static int hide(int fd)
{
	return rs_fd_private(fd) ? fd : rs_fd_hide(fd);
}

void rs_rdma_exit(void)
{
	if (state == LOADED)
		rs_control_exit();
}

/* 0 or -errno. */
static int open_library(void)
{
	const struct rs_rdma_host host = { hide, rs_fd_close };
	void *h = load_library();
	int fd, r;

	if (!h) {
		rs_log(RS_LOG_INFO, "no RDMA: %s", dlerror());
		return -ENODEV;
	}
	ops = dlsym(h, "rs_rdma_ops");
	if (!ops || ops->abi != RS_RDMA_ABI) {
		rs_log(RS_LOG_INFO, "no RDMA: %s is of another version", LIBRARY);
		return -ENODEV;
	}
	r = ops->open(&host, &fd);
	if (r == 0) {
		cm_source.event = cm_event;
		r = rs_control_watch(fd, EPOLLIN, &cm_source);
	}
	if (r != 0)
		rs_log(RS_LOG_INFO, "no RDMA: %s", r == -ENODEV ? "no device" : "cannot open");
	return r;
}

/* 0 or -errno. Takes a while, in which other threads still think that there may be a device. */
static int load(void)
{
	int r;

	if (state == LOADED)
		return 0;
	if (state == UNUSABLE || !rs_rdma_likely())
		return -ENODEV;
	r = open_library();
	/* Runs before the destructors of the libraries that were just loaded. */
	if (r == 0)
		atexit(rs_rdma_exit);
	__atomic_store_n(&state, r == 0 ? LOADED : UNUSABLE, __ATOMIC_RELEASE);
	return r;
}

/* ---- rendezvous ---- */

void *rs_rdma_listen(uint16_t port)
{
	void *l = NULL;
	int r = load();

	if (r == 0)
		r = ops->listen(port, &l);
	if (r == 0)
		rs_log(RS_LOG_INFO, "port %u: answering on RDMA", port);
	else if (r != -ENODEV)
		rs_log(RS_LOG_INFO, "port %u: cannot listen on RDMA (error %d)", port, -r);
	return l;
}

void rs_rdma_unlisten(void *listener)
{
	ops->unlisten(listener);
}

static socklen_t socket_address(uint8_t family, const uint8_t ip[16], uint16_t port,
				struct sockaddr_storage *sa)
{
	memset(sa, 0, sizeof(*sa));
	if (family == 4) {
		struct sockaddr_in *in = (struct sockaddr_in *)sa;

		in->sin_family = AF_INET;
		in->sin_port = htons(port);
		memcpy(&in->sin_addr, ip, 4);
		return sizeof(*in);
	}
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)sa;

	in6->sin6_family = AF_INET6;
	in6->sin6_port = htons(port);
	memcpy(&in6->sin6_addr, ip, 16);
	return sizeof(*in6);
}

static bool leads_to(const struct rs_link *l, const struct rs_tuple *t)
{
	return l->shm.remote && l->initiator && l->to.server_port == t->server_port &&
	       l->to.family == t->family && memcmp(l->to.server_ip, t->server_ip, 16) == 0;
}

struct rs_link *rs_rdma_link(const struct rs_tuple *t, int *err)
{
	struct hello hello = { .magic = HELLO_MAGIC, .version = RS_WIRE_VERSION };
	struct sockaddr_storage from, to;
	struct rs_link *l;
	struct rs_qp *qp;
	int e;

	for (l = rs_links; l; l = l->next)
		if (!l->dead && leads_to(l, t))
			return l;
	*err = -ECONNREFUSED;
	if (rs_rdma_known_plain(t->server_ip, t->server_port))
		return NULL;
	*err = load();
	if (*err != 0)
		return NULL;
	memcpy(hello.process, rs_process_id(), sizeof(hello.process));
	/* From the TCP connection's own address: the route, and what the peer checks, are the same. */
	socket_address(t->family, t->client_ip, 0, &from);
	socket_address(t->family, t->server_ip, t->server_port, &to);
	qp = ops->connect((struct sockaddr *)&from, (struct sockaddr *)&to, &hello, sizeof(hello),
			  &e);
	if (!qp) {
		*err = e == ENODEV || e == EADDRNOTAVAIL ? -ENODEV : -e;
		return NULL;
	}
	l = rs_link_new_remote(ops, qp, t);
	if (!l) {
		ops->drop(qp);
		*err = -ENOMEM;
		return NULL;
	}
	ops->set_user(qp, l);
	return l;
}

void rs_rdma_refused(const struct rs_link *l)
{
	remember_plain(l->to.server_ip, l->to.server_port);
}

static void requested(struct rs_rdma_event *ev)
{
	const struct hello *h = (const struct hello *)ev->hello;
	struct rs_link *l;

	if (ev->hello_len < sizeof(*h) || h->magic != HELLO_MAGIC ||
	    h->version != RS_WIRE_VERSION || ops->accept(ev->qp) != 0) {
		ops->drop(ev->qp);
		return;
	}
	l = rs_link_new_remote(ops, ev->qp, NULL);
	if (!l) {
		ops->drop(ev->qp);
		return;
	}
	ops->set_user(ev->qp, l);
}

static void cm_event(struct rs_source *s, uint32_t events)
{
	struct rs_rdma_event ev;
	struct rs_link *l;

	(void)s;
	(void)events;
	while (ops->next_event(&ev)) {
		if (ev.what == RS_RDMA_REQUEST) {
			requested(&ev);
			continue;
		}
		if (ev.what == RS_RDMA_NOTHING)
			continue;
		l = ops->user(ev.qp);
		if (!l || l->dead)
			continue;
		if (ev.what == RS_RDMA_UP)
			rs_link_remote_up(l);
		else
			rs_link_failed(l, ev.error);
	}
}

void rs_rdma_forget(void)
{
	if (state == LOADED) {
		ops->forget();
		state = UNUSABLE;
	}
	look_at = 0;
	plain_lock.word = 0;
}
