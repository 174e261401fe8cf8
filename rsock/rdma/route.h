/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * route.h - through which netdev the kernel sends to an address, and what is below that netdev
 *
 * One question to the kernel's routing (RTM_GETROUTE by libnl-3), with source and destination, as a
 * packet of the connection would ask it. A VLAN or macvlan has one netdev below it, a bond or team its
 * slaves. Nothing is kept between calls. For one thread.
 */
#ifndef RSOCK_RDMA_ROUTE_H
#define RSOCK_RDMA_ROUTE_H

#include <sys/socket.h>

#include "rsock/rdma.h"
#include "rsock/rdma/choose.h"

/* 16 bytes as in a RoCE GID: IPv4 is v4-mapped. False: not an internet address. */
bool rs_route_address(const struct sockaddr *sa, uint8_t ip[16]);
/*
 * 0: *w is filled in. -EADDRNOTAVAIL: the destination is this host. -EHOSTUNREACH: the kernel has no
 * route. Else -errno: it could not be asked.
 */
int rs_route_find(const struct rs_rdma_host *host, const struct sockaddr *from,
		  const struct sockaddr *to, struct rs_way *w);

#endif
