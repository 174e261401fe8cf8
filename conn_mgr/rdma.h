/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * rdma.h - processes on other hosts: RDMA CM rendezvous, and the links that come of it
 *
 * A process that accepts on a TCP port listens on the RDMA port of the same number (RDMA_PS_TCP). A
 * process that has connected to that TCP port connects there, once per address and port; everything
 * else (claims, proofs) goes as messages on the queue pair, as it does on the socket of a shm link.
 * librsock-rdma.so is loaded by the first that needs it. Nobody waits for RDMA CM: it is slow, and the
 * connections are on TCP meanwhile.
 *
 * Except where noted, for the control thread only.
 */
#ifndef CONN_MGR_RDMA_H
#define CONN_MGR_RDMA_H

#include <stdbool.h>
#include <stdint.h>

#include "rsock/rdma.h"
#include "rsock/wire.h"

struct rs_link;

/* Whether this host seems to have an RDMA device that this process could use. Thread-safe, cheap. */
bool rs_rdma_likely(void);
/* Nobody answered there a moment ago. Thread-safe. */
bool rs_rdma_known_plain(const uint8_t ip[16], uint16_t port);
/* Listens on an RDMA port; NULL: cannot. */
void *rs_rdma_listen(uint16_t port);
void rs_rdma_unlisten(void *listener);
/*
 * The link to the process behind the server's address, perhaps not up yet. NULL: -errno in *err
 * (-ENODEV: no device, -ECONNREFUSED: known not to answer).
 */
struct rs_link *rs_rdma_link(const struct rs_tuple *t, int *err);
/* A link that was still being set up is given up: remembers that nobody answered. */
void rs_rdma_refused(const struct rs_link *l);
/* Before the process ends: what is in staging goes to TCP. */
void rs_rdma_exit(void);
/* In a forked child: the libraries' state is the parent's, this process cannot use them. */
void rs_rdma_forget(void);

#endif
