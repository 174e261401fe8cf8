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
 * A receiver tells its head when half of the ring was consumed, or at once when the sender
 * waits to close.
 *
 * Each write costs both ends the same, whatever its size. A stream of which RS_RDMA_SIGNAL_EVERY small
 * writes or more are on their way keeps further bytes in the staging ring: they go together, when there
 * are RS_REMOTE_SMALL of them or when one of those writes is known to be complete, whichever is first.
 * Whoever keeps some back is one that sleeps, for what follows.
 *
 * Who polls: whoever waits. To arm the completion queue costs a system call, and so does each event,
 * so it is armed only for those who sleep. At any time it is
 *  - guarded: armed, and the control thread watches the completion channel: the next completion wakes
 *    it, and it polls; or
 *  - on lease: the control thread comes by itself when the lease ends. It guards if somebody sleeps, or
 *    if nobody has polled since it was there last; else the lease goes on, each time for longer.
 * It leaves the first state only in rs_remote_event(), which begins a lease under the lock, or when
 * somebody else takes the channel over (below), which does the same, and the second only by guarding. So
 * whatever completes is seen within a lease, whoever else does what. Nobody who sleeps has to wait for
 * that:
 *  - A sleeper says so (`resting`, or its bell's `asleep`), then arms and polls under the lock, then
 *    looks again, then sleeps. What completed before that poll it sees; for what completes later the
 *    queue is armed.
 *  - rs_remote_event(), having disarmed, guards again at once if anybody sleeps still and nobody spins.
 *  - The only sleeper may sleep on the channel itself, so that no other thread has to run before it: it
 *    leads. The control thread then does not watch. A leader that wakes polls; when it finds that others
 *    sleep by now, it guards. One that never comes back (longjmp() out of a handler) is noticed when a
 *    lease ends: completions came that it should have taken.
 *  - A spinning thread polls for all. When it stops, it guards if anybody sleeps. It says so first
 *    (`spinning`) and looks at `armed` then, rs_remote_event() does it the other way round: one of them
 *    sees what the other did.
 * The control thread never waits for `cq_lock`: a thread that spins takes it again at once, over and
 * over. It comes again a moment later.
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
#define RS_REMOTE_SMALL 4096u /* less than so much may wait to become more */
#define RS_REMOTE_TELL (RS_REMOTE_RING / 2) /* bytes consumed that the sender is told of */
/*
 * Streams get their memory, half a MiB locked for each, in chunks: of 1, 1, 2 and 4, for most links have
 * few streams, then of 8.
 */
#define RS_REMOTE_CHUNK 8u
#define RS_REMOTE_CHUNKS (RS_REMOTE_STREAMS / RS_REMOTE_CHUNK + 3)
#define RS_REMOTE_WAKES 64u
#define RS_REMOTE_LEASE_MS 8u
#define RS_REMOTE_LEASE_MOST_MS 32u
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

/* Messages in the order in which they came. */
struct rs_remote_queue {
	struct rs_remote_msg *first, **tail;
};

struct rs_remote {
	/*
	 * Who posts does not wait for who polls: each has a lock, and may take `lock` under `cq_lock`.
	 * Both are leaves otherwise.
	 */
	struct rs_lock cq_lock; /* polling and arming, the lease, `wake` */
	struct rs_lock lock; /* posting, the message queues, `stalled` */
	const struct rs_rdma_ops *ops;
	struct rs_qp *qp;
	struct rs_shm_link *link;
	bool broken;
	bool waiting; /* streams that are in `stalled` */
	bool room; /* work requests are complete: who waits for that tries again */
	uint32_t spinning; /* threads that poll by themselves */
	uint32_t resting; /* threads that sleep on a slot */
	bool armed;
	bool watched; /* by the control thread */
	bool leader; /* somebody sleeps on the channel, and is among `resting` */
	int wake_fd; /* an eventfd that wakes the leader; -1: none yet */
	void (*watch)(struct rs_remote *r,
		      bool on); /* starts or stops the control thread's watching */
	bool missed; /* the control thread has to look, and could not or has not yet */
	uint32_t polled, polled_then; /* polls that found something; as of the last timer */
	uint64_t lease; /* ms: when the control thread comes by itself; 0: guarded */
	uint32_t lease_ms; /* how long it has gone on the last time */
	struct rs_remote_chunk chunk[RS_REMOTE_CHUNKS];
	uint64_t stalled[RS_REMOTE_STREAMS / 64]; /* streams that wait for completions */
	uint32_t wake[RS_REMOTE_WAKES]; /* streams with news, id << 1 | rx: for after the lock */
	uint32_t wakes;
	bool more; /* a poll has left something */
	bool any_in;
	struct rs_remote_queue in, out;
	struct rs_remote_msg *late; /* stack of what handlers have sent in the middle of a post */
	struct rs_remote_msg *idle, *pools; /* memory for messages; it goes when the link does */
	uint32_t npools;
	bool emptied;
};

/*
 * For the control thread, which watches the completion channel from the first rs_remote_event() on.
 * `watch`: called to change that, by any thread under cq_lock; off, rs_remote_timer() is due in
 * RS_REMOTE_LEASE_MS. NULL: out of memory.
 */
struct rs_remote *rs_remote_new(const struct rs_rdma_ops *ops, struct rs_qp *qp,
				struct rs_shm_link *link,
				void (*watch)(struct rs_remote *r, bool on));
/* Ends the queue pair. Rings stay readable, */
void rs_remote_close(struct rs_remote *r);
/* until no stream is left: then their memory goes back to the system, and reads as zeros, */
void rs_remote_empty(struct rs_remote *r);
/* until nobody looks any more. */
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
/* Calls `each` for the streams that waited for completions, once there are some. */
void rs_remote_retry(struct rs_remote *r, void (*each)(void *arg, uint32_t id), void *arg);

/* This thread is a signal handler that has interrupted its own poll or post: nobody can poll now. */
static inline bool rs_remote_interrupted(struct rs_remote *r)
{
	return rs_lock_mine(&r->lock) || rs_lock_mine(&r->cq_lock);
}
/* Polls. True: something happened, or another thread is at it. Any thread, under any lock. */
bool rs_remote_progress(struct rs_remote *r);
/* This thread polls / does not any more. */
void rs_remote_spin(struct rs_remote *r);
void rs_remote_unspin(struct rs_remote *r);
/*
 * This thread is about to sleep until its slot is woken / is awake. After the first, look. True: it
 * leads (if it `may`): it sleeps on both of fds[] (POLLIN), its slot is woken by rs_remote_wake_leader(),
 * and in the end it calls rs_remote_led() instead; `event`, `rung`: fds[0], fds[1] were readable.
 */
bool rs_remote_rest(struct rs_remote *r, bool may, int fds[2]);
void rs_remote_awake(struct rs_remote *r);
void rs_remote_led(struct rs_remote *r, bool event, bool rung);
void rs_remote_wake_leader(struct rs_remote *r);
/* At exit: a copy of the process will read the rings; nothing goes on the queue pair any more. */
void rs_remote_inherit(struct rs_remote *r);
/* In a forked child: closes what it has inherited. */
void rs_remote_forget(struct rs_remote *r);
/* For who sleeps on a bell instead (its `asleep` says so). */
void rs_remote_arm(struct rs_remote *r);
/* Looks after the lease; when (ms) to come again, 0: guarded. For the control thread. */
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
