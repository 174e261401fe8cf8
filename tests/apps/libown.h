/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * libown.h - what rsock says of a connection of this very process
 */
#ifndef TESTS_APPS_LIBOWN_H
#define TESTS_APPS_LIBOWN_H

#include "rsock/stats.h"

/* NULL without rsock, and for what is no connection of its. */
const struct rs_stats_row *own_row(int fd);

#endif
