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

#include "conn_mgr/control.h"
#include "conn_mgr/link.h"
#include "conn_mgr/proof.h"
#include "conn_mgr/real.h"
#include "conn_mgr/rendezvous.h"
#include "conn_mgr/tuple.h"
#include "rsock/config.h"
#include "rsock/greet.h"
#include "rsock/log.h"
#include "rsock/sys.h"

#define LIBRARY "librsock-rdma.so"
#define DEVICE "/dev/infiniband/rdma_cm"
#define LOOK_AGAIN_MS 5000
#define PLAIN_ENTRIES 64u
#define PLAIN_MIN_MS 500
#define PLAIN_MAX_MS 60000
#define PENDING_MAX 64u /* peers that have connected and not said HELLO */

static enum { UNKNOWN, LOADED, UNUSABLE } state;
static const struct rs_rdma_ops *ops;
static struct rs_source cm_source;
static uint64_t look_at; /* ms: when to look for a device */
static bool likely;
static void *own; /* a listener for redirects */
static uint16_t own_port;
static uint8_t secret[RS_KEY_LEN]; /* makes our identities, never said */
static bool have_secret;
static bool denied; /* there is one, but not for us */
static bool usable; /* the library sees a device */

/* ---- hosts where nobody answers ---- */

struct plain {
	uint8_t family, ip[16];
	uint16_t port;
	uint8_t step;
	int why; /* errno */
	uint64_t until; /* ms */
};

static struct plain plain[PLAIN_ENTRIES];

static struct plain *entry(const uint8_t ip[16], uint16_t port)
{
	uint32_t h = port;

	for (size_t i = 0; i < 16; i++)
		h = (h ^ ip[i]) * 16777619u;
	return &plain[(h ^ h >> 15) % PLAIN_ENTRIES];
}

/* Why not to try (errno); 0: nothing is known against it. */
static int known_plain(const uint8_t ip[16], uint16_t port)
{
	struct plain *p = entry(ip, port);

	if (p->until && p->port == port && memcmp(p->ip, ip, 16) == 0 && rs_now_ms() < p->until)
		return p->why;
	return 0;
}

static void forget_plain(const uint8_t ip[16], uint16_t port)
{
	struct plain *p = entry(ip, port);

	if (p->port == port && memcmp(p->ip, ip, 16) == 0)
		p->until = 0;
}

/* Whatever else the family of the peer's address: a prefix of one family says nothing of the other. */
static bool covers(const struct rs_rdma_prefix *x, uint8_t family, const uint8_t ip[16])
{
	if (!x->bits)
		return true;
	if (x->family != family)
		return false;
	for (unsigned int i = 0; i < x->bits && i < 128; i++)
		if ((x->ip[i / 8] ^ ip[i / 8]) >> (7 - i % 8) & 1)
			return false;
	return true;
}

/* They may be reached in another way now. */
static void forget_all_plain(const struct rs_rdma_prefix *x)
{
	for (size_t i = 0; i < PLAIN_ENTRIES; i++)
		if (covers(x, plain[i].family, plain[i].ip))
			plain[i].until = 0;
}

static void remember_plain(uint8_t family, const uint8_t ip[16], uint16_t port, int why)
{
	struct plain *p = entry(ip, port);
	uint64_t now = rs_now_ms(), ms;

	if (!p->until || p->port != port || memcmp(p->ip, ip, 16) != 0 ||
	    now > p->until + PLAIN_MAX_MS)
		*p = (struct plain){ .port = port };
	else if (p->step < 16)
		p->step++;
	memcpy(p->ip, ip, 16);
	p->family = family;
	p->why = why;
	ms = (uint64_t)PLAIN_MIN_MS << p->step;
	p->until = now + (ms < PLAIN_MAX_MS ? ms : PLAIN_MAX_MS);
}

/* ---- the library ---- */

static bool look_again(uint64_t now)
{
	uint64_t at = __atomic_load_n(&look_at, __ATOMIC_RELAXED);

	return now >= at && __atomic_compare_exchange_n(&look_at, &at, now + LOOK_AGAIN_MS, false,
							__ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

bool rs_rdma_likely(void)
{
	long r;

	if (rs_config.key == RS_KEY_BAD)
		return false;
	switch (__atomic_load_n(&state, __ATOMIC_RELAXED)) {
	case LOADED:
		/* Once in a while a connection has the control thread look, should the kernel tell nothing. */
		return __atomic_load_n(&usable, __ATOMIC_RELAXED) || look_again(rs_now_ms());
	case UNUSABLE:
		return false;
	case UNKNOWN:
		break;
	}
	if (look_again(rs_now_ms())) {
		r = rs_sys3(SYS_faccessat, AT_FDCWD, DEVICE, R_OK | W_OK);
		if (r == -EACCES && !__atomic_exchange_n(&denied, true, __ATOMIC_RELAXED))
			rs_log(RS_LOG_INFO,
			       "no RDMA: no permission for " DEVICE
			       "; this user needs read and write permission for it and for "
			       "/dev/infiniband/uverbs*");
		__atomic_store_n(&denied, r == -EACCES, __ATOMIC_RELAXED);
		__atomic_store_n(&likely, r == 0, __ATOMIC_RELAXED);
	}
	return __atomic_load_n(&likely, __ATOMIC_RELAXED);
}

bool rs_rdma_seen(void)
{
	int now = (int)__atomic_load_n(&state, __ATOMIC_RELAXED);

	return rs_config.key != RS_KEY_BAD && now != UNUSABLE &&
	       __atomic_load_n(now == LOADED ? &usable : &likely, __ATOMIC_RELAXED);
}

enum rs_reason rs_rdma_why_not(void)
{
	if (rs_config.key == RS_KEY_BAD)
		return RS_REASON_KEY;
	return __atomic_load_n(&denied, __ATOMIC_RELAXED) ? RS_REASON_NO_PERMISSION
							  : RS_REASON_NO_DEVICE;
}

enum rs_reason rs_rdma_reason(int error)
{
	switch (error) {
	case ECONNREFUSED:
	case EPROTO:
		return RS_REASON_PEER_PLAIN;
	case EPROTONOSUPPORT:
		return RS_REASON_VERSION;
	case EKEYREJECTED:
		return RS_REASON_KEY;
	case ENODEV:
		return RS_REASON_NO_DEVICE;
	case ENOMEM:
		return RS_REASON_MEMLOCK;
	case ENOBUFS:
		return RS_REASON_NO_MEMORY;
	case ENOSPC:
		return RS_REASON_RDMA_LIMIT;
	case EMFILE:
		return RS_REASON_NO_FDS;
	case EACCES:
		return RS_REASON_NO_PERMISSION;
	default:
		return RS_REASON_NO_ROUTE;
	}
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

static void log_line(const char *text)
{
	rs_log(RS_LOG_INFO, "%s", text);
}

static bool *own_calls(void)
{
	return &rs_own_calls;
}

static void look_at_devices(void)
{
	bool now = ops->usable();

	if (now != usable)
		rs_log(RS_LOG_INFO, "RDMA: %s", now ? "there is a device" : "no device");
	__atomic_store_n(&usable, now, __ATOMIC_RELAXED);
}

/* 0 or -errno. */
static int open_library(void)
{
	const struct rs_rdma_host host = { hide,      rs_fd_close,   log_line,
					   own_calls, rs_hooks.read, rs_hooks.write };
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
		rs_log(RS_LOG_INFO, "no RDMA: error %d", -r);
	else
		look_at_devices();
	return r;
}

/* 0 or -errno. Takes a while, in which other threads still think that there may be a device. */
static int load(void)
{
	int r;

	if (state == LOADED) {
		if (!usable)
			look_at_devices();
		return 0;
	}
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
		r = ops->listen(&port, &l);
	if (r == 0)
		rs_log(RS_LOG_INFO, "port %u: answering on RDMA", port);
	else if (r != -ENODEV)
		rs_log(r == -EADDRINUSE || r == -EADDRNOTAVAIL ? RS_LOG_DEBUG : RS_LOG_INFO,
		       "port %u: cannot listen on RDMA (error %d)", port, -r);
	return l;
}

void rs_rdma_unlisten(void *listener)
{
	ops->unlisten(listener);
}

uint16_t rs_rdma_own_port(void)
{
	uint16_t port = 0;

	if (!own && rs_rdma_likely() && load() == 0 && ops->listen(&port, &own) == 0) {
		own_port = port;
		rs_log(RS_LOG_INFO, "answering at RDMA port %u", port);
	}
	return own_port;
}

static const uint8_t *key(void)
{
	return rs_config.key == RS_KEY_GOOD ? rs_config.key_bytes : NULL;
}

/* What every greeting of ours says. */
static struct rs_greet greeting(void)
{
	struct rs_greet g = { .ring_shift = (uint8_t)__builtin_ctzll(RS_REMOTE_RING),
			      .stream_shift = (uint8_t)__builtin_ctz(RS_REMOTE_STREAMS) };

	rs_sys3(SYS_getrandom, g.nonce, sizeof(g.nonce), 0);
	return g;
}

static bool same_geometry(const struct rs_greet *g)
{
	return g->ring_shift == __builtin_ctzll(RS_REMOTE_RING) &&
	       g->stream_shift == __builtin_ctz(RS_REMOTE_STREAMS);
}

/* ---- connecting ---- */

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

static bool leads_to(const struct rs_link *l, const struct rs_tuple *t, uint16_t port)
{
	if (!l->shm.remote || !l->initiator || l->ends.family != t->family ||
	    memcmp(l->ends.server_ip, t->server_ip, 16) != 0 ||
	    memcmp(l->ends.client_ip, t->client_ip, 16) != 0)
		return false;
	for (uint32_t i = 0; i < RS_LINK_ALIASES && i < l->ports; i++)
		if (l->port[i] == port)
			return true;
	return false;
}

struct rs_link *rs_rdma_link(const struct rs_tuple *t, uint16_t port, int *err)
{
	struct rs_greet g = greeting();
	uint8_t bytes[RS_GREET_REQUEST_LEN];
	struct sockaddr_storage from, to;
	bool tcp_port = port == 0;
	struct rs_link *l;
	struct rs_qp *qp;
	int e;

	if (tcp_port)
		port = t->server_port;
	for (l = rs_links; l; l = l->next)
		if (!l->dead && leads_to(l, t, port))
			return l;
	*err = -known_plain(t->server_ip, port);
	if (*err != 0)
		return NULL;
	*err = load();
	if (*err != 0)
		return NULL;
	/* From the TCP connection's own address: the route, and what the peer checks, are the same. */
	socket_address(t->family, t->client_ip, 0, &from);
	socket_address(t->family, t->server_ip, port, &to);
	memcpy(g.process, rs_process_id(), sizeof(g.process));
	g.tuple = *t;
	rs_greet_request(&g, key(), bytes);
	qp = ops->connect((struct sockaddr *)&from, (struct sockaddr *)&to, tcp_port, bytes,
			  sizeof(bytes), &e);
	if (!qp) {
		*err = -e;
		return NULL;
	}
	l = rs_link_new_remote(ops, qp, t, port);
	if (!l) {
		ops->drop(qp);
		*err = -ENOBUFS;
		return NULL;
	}
	memcpy(l->identity, rs_process_id(), sizeof(l->identity));
	memcpy(l->greeting, bytes, sizeof(l->greeting));
	ops->set_user(qp, l);
	return l;
}

void rs_rdma_refused(const struct rs_link *l, int error)
{
	remember_plain(l->ends.family, l->ends.server_ip, l->port[0], error);
}

void rs_rdma_moved(struct rs_link *l)
{
	/* Until the port leads here again. */
	memset(l->port, 0, sizeof(l->port));
}

/* The queue pair is connected. Nothing was sent on it, and nothing will be, before this is right. */
static void connected(struct rs_link *l, const struct rs_rdma_event *ev)
{
	struct rs_greet g;
	int r;

	if (!l->initiator)
		return;
	r = rs_greet_reply_decode(ev->data, ev->data_len, key(), l->greeting, &g);
	if (r == 0 && !same_geometry(&g))
		r = -EPROTONOSUPPORT;
	if (r != 0) {
		rs_link_failed(l, -r);
		return;
	}
	forget_plain(l->ends.server_ip, l->port[0]);
	memcpy(l->expect, g.process, sizeof(g.process));
	rs_greet_session(key(), l->greeting, ev->data, l->proof);
	rs_link_remote_up(l);
}

static int why_rejected(const struct rs_rdma_event *ev)
{
	if (ev->error != ECONNREFUSED && ev->error != ECONNABORTED)
		return ev->error;
	switch (rs_greet_reject_decode(ev->data, ev->data_len)) {
	case RS_GREET_NOT_YET:
		return EAGAIN;
	case RS_GREET_VERSION:
		return EPROTONOSUPPORT;
	case RS_GREET_KEY:
		return EKEYREJECTED;
	case RS_GREET_NO_ROOM:
		return ENOBUFS;
	case RS_GREET_MEMLOCK:
		return ENOMEM;
	default:
		/* Somebody listens, and is none of ours. */
		return ev->error == ECONNABORTED ? EPROTO : ECONNREFUSED;
	}
}

/* ---- accepting ---- */

/*
 * Who we are for this client: the same each time, for links to us by different ports to be known as
 * one process; another one for others, so that no peer of ours can pretend to be us.
 */
static void make_identity(const struct rs_greet *g, uint8_t identity[16])
{
	uint8_t buf[RS_GREET_ID_LEN + 1 + 32];

	if (!have_secret)
		rs_sys3(SYS_getrandom, secret, sizeof(secret), 0);
	have_secret = true;
	memcpy(buf, g->process, RS_GREET_ID_LEN);
	buf[RS_GREET_ID_LEN] = g->tuple.family;
	memcpy(buf + RS_GREET_ID_LEN + 1, g->tuple.client_ip, 16);
	memcpy(buf + RS_GREET_ID_LEN + 17, g->tuple.server_ip, 16);
	rs_hmac(secret, buf, sizeof(buf), identity, 16);
}

static uint32_t pending(void)
{
	uint32_t n = 0;

	for (struct rs_link *l = rs_links; l; l = l->next)
		n += !l->dead && !l->up && !l->initiator && l->shm.remote;
	return n;
}

/* 0, or enum rs_greet_no; -1: nobody of ours. */
static int check_request(const struct rs_rdma_event *ev, struct rs_greet *g)
{
	uint16_t from, to;
	uint8_t family;
	int r;

	memset(g, 0, sizeof(*g));
	if (!rs_address(&ev->peer, &g->tuple.family, g->tuple.client_ip, &from) ||
	    !rs_address(&ev->local, &family, g->tuple.server_ip, &to) || family != g->tuple.family)
		return -1;
	r = rs_greet_request_decode(ev->data, ev->data_len, key(), g);
	if (r == -EPROTONOSUPPORT)
		return RS_GREET_VERSION;
	if (r == -EKEYREJECTED)
		return RS_GREET_KEY;
	if (r != 0)
		return -1;
	if (!same_geometry(g))
		return RS_GREET_VERSION;
	if (pending() >= PENDING_MAX)
		return RS_GREET_NO_ROOM;
	if ((to != g->tuple.server_port && to != rs_rdma_iwarp_port(g->tuple.server_port) &&
	     to != own_port) ||
	    !rs_rendezvous_directory(g->tuple.server_port) ||
	    rs_proof_inode(&g->tuple, true) == -ENOENT)
		return RS_GREET_NOT_YET;
	return 0;
}

static void reject(struct rs_qp *qp, int code)
{
	uint8_t bytes[RS_GREET_REJECT_LEN];

	rs_log(RS_LOG_DEBUG, "RDMA request rejected (%d)", code);
	if (code < 0) {
		ops->reject(qp, NULL, 0);
		return;
	}
	rs_greet_reject((enum rs_greet_no)code, bytes);
	ops->reject(qp, bytes, sizeof(bytes));
}

static void requested(struct rs_rdma_event *ev)
{
	struct rs_greet g, mine = greeting();
	uint8_t reply[RS_GREET_REPLY_LEN], identity[16];
	int no = check_request(ev, &g), r;
	struct rs_link *l;

	if (no != 0) {
		reject(ev->qp, no);
		return;
	}
	make_identity(&g, identity);
	memcpy(mine.process, identity, sizeof(mine.process));
	rs_greet_reply(&mine, key(), ev->data, reply);
	r = ops->accept(ev->qp, reply, sizeof(reply));
	if (r != 0) {
		rs_links_unlinked(rs_rdma_reason(-r));
		/* Locked memory beyond the limit is ENOMEM too, and far more likely than none left. */
		reject(ev->qp, r == -ENOMEM ? RS_GREET_MEMLOCK : RS_GREET_NO_ROOM);
		return;
	}
	rs_log(RS_LOG_INFO, "a peer connects on %s", ops->path(ev->qp));
	l = rs_link_new_remote(ops, ev->qp, &g.tuple, 0);
	if (!l) {
		ops->drop(ev->qp);
		return;
	}
	memcpy(l->identity, identity, sizeof(l->identity));
	memcpy(l->expect, g.process, sizeof(g.process));
	rs_greet_session(key(), ev->data, reply, l->proof);
	ops->set_user(ev->qp, l);
}

static void changed(const struct rs_rdma_event *ev)
{
	forget_all_plain(&ev->prefix);
	if (!ev->devices)
		return;
	look_at_devices();
	rs_rendezvous_rdma_again();
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
		if (ev.what == RS_RDMA_CHANGED)
			changed(&ev);
		if (ev.what != RS_RDMA_UP && ev.what != RS_RDMA_DOWN)
			continue;
		l = ops->user(ev.qp);
		if (!l || l->dead)
			continue;
		if (ev.what == RS_RDMA_UP)
			connected(l, &ev);
		else
			rs_link_failed(l, l->up ? ev.error : why_rejected(&ev));
	}
}

void rs_rdma_forget(void)
{
	if (state == LOADED) {
		ops->forget();
		state = UNUSABLE;
	}
	look_at = 0;
	own = NULL;
	own_port = 0;
	have_secret = false;
	usable = false;
}
