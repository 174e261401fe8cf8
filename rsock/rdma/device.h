/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * device.h - the RDMA devices of this host: their ports and GIDs, as libibverbs tells them
 *
 * Read when first asked for after rs_devices_forget(), and then kept. For one thread.
 */
#ifndef RSOCK_RDMA_DEVICE_H
#define RSOCK_RDMA_DEVICE_H

#include "rsock/rdma/choose.h"

struct rs_devices {
	struct rs_port *ports;
	struct rs_gid *gids;
	uint32_t nports, ngids;
	int denied; /* errno of a device that could not be opened; 0: none was refused */
};

/* Never NULL; valid until rs_devices_forget(). */
const struct rs_devices *rs_devices(void);
/* They have changed, or may have. */
void rs_devices_forget(void);

#endif
