/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * spin.h - how long a wait spins before it sleeps
 *
 * Long while waits are short enough that spinning would have caught them, next to nothing when they are
 * not; at most RSOCK_SPIN_US.
 *
 * A round trip over RDMA takes longer than one through memory, and to sleep costs more: to arm the
 * completion queue, its event, the control thread. So who waits for an answer there spins up to twenty
 * times as long. Not so in the middle of a stream: that comes whether anybody is awake or not, and who
 * spins may take the CPU from what brings it.
 *
 * Callers of several threads may share a struct rs_spin: what they lose is a little of its experience.
 */
#ifndef CONN_MGR_SPIN_H
#define CONN_MGR_SPIN_H

#include <stdbool.h>
#include <stdint.h>

struct rs_spin {
	uint32_t us[2]; /* within a stream, for an answer; 0: nothing known yet */
};

/* This thread has sent since it last waited, and found room: it waits for an answer. */
extern __thread bool rs_asked __attribute__((tls_model("initial-exec")));

/* Microseconds to spin now. */
uint32_t rs_spin_us(const struct rs_spin *s, bool remote);
/* After a wait that took `ticks` in all, spinning and sleeping; 0: spinning has caught it. */
void rs_spin_waited(struct rs_spin *s, bool remote, uint64_t ticks);

#endif
