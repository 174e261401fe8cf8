/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/peer.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/un.h>

#include "conn_mgr/claim.h"
#include "conn_mgr/conn.h"
#include "conn_mgr/rdma.h"
#include "conn_mgr/rendezvous.h"
#include "rsock/bell.h"
#include "rsock/log.h"
#include "rsock/rows.h"
#include "rsock/sys.h"

#define HELLO_MS 5000 /* a peer that says nothing that long is given up */
#define IDLE_MS 3000 /* a link without streams is closed by the end that opened it */
#define RECLAIM_MS 10000 /* memory of a dead link outlives every harvester */
#define PENDING_MAX 64u /* peers that have connected and not said HELLO: any local user can */
#define IDLE_MAX 256u /* peers that have said HELLO, and have no stream to us */
#define LINKS_MAX 4096u /* dead ones included, whose memory is still mapped */
#define QUEUE_MAX 16384u /* messages for a peer that does not read them */
#define OVERFLOW_UID 65534u /* of everybody whom our user namespace does not know */
#define SCM_MAX_FD 253 /* the kernel's limit on the descriptors of one message */

struct rs_queued {
	struct rs_queued *next;
	size_t len;
	uint8_t bytes[RS_MSG_MAX];
};

struct rs_link *rs_links;
static struct rs_lock links_lock; /* additions to the list, bells_sent */
static uint32_t nlinks; /* in the list */
static uint32_t npending; /* accepted, without HELLO */
static enum rs_reason why_none = RS_REASON_PEER_PLAIN;

/* ---- messages out ---- */

static long send_now(struct rs_link *l, const uint8_t *bytes, size_t len, const int *fds,
		     size_t nfds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(2 * sizeof(int))];
	} ctl;
	struct iovec iov = { (void *)(uintptr_t)bytes, len };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };
	long r;

	if (nfds) {
		struct cmsghdr *cm;

		memset(&ctl, 0, sizeof(ctl));
		mh.msg_control = ctl.buf;
		mh.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		cm = CMSG_FIRSTHDR(&mh);
		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(cm), fds, nfds * sizeof(int));
	}
	do
		r = rs_sys3(SYS_sendmsg, l->sock, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (r == -EINTR);
	return r;
}

int rs_link_send(struct rs_link *l, const struct rs_msg *m, const int *fds, size_t nfds)
{
	uint8_t bytes[RS_MSG_MAX];
	size_t len = rs_msg_encode(m, bytes);
	long r = -EAGAIN;

	if (l->shm.remote)
		return rs_remote_send(l->shm.remote, bytes, len);
	rs_lock(&l->lock);
	if (l->dead) {
		rs_unlock(&l->lock);
		return -EPIPE;
	}
	if (!l->queue)
		r = send_now(l, bytes, len, fds, nfds);
	if (r == -EAGAIN && !nfds) {
		struct rs_queued *q = l->queued < QUEUE_MAX ? malloc(sizeof(*q)) : NULL;

		if (!q) {
			/* Its streams carry on over TCP. */
			l->overflow = true;
			rs_control_due(0);
		} else {
			l->queued++;
			q->next = NULL;
			q->len = len;
			memcpy(q->bytes, bytes, len);
			*l->queue_tail = q;
			l->queue_tail = &q->next;
			rs_control_watch(l->sock, EPOLLIN | EPOLLOUT, &l->source);
			r = 0;
		}
	}
	rs_unlock(&l->lock);
	return r < 0 ? (int)r : 0;
}

static void drain_queue(struct rs_link *l)
{
	rs_lock(&l->lock);
	while (l->queue) {
		struct rs_queued *q = l->queue;

		if (send_now(l, q->bytes, q->len, NULL, 0) == -EAGAIN)
			break;
		l->queue = q->next;
		l->queued--;
		free(q);
	}
	if (!l->queue) {
		l->queue_tail = &l->queue;
		rs_control_watch(l->sock, EPOLLIN, &l->source);
	}
	rs_unlock(&l->lock);
}

void rs_peer_send(struct rs_conn *c, uint8_t type, uint32_t epoch, uint64_t offset)
{
	struct rs_msg m = { .type = type, .id = c->peer_id, .epoch = epoch, .offset = offset };
	struct rs_link *l = c->link;

	if (!l)
		return;
	if (type == RS_MSG_GONE) {
		rs_lock(&l->lock);
		if (l->slot[c->id].conn == c)
			l->slot[c->id].gone_sent = true;
		rs_unlock(&l->lock);
	}
	rs_link_send(l, &m, NULL, 0);
}

/* ---- slots ---- */

static uint32_t in_use(const struct rs_link *l)
{
	return __atomic_load_n(&l->used, __ATOMIC_RELAXED);
}

static void drop_segment(struct rs_shm_head *h, int fd)
{
	if (fd < 0) {
		rs_shm_private_free(h);
		return;
	}
	rs_shm_unmap(h);
	rs_fd_close(fd);
}

static int add_segment(struct rs_link *l)
{
	struct rs_msg m = { .type = RS_MSG_SEGMENT, .index = l->shm.nmine };
	struct rs_slot_state *slot;
	struct rs_shm_head *h;
	int fd, r = 0;

	if (l->shm.nmine == RS_SHM_SEGMENTS)
		return -ENOSPC;
	if (l->shm.remote) {
		h = rs_shm_private();
		fd = h ? -1 : -ENOMEM;
	} else {
		fd = rs_shm_create(&h);
	}
	if (fd < -1 || (fd < 0 && !l->shm.remote))
		return fd;
	slot = calloc(l->slots + RS_SHM_SLOTS, sizeof(*slot));
	if (!slot) {
		drop_segment(h, fd);
		return -ENOMEM;
	}
	if (l->shm.nmine > 0 && !l->shm.remote) {
		r = rs_link_send(l, &m, &fd, 1);
		if (r != 0) {
			free(slot);
			drop_segment(h, fd);
			return r;
		}
	}
	rs_lock(&l->lock);
	if (l->slot) {
		memcpy(slot, l->slot, l->slots * sizeof(*slot));
		free(l->slot);
	}
	l->slot = slot;
	l->mine_fd[l->shm.nmine] = fd;
	l->shm.mine[l->shm.nmine] = h;
	__atomic_store_n(&l->shm.nmine, l->shm.nmine + 1, __ATOMIC_RELEASE);
	l->slots += RS_SHM_SLOTS;
	rs_unlock(&l->lock);
	return 0;
}

int rs_link_slot_get(struct rs_link *l, struct rs_conn *c)
{
	struct rs_remote_block block = { 0 };
	uint32_t id;
	int r = 0;

	if (in_use(l) == l->slots) {
		r = add_segment(l);
		if (r != 0)
			return r;
	}
	rs_lock(&l->lock);
	for (id = l->hint; l->slot[id % l->slots].used; id++)
		;
	id %= l->slots;
	l->hint = id;
	__atomic_store_n(&l->used, l->used + 1, __ATOMIC_RELAXED);
	l->slot[id] = (struct rs_slot_state){ .conn = c, .used = true };
	rs_slot_reset(&l->shm.mine[id / RS_SHM_SLOTS]->slot[id % RS_SHM_SLOTS]);
	rs_unlock(&l->lock);
	c->link = l;
	c->id = id;
	if (l->shm.remote)
		r = rs_remote_block(l->shm.remote, id, &block);
	c->block = block;
	if (r != 0) {
		rs_link_slot_unused(l, id);
		c->link = NULL;
	}
	return r;
}

/* Under l->lock. The slot serves another stream only when nobody can write it any more. */
static void try_release(struct rs_link *l, uint32_t id)
{
	struct rs_slot_state *s = &l->slot[id];

	/* On a dead link there is nobody whose writes or answers could come. */
	if (!s->used || s->conn || !(l->dead || (s->done && s->gone_sent && s->gone_recv)))
		return;
	*s = (struct rs_slot_state){ 0 };
	__atomic_store_n(&l->used, l->used - 1, __ATOMIC_RELAXED);
	l->hint = id;
}

void rs_link_slot_unused(struct rs_link *l, uint32_t id)
{
	rs_lock(&l->lock);
	l->slot[id].conn = NULL;
	l->slot[id].done = true;
	l->slot[id].gone_sent = true;
	l->slot[id].gone_recv = true;
	try_release(l, id);
	rs_unlock(&l->lock);
}

bool rs_link_slot_refuse(struct rs_link *l, uint32_t id, struct rs_conn *c)
{
	bool mine;

	rs_lock(&l->lock);
	mine = id < l->slots && l->slot[id].used && l->slot[id].conn == c && !l->slot[id].done;
	if (mine) {
		l->slot[id].conn = NULL;
		l->slot[id].done = true;
		l->slot[id].gone_sent = true;
		try_release(l, id);
	}
	rs_unlock(&l->lock);
	return mine;
}

void rs_link_slot_leave(struct rs_link *l, uint32_t id, struct rs_conn *c)
{
	rs_lock(&l->lock);
	if (id < l->slots && l->slot[id].conn == c) {
		l->slot[id].conn = NULL;
		try_release(l, id);
	}
	rs_unlock(&l->lock);
}

bool rs_link_slot_orphan(struct rs_link *l, uint32_t id)
{
	bool yes;

	rs_lock(&l->lock);
	yes = id < l->slots && l->slot[id].used && !l->slot[id].conn && !l->slot[id].done;
	rs_unlock(&l->lock);
	return yes;
}

void rs_peer_detach(struct rs_conn *c)
{
	struct rs_link *l = c->link;

	if (!l || !c->bound)
		return;
	rs_lock(&l->lock);
	if (l->slot[c->id].conn == c) {
		l->slot[c->id].conn = NULL;
		l->slot[c->id].done = true;
		try_release(l, c->id);
	}
	rs_unlock(&l->lock);
	c->bound = false;
	c->link = NULL;
}

struct rs_conn *rs_link_conn(struct rs_link *l, uint32_t id)
{
	struct rs_conn *c = NULL;

	rs_lock(&l->lock);
	if (id < l->slots && l->slot[id].conn && rs_conn_get(l->slot[id].conn))
		c = l->slot[id].conn;
	rs_unlock(&l->lock);
	return c;
}

/* ---- bells ---- */

void rs_peer_bells(void)
{
	uint32_t made = rs_bell_made();

	for (struct rs_link *l = __atomic_load_n(&rs_links, __ATOMIC_ACQUIRE); l; l = l->next) {
		uint32_t todo;

		if (!rs_link_alive(l) || l->shm.remote || !l->trusted)
			continue;
		todo = made & ~__atomic_load_n(&l->bells_sent, __ATOMIC_RELAXED);
		while (todo) {
			uint32_t b = (uint32_t)__builtin_ctz(todo);
			struct rs_msg m = { .type = RS_MSG_BELL, .index = b };
			int fd = rs_bell_fd(b);

			todo &= todo - 1;
			if (__atomic_fetch_or(&l->bells_sent, 1u << b, __ATOMIC_SEQ_CST) &
			    (1u << b))
				continue;
			if (rs_link_send(l, &m, &fd, 1) != 0)
				__atomic_fetch_and(&l->bells_sent, ~(1u << b), __ATOMIC_SEQ_CST);
		}
	}
}

void rs_link_harvest(struct rs_link *l, uint32_t bell, void (*take)(struct rs_conn *c, void *arg),
		     void *arg)
{
	struct rs_shm_bell *b0;

	if (!rs_link_alive(l))
		return;
	if (l->shm.remote)
		rs_remote_progress(l->shm.remote);
	b0 = &l->shm.mine[0]->bells[bell];
	if (!__atomic_load_n(&b0->pending, __ATOMIC_RELAXED))
		return;
	__atomic_exchange_n(&b0->pending, 0, __ATOMIC_SEQ_CST);
	for (uint32_t s = 0; s < __atomic_load_n(&l->shm.nmine, __ATOMIC_ACQUIRE); s++) {
		struct rs_shm_bell *b = &l->shm.mine[s]->bells[bell];

		for (uint32_t w = 0; w < RS_SHM_SLOTS / 64; w++) {
			uint64_t bits;

			if (!__atomic_load_n(&b->ready[w], __ATOMIC_RELAXED))
				continue;
			bits = __atomic_exchange_n(&b->ready[w], 0, __ATOMIC_SEQ_CST);
			while (bits) {
				uint32_t bit = (uint32_t)__builtin_ctzll(bits);
				struct rs_conn *c =
					rs_link_conn(l, s * RS_SHM_SLOTS + w * 64 + bit);

				bits &= bits - 1;
				if (c)
					take(c, arg);
			}
		}
	}
}

bool rs_links_asleep(uint32_t bell, enum rs_bell_when when)
{
	bool pending = false;

	for (struct rs_link *l = __atomic_load_n(&rs_links, __ATOMIC_ACQUIRE); l; l = l->next) {
		struct rs_shm_bell *b;

		if (!rs_link_alive(l))
			continue;
		b = &l->shm.mine[0]->bells[bell];
		__atomic_store_n(&b->asleep, when, __ATOMIC_SEQ_CST);
		if (l->shm.remote && when != RS_BELL_NEVER)
			rs_remote_arm(l->shm.remote);
		if (when != RS_BELL_NEVER && __atomic_load_n(&b->pending, __ATOMIC_SEQ_CST))
			pending = true;
	}
	return pending;
}

bool rs_links_remote(void)
{
	for (struct rs_link *l = __atomic_load_n(&rs_links, __ATOMIC_ACQUIRE); l; l = l->next)
		if (rs_link_alive(l) && l->shm.remote)
			return true;
	return false;
}

static void ring_conn(struct rs_conn *c, void *arg)
{
	(void)arg;
	rs_conn_poke(c);
	rs_conn_put(c);
}

static void poke(void *arg, uint32_t id)
{
	struct rs_conn *c = rs_link_conn(arg, id);

	if (c)
		ring_conn(c, NULL);
}

static void got_message(struct rs_link *l, const struct rs_msg *m, int *fds, size_t nfds);

/* Messages, room and death of a queue pair, whoever has polled it. */
static void look_at_remote(struct rs_link *l)
{
	uint8_t bytes[RS_MSG_MAX];
	struct rs_msg m;
	size_t len;

	while (!l->dead && rs_remote_receive(l->shm.remote, bytes, &len)) {
		if (rs_msg_decode(bytes, len, &m) == 0)
			got_message(l, &m, NULL, 0);
		else
			rs_link_kill(l, rs_now_ms());
	}
	if (!l->dead)
		rs_remote_retry(l->shm.remote, poke, l);
	if (!l->dead && rs_remote_broken(l->shm.remote))
		rs_link_failed(l, ECONNRESET);
}

static void scan_bells(struct rs_link *l)
{
	if (!rs_link_alive(l))
		return;
	rs_link_harvest(l, 0, ring_conn, NULL);
	for (uint32_t b = 1; b < RS_BELLS; b++)
		if (__atomic_load_n(&l->shm.mine[0]->bells[b].pending, __ATOMIC_SEQ_CST))
			rs_bell_ring(1u << b & rs_bell_made());
}

void rs_peer_scan_bells(void)
{
	for (struct rs_link *l = rs_links; l; l = l->next) {
		if (l->shm.remote && !l->dead)
			look_at_remote(l);
		scan_bells(l);
	}
}

/* ---- links ---- */

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

static void reclaim(struct rs_link *l)
{
	for (uint32_t s = 0; s < RS_SHM_SEGMENTS; s++) {
		if (s < l->shm.nmine && l->shm.remote)
			rs_shm_private_free(l->shm.mine[s]);
		else if (s < l->shm.nmine)
			rs_shm_unmap(l->shm.mine[s]);
		if (s < l->shm.npeer)
			rs_shm_unmap(l->shm.peer[s]);
	}
	for (uint32_t b = 0; b < RS_BELLS; b++)
		if (l->shm.bell_fd[b] >= 0)
			rs_fd_close(l->shm.bell_fd[b]);
	if (l->ring_sock >= 0)
		close_socket(l->ring_sock);
	l->ring_sock = -1;
	if (l->shm.remote) {
		rs_remote_free(l->shm.remote);
		l->shm.remote = NULL;
	}
	l->shm.nmine = 0;
	l->shm.npeer = 0;
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
		npending--;
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
	l->died = now;
	for (uint32_t id = 0; id < l->slots; id++)
		try_release(l, id);
	rs_unlock(&l->lock);
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
		rs_unlock(&c->lock);
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

static void hello(struct rs_link *l)
{
	struct rs_msg m = { .type = RS_MSG_HELLO,
			    .features = l->shm.remote ? RS_FEATURE_RDMA
						      : RS_FEATURE_SHM | RS_FEATURE_RING,
			    .slots = RS_SHM_SLOTS };

	memcpy(m.process, rs_process_id(), sizeof(m.process));
	if (l->shm.remote)
		m.tier_shift[0] = (uint8_t)__builtin_ctzll(RS_REMOTE_RING);
	else
		memcpy(m.tier_shift, l->shm.mine[0]->tier_shift, RS_TIERS);
	rs_link_send(l, &m, &l->mine_fd[0], 1);
}

/* Honest processes close a link that they have no stream on; others must not fill the table. */
static void drop_oldest_idle(const struct rs_link *but)
{
	struct rs_link *oldest = NULL;
	uint32_t n = 0;

	for (struct rs_link *l = rs_links; l; l = l->next) {
		if (l == but || !rs_link_alive(l) || l->initiator || l->shm.remote || in_use(l))
			continue;
		n++;
		if (!oldest || l->born < oldest->born)
			oldest = l;
	}
	if (n >= IDLE_MAX)
		rs_link_kill(oldest, rs_now_ms());
}

static void come_up(struct rs_link *l, const struct rs_msg *m)
{
	if (!l->initiator)
		drop_oldest_idle(l);
	memcpy(l->process, m->process, sizeof(l->process));
	if (!l->initiator)
		hello(l);
	if (!l->initiator && !l->shm.remote)
		npending--;
	why_none = RS_REASON_PEER_PLAIN;
	__atomic_store_n(&l->up, true, __ATOMIC_RELEASE);
	rs_peer_bells();
	rs_claim_link_up(l);
}

static void got_remote_hello(struct rs_link *l, const struct rs_msg *m)
{
	if (l->up || m->slots != RS_SHM_SLOTS || !(m->features & RS_FEATURE_RDMA) ||
	    m->tier_shift[0] != __builtin_ctzll(RS_REMOTE_RING)) {
		rs_link_failed(l, EPROTO);
		return;
	}
	come_up(l, m);
}

/* Between two processes that could: the peer is told, and nobody waits. */
static void cannot(struct rs_link *l, int error)
{
	enum rs_reason why =
		error == -EMFILE || error == -ENFILE ? RS_REASON_NO_FDS : RS_REASON_NO_MEMORY;
	const struct rs_msg m = { .type = RS_MSG_HELLO, .slots = why };

	rs_log(RS_LOG_INFO, "no link: %s", rs_reason_word(why));
	why_none = why;
	if (l->initiator)
		rs_claim_link_refused(l, why);
	else
		rs_link_send(l, &m, NULL, 0);
	rs_link_kill(l, rs_now_ms());
}

/* 0; -EPERM: the peer lies; else what we have not got for it. */
static int take_hello(struct rs_link *l, int memfd)
{
	long fd;
	int r = rs_shm_map(memfd, &l->shm.peer[0]);

	if (r != 0)
		return r;
	l->shm.npeer = 1;
	l->peer_segments = 1;
	/* Not before now, for anybody can connect. */
	if (!l->shm.nmine)
		r = add_segment(l);
	if (r != 0)
		return r == -EPERM ? -ENOMEM : r;
	fd = rs_sys3(SYS_fcntl, l->sock, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return (int)fd;
	l->ring_sock = rs_fd_hide((int)fd);
	l->shm.bell_fd[0] = RS_BELL_SOCKET(l->ring_sock);
	return 0;
}

static void got_hello(struct rs_link *l, const struct rs_msg *m, const int *fds, size_t nfds)
{
	const uint32_t need = RS_FEATURE_SHM | RS_FEATURE_RING;
	int r = -EPERM;

	if (!l->up && !m->features && l->initiator && m->slots > RS_REASON_STARTING &&
	    m->slots < RS_REASON_COUNT)
		rs_claim_link_refused(l, (enum rs_reason)m->slots);
	else if (!l->up && nfds == 1 && m->slots == RS_SHM_SLOTS && (m->features & need) == need)
		r = take_hello(l, fds[0]);
	if (r == 0)
		come_up(l, m);
	else if (r == -EPERM)
		rs_link_kill(l, rs_now_ms());
	else
		cannot(l, r);
}

static void got_bell(struct rs_link *l, const struct rs_msg *m, int *fds, size_t nfds)
{
	if (nfds != 1 || m->index >= RS_BELLS || l->shm.bell_fd[m->index] >= 0 ||
	    !rs_fd_is_eventfd(fds[0])) {
		rs_link_kill(l, rs_now_ms());
		return;
	}
	if (!l->trusted)
		return;
	__atomic_store_n(&l->shm.bell_fd[m->index], rs_fd_hide(fds[0]), __ATOMIC_RELEASE);
	fds[0] = -1;
	if (m->index == 0 && !l->attached) {
		rs_fd_close(l->ring_sock);
		l->ring_sock = -1;
	}
}

static void got_segment(struct rs_link *l, const struct rs_msg *m, const int *fds, size_t nfds)
{
	int r = -EPERM;

	if (nfds == 1 && m->index == l->peer_segments && m->index < RS_SHM_SEGMENTS)
		r = l->peer_full ? -ENOMEM : rs_shm_map(fds[0], &l->shm.peer[m->index]);
	if (r == -EPERM) {
		rs_link_kill(l, rs_now_ms());
		return;
	}
	l->peer_segments++;
	if (r == 0)
		__atomic_store_n(&l->shm.npeer, m->index + 1, __ATOMIC_RELEASE);
	else
		l->peer_full = true; /* what lies there and behind stays on TCP */
}

/* How many descriptors a message may carry. */
static size_t most_fds(uint8_t type)
{
	return type == RS_MSG_HELLO || type == RS_MSG_BELL || type == RS_MSG_SEGMENT ||
	       type == RS_MSG_CLAIM || type == RS_MSG_CLAIM_OK;
}

static void got_message(struct rs_link *l, const struct rs_msg *m, int *fds, size_t nfds)
{
	struct rs_conn *c;

	if (m->type == RS_MSG_HELLO) {
		if (l->shm.remote)
			got_remote_hello(l, m);
		else
			got_hello(l, m, fds, nfds);
		return;
	}
	if (!l->up || (l->shm.remote && (m->type == RS_MSG_BELL || m->type == RS_MSG_SEGMENT ||
					 m->type == RS_MSG_RING))) {
		rs_link_kill(l, rs_now_ms());
		return;
	}
	l->attached |= m->type == RS_MSG_CLAIM_OK || m->type == RS_MSG_REVEAL;
	switch (m->type) {
	case RS_MSG_BELL:
		got_bell(l, m, fds, nfds);
		return;
	case RS_MSG_SEGMENT:
		got_segment(l, m, fds, nfds);
		return;
	case RS_MSG_CLAIM:
		rs_claim_asked(l, m, nfds == 1 ? fds[0] : -1);
		return;
	case RS_MSG_CLAIM_OK:
		rs_claim_ok(l, m, nfds == 1 ? fds[0] : -1);
		return;
	case RS_MSG_CLAIM_NO:
		rs_claim_no(l, m);
		return;
	case RS_MSG_REVEAL:
		rs_claim_reveal(l, m);
		return;
	case RS_MSG_RING:
		return; /* link_event() looks, after any message */
	default:
		break;
	}
	c = rs_link_conn(l, m->id);
	if (c) {
		rs_conn_message(c, m);
		if (m->type == RS_MSG_GONE)
			rs_claim_gone(c);
		rs_conn_put(c);
	}
	if (m->type == RS_MSG_GONE) {
		rs_lock(&l->lock);
		if (m->id < l->slots && l->slot[m->id].used) {
			l->slot[m->id].gone_recv = true;
			try_release(l, m->id);
		}
		rs_unlock(&l->lock);
	}
}

/* Closes what came with a message and was not kept. */
static void close_received(int fd)
{
	long flags = rs_sys3(SYS_fcntl, fd, F_GETFL, 0);

	if ((flags >= 0 && (flags & O_PATH)) || rs_fd_is_eventfd(fd) ||
	    rs_sys3(SYS_fcntl, fd, F_GET_SEALS, 0) >= 0)
		rs_sys1(SYS_close, fd);
	else
		rs_fd_close_aside(fd);
}

/* As the kernel says who has sent the message: the first one, HELLO, counts. */
static void know_peer(struct rs_link *l, const struct ucred *u)
{
	uint32_t uid = (uint32_t)rs_sys0(SYS_getuid);

	l->peer_pid = u->pid;
	l->trusted = u->uid == uid && uid == (uint32_t)rs_sys0(SYS_geteuid) && uid != OVERFLOW_UID;
}

/* One message. False: there is none, or the link is dead. */
static bool receive(struct rs_link *l)
{
	/* All descriptors that can come find room: those that the kernel drops, it closes here. */
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(SCM_MAX_FD * sizeof(int))];
	} ctl;
	uint8_t bytes[RS_MSG_MAX + 1];
	struct iovec iov = { bytes, sizeof(bytes) };
	struct msghdr mh = { .msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = ctl.buf,
			     .msg_controllen = sizeof(ctl.buf) };
	struct ucred peer = { 0, OVERFLOW_UID, 0 };
	int fds[SCM_MAX_FD];
	struct rs_msg m;
	size_t nfds = 0;
	long r = rs_sys3(SYS_recvmsg, l->sock, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (r == -EAGAIN || r == -EINTR)
		return r == -EINTR;
	for (struct cmsghdr *cm = r < 0 ? NULL : CMSG_FIRSTHDR(&mh); cm;
	     cm = CMSG_NXTHDR(&mh, cm)) {
		if (cm->cmsg_level != SOL_SOCKET)
			continue;
		if (cm->cmsg_type == SCM_CREDENTIALS) {
			memcpy(&peer, CMSG_DATA(cm), sizeof(peer));
		} else if (cm->cmsg_type == SCM_RIGHTS) {
			nfds = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);
			memcpy(fds, CMSG_DATA(cm), nfds * sizeof(int));
		}
	}
	if (r <= 0 || rs_msg_decode(bytes, (size_t)r, &m) != 0 || nfds > most_fds(m.type)) {
		rs_link_kill(l, rs_now_ms());
	} else {
		if (m.type == RS_MSG_HELLO && !l->up)
			know_peer(l, &peer);
		got_message(l, &m, fds, nfds);
	}
	for (size_t i = 0; i < nfds; i++)
		if (fds[i] >= 0)
			close_received(fds[i]);
	return !l->dead;
}

static void link_event(struct rs_source *s, uint32_t events)
{
	struct rs_link *l =
		(struct rs_link *)(void *)((char *)s - offsetof(struct rs_link, source));

	if (l->dead)
		return;
	if (events & EPOLLOUT)
		drain_queue(l);
	for (int budget = 256; budget && receive(l); budget--)
		;
	/* A peer without our eventfds rings by message; or not at all, when the socket is full. */
	scan_bells(l);
}

struct rs_link *rs_link_same_process(struct rs_link *l)
{
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

/* A link that was dead for so long that nobody looks at it any more serves again, in its place. */
static struct rs_link *reclaimed(void)
{
	struct rs_link *l = rs_links;

	while (l && (!l->dead || l->died || in_use(l)))
		l = l->next;
	if (!l)
		return NULL;
	rs_lock(&l->lock);
	__atomic_store_n(&l->up, false, __ATOMIC_SEQ_CST);
	free(l->slot);
	l->slot = NULL;
	l->slots = 0;
	l->hint = 0;
	l->bells_sent = 0;
	l->idle_since = 0;
	l->trusted = false;
	l->overflow = false;
	l->attached = false;
	l->peer_full = false;
	l->peer_segments = 0;
	l->peer_pid = 0;
	l->aliases = 0;
	l->initiator = false;
	l->name[0] = '\0';
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
	l->ring_sock = -1;
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

	if (npending < PENDING_MAX)
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
	l->source.event = link_event;
	l->sock = sock;
	if (name) {
		l->initiator = true;
		snprintf(l->name, sizeof(l->name), "%s", name);
	}
	if (rs_sys5(SYS_setsockopt, sock, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) != 0 ||
	    (name && add_segment(l) != 0) || rs_control_watch(sock, EPOLLIN, &l->source) != 0) {
		if (l->shm.nmine)
			drop_segment(l->shm.mine[0], l->mine_fd[0]);
		l->shm.nmine = 0;
		unnew(l);
		return NULL;
	}
	enlist(l);
	if (name) {
		hello(l);
	} else {
		npending++;
		link_event(&l->source, EPOLLIN); /* most have said HELLO already */
	}
	return l;
}

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
	look_at_remote(l);
}

struct rs_link *rs_link_new_remote(const struct rs_rdma_ops *ops, struct rs_qp *qp,
				   const struct rs_tuple *to)
{
	struct rs_link *l = new_link();

	if (!l)
		return NULL;
	l->source.event = remote_event;
	l->sock = -1;
	l->shm.remote = rs_remote_new(ops, qp, &l->shm);
	if (to) {
		l->initiator = true;
		l->to = *to;
		snprintf(l->name, sizeof(l->name), "rdma port %u", to->server_port);
	}
	if (!l->shm.remote || add_segment(l) != 0 ||
	    (!to && rs_control_watch(ops->fd(qp), EPOLLIN, &l->source) != 0)) {
		if (l->shm.nmine)
			drop_segment(l->shm.mine[0], -1);
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
	if (rs_control_watch(r->ops->fd(r->qp), EPOLLIN, &l->source) != 0) {
		rs_link_failed(l, ENOMEM);
		return;
	}
	rs_log(RS_LOG_INFO, "connected on %s", r->ops->device(r->qp));
	hello(l);
	rs_remote_event(r);
	look_at_remote(l);
}

void rs_link_failed(struct rs_link *l, int error)
{
	if (!l->up && l->initiator) {
		rs_log(RS_LOG_INFO, "%s: error %d", l->name, error);
		if (error != ECONNREFUSED || !rs_claim_tries_again(l))
			rs_rdma_refused(l);
		rs_claim_link_refused(l, error == ECONNREFUSED ? RS_REASON_PEER_PLAIN
					 : error == ENODEV     ? RS_REASON_NO_DEVICE
					 : error == ENOMEM     ? RS_REASON_MEMLOCK
							       : RS_REASON_NO_ROUTE);
	}
	rs_link_kill(l, rs_now_ms());
}

void rs_peer_timer(uint64_t now)
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
		if (!l->dead && l->shm.remote) {
			uint64_t due = rs_remote_timer(l->shm.remote, now);

			if (due)
				rs_control_due(due);
		}
		if (in_use(l) || l->dead || !l->initiator) {
			l->idle_since = 0;
		} else if (!l->idle_since) {
			l->idle_since = now;
			rs_control_due(now + IDLE_MS);
		} else if (now < l->idle_since + IDLE_MS) {
			rs_control_due(l->idle_since + IDLE_MS);
		} else if (l->up && !l->queue) {
			rs_link_kill(l, now);
		}
		if (l->dead && l->died && !in_use(l)) {
			if (now >= l->died + RECLAIM_MS)
				reclaim(l);
			else
				rs_control_due(l->died + RECLAIM_MS);
		}
	}
	rs_rendezvous_timer(now);
}

bool rs_peer_idle(void)
{
	if (!rs_rendezvous_idle())
		return false;
	for (struct rs_link *l = rs_links; l; l = l->next)
		if (!l->dead && in_use(l))
			return false;
	return true;
}

bool rs_peer_close_links(void)
{
	uint64_t now = rs_now_ms();
	bool all = true;

	for (struct rs_link *l = rs_links; l; l = l->next) {
		if (!l->dead)
			rs_link_kill(l, now);
		/* rs_peer_timer() takes the memory away once nobody can be looking at it any more. */
		all &= !l->died;
	}
	return all;
}

void rs_links_inherit(void)
{
	for (struct rs_link *l = rs_links; l; l = l->next) {
		for (uint32_t s = 0; s < l->shm.nmine && !l->shm.remote; s++)
			rs_shm_inherit(l->shm.mine[s]);
		for (uint32_t s = 0; s < l->shm.npeer; s++)
			rs_shm_inherit(l->shm.peer[s]);
	}
}

enum rs_reason rs_peer_why_none(void)
{
	return why_none;
}

void rs_peer_forget(void)
{
	for (struct rs_link *l = rs_links; l; l = l->next) {
		if (l->sock >= 0)
			rs_fd_close(l->sock);
		if (l->ring_sock >= 0)
			rs_fd_close(l->ring_sock);
		for (uint32_t s = 0; s < l->shm.nmine && !l->shm.remote && !l->dead; s++)
			rs_fd_close(l->mine_fd[s]);
		for (uint32_t b = 0; b < RS_BELLS; b++)
			if (l->shm.bell_fd[b] >= 0)
				rs_fd_close(l->shm.bell_fd[b]);
		/* Its mappings did not come over the fork. The struct is left as garbage. */
	}
	rs_links = NULL;
	nlinks = 0;
	npending = 0;
	why_none = RS_REASON_PEER_PLAIN;
	links_lock.word = 0;
	rs_claim_forget();
	rs_rdma_forget();
	rs_rendezvous_forget();
}
