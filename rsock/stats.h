/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * stats.h - what a process tells `rsock stat` about its streams
 *
 * A process that uses rsock keeps one memfd named RS_STATS_MEMFD mapped shared. It holds one
 * rs_stats_head and then head.rows rows. Readers find it as /proc/PID/fd/N -> "/memfd:rsock-stats
 * (deleted)", map it read-only and need no cooperation: a row is valid while its `used` word is
 * odd-free, that is: read `gen`, copy the row, read `gen` again; use the copy if both are equal and
 * even and `used` is 1. The kernel's rules for /proc/PID/fd decide who may read it.
 *
 * A row says little about a stream that is plain TCP for good, because rsock does not look at its
 * bytes: local/peer may be all zero (family 0). The reader then resolves (pid, fd) to a socket inode
 * and asks sock_diag for addresses and for the byte counts (tcpi_bytes_acked, tcpi_bytes_received).
 * For a plain row: total bytes = row.{tx,rx}_bytes + (kernel count - row.k{tx,rx}_base).
 * For any other row the row's counts are the totals.
 */
#ifndef RSOCK_STATS_H
#define RSOCK_STATS_H

#include <stdint.h>

#include "rsock/reason.h"

#define RS_STATS_MEMFD "rsock-stats"
#define RS_STATS_MAGIC 0x5354415453525331ULL
#define RS_STATS_VERSION 1u

enum rs_path {
	RS_PATH_TCP = 0, /* kernel TCP */
	RS_PATH_SHM = 1, /* shared memory */
	RS_PATH_RDMA = 2, /* RDMA writes */
};

struct rs_stats_addr {
	uint16_t port; /* host byte order */
	uint16_t pad[3];
	uint8_t ip[16]; /* network byte order; IPv4 uses the first four bytes */
};

struct rs_stats_row {
	uint32_t gen; /* seqlock for the descriptive part (up to `peer`); odd while it changes */
	uint32_t used; /* 1: this row describes a stream */
	int32_t fd; /* the lowest fd number that the program has for it */
	uint8_t family; /* AF_INET, AF_INET6, or 0: addresses not recorded */
	uint8_t plain; /* 1: kernel TCP for good (see above for its byte counts) */
	uint8_t tx_path; /* enum rs_path of the sending direction */
	uint8_t rx_path; /* enum rs_path of the receiving direction */
	uint8_t reason; /* enum rs_reason: why a direction is on TCP; RS_REASON_NONE when fast */
	uint8_t server; /* 1: accepted, 0: connected */
	uint8_t pad[2];
	struct rs_stats_addr local;
	struct rs_stats_addr peer;
	/* counters: plain 64-bit words, each written by one thread at a time */
	uint64_t tx_bytes;
	uint64_t rx_bytes;
	uint64_t tx_fast_bytes;
	uint64_t rx_fast_bytes;
	uint64_t ktx_base;
	uint64_t krx_base;
	uint64_t enters; /* directions that entered the fast path */
	uint64_t leaves; /* directions that left it */
	char device[24]; /* the RDMA device of its link, with a NUL; set once; "": none yet */
} __attribute__((aligned(64)));

struct rs_stats_head {
	uint64_t magic;
	uint32_t version;
	uint32_t row_size; /* sizeof(struct rs_stats_row) of the writer */
	uint32_t rows; /* rows that follow, at offset sizeof(struct rs_stats_head) */
	uint32_t pid;
	uint64_t lost; /* streams for which no row was free */
} __attribute__((aligned(64)));

#endif
