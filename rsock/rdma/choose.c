/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/rdma/choose.h"

#include <string.h>

/* GRH or IPv6 header, UDP, BTH, XRC and atomic headers, ICRC: what the kernel reserves (iboe_get_mtu). */
#define ROCE_HEADERS (40u + 8 + 12 + 4 + 28 + 4)
#define IB_MTU_MIN 256u
#define IB_MTU_MAX 4096u

uint32_t rs_roce_mtu(uint32_t netdev_mtu)
{
	uint32_t mtu = IB_MTU_MAX;

	if (netdev_mtu < ROCE_HEADERS + IB_MTU_MIN)
		return 0;
	while (mtu > netdev_mtu - ROCE_HEADERS)
		mtu /= 2;
	return mtu;
}

static uint32_t min(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

/* Whether the GID's port transmits for the netdev. */
static bool behind(const struct rs_port *p, const struct rs_gid *g, const struct rs_netdev *d)
{
	switch (p->kind) {
	case RS_PORT_ROCE:
		return g->netdev == d->index;
	case RS_PORT_IWARP: /* its GID begins with its MAC address */
		return d->hw_len == 6 && memcmp(d->hw, g->raw, 6) == 0;
	case RS_PORT_IB: /* an IPoIB address is flags, a queue pair number, then the port's GID */
		return d->hw_len == 20 && memcmp(d->hw + 4, g->raw, 16) == 0;
	}
	return false;
}

static uint32_t path_mtu(const struct rs_way *w, const struct rs_port *p, uint32_t netdev)
{
	uint32_t mtu = min(w->netdev[0].mtu, w->netdev[netdev].mtu);

	if (w->mtu)
		mtu = min(mtu, w->mtu);
	switch (p->kind) {
	case RS_PORT_ROCE:
		return min(p->mtu, rs_roce_mtu(mtu));
	case RS_PORT_IWARP: /* TCP cuts it up */
		return mtu;
	case RS_PORT_IB:
		return p->mtu;
	}
	return 0;
}

enum rs_unserved rs_choose(const struct rs_way *w, const struct rs_port *ports, size_t nports,
			   const struct rs_gid *gids, size_t ngids, struct rs_choice *c)
{
	enum rs_unserved why = RS_UNSERVED_NO_PORT;
	unsigned int best = 0;

	if (!w->n)
		return RS_UNSERVED_NO_PORT;
	if (w->netdev[0].bridge)
		return RS_UNSERVED_BRIDGE;
	for (uint32_t i = 0; i < ngids; i++) {
		const struct rs_gid *g = &gids[i];

		if (g->port >= nports)
			continue;
		for (uint32_t d = 0; d < w->n; d++) {
			const struct rs_port *p = &ports[g->port];
			const struct rs_netdev *nd = &w->netdev[d];
			unsigned int rank = 2 * (256u - nd->depth) - nd->passive;
			enum rs_unserved no = RS_SERVED;
			uint32_t mtu;

			if (rank <= best || !behind(p, g, nd))
				continue;
			mtu = path_mtu(w, p, d);
			if (p->kind == RS_PORT_ROCE && (!g->v2 || memcmp(g->raw, w->ip, 16) != 0))
				no = RS_UNSERVED_NO_GID;
			else if (!p->active || !nd->up || !w->netdev[0].up || !mtu)
				no = RS_UNSERVED_DOWN;
			if (no) {
				why = no > why ? no : why;
				continue;
			}
			best = rank;
			*c = (struct rs_choice){ g->port, i, d, mtu };
		}
	}
	return best ? RS_SERVED : why;
}

const char *rs_unserved_text(enum rs_unserved u)
{
	switch (u) {
	case RS_SERVED:
		break;
	case RS_UNSERVED_NO_PORT:
		return "no RDMA port is behind it";
	case RS_UNSERVED_BRIDGE:
		return "it is a bridge";
	case RS_UNSERVED_NO_GID:
		return "its RDMA port has no RoCE v2 GID of the connection's address";
	case RS_UNSERVED_DOWN:
		return "its RDMA port is not active";
	}
	return "it is served";
}
