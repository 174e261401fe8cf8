/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/rest.h"

#include <limits.h>
#include <string.h>

#include "rsock/sys.h"

#define PATIENCE_MS 100 /* who holds the lock that long may have died */

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

bool rs_rest_declare(struct rs_conn *c)
{
	struct rs_state *st = c->st;
	uint64_t end;
	bool reset;

	if (!c->bound || c->ended || st->ch.remote || !rs_tx_is_raw(&st->sm) ||
	    !rs_rx_is_stuck(&st->sm) || !ends_at(&st->sm, &end, &reset))
		return false;
	__atomic_store_n(&st->rest_at, st->ends + 1, __ATOMIC_RELEASE);
	rs_futex_wake(&st->ends, INT_MAX, false);
	return true;
}

void rs_rest_lock(struct rs_state *st)
{
	uint64_t since = rs_now_ms();
	uint32_t holder = 0;

	while (!__atomic_compare_exchange_n(&st->rest_lock, &holder, rs_tid(), false,
					    __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
		const struct timespec ts = { 0, 20000 };

		if (rs_now_ms() - since > PATIENCE_MS && rs_sys2(SYS_kill, holder, 0) == -ESRCH)
			__atomic_compare_exchange_n(&st->rest_lock, &holder, 0, false,
						    __ATOMIC_RELAXED, __ATOMIC_RELAXED);
		rs_sys4(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &ts, NULL);
		holder = 0;
	}
}

void rs_rest_unlock(struct rs_state *st)
{
	__atomic_store_n(&st->rest_lock, 0, __ATOMIC_RELEASE);
}

/* Under the lock: not over, with its state another connection's. */
static bool is_there(const struct rs_state *st, uint32_t ends)
{
	return __atomic_load_n(&st->ends, __ATOMIC_SEQ_CST) == ends && rs_rest_declared(st);
}

size_t rs_rest_bytes(struct rs_state *st, uint32_t ends)
{
	uint64_t end, left = 0;
	bool reset;

	rs_rest_lock(st);
	if (is_there(st, ends) && ends_at(&st->sm, &end, &reset) && end > st->sm.rx_off)
		left = end - st->sm.rx_off;
	rs_rest_unlock(st);
	return (size_t)left;
}

ssize_t rs_rest_recv(struct rs_state *st, uint32_t ends, const struct iovec *iov, size_t n,
		     size_t done, int flags)
{
	struct rs_chan ch;
	uint64_t end, at;
	bool reset = false;
	ssize_t got;

	rs_rest_lock(st);
	if (!is_there(st, ends)) {
		rs_rest_unlock(st);
		return 0;
	}
	ch = st->ch;
	at = st->sm.rx_off;
	if (!ends_at(&st->sm, &end, &reset))
		end = at;
	for (size_t i = 0; i < n && at < end && !ch.rx_bad; i++) {
		size_t skip = done < iov[i].iov_len ? done : iov[i].iov_len,
		       k = iov[i].iov_len - skip;

		done -= skip;
		if (k > end - at)
			k = (size_t)(end - at);
		if (!(flags & MSG_TRUNC))
			rs_chan_rx_copy(&ch, at, (uint8_t *)iov[i].iov_base + skip, k);
		at += k;
	}
	got = (ssize_t)(at - st->sm.rx_off);
	if (got && !(flags & MSG_PEEK)) {
		__atomic_store_n(&st->sm.rx_off, at, __ATOMIC_RELAXED);
		/* The peer, should it look whether all was read. It waits for nothing. */
		__atomic_store_n(&ch.mine->head, at, __ATOMIC_SEQ_CST);
	}
	rs_rest_unlock(st);
	return ch.rx_bad || (!got && reset) ? -ECONNRESET : got;
}
