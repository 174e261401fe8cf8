/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * advice.h - what to change when a limit or a permission stands in the way of RDMA
 *
 * Each kind of failure is told once, at info level, until rs_advice_again(). For one thread at a time.
 */
#ifndef RSOCK_RDMA_ADVICE_H
#define RSOCK_RDMA_ADVICE_H

#include <stddef.h>

#include "rsock/rdma.h"

/*
 * `doing` ("registering memory") failed with `err` (an errno); `bytes`: of how much memory, 0: unknown.
 * Returns what rdma.h promises: -ENOMEM (RLIMIT_MEMLOCK), -ENOBUFS (other memory), -ENOSPC (a limit of
 * the device or of a control group), -EMFILE, -EACCES; else -err.
 */
int rs_advice(const struct rs_rdma_host *host, const char *doing, size_t bytes, int err);
void rs_advice_again(void);

#endif
