/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * rows.h - the writing side of the stats segment (layout: stats.h)
 *
 * Thread-safe. A NULL row is accepted everywhere: without memory or descriptors there are no stats.
 * The counters and one-byte fields of a row are written directly by its connection.
 */
#ifndef RSOCK_ROWS_H
#define RSOCK_ROWS_H

#include <stdbool.h>

#include "rsock/stats.h"

struct rs_stats_row *rs_row_new(int fd, bool server);
void rs_row_free(struct rs_stats_row *r);
void rs_row_address(struct rs_stats_row *r, uint8_t family, const struct rs_stats_addr *local,
		    const struct rs_stats_addr *peer);
/* The RDMA device that it goes by, or went by last. */
void rs_row_device(struct rs_stats_row *r, const char *name);
/* This thread is in a function of this module, which a signal handler has interrupted. */
bool rs_rows_locked(void);
/* In a forked child: the rows belong to the parent. */
void rs_rows_forget(void);

#endif
