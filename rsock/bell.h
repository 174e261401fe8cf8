/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * bell.h - this process's doorbells: eventfds on which its threads sleep
 *
 * A bell has a number 0 .. RS_BELLS-1 that peers know too (they ring it through the link). Bell 0 is
 * the control thread's. An epoll set with streams owns one; a thread that sleeps in poll() borrows
 * one. Bell numbers appear in masks (1 << number). Thread-safe.
 */
#ifndef RSOCK_BELL_H
#define RSOCK_BELL_H

#include <stdint.h>

#include "rsock/shm.h"

/* Takes a free bell; returns its number, or 0 when there is none (or no fd for it). */
uint32_t rs_bell_get(void);
void rs_bell_put(uint32_t bell);
/* Mask of those that are taken. */
uint32_t rs_bell_used(void);
/* Its eventfd, -1 when it was never made. Stays the same for the life of the process. */
int rs_bell_fd(uint32_t bell);
/* Makes bell 0 if need be, and one for the program's first set. 0 or -errno. */
int rs_bell_init(void);
/* Rings local bells. */
void rs_bell_ring(uint32_t mask);
/* Empties a local bell. Never waits. */
void rs_bell_clear(uint32_t bell);
/*
 * Rings a bell of a peer: an eventfd, or, of a peer that could use an eventfd against us (another
 * user's), the socket of the link, on which the word to look goes as a message. Neither waits.
 */
#define RS_BELL_SOCKET(sock) (-2 - (sock))
void rs_bell_ring_peer(int bell_fd);
/* Mask of the bells that have an eventfd: links send what the peer does not know yet. */
uint32_t rs_bell_made(void);
/* In a forked child: forget the parent's (closing them). */
void rs_bell_forget(void);

#endif
