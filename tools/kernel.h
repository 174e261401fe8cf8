/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * kernel.h - what the kernel knows of the TCP sockets of this network namespace
 */
#ifndef RSOCK_TOOLS_KERNEL_H
#define RSOCK_TOOLS_KERNEL_H

#include <stdint.h>

#include "rsock/stats.h"

struct kernel_socket {
	uint64_t inode;
	uint8_t family;
	uint8_t state; /* TCP_ESTABLISHED ... */
	struct rs_stats_addr local;
	struct rs_stats_addr peer;
	/* in sequence numbers, which count SYN and FIN too: see kernel_tx_bytes() */
	uint64_t written; /* acknowledged or in the send queue */
	uint64_t read; /* received and no longer in the receive queue */
	uint64_t unread; /* in the receive queue */
};

/*
 * The socket with this inode number, or NULL: no such TCP socket, another network namespace, or
 * the kernel does not say. The first call takes one snapshot of all sockets, for all calls.
 */
const struct kernel_socket *kernel_socket_find(uint64_t inode);

/* Bytes that the program has written to, and read from, the kernel's socket. */
uint64_t kernel_tx_bytes(const struct kernel_socket *s, int accepted);
uint64_t kernel_rx_bytes(const struct kernel_socket *s);

#endif
