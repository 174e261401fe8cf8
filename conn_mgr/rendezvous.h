/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * rendezvous.h - the abstract unix sockets at which processes of one network namespace find each
 * other, and the memory of ports where nobody answers
 *
 * "rsock.PORT.N" is the N-th process (group) that listens on that TCP port; "rsock.p.PID.RANDOM" is
 * one process.
 */
#ifndef CONN_MGR_RENDEZVOUS_H
#define CONN_MGR_RENDEZVOUS_H

#include <stdbool.h>
#include <stdint.h>

#include "conn_mgr/directory.h"
#include "rsock/wire.h"

/* Random identity of this process (16 bytes); another one after fork. Thread-safe. */
const uint8_t *rs_process_id(void);
/* The name of this process's own rendezvous, "" while it has none. */
const char *rs_process_name(void);

/* A listener on `port` exists (counted) / is closed. Thread-safe. 0 or -errno. */
int rs_rendezvous_open(uint16_t port);
/* In a process that inherited the listener over fork: answer too. Cheap when it does already. */
bool rs_rendezvous_ensure(uint16_t port);
void rs_rendezvous_close(uint16_t port);
/* Something was accepted on the port: it may be claimed late. Its directory, or NULL. Thread-safe. */
struct rs_directory *rs_rendezvous_accepted(uint16_t port);
/*
 * What was accepted on the port is used: from now on this process also answers on RDMA, if it can, and
 * if it has no listener (any more) for `ms`. Returns the directory of the port, `d` if there is no
 * other. *holder: this process answers for the port everywhere, so that nobody will look in the
 * directory for what it has accepted. Thread-safe.
 */
struct rs_directory *rs_rendezvous_used(uint16_t port, struct rs_directory *d, uint64_t ms,
					bool *holder);
/* Of a port on which this process listens, or has listened. */
struct rs_directory *rs_rendezvous_directory(uint16_t port);
/* This thread is in a function of this module, which a signal handler has interrupted. */
bool rs_rendezvous_locked(void);
#define RS_RENDEZVOUS_INDEXES \
	16 /* unrelated processes that may listen on one port (SO_REUSEPORT) */
/* N of the name "rsock.PORT.N" that this process holds; -1: none. */
int rs_rendezvous_index(uint16_t port);

/* "rsock.PORT.INDEX". */
void rs_rendezvous_name(uint16_t port, uint32_t index, char name[RS_NAME_LEN]);
/* A socket connected to a rendezvous, or -errno (ECONNREFUSED: nobody is there). */
int rs_rendezvous_connect(const char *name);

/* Nobody answered for `port` / somebody did. */
void rs_rendezvous_refused(uint16_t port, uint64_t now);
void rs_rendezvous_answered(uint16_t port);
/* Nobody answered for that port a moment ago. Thread-safe. */
bool rs_rendezvous_known_plain(uint16_t port);

/* For the control thread: take over names whose holder died. */
void rs_rendezvous_timer(uint64_t now);
bool rs_rendezvous_idle(void);
/* There are other RDMA devices than before: ports that could not listen there try again. */
void rs_rendezvous_rdma_again(void);
void rs_rendezvous_forget(void);

#endif
