/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * conn_fast.c - send and recv when nothing is in the way
 *
 * A small message, a direction on the fast path, room in the ring or bytes in it; no error, no end,
 * no other thread. That is nearly every call of a program that talks in small messages, and the many
 * cases of conn_io.c would cost it more than the message itself. Whoever finds anything else does
 * nothing, and says so: conn_io.c knows what to do.
 */
#include <string.h>

#include "conn_mgr/conn_edge.h"

#define MOST ((size_t)4096) /* what a copy of these costs hides the rest */

/* For other addresses the kernel has an error. */
static bool small(const void *buf, size_t n)
{
	return n - 1 < MOST && (uintptr_t)buf - 4096 < ((uintptr_t)1 << 47) - 2 * MOST;
}

/* As rs_chan_tx_room() has it, when it need not think of another ring. */
static inline bool fits(struct rs_chan *ch, size_t size, size_t n)
{
	size_t used = (size_t)(ch->tail - ch->tx_head);

	if (used > size / 2) {
		used = (size_t)(ch->tail - rs_chan_tx_head(ch));
		ch->needed |= used > size / 2;
	}
	if (ch->tail - ch->tx_start < used) /* the rest is in other rings */
		used = (size_t)(ch->tail - ch->tx_start);
	/* Over RDMA no limit is as low as RS_REMOTE_TELL. */
	if (rs_chan_tx_limited(ch) && !(ch->remote && used + n <= RS_REMOTE_TELL) &&
	    ch->tail - ch->tx_head + n > rs_chan_tx_limit(ch))
		return false;
	return (ch->remote ? used + n <= size : used <= size / 2) &&
	       (ch->tail & (size - 1)) + n <= size;
}

static inline bool may_send(const struct rs_conn *c, const struct rs_state *st)
{
	const struct rs_stream *s = &st->sm;

	return !(c->plain | c->reset | c->broken | c->tcp_closed | s->dead | s->fin_wanted) &&
	       !c->err && s->tx == RS_TX_FAST && (!st->ch.tx_tier || st->ch.remote);
}

/* Under its lock: it is not gone, nor has its place been given to another. */
static bool still_there(struct rs_conn_found found)
{
	return __atomic_load_n(found.entry, __ATOMIC_ACQUIRE) == found.word;
}

static inline void unlock(struct rs_conn *c)
{
	rs_conn_unlock(c);
	/* Closed by a handler that interrupted us. */
	if (__builtin_expect(__atomic_load_n(&c->orphan, __ATOMIC_RELAXED), 0))
		rs_conn_end_orphan(c);
}

ssize_t rs_conn_send_fast(struct rs_conn *c, struct rs_conn_found found, const void *buf, size_t n)
{
	struct rs_state *st;
	struct rs_chan *ch;
	bool may = false;
	size_t size;

	if (!small(buf, n) || !rs_trylock(&c->lock))
		return RS_LONG_WAY;
	if (!still_there(found))
		goto out;
	st = c->st;
	ch = &st->ch;
	size = (size_t)1 << ch->shift[ch->tx_tier];
	may = may_send(c, st) && fits(ch, size, n);
	if (may) {
		memcpy(ch->tx_ring[ch->tx_tier] + (ch->tail & (size - 1)), buf, n);
		rs_chan_tx_publish(ch, ch->tail + n);
		rs_tx_ring(&st->sm, n);
		rs_asked = true;
		if (c->row) {
			c->row->tx_bytes = st->sm.tx_off;
			c->row->tx_fast_bytes += n;
		}
	}
out:
	unlock(c);
	return may ? (ssize_t)n : RS_LONG_WAY;
}

/* The ring that holds what is to be read next, and all that follows; RS_TIERS: more than one does. */
static uint8_t rx_tier(const struct rs_conn *c)
{
	const struct rs_shm_slot *mine = c->st->ch.mine;
	uint32_t n;
	uint64_t seg;

	n = __atomic_load_n(&mine->nseg, __ATOMIC_ACQUIRE);
	if (!n)
		return 0;
	seg = __atomic_load_n(&mine->seg[(n - 1) % RS_SEGS], __ATOMIC_ACQUIRE);
	return seg >> 2 <= c->st->sm.rx_off && (seg & 3) < RS_TIERS ? (uint8_t)(seg & 3) : RS_TIERS;
}

/* How many bytes can be copied from *from as they are, at most `n`. */
static inline size_t may_recv(struct rs_conn *c, size_t n, const uint8_t **from)
{
	const struct rs_stream *s = &c->st->sm;
	struct rs_chan *ch = &c->st->ch;
	size_t k, size, at;
	uint8_t tier;

	if ((c->plain | c->rd_shut | s->dead | s->rx_fin_known) || c->err || s->rx != RS_RX_FAST)
		return 0;
	k = (size_t)(rs_chan_rx_tail(ch) - s->rx_off);
	tier = rx_tier(c); /* after the tail, before which switches are published */
	if (!k || ch->rx_bad || tier == RS_TIERS)
		return 0;
	if (k > n)
		k = n;
	size = (size_t)1 << ch->shift[tier];
	at = s->rx_off & (size - 1);
	if (__builtin_expect(!ch->rx_ring[tier], 0))
		return 0;
	*from = ch->rx_ring[tier] + at;
	return at + k <= size ? k : 0;
}

bool rs_conn_ring_empty(const struct rs_conn *c)
{
	const struct rs_stream *s = &c->st->sm;

	return !(c->rd_shut | c->st->ch.rx_bad | s->dead | s->rx_fin_known) && !c->err &&
	       s->rx == RS_RX_FAST &&
	       __atomic_load_n(&c->st->ch.mine->tail, __ATOMIC_ACQUIRE) == s->rx_off &&
	       !__atomic_load_n(&c->st->ch.mine->fin, __ATOMIC_ACQUIRE);
}

static inline size_t take_ring(struct rs_conn *c, void *buf, size_t n, bool all)
{
	struct rs_state *st = c->st;
	const uint8_t *from;
	size_t k = may_recv(c, n, &from);

	if (!k || (all && k < n))
		return 0;
	memcpy(buf, from, k);
	rs_chan_rx_consume(&st->ch, st->sm.rx_off + k);
	rs_rx_ring(&st->sm, k);
	if (c->row) {
		c->row->rx_bytes = st->sm.rx_off;
		c->row->rx_fast_bytes += k;
	}
	return k;
}

size_t rs_conn_take_ring(struct rs_conn *c, void *buf, size_t n, bool all)
{
	return take_ring(c, buf, n, all);
}

/* As the last time: to poll first would only delay it, for whoever sleeps polls before that. */
static bool will_sleep(const struct rs_conn *c, int flags)
{
	return __atomic_load_n(&c->sleeps, __ATOMIC_RELAXED) && !(flags & MSG_DONTWAIT) &&
	       __atomic_load_n(&c->blocks_for_ever, __ATOMIC_RELAXED) ==
		       __atomic_load_n(&c->modes, __ATOMIC_RELAXED) + 1 &&
	       rs_conn_ring_empty(c);
}

ssize_t rs_conn_recv_fast(struct rs_conn *c, struct rs_conn_found found, int fd, void *buf,
			  size_t n, int flags)
{
	size_t k = 0;

	if (!small(buf, n) || !rs_trylock(&c->lock))
		return RS_LONG_WAY;
	if (still_there(found)) {
		if (will_sleep(c, flags))
			return rs_conn_recv_empty(c, fd, buf, n, flags);
		k = take_ring(c, buf, n, flags & MSG_WAITALL);
		if (!k && rs_conn_ring_empty(c)) /* rs_chan_rx_tail() has polled */
			return rs_conn_recv_empty(c, fd, buf, n, flags);
	}
	unlock(c);
	return k ? (ssize_t)k : RS_LONG_WAY;
}
