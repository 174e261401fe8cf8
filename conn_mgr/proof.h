/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * proof.h - is the process at the other end of a link the holder of this TCP socket?
 *
 * Each side passes an O_PATH descriptor of its TCP socket; the other compares its inode with the one
 * that sock_diag(7) knows for the 4-tuple. An O_PATH descriptor can be neither read nor written.
 * Thread-safe.
 */
#ifndef CONN_MGR_PROOF_H
#define CONN_MGR_PROOF_H

#include <stdbool.h>
#include <stdint.h>

#include "rsock/wire.h"

/*
 * The inode of the socket at the client's (or server's) end of `t`. 0: it is in a listen backlog;
 * -ENOENT: there is no such socket; other -errno: sock_diag cannot be asked.
 */
int64_t rs_proof_inode(const struct rs_tuple *t, bool server_end);
/* An O_PATH descriptor of `fd` (to be closed by the caller), or -errno. */
int rs_proof_handle(int fd);
/* The inode behind a descriptor, 0 when it is no socket. */
uint64_t rs_proof_handle_inode(int handle);
void rs_proof_forget(void);

#endif
