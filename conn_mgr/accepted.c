/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/accepted.h"

#include <string.h>
#include <sys/stat.h>

#include "conn_mgr/control.h"
#include "conn_mgr/holders.h"
#include "conn_mgr/link.h"
#include "conn_mgr/rdma.h"
#include "conn_mgr/rendezvous.h"
#include "conn_mgr/tuple.h"
#include "rsock/config.h"
#include "rsock/rows.h"
#include "rsock/sys.h"

#define REMOTE_WINDOW 5 /* times as long */
#define FRESH_MS 500 /* who has not forked by then keeps what it has accepted */
#define BUCKETS 4096u

static struct rs_lock hash_lock;
static struct rs_conn *accepted[BUCKETS]; /* by the client's address */

/* As they came, each with a reference. */
struct rs_accepted_queue {
	struct rs_conn *oldest, *newest;
};

static struct rs_accepted_queue fresh; /* not used yet */
static struct rs_accepted_queue listed; /* used, and not claimed yet */
static bool forks; /* this process accepts for its children */

static uint32_t bucket(const uint8_t ip[16], uint16_t port)
{
	uint32_t h = port * 2654435761u;

	for (size_t i = 0; i < 16; i++)
		h = (h ^ ip[i]) * 16777619u;
	return (h ^ h >> 15) % BUCKETS;
}

static bool same_host(const struct rs_conn *c)
{
	static const uint8_t one[16] = { [15] = 1 };
	const uint8_t *ip = c->tuple.client_ip;

	return (c->tuple.family == 4 ? ip[0] == 127 : memcmp(ip, one, 16) == 0) ||
	       memcmp(ip, c->tuple.server_ip, 16) == 0; /* all 0 while it is not known */
}

/*
 * Who claims from another host may have to wait until all workers have loaded the RDMA libraries, and
 * is then sent from one to the other. On a busy host to load them alone takes seconds.
 */
static uint64_t window(const struct rs_conn *c)
{
	return (uint64_t)rs_config.window_ms *
	       (same_host(c) || !rs_rdma_likely() ? 1 : REMOTE_WINDOW);
}

/* Under hash_lock. */
static void queue(struct rs_accepted_queue *q, struct rs_conn *c, uint64_t expires)
{
	__atomic_fetch_add(&c->refs, 1, __ATOMIC_RELAXED);
	c->expires = expires;
	c->prev = q->newest;
	c->next = NULL;
	if (q->newest)
		q->newest->next = c;
	else
		q->oldest = c;
	q->newest = c;
	c->queue = q;
}

/* Under hash_lock. True: it was in a queue, whose reference is the caller's now. */
static bool unqueue(struct rs_conn *c)
{
	struct rs_accepted_queue *q = c->queue;

	if (!q)
		return false;
	if (c->prev)
		c->prev->next = c->next;
	else
		q->oldest = c->next;
	if (c->next)
		c->next->prev = c->prev;
	else
		q->newest = c->prev;
	c->queue = NULL;
	return true;
}

void rs_accepted_add(struct rs_conn *c, uint16_t port, const struct sockaddr *peer)
{
	uint64_t expires;

	c->tuple.server_port = port;
	if (!rs_address((const struct sockaddr_storage *)(const void *)peer, &c->tuple.family,
			c->tuple.client_ip, &c->tuple.client_port))
		return;
	c->directory = rs_rendezvous_accepted(port);
	__atomic_store_n(&c->fresh, true, __ATOMIC_RELEASE);
	expires = rs_now_ms() + FRESH_MS;
	rs_lock(&hash_lock);
	queue(&fresh, c, expires);
	rs_unlock(&hash_lock);
	rs_control_due(expires);
}

/* From here on it can be claimed. */
static void list(struct rs_conn *c)
{
	uint32_t b = bucket(c->tuple.client_ip, c->tuple.client_port);
	bool holder = true, queued;
	uint64_t expires;

	c->directory = rs_rendezvous_used(c->tuple.server_port, c->directory, window(c), &holder);
	if (c->directory && !holder) {
		c->in_directory = true;
		rs_directory_put(c->directory, c->tuple.family, c->tuple.client_ip,
				 c->tuple.client_port, rs_process_name());
	}
	expires = rs_now_ms() + window(c);
	rs_lock(&hash_lock);
	queued = unqueue(c);
	queue(&listed, c, expires);
	c->hash_next = accepted[b];
	accepted[b] = c;
	c->hashed = true;
	rs_unlock(&hash_lock);
	if (queued)
		rs_conn_put(c);
	rs_control_due(expires);
}

/* Under its lock. Alone with it: it is not fresh any more, and ours. */
static bool alone(struct rs_conn *c)
{
	if (c->holders && __atomic_load_n(c->holders, __ATOMIC_SEQ_CST) > 1)
		return false;
	if (c->holders)
		rs_holders_end(c->holders);
	c->holders = NULL;
	__atomic_store_n(&c->fresh, false, __ATOMIC_RELAXED);
	return true;
}

void rs_accepted_take(struct rs_conn *c)
{
	bool late, ours;

	/* A handler that interrupted us: the next call will do. */
	if (rs_lock_mine(&c->lock) || rs_lock_mine(&hash_lock) || rs_rendezvous_locked() ||
	    rs_rows_locked() || rs_control_locked())
		return;
	rs_lock(&c->lock);
	ours = c->fresh && !c->plain && !c->closed && alone(c);
	late = c->fresh && c->holders && rs_now_ms() >= c->shared_until;
	rs_unlock(&c->lock);
	if (late)
		rs_conn_give_up(c, RS_REASON_FORKED);
	if (!ours)
		return;
	if (!c->row)
		c->row = rs_row_new(c->fd, true);
	if (rs_control_start() != 0) {
		rs_conn_give_up(c, RS_REASON_NO_THREAD);
		return;
	}
	list(c);
	rs_control_start(); /* it may have ended for want of work just before */
}

bool rs_accepted_share(struct rs_conn *c, uint32_t fork)
{
	uint32_t *h;
	bool shared;

	if (!__atomic_load_n(&c->fresh, __ATOMIC_RELAXED) || rs_lock_mine(&c->lock))
		return false;
	rs_lock(&c->lock);
	/* A set that the child inherits would hear of what the kernel knows only. */
	shared = c->fresh && !c->plain && !c->closed && !c->watches;
	if (shared && c->shared != fork) {
		h = rs_holders_add(c->holders);
		shared = h != NULL;
		c->shared_until = rs_now_ms() + window(c);
		__atomic_store_n(&forks, true, __ATOMIC_RELAXED);
		if (h) {
			c->holders = h;
			c->shared = fork;
		}
	}
	rs_unlock(&c->lock);
	return shared;
}

void rs_accepted_unshare(struct rs_conn *c)
{
	if (c->holders)
		rs_holders_drop(c->holders);
	c->holders = NULL;
}

void rs_accepted_leave(struct rs_conn *c, bool stays_open)
{
	bool handler = rs_lock_mine(&c->lock);

	if (!handler)
		rs_lock(&c->lock);
	if (c->holders && stays_open)
		rs_holders_spoil(c->holders);
	if (c->holders)
		__atomic_store_n(&c->fresh, false, __ATOMIC_RELAXED);
	rs_accepted_unshare(c);
	if (!handler)
		rs_unlock(&c->lock);
}

void rs_accepted_refused(const struct rs_conn *c)
{
	struct stat st;

	/* Nobody asks for what is over, or when the time for it is. */
	if (!c->directory || c->bound || c->closed || c->reason == RS_REASON_PEER_PLAIN ||
	    c->reason == RS_REASON_CLOSING || rs_sys2(SYS_fstat, c->fd, &st) != 0)
		return;
	rs_directory_refuse(c->directory, c->tuple.family, c->tuple.client_ip, c->tuple.client_port,
			    st.st_ino, c->reason);
}

void rs_accepted_adopt(struct rs_conn *c)
{
	bool queued;

	if (c->adopted)
		return;
	c->adopted = true;
	rs_lock(&hash_lock);
	queued = unqueue(c);
	rs_unlock(&hash_lock);
	rs_control_add(c, c->claim_at);
	if (queued)
		rs_conn_put(c);
}

/* Nobody has claimed it. If nobody on another host could, that is the reason. */
static enum rs_reason why(struct rs_conn *c)
{
	bool local;

	rs_lock(&c->lock);
	rs_tuple_learn(c);
	local = same_host(c);
	rs_unlock(&c->lock);
	return local || rs_rdma_seen() ? rs_links_why_none() : rs_rdma_why_not();
}

/* It is no longer waited for who uses it. */
static void forget_fresh(struct rs_conn *c)
{
	bool queued;

	rs_lock(&hash_lock);
	queued = c->queue == &fresh && unqueue(c);
	rs_unlock(&hash_lock);
	if (queued)
		rs_conn_put(c);
}

/* The oldest, with a reference, if it is due; else NULL, and when (ms) it is, in *due, if earlier. */
static struct rs_conn *expired(const struct rs_accepted_queue *q, uint64_t now, uint64_t *due)
{
	struct rs_conn *c;

	rs_lock(&hash_lock);
	c = q->oldest;
	if (c && c->expires > now) {
		*due = c->expires < *due ? c->expires : *due;
		c = NULL;
	}
	if (c)
		__atomic_fetch_add(&c->refs, 1, __ATOMIC_RELAXED);
	rs_unlock(&hash_lock);
	return c;
}

uint64_t rs_accepted_expire(uint64_t now)
{
	uint64_t due = UINT64_MAX;
	struct rs_conn *c;

	while ((c = expired(&fresh, now, &due))) {
		if (!__atomic_load_n(&forks, __ATOMIC_RELAXED))
			rs_accepted_take(c);
		forget_fresh(c);
		rs_conn_put(c);
	}
	while ((c = expired(&listed, now, &due))) {
		rs_conn_give_up(c, why(c));
		rs_accepted_drop(c);
		rs_conn_put(c);
	}
	return due;
}

void rs_accepted_postpone(uint64_t ms)
{
	rs_lock(&hash_lock);
	for (struct rs_conn *c = listed.oldest; c; c = c->next)
		c->expires += ms;
	rs_unlock(&hash_lock);
}

void rs_accepted_drop(struct rs_conn *c)
{
	struct rs_conn **p;
	bool queued;

	rs_lock(&hash_lock);
	queued = unqueue(c);
	if (!c->hashed) {
		rs_unlock(&hash_lock);
		if (queued)
			rs_conn_put(c);
		return;
	}
	for (p = &accepted[bucket(c->tuple.client_ip, c->tuple.client_port)]; *p;
	     p = &(*p)->hash_next)
		if (*p == c) {
			*p = c->hash_next;
			break;
		}
	c->hashed = false;
	rs_unlock(&hash_lock);
	if (c->in_directory)
		rs_directory_drop(c->directory, c->tuple.family, c->tuple.client_ip,
				  c->tuple.client_port);
	if (queued)
		rs_conn_put(c);
}

static bool same_server(const struct rs_tuple *a, const struct rs_tuple *b)
{
	return a->server_port == b->server_port && memcmp(a->server_ip, b->server_ip, 16) == 0;
}

struct rs_conn *rs_accepted_find(const struct rs_tuple *t)
{
	struct rs_conn *c, *cand[8];
	size_t n = 0;

	rs_lock(&hash_lock);
	for (c = accepted[bucket(t->client_ip, t->client_port)]; c && n < 8; c = c->hash_next)
		if (c->tuple.family == t->family && c->tuple.client_port == t->client_port &&
		    memcmp(c->tuple.client_ip, t->client_ip, 16) == 0 && rs_conn_get(c))
			cand[n++] = c;
	rs_unlock(&hash_lock);
	c = NULL;
	for (size_t i = 0; i < n; i++) {
		bool hit = false;

		/* Under the lock the descriptor cannot be closed and its number reused. */
		rs_lock(&cand[i]->lock);
		if (!c && !cand[i]->closed && rs_tuple_learn(cand[i]))
			hit = same_server(&cand[i]->tuple, t) &&
			      cand[i]->tuple.client_port == t->client_port;
		rs_unlock(&cand[i]->lock);
		if (hit)
			c = cand[i];
		else
			rs_conn_put(cand[i]);
	}
	return c;
}

bool rs_accepted_has(const struct rs_tuple *t)
{
	struct rs_conn *c = rs_accepted_find(t);

	if (c)
		rs_conn_put(c);
	return c != NULL;
}

void rs_accepted_forget(void)
{
	memset(accepted, 0, sizeof(accepted));
	fresh = (struct rs_accepted_queue){ 0 };
	listed = fresh;
	forks = false;
	hash_lock.word = 0;
}
