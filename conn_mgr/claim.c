/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/claim.h"

#include <string.h>

#include "conn_mgr/accepted.h"
#include "conn_mgr/conn.h"
#include "conn_mgr/control.h"
#include "conn_mgr/elsewhere.h"
#include "conn_mgr/link.h"
#include "conn_mgr/proof.h"
#include "conn_mgr/rdma.h"
#include "conn_mgr/rendezvous.h"
#include "conn_mgr/tuple.h"
#include "rsock/config.h"
#include "rsock/sys.h"

#define BACKOFF_MAX_MS 100u
#define BACKOFF_FAR_MS 800u /* where each time costs a queue pair, after FAR_SOON times */
#define FAR_SOON 20
#define PROBE_MS 50 /* how often short connections are a reason to ask who listens */
/*
 * Ten seconds, as long as a server waits (accepted.c): one that has just begun to accept loads the
 * libraries and opens devices first, with the CPU time that its work leaves.
 */
#define REFUSALS (FAR_SOON + 12)
#define REDIRECTS 8 /* over RDMA, for one connection */
#define RETURN_MAX_MS \
	1000u /* between questions about one that has left, and whose peer may not have yet */
#define CLAIM_MS 10000 /* a claim that nobody decides is given up */
#define BACKLOG_MS 60000 /* and one of a connection that nobody accepts, */
#define ACCEPTED_MS 10000 /* or that was accepted, but nobody says by whom */

/* ---- for both sides ---- */

/* Threads of the program close connections, and read these fields, under the lock. */
static bool wanted(struct rs_conn *c)
{
	bool yes;

	rs_lock(&c->lock);
	yes = !c->plain && !c->closed && !c->bound;
	rs_unlock(&c->lock);
	return yes;
}

static void set_claim(struct rs_conn *c, enum rs_claim claim, uint64_t at)
{
	rs_lock(&c->lock);
	c->claim = claim;
	c->claim_at = at;
	rs_unlock(&c->lock);
}

/* The peer believes in a stream that we do not have: say so. */
static void refuse_stream(struct rs_link *l, uint32_t peer_id)
{
	struct rs_msg m = { .type = RS_MSG_GONE, .id = peer_id };

	rs_link_send(l, &m, NULL, 0);
}

/* Attached meanwhile, or not: then the peer hears of it, once. */
static void refuse_unless_bound(struct rs_link *l, struct rs_conn *c, uint32_t id)
{
	bool refused;

	rs_lock(&c->lock);
	refused = !c->bound && rs_link_slot_refuse(l, id, c);
	rs_unlock(&c->lock);
	if (refused)
		refuse_stream(l, c->peer_id);
}

/*
 * It ended before it was worth a claim: what follows to the same port should know whom to expect, and
 * find the link made.
 */
static void learn_from_short(const struct rs_conn *c)
{
	static uint64_t next; /* ms */
	uint64_t now = rs_now_ms();
	char name[RS_NAME_LEN];
	int err = 0;

	if (c->server || c->link || c->claim != RS_CLAIM_BACKOFF || c->claim_tries || now < next ||
	    !c->tuple.server_port)
		return;
	next = now + PROBE_MS;
	rs_rendezvous_name(c->tuple.server_port, 0, name);
	if (!rs_link_to(name, &err) && err == -ECONNREFUSED)
		rs_rendezvous_refused(c->tuple.server_port, now);
}

void rs_claim_drop(struct rs_conn *c)
{
	learn_from_short(c);
	if (!c->link || c->bound)
		return;
	if (!c->server)
		rs_link_slot_leave(c->link, c->id, c);
	else if (rs_link_slot_refuse(c->link, c->id, c))
		refuse_stream(c->link, c->peer_id);
}

void rs_claim_gone(struct rs_conn *c)
{
	if (c->server && c->claim == RS_CLAIM_SENT)
		rs_conn_give_up(c, RS_REASON_PEER_LEFT);
}

/* ---- the accepting side ---- */

static void answer_no(struct rs_link *l, const struct rs_msg *ask, uint8_t code, uint8_t reason)
{
	const struct rs_msg m = {
		.type = RS_MSG_CLAIM_NO, .id = ask->from, .code = code, .reason = reason
	};

	rs_link_send(l, &m, NULL, 0);
}

/* Claimed here, but not accepted in this process. */
static void answer_not_ours(struct rs_link *l, const struct rs_msg *ask)
{
	const struct rs_tuple *t = &ask->tuple;
	struct rs_directory *d = rs_rendezvous_directory(t->server_port);
	struct rs_msg m = { .type = RS_MSG_CLAIM_NO, .id = ask->from, .code = RS_CLAIM_UNKNOWN };
	bool listed = d && rs_directory_get(d, t->family, t->client_ip, t->client_port, m.name) &&
		      strcmp(m.name, rs_process_name()) != 0;
	/* 0: nobody has it yet. */
	int64_t inode = listed && !l->shm.remote ? 0 : rs_proof_inode(t, true);

	if (d && inode > 0)
		m.reason = rs_directory_refused(d, t->family, t->client_ip, t->client_port,
						(uint64_t)inode);
	if (m.reason) {
		m.code = RS_CLAIM_REFUSED;
	} else if (listed && !l->shm.remote) {
		m.code = RS_CLAIM_REDIRECT;
	} else if (l->shm.remote) {
		if (inode > 0)
			m.port = rs_elsewhere(t, listed ? m.name : NULL);
		if (m.port)
			m.code = RS_CLAIM_REDIRECT;
		else if (inode >= 0)
			m.code = RS_CLAIM_NOT_YET;
		else if (d) /* closed, or its last segment of the handshake is still on its way */
			m.reason = RS_REASON_CLOSING;
	} else if (inode >= 0) {
		m.code = RS_CLAIM_NOT_YET; /* or accepted this moment */
		m.reason = inode > 0 ? RS_REASON_NO_ROUTE : 0;
	}
	if (m.code != RS_CLAIM_REDIRECT || l->shm.remote)
		memset(m.name, 0, sizeof(m.name));
	rs_link_send(l, &m, NULL, 0);
}

/* The CM has said where the peer is: it speaks for connections between these addresses only. */
static bool from_there(const struct rs_link *l, const struct rs_tuple *t)
{
	return !l->initiator && t->family == l->ends.family &&
	       memcmp(t->client_ip, l->ends.client_ip, 16) == 0 &&
	       memcmp(t->server_ip, l->ends.server_ip, 16) == 0;
}

static bool handle_matches(const struct rs_tuple *t, bool server_end, int handle)
{
	int64_t inode;

	if (handle < 0)
		return false;
	inode = rs_proof_inode(t, server_end);
	return inode > 0 && (uint64_t)inode == rs_proof_handle_inode(handle);
}

void rs_claim_asked(struct rs_link *l, const struct rs_msg *ask, int handle)
{
	struct rs_msg m = { .type = RS_MSG_CLAIM_OK, .id = ask->from };
	uint8_t no = 0, reason = 0;
	struct rs_conn *c;
	int mine = -1, r;
	bool plain;

	if (l->shm.remote && !from_there(l, &ask->tuple)) {
		answer_no(l, ask, RS_CLAIM_REFUSED, RS_REASON_NO_PROOF);
		return;
	}
	c = rs_accepted_find(&ask->tuple);
	if (!c) {
		answer_not_ours(l, ask);
		return;
	}
	rs_lock(&c->lock);
	plain = c->plain;
	if (c->plain || c->closed) {
		no = RS_CLAIM_REFUSED;
		reason = c->plain ? c->reason : RS_REASON_CLOSING;
	} else if (c->claim != RS_CLAIM_NONE && !rs_conn_waits_to_return(c)) {
		no = RS_CLAIM_NOT_YET; /* the peer has left, and we have not, or not heard of it */
	} else if (!l->shm.remote && !handle_matches(&ask->tuple, false, handle)) {
		no = RS_CLAIM_REFUSED;
		reason = RS_REASON_NO_PROOF;
	} else if ((r = rs_link_slot_get(l, c)) != 0) {
		no = RS_CLAIM_REFUSED;
		reason = (uint8_t)(l->shm.remote ? rs_rdma_reason(-r) : RS_REASON_NO_MEMORY);
	} else if (!l->shm.remote) {
		mine = rs_proof_handle(c->fd);
		if (mine < 0) {
			no = RS_CLAIM_REFUSED;
			reason = mine == -EMFILE || mine == -ENFILE ? RS_REASON_NO_FDS
								    : RS_REASON_NO_PROOF;
			rs_link_slot_unused(l, c->id);
			c->link = NULL;
		}
	}
	if (!no) {
		rs_sys3(SYS_getrandom, c->secret, sizeof(c->secret), 0);
		memcpy(c->peer_commit, ask->secret, sizeof(c->peer_commit));
		c->peer_id = ask->from;
		c->claim = RS_CLAIM_SENT;
		c->window_end = 0;
		c->claim_at = rs_now_ms() + CLAIM_MS;
		m.from = c->id;
		m.block = c->block.addr;
		m.block_key = c->block.rkey;
		c->peer_block = (struct rs_remote_block){ ask->block, ask->block_key };
		memcpy(m.secret, c->secret, sizeof(m.secret));
		if (rs_link_send(l, &m, &mine, mine >= 0) != 0) {
			/* The link's socket is full: let the peer ask again. */
			rs_link_slot_unused(l, c->id);
			c->link = NULL;
			c->claim = c->returns ? RS_CLAIM_DONE : RS_CLAIM_NONE;
			c->window_end = c->returns ? 0 : rs_now_ms() + rs_config.window_ms;
			no = RS_CLAIM_NOT_YET;
		}
		if (mine >= 0)
			rs_sys1(SYS_close, mine);
		rs_accepted_adopt(c);
	}
	rs_unlock(&c->lock);
	if (no) {
		answer_no(l, ask, no, reason);
		if (!plain && no == RS_CLAIM_REFUSED && reason != RS_REASON_CLOSING &&
		    reason != RS_REASON_NO_PROOF)
			rs_conn_give_up(c, reason);
	}
	rs_conn_put(c);
}

/* Both secrets and both ends' slots are known. */
static void attach(struct rs_conn *c, const uint8_t *server_secret, const uint8_t *client_secret)
{
	uint8_t both[2 * RS_HASH_LEN], key[RS_KEY_LEN];

	memcpy(both, server_secret, RS_HASH_LEN);
	memcpy(both + RS_HASH_LEN, client_secret, RS_HASH_LEN);
	rs_sha256(both, sizeof(both), key);
	rs_conn_attach(c, key);
	memset(both, 0, sizeof(both));
	memset(key, 0, sizeof(key));
	memset(c->secret, 0, sizeof(c->secret));
}

void rs_claim_reveal(struct rs_link *l, const struct rs_msg *m)
{
	struct rs_conn *c = rs_link_conn(l, m->id);
	uint8_t hash[RS_HASH_LEN];

	if (!c)
		return;
	if (c->server && c->claim == RS_CLAIM_SENT && !c->bound) {
		rs_sha256(m->secret, RS_HASH_LEN, hash);
		if (!rs_mem_equal(hash, c->peer_commit, RS_HASH_LEN)) {
			rs_conn_put(c);
			rs_link_kill(l, rs_now_ms());
			return;
		}
		attach(c, c->secret, m->secret);
		refuse_unless_bound(l, c, m->id);
	}
	rs_conn_put(c);
}

/* ---- the connecting side ---- */

static bool loopback(const struct rs_tuple *t)
{
	static const uint8_t one[16] = { [15] = 1 };

	return t->family == 4 ? t->server_ip[0] == 127 : memcmp(t->server_ip, one, 16) == 0;
}

static bool one_address(const struct rs_tuple *t)
{
	return memcmp(t->client_ip, t->server_ip, 16) == 0;
}

static uint64_t backoff_ms(const struct rs_conn *c)
{
	uint32_t n = c->claim_tries;
	uint64_t ms;

	if (c->returns) {
		ms = (uint64_t)10 << (n < 7 ? n : 7);
		return ms < RETURN_MAX_MS ? ms : RETURN_MAX_MS;
	}
	if (n < FAR_SOON || loopback(&c->tuple) || one_address(&c->tuple)) {
		ms = (uint64_t)1 << (n < 7 ? n : 7);
		return ms < BACKOFF_MAX_MS ? ms : BACKOFF_MAX_MS;
	}
	n -= FAR_SOON;
	ms = (uint64_t)BACKOFF_MAX_MS << (n < 3 ? n : 3);
	return ms < BACKOFF_FAR_MS ? ms : BACKOFF_FAR_MS;
}

static void backoff(struct rs_conn *c, uint64_t now)
{
	uint64_t ms = backoff_ms(c);

	c->claim_tries++;
	c->claim_index = 0;
	c->claim_again = false;
	c->claim_name[0] = '\0';
	c->claim_port = 0;
	c->link = NULL;
	set_claim(c, RS_CLAIM_BACKOFF, now + ms);
	rs_control_due(now + ms);
}

static void give_up(struct rs_conn *c, enum rs_reason why)
{
	set_claim(c, RS_CLAIM_DONE, 0);
	c->link = NULL;
	rs_conn_give_up(c, why);
}

/* This process does not hold the other end: ask the next one that listens on the port. */
static void next_process(struct rs_conn *c, uint64_t now)
{
	c->link = NULL;
	c->claim_name[0] = '\0';
	c->claim_index++;
	set_claim(c, RS_CLAIM_WANTED, 0);
	rs_claim_begin(c, now);
}

static void nobody_there(struct rs_conn *c, uint64_t now)
{
	if (c->claim_name[0] || c->claim_again) {
		backoff(c, now); /* a worker that died, or the end of the list: start again */
		return;
	}
	if (c->claim_index == 0)
		rs_rendezvous_refused(c->tuple.server_port, now);
	give_up(c, RS_REASON_PEER_PLAIN);
}

static void send_claim(struct rs_conn *c, struct rs_link *l, uint64_t now)
{
	struct rs_msg m = { .type = RS_MSG_CLAIM, .tuple = c->tuple };
	int mine, r;

	rs_lock(&c->lock);
	mine = c->closed ? -EBADF : l->shm.remote ? -1 : rs_proof_handle(c->fd);
	rs_unlock(&c->lock);
	if (mine < 0 && !(l->shm.remote && mine == -1)) {
		give_up(c,
			mine == -EMFILE || mine == -ENFILE ? RS_REASON_NO_FDS : RS_REASON_NO_PROOF);
		return;
	}
	r = rs_link_slot_get(l, c);
	if (r != 0) {
		if (mine >= 0)
			rs_sys1(SYS_close, mine);
		give_up(c, r == -EMFILE	   ? RS_REASON_NO_FDS
			   : l->shm.remote ? rs_rdma_reason(-r)
					   : RS_REASON_NO_MEMORY);
		return;
	}
	rs_sys3(SYS_getrandom, c->secret, sizeof(c->secret), 0);
	rs_sha256(c->secret, RS_HASH_LEN, m.secret);
	m.from = c->id;
	m.block = c->block.addr;
	m.block_key = c->block.rkey;
	set_claim(c, RS_CLAIM_SENT, now + CLAIM_MS);
	r = rs_link_send(l, &m, &mine, mine >= 0);
	if (mine >= 0)
		rs_sys1(SYS_close, mine);
	if (r != 0) {
		rs_link_slot_unused(l, c->id);
		backoff(c, now);
	}
}

void rs_claim_begin(struct rs_conn *c, uint64_t now)
{
	char name[RS_NAME_LEN];
	struct rs_link *l;
	bool known = false, over, late, remote;
	int err = 0;

	rs_lock(&c->lock);
	over = c->plain || c->closed || c->bound;
	if (!over) {
		if (!c->window_end && !c->server)
			c->window_end = now + BACKLOG_MS;
		known = rs_tuple_learn(c);
	}
	late = now >= c->window_end;
	rs_unlock(&c->lock);
	if (over)
		return;
	if (!known) {
		backoff(c, now); /* connect() still in progress, or failed: the program will see */
		if (late)
			give_up(c, RS_REASON_NO_ROUTE);
		return;
	}
	if (late) {
		give_up(c, RS_REASON_NO_ROUTE);
		return;
	}
	if (one_address(&c->tuple) && c->tuple.client_port == c->tuple.server_port) {
		give_up(c, RS_REASON_SELF);
		return;
	}
	/* An address of this host routes to itself. */
	remote = !loopback(&c->tuple) && !one_address(&c->tuple);
	if (c->claim_name[0])
		memcpy(name, c->claim_name, sizeof(name));
	else
		rs_rendezvous_name(c->tuple.server_port, c->claim_index, name);
	l = remote ? rs_rdma_link(&c->tuple, c->claim_port, &err) : rs_link_to(name, &err);
	if (!l && remote && err == -EADDRNOTAVAIL) {
		remote = false; /* another address of this host */
		l = rs_link_to(name, &err);
	}
	if (!l && remote) {
		give_up(c, rs_rdma_reason(-err));
		return;
	}
	if (!l) {
		if (err == -ECONNREFUSED)
			nobody_there(c, now);
		else if (err == -EAGAIN || err == -EINTR)
			backoff(c, now);
		else
			give_up(c, err == -EMFILE || err == -ENFILE ? RS_REASON_NO_FDS
								    : RS_REASON_NO_MEMORY);
		return;
	}
	if (!remote)
		rs_rendezvous_answered(c->tuple.server_port);
	c->link = l;
	if (l->up) {
		send_claim(c, l, now);
	} else {
		c->id = UINT32_MAX;
		set_claim(c, RS_CLAIM_SENT, now + CLAIM_MS); /* rs_claim_link_up() goes on */
	}
}

void rs_claim_link_up(struct rs_link *l)
{
	struct rs_link *use = rs_link_same_process(l);
	uint64_t now = rs_now_ms();

	for (struct rs_conn *c = rs_control_conns; c; c = c->next)
		if (!c->server && c->claim == RS_CLAIM_SENT && c->id == UINT32_MAX && wanted(c) &&
		    c->link == l)
			send_claim(c, use, now);
	if (use != l) {
		/* We have a link to that process already, by another of its names. */
		if (l->shm.remote)
			use->port[use->ports++ % RS_LINK_ALIASES] = l->port[0];
		else
			rs_link_alias(use, l->name);
		rs_link_kill(l, now);
	}
}

bool rs_claim_tries_again(const struct rs_link *l)
{
	for (struct rs_conn *c = rs_control_conns; c; c = c->next)
		if (!c->server && c->claim == RS_CLAIM_SENT && c->link == l &&
		    c->refusals < REFUSALS)
			return true;
	return false;
}

void rs_claim_link_refused(struct rs_link *l, enum rs_reason why, enum rs_claim_again again)
{
	for (struct rs_conn *c = rs_control_conns; c; c = c->next) {
		if (c->server || c->claim != RS_CLAIM_SENT || c->link != l || !wanted(c))
			continue;
		if (again == RS_CLAIM_WAITS ||
		    (again == RS_CLAIM_AGAIN && c->refusals < REFUSALS)) {
			if (again == RS_CLAIM_AGAIN)
				c->refusals++;
			backoff(c, rs_now_ms());
		} else {
			give_up(c, why);
		}
	}
}

void rs_claim_link_lost(struct rs_conn *c, uint64_t now)
{
	if (!wanted(c))
		return;
	if (c->server)
		give_up(c, RS_REASON_LINK_LOST);
	else
		backoff(c, now);
}

/* The connection that a claim of ours was for, with a reference, if it still waits for the answer. */
static struct rs_conn *claimant(struct rs_link *l, uint32_t id)
{
	struct rs_conn *c = rs_link_conn(l, id);

	if (c && (c->server || c->claim != RS_CLAIM_SENT || c->bound)) {
		rs_conn_put(c);
		c = NULL;
	}
	return c;
}

void rs_claim_ok(struct rs_link *l, const struct rs_msg *m, int handle)
{
	struct rs_conn *c = claimant(l, m->id);
	struct rs_msg reveal = { .type = RS_MSG_REVEAL, .id = m->from };

	if (!c) {
		rs_link_slot_refuse(l, m->id,
				    NULL); /* of a connection that is no more, or hostile */
		refuse_stream(l, m->from);
		return;
	}
	c->peer_id = m->from;
	c->peer_block = (struct rs_remote_block){ m->block, m->block_key };
	if (!wanted(c) || (!l->shm.remote && !handle_matches(&c->tuple, true, handle))) {
		rs_link_slot_refuse(l, m->id, c);
		refuse_stream(l, m->from);
		give_up(c, RS_REASON_NO_PROOF);
		rs_conn_put(c);
		return;
	}
	memcpy(reveal.secret, c->secret, RS_HASH_LEN);
	rs_link_send(l, &reveal, NULL, 0);
	attach(c, m->secret, c->secret);
	refuse_unless_bound(l, c, m->id);
	rs_conn_put(c);
}

/* To another process at the same address, over RDMA. */
static void redirected(struct rs_conn *c, uint16_t port, uint64_t now)
{
	if (!port || ++c->redirects > REDIRECTS) {
		give_up(c, RS_REASON_PROTOCOL);
	} else if (c->claim_port) {
		backoff(c, now); /* it was in between processes: start again */
	} else {
		c->claim_port = port;
		set_claim(c, RS_CLAIM_WANTED, 0);
		rs_claim_begin(c, now);
	}
}

/* It has a listener on that port, but knows nothing of the connection; or has none any more. */
static void unknown_there(struct rs_conn *c, struct rs_link *l, bool listens, uint64_t now)
{
	if (!listens)
		rs_rdma_moved(l);
	if (listens || c->refusals++ < REFUSALS)
		backoff(c, now);
	else
		give_up(c, RS_REASON_NO_ROUTE);
}

static void give_less_time(struct rs_conn *c, uint64_t end)
{
	rs_lock(&c->lock);
	if (c->window_end > end)
		c->window_end = end;
	rs_unlock(&c->lock);
}

void rs_claim_no(struct rs_link *l, const struct rs_msg *m)
{
	struct rs_conn *c = claimant(l, m->id);
	uint64_t now = rs_now_ms();

	if (!c) {
		if (rs_link_slot_orphan(l, m->id))
			rs_link_slot_unused(l, m->id);
		return;
	}
	rs_link_slot_unused(l, m->id);
	c->link = NULL;
	switch (m->code) {
	case RS_CLAIM_REFUSED:
		give_up(c, m->reason < RS_REASON_COUNT && m->reason > RS_REASON_STARTING
				   ? (enum rs_reason)m->reason
				   : RS_REASON_PEER_PLAIN);
		break;
	case RS_CLAIM_REDIRECT:
		/* A redirect leads to a process, and a process does not redirect further. */
		if (l->shm.remote) {
			redirected(c, m->port, now);
			break;
		}
		if (c->claim_name[0] || strncmp(m->name, "rsock.p.", 8) != 0) {
			backoff(c, now);
			break;
		}
		memcpy(c->claim_name, m->name, RS_NAME_LEN);
		set_claim(c, RS_CLAIM_WANTED, 0);
		rs_claim_begin(c, now);
		break;
	case RS_CLAIM_NOT_YET:
		c->claim_again = true;
		if (m->reason)
			give_less_time(c, now + ACCEPTED_MS);
		if (c->claim_name[0] || l->shm.remote)
			backoff(c, now);
		else
			next_process(c, now);
		break;
	default:
		if (l->shm.remote)
			unknown_there(c, l, m->reason == RS_REASON_CLOSING, now);
		else if (c->claim_name[0])
			backoff(c, now);
		else
			next_process(c, now);
		break;
	}
	rs_conn_put(c);
}
