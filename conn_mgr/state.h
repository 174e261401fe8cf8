/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * state.h - the memory of streams that outlives their owner
 *
 * For an owner that was killed, a process that has the connection by fork carries on (owner.h), and
 * needs to know where the stream stood. So its state is in shared memory, which the owner alone can
 * write: a forked child, which may be under somebody else's control by then, has a view of it that is
 * sealed against writing. What processes tell each other is apart from it.
 */
#ifndef CONN_MGR_STATE_H
#define CONN_MGR_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "rsock/shm.h"
#include "rsock/stream.h"

struct rs_state {
	struct rs_stream sm;
	struct rs_chan ch;
	uint64_t ktx, krx; /* bytes given to and taken from the kernel */
	bool rst_in_kernel; /* which tells of the stream's reset, whoever asks first */
};

/*
 * What processes that have the socket of a connection tell each other. Each of them can write all of
 * it, so nobody relies on it for more than that connection's bytes, nor waits for it without end.
 * Members with "+ 1" are of the connection that `ends` says, and of none otherwise.
 */
struct rs_shared {
	uint32_t ends; /* rs_state_mem's; a futex word */
	uint32_t reset_at; /* `ends` after the last reset */
	uint64_t owed; /* as rs_conn's, of the one that ended last */
	uint32_t asked; /* `ends` + 1: another process wants it to leave, */
	uint32_t stuck_at; /* `ends` + 1: and only the owner can read what is in the ring */
	uint32_t given_at; /* `ends` + 1: the owner has done with it */
	uint32_t
		lingers; /* process that the owner has left behind to write what TCP is owed; 0: none */
	uint32_t taker; /* process that carries on for a dead owner; 0: none */
	/* Above 32 bits `ends` + 1: any process may read what is in the ring (rest.h); below: bytes left. */
	uint64_t rest;
};

/* Of one connection after another, and never unmapped in the process that made it. */
struct rs_state_mem {
	struct rs_state *own; /* NULL: none */
	const struct rs_state *seen; /* by children; NULL: they must not have the connection */
	struct rs_shared *shared;
	uint32_t ends; /* grows by 2 when a connection becomes plain, is reset or ends */
};

/* Thread-safe. False: out of memory. */
bool rs_state_take(struct rs_state_mem *m);

/* ---- in a forked child ---- */

/* First: what is taken from now on is the child's own. */
void rs_states_forget(void);
/*
 * When nothing points to what was the parent's own: it cannot be written any more. `inside`: the child
 * goes on in the midst of a call that uses it, and has a copy.
 */
void rs_states_seal(bool inside);
/* What came with the fork is not needed any more. */
void rs_states_unmap_inherited(void);

#endif
