/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/elsewhere.h"

#include <string.h>

#include "conn_mgr/accepted.h"
#include "conn_mgr/link.h"
#include "conn_mgr/rdma.h"
#include "conn_mgr/rendezvous.h"
#include "rsock/sys.h"

#define SETS 512u
#define WAYS 4u
#define ASK_AGAIN_MS 20 /* an answer takes less, but a link to ask on may have to be made first */
#define KNOWN_MS 2000 /* a process may give a connection away */
#define LOOK_MS 100 /* how often names where nobody was are tried again */

struct place {
	struct rs_tuple t;
	uint16_t port; /* 0: asked */
	uint32_t cookie;
	uint64_t at; /* ms: when it was asked or told */
};

static struct place places[SETS][WAYS];
static uint32_t cookies;

/* Where nobody listened: not worth a system call for each claim. */
static struct {
	uint16_t port;
	uint16_t absent; /* bit for each index */
	uint64_t until; /* ms */
} looked;

static bool same(const struct rs_tuple *a, const struct rs_tuple *b)
{
	return a->family == b->family && a->client_port == b->client_port &&
	       a->server_port == b->server_port && memcmp(a->client_ip, b->client_ip, 16) == 0 &&
	       memcmp(a->server_ip, b->server_ip, 16) == 0;
}

static struct place *set_of(const struct rs_tuple *t)
{
	uint32_t h = t->client_port * 2654435761u;

	for (size_t i = 0; i < 16; i++)
		h = (h ^ t->client_ip[i]) * 16777619u;
	return places[(h ^ h >> 15) % SETS];
}

/* The place of the connection, else that which was heard of least lately. */
static struct place *find(const struct rs_tuple *t)
{
	struct place *set = set_of(t), *p = &set[0];

	for (uint32_t i = 0; i < WAYS; i++) {
		if (same(&set[i].t, t))
			return &set[i];
		if (set[i].at < p->at)
			p = &set[i];
	}
	return p;
}

static int ask(const char *name, const struct place *p)
{
	const struct rs_msg m = { .type = RS_MSG_WHERE, .from = p->cookie, .tuple = p->t };
	int err = 0;
	struct rs_link *l = rs_link_to(name, &err);

	if (!l)
		return err;
	/* Not up yet: the client will ask again. */
	if (rs_link_alive(l) && l->trusted && (l->features & RS_FEATURE_WHERE))
		rs_link_send(l, &m, NULL, 0);
	return 0;
}

static void ask_all(const struct place *p, uint64_t now)
{
	int own = rs_rendezvous_index(p->t.server_port);
	char name[RS_NAME_LEN];

	if (looked.port != p->t.server_port || now >= looked.until) {
		looked.port = p->t.server_port;
		looked.until = now + LOOK_MS;
		looked.absent = 0;
	}
	for (int i = 0; i < RS_RENDEZVOUS_INDEXES; i++) {
		if (i == own || (looked.absent & 1u << i))
			continue;
		rs_rendezvous_name(p->t.server_port, (uint32_t)i, name);
		if (ask(name, p) == -ECONNREFUSED)
			looked.absent = (uint16_t)(looked.absent | 1u << i);
	}
}

uint16_t rs_elsewhere(const struct rs_tuple *t, const char *name)
{
	struct place *p = find(t);
	uint64_t now = rs_now_ms();

	if (same(&p->t, t) && p->port && now < p->at + KNOWN_MS)
		return p->port;
	if (same(&p->t, t) && !p->port && now < p->at + ASK_AGAIN_MS)
		return 0;
	/* It says where to look when it comes back. */
	*p = (struct place){ .t = *t,
			     .cookie = ++cookies * SETS + (uint32_t)(set_of(t) - places[0]) / WAYS,
			     .at = now };
	if (!name || ask(name, p) != 0)
		ask_all(p, now);
	return 0;
}

void rs_elsewhere_asked(struct rs_link *l, const struct rs_msg *m)
{
	struct rs_msg here = { .type = RS_MSG_HERE, .id = m->from };

	if (!l->trusted)
		return;
	if (rs_accepted_has(&m->tuple))
		here.port = rs_rdma_own_port();
	if (here.port)
		rs_link_send(l, &here, NULL, 0);
}

void rs_elsewhere_told(struct rs_link *l, const struct rs_msg *m)
{
	if (!l->trusted || !m->port)
		return;
	for (uint32_t w = 0; w < WAYS; w++) {
		struct place *p = &places[m->id % SETS][w];

		if (p->cookie != m->id || p->port || !p->at)
			continue;
		p->port = m->port;
		p->at = rs_now_ms();
	}
}

void rs_elsewhere_forget(void)
{
	memset(places, 0, sizeof(places));
	memset(&looked, 0, sizeof(looked));
}
