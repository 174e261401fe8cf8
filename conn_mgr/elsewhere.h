/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * elsewhere.h - which process of this host has accepted a connection that another host claims
 *
 * Of the processes that accept on one TCP port, workers of one server or of several (SO_REUSEPORT),
 * one holds the RDMA port of that number. It asks the others (WHERE, over the links of this host), who
 * answer with an RDMA port of their own (HERE), to which it sends the client. They open that port when
 * they are first asked. Only processes of our user are asked, and answer.
 *
 * For the control thread.
 */
#ifndef CONN_MGR_ELSEWHERE_H
#define CONN_MGR_ELSEWHERE_H

#include <stdint.h>

#include "rsock/wire.h"

struct rs_link;

/*
 * The RDMA port of the process that has accepted `t`; 0: not known, but whoever could be it has been
 * asked, so that the same question has an answer soon. `name`: the rendezvous name of the process, if
 * a directory knows it, else NULL: all that listen on the port are asked.
 */
uint16_t rs_elsewhere(const struct rs_tuple *t, const char *name);
void rs_elsewhere_asked(struct rs_link *l, const struct rs_msg *m);
void rs_elsewhere_told(struct rs_link *l, const struct rs_msg *m);
/* In a forked child. */
void rs_elsewhere_forget(void);

#endif
