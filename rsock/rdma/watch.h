/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * watch.h - what the kernel says of links, addresses, routes (rtnetlink) and RDMA devices (uevents)
 *
 * For one thread.
 */
#ifndef RSOCK_RDMA_WATCH_H
#define RSOCK_RDMA_WATCH_H

#include "rsock/rdma.h"

struct rs_changes {
	bool some; /* there were any */
	bool devices; /* RDMA devices have come or gone, or may have */
	/* Only a route to these has changed; bits 0: anything may have. */
	struct rs_rdma_prefix prefix;
};

/* Two descriptors to be watched for reading; the second may be -1. 0 or -errno. */
int rs_watch_open(const struct rs_rdma_host *host, int fd[2]);
/* Takes what has come. When messages were lost, everything has changed. */
void rs_watch_read(struct rs_changes *c);
/* In a forked child: closes what it has inherited. */
void rs_watch_forget(const struct rs_rdma_host *host);

#endif
