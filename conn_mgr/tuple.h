/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * tuple.h - the addresses and ports of a connection, as rsock compares them
 */
#ifndef CONN_MGR_TUPLE_H
#define CONN_MGR_TUPLE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

struct rs_conn;

/*
 * Family 4 or 6, the address (of IPv4 in the first four bytes, the rest 0), the port in host order. A
 * v4-mapped address is one of IPv4. False: not an internet address.
 */
bool rs_address(const struct sockaddr_storage *sa, uint8_t *family, uint8_t ip[16], uint16_t *port);

/*
 * Under its lock: fills in c->tuple, and the addresses of the stats row, from the kernel socket. Of
 * accepted and of connected ones. False: it has none (any more).
 */
bool rs_tuple_learn(struct rs_conn *c);

#endif
