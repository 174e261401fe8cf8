/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/link_parts.h"

#include <linux/capability.h>
#include <sys/resource.h>

#include "conn_mgr/conn_edge.h"
#include "rsock/sys.h"

/* A stream that is on the link, with a reference and under its lock; NULL: none. */
static struct rs_conn *lock_stream(struct rs_link *l, uint32_t id)
{
	struct rs_conn *c = rs_link_conn(l, id);

	if (!c)
		return NULL;
	rs_lock(&c->lock);
	if (c->bound && c->link == l && !c->plain)
		return c;
	rs_conn_unlock(c);
	rs_conn_put(c);
	return NULL;
}

static void unlock_stream(struct rs_conn *c)
{
	rs_conn_unlock(c);
	rs_conn_put(c);
}

static bool exists(struct rs_link *l, uint32_t id)
{
	struct rs_conn *c = lock_stream(l, id);

	if (c)
		unlock_stream(c);
	return c;
}

/* Half of what may be locked is for connections to come. */
static bool may_lock(void)
{
	struct __user_cap_header_struct who = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct caps[_LINUX_CAPABILITY_U32S_3];
	struct rlimit rl;

	if (rs_sys4(SYS_prlimit64, 0, RLIMIT_MEMLOCK, NULL, &rl) != 0 ||
	    rs_remote_registered() + RS_REMOTE_LARGE <= rl.rlim_cur / 2)
		return true;
	return rs_sys2(SYS_capget, &who, caps) == 0 &&
	       (caps[0].effective & 1u << CAP_IPC_LOCK) != 0;
}

/* The memory is had without the lock: the device takes its time. */
static bool make(struct rs_link *l, uint32_t id, bool in)
{
	bool made = exists(l, id) && may_lock() && rs_remote_make(l->shm.remote, id, in) == 0;

	if (made && !l->rings_at) {
		l->rings_at = rs_now_ms() + RS_REMOTE_LOOK_MS;
		rs_control_due(l->rings_at);
	}
	return made;
}

static void ask(void *arg, uint32_t id)
{
	struct rs_link *l = arg;
	bool made = make(l, id, false);
	struct rs_conn *c = lock_stream(l, id);

	if (!c)
		return;
	if (rs_remote_want(&c->st->ch, made))
		rs_link_tell(c, RS_MSG_WANT, 0, 0);
	unlock_stream(c);
}

void rs_link_rings_ask(struct rs_link *l)
{
	rs_remote_wanted(l->shm.remote, ask, l);
}

static void offer(struct rs_link *l, uint32_t id)
{
	struct rs_msg m = { .type = RS_MSG_RING };
	bool made = make(l, id, true);
	struct rs_conn *c = lock_stream(l, id);
	struct rs_remote_block b;

	if (!c)
		return;
	if (!c->st->ch.mute) {
		rs_remote_offer(&c->st->ch, made, &b);
		m.id = c->peer_id;
		m.block = b.addr;
		m.block_key = b.rkey;
		rs_link_send(l, &m, NULL, 0);
	}
	unlock_stream(c);
}

void rs_link_ring_message(struct rs_link *l, const struct rs_msg *m)
{
	const struct rs_remote_block b = { m->block, m->block_key };
	struct rs_conn *c;

	if (m->type == RS_MSG_WANT) {
		offer(l, m->id);
		return;
	}
	c = lock_stream(l, m->id);
	if (!c)
		return;
	if (m->type == RS_MSG_DROP) {
		rs_remote_dropped(&c->st->ch);
	} else if (rs_remote_offered(&c->st->ch, &b)) {
		rs_shm_wake(&l->shm, m->id, false);
		rs_conn_ring(c);
	}
	unlock_stream(c);
}

/* A leave may still have to bring to TCP what is staged. */
static bool steady(const struct rs_stream *s)
{
	return s->tx == RS_TX_FAST || s->tx == RS_TX_DONE || rs_tx_is_raw(s);
}

static uint32_t used(void *arg, uint32_t id)
{
	struct rs_link *l = arg;
	struct rs_conn *c = lock_stream(l, id);
	uint32_t uses = RS_USES_IN | RS_USES_OUT;

	if (!c) {
		/* With nobody in the slot nobody writes any more: both ends have said GONE. */
		rs_lock(&l->lock);
		if (id >= l->slots || !l->slot[id].used)
			uses = 0;
		rs_unlock(&l->lock);
		return uses;
	}
	if (steady(&c->st->sm) && rs_remote_look(&c->st->ch))
		rs_link_tell(c, RS_MSG_DROP, 0, 0);
	if (!c->st->ch.rx_ring[1])
		uses &= ~RS_USES_IN;
	if (!c->st->ch.tx_ring[1])
		uses &= ~RS_USES_OUT;
	unlock_stream(c);
	return uses;
}

void rs_link_rings_timer(struct rs_link *l, uint64_t now)
{
	if (!l->rings_at)
		return;
	if (now >= l->rings_at) {
		rs_remote_sweep(l->shm.remote, used, l);
		l->rings_at = l->shm.remote->extra ? now + RS_REMOTE_LOOK_MS : 0;
	}
	if (l->rings_at)
		rs_control_due(l->rings_at);
}
