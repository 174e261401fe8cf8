/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * link.h - links: what this process shares with one other process, for all streams between them
 *
 * On one host a link is a SOCK_SEQPACKET connection of abstract unix sockets (rendezvous.h), kept until
 * some seconds after its last stream, plus both ends' slabs. Between hosts (rdma.h) a queue pair takes the
 * place of the socket, and registered memory that of the slabs. Either way it carries the messages of
 * all their streams.
 *
 * link.c makes and ends links, link_msg.c sends and receives on them, link_slot.c gives streams their
 * numbers, link_bell.c tells who has news, link_ring.c gives them larger rings; link_parts.h is between these.
 *
 * Except where noted, for the control thread only.
 */
#ifndef CONN_MGR_LINK_H
#define CONN_MGR_LINK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "conn_mgr/control.h"
#include "rsock/greet.h"
#include "rsock/lock.h"
#include "rsock/reason.h"
#include "rsock/remote.h"
#include "rsock/shm.h"
#include "rsock/wire.h"

struct rs_conn;
struct rs_qp;
struct rs_rdma_ops;

struct rs_queued;

#define RS_LINK_ALIASES 8u

struct rs_slot_state {
	struct rs_conn *conn; /* who gets the messages; NULL: nobody */
	bool used, gone_sent, gone_recv, done;
	uint8_t dirty; /* free, and its rings have memory: sweeps until that goes */
	uint32_t peer; /* the last stream's number over there, + 1; 0: it was on none */
};

struct rs_link {
	struct rs_source source;
	struct rs_lock
		lock; /* slots and the queue; a leaf: may be taken under a connection's lock */
	int sock;
	bool trusted; /* the peer process runs as our user, who may do anything to us */
	bool overflow; /* it does not read its messages */
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
	uint32_t bells_sent; /* the peer has a trigger of those bells: */
	int trigger[RS_BELLS]; /* under the lock */
	uint32_t inherited_mine,
		inherited_peer; /* segments that go with the fork that is going on */
	struct rs_slot_state *slot;
	uint32_t slots, used, hint;
	bool dirty; /* some slot is */
	uint64_t sweep_at; /* ms; 0: not yet known */
	struct rs_link *next;
	struct rs_queued *queue, **queue_tail; /* what the socket did not take yet */
	uint32_t queued;
	uint32_t features; /* of the peer's HELLO */
	/* ---- over RDMA ---- */
	struct rs_tuple
		ends; /* the connection that it was made for; its claims have these addresses */
	uint16_t port[RS_LINK_ALIASES]; /* RDMA ports that lead to the process (initiator) */
	uint32_t ports;
	uint64_t rings_at; /* ms: when to look at larger rings again; 0: there are none */
	uint8_t identity[16]; /* what our HELLO says that we are */
	uint8_t expect[RS_GREET_ID_LEN]; /* what the peer's must begin with */
	uint8_t greeting[RS_GREET_REQUEST_LEN]; /* our request (initiator) */
	uint8_t proof[RS_HELLO_PROOF_LEN]; /* what the initiator's HELLO says */
};

/* ---- one link ---- */

static inline bool rs_link_alive(const struct rs_link *l)
{
	return __atomic_load_n(&l->up, __ATOMIC_ACQUIRE) &&
	       !__atomic_load_n(&l->dead, __ATOMIC_ACQUIRE);
}
/* The streams that have a number. Any thread. */
static inline uint32_t rs_link_used(const struct rs_link *l)
{
	return __atomic_load_n(&l->used, __ATOMIC_ACQUIRE);
}

/* When it died, or its last stream let go of it (ms); 0: it has not, or its memory is gone. */
static inline uint64_t rs_link_died(const struct rs_link *l)
{
	return __atomic_load_n(&l->died, __ATOMIC_RELAXED);
}

/* A link on `sock`, which it owns from then on; `name`: where it leads, NULL: accepted. NULL: refused. */
struct rs_link *rs_link_new(int sock, const char *name);
/*
 * Over RDMA; `t`: the connection that it is made for; `port`: the RDMA port that it is opened to, 0:
 * the peer opened it.
 */
struct rs_link *rs_link_new_remote(const struct rs_rdma_ops *ops, struct rs_qp *qp,
				   const struct rs_tuple *t, uint16_t port);
/* The queue pair is connected / could not be, or is not any more. */
void rs_link_remote_up(struct rs_link *l);
/*
 * `error`: ECONNREFUSED: nobody listens, EAGAIN: asked too early, EPROTO: nobody of ours,
 * EPROTONOSUPPORT, EKEYREJECTED, ENOBUFS: the peer does not want us, and why; ENODEV, ENOMEM ...
 */
void rs_link_failed(struct rs_link *l, int error);
/* Streams on it leave for TCP or learn that the peer has died. */
void rs_link_kill(struct rs_link *l, uint64_t now);
/* Sends a message, or queues it. 0; -errno. Thread-safe, never blocks. */
int rs_link_send(struct rs_link *l, const struct rs_msg *m, const int *fds, size_t nfds);
/* Another live link to the same process, else `l` itself. */
struct rs_link *rs_link_same_process(struct rs_link *l);
/* `name` leads to the process of `l` too. */
void rs_link_alias(struct rs_link *l, const char *name);
bool rs_link_named(const struct rs_link *l, const char *name);
/* The link to the process with that rendezvous name, perhaps not up yet. NULL: -errno in *err. */
struct rs_link *rs_link_to(const char *name, int *err);

/* ---- the number of a stream on its link ---- */

/* A slot for `c` (sets c->link, c->id). 0 or -errno. */
int rs_link_slot_get(struct rs_link *l, struct rs_conn *c);
/* The peer never learned of the slot, or will not use it. */
void rs_link_slot_unused(struct rs_link *l, uint32_t id);
/*
 * The peer knows of the slot and will not be served (or `c`, which it was for, is no more): it is free
 * when the peer's GONE has come. False: the slot is not c's any more.
 */
bool rs_link_slot_refuse(struct rs_link *l, uint32_t id, struct rs_conn *c);
/* `c` lets go of the slot of a claim that is not answered yet: rs_link_slot_orphan() is then true. */
void rs_link_slot_leave(struct rs_link *l, uint32_t id, struct rs_conn *c);
bool rs_link_slot_orphan(struct rs_link *l, uint32_t id);

/* `c` needs its slot no more; under the connection's lock, any thread. */
void rs_link_detach(struct rs_conn *c);
/* The connection of slot `id`, with a reference; NULL: none. Thread-safe. */
struct rs_conn *rs_link_conn(struct rs_link *l, uint32_t id);
/* Sends a message of `c` on its link. Thread-safe, never blocks. */
void rs_link_tell(struct rs_conn *c, uint8_t type, uint32_t epoch, uint64_t offset);
/*
 * Takes the streams with news for `bell` off the link: calls `take` (which owns the reference) for
 * each. Thread-safe.
 */
void rs_link_harvest(struct rs_link *l, uint32_t bell, void (*take)(struct rs_conn *c, void *arg),
		     void *arg);

/* ---- all links ---- */

/* For iteration from any thread: new ones are put in front, none is ever freed. */
extern struct rs_link *rs_links;

/* Says to all peers when to ring this process's `bell`. True: something is pending. Thread-safe. */
bool rs_links_asleep(uint32_t bell, enum rs_bell_when when);
/* Some link goes over RDMA. Thread-safe. */
bool rs_links_remote(void);
/* Sends triggers of new bells to all peers. Thread-safe. */
void rs_links_send_bells(void);
/* Bell 0 rang: forward to bells for which a peer has no trigger. */
void rs_links_scan(void);
void rs_links_timer(uint64_t now);
/* Peers that have not said HELLO get so many ms more. */
void rs_links_postpone(uint64_t ms);
/* No stream is on any. */
bool rs_links_idle(void);
/* Closes all. False: other threads may still look at their memory; call again. */
bool rs_links_close(void);
/* Why connections that nobody claims stay on TCP: no peer came, or none could be linked to. */
enum rs_reason rs_links_why_none(void);
/* A peer came that could not be linked to. */
void rs_links_unlinked(enum rs_reason why);
/*
 * The rings go with a fork that follows: the child is to hand over what is in them. `remote`: those that
 * a device writes, too.
 */
void rs_links_inherit(bool remote);
/* After the fork: not with the next one. */
void rs_links_disinherit(void);
/* In a forked child: closes all. `rings`: those came with the fork, for as long as they are needed: */
void rs_links_forget(bool rings);
void rs_links_unmap_inherited(void);

#endif
