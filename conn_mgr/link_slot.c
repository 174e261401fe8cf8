/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/link_parts.h"

#include <stdlib.h>
#include <string.h>

#include "conn_mgr/conn.h"
#include "rsock/sys.h"

#define SWEEP_MS 1000
#define SWEEPS 2 /* after so many a slot that is free is not about to be used again */

void rs_link_drop_segment(struct rs_shm_head *h, int fd)
{
	if (fd < 0) {
		rs_shm_private_free(h);
		return;
	}
	rs_shm_unmap(h);
	rs_fd_close(fd);
}

int rs_link_add_segment(struct rs_link *l)
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
		rs_link_drop_segment(h, fd);
		return -ENOMEM;
	}
	if (l->shm.nmine > 0 && !l->shm.remote) {
		r = rs_link_send(l, &m, &fd, 1);
		if (r != 0) {
			free(slot);
			rs_link_drop_segment(h, fd);
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

	if (rs_link_used(l) == l->slots) {
		r = rs_link_add_segment(l);
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

void rs_link_slot_release(struct rs_link *l, uint32_t id)
{
	struct rs_slot_state *s = &l->slot[id];

	/* On a dead link there is nobody whose writes or answers could come. */
	if (!s->used || s->conn || !(l->dead || (s->done && s->gone_sent && s->gone_recv)))
		return;
	*s = (struct rs_slot_state){ .dirty = s->peer ? SWEEPS : 0, .peer = s->peer };
	if (s->dirty)
		__atomic_store_n(&l->dirty, true, __ATOMIC_RELAXED);
	/* Who slept in it has been woken only now, and still looks at the link's memory. */
	if (l->dead)
		__atomic_store_n(&l->died, rs_now_ms(), __ATOMIC_RELAXED);
	__atomic_store_n(&l->used, l->used - 1, __ATOMIC_RELEASE);
	l->hint = id;
}

void rs_link_slot_unused(struct rs_link *l, uint32_t id)
{
	rs_lock(&l->lock);
	l->slot[id].conn = NULL;
	l->slot[id].done = true;
	l->slot[id].gone_sent = true;
	l->slot[id].gone_recv = true;
	rs_link_slot_release(l, id);
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
		rs_link_slot_release(l, id);
	}
	rs_unlock(&l->lock);
	return mine;
}

void rs_link_slot_leave(struct rs_link *l, uint32_t id, struct rs_conn *c)
{
	rs_lock(&l->lock);
	if (id < l->slots && l->slot[id].conn == c) {
		l->slot[id].conn = NULL;
		rs_link_slot_release(l, id);
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

void rs_link_detach(struct rs_conn *c)
{
	struct rs_link *l = c->link;

	if (!c->bound)
		return;
	__atomic_store_n(&c->bound, false, __ATOMIC_RELAXED);
	if (!l)
		return; /* it was a dead owner's */
	rs_lock(&l->lock);
	if (l->slot[c->id].conn == c) {
		l->slot[c->id].conn = NULL;
		l->slot[c->id].done = true;
		l->slot[c->id].peer = c->peer_id + 1;
		rs_link_slot_release(l, c->id);
	}
	rs_unlock(&l->lock);
	c->link = NULL;
}

/* Nobody but this thread gives slots to streams: what is free stays so meanwhile. */
static void sweep(struct rs_link *l)
{
	bool dirty = false;

	for (uint32_t id = 0; id < l->slots; id++) {
		uint32_t peer = 0;

		rs_lock(&l->lock);
		if (!l->slot[id].used && l->slot[id].dirty && --l->slot[id].dirty == 0)
			peer = l->slot[id].peer;
		dirty |= !l->slot[id].used && l->slot[id].dirty;
		rs_unlock(&l->lock);
		if (peer)
			rs_shm_empty(&l->shm, id, peer - 1);
	}
	if (dirty)
		__atomic_store_n(&l->dirty, true, __ATOMIC_RELAXED);
}

void rs_link_slots_timer(struct rs_link *l, uint64_t now)
{
	if (l->sweep_at && now >= l->sweep_at) {
		l->sweep_at = 0;
		if (__atomic_exchange_n(&l->dirty, false, __ATOMIC_RELAXED))
			sweep(l);
	}
	if (!l->sweep_at && __atomic_load_n(&l->dirty, __ATOMIC_RELAXED))
		l->sweep_at = now + SWEEP_MS;
	if (l->sweep_at)
		rs_control_due(l->sweep_at);
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
