/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * choose.h - which RDMA port and GID serve a route: pure, over tables that others have filled in
 *
 * What the tables hold is said by route.c (the way: the netdev that the kernel routes through and
 * those below it) and device.c (the ports and their GIDs). Addresses are 16 bytes, IPv4 v4-mapped, as
 * RoCE has them in its GIDs. Thread-safe.
 */
#ifndef RSOCK_RDMA_CHOOSE_H
#define RSOCK_RDMA_CHOOSE_H

#include <net/if.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RS_WAY_NETDEVS 16u
#define RS_DEVICE_NAME 64

struct rs_netdev {
	uint32_t index; /* the kernel's, never 0 */
	char name[IF_NAMESIZE];
	uint8_t depth; /* 0: the outgoing one; below a netdev of depth n are those of n + 1 */
	bool bridge; /* what is below it is chosen per packet, by MAC address: no RDMA device can */
	bool passive; /* a slave of a bond that does not carry its traffic now */
	bool up;
	uint32_t mtu; /* bytes */
	uint8_t hw[20]; /* its link layer address: 6 bytes on Ethernet, 20 on IPoIB */
	uint8_t hw_len;
};

/* Where packets of one connection leave. */
struct rs_way {
	uint8_t ip[16]; /* the connection's own address */
	uint32_t mtu; /* what the route allows, bytes; 0: it says nothing */
	uint32_t n;
	struct rs_netdev netdev[RS_WAY_NETDEVS]; /* [0]: the outgoing one */
};

enum rs_port_kind { RS_PORT_ROCE, RS_PORT_IWARP, RS_PORT_IB };

struct rs_port {
	char device[RS_DEVICE_NAME];
	uint32_t number; /* from 1 */
	enum rs_port_kind kind;
	bool active;
	uint32_t mtu; /* the active one, bytes */
};

struct rs_gid {
	uint32_t port; /* which of the ports, from 0 */
	uint32_t index; /* in the port's table */
	uint32_t netdev; /* 0: unknown */
	bool v2; /* RoCE v2, which is routed; v1 is not */
	uint8_t raw[16];
};

/* Why there is none; the later, the nearer it came. */
enum rs_unserved {
	RS_SERVED,
	RS_UNSERVED_NO_PORT, /* no port is behind the netdevs of the way */
	RS_UNSERVED_BRIDGE,
	RS_UNSERVED_NO_GID, /* there is one, without a RoCE v2 GID of the connection's address */
	RS_UNSERVED_DOWN, /* there is one, not active */
};

struct rs_choice {
	uint32_t port, gid; /* indexes of the tables */
	uint32_t netdev; /* in the way: the one that the GID belongs to */
	uint32_t mtu; /* bytes of payload in one packet of the device; iWARP: of the netdev */
};

/*
 * The best GID: on the outgoing netdev rather than below it, on a bond's active slave rather than on
 * another, and of equals the first. RS_SERVED: *c is filled in.
 */
enum rs_unserved rs_choose(const struct rs_way *w, const struct rs_port *ports, size_t nports,
			   const struct rs_gid *gids, size_t ngids, struct rs_choice *c);
/* The largest MTU of InfiniBand (256 to 4096) for RoCE v2 over a netdev's; 0: none fits. */
uint32_t rs_roce_mtu(uint32_t netdev_mtu);
/* For people: "no RDMA port behind it" ... */
const char *rs_unserved_text(enum rs_unserved u);

#endif
