/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * shm.h - the shared-memory link: slabs, slots, rings and doorbells
 *
 * A link joins two processes. Each end owns a slab: memfd segments (sealed against resizing) that
 * the other end maps too. A segment has bells, RS_SHM_SLOTS slots and, per slot, one ring of each
 * size class ("tier"). A stream uses one slot at each end: the slot in my slab is how the peer
 * sends to me. The byte at stream offset o lives at o mod (ring size).
 *
 * Tiers: a sender starts in the smallest ring (warm in cache) and, when it is full, switches to a
 * larger one at the current offset. `seg` lists the last RS_SEGS switches (offset, tier), `nseg` counts
 * them. One is overwritten only when the reader has passed the one behind it, so a sender can always
 * switch down to the smallest ring and, with nobody reading, up again to the largest: that takes at
 * least what the kernel's socket buffers would have taken.
 *
 * Waking: whoever waits writes into its own slot how (a futex word for blocking calls, a mask of
 * bells for epoll and poll), then looks again; whoever moves data publishes, then reads that. A bell
 * is a descriptor of the waiting process (bell.h) plus a cache line in its slab: a bitmap of streams with
 * news and a flag that says whether the bell needs to be rung.
 *
 * Everything read from a slot or a bell that the peer can write is untrusted.
 */
#ifndef RSOCK_SHM_H
#define RSOCK_SHM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "rsock/wire.h"

#define RS_SHM_MAGIC 0x314d48534b434f52ULL
#define RS_SHM_SLOTS 256u
#define RS_SHM_SEGMENTS 64u
#define RS_SEGS 4u /* one that the reader is in, one down, two up */
#define RS_BELLS 32u /* bell 0 belongs to the control thread */

/* When the bell is to be rung. */
enum rs_bell_when {
	RS_BELL_NEVER = 0, /* its owner is awake and looks by itself */
	RS_BELL_ONCE = 1, /* its owner sleeps: whoever swaps this to NEVER rings */
	RS_BELL_ALWAYS = 2, /* others sleep on it, unknown to its owner (nested epoll) */
};

struct rs_shm_bell {
	uint32_t asleep; /* enum rs_bell_when */
	uint32_t pending; /* some bit may be set */
	uint64_t ready[RS_SHM_SLOTS / 64];
} __attribute__((aligned(64)));

struct rs_shm_slot {
	/* written by the sender */
	uint64_t tail __attribute__((aligned(64)));
	uint64_t seg[RS_SEGS]; /* offset of the switch << 2 | tier; switch n is at n mod RS_SEGS */
	uint64_t fin; /* final offset + 1; 0: not known */
	uint32_t tx_cpu; /* CPU of the last sender + 1 */
	uint32_t nseg; /* switches since the epoch began, in tier 0 */
	/* written by the receiver */
	uint64_t head __attribute__((aligned(64)));
	uint32_t rx_limit; /* the most that its program wants to have waiting (SO_RCVBUF); 0: any */
	/* written by the slab's owner, swapped to 0 by the peer */
	/* futexes: RS_SLEEP_* of a receiver, and of a sender (towards the peer); 0: none sleeps */
	uint32_t rx_wait __attribute__((aligned(64)));
	uint32_t tx_wait;
	/* written by the slab's owner */
	uint32_t rx_mask; /* bells to ring when bytes arrive */
	uint32_t tx_mask; /* bells to ring when the peer has made room */
};

struct rs_shm_head {
	uint64_t magic;
	uint32_t slots;
	uint8_t tier_shift[RS_TIERS];
	uint8_t pad;
	struct rs_shm_bell bells[RS_BELLS];
	struct rs_shm_slot slot[RS_SHM_SLOTS];
};

#define RS_REMOTE_TIERS 2u /* over RDMA: the second ring comes and goes (remote.h) */

enum {
	RS_SLEEP_FUTEX = 1,
	RS_SLEEP_LEADS = 2, /* on the queue pair's channel (remote.h) */
};

struct rs_remote;

/* One end of a link. Filled in by the control thread; read by all. */
struct rs_shm_link {
	struct rs_shm_head *mine[RS_SHM_SEGMENTS];
	struct rs_shm_head *peer[RS_SHM_SEGMENTS];
	uint32_t nmine, npeer;
	struct rs_remote
		*remote; /* over RDMA: `mine` is private memory, `peer` unused (remote.h) */
	/* Triggers of the peer's bells, -1: none yet. Of bell 0 there is one when a stream is on it. */
	int bell_fd[RS_BELLS];
};

extern const uint8_t rs_shm_shift[RS_TIERS]; /* sizes of the rings: powers of 2 */

/* This end's view of one stream on a link. */
struct rs_chan {
	struct rs_shm_link *link;
	struct rs_shm_slot *mine; /* in my slab: what comes */
	struct rs_shm_slot *peer; /* in the peer's slab: what goes */
	struct rs_shm_bell *mine_bells;
	struct rs_shm_bell *peer_bells; /* of the segment of the peer's slot */
	struct rs_shm_bell *peer_bells0; /* of segment 0: `asleep` and `pending` live there */
	uint8_t *rx_ring[RS_TIERS]; /* NULL: over RDMA, none (yet) */
	uint8_t *tx_ring[RS_TIERS];
	uint8_t shift[RS_TIERS]; /* sizes of the rings: powers of 2 */
	uint32_t peer_bit; /* our stream's slot number in the peer's segment */
	/* receiving */
	uint64_t head;
	size_t rx_most; /* that can be in our rings */
	bool rx_bad; /* the peer published nonsense */
	/* sending */
	uint8_t tx_tier;
	uint8_t tx_tiers; /* rings that there are */
	uint16_t tx_small; /* times the ring was found empty: shrink */
	uint16_t tx_full; /* times it was found full: grow */
	uint64_t tail;
	uint32_t nseg; /* switches since the epoch began */
	uint64_t seg[RS_SEGS]; /* as in the slot */
	uint64_t tx_head; /* the peer's head as last read */
	uint64_t tx_start; /* offset of the last switch, or of the epoch's begin */
	uint32_t tx_limit; /* the most the program wants to have under way (SO_SNDBUF); 0: any */
	bool staging; /* the peer does not read the ring yet */
	/* over RDMA, else NULL; the rest is under the connection's lock */
	struct rs_remote *remote;
	uint32_t id, peer_id; /* our slot number, the peer's */
	uint32_t lkey[RS_REMOTE_TIERS], peer_key[RS_REMOTE_TIERS]; /* of the rings */
	uint64_t peer_ring[RS_REMOTE_TIERS]; /* where they are over there, */
	uint64_t peer_block; /* and the page with the words */
	uint64_t posted; /* on its way to the peer up to here */
	uint32_t burst; /* small writes that were posted since, and with, */
	uint32_t burst_mark; /* the work request of that number */
	bool held; /* the rest waits for completions (remote.h) */
	uint64_t told; /* the head that the peer was told last, */
	uint64_t tell_at; /* and from which on it is told again */
	uint8_t large; /* enum rs_remote_large: the larger ring for what we send */
	uint8_t idle; /* looks of the control thread since it was needed, */
	bool needed; /* and whether it was since the last one */
	uint8_t refusals; /* how often there was none, */
	uint32_t ask_wait; /* and how often not to ask again because of that */
	uint64_t tx_drop; /* what we had in it ends here */
	bool rx_dropped; /* the peer writes no more into our larger ring: it goes, */
	uint64_t rx_drop; /* once we have read so far */
	bool open; /* bytes may travel */
	bool mute; /* the peer may have forgotten the stream: write nothing to it */
	bool eager; /* tell the peer of every byte consumed: it waits to close */
};

/*
 * Creates a sealed segment; returns its memfd (CLOEXEC) and mapping, or -errno. -ENOMEM also when a
 * limit on address space leaves no room for it and the peer's.
 */
int rs_shm_create(struct rs_shm_head **head);
/*
 * Maps the peer's segment after checking seals, size and geometry. 0; -EPERM: it is not a proper one;
 * another -errno: there is no room for it.
 */
int rs_shm_map(int memfd, struct rs_shm_head **head);
void rs_shm_unmap(struct rs_shm_head *head);
/*
 * Nobody uses the rings of slot `id` any more: their memory goes back to the system; and with it our page
 * tables, also for those of the peer's `peer_id`, whose memory is the peer's to give back.
 */
void rs_shm_empty(struct rs_shm_link *l, uint32_t id, uint32_t peer_id);
/* Forked children get the mapping, which they do not otherwise. */
void rs_shm_inherit(struct rs_shm_head *head);
void rs_shm_disinherit(struct rs_shm_head *head);

/*
 * Makes `c` another channel. Threads that are about to wait may still read it without a lock, and see of each
 * word the old or the new value: the old slot is there until they have looked for news.
 */
void rs_chan_set(struct rs_chan *c, const struct rs_chan *to);
/* Binds a channel to slot `id` of mine and `peer_id` of the peer's. false: no such segment. */
bool rs_chan_bind(struct rs_chan *c, struct rs_shm_link *l, uint32_t id, uint32_t peer_id);
/* Slots and bells in private memory, for links whose data come in otherwise. NULL: out of memory. */
struct rs_shm_head *rs_shm_private(void);
void rs_shm_private_free(struct rs_shm_head *head);
/*
 * The link, instead of a peer process, moved data of slot `id`: wakes this process's own waiters, for
 * bytes (`rx`) or for room. How many threads slept in the slot.
 */
uint32_t rs_shm_wake(struct rs_shm_link *l, uint32_t id, bool rx);
/* Wakes who sleeps on `word`, of one of this process's own slots. How many threads slept in the futex. */
uint32_t rs_slot_wake(struct rs_shm_link *l, uint32_t *word);
/* Makes a slot fresh for a new stream; only when the peer cannot write it any more. */
void rs_slot_reset(struct rs_shm_slot *s);

/* ---- sending: one thread at a time ---- */

void rs_chan_tx_begin(struct rs_chan *c, uint64_t n);
/* The tier in which byte `at`, not consumed yet, is, and where that part ends (at most the tail). */
uint8_t rs_chan_tx_tier(const struct rs_chan *c, uint64_t at, uint64_t *upto);
/* Over RDMA: back to the small ring, if that can be now. True: the channel is there. */
bool rs_chan_tx_down(struct rs_chan *c);
/*
 * What buffers of fixed sizes (socket(7): SO_SNDBUF, SO_RCVBUF) would take in all, 0: no such size.
 * Where only one end has one, the other counts with what TCP starts with and grows to, respectively.
 */
uint64_t rs_chan_tx_limit(const struct rs_chan *c);
static inline bool rs_chan_tx_limited(const struct rs_chan *c)
{
	return c->tx_limit | __atomic_load_n(&c->peer->rx_limit, __ATOMIC_RELAXED);
}
/* Bytes that fit now; `grow`: switch to a larger ring rather than say 0. */
size_t rs_chan_tx_room(struct rs_chan *c, bool grow);
/* Copies up to `len` bytes (<= room) behind the tail without publishing. */
void rs_chan_tx_copy(struct rs_chan *c, uint64_t at, const void *buf, size_t len);
/* Publishes the tail and wakes the peer's waiters. */
void rs_chan_tx_publish(struct rs_chan *c, uint64_t tail);
/* Reads back unconsumed bytes [from, from + len) into buf. */
void rs_chan_tx_fetch(const struct rs_chan *c, uint64_t from, void *buf, size_t len);
/* How far the peer has consumed: between the epoch's begin and the tail, whatever it claims. */
uint64_t rs_chan_tx_head(struct rs_chan *c);
void rs_chan_tx_fin(struct rs_chan *c, uint64_t m);
/* Bytes in flight are few enough that a waiting sender should run. */
bool rs_chan_tx_writable(struct rs_chan *c);

/* Whether the current ring has room: for a waiter, without changing anything. */
bool rs_chan_tx_room_now(const struct rs_chan *c);

/* ---- receiving: one thread at a time ---- */

void rs_chan_rx_begin(struct rs_chan *c, uint64_t n);
/* The published tail, checked; sets rx_bad and returns the head when it is nonsense. */
uint64_t rs_chan_rx_tail(struct rs_chan *c);
void rs_chan_rx_copy(struct rs_chan *c, uint64_t at, void *buf, size_t len);
/* The end of what the ring holds behind offset `off`, wherever reading was; `off`: nothing. */
uint64_t rs_chan_rx_survived(const struct rs_chan *c, uint64_t off);
/* The same, unchecked, for what is not read here: the peer may bring it over TCP yet. */
uint64_t rs_chan_rx_told(const struct rs_chan *c);
/* From now on the control thread hears of bytes that come. */
void rs_chan_rx_watch(struct rs_chan *c);
/* Publishes the head and wakes the peer's senders. */
void rs_chan_rx_consume(struct rs_chan *c, uint64_t head);
/* The peer's hint of its final offset. */
bool rs_chan_rx_fin(const struct rs_chan *c, uint64_t *m);

#endif
