/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * directory.h - which worker of a pre-forking server has accepted which connection
 *
 * One directory per listening port of a process tree: shared memory made at listen(), inherited over
 * fork. Workers put in {client address -> name of the worker's own rendezvous}; whoever holds the
 * port's rendezvous name looks up and redirects. Lock-free; an entry of a dead worker is reused.
 *
 * Who gives a connection away, or otherwise makes it plain before it was claimed, puts in {client
 * address, inode of the socket -> reason}: so that whoever is asked for it later can tell. Such an entry
 * need not be dropped, for it holds for one socket only; it is reused when nobody can ask any more.
 */
#ifndef CONN_MGR_DIRECTORY_H
#define CONN_MGR_DIRECTORY_H

#include <stdbool.h>
#include <stdint.h>

#include "rsock/wire.h"

struct rs_directory;

/* NULL when there is no memory. */
struct rs_directory *rs_directory_new(void);
/* `ip`, `port`: the client's. `name`: NUL-terminated. Full: the entry is dropped. */
void rs_directory_put(struct rs_directory *d, uint8_t family, const uint8_t ip[16], uint16_t port,
		      const char name[RS_NAME_LEN]);
bool rs_directory_get(struct rs_directory *d, uint8_t family, const uint8_t ip[16], uint16_t port,
		      char name[RS_NAME_LEN]);
void rs_directory_refuse(struct rs_directory *d, uint8_t family, const uint8_t ip[16],
			 uint16_t port, uint64_t inode, uint8_t reason);
/* The reason that was put in for that socket; 0: none. */
uint8_t rs_directory_refused(struct rs_directory *d, uint8_t family, const uint8_t ip[16],
			     uint16_t port, uint64_t inode);
/* Drops this process's entry for the client, if it is a name. */
void rs_directory_drop(struct rs_directory *d, uint8_t family, const uint8_t ip[16], uint16_t port);

#endif
