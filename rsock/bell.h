/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * bell.h - this process's doorbells: descriptors on which its threads sleep
 *
 * A bell has a number 0 .. RS_BELLS-1 that peers know too. Bell 0 is the control thread's. An epoll set
 * with streams owns one; a thread that sleeps in poll() borrows one. Bell numbers appear in masks
 * (1 << number). Thread-safe.
 *
 * Each peer that rings it has a *trigger* for it: an eventfd that it shares with this process only. So no
 * peer can take another one's rings away. A bell is an epoll set of its triggers, and is readable from a
 * ring on until it is cleared.
 *
 * A trigger is pulled by reading it, and wakes who waits for room in it. (Both ends can fill it, empty
 * it and clear its O_NONBLOCK. A read can be told not to wait all the same, a write cannot.)
 */
#ifndef RSOCK_BELL_H
#define RSOCK_BELL_H

#include <stdbool.h>
#include <stdint.h>

#include "rsock/shm.h"

/* Takes a free bell; returns its number, or 0 when there is none (or no fd for it). */
uint32_t rs_bell_get(void);
void rs_bell_put(uint32_t bell);
/* Mask of those that are taken. */
uint32_t rs_bell_used(void);
/* Its descriptor, to be waited for only; -1: never made. Stays the same for the life of the process. */
int rs_bell_fd(uint32_t bell);
/* Makes bell 0 if need be, and one for the program's first set. 0 or -errno. */
int rs_bell_init(void);
/* Rings local bells. */
void rs_bell_ring(uint32_t mask);
/* Clears a local bell, and says whether it had rung. Never waits. */
bool rs_bell_clear(uint32_t bell);
/* A new trigger of a bell that was made, for a peer; -errno. */
int rs_bell_trigger(uint32_t bell);
/* Closes it; a copy that the peer has is worth nothing from then on. */
void rs_bell_untrigger(uint32_t bell, int trigger);
/* Rings a bell, of a peer perhaps, by its trigger. Never waits, whatever the peer does. */
void rs_trigger_pull(int trigger);
/* Mask of the bells that were made: links send triggers that the peer has not got yet. */
uint32_t rs_bell_made(void);
/* In a forked child: forget the parent's (closing them). */
void rs_bell_forget(void);

#endif
