/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/link_parts.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "conn_mgr/claim.h"
#include "conn_mgr/conn.h"
#include "conn_mgr/elsewhere.h"
#include "conn_mgr/rendezvous.h"
#include "rsock/bell.h"
#include "rsock/log.h"
#include "rsock/sys.h"

#define IDLE_MAX 256u /* peers that have said HELLO, and have no stream to us */
#define QUEUE_MAX 16384u /* messages for a peer that does not read them */
#define OVERFLOW_UID 65534u /* of everybody whom our user namespace does not know */
#define SCM_MAX_FD 253 /* the kernel's limit on the descriptors of one message */

/* ---- out ---- */

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

void rs_link_tell(struct rs_conn *c, uint8_t type, uint32_t epoch, uint64_t offset)
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

/* ---- HELLO ---- */

void rs_link_hello(struct rs_link *l)
{
	struct rs_msg m = { .type = RS_MSG_HELLO,
			    .features = l->shm.remote ? RS_FEATURE_RDMA | RS_FEATURE_RINGS
						      : RS_FEATURE_SHM | RS_FEATURE_TRIGGER |
								RS_FEATURE_WHERE,
			    .slots = RS_SHM_SLOTS };

	if (l->shm.remote) {
		memcpy(m.process, l->identity, sizeof(m.process));
		m.tier_shift[0] = (uint8_t)__builtin_ctzll(RS_REMOTE_RING);
		if (l->initiator)
			memcpy(m.proof, l->proof, sizeof(m.proof));
	} else {
		memcpy(m.process, rs_process_id(), sizeof(m.process));
		memcpy(m.tier_shift, l->shm.mine[0]->tier_shift, RS_TIERS);
	}
	rs_link_send(l, &m, (int[]){ l->mine_fd[0], l->trigger[0] }, 2);
}

/* Honest processes close a link that they have no stream on; others must not fill the table. */
static void drop_oldest_idle(const struct rs_link *but)
{
	struct rs_link *oldest = NULL;
	uint32_t n = 0;

	for (struct rs_link *l = rs_links; l; l = l->next) {
		if (l == but || !rs_link_alive(l) || l->initiator ||
		    !l->shm.remote != !but->shm.remote || rs_link_used(l))
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
	l->features = m->features;
	if (!l->initiator)
		rs_link_hello(l);
	if (!l->initiator && !l->shm.remote)
		rs_links_pending--;
	rs_links_why = RS_REASON_PEER_PLAIN;
	__atomic_store_n(&l->up, true, __ATOMIC_RELEASE);
	rs_links_send_bells();
	rs_claim_link_up(l);
}

static void got_remote_hello(struct rs_link *l, const struct rs_msg *m)
{
	if (l->up || m->slots != RS_SHM_SLOTS || !(m->features & RS_FEATURE_RDMA) ||
	    m->tier_shift[0] != __builtin_ctzll(RS_REMOTE_RING) ||
	    memcmp(m->process, l->expect, RS_GREET_ID_LEN) != 0 ||
	    (!l->initiator && !rs_mem_equal(m->proof, l->proof, sizeof(l->proof)))) {
		rs_link_failed(l, EPROTO);
		return;
	}
	l->shm.remote->may_grow = m->features & RS_FEATURE_RINGS;
	come_up(l, m);
}

/* Between two processes that could: the peer is told, and nobody waits. */
static void cannot(struct rs_link *l, int error)
{
	enum rs_reason why =
		error == -EMFILE || error == -ENFILE ? RS_REASON_NO_FDS : RS_REASON_NO_MEMORY;
	const struct rs_msg m = { .type = RS_MSG_HELLO, .slots = why };

	rs_log(RS_LOG_INFO, "no link: %s", rs_reason_word(why));
	rs_links_why = why;
	if (l->initiator)
		rs_claim_link_refused(l, why, RS_CLAIM_NEVER);
	else
		rs_link_send(l, &m, NULL, 0);
	rs_link_kill(l, rs_now_ms());
}

/* A trigger of a bell of the peer's. */
static int take_trigger(struct rs_link *l, uint32_t bell, int *fd)
{
	if (!rs_fd_is_eventfd(*fd))
		return -EPERM;
	__atomic_store_n(&l->shm.bell_fd[bell], rs_fd_hide(*fd), __ATOMIC_RELEASE);
	*fd = -1;
	return 0;
}

/* 0; -EPERM: the peer lies; else what we have not got for it. */
static int take_hello(struct rs_link *l, int *fds)
{
	int r = rs_shm_map(fds[0], &l->shm.peer[0]);

	if (r != 0)
		return r;
	l->shm.npeer = 1;
	l->peer_segments = 1;
	r = take_trigger(l, 0, &fds[1]);
	if (r != 0)
		return r;
	/* Not before now, for anybody can connect. */
	if (!l->shm.nmine) {
		r = rs_link_add_segment(l);
		if (r == 0)
			r = rs_link_trigger(l, 0);
	}
	return r == -EPERM ? -ENOMEM : r < 0 ? r : 0;
}

static void got_hello(struct rs_link *l, const struct rs_msg *m, int *fds, size_t nfds)
{
	static const uint8_t none[RS_HELLO_PROOF_LEN];
	const uint32_t need = RS_FEATURE_SHM | RS_FEATURE_TRIGGER;
	/* Nobody has to prove a key here. */
	bool first = !l->up && memcmp(m->proof, none, sizeof(none)) == 0;
	int r = -EPERM;

	if (first && !m->features && l->initiator && m->slots > RS_REASON_STARTING &&
	    m->slots < RS_REASON_COUNT)
		rs_claim_link_refused(l, (enum rs_reason)m->slots, RS_CLAIM_NEVER);
	else if (first && nfds == 2 && m->slots == RS_SHM_SLOTS && (m->features & need) == need)
		r = take_hello(l, fds);
	if (r == 0)
		come_up(l, m);
	else if (r == -EPERM)
		rs_link_kill(l, rs_now_ms());
	else
		cannot(l, r);
}

/* ---- in ---- */

static void got_bell(struct rs_link *l, const struct rs_msg *m, int *fds, size_t nfds)
{
	if (nfds != 1 || m->index >= RS_BELLS || l->shm.bell_fd[m->index] >= 0 ||
	    take_trigger(l, m->index, &fds[0]) != 0)
		rs_link_kill(l, rs_now_ms());
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
	return type == RS_MSG_HELLO ? 2
				    : type == RS_MSG_BELL || type == RS_MSG_SEGMENT ||
					      type == RS_MSG_CLAIM || type == RS_MSG_CLAIM_OK;
}

void rs_link_message(struct rs_link *l, const struct rs_msg *m, int *fds, size_t nfds)
{
	struct rs_conn *c;

	if (m->type == RS_MSG_HELLO) {
		if (l->shm.remote)
			got_remote_hello(l, m);
		else
			got_hello(l, m, fds, nfds);
		return;
	}
	if (!l->up ||
	    (l->shm.remote && (m->type == RS_MSG_BELL || m->type == RS_MSG_SEGMENT ||
			       m->type == RS_MSG_WHERE || m->type == RS_MSG_HERE)) ||
	    (!l->shm.remote && m->type >= RS_MSG_WANT)) {
		rs_link_kill(l, rs_now_ms());
		return;
	}
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
	case RS_MSG_WHERE:
		rs_elsewhere_asked(l, m);
		return;
	case RS_MSG_HERE:
		rs_elsewhere_told(l, m);
		return;
	case RS_MSG_WANT:
	case RS_MSG_RING:
	case RS_MSG_DROP:
		rs_link_ring_message(l, m);
		return;
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
			rs_link_slot_release(l, m->id);
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
		rs_link_message(l, &m, fds, nfds);
	}
	for (size_t i = 0; i < nfds; i++)
		if (fds[i] >= 0)
			close_received(fds[i]);
	return !l->dead;
}

void rs_link_event(struct rs_source *s, uint32_t events)
{
	struct rs_link *l =
		(struct rs_link *)(void *)((char *)s - offsetof(struct rs_link, source));

	if (l->dead)
		return;
	if (events & EPOLLOUT)
		drain_queue(l);
	for (int budget = 256; budget && receive(l); budget--)
		;
}
