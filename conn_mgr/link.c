/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/link_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "conn_mgr/claim.h"
#include "conn_mgr/conn_edge.h"
#include "conn_mgr/rdma.h"
#include "conn_mgr/rendezvous.h"
#include "rsock/log.h"
#include "rsock/sys.h"

#define HELLO_MS 5000 /* a peer that says nothing that long is given up */
#define IDLE_MS 3000 /* a link without streams is closed by the end that opened it */
#define RECLAIM_MS 10000 /* memory of a dead link outlives every harvester */
#define PENDING_MAX 64u /* peers that have connected and not said HELLO: any local user can */
#define LINKS_MAX 4096u /* dead ones included, whose memory is still mapped */

struct rs_link *rs_links;
uint32_t rs_links_pending;
enum rs_reason rs_links_why = RS_REASON_PEER_PLAIN;
static struct rs_lock links_lock; /* additions to the list */
static uint32_t nlinks; /* in the list */

/* ---- the end of a link ---- */

/*
 * What a peer has left in a socket is closed with it, descriptors of any kind included. The socket is
 * shut down: nothing more comes. Every message is from somebody (SO_PASSCRED), the end of file is not.
 */
static void close_socket(int fd)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(struct ucred))];
	} ctl;
	struct msghdr mh = { .msg_control = ctl.buf, .msg_controllen = sizeof(ctl.buf) };

	if (rs_sys3(SYS_recvmsg, fd, &mh, MSG_DONTWAIT | MSG_PEEK) == 0 && !mh.msg_controllen &&
	    !(mh.msg_flags & MSG_CTRUNC))
		rs_fd_close(fd);
	else
		rs_fd_close_aside(fd);
}

#define INHERITED_MAX 16

static struct rs_link
	*inherited[INHERITED_MAX]; /* the links of ancestors, whose rings came with the fork */
static uint32_t ninherited;

static void reclaim(struct rs_link *l)
{
	uint32_t nmine = l->shm.nmine, npeer = l->shm.npeer;

	/* First: a child that is forked now must not unmap what will be at these addresses by then. */
	__atomic_store_n(&l->shm.nmine, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&l->shm.npeer, 0, __ATOMIC_SEQ_CST);
	for (uint32_t s = 0; s < nmine; s++) {
		if (l->shm.remote)
			rs_shm_private_free(l->shm.mine[s]);
		else
			rs_shm_unmap(l->shm.mine[s]);
	}
	for (uint32_t s = 0; s < npeer; s++)
		rs_shm_unmap(l->shm.peer[s]);
	for (uint32_t b = 0; b < RS_BELLS; b++)
		if (l->shm.bell_fd[b] >= 0)
			rs_fd_close(l->shm.bell_fd[b]);
	if (l->shm.remote) {
		rs_remote_free(l->shm.remote);
		l->shm.remote = NULL;
	}
	memset(l->shm.bell_fd, 0xff, sizeof(l->shm.bell_fd));
	l->died = 0;
}

void rs_link_kill(struct rs_link *l, uint64_t now)
{
	if (l->dead)
		return;
	rs_log(RS_LOG_INFO, "link to %s is gone", l->name[0] ? l->name : "a client process");
	if (l->sock >= 0)
		rs_control_unwatch(l->sock);
	if (!l->up && !l->initiator && !l->shm.remote)
		rs_links_pending--;
	rs_lock(&l->lock);
	__atomic_store_n(&l->dead, true, __ATOMIC_SEQ_CST);
	if (l->shm.remote) {
		rs_remote_close(l->shm.remote);
	} else {
		/* Duplicates may outlive it, here and in a child that is being forked. */
		rs_sys2(SYS_shutdown, l->sock, SHUT_RDWR);
		close_socket(l->sock);
		for (uint32_t s = 0; s < l->shm.nmine; s++)
			rs_fd_close(l->mine_fd[s]);
	}
	l->sock = -1;
	l->queued = 0;
	while (l->queue) {
		struct rs_queued *q = l->queue;

		l->queue = q->next;
		free(q);
	}
	__atomic_store_n(&l->died, now, __ATOMIC_RELAXED);
	for (uint32_t id = 0; id < l->slots; id++)
		rs_link_slot_release(l, id);
	rs_unlock(&l->lock);
	/* None is made for it from now on. */
	while (l->bells_sent)
		rs_link_untrigger(l, (uint32_t)__builtin_ctz(l->bells_sent));
	/* One that was claimed a moment ago may be attached already. */
	rs_control_take_added();
	for (struct rs_conn *c = rs_control_conns; c; c = c->next) {
		bool mine, bound;

		rs_lock(&c->lock);
		mine = c->link == l;
		bound = mine && c->bound;
		/* A process that died also says so on TCP, and then nothing needs to be resumed. */
		if (bound)
			c->link_dead_at = now + 100;
		if (bound) {
			rs_conn_take_control(c); /* which may say that it had ended its direction */
			rs_conn_check_gone(c);
		}
		rs_conn_unlock(c);
		if (bound) {
			rs_control_due(now + 100);
		} else if (mine) {
			rs_link_slot_leave(l, c->id, c);
			rs_claim_link_lost(c, now);
		}
	}
	/* No other thread has ever looked at it. */
	if (!l->up && !l->shm.remote)
		reclaim(l);
}

/* ---- names ---- */

/*
 * Over RDMA there is no kernel whose word counts. But the identity that the acceptor says is made for
 * this client and this pair of addresses (rdma.c): no third party has heard it.
 */
static struct rs_link *same_remote(struct rs_link *l)
{
	const struct rs_tuple *t = &l->ends;

	for (struct rs_link *o = rs_links; o && l->initiator; o = o->next)
		if (o != l && rs_link_alive(o) && o->shm.remote && o->initiator &&
		    o->ends.family == t->family &&
		    memcmp(o->ends.client_ip, t->client_ip, 16) == 0 &&
		    memcmp(o->ends.server_ip, t->server_ip, 16) == 0 &&
		    memcmp(o->process, l->process, sizeof(l->process)) == 0)
			return o;
	return l;
}

struct rs_link *rs_link_same_process(struct rs_link *l)
{
	if (l->shm.remote)
		return same_remote(l);
	/* A process may well talk to itself: that takes two ends, hence two links. */
	if (memcmp(l->process, rs_process_id(), sizeof(l->process)) == 0 || !l->initiator)
		return l;
	for (struct rs_link *o = rs_links; o; o = o->next)
		/* The identity is no secret among peers; who sent it, the kernel knows. */
		if (o != l && rs_link_alive(o) && l->peer_pid > 0 && o->peer_pid == l->peer_pid &&
		    memcmp(o->process, l->process, sizeof(l->process)) == 0)
			return o;
	return l;
}

void rs_link_alias(struct rs_link *l, const char *name)
{
	memcpy(l->alias[l->aliases++ % RS_LINK_ALIASES], name, RS_NAME_LEN);
}

bool rs_link_named(const struct rs_link *l, const char *name)
{
	if (l->initiator && strcmp(l->name, name) == 0)
		return true;
	for (uint32_t i = 0; i < RS_LINK_ALIASES && i < l->aliases; i++)
		if (strcmp(l->alias[i], name) == 0)
			return true;
	return false;
}

struct rs_link *rs_link_to(const char *name, int *err)
{
	struct rs_link *l;
	int sock;

	for (l = rs_links; l; l = l->next)
		if (!l->dead && rs_link_named(l, name))
			return l;
	sock = rs_rendezvous_connect(name);
	if (sock < 0) {
		*err = sock;
		return NULL;
	}
	l = rs_link_new(sock, name);
	if (!l) {
		rs_fd_close(sock);
		*err = -ENOMEM;
	}
	return l;
}

/* ---- new links ---- */

/* A link that was dead for so long that nobody looks at it any more serves again, in its place. */
static struct rs_link *reclaimed(void)
{
	struct rs_link *l = rs_links;

	while (l && (!l->dead || rs_link_died(l) || rs_link_used(l)))
		l = l->next;
	if (!l)
		return NULL;
	rs_lock(&l->lock);
	__atomic_store_n(&l->up, false, __ATOMIC_SEQ_CST);
	free(l->slot);
	l->slot = NULL;
	l->slots = 0;
	l->hint = 0;
	l->idle_since = 0;
	l->trusted = false;
	l->overflow = false;
	l->peer_full = false;
	l->peer_segments = 0;
	l->peer_pid = 0;
	l->aliases = 0;
	l->initiator = false;
	l->name[0] = '\0';
	l->ports = 0;
	l->rings_at = 0;
	l->dirty = false;
	l->sweep_at = 0;
	rs_unlock(&l->lock);
	return l;
}

static struct rs_link *new_link(void)
{
	struct rs_link *l = reclaimed();

	if (!l && nlinks < LINKS_MAX)
		l = calloc(1, sizeof(*l));
	if (!l)
		return NULL;
	l->born = rs_now_ms();
	l->queue_tail = &l->queue;
	memset(l->shm.bell_fd, 0xff, sizeof(l->shm.bell_fd));
	return l;
}

/* It came to nothing. */
static void unnew(struct rs_link *l)
{
	if (l->dead) /* an old one, whose place in the list it keeps */
		return;
	free(l->slot);
	free(l);
}

static void enlist(struct rs_link *l)
{
	bool old = l->dead;

	__atomic_store_n(&l->dead, false, __ATOMIC_SEQ_CST);
	if (old)
		return;
	rs_lock(&links_lock);
	nlinks++;
	l->next = rs_links;
	__atomic_store_n(&rs_links, l, __ATOMIC_RELEASE);
	rs_unlock(&links_lock);
}

/* Makes room for one more: an honest peer has said HELLO by the time that many others came. */
static void drop_oldest_pending(void)
{
	struct rs_link *oldest = NULL;

	if (rs_links_pending < PENDING_MAX)
		return;
	for (struct rs_link *l = rs_links; l; l = l->next)
		if (!l->dead && !l->up && !l->initiator && !l->shm.remote &&
		    (!oldest || l->born < oldest->born))
			oldest = l;
	if (oldest)
		rs_link_kill(oldest, rs_now_ms());
}

struct rs_link *rs_link_new(int sock, const char *name)
{
	const int on = 1;
	struct rs_link *l;

	if (!name)
		drop_oldest_pending();
	l = new_link();
	if (!l)
		return NULL;
	l->source.event = rs_link_event;
	l->sock = sock;
	if (name) {
		l->initiator = true;
		snprintf(l->name, sizeof(l->name), "%s", name);
	}
	if (rs_sys5(SYS_setsockopt, sock, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) != 0 ||
	    (name && (rs_link_add_segment(l) != 0 || rs_link_trigger(l, 0) < 0)) ||
	    rs_control_watch(sock, EPOLLIN, &l->source) != 0) {
		rs_link_untrigger(l, 0);
		if (l->shm.nmine)
			rs_link_drop_segment(l->shm.mine[0], l->mine_fd[0]);
		l->shm.nmine = 0;
		unnew(l);
		return NULL;
	}
	enlist(l);
	if (name) {
		rs_link_hello(l);
	} else {
		rs_links_pending++;
		rs_link_event(&l->source, EPOLLIN); /* most have said HELLO already */
	}
	return l;
}

/* ---- links over RDMA ---- */

static void remote_event(struct rs_source *s, uint32_t events)
{
	struct rs_link *l =
		(struct rs_link *)(void *)((char *)s - offsetof(struct rs_link, source));
	uint64_t due;

	(void)events;
	if (l->dead || !l->shm.remote)
		return;
	due = rs_remote_event(l->shm.remote);
	if (due)
		rs_control_due(due);
	rs_link_look(l);
}

/* By any thread. */
static void watch_channel(struct rs_remote *r, bool on)
{
	struct rs_link *l =
		(struct rs_link *)(void *)((char *)r->link - offsetof(struct rs_link, shm));

	rs_control_watch(r->ops->fd(r->qp), on ? EPOLLIN | EPOLLET : 0, &l->source);
	if (!on)
		rs_control_due(rs_now_ms() + RS_REMOTE_LEASE_MS);
}

struct rs_link *rs_link_new_remote(const struct rs_rdma_ops *ops, struct rs_qp *qp,
				   const struct rs_tuple *t, uint16_t port)
{
	struct rs_link *l = new_link();

	if (!l)
		return NULL;
	l->source.event = remote_event;
	l->sock = -1;
	l->shm.remote = rs_remote_new(ops, qp, &l->shm, watch_channel);
	l->ends = *t;
	if (port) {
		l->initiator = true;
		l->port[l->ports++] = port;
		snprintf(l->name, sizeof(l->name), "rdma port %u", port);
	}
	if (!l->shm.remote || rs_link_add_segment(l) != 0 ||
	    (!port && rs_control_watch(ops->fd(qp), EPOLLIN | EPOLLET, &l->source) != 0)) {
		if (l->shm.nmine)
			rs_link_drop_segment(l->shm.mine[0], -1);
		l->shm.nmine = 0;
		free(l->shm.remote);
		l->shm.remote = NULL;
		unnew(l);
		return NULL;
	}
	enlist(l);
	return l;
}

void rs_link_remote_up(struct rs_link *l)
{
	struct rs_remote *r = l->shm.remote;

	if (!l->initiator)
		return;
	if (rs_control_watch(r->ops->fd(r->qp), EPOLLIN | EPOLLET, &l->source) != 0) {
		rs_link_failed(l, ENOMEM);
		return;
	}
	rs_log(RS_LOG_INFO, "connected on %s", r->ops->path(r->qp));
	rs_link_hello(l);
	rs_remote_event(r);
	rs_link_look(l);
}

void rs_link_failed(struct rs_link *l, int error)
{
	if (!l->up && l->initiator) {
		/* A server opens its RDMA port when it first accepts: perhaps just now. */
		enum rs_claim_again again = error == ECONNREFUSED ? RS_CLAIM_AGAIN
					    : error == EAGAIN	  ? RS_CLAIM_WAITS
								  : RS_CLAIM_NEVER;
		enum rs_reason why = rs_rdma_reason(error);

		rs_log(RS_LOG_INFO, "%s: %s (error %d)", l->name, rs_reason_word(why), error);
		if (again == RS_CLAIM_NEVER ||
		    (again == RS_CLAIM_AGAIN && !rs_claim_tries_again(l)))
			rs_rdma_refused(l, error);
		rs_claim_link_refused(l, why, again);
	}
	rs_link_kill(l, rs_now_ms());
}

/* ---- all links ---- */

void rs_links_postpone(uint64_t ms)
{
	for (struct rs_link *l = rs_links; l; l = l->next)
		if (!l->up)
			l->born += ms;
}

void rs_links_timer(uint64_t now)
{
	for (struct rs_link *l = rs_links; l; l = l->next) {
		if (!l->dead && l->overflow)
			rs_link_kill(l, now);
		if (!l->dead && !l->up) {
			if (now >= l->born + HELLO_MS && l->shm.remote)
				rs_link_failed(l, ETIMEDOUT);
			else if (now >= l->born + HELLO_MS)
				rs_link_kill(l, now);
			else
				rs_control_due(l->born + HELLO_MS);
		}
		if (!l->dead && !l->shm.remote)
			rs_link_slots_timer(l, now);
		if (!l->dead && l->shm.remote) {
			uint64_t due = rs_remote_timer(l->shm.remote, now);

			if (due)
				rs_control_due(due);
			rs_link_rings_timer(l, now);
		}
		if (rs_link_used(l) || l->dead || !l->initiator) {
			l->idle_since = 0;
		} else if (!l->idle_since) {
			l->idle_since = now;
			rs_control_due(now + IDLE_MS);
		} else if (now < l->idle_since + IDLE_MS) {
			rs_control_due(l->idle_since + IDLE_MS);
		} else if (l->up && !l->queue) {
			rs_link_kill(l, now);
		}
		if (l->dead && !rs_link_used(l)) {
			uint64_t died = rs_link_died(l);

			if (died && l->shm.remote)
				rs_remote_empty(l->shm.remote);
			if (died && now >= died + RECLAIM_MS)
				reclaim(l);
			else if (died)
				rs_control_due(died + RECLAIM_MS);
		}
	}
}

bool rs_links_idle(void)
{
	for (struct rs_link *l = rs_links; l; l = l->next)
		if (!l->dead && rs_link_used(l))
			return false;
	return true;
}

bool rs_links_close(void)
{
	uint64_t now = rs_now_ms();
	bool all = true;

	for (struct rs_link *l = rs_links; l; l = l->next) {
		if (!l->dead)
			rs_link_kill(l, now);
		/* rs_links_timer() takes the memory away once nobody can be looking at it any more. */
		all &= !rs_link_died(l);
	}
	return all;
}

/* Those that rs_links_inherit() has seen, and that are there still. */
static void each_inherited(struct rs_link *l, void (*each)(struct rs_shm_head *head))
{
	for (uint32_t s = 0; s < l->inherited_mine && s < l->shm.nmine && !l->shm.remote; s++)
		each(l->shm.mine[s]);
	for (uint32_t s = 0; s < l->inherited_peer && s < l->shm.npeer; s++)
		each(l->shm.peer[s]);
}

void rs_links_inherit(bool remote)
{
	for (struct rs_link *l = rs_links; l; l = l->next) {
		l->inherited_mine = l->shm.nmine;
		l->inherited_peer = l->shm.npeer;
		each_inherited(l, rs_shm_inherit);
		if (l->shm.remote && remote)
			rs_remote_inherit(l->shm.remote);
	}
}

void rs_links_disinherit(void)
{
	for (struct rs_link *l = rs_links; l; l = l->next) {
		each_inherited(l, rs_shm_disinherit);
		l->inherited_mine = 0;
		l->inherited_peer = 0;
	}
}

void rs_links_unmap_inherited(void)
{
	while (ninherited)
		for (struct rs_link *l = inherited[--ninherited]; l; l = l->next)
			each_inherited(l, rs_shm_unmap);
}

void rs_links_unlinked(enum rs_reason why)
{
	rs_links_why = why;
}

enum rs_reason rs_links_why_none(void)
{
	return rs_links_why;
}

void rs_links_forget(bool rings)
{
	if (rings && ninherited < INHERITED_MAX)
		inherited[ninherited++] = rs_links;
	for (struct rs_link *l = rs_links; l; l = l->next) {
		if (l->sock >= 0)
			rs_fd_close(l->sock);
		if (l->shm.remote)
			rs_remote_forget(l->shm.remote);
		for (uint32_t s = 0; s < l->shm.nmine && !l->shm.remote && !l->dead; s++)
			rs_fd_close(l->mine_fd[s]);
		for (uint32_t b = 0; b < RS_BELLS; b++) {
			if (l->shm.bell_fd[b] >= 0)
				rs_fd_close(l->shm.bell_fd[b]);
			if (l->bells_sent & 1u << b)
				rs_fd_close(l->trigger[b]);
		}
		/* The struct is left as garbage, but for the addresses of rings that came too. */
	}
	rs_links = NULL;
	nlinks = 0;
	rs_links_pending = 0;
	rs_links_why = RS_REASON_PEER_PLAIN;
	links_lock.word = 0;
}
