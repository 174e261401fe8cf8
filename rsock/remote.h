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
 * A receiver tells its head when it has consumed half of the ring (a quarter of a larger one), or at
 * once when the sender waits to close, and before it waits for room itself.
 *
 * Larger rings. A stream whose ring is full gets a second pair, a ring over there and staging here, of
 * RS_REMOTE_LARGE each, if both ends can have the memory: "tier" 1. The sender asks (WANT), the receiver
 * answers with the place or with none (RING); nobody waits for that. From then on the sender goes from one
 * to the other at any offset, as on shm; each write says in its immediate data which one it is for, so the
 * receiver lists the switches in its slot by itself. The sender goes to a ring only when it knows that what it
 * had written there before was read; so who finds that the sender has gone tells how far it has read, as soon
 * as that is all that was before. When the larger ring was not needed for some seconds the sender writes no
 * more into it and says so (DROP), behind its last write on the queue pair. The receiver gives the memory
 * back when it has read what is in there, the sender when it knows that and its writes are complete.
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
#define RS_REMOTE_LITTLE (RS_REMOTE_RING / 16) /* fewer it need not know of */
#define RS_REMOTE_LARGE ((size_t)1 << 20)
#define RS_REMOTE_LARGE_TELL (RS_REMOTE_LARGE / 4)
#define RS_REMOTE_LOOK_MS 1000u /* rs_remote_look() while there are larger rings */
#define RS_REMOTE_IDLE 4u /* such looks after which one that was not needed goes */
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

/* Of one stream: the larger ring into which the peer writes, and the staging for the peer's. */
struct rs_remote_extra {
	struct rs_remote_extra *next;
	uint32_t id;
	struct rs_rdma_mem in, out;
	bool leaving; /* no stream uses `out`: it goes */
	uint32_t mark; /* with the work request of that number */
};

enum rs_remote_large {
	RS_LARGE_NONE,
	RS_LARGE_WANTED, /* the control thread is to ask for it */
	RS_LARGE_ASKED,
	RS_LARGE_THERE,
	RS_LARGE_DROPPED, /* its last bytes are on their way */
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
	uint64_t wants[RS_REMOTE_STREAMS / 64]; /* streams that are RS_LARGE_WANTED */
	bool wanted; /* there are such */
	bool may_grow; /* the peer knows of larger rings */
	struct rs_remote_extra
		*extra; /* the list is changed under the lock, by the control thread */
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
/* Bytes of rings and staging, of all links. */
size_t rs_remote_registered(void);
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

/* ---- larger rings ---- */

static inline size_t rs_remote_tell(uint8_t tier)
{
	return tier ? RS_REMOTE_LARGE_TELL : RS_REMOTE_TELL;
}
/* Under the connection's lock, any thread: the ring is full. */
void rs_remote_ask(struct rs_chan *c);
/*
 * The rest is for the control thread. Calls `each` for the streams that want a larger ring. Then: memory
 * for stream `id`, where the peer writes (`in`) or where we stage. 0; -ENOMEM ...
 */
void rs_remote_wanted(struct rs_remote *r, void (*each)(void *arg, uint32_t id), void *arg);
int rs_remote_make(struct rs_remote *r, uint32_t id, bool in);
/* Under the connection's lock, as are the next: `made`: there is staging. True: say WANT to the peer. */
bool rs_remote_want(struct rs_chan *c, bool made);
/* The peer has said WANT; `made`: there is a ring. What to answer (RING). */
void rs_remote_offer(struct rs_chan *c, bool made, struct rs_remote_block *b);
/* The peer has said RING. True: there is room now. */
bool rs_remote_offered(struct rs_chan *c, const struct rs_remote_block *b);
/* The peer has said DROP. */
void rs_remote_dropped(struct rs_chan *c);
/* Every RS_REMOTE_LOOK_MS, for streams that have larger rings. True: say DROP to the peer. */
bool rs_remote_look(struct rs_chan *c);
/* Without it: gives back what is not used; `used` says (RS_USES_*) what a stream still does. */
#define RS_USES_IN 1u
#define RS_USES_OUT 2u
void rs_remote_sweep(struct rs_remote *r, uint32_t (*used)(void *arg, uint32_t id), void *arg);

/* Under the connection's lock: posts what was appended and may travel. */
void rs_remote_post(struct rs_chan *c);
/* Bytes may travel (both proofs are in) / must not any more. */
void rs_remote_open(struct rs_chan *c, bool open);
/* Tells the peer how far we have consumed, when that is worth it. */
void rs_remote_credit(struct rs_chan *c);
/* Before a sleep for room: the peer may be waiting for the same, and its room is what we have consumed. */
void rs_remote_credit_now(struct rs_chan *c);

#endif
