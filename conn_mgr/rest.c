/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/rest.h"

#include <limits.h>
#include <string.h>

#include "conn_mgr/conn_edge.h"
#include "rsock/sys.h"

/* Up to which offset; `reset`: that is how it ends. False: there is more to come, by TCP. */
static bool ends_at(const struct rs_stream *s, uint64_t *end, bool *reset)
{
	*reset = false;
	if (s->rx == RS_RX_FAST && s->rx_fin_frame) {
		*end = s->rx_fin;
		return true;
	}
	*end = s->rx_have;
	return s->rx == RS_RX_DRAIN && rs_rx_ends(s, reset);
}

static uint64_t word_of(uint32_t ends, uint64_t left)
{
	return (uint64_t)(ends + 1) << 32 | left;
}

bool rs_rest_declare(struct rs_conn *c)
{
	const struct rs_stream *s = &c->st->sm;
	uint64_t end;
	bool reset;

	if (c->rests)
		return true;
	if (!c->bound || c->ended || c->st->ch.remote || !rs_tx_is_raw(s) || !rs_rx_is_stuck(s) ||
	    !ends_at(s, &end, &reset) || end > rs_chan_rx_survived(&c->st->ch, s->rx_off))
		return false; /* that far the ring does not go, whatever the peer's FIN frame says */
	if (reset)
		rs_conn_reset_to_kernel(c);
	c->rests = true;
	__atomic_store_n(&c->mem.shared->rest, word_of(c->mem.ends, end - s->rx_off),
			 __ATOMIC_SEQ_CST);
	rs_futex_wake(&c->mem.shared->ends, INT_MAX, false);
	return true;
}

void rs_rest_end(struct rs_conn *c)
{
	__atomic_store_n(&c->mem.shared->rest, 0, __ATOMIC_SEQ_CST);
	c->rests = false;
}

bool rs_rest_declared(struct rs_shared *sh, uint32_t ends)
{
	/* Not a load: what was copied before was there when it still was declared. */
	uint64_t word = __atomic_fetch_or(&sh->rest, 0, __ATOMIC_SEQ_CST);

	return word >> 32 == word_of(ends, 0) >> 32;
}

/*
 * The shared word, and what is left by it, which anybody may have written: no more than there was here.
 * What others have read is so for us too.
 */
static uint64_t *look(struct rs_conn *c, uint64_t *word, uint64_t *end, bool *reset)
{
	uint32_t ends = c->rest ? c->kept_ends : c->mem.ends;
	uint64_t *at = c->rest ? &c->others->rest : &c->mem.shared->rest;
	struct rs_stream *s = &c->st->sm;
	uint64_t left = 0;

	*word = __atomic_load_n(at, __ATOMIC_ACQUIRE);
	if (!ends_at(s, end, reset))
		*end = s->rx_off;
	if (*word >> 32 == word_of(ends, 0) >> 32)
		left = *word & UINT32_MAX;
	if (left < *end - s->rx_off)
		s->rx_off = *end - left;
	return at;
}

size_t rs_rest_bytes(struct rs_conn *c)
{
	uint64_t word, end;
	bool reset;

	look(c, &word, &end, &reset);
	return (size_t)(end - c->st->sm.rx_off);
}

/* Copies [at, end) as far as it fits, and says up to where. */
static uint64_t copy(struct rs_chan *ch, uint64_t at, uint64_t end, const struct iovec *iov,
		     size_t n, size_t done, int flags)
{
	for (size_t i = 0; i < n && at < end && !ch->rx_bad; i++) {
		size_t skip = done < iov[i].iov_len ? done : iov[i].iov_len,
		       k = iov[i].iov_len - skip;

		done -= skip;
		if (k > end - at)
			k = (size_t)(end - at);
		if (!(flags & MSG_TRUNC))
			rs_chan_rx_copy(ch, at, (uint8_t *)iov[i].iov_base + skip, k);
		at += k;
	}
	return at;
}

ssize_t rs_rest_recv(struct rs_conn *c, const struct iovec *iov, size_t n, size_t done, int flags)
{
	struct rs_stream *s = &c->st->sm;
	uint64_t word, end, upto, *at;
	bool reset, ours = true;
	struct rs_chan ch;
	size_t got;

	/* Others read at the same time: the bytes are whose who takes them off the word. */
	do {
		at = look(c, &word, &end, &reset);
		ch = c->st->ch;
		upto = copy(&ch, s->rx_off, end, iov, n, done, flags);
		got = (size_t)(upto - s->rx_off);
		if (got && !(flags & MSG_PEEK))
			ours = __atomic_compare_exchange_n(at, &word, word - got, false,
							   __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
	} while (!ours);
	if (ch.rx_bad || (!got && reset && !c->st->rst_in_kernel))
		return -ECONNRESET;
	if (got && !(flags & MSG_PEEK)) {
		__atomic_store_n(&s->rx_off, upto, __ATOMIC_RELAXED);
		/* The peer, should it look whether all was read. It waits for nothing. */
		__atomic_store_n(&ch.mine->head, upto, __ATOMIC_SEQ_CST);
	}
	return (ssize_t)got;
}
