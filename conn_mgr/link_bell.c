/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/link_parts.h"

#include <errno.h>

#include "conn_mgr/conn.h"
#include "rsock/bell.h"
#include "rsock/sys.h"

int rs_link_trigger(struct rs_link *l, uint32_t bell)
{
	uint32_t bit = 1u << bell;
	int fd = -EBUSY;

	rs_lock(&l->lock);
	if (!rs_link_died(l) && !(l->bells_sent & bit))
		fd = rs_bell_trigger(bell);
	if (fd >= 0) {
		l->trigger[bell] = fd;
		__atomic_store_n(&l->bells_sent, l->bells_sent | bit, __ATOMIC_RELAXED);
	}
	rs_unlock(&l->lock);
	return fd;
}

void rs_link_untrigger(struct rs_link *l, uint32_t bell)
{
	uint32_t bit = 1u << bell;

	rs_lock(&l->lock);
	if (l->bells_sent & bit) {
		rs_bell_untrigger(bell, l->trigger[bell]);
		__atomic_store_n(&l->bells_sent, l->bells_sent & ~bit, __ATOMIC_RELAXED);
	}
	rs_unlock(&l->lock);
}

void rs_links_send_bells(void)
{
	/* Of the others it hears when they are taken. And of one that the program's first set will take. */
	uint32_t wanted = (rs_bell_used() | 3) & rs_bell_made();

	for (struct rs_link *l = __atomic_load_n(&rs_links, __ATOMIC_ACQUIRE); l; l = l->next) {
		uint32_t todo;

		if (!rs_link_alive(l) || l->shm.remote)
			continue;
		todo = wanted & ~__atomic_load_n(&l->bells_sent, __ATOMIC_RELAXED);
		for (; todo; todo &= todo - 1) {
			uint32_t b = (uint32_t)__builtin_ctz(todo);
			struct rs_msg m = { .type = RS_MSG_BELL, .index = b };
			int fd = rs_link_trigger(l, b);

			if (fd >= 0 && rs_link_send(l, &m, &fd, 1) != 0)
				rs_link_untrigger(l, b);
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

void rs_link_look(struct rs_link *l)
{
	uint8_t bytes[RS_MSG_MAX];
	struct rs_msg m;
	size_t len;

	while (!l->dead && rs_remote_receive(l->shm.remote, bytes, &len)) {
		if (rs_msg_decode(bytes, len, &m) == 0)
			rs_link_message(l, &m, NULL, 0);
		else
			rs_link_kill(l, rs_now_ms());
	}
	if (!l->dead)
		rs_remote_retry(l->shm.remote, poke, l);
	if (!l->dead)
		rs_link_rings_ask(l);
	if (!l->dead && rs_remote_broken(l->shm.remote))
		rs_link_failed(l, ECONNRESET);
}

void rs_link_scan(struct rs_link *l)
{
	if (!rs_link_alive(l))
		return;
	rs_link_harvest(l, 0, ring_conn, NULL);
	for (uint32_t b = 1; b < RS_BELLS; b++)
		if (__atomic_load_n(&l->shm.mine[0]->bells[b].pending, __ATOMIC_SEQ_CST))
			rs_bell_ring(1u << b & rs_bell_made());
}

void rs_links_scan(void)
{
	for (struct rs_link *l = rs_links; l; l = l->next) {
		if (l->shm.remote && !l->dead)
			rs_link_look(l);
		rs_link_scan(l);
	}
}
