/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * remote.h - the verbs link: the rings and messages of one queue pair
 *
 * Each end has, per stream, a block of registered memory: a page with the word in which the peer tells
 * how far it has consumed, then the ring into which the peer writes; and a staging ring of the same
 * size, where sent bytes stay until the peer has consumed them. The byte at offset o lives at o mod
 * RS_REMOTE_RING in both. Bytes go by RDMA write with immediate data: the receiver's stream number
 * and the length, 0 for "I have consumed more". The receiver's slot (shm.h) is private memory: whoever
 * polls the completion queue moves its tail and wakes this process's waiters, as a peer process does
 * on a shm link.
 *
 * A receiver tells its head when a quarter of the ring was consumed, or at once when the sender
 * waits to close.
 *
 * Who polls: whoever waits. To arm the completion queue costs a system call, and so does each event,
 * so it is armed only for those who sleep. At any time it is
 *  - armed: the next completion wakes the control thread, which polls; or
 *  - on lease: the control thread comes by itself when the lease ends. It arms if somebody sleeps, or
 *    if nobody has polled since it was there last; else the lease goes on.
 * It leaves the first state only in rs_remote_event(), which begins a lease under the lock, and the
 * second only by arming. So whatever completes is seen within a lease, whoever else does what. Nobody
 * who sleeps has to wait for that:
 *  - A sleeper says so (`resting`, or its bell's `asleep`), then arms and polls under the lock, then
 *    looks again, then sleeps. What completed before that poll it sees; for what completes later the
 *    queue is armed.
 *  - rs_remote_event(), having disarmed, arms again at once if anybody sleeps still and nobody spins.
 *  - A spinning thread polls for all. When it stops, it arms if anybody sleeps. It says so first
 *    (`spinning`) and looks at `armed` then, rs_remote_event() does it the other way round: one of them
 *    sees what the other did.
 * A poll wakes all whom its completions concern (rs_shm_wake()), and leaves what is for the control
 * thread (messages, room, a broken queue pair) in this struct and rings its bell.
 *
 * Everything that the peer writes is untrusted. Memory of rs_remote stays until nobody looks at the
 * link any more; a dead one says so by rs_remote_broken().
 */
#ifndef RSOCK_REMOTE_H
#define RSOCK_REMOTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rsock/lock.h"
#include "rsock/rdma.h"
#include "rsock/shm.h"

#define RS_REMOTE_RING ((size_t)256 << 10)
#define RS_REMOTE_CUT ((uint32_t)64 << 10) /* streams take turns on the wire */
#define RS_REMOTE_TELL (RS_REMOTE_RING / 4) /* bytes consumed that the sender is told of */
#define RS_REMOTE_CHUNK 16u /* streams that get their memory together */
#define RS_REMOTE_WAKES 64u
#define RS_REMOTE_STREAMS (RS_SHM_SEGMENTS * RS_SHM_SLOTS)

/* Where the peer's memory for one stream is. */
struct rs_remote_block {
	uint64_t addr;
	uint32_t rkey;
};

struct rs_remote_chunk {
	struct rs_rdma_mem in; /* written by the peer */
	struct rs_rdma_mem out; /* staging */
};

struct rs_remote_msg;

struct rs_remote {
	struct rs_lock lock; /* the queue pair and the message queues; a leaf */
	const struct rs_rdma_ops *ops;
	struct rs_qp *qp;
	struct rs_shm_link *link;
	bool broken;
	bool room; /* the send queue has room again: who found it full tries again */
	uint32_t spinning; /* threads that poll by themselves */
	uint32_t resting; /* threads that sleep on a slot */
	bool armed;
	uint32_t polled, polled_then; /* polls that found something; as of the last timer */
	uint64_t lease; /* ms: when the control thread comes by itself; 0: it is armed */
	struct rs_remote_chunk chunk[RS_REMOTE_STREAMS / RS_REMOTE_CHUNK];
	uint8_t stalled[RS_REMOTE_STREAMS / 8]; /* streams that found the send queue full */
	uint32_t wake[RS_REMOTE_WAKES]; /* streams with news, id << 1 | rx: for after the lock */
	uint32_t wakes;
	struct rs_remote_msg *in, **in_tail, *out, **out_tail;
};

/* For the control thread. NULL: out of memory. */
struct rs_remote *rs_remote_new(const struct rs_rdma_ops *ops, struct rs_qp *qp,
				struct rs_shm_link *link);
/* Ends the queue pair. Rings stay readable until rs_remote_free(). */
void rs_remote_close(struct rs_remote *r);
void rs_remote_free(struct rs_remote *r);
/* Memory for stream `id`, registered if need be. 0; -ENOMEM (also: RLIMIT_MEMLOCK) ... */
int rs_remote_block(struct rs_remote *r, uint32_t id, struct rs_remote_block *b);
/* As rs_chan_bind(). */
bool rs_remote_bind(struct rs_chan *c, struct rs_remote *r, uint32_t id, uint32_t peer_id,
		    const struct rs_remote_block *peer);

/* Sends a message, or queues it. 0; -EPIPE; -ENOMEM. Thread-safe. */
int rs_remote_send(struct rs_remote *r, const uint8_t *bytes, size_t len);
/* Takes the oldest message that came (RS_MSG_MAX bytes at most). False: none. */
bool rs_remote_receive(struct rs_remote *r, uint8_t *bytes, size_t *len);
/* Calls `each` for the streams that found the send queue full, once it is not any more. */
void rs_remote_retry(struct rs_remote *r, void (*each)(void *arg, uint32_t id), void *arg);

/* Polls. True: something happened, or another thread is at it. Any thread, under any lock. */
bool rs_remote_progress(struct rs_remote *r);
/* This thread polls / does not any more. */
void rs_remote_spin(struct rs_remote *r);
void rs_remote_unspin(struct rs_remote *r);
/* This thread is about to sleep until the control thread wakes it / is awake. After the first, look. */
void rs_remote_rest(struct rs_remote *r);
void rs_remote_awake(struct rs_remote *r);
/* For who sleeps on a bell instead (its `asleep` says so). */
void rs_remote_arm(struct rs_remote *r);
/* Looks after the lease; when (ms) to come again, 0: it is armed. For the control thread. */
uint64_t rs_remote_timer(struct rs_remote *r, uint64_t now);
/* The completion channel is readable: when (ms) to call the timer, 0: never. For the control thread. */
uint64_t rs_remote_event(struct rs_remote *r);
bool rs_remote_broken(const struct rs_remote *r);

/* Under the connection's lock: posts what was appended and may travel. */
void rs_remote_post(struct rs_chan *c);
/* Bytes may travel (both proofs are in) / must not any more. */
void rs_remote_open(struct rs_chan *c, bool open);
/* Tells the peer how far we have consumed, when that is worth it. */
void rs_remote_credit(struct rs_chan *c);

#endif
