/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/rendezvous.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "conn_mgr/control.h"
#include "conn_mgr/link.h"
#include "conn_mgr/rdma.h"
#include "rsock/config.h"
#include "rsock/lock.h"
#include "rsock/log.h"
#include "rsock/sys.h"

#define PORTS 64
#define INDEXES ((uint32_t)RS_RENDEZVOUS_INDEXES)
#define TAKEOVER_MS 200
#define RDMA_TAKEOVER_MS 50
#define RDMA_TAKEOVER_STEPS 7u /* until 6 s after the last use */
#define LINGERING_MAX 16u
#define ASIDES_MAX 32u
#define ACCEPT_MS 20
#define PLAIN_MIN_MS 50
#define PLAIN_MAX_MS 5000
#define PLAIN_PORTS 256

struct listener {
	struct rs_source source;
	uint16_t port;
	uint32_t users;
	uint64_t close_at; /* ms: no listener any more, but what it accepted may be claimed still */
	int fd; /* -1: another process of the tree holds the name */
	uint32_t index;
	bool inherited;
	bool accepted; /* something was: claims may come late */
	bool used; /* something that was accepted is */
	struct rs_directory *directory;
	void *rdma; /* set by the control thread: what listens on the RDMA port; NULL: nothing */
	uint16_t rdma_port; /* of `rdma`: not yet this one's when the place was another's before */
	uint32_t rdma_steps; /* attempts that failed since something was used last */
	uint64_t rdma_tried, rdma_at; /* ms: when it was tried last; not before */
};

static bool in_use(const struct listener *l)
{
	return l->users || l->close_at;
}

static bool on_rdma(const struct listener *l)
{
	return l->rdma && l->rdma_port == l->port;
}

static struct rs_lock lock;
static struct listener listeners[PORTS];
static uint32_t used_ports; /* those from here on were never used */
static struct rs_source own_source;
static int own_fd = -1;
static char own_name[RS_NAME_LEN];
static uint8_t process_id[16];
static bool have_process_id;
static uint64_t next_takeover;
static uint32_t lingering; /* names whose listener is closed */
static uint64_t accept_at; /* ms: somebody may wait to be accepted; control thread only */

const uint8_t *rs_process_id(void)
{
	if (!__atomic_load_n(&have_process_id, __ATOMIC_ACQUIRE)) {
		rs_sys3(SYS_getrandom, process_id, sizeof(process_id), 0);
		__atomic_store_n(&have_process_id, true, __ATOMIC_RELEASE);
	}
	return process_id;
}

const char *rs_process_name(void)
{
	return own_name;
}

void rs_rendezvous_name(uint16_t port, uint32_t index, char name[RS_NAME_LEN])
{
	snprintf(name, RS_NAME_LEN, "rsock.%u.%u", port, index);
}

static socklen_t address(const char *name, struct sockaddr_un *un)
{
	memset(un, 0, sizeof(*un));
	un->sun_family = AF_UNIX;
	memcpy(un->sun_path + 1, name, strlen(name));
	return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name));
}

int rs_rendezvous_connect(const char *name)
{
	struct sockaddr_un un;
	socklen_t len = address(name, &un);
	long fd = rs_sys3(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), r;

	if (fd < 0)
		return (int)fd;
	r = rs_sys3(SYS_connect, fd, &un, len);
	if (r != 0) {
		rs_sys1(SYS_close, fd);
		return (int)r;
	}
	return rs_fd_hide((int)fd);
}

static int bind_name(const char *name)
{
	const int on = 1;
	struct sockaddr_un un;
	socklen_t len = address(name, &un);
	long fd = rs_sys3(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), r;

	if (fd < 0)
		return (int)fd;
	/* Who says HELLO is known by the kernel's word; it may have done so before we accept. */
	rs_sys5(SYS_setsockopt, fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on));
	r = rs_sys3(SYS_bind, fd, &un, len);
	if (r == 0)
		r = rs_sys2(SYS_listen, fd, 1024);
	if (r != 0) {
		rs_sys1(SYS_close, fd);
		return (int)r;
	}
	return rs_fd_hide((int)fd);
}

static void set_fd(struct listener *l, int fd)
{
	__atomic_store_n(&l->fd, fd, __ATOMIC_RELAXED);
}

/*
 * Rendezvous sockets are watched edge-triggered: who connects while no descriptor is left for it, or
 * while closes hang that others have arranged, waits without keeping the control thread busy.
 */
static void accept_links(const int *fd)
{
	for (int budget = 64; budget; budget--) {
		long s = -EMFILE;

		/* Under the lock it is not closed and its number not another socket's. */
		rs_lock(&lock);
		if (*fd < 0)
			s = -EBADF;
		else if (rs_fd_asides() < ASIDES_MAX)
			s = rs_sys4(SYS_accept4, *fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		rs_unlock(&lock);
		if (s == -EAGAIN || s == -EBADF)
			return;
		if (s < 0) {
			accept_at = rs_now_ms() + ACCEPT_MS;
			rs_control_due(accept_at);
			return;
		}
		s = rs_fd_hide((int)s);
		if (!rs_link_new((int)s, NULL))
			rs_fd_close_aside((int)s);
	}
	accept_at = rs_now_ms();
	rs_control_due(accept_at);
}

static void listener_event(struct rs_source *s, uint32_t events)
{
	(void)events;
	accept_links(&((struct listener *)(void *)s)->fd);
}

static void own_event(struct rs_source *s, uint32_t events)
{
	(void)s;
	(void)events;
	accept_links(&own_fd);
}

/* Not under the lock: a HELLO that is there already leads everywhere. */
static void accept_again(uint64_t now)
{
	if (!accept_at)
		return;
	if (now < accept_at) {
		rs_control_due(accept_at); /* something else was due earlier */
		return;
	}
	accept_at = 0;
	for (size_t i = 0; i < PORTS; i++)
		if (__atomic_load_n(&listeners[i].port, __ATOMIC_RELAXED))
			accept_links(&listeners[i].fd);
	accept_links(&own_fd);
}

static void bind_own(void)
{
	uint32_t random;

	if (own_fd >= 0)
		return;
	rs_sys3(SYS_getrandom, &random, sizeof(random), 0);
	snprintf(own_name, sizeof(own_name), "rsock.p.%ld.%08x", rs_sys0(SYS_getpid), random);
	own_fd = bind_name(own_name);
	own_source.event = own_event;
	if (own_fd < 0 || rs_control_watch(own_fd, EPOLLIN | EPOLLET, &own_source) != 0)
		own_name[0] = '\0';
}

/* Binds the listener's name: the first free one, or, once it has an index, that one. */
static int bind_listener(struct listener *l)
{
	char name[RS_NAME_LEN];
	int fd = -EADDRINUSE;

	if (l->inherited) {
		rs_rendezvous_name(l->port, l->index, name);
		fd = bind_name(name);
	} else {
		for (uint32_t i = 0; i < INDEXES && fd == -EADDRINUSE; i++) {
			l->index = i;
			rs_rendezvous_name(l->port, i, name);
			fd = bind_name(name);
		}
	}
	if (fd < 0)
		return fd;
	__atomic_store_n(&l->source.event, listener_event, __ATOMIC_RELAXED);
	set_fd(l, fd);
	rs_log(RS_LOG_INFO, "port %u: answering at @%s", l->port, name);
	return rs_control_watch(fd, EPOLLIN | EPOLLET, &l->source);
}

static struct listener *find(uint16_t port)
{
	for (size_t i = 0; i < PORTS; i++)
		if (in_use(&listeners[i]) && listeners[i].port == port)
			return &listeners[i];
	return NULL;
}

/* A place for the port; NULL: none is left. */
static struct listener *vacant(uint16_t port)
{
	for (size_t i = 0; i < PORTS; i++) {
		struct listener *l = &listeners[i];

		if (in_use(l))
			continue;
		/* Not `source`: an event of the one before may be on its way to it. */
		l->port = port;
		l->index = 0;
		l->inherited = false;
		l->directory = NULL;
		l->accepted = false;
		l->used = false;
		l->rdma_steps = 0;
		l->rdma_tried = 0;
		l->rdma_at = 0;
		set_fd(l, -1);
		if (used_ports <= i)
			__atomic_store_n(&used_ports, (uint32_t)i + 1, __ATOMIC_RELEASE);
		return l;
	}
	return NULL;
}

int rs_rendezvous_open(uint16_t port)
{
	struct listener *l;
	int r = 0;

	rs_lock(&lock);
	l = find(port);
	if (!l)
		l = vacant(port);
	if (!l) {
		r = -ENOSPC;
		goto out;
	}
	l->users++;
	if (l->close_at)
		lingering -= lingering > 0;
	l->close_at = 0;
	if (!l->directory)
		l->directory = rs_directory_new();
	bind_own();
	if (l->fd < 0) {
		r = bind_listener(l);
		if (r == -EADDRINUSE)
			r = 0; /* somebody of our tree answers, and redirects to us */
	}
out:
	rs_unlock(&lock);
	return r;
}

bool rs_rendezvous_ensure(uint16_t port)
{
	if (__atomic_load_n(&own_fd, __ATOMIC_RELAXED) >= 0)
		return true;
	rs_lock(&lock);
	bind_own();
	for (size_t i = 0; i < PORTS; i++)
		if (listeners[i].users && listeners[i].port == port && listeners[i].fd < 0)
			bind_listener(&listeners[i]);
	rs_unlock(&lock);
	return own_fd >= 0;
}

static void close_name(struct listener *l)
{
	if (l->fd >= 0) {
		rs_control_unwatch(l->fd);
		rs_fd_close(l->fd);
	}
	/* The directory stays mapped: accepted connections may still be in it. */
	set_fd(l, -1);
	l->close_at = 0;
}

void rs_rendezvous_close(uint16_t port)
{
	rs_lock(&lock);
	for (size_t i = 0; i < PORTS; i++) {
		struct listener *l = &listeners[i];

		if (!l->users || l->port != port || --l->users)
			continue;
		if (!l->accepted || lingering >= LINGERING_MAX) {
			close_name(l);
			continue;
		}
		lingering++;
		l->close_at = rs_now_ms() + rs_config.window_ms;
		rs_control_due(l->close_at);
	}
	rs_unlock(&lock);
}

struct rs_directory *rs_rendezvous_accepted(uint16_t port)
{
	struct rs_directory *d = NULL;
	struct listener *l;

	rs_lock(&lock);
	l = find(port);
	if (l) {
		l->accepted = true;
		d = l->directory;
	}
	rs_unlock(&lock);
	return d;
}

struct rs_directory *rs_rendezvous_used(uint16_t port, struct rs_directory *d, uint64_t ms,
					bool *holder)
{
	bool likely = rs_rdma_likely();
	struct listener *l;

	rs_lock(&lock);
	bind_own();
	l = find(port);
	if (!l && d) {
		/* Accepted by the process that forked us, whose listener is not ours. */
		l = vacant(port);
		if (l)
			l->directory = d;
	}
	*holder = l && l->fd >= 0 && (on_rdma(l) || !likely);
	if (!l)
		goto out;
	if (likely && !on_rdma(l) && (!l->used || l->rdma_steps)) {
		/* Who held the RDMA port may be gone. */
		l->rdma_steps = 0;
		l->rdma_at = l->rdma_tried + RDMA_TAKEOVER_MS;
		rs_control_due(l->rdma_at);
	}
	l->used = true;
	if (!l->users) {
		uint64_t at = rs_now_ms() + ms;

		lingering += !l->close_at;
		l->close_at = at > l->close_at ? at : l->close_at;
		rs_control_due(l->close_at);
	}
	if (l->directory)
		d = l->directory;
out:
	rs_unlock(&lock);
	return d;
}

bool rs_rendezvous_locked(void)
{
	return rs_lock_mine(&lock);
}

struct rs_directory *rs_rendezvous_directory(uint16_t port)
{
	struct rs_directory *d = NULL;

	rs_lock(&lock);
	for (size_t i = 0; i < PORTS; i++)
		if (listeners[i].port == port && (in_use(&listeners[i]) || !d))
			d = listeners[i].directory;
	rs_unlock(&lock);
	return d;
}

int rs_rendezvous_index(uint16_t port)
{
	int index = -1;

	rs_lock(&lock);
	for (size_t i = 0; i < PORTS; i++)
		if (in_use(&listeners[i]) && listeners[i].port == port && listeners[i].fd >= 0)
			index = (int)listeners[i].index;
	rs_unlock(&lock);
	return index;
}

/*
 * RDMA is opened by a process that uses what was accepted, not by the one that listens, or only accepts
 * and forks: it would keep its children from using it. Of several one gets the port; the others try
 * again when they use another, and for a while after, for whoever had it may be about to end. Not under the lock: the first time
 * libraries are loaded, and accept() takes it.
 */
static void tend_rdma(struct listener *l, uint64_t now)
{
	uint16_t port = 0;
	void *mine, *old = NULL;

	rs_lock(&lock);
	if (l->rdma && (!in_use(l) || !on_rdma(l))) {
		old = l->rdma;
		l->rdma = NULL;
	}
	if (in_use(l) && l->used && !l->rdma && l->rdma_steps < RDMA_TAKEOVER_STEPS &&
	    rs_rdma_likely()) {
		if (now >= l->rdma_at)
			port = l->port;
		else
			rs_control_due(l->rdma_at);
	}
	rs_unlock(&lock);
	if (old)
		rs_rdma_unlisten(old);
	if (!port)
		return;
	mine = rs_rdma_listen(port);
	rs_lock(&lock);
	if (mine && in_use(l) && l->port == port) {
		l->rdma = mine;
		l->rdma_port = port;
		mine = NULL;
	} else if (!mine) {
		l->rdma_tried = now;
		l->rdma_at = now + ((uint64_t)RDMA_TAKEOVER_MS << l->rdma_steps++);
		rs_control_due(l->rdma_at);
	}
	rs_unlock(&lock);
	if (mine)
		rs_rdma_unlisten(mine);
}

void rs_rendezvous_rdma_again(void)
{
	rs_lock(&lock);
	for (size_t i = 0; i < PORTS; i++)
		listeners[i].rdma_tried = listeners[i].rdma != NULL;
	rs_unlock(&lock);
	rs_control_due(0);
}

void rs_rendezvous_timer(uint64_t now)
{
	uint32_t n = __atomic_load_n(&used_ports, __ATOMIC_ACQUIRE);

	accept_again(now);
	for (size_t i = 0; i < n; i++)
		tend_rdma(&listeners[i], now);
	rs_lock(&lock);
	for (size_t i = 0; i < n; i++) {
		struct listener *l = &listeners[i];

		if (l->users || !l->close_at)
			continue;
		if (now < l->close_at) {
			rs_control_due(l->close_at);
			continue;
		}
		close_name(l);
		lingering -= lingering > 0;
	}
	if (now < next_takeover)
		goto out;
	for (size_t i = 0; i < n; i++) {
		struct listener *l = &listeners[i];

		if (!l->users || l->fd >= 0)
			continue;
		bind_listener(l);
		next_takeover = now + TAKEOVER_MS;
		if (l->fd < 0)
			rs_control_due(next_takeover);
	}
out:
	rs_unlock(&lock);
}

bool rs_rendezvous_idle(void)
{
	bool idle = true;

	rs_lock(&lock);
	for (size_t i = 0; i < used_ports; i++)
		idle &= !in_use(&listeners[i]);
	rs_unlock(&lock);
	return idle;
}

void rs_rendezvous_forget(void)
{
	for (size_t i = 0; i < PORTS; i++) {
		struct listener *l = &listeners[i];

		if (l->fd >= 0 && in_use(l))
			rs_fd_close(l->fd);
		set_fd(l, -1);
		l->rdma = NULL;
		l->accepted = false;
		l->used = false;
		l->rdma_steps = 0;
		l->rdma_tried = 0;
		l->rdma_at = 0;
		l->inherited = l->users != 0;
		l->close_at = 0;
	}
	if (own_fd >= 0)
		rs_fd_close(own_fd);
	own_fd = -1;
	own_name[0] = '\0';
	have_process_id = false;
	next_takeover = 0;
	accept_at = 0;
	lingering = 0;
	lock.word = 0;
}

/* ---- ports where nobody answers ---- */

/* One word per bucket: port << 48 | back-off step << 42 | expiry in ms (42 bits: a century). */
static uint64_t plain_ports[PLAIN_PORTS];
#define EXPIRY_MASK (((uint64_t)1 << 42) - 1)

bool rs_rendezvous_known_plain(uint16_t port)
{
	uint64_t w = __atomic_load_n(&plain_ports[port % PLAIN_PORTS], __ATOMIC_RELAXED);

	return w >> 48 == port && (w & EXPIRY_MASK) > rs_now_ms();
}

void rs_rendezvous_refused(uint16_t port, uint64_t now)
{
	uint64_t *word = &plain_ports[port % PLAIN_PORTS];
	uint64_t w = __atomic_load_n(word, __ATOMIC_RELAXED), step = 0, ms;

	if (w >> 48 == port && (w & EXPIRY_MASK) > now)
		return;
	if (w >> 48 == port && now - (w & EXPIRY_MASK) < 60000)
		step = (w >> 42 & 63) + 1;
	if (step > 16)
		step = 16;
	ms = (uint64_t)PLAIN_MIN_MS << step;
	if (ms > PLAIN_MAX_MS)
		ms = PLAIN_MAX_MS;
	__atomic_store_n(word, (uint64_t)port << 48 | step << 42 | ((now + ms) & EXPIRY_MASK),
			 __ATOMIC_RELAXED);
}

void rs_rendezvous_answered(uint16_t port)
{
	__atomic_store_n(&plain_ports[port % PLAIN_PORTS], 0, __ATOMIC_RELAXED);
}
