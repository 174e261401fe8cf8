/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * holders.h - how many processes have a connection that none of them has used yet
 *
 * A server that accepts and then forks leaves open which of the two will serve the connection. A count
 * in shared memory tells them when the other has closed its descriptor: who is alone with it may have it
 * claimed. Lock-free. A process that ends without a word is counted for ever: then the connection stays
 * on TCP.
 */
#ifndef CONN_MGR_HOLDERS_H
#define CONN_MGR_HOLDERS_H

#include <stdint.h>

/* Before a fork: one process more than `holders` says; NULL: than one. NULL: there is no count left. */
uint32_t *rs_holders_add(uint32_t *holders);
/* This process has closed it. */
void rs_holders_drop(uint32_t *holders);
/* Nobody will be alone with it any more. */
void rs_holders_spoil(uint32_t *holders);
/* Who is alone needs no count any more. */
void rs_holders_end(uint32_t *holders);

#endif
