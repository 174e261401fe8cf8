/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * rdma.h - processes on other hosts: RDMA CM rendezvous, and the links that come of it
 *
 * A process that accepts on a TCP port listens on the RDMA port of the same number (RDMA_PS_TCP), the
 * first one that does; others when it is gone. A process that has connected to that TCP port connects
 * there, once per pair of addresses and port, and both check the CM's private data (rsock/greet.h).
 * Everything else (claims, redirects to other processes of the server, proofs) goes as messages on the
 * queue pair, as it does on the socket of a shm link.
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
#include "rsock/reason.h"
#include "rsock/wire.h"

struct rs_link;

/* Whether this host seems to have an RDMA device that this process could use. Thread-safe, cheap. */
bool rs_rdma_likely(void);
/* The same, as of the last look: rs_rdma_likely() has one looked for anew once in a while. */
bool rs_rdma_seen(void);
/* Why there is none. Thread-safe. */
enum rs_reason rs_rdma_why_not(void);
/* What an error (an errno of rsock/rdma.h) is called. Thread-safe. */
enum rs_reason rs_rdma_reason(int error);
/* Listens on an RDMA port; NULL: cannot. */
void *rs_rdma_listen(uint16_t port);
void rs_rdma_unlisten(void *listener);
/* The RDMA port of this process alone, opened when first asked for; 0: cannot. */
uint16_t rs_rdma_own_port(void);
/*
 * The link to the process at the server's address that has the RDMA port (0: the number of the TCP
 * port), perhaps not up yet. NULL: there will be none, -errno in *err as rsock/rdma.h has them.
 */
struct rs_link *rs_rdma_link(const struct rs_tuple *t, uint16_t port, int *err);
/* A link that was still being set up is given up, for a reason (errno) that holds for a while. */
void rs_rdma_refused(const struct rs_link *l, int error);
/* The process of that link has no listener any more on a port that has led there. */
void rs_rdma_moved(struct rs_link *l);
/* Before the process ends: what is in staging goes to TCP. */
void rs_rdma_exit(void);
/* In a forked child: the libraries' state is the parent's, this process cannot use them. */
void rs_rdma_forget(void);

#endif
