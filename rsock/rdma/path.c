/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/rdma/path.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "rsock/rdma/advice.h"
#include "rsock/rdma/device.h"
#include "rsock/rdma/route.h"
#include "rsock/sys.h"

#define ANSWERS 64u
/*
 * A GID follows its address, and a port its netdev, a moment later than the kernel tells of the address:
 * a no is not for ever.
 */
#define NO_MS 1000

/* What was found for two addresses. */
struct answer {
	uint64_t until; /* ms; 0: not valid */
	uint8_t from[16], to[16];
	int result;
	struct rs_path path;
};

static struct answer answers[ANSWERS];
static uint64_t read_at; /* ms: when the devices were looked at last because of a no */

static struct answer *entry(const uint8_t from[16], const uint8_t to[16])
{
	uint32_t h = 2166136261u;

	for (size_t i = 0; i < 16; i++)
		h = ((h ^ from[i]) * 16777619u ^ to[i]) * 16777619u;
	return &answers[(h ^ h >> 15) % ANSWERS];
}

static int unserved(const struct rs_rdma_host *host, const struct rs_way *w, enum rs_unserved why)
{
	char text[128];

	if (why == RS_UNSERVED_NO_PORT && rs_devices()->denied)
		return rs_advice(host, "opening the RDMA device", 0, rs_devices()->denied);
	snprintf(text, sizeof(text), "a route leaves by %s: %s",
		 w->n ? w->netdev[0].name : "no netdev", rs_unserved_text(why));
	host->log(text);
	return -ENODEV;
}

/* Only the rows of one port, in their place. */
static const struct rs_gid *only(const struct rs_devices *all, const char *device, uint32_t port,
				 struct rs_port *one, struct rs_gid *g, uint32_t *at)
{
	for (; *at < all->ngids; (*at)++) {
		const struct rs_port *p = &all->ports[all->gids[*at].port];

		if (strcmp(p->device, device) != 0 || p->number != port)
			continue;
		*one = *p;
		*g = all->gids[*at];
		g->port = 0;
		(*at)++;
		return g;
	}
	return NULL;
}

static void fill(struct rs_path *p, const struct rs_way *w, const struct rs_port *port,
		 const struct rs_gid *g, uint32_t mtu)
{
	memset(p, 0, sizeof(*p));
	memcpy(p->device, port->device, sizeof(p->device));
	memcpy(p->netdev, w->netdev[0].name, sizeof(p->netdev));
	p->port = port->number;
	p->gid_index = g->index;
	p->mtu = mtu;
	p->kind = port->kind;
	memcpy(p->gid, g->raw, sizeof(p->gid));
}

static int find(const struct rs_rdma_host *host, const struct sockaddr *from,
		const struct sockaddr *to, const char *device, uint32_t port, struct rs_path *p)
{
	const struct rs_devices *all = rs_devices();
	enum rs_unserved why = RS_UNSERVED_NO_PORT;
	struct rs_choice c;
	struct rs_port one;
	struct rs_gid g;
	struct rs_way w;
	uint32_t at = 0;
	int r = rs_route_find(host, from, to, &w);

	if (r != 0)
		return r;
	if (!device) {
		why = rs_choose(&w, all->ports, all->nports, all->gids, all->ngids, &c);
		if (why == RS_SERVED)
			fill(p, &w, &all->ports[c.port], &all->gids[c.gid], c.mtu);
		return why ? unserved(host, &w, why) : 0;
	}
	while (only(all, device, port, &one, &g, &at)) {
		why = rs_choose(&w, &one, 1, &g, 1, &c);
		if (why == RS_SERVED) {
			fill(p, &w, &one, &g, c.mtu);
			return 0;
		}
	}
	return -ENODEV;
}

int rs_path_find(const struct rs_rdma_host *host, const struct sockaddr *from,
		 const struct sockaddr *to, const char *device, uint32_t port, struct rs_path *p)
{
	uint8_t a[16], b[16];
	uint64_t now = rs_now_ms();
	struct answer *k;

	if (!rs_route_address(from, a) || !rs_route_address(to, b))
		return -EHOSTUNREACH;
	if (device)
		return find(host, from, to, device, port, p);
	k = entry(a, b);
	if (now >= k->until || memcmp(k->from, a, 16) != 0 || memcmp(k->to, b, 16) != 0) {
		if (now >= read_at + NO_MS && k->result == -ENODEV) {
			rs_devices_forget();
			read_at = now;
		}
		k->result = find(host, from, to, NULL, 0, &k->path);
		memcpy(k->from, a, 16);
		memcpy(k->to, b, 16);
		k->until = k->result == 0 ? UINT64_MAX : now + NO_MS;
	}
	*p = k->path;
	return k->result;
}

void rs_path_scope(struct sockaddr *from, struct sockaddr *to)
{
	struct sockaddr_in6 *a = (struct sockaddr_in6 *)(void *)from;
	struct sockaddr_in6 *b = (struct sockaddr_in6 *)(void *)to;
	const struct rs_devices *all = rs_devices();

	if (to->sa_family != AF_INET6 || !IN6_IS_ADDR_LINKLOCAL(&b->sin6_addr) || b->sin6_scope_id)
		return;
	for (uint32_t i = 0; i < all->ngids; i++)
		if (memcmp(all->gids[i].raw, &a->sin6_addr, 16) == 0 && all->gids[i].netdev) {
			a->sin6_scope_id = all->gids[i].netdev;
			b->sin6_scope_id = all->gids[i].netdev;
		}
}

void rs_path_forget(bool devices)
{
	for (size_t i = 0; i < ANSWERS; i++)
		answers[i].until = 0;
	/* GIDs are addresses of netdevs: they go and come with them. */
	rs_devices_forget();
	if (devices)
		rs_advice_again();
}

void rs_path_text(const struct rs_path *p, char *out, size_t size)
{
	static const char *const kinds[] = { "RoCE", "iWARP", "InfiniBand" };

	snprintf(out, size, "%s port %u gid %u mtu %u by %s (%s)", p->device, p->port, p->gid_index,
		 p->mtu, p->netdev, kinds[p->kind]);
}
