/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * peer.h - who holds the other end of a connection, and the links to those processes (one host)
 *
 * Rendezvous are abstract unix sockets: "rsock.PORT.N" is the N-th process (group) that listens on
 * that TCP port in this network namespace; "rsock.p.PID.RANDOM" is one process. A link is one such
 * SOCK_SEQPACKET connection, kept for as long as both processes live, plus both ends' slabs; it
 * carries the messages of all their streams.
 *
 * Links to processes on other hosts (rdma.h) have a queue pair in place of the socket; the rest is the
 * same.
 *
 * Except where noted, for the control thread only.
 */
#ifndef CONN_MGR_PEER_H
#define CONN_MGR_PEER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "conn_mgr/control.h"
#include "rsock/lock.h"
#include "rsock/reason.h"
#include "rsock/remote.h"
#include "rsock/shm.h"
#include "rsock/wire.h"

struct rs_conn;

struct rs_queued;

#define RS_LINK_ALIASES 8u

struct rs_slot_state {
	struct rs_conn *conn; /* who gets the messages; NULL: nobody */
	bool used, gone_sent, gone_recv, done;
};

struct rs_link {
	struct rs_source source;
	struct rs_lock
		lock; /* slots and the queue; a leaf: may be taken under a connection's lock */
	int sock;
	int ring_sock; /* a duplicate, for threads that ring; as long-lived as the memory; -1: none */
	/*
	 * The peer process runs as our user, who may do anything to us. Only such a peer gets our
	 * eventfds, and may have us write its own.
	 */
	bool trusted;
	bool overflow; /* it does not read its messages */
	bool attached; /* a stream was or is on it: threads may ring */
	bool peer_full; /* there was no room for a segment of the peer's, and those after it */
	uint32_t peer_segments; /* announced */
	int32_t peer_pid; /* as the kernel says; 0: not visible */
	bool up; /* HELLO was received */
	bool dead;
	bool initiator;
	char name[RS_NAME_LEN]; /* the rendezvous name that it was opened to, or "" */
	char alias[RS_LINK_ALIASES][RS_NAME_LEN]; /* others that lead to the same process */
	uint32_t aliases;
	uint8_t process[16];
	uint64_t born, died, idle_since; /* ms */
	struct rs_shm_link shm;
	int mine_fd[RS_SHM_SEGMENTS];
	uint32_t bells_sent;
	struct rs_slot_state *slot;
	uint32_t slots, used, hint;
	struct rs_link *next;
	struct rs_queued *queue, **queue_tail; /* what the socket did not take yet */
	uint32_t queued;
	struct rs_tuple to; /* over RDMA: the server's address that it was opened to */
};

/* `c` was accepted on `port` from `peer`; it may be claimed. Thread-safe. */
void rs_peer_accepted(struct rs_conn *c, uint16_t port, const struct sockaddr *peer);
/* Forgets an accepted connection. Thread-safe. */
void rs_peer_unaccept(struct rs_conn *c);
/* Nobody answered for that port a moment ago. Thread-safe. */
bool rs_peer_known_plain(uint16_t port);

/* Connected: find the peer process and claim. Called again at c->claim_at. */
void rs_peer_claim(struct rs_conn *c, uint64_t now);
/* The connection needs its slot no more; under the connection's lock, any thread. */
void rs_peer_detach(struct rs_conn *c);
/* Sends a message of `c` on its link. Thread-safe, never blocks. */
void rs_peer_send(struct rs_conn *c, uint8_t type, uint32_t epoch, uint64_t offset);
/* Sends eventfds of new bells to all links. Thread-safe. */
void rs_peer_bells(void);
void rs_peer_timer(uint64_t now);
/* Bell 0 rang: forward for bells whose eventfd a peer does not have. */
void rs_peer_scan_bells(void);
/* No rendezvous and no stream: the control thread may end, after closing what is idle. */
bool rs_peer_idle(void);
/* Closes all links. False: other threads may still look at their memory; call again. */
bool rs_peer_close_links(void);
/* Why connections that nobody claims stay on TCP: no peer came, or none could be linked to. */
enum rs_reason rs_peer_why_none(void);
/* In a forked child: close all; the next accept opens a rendezvous of its own. */
void rs_peer_forget(void);

/* The rings go with a fork that follows: the child is to hand over what is in them. */
void rs_links_inherit(void);

/* All links, for iteration from any thread: new ones are put in front, none is ever freed. */
extern struct rs_link *rs_links;
static inline bool rs_link_alive(const struct rs_link *l)
{
	return __atomic_load_n(&l->up, __ATOMIC_ACQUIRE) &&
	       !__atomic_load_n(&l->dead, __ATOMIC_ACQUIRE);
}
/* The connection of slot `id`, with a reference; NULL: none. Thread-safe. */
struct rs_conn *rs_link_conn(struct rs_link *l, uint32_t id);
/*
 * Takes the streams with news for `bell` off the link: calls `take` (which owns the reference) for
 * each. Thread-safe.
 */
void rs_link_harvest(struct rs_link *l, uint32_t bell, void (*take)(struct rs_conn *c, void *arg),
		     void *arg);
/* Says to all peers when to ring this process's `bell`. True: something is pending already. */
bool rs_links_asleep(uint32_t bell, enum rs_bell_when when);
/* Some link goes over RDMA. */
bool rs_links_remote(void);

#endif
