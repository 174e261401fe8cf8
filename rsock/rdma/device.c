/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/rdma/device.h"

#include <errno.h>
#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GIDS_MAX 2000u /* what fits the 16 bits that an answer's length has */

static struct rs_devices devices;
static bool known;

static uint32_t bytes_of(enum ibv_mtu mtu)
{
	return mtu >= IBV_MTU_256 && mtu <= IBV_MTU_4096 ? 128u << mtu : 0;
}

static bool describe(struct ibv_context *verbs, uint32_t number, struct rs_port *p, int *rows)
{
	struct ibv_port_attr attr;

	if (ibv_query_port(verbs, (uint8_t)number, &attr) != 0)
		return false;
	memset(p, 0, sizeof(*p));
	strncpy(p->device, ibv_get_device_name(verbs->device), sizeof(p->device) - 1);
	p->number = number;
	p->kind = verbs->device->transport_type == IBV_TRANSPORT_IWARP ? RS_PORT_IWARP
		  : attr.link_layer == IBV_LINK_LAYER_ETHERNET	       ? RS_PORT_ROCE
								       : RS_PORT_IB;
	p->active = attr.state == IBV_PORT_ACTIVE;
	p->mtu = bytes_of(attr.active_mtu);
	*rows = attr.gid_tbl_len;
	return true;
}

static void *grown(void *old, size_t count, size_t size)
{
	return reallocarray(old, count, size);
}

/* What has no room is not there: connections stay on TCP. */
static void add_gid(const struct ibv_gid_entry *e, uint32_t port)
{
	struct rs_gid *g = grown(devices.gids, devices.ngids + 1u, sizeof(*g));

	if (!g)
		return;
	devices.gids = g;
	g += devices.ngids++;
	*g = (struct rs_gid){ .port = port,
			      .index = e->gid_index,
			      .netdev = e->ndev_ifindex,
			      .v2 = e->gid_type == IBV_GID_TYPE_ROCE_V2 };
	memcpy(g->raw, e->gid.raw, 16);
}

static void add_gids(struct ibv_context *verbs, uint32_t number, uint32_t port, int rows)
{
	struct ibv_gid_entry *e = calloc(GIDS_MAX, sizeof(*e)), one;
	ssize_t n = e ? ibv_query_gid_table(verbs, e, GIDS_MAX, 0) : -1;

	for (ssize_t i = 0; i < n; i++)
		if (e[i].port_num == number)
			add_gid(&e[i], port);
	free(e);
	/* More than that are in use: one by one. */
	for (int i = 0; n < 0 && i < rows; i++)
		if (ibv_query_gid_ex(verbs, number, (uint32_t)i, &one, 0) == 0)
			add_gid(&one, port);
}

static void add_ports(struct ibv_context *verbs)
{
	struct ibv_device_attr attr;

	if (ibv_query_device(verbs, &attr) != 0)
		return;
	for (uint32_t number = 1; number <= attr.phys_port_cnt; number++) {
		struct rs_port *p = grown(devices.ports, devices.nports + 1u, sizeof(*p));
		int rows;

		if (!p)
			return;
		devices.ports = p;
		if (describe(verbs, number, p + devices.nports, &rows)) {
			add_gids(verbs, number, devices.nports, rows);
			devices.nports++;
		}
	}
}

/* libibverbs looks for the file under other names too, and what the last of them says is not why. */
static int why_closed(const struct ibv_device *d, int err)
{
	char path[sizeof(d->dev_name) + 32];

	snprintf(path, sizeof(path), "/dev/infiniband/%s", d->dev_name);
	if (access(path, R_OK | W_OK) != 0 && errno == EACCES)
		return EACCES;
	return err ? err : EIO;
}

const struct rs_devices *rs_devices(void)
{
	struct ibv_device **list;

	if (known)
		return &devices;
	known = true;
	list = ibv_get_device_list(NULL);
	for (size_t i = 0; list && list[i]; i++) {
		struct ibv_context *verbs;

		errno = 0;
		verbs = ibv_open_device(list[i]);
		if (!verbs) {
			devices.denied = why_closed(list[i], errno);
			continue;
		}
		add_ports(verbs);
		ibv_close_device(verbs);
	}
	if (list)
		ibv_free_device_list(list);
	return &devices;
}

void rs_devices_forget(void)
{
	free(devices.ports);
	free(devices.gids);
	memset(&devices, 0, sizeof(devices));
	known = false;
}
