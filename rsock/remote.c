/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/remote.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "rsock/bell.h"
#include "rsock/faults.h"
#include "rsock/sys.h"
#include "rsock/wire.h"

#define PAGE ((size_t)4096)
#define BLOCK (PAGE + RS_REMOTE_RING)
#define ID_SHIFT 18
#define TIER_SHIFT 17
#define LEN_MASK ((1u << TIER_SHIFT) - 1)
#define BATCH 16
#define AGAIN_MS 1 /* when somebody else is polling, or there is more than one turn takes */
#define TURN 256u /* polls of BATCH in one go at most: the peer may send without end */
#define POOL 64u /* messages that get their memory together */
#define POOLS_MAX 1024u /* of one link: a peer has a few messages for each of its streams */

_Static_assert(RS_REMOTE_CUT <= LEN_MASK, "a length fits the immediate data");
_Static_assert(RS_REMOTE_TIERS <= 1u << (ID_SHIFT - TIER_SHIFT), "and a tier");
_Static_assert(RS_REMOTE_STREAMS <= 1u << (32 - ID_SHIFT), "and a stream number");
_Static_assert(sizeof(struct rs_shm_slot) <= PAGE, "the words fit their page");

struct rs_remote_msg {
	struct rs_remote_msg *next;
	bool late; /* has a mapping of its own */
	size_t len;
	uint8_t bytes[RS_MSG_MAX];
};

struct rs_remote *rs_remote_new(const struct rs_rdma_ops *ops, struct rs_qp *qp,
				struct rs_shm_link *link,
				void (*watch)(struct rs_remote *r, bool on))
{
	struct rs_remote *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	r->ops = ops;
	r->qp = qp;
	r->link = link;
	r->in.tail = &r->in.first;
	r->out.tail = &r->out.first;
	r->wake_fd = -1;
	r->watch = watch;
	r->armed = true; /* queue pairs begin so (rdma/qp.c) */
	r->lease_ms = RS_REMOTE_LEASE_MS;
	r->watched = true;
	return r;
}

/* ---- memory ---- */

/* Where stream `id` is: the number of its chunk, in which it is the `*at`-th of `*n`. */
static uint32_t chunk_of(uint32_t id, uint32_t *at, uint32_t *n)
{
	uint32_t log = id ? 31 - (uint32_t)__builtin_clz(id) : 0;

	if (id >= RS_REMOTE_CHUNK) {
		*n = RS_REMOTE_CHUNK;
		*at = id % RS_REMOTE_CHUNK;
		return id / RS_REMOTE_CHUNK + 3;
	}
	*n = 1u << log;
	*at = id ? id - *n : 0;
	return id ? log + 1 : 0;
}

static size_t registered; /* bytes, of all links */

size_t rs_remote_registered(void)
{
	return __atomic_load_n(&registered, __ATOMIC_RELAXED);
}

static void give_back(struct rs_rdma_mem *m)
{
	if (m->addr) {
		rs_sys2(SYS_munmap, m->addr, m->len);
		__atomic_fetch_sub(&registered, m->len, __ATOMIC_RELAXED);
	}
	memset(m, 0, sizeof(*m));
}

static void advise_one(const struct rs_rdma_mem *m, int advice)
{
	if (m->addr)
		rs_sys3(SYS_madvise, m->addr, m->len, advice);
}

/* Shared memory: a fork must not move what the device knows. */
static int map(struct rs_remote *r, struct rs_rdma_mem *m, size_t len, bool remote)
{
	long p = rs_sys6(SYS_mmap, 0, (long)len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			 -1, 0);
	int e;

	if ((unsigned long)p > -4096UL)
		return (int)p;
	rs_sys3(SYS_madvise, p, len, MADV_DONTDUMP);
	rs_sys3(SYS_madvise, p, len, MADV_DONTFORK);
	m->addr = (void *)p;
	m->len = len;
	__atomic_fetch_add(&registered, len, __ATOMIC_RELAXED);
	e = r->ops->map(r->qp, m, remote);
	if (e != 0)
		give_back(m);
	return e;
}

/* ---- messages that wait ---- */

/* Not by malloc(), which a handler that polls, or sends, may have interrupted. NULL: no memory. */
static struct rs_remote_msg *map_messages(size_t n)
{
	long p = rs_sys6(SYS_mmap, 0, (long)(n * sizeof(struct rs_remote_msg)),
			 PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return (unsigned long)p > -4096UL ? NULL : (struct rs_remote_msg *)p;
}

static void unmap_messages(struct rs_remote_msg *m, size_t n)
{
	rs_sys2(SYS_munmap, m, n * sizeof(*m));
}

/* The first of a pool holds the list of pools together. */
static bool more_messages(struct rs_remote *r)
{
	struct rs_remote_msg *m = r->npools < POOLS_MAX ? map_messages(POOL) : NULL;

	if (!m)
		return false;
	m->next = r->pools;
	r->pools = m;
	r->npools++;
	for (uint32_t i = 1; i < POOL; i++) {
		m[i].next = r->idle;
		r->idle = &m[i];
	}
	return true;
}

static void fill(struct rs_remote_msg *m, const uint8_t *bytes, size_t len)
{
	m->next = NULL;
	m->len = len;
	memcpy(m->bytes, bytes, len);
}

/* Under the lock. False: no memory, or too many wait. */
static bool queue(struct rs_remote *r, struct rs_remote_queue *q, const uint8_t *bytes, size_t len)
{
	struct rs_remote_msg *m;

	if (len > RS_MSG_MAX || (!r->idle && !more_messages(r)))
		return false;
	m = r->idle;
	r->idle = m->next;
	fill(m, bytes, len);
	*q->tail = m;
	q->tail = &m->next;
	return true;
}

static void unqueue(struct rs_remote *r, struct rs_remote_queue *q)
{
	struct rs_remote_msg *m = q->first;

	q->first = m->next;
	if (!q->first)
		q->tail = &q->first;
	if (m->late) {
		unmap_messages(m, 1);
	} else {
		m->next = r->idle;
		r->idle = m;
	}
}

static void drop_messages(struct rs_remote *r, struct rs_remote_queue *q)
{
	while (q->first)
		unqueue(r, q);
}

/* Sent by a handler that has interrupted its own thread under the lock: the control thread does it. */
static int send_late(struct rs_remote *r, const uint8_t *bytes, size_t len)
{
	struct rs_remote_msg *m = len <= RS_MSG_MAX ? map_messages(1) : NULL;

	if (!m)
		return -ENOMEM;
	fill(m, bytes, len);
	m->late = true;
	m->next = __atomic_load_n(&r->late, __ATOMIC_RELAXED);
	while (!__atomic_compare_exchange_n(&r->late, &m->next, m, false, __ATOMIC_RELEASE,
					    __ATOMIC_RELAXED))
		;
	__atomic_store_n(&r->room, true, __ATOMIC_SEQ_CST);
	rs_bell_ring(1);
	return 0;
}

/* Under the lock: what was sent late goes behind what waits, the newest last. */
static void take_late(struct rs_remote *r)
{
	struct rs_remote_msg *m, *oldest = NULL;

	if (!__atomic_load_n(&r->late, __ATOMIC_RELAXED))
		return;
	m = __atomic_exchange_n(&r->late, NULL, __ATOMIC_ACQUIRE);
	while (m) {
		struct rs_remote_msg *next = m->next;

		m->next = oldest;
		oldest = m;
		m = next;
	}
	*r->out.tail = oldest;
	while (*r->out.tail)
		r->out.tail = &(*r->out.tail)->next;
}

void rs_remote_close(struct rs_remote *r)
{
	struct rs_qp *qp;

	rs_lock(&r->cq_lock);
	rs_lock(&r->lock);
	qp = r->qp;
	r->qp = NULL;
	__atomic_store_n(&r->broken, true, __ATOMIC_SEQ_CST);
	take_late(r);
	drop_messages(r, &r->in);
	drop_messages(r, &r->out);
	if (qp) {
		for (size_t i = 0; i < RS_REMOTE_CHUNKS; i++) {
			if (r->chunk[i].in.mr)
				r->ops->unmap(&r->chunk[i].in);
			if (r->chunk[i].out.mr)
				r->ops->unmap(&r->chunk[i].out);
			r->chunk[i].in.mr = NULL;
			r->chunk[i].out.mr = NULL;
		}
		for (struct rs_remote_extra *x = r->extra; x; x = x->next) {
			if (x->in.mr)
				r->ops->unmap(&x->in);
			if (x->out.mr)
				r->ops->unmap(&x->out);
			x->in.mr = NULL;
			x->out.mr = NULL;
		}
		r->ops->drop(qp);
	}
	/* The channel on which it sleeps is gone. */
	if (r->leader)
		rs_remote_wake_leader(r);
	rs_unlock(&r->lock);
	rs_unlock(&r->cq_lock);
}

void rs_remote_free(struct rs_remote *r)
{
	for (size_t i = 0; i < RS_REMOTE_CHUNKS; i++) {
		give_back(&r->chunk[i].in);
		give_back(&r->chunk[i].out);
	}
	while (r->extra) {
		struct rs_remote_extra *next = r->extra->next;

		give_back(&r->extra->in);
		give_back(&r->extra->out);
		free(r->extra);
		r->extra = next;
	}
	while (r->pools) {
		struct rs_remote_msg *next = r->pools->next;

		unmap_messages(r->pools, POOL);
		r->pools = next;
	}
	rs_remote_forget(r);
	free(r);
}

/* What the rings and staging rings are in. */
static void advise(const struct rs_remote *r, int advice)
{
	for (size_t i = 0; i < RS_REMOTE_CHUNKS; i++) {
		advise_one(&r->chunk[i].in, advice);
		advise_one(&r->chunk[i].out, advice);
	}
	for (const struct rs_remote_extra *x = r->extra; x; x = x->next) {
		advise_one(&x->in, advice);
		advise_one(&x->out, advice);
	}
}

void rs_remote_empty(struct rs_remote *r)
{
	if (!r->emptied)
		advise(r, MADV_REMOVE);
	r->emptied = true;
}

int rs_remote_block(struct rs_remote *r, uint32_t id, struct rs_remote_block *b)
{
	uint32_t at, n;
	struct rs_remote_chunk *c = &r->chunk[chunk_of(id, &at, &n)];
	int e;

	if (!r->qp)
		return -EPIPE;
	if (!c->out.addr) {
		e = c->in.addr ? 0 : map(r, &c->in, n * BLOCK, true);
		if (e == 0)
			e = map(r, &c->out, n * RS_REMOTE_RING, false);
		if (e != 0)
			return e;
	}
	b->addr = (uintptr_t)c->in.addr + at * BLOCK;
	b->rkey = c->in.rkey;
	return 0;
}

bool rs_remote_bind(struct rs_chan *c, struct rs_remote *r, uint32_t id, uint32_t peer_id,
		    const struct rs_remote_block *peer)
{
	uint32_t at, n;
	struct rs_remote_chunk *k = &r->chunk[chunk_of(id, &at, &n)];
	uint8_t *block = (uint8_t *)k->in.addr + at * BLOCK;
	struct rs_shm_link *l = r->link;
	struct rs_chan to = { .link = l, .remote = r, .id = id, .peer_id = peer_id };

	if (id / RS_SHM_SLOTS >= l->nmine || !k->out.addr || peer_id >= RS_REMOTE_STREAMS)
		return false;
	to.lkey[0] = k->out.lkey;
	to.peer_block = peer->addr;
	to.peer_ring[0] = peer->addr + PAGE;
	to.peer_key[0] = peer->rkey;
	to.mine = &l->mine[id / RS_SHM_SLOTS]->slot[id % RS_SHM_SLOTS];
	to.peer = (struct rs_shm_slot *)(void *)block;
	memset(to.peer, 0, sizeof(*to.peer));
	to.mine_bells = l->mine[id / RS_SHM_SLOTS]->bells;
	to.rx_ring[0] = block + PAGE;
	to.tx_ring[0] = (uint8_t *)k->out.addr + at * RS_REMOTE_RING;
	to.shift[0] = (uint8_t)__builtin_ctzll(RS_REMOTE_RING);
	to.shift[1] = (uint8_t)__builtin_ctzll(RS_REMOTE_LARGE);
	to.rx_most = RS_REMOTE_RING;
	to.tx_tiers = 1;
	rs_chan_set(c, &to);
	return true;
}

/* ---- completions ---- */

static void flush_messages(struct rs_remote *r)
{
	take_late(r);
	while (r->out.first && r->qp) {
		const struct rs_remote_msg *m = r->out.first;

		if (r->ops->post_msg(r->qp, m->bytes, m->len) != 0)
			break;
		unqueue(r, &r->out);
	}
}

static void mark_stream(uint64_t *set, uint32_t id)
{
	__atomic_fetch_or(&set[id / 64], (uint64_t)1 << id % 64, __ATOMIC_SEQ_CST);
}

static void stall(struct rs_remote *r, uint32_t id)
{
	mark_stream(r->stalled, id);
}

static void broken(struct rs_remote *r)
{
	__atomic_store_n(&r->broken, true, __ATOMIC_SEQ_CST);
	rs_bell_ring(1); /* the control thread buries it */
}

/* The tier of the last switch that has come. */
static uint8_t last_tier(const struct rs_shm_slot *s, uint64_t *since)
{
	uint32_t n = __atomic_load_n(&s->nseg, __ATOMIC_ACQUIRE);
	uint64_t seg = n ? __atomic_load_n(&s->seg[(n - 1) % RS_SEGS], __ATOMIC_ACQUIRE) : 0;

	*since = seg >> 2;
	return seg & 3;
}

/* What comes now is in a ring of `tier`. */
static __attribute__((noinline)) void note_tier(struct rs_remote *r, uint32_t id, uint8_t tier)
{
	struct rs_shm_slot *s = &r->link->mine[id / RS_SHM_SLOTS]->slot[id % RS_SHM_SLOTS];
	uint32_t n = s->nseg;
	uint64_t since;

	if (tier == last_tier(s, &since) || RS_FAULT(TIER_LOST))
		return;
	__atomic_store_n(&s->seg[n % RS_SEGS], s->tail << 2 | tier, __ATOMIC_RELEASE);
	__atomic_store_n(&s->nseg, n + 1, __ATOMIC_RELEASE);
	if (RS_FAULT(SWITCH_UNTOLD))
		return;
	/* The control thread looks whether to tell how far we have read. */
	stall(r, id);
	__atomic_store_n(&r->room, true, __ATOMIC_SEQ_CST);
	rs_bell_ring(1);
}

static void landed(struct rs_remote *r, uint32_t imm)
{
	uint32_t id = imm >> ID_SHIFT, len = imm & LEN_MASK, waits;
	uint8_t tier = imm >> TIER_SHIFT & 1;
	struct rs_shm_slot *s;

	if (id / RS_SHM_SLOTS >= __atomic_load_n(&r->link->nmine, __ATOMIC_ACQUIRE)) {
		broken(r);
		return;
	}
	s = &r->link->mine[id / RS_SHM_SLOTS]->slot[id % RS_SHM_SLOTS];
	if (__builtin_expect((s->nseg | tier) && len, 0))
		note_tier(r, id, tier);
	/* Whether there is that ring, and it holds so much, the reader checks. */
	if (len && !(RS_FAULT(IMM_LOST) && len > RS_REMOTE_CUT / 2))
		__atomic_fetch_add(&s->tail, len, __ATOMIC_SEQ_CST);
	/* As any sender: publish, then look for who waits, and has looked after saying so. */
	waits = len ? __atomic_load_n(&s->rx_wait, __ATOMIC_SEQ_CST) |
				__atomic_load_n(&s->rx_mask, __ATOMIC_SEQ_CST)
		    : __atomic_load_n(&s->tx_wait, __ATOMIC_SEQ_CST) |
				__atomic_load_n(&s->tx_mask, __ATOMIC_SEQ_CST);
	if (!waits)
		return;
	/* Who is woken wants the lock next. */
	if (r->wakes < RS_REMOTE_WAKES)
		r->wake[r->wakes++] = id << 1 | (len != 0);
	else
		rs_shm_wake(r->link, id, len != 0);
}

static void done(void *arg, const struct rs_rdma_done *d)
{
	struct rs_remote *r = arg;
	bool found;

	switch (d->kind) {
	case RS_RDMA_DATA:
		landed(r, d->imm);
		break;
	case RS_RDMA_MSG:
		rs_lock(&r->lock);
		if (queue(r, &r->in, d->bytes, d->len))
			__atomic_store_n(&r->any_in, true, __ATOMIC_RELAXED);
		else
			broken(r); /* a lost message could stop a stream for ever: leave all */
		rs_unlock(&r->lock);
		rs_bell_ring(1);
		break;
	case RS_RDMA_ROOM:
		rs_lock(&r->lock);
		flush_messages(r);
		found = r->waiting;
		__atomic_store_n(&r->waiting, false, __ATOMIC_SEQ_CST);
		if (found)
			__atomic_store_n(&r->room, true, __ATOMIC_RELAXED);
		rs_unlock(&r->lock);
		if (found)
			rs_bell_ring(1);
		break;
	case RS_RDMA_OWES:
		rs_lock(&r->lock);
		if (r->qp && r->ops->settle(r->qp) == -EPIPE)
			broken(r);
		rs_unlock(&r->lock);
		break;
	case RS_RDMA_BROKEN:
		if (!RS_FAULT(ERROR_IGNORED))
			broken(r);
		break;
	}
}

static __attribute__((noinline)) uint32_t unlock_and_wake(struct rs_remote *r)
{
	uint32_t wake[RS_REMOTE_WAKES], n = r->wakes, woken = 0;

	memcpy(wake, r->wake, n * sizeof(*wake));
	r->wakes = 0;
	rs_unlock(&r->cq_lock);
	for (uint32_t i = 0; i < n; i++)
		woken += rs_shm_wake(r->link, wake[i] >> 1, wake[i] & 1);
	return woken;
}

/* Releases the lock; how many threads were woken out of a slot. */
static inline uint32_t unlock(struct rs_remote *r)
{
	if (r->wakes)
		return unlock_and_wake(r);
	rs_unlock(&r->cq_lock);
	return 0;
}

static __attribute__((noinline)) void poll_more(struct rs_remote *r)
{
	int n = BATCH;

	for (uint32_t turns = 1; n == BATCH && turns < TURN; turns++)
		n = r->qp ? r->ops->poll(r->qp, BATCH, done, r) : 0;
	r->more = n == BATCH;
}

/* All that is there, within reason: `more` says that it was not. How many there were, about. */
static inline int poll_all(struct rs_remote *r)
{
	int n = r->qp ? r->ops->poll(r->qp, BATCH, done, r) : 0;

	/* Less than was asked for is all that there was. */
	r->more = false;
	if (n == BATCH)
		poll_more(r);
	return n;
}

bool rs_remote_progress(struct rs_remote *r)
{
	int n;

	/* A handler may have interrupted this thread's own poll or post. */
	if (rs_lock_mine(&r->lock) || !rs_trylock(&r->cq_lock))
		return true;
	n = poll_all(r);
	r->polled += n != 0;
	unlock(r);
	return n != 0;
}

static void arm(struct rs_remote *r)
{
	if (r->armed || !r->qp)
		return;
	if (r->ops->arm(r->qp) != 0) {
		broken(r);
		return;
	}
	__atomic_store_n(&r->armed, true, __ATOMIC_SEQ_CST);
	poll_all(r); /* what came before does not count */
}

/* Has the control thread look, which sees to it that whoever sleeps is woken. */
static void come_soon(struct rs_remote *r)
{
	__atomic_store_n(&r->missed, true, __ATOMIC_RELAXED);
	__atomic_store_n(&r->lease, rs_now_ms() + AGAIN_MS, __ATOMIC_SEQ_CST);
	rs_bell_ring(1);
}

/* A lease begins at `now`, or goes on. */
static void lease(struct rs_remote *r, uint64_t now, uint32_t ms)
{
	r->lease_ms = ms < RS_REMOTE_LEASE_MOST_MS ? ms : RS_REMOTE_LEASE_MOST_MS;
	__atomic_store_n(&r->lease, now + r->lease_ms, __ATOMIC_RELAXED);
}

static void guard(struct rs_remote *r)
{
	arm(r);
	if (!r->qp || rs_remote_broken(r))
		return;
	if (r->more) { /* what is left would not wake anybody */
		come_soon(r);
		return;
	}
	if (!r->watched)
		r->watch(r, true);
	__atomic_store_n(&r->watched, true, __ATOMIC_SEQ_CST);
	__atomic_store_n(&r->lease, 0, __ATOMIC_RELAXED);
}

static bool bell_asleep(const struct rs_remote *r)
{
	for (uint32_t used = rs_bell_used(); used; used &= used - 1) {
		uint32_t b = (uint32_t)__builtin_ctz(used);

		if (__atomic_load_n(&r->link->mine[0]->bells[b].asleep, __ATOMIC_SEQ_CST))
			return true;
	}
	return false;
}

/* Somebody else than the leader and `woken` threads, who are about to be awake, sleeps. */
static bool anybody_sleeps(const struct rs_remote *r, uint32_t woken)
{
	woken += __atomic_load_n(&r->leader, __ATOMIC_SEQ_CST);
	return __atomic_load_n(&r->resting, __ATOMIC_SEQ_CST) > woken ||
	       __atomic_load_n(&r->waiting, __ATOMIC_SEQ_CST) || bell_asleep(r);
}

/* The next completion wakes a thread that polls. */
static bool somebody_comes(const struct rs_remote *r)
{
	return __atomic_load_n(&r->armed, __ATOMIC_SEQ_CST) &&
	       (__atomic_load_n(&r->watched, __ATOMIC_SEQ_CST) ||
		__atomic_load_n(&r->leader, __ATOMIC_SEQ_CST));
}

void rs_remote_spin(struct rs_remote *r)
{
	__atomic_fetch_add(&r->spinning, 1, __ATOMIC_SEQ_CST);
}

void rs_remote_unspin(struct rs_remote *r)
{
	if (__atomic_sub_fetch(&r->spinning, 1, __ATOMIC_SEQ_CST) == 0 && !somebody_comes(r) &&
	    anybody_sleeps(r, 0))
		rs_remote_arm(r);
}

void rs_remote_arm(struct rs_remote *r)
{
	if (rs_remote_interrupted(r)) {
		come_soon(r);
		return;
	}
	rs_lock(&r->cq_lock);
	guard(r);
	unlock(r);
}

/* Under cq_lock. */
static bool lead(struct rs_remote *r, int fds[2])
{
	if (r->leader || !r->qp || rs_remote_broken(r) || anybody_sleeps(r, 1))
		return false;
	if (r->wake_fd < 0)
		r->wake_fd = rs_fd_hide((int)rs_sys2(SYS_eventfd2, 0, EFD_NONBLOCK | EFD_CLOEXEC));
	if (r->wake_fd < 0)
		return false;
	fds[0] = r->ops->fd(r->qp);
	fds[1] = r->wake_fd;
	arm(r);
	if (r->watched) {
		lease(r, rs_now_ms(), RS_REMOTE_LEASE_MS);
		r->watch(r, false);
		__atomic_store_n(&r->watched, false, __ATOMIC_SEQ_CST);
	}
	__atomic_store_n(&r->leader, true, __ATOMIC_SEQ_CST);
	return true;
}

bool rs_remote_rest(struct rs_remote *r, bool may, int fds[2])
{
	bool leads;

	__atomic_fetch_add(&r->resting, 1, __ATOMIC_SEQ_CST);
	rs_lock(&r->cq_lock);
	leads = may && lead(r, fds);
	if (!leads)
		guard(r);
	unlock(r);
	return leads;
}

void rs_remote_awake(struct rs_remote *r)
{
	__atomic_fetch_sub(&r->resting, 1, __ATOMIC_SEQ_CST);
}

void rs_remote_led(struct rs_remote *r, bool event, bool rung)
{
	uint32_t woken;

	rs_lock(&r->cq_lock);
	__atomic_store_n(&r->leader, false, __ATOMIC_SEQ_CST);
	if (rung)
		rs_eventfd_clear(r->wake_fd);
	if (event && r->qp) {
		r->ops->disarm(r->qp);
		if (r->watched) {
			/* It was taken for one that does not come back, or slept through a lease. */
			lease(r, rs_now_ms(), RS_REMOTE_LEASE_MS);
			r->watch(r, false);
			__atomic_store_n(&r->watched, false, __ATOMIC_SEQ_CST);
		}
		__atomic_store_n(&r->armed, false, __ATOMIC_SEQ_CST);
	}
	r->polled += poll_all(r) != 0;
	woken = unlock(r);
	rs_remote_awake(r);
	if (!__atomic_load_n(&r->spinning, __ATOMIC_SEQ_CST) && anybody_sleeps(r, woken))
		rs_remote_arm(r);
}

void rs_remote_wake_leader(struct rs_remote *r)
{
	rs_eventfd_ring(r->wake_fd);
}

void rs_remote_inherit(struct rs_remote *r)
{
	bool locked = !rs_remote_interrupted(r);

	if (locked) {
		rs_lock(&r->cq_lock);
		rs_lock(&r->lock);
	}
	advise(r, MADV_DOFORK);
	/* The queue pair ends with this process; its copy must not touch it. */
	r->qp = NULL;
	__atomic_store_n(&r->broken, true, __ATOMIC_SEQ_CST);
	if (locked) {
		rs_unlock(&r->lock);
		rs_unlock(&r->cq_lock);
	}
}

void rs_remote_forget(struct rs_remote *r)
{
	if (r->wake_fd >= 0)
		rs_fd_close(r->wake_fd);
	r->wake_fd = -1;
}

uint64_t rs_remote_event(struct rs_remote *r)
{
	uint64_t now = rs_now_ms();
	uint32_t woken;

	if (!rs_trylock(&r->cq_lock)) {
		__atomic_store_n(&r->missed, true, __ATOMIC_RELAXED);
		__atomic_store_n(&r->lease, now + AGAIN_MS, __ATOMIC_RELAXED);
		return now + AGAIN_MS;
	}
	__atomic_store_n(&r->missed, false, __ATOMIC_RELAXED);
	if (r->qp) {
		r->ops->disarm(r->qp);
		lease(r, now, RS_REMOTE_LEASE_MS);
		__atomic_store_n(&r->armed, false, __ATOMIC_SEQ_CST);
		poll_all(r);
	}
	woken = unlock(r);
	if (!__atomic_load_n(&r->spinning, __ATOMIC_SEQ_CST) && anybody_sleeps(r, woken))
		rs_remote_arm(r);
	return __atomic_load_n(&r->lease, __ATOMIC_RELAXED);
}

uint64_t rs_remote_timer(struct rs_remote *r, uint64_t now)
{
	uint64_t due = __atomic_load_n(&r->lease, __ATOMIC_RELAXED);
	bool found;

	if (__atomic_load_n(&r->missed, __ATOMIC_RELAXED) && now >= due)
		return rs_remote_event(r);
	if (!due || now < due)
		return due;
	if (!rs_trylock(&r->cq_lock)) {
		__atomic_store_n(&r->lease, now + AGAIN_MS, __ATOMIC_RELAXED);
		return now + AGAIN_MS;
	}
	found = poll_all(r) != 0;
	if (r->polled == r->polled_then || (found && r->leader && !r->watched) ||
	    (!__atomic_load_n(&r->spinning, __ATOMIC_SEQ_CST) && anybody_sleeps(r, 0)))
		guard(r);
	else
		lease(r, now, 2 * r->lease_ms);
	r->polled_then = r->polled;
	due = r->lease;
	unlock(r);
	return due;
}

bool rs_remote_broken(const struct rs_remote *r)
{
	return __atomic_load_n(&r->broken, __ATOMIC_SEQ_CST);
}

/* ---- messages ---- */

int rs_remote_send(struct rs_remote *r, const uint8_t *bytes, size_t len)
{
	int e = -EAGAIN;

	if (rs_lock_mine(&r->lock))
		return send_late(r, bytes, len);
	rs_lock(&r->lock);
	flush_messages(r);
	if (!r->qp || rs_remote_broken(r))
		e = -EPIPE;
	else if (!r->out.first)
		e = r->ops->post_msg(r->qp, bytes, len);
	if (e == -EAGAIN)
		e = queue(r, &r->out, bytes, len) ? 0 : -ENOMEM;
	if (e == -EPIPE && r->qp)
		broken(r);
	rs_unlock(&r->lock);
	return e;
}

bool rs_remote_receive(struct rs_remote *r, uint8_t *bytes, size_t *len)
{
	const struct rs_remote_msg *m;

	if (!__atomic_load_n(&r->any_in, __ATOMIC_RELAXED))
		return false;
	rs_lock(&r->lock);
	m = r->in.first;
	if (m) {
		memcpy(bytes, m->bytes, m->len);
		*len = m->len;
		unqueue(r, &r->in);
	}
	if (!r->in.first)
		__atomic_store_n(&r->any_in, false, __ATOMIC_RELAXED);
	rs_unlock(&r->lock);
	return m != NULL;
}

/* ---- data ---- */

/* Under the lock: ROOM is to come. */
static void stall_for_room(struct rs_remote *r, uint32_t id)
{
	stall(r, id);
	__atomic_store_n(&r->waiting, true, __ATOMIC_SEQ_CST);
}

/* After that, without the lock: somebody will be woken. */
static void await_room(struct rs_remote *r)
{
	if (!RS_FAULT(STALL_UNARMED) && !__atomic_load_n(&r->spinning, __ATOMIC_SEQ_CST) &&
	    !somebody_comes(r))
		rs_remote_arm(r);
}

/*
 * Takes the lock. False: this is a signal handler, inside this thread's own post; the control thread
 * does it.
 */
static inline bool lock_to_post(struct rs_remote *r, uint32_t id)
{
	if (__builtin_expect(rs_trylock(&r->lock), 1))
		return true;
	if (!rs_lock_mine(&r->lock)) {
		rs_lock(&r->lock);
		return true;
	}
	stall(r, id);
	__atomic_store_n(&r->room, true, __ATOMIC_SEQ_CST);
	rs_bell_ring(1);
	return false;
}

static uint32_t words(const struct rs_remote *r)
{
	return __atomic_load_n(&r->link->nmine, __ATOMIC_ACQUIRE) * RS_SHM_SLOTS / 64;
}

void rs_remote_retry(struct rs_remote *r, void (*each)(void *arg, uint32_t id), void *arg)
{
	uint64_t stalled[RS_REMOTE_STREAMS / 64];
	uint32_t n = words(r);

	if (!__atomic_load_n(&r->room, __ATOMIC_RELAXED))
		return;
	rs_lock(&r->lock);
	__atomic_store_n(&r->room, false, __ATOMIC_RELAXED);
	flush_messages(r);
	for (uint32_t i = 0; i < n; i++)
		stalled[i] = __atomic_exchange_n(&r->stalled[i], 0, __ATOMIC_SEQ_CST);
	rs_unlock(&r->lock);
	for (uint32_t i = 0; i < n; i++)
		for (; stalled[i]; stalled[i] &= stalled[i] - 1)
			each(arg, i * 64 + (uint32_t)__builtin_ctzll(stalled[i]));
}

/* Whether a small write has to wait for others of its stream. Else it counts as one. */
static inline bool keeps_back(struct rs_remote *r, struct rs_chan *c)
{
	if (c->burst >= RS_RDMA_SIGNAL_EVERY) {
		if (r->ops->pending(r->qp, c->burst_mark))
			return true;
		c->burst = 0;
	}
	if (c->burst++ == 0)
		c->burst_mark = r->ops->posted(r->qp) + 1;
	return false;
}

/* What is posted next: in which ring it is, and up to where. */
static inline uint8_t next_tier(const struct rs_chan *c, uint64_t *upto)
{
	*upto = c->tail;
	if (__builtin_expect(c->posted >= c->tx_start, 1) || RS_FAULT(TIER_OF_TAIL))
		return c->tx_tier;
	return rs_chan_tx_tier(c, c->posted, upto);
}

/* Under the lock. False: the rest has to wait for completions. */
static __always_inline bool post_all(struct rs_remote *r, struct rs_chan *c)
{
	while (c->posted < c->tail && r->qp) {
		uint64_t upto, left;
		uint8_t tier = next_tier(c, &upto);
		size_t size = (size_t)1 << c->shift[tier], pos = c->posted & (size - 1);
		uint32_t n;
		int e;

		left = upto - c->posted;
		n = left < RS_REMOTE_CUT ? (uint32_t)left : RS_REMOTE_CUT;
		if (n > size - pos)
			n = (uint32_t)(size - pos);
		if (left < RS_REMOTE_SMALL && keeps_back(r, c))
			return false;
		e = r->ops->post_write(r->qp, c->tx_ring[tier] + pos, n, c->lkey[tier],
				       c->peer_ring[tier] + pos, c->peer_key[tier],
				       c->peer_id << ID_SHIFT | (uint32_t)tier << TIER_SHIFT | n);
		if (e == -EAGAIN)
			return false;
		if (e != 0) {
			broken(r);
			break;
		}
		c->posted += n;
	}
	return true;
}

/* The rest, once more: what is complete may not have been polled. */
static __attribute__((noinline)) void post_rest(struct rs_remote *r, struct rs_chan *c)
{
	rs_remote_progress(r);
	if (!lock_to_post(r, c->id))
		return;
	c->held = !post_all(r, c);
	if (c->held && !RS_FAULT(RETRY_FORGOTTEN))
		stall_for_room(r, c->id);
	rs_unlock(&r->lock);
	if (c->held)
		await_room(r);
}

void rs_remote_post(struct rs_chan *c)
{
	struct rs_remote *r = c->remote;
	bool all;

	if ((!c->open && !RS_FAULT(LATE_WRITE)) || c->posted == c->tail || !lock_to_post(r, c->id))
		return;
	c->held = false;
	all = post_all(r, c);
	rs_unlock(&r->lock);
	if (!all)
		post_rest(r, c);
}

void rs_remote_open(struct rs_chan *c, bool open)
{
	c->open = open;
	if (open)
		rs_remote_post(c);
}

/*
 * When the peer is to be told next. Of what was before its last switch as soon as that is read: it may
 * want to go back.
 */
static uint64_t next_tell(const struct rs_chan *c)
{
	uint64_t since, at;

	at = c->told + rs_remote_tell(last_tier(c->mine, &since));
	return since > c->told && since < at ? since : at;
}

void rs_remote_credit(struct rs_chan *c)
{
	struct rs_remote *r = c->remote;
	uint64_t head = c->head;
	int e = 0;

	if (head < c->tell_at)
		c->tell_at = next_tell(c);
	if (c->mute || head == c->told || (!c->eager && head < c->tell_at) ||
	    !lock_to_post(r, c->id))
		return;
	if (r->qp) {
		e = r->ops->post_write(r->qp, &head, sizeof(head), 0,
				       c->peer_block + offsetof(struct rs_shm_slot, head),
				       c->peer_key[0], c->peer_id << ID_SHIFT);
		if (e == 0)
			c->told = head;
		else if (e == -EAGAIN)
			stall_for_room(r, c->id);
		else
			broken(r);
		if (RS_FAULT(CREDIT_LEAK))
			c->told = head;
	}
	rs_unlock(&r->lock);
	if (e == -EAGAIN)
		await_room(r);
	c->tell_at = next_tell(c);
}

void rs_remote_credit_now(struct rs_chan *c)
{
	bool eager = c->eager;

	if (c->head - c->told < RS_REMOTE_LITTLE)
		return;
	c->eager = true;
	rs_remote_credit(c);
	c->eager = eager;
}

/* ---- larger rings ---- */

#define REFUSED_WAIT 64u /* times found full until one that was refused is asked for again */
#define REFUSALS_MAX 10u

void rs_remote_ask(struct rs_chan *c)
{
	struct rs_remote *r = c->remote;

	if (c->large != RS_LARGE_NONE || !r->may_grow || !c->open)
		return;
	if (c->ask_wait) {
		c->ask_wait--;
		return;
	}
	c->large = RS_LARGE_WANTED;
	mark_stream(r->wants, c->id);
	__atomic_store_n(&r->wanted, true, __ATOMIC_SEQ_CST);
	rs_bell_ring(1);
}

void rs_remote_wanted(struct rs_remote *r, void (*each)(void *arg, uint32_t id), void *arg)
{
	if (!__atomic_load_n(&r->wanted, __ATOMIC_RELAXED))
		return;
	__atomic_store_n(&r->wanted, false, __ATOMIC_SEQ_CST);
	for (uint32_t i = 0; i < words(r); i++) {
		uint64_t bits = __atomic_exchange_n(&r->wants[i], 0, __ATOMIC_SEQ_CST);

		for (; bits; bits &= bits - 1)
			each(arg, i * 64 + (uint32_t)__builtin_ctzll(bits));
	}
}

static struct rs_remote_extra *extra_of(const struct rs_remote *r, uint32_t id)
{
	struct rs_remote_extra *x = r->extra;

	while (x && x->id != id)
		x = x->next;
	return x;
}

/* The first `n` work requests are complete. */
static bool complete(struct rs_remote *r, uint32_t n)
{
	bool yes;

	rs_lock(&r->lock);
	yes = !r->qp || !r->ops->pending(r->qp, n);
	rs_unlock(&r->lock);
	return yes;
}

static uint32_t posted_so_far(struct rs_remote *r)
{
	uint32_t n;

	rs_lock(&r->lock);
	n = r->qp ? r->ops->posted(r->qp) : 0;
	rs_unlock(&r->lock);
	return n;
}

int rs_remote_make(struct rs_remote *r, uint32_t id, bool in)
{
	struct rs_remote_extra *x = extra_of(r, id);
	struct rs_rdma_mem m = { 0 };
	int e;

	if (!r->qp)
		return -EPIPE;
	if (!x) {
		x = calloc(1, sizeof(*x));
		if (!x)
			return -ENOMEM;
		x->id = id;
		rs_lock(&r->lock);
		x->next = r->extra;
		r->extra = x;
		rs_unlock(&r->lock);
	}
	/* What is left of another stream's there must not change any more. */
	if (!in && x->leaving && !complete(r, x->mark))
		return -EBUSY;
	x->leaving &= in;
	if ((in ? &x->in : &x->out)->addr)
		return 0;
	e = map(r, &m, RS_REMOTE_LARGE, in);
	if (e != 0)
		return e;
	rs_lock(&r->lock);
	*(in ? &x->in : &x->out) = m;
	rs_unlock(&r->lock);
	return 0;
}

/* It is asked for later, or never. */
static void refused(struct rs_chan *c)
{
	c->large = RS_LARGE_NONE;
	c->ask_wait = REFUSED_WAIT << c->refusals;
	if (c->refusals < REFUSALS_MAX)
		c->refusals++;
}

bool rs_remote_want(struct rs_chan *c, bool made)
{
	const struct rs_remote_extra *x = extra_of(c->remote, c->id);

	if (c->large != RS_LARGE_WANTED)
		return false;
	if (!made || c->mute || !c->open) {
		refused(c);
		return false;
	}
	c->tx_ring[1] = x->out.addr;
	c->lkey[1] = x->out.lkey;
	c->large = RS_LARGE_ASKED;
	return true;
}

void rs_remote_offer(struct rs_chan *c, bool made, struct rs_remote_block *b)
{
	const struct rs_remote_extra *x = extra_of(c->remote, c->id);

	*b = (struct rs_remote_block){ 0 };
	if (!made)
		return;
	c->rx_ring[1] = x->in.addr;
	c->rx_most = RS_REMOTE_RING + RS_REMOTE_LARGE;
	c->rx_dropped = false;
	b->addr = (uintptr_t)x->in.addr;
	b->rkey = x->in.rkey;
}

bool rs_remote_offered(struct rs_chan *c, const struct rs_remote_block *b)
{
	if (c->large != RS_LARGE_ASKED)
		return false;
	if (!b->addr) {
		c->tx_ring[1] = NULL;
		refused(c);
		return false;
	}
	c->peer_ring[1] = b->addr;
	c->peer_key[1] = b->rkey;
	c->large = RS_LARGE_THERE;
	c->needed = true;
	c->idle = 0;
	c->tx_tiers = RS_REMOTE_TIERS;
	return true;
}

/* Whether all that the peer wrote into the larger ring was read: then that is over. */
static void drop_in(struct rs_chan *c)
{
	if (!c->rx_dropped || (c->head < c->rx_drop && !RS_FAULT(DROP_UNREAD)))
		return;
	c->rx_dropped = false;
	c->rx_ring[1] = NULL;
	c->rx_most = RS_REMOTE_RING;
	c->tell_at = c->head;
	rs_remote_credit(c);
}

void rs_remote_dropped(struct rs_chan *c)
{
	if (!c->rx_ring[1])
		return;
	/* What was written before has landed before this message. */
	c->rx_dropped = true;
	c->rx_drop = __atomic_load_n(&c->mine->tail, __ATOMIC_ACQUIRE);
	drop_in(c);
}

bool rs_remote_look(struct rs_chan *c)
{
	drop_in(c);
	if (c->large == RS_LARGE_DROPPED) {
		if (rs_chan_tx_head(c) >= c->tx_drop || RS_FAULT(DROP_UNSENT)) {
			c->tx_ring[1] = NULL;
			c->large = RS_LARGE_NONE;
			c->refusals = 0;
		}
		return false;
	}
	if (c->large != RS_LARGE_THERE)
		return false;
	if (c->needed)
		c->idle = 0;
	else if (c->idle < RS_REMOTE_IDLE)
		c->idle++;
	c->needed = false;
	if (!c->idle || !rs_chan_tx_down(c) || c->idle < RS_REMOTE_IDLE)
		return false;
	if (c->posted < c->tx_start)
		return false;
	c->large = RS_LARGE_DROPPED;
	c->tx_tiers = 1;
	c->tx_drop = c->tx_start;
	return true;
}

static void drop_mem(struct rs_remote *r, struct rs_rdma_mem *of)
{
	struct rs_rdma_mem m = *of;

	rs_lock(&r->lock);
	memset(of, 0, sizeof(*of));
	rs_unlock(&r->lock);
	if (m.mr)
		r->ops->unmap(&m);
	give_back(&m);
}

/* There may be writes that are not complete, of a stream that has ended even such as have not arrived. */
static bool has_left(struct rs_remote *r, struct rs_remote_extra *x)
{
	if (!x->leaving) {
		x->leaving = true;
		x->mark = posted_so_far(r);
	}
	return complete(r, x->mark) || RS_FAULT(DROP_UNSENT);
}

void rs_remote_sweep(struct rs_remote *r, uint32_t (*used)(void *arg, uint32_t id), void *arg)
{
	struct rs_remote_extra **at = &r->extra, *x;

	while ((x = *at)) {
		uint32_t uses = used(arg, x->id);

		if (!(uses & RS_USES_IN) && x->in.addr)
			drop_mem(r, &x->in);
		if (!(uses & RS_USES_OUT) && x->out.addr && has_left(r, x))
			drop_mem(r, &x->out);
		if (x->in.addr || x->out.addr) {
			at = &x->next;
			continue;
		}
		rs_lock(&r->lock);
		*at = x->next;
		rs_unlock(&r->lock);
		free(x);
	}
}
