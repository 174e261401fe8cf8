/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * opened.h - the devices that librdmacm has opened for our ids: their descriptors, their asynchronous
 * events, and letting go of one that is removed
 *
 * librdmacm opens a device when the first id needs it, for all ids, and does not close it when the last
 * of them ends. The kernel waits with the removal of some devices (Soft-RoCE is one) until nobody has
 * them open. So a device without ids that is gone is closed here, behind librdmacm's back: its
 * descriptors keep their numbers and become those of something else. For one thread.
 */
#ifndef RSOCK_RDMA_OPENED_H
#define RSOCK_RDMA_OPENED_H

#include <infiniband/verbs.h>
#include <stdbool.h>

#include "rsock/rdma.h"

struct rs_opened;

struct rs_async {
	struct rs_opened *device;
	void *qp; /* qp_context or cq_context of what has failed; NULL: not of one queue pair */
	uint32_t port; /* of which port; 0: of the whole device */
	bool changed; /* the port is up, or its GIDs ... are others: look again */
	bool lid; /* its LID is another */
	const char *what; /* for people */
};

/* `epoll`: gets the descriptors of events, with `data` words that rs_opened_event() understands. */
void rs_opened_init(const struct rs_rdma_host *host, int epoll);
/* Another id is on that device. NULL: too many devices. */
struct rs_opened *rs_opened_use(struct ibv_context *verbs);
/* One less. Call it after all else of the id has been destroyed, before the id is. */
void rs_opened_unuse(struct rs_opened *o);
/* The device is no more, or is going. */
bool rs_opened_gone(const struct rs_opened *o);
/* Is it a word of ours, and are there events? Each is acknowledged already. */
bool rs_opened_event(uint64_t word, struct rs_async *a);
/* Devices have gone, or may have: those that have are rs_opened_gone(). True: there are such. */
bool rs_opened_check(void);
/* In a forked child: closes what it has inherited. */
void rs_opened_forget(void);

#endif
