/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * path.h - by which device, port and GID a connection would go over RDMA, if at all
 *
 * Puts route.c, device.c and choose.c together, and keeps the answers until rs_path_forget(). For one
 * thread.
 */
#ifndef RSOCK_RDMA_PATH_H
#define RSOCK_RDMA_PATH_H

#include <sys/socket.h>

#include "rsock/rdma.h"
#include "rsock/rdma/choose.h"

struct rs_path {
	char device[RS_DEVICE_NAME];
	char netdev[IF_NAMESIZE]; /* the outgoing one */
	uint32_t port, gid_index, mtu; /* as struct rs_choice has the last */
	enum rs_port_kind kind;
	uint8_t gid[16];
};

/*
 * 0: *p is filled in. -ENODEV: no RDMA port serves the route. -EADDRNOTAVAIL: `to` is this host.
 * -EHOSTUNREACH: there is no route. What rs_advice() returns: the devices could not be looked at.
 * `device`, `port`: only that one is looked at; NULL: any.
 */
int rs_path_find(const struct rs_rdma_host *host, const struct sockaddr *from,
		 const struct sockaddr *to, const char *device, uint32_t port, struct rs_path *p);
/*
 * A link-local address means something on one netdev only: that of the GID `from`. Fills in its scope in
 * both addresses, where it is missing.
 */
void rs_path_scope(struct sockaddr *from, struct sockaddr *to);
/* Routes, addresses or netdevs have changed; `devices`: RDMA devices too. */
void rs_path_forget(bool devices);
/* "rxe0 port 1 gid 1 mtu 4096 by vec0 (RoCE)", cut to `size` with its NUL. */
void rs_path_text(const struct rs_path *p, char *out, size_t size);

#endif
