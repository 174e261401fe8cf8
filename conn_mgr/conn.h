/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * conn.h - one TCP connection of this process: kernel socket + stream state machine + channel
 *
 * The edge around rsock/stream.h: it moves the bytes, sends the messages and obeys the todo bits.
 * Application threads call it through preload/, the control thread through conn_mgr/control.h.
 *
 * Life: rs_conn_new() -> candidate (I/O goes through here, still TCP) -> either plain for good
 * (c->plain: callers use the kernel directly and never come here again) or attached to a link, when
 * its directions enter and leave the fast path.
 *
 * Memory of connections is never returned to the system (type-stable): a stale pointer may be
 * dereferenced, rs_conn_get() tells whether it is still alive. Each has one lock; it is never held
 * while sleeping or waiting for a peer. errno is untouched: functions return results or -errno.
 */
#ifndef CONN_MGR_CONN_H
#define CONN_MGR_CONN_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "conn_mgr/spin.h"
#include "conn_mgr/state.h"
#include "rsock/lock.h"
#include "rsock/reason.h"
#include "rsock/remote.h"
#include "rsock/stats.h"

struct rs_conn;
struct rs_link;
struct rs_owner;

/* Somebody who wants to know when readiness may have changed (an epoll item). */
struct rs_watch {
	struct rs_watch *next;
	/* Under the connection's lock; must not sleep. */
	void (*changed)(struct rs_watch *w, struct rs_conn *c);
	/* The kernel's readiness of the socket begins (false: ceases) to speak for the stream. */
	void (*kernel)(struct rs_watch *w, struct rs_conn *c, bool speaks);
	/* What an edge-triggered one knows: what repeats it is no edge. */
	uint32_t told; /* bits of poll(2); whoever finds a reason to tell them again clears them */
	uint64_t arrived; /* bytes that had come */
};

#define RS_WAITERS 8

/*
 * A call that waits. Known by thread and stack frame, for a signal handler may leave it by longjmp():
 * then the thread is back further up, or has used the stack for something else.
 */
struct rs_waiting {
	uint32_t tid; /* 0: free */
	bool in_tcp, busy;
	uintptr_t frame; /* address of its struct rs_waiter, */
	uint64_t mark; /* which begins with this while the frame lives */
};

enum rs_claim {
	RS_CLAIM_NONE, /* accepted: waits to be claimed; or nothing to do any more */
	RS_CLAIM_CONNECTING, /* connect() in progress */
	RS_CLAIM_WANTED, /* connected: look for the peer */
	RS_CLAIM_SENT, /* CLAIM is on its way */
	RS_CLAIM_BACKOFF, /* ask again at claim_at */
	RS_CLAIM_DONE,
};

/*
 * What of a connection has to outlive its process, when another one has it by a fork (owner.h): in
 * memory that both map. It belongs to one struct rs_conn at a time, under whose lock it is.
 */
struct rs_conn {
	struct rs_lock
		lock; /* the first; stays good when the connection is gone, as does the next */
	struct rs_state_mem mem;
	struct rs_state *st; /* mem.own, or in a forked child that of rs_conn_forget_state() */
	uint32_t refs; /* file table entries, calls in progress, control thread */
	bool plain; /* kernel TCP for good */
	bool fresh; /* accepted, and not used yet: see accepted.h */
	bool server;
	bool closed; /* the application has closed its last descriptor */
	bool managed; /* out of the kernel's epoll sets, watched by the control thread */
	bool bound; /* `ch` is good */
	bool orphan_closed;
	bool orphan; /* as good as closed: the last call that waits closes it (`fd` is ours) */
	bool held; /* `fd` is our own duplicate, kept after the program's close */
	bool rd_shut; /* shutdown(SHUT_RD) */
	bool broken; /* the peer died in a way that TCP answers with RST */
	bool tcp_closed; /* by RST, or in both directions: what is sent gets the kernel's error */
	bool rst_told; /* ECONNRESET of the stream was reported */
	bool left; /* rs_conn_leave() was called: `reason` is its */
	bool returns; /* it has left, and may be claimed again */
	bool parked; /* it has left, or is about to, because nothing moved: comes back when something does */
	bool reset; /* we aborted it: calls give ECONNRESET once, then EOF/EPIPE */
	bool foreign; /* another process is its owner (owner.h): not to be used before rs_owner_claim() */
	bool ended; /* other processes have been told that it is TCP's, or was reset */
	bool given; /* the program has closed it, and another process reads the rest of the ring */
	bool yields; /* the program has closed it, and it leaves because others have it */
	bool blocked; /* TCP did not take all that rs_tx_out() has */
	uint8_t reason; /* enum rs_reason */
	uint32_t nfds; /* descriptors that the program has for it */
	int fd; /* a descriptor of the kernel socket, or -1; changes under the lock */
	int err; /* pending socket error (errno value) that the kernel does not know of */
	/* What the kernel knows about blocking, cached; rs_conn_modes_changed() drops it. */
	bool nonblock;
	uint32_t modes, modes_known; /* changes of them; the change + 1 that is known */
	uint64_t rcv_timeo, snd_timeo; /* ns; 0: none; as of the change + 1: */
	uint32_t rcv_timeo_known, snd_timeo_known;
	uint32_t blocks_for_ever; /* as of the change + 1: a receive does */
	bool sleeps; /* over RDMA: the last receive that found the ring empty had to */
	uint32_t busy; /* a thread is inside a blocking kernel send (futex word) */
	struct rs_watch *watches;
	uint32_t news; /* grows when waiters must look again (futex word) */
	uint32_t in_tcp; /* threads asleep in the kernel's recv; under the lock */
	uint32_t waiting; /* calls that wait, or have waited; under the lock */
	struct rs_waiting waiter[RS_WAITERS]; /* the first of them */
	uint32_t sleepers; /* threads that wait for `news` */
	uint32_t bells; /* local bells of poll() sleepers */
	uint32_t want_room; /* bells of those that wait for room */
	/*
	 * Plain, but the peer still writes to TCP what it had accepted for the ring, up to this count
	 * of bytes received: an earlier end is a cut. 0: nothing is owed.
	 */
	uint64_t owed;
	struct rs_stats_row *row;
	/* spinning, for the threads that wait on this connection */
	struct rs_spin spin;

	/* owned by the control thread, or by whoever holds the lock before it is listed */
	struct rs_link *link;
	uint32_t id, peer_id;
	struct rs_remote_block block, peer_block; /* over RDMA: our memory, the peer's */
	enum rs_claim claim;
	uint32_t claim_tries;
	uint32_t claim_index; /* n-th process that listens on the port */
	bool claim_again; /* somebody said "not yet" in this round */
	char claim_name[RS_NAME_LEN]; /* redirect */
	uint16_t claim_port; /* redirect, over RDMA; 0: none */
	uint8_t redirects, refusals;
	struct rs_directory *directory; /* of the port that accepted it; NULL: none */
	bool in_directory;
	uint32_t *holders; /* while it is fresh: processes that have it; NULL: this one */
	uint32_t shared; /* number of the last fork that shared it */
	uint32_t kept,
		kept_first; /* of the last and first one that it was on a link at, and kept; 0: none */
	uint32_t kept_ends; /* mem.ends then */
	uint32_t disowned; /* foreign: number of the last fork that it came by */
	const struct rs_state *theirs; /* the owner's, when it is foreign */
	struct rs_shared
		*others; /* the same, and when it was and the owner has died, or left a rest */
	struct rs_owner *owner;
	bool rest; /* plain, but for what is in another process's ring */
	bool rests; /* what is in our ring other processes may read (rest.h) */
	bool watched; /* foreign: in sets of the owner, some of which we may have */
	uint64_t shared_until; /* ms: plain unless one process is alone with it by then */
	uint64_t claim_at; /* ms */
	uint64_t born; /* ms */
	uint64_t window_end; /* ms: plain for good unless claimed by then; 0: none */
	uint64_t link_dead_at; /* ms: when a lost link counts as dead */
	uint64_t retry_at; /* ms: try to enter again */
	uint32_t retries;
	uint64_t attached_at; /* ms: the last time; 0: never was */
	uint64_t return_at; /* ms: look for the peer again */
	uint32_t losses, return_tries; /* in a row */
	uint64_t park_at; /* ms: look whether anything has moved; 0: not in both directions fast */
	uint64_t park_moved; /* bytes that had, the last time, */
	uint8_t park_looks; /* and how often it was the same */
	uint8_t park_shift; /* RSOCK_PARK_MS times 2 to this */
	uint64_t parked_at; /* ms */
	uint8_t secret[RS_HASH_LEN], peer_commit[RS_HASH_LEN];
	bool listed, watched_tcp;
	struct rs_conn *next, *prev; /* control thread's list, or, while it is in one, that of: */
	struct rs_accepted_queue *queue; /* accepted.c's, until */
	uint64_t expires; /* ms */
	bool adopted; /* the control thread has it, or had */
	struct rs_conn *hash_next; /* accepted connections by peer address */
	bool hashed;
	struct rs_tuple tuple; /* filled in when it is claimed; server: peer part at once */
	struct rs_conn *free_next;
};

/*
 * A candidate for `fd`, with one reference for the caller. NULL: out of memory (stay plain).
 * The control thread learns of it by rs_control_add().
 */
struct rs_conn *rs_conn_new(int fd, bool server);
/* In a forked child. */
void rs_conns_forget(void);
/*
 * For a connection that came by a fork, whose state is the parent's: that of one that is plain, or was
 * reset; or that of one that has not been used. False: no memory.
 */
void rs_conn_forget_state(struct rs_conn *c, bool reset);
bool rs_conn_renew_state(struct rs_conn *c);
/* Under the lock: it has left, and the next attempt to come back has not begun. */
static inline bool rs_conn_waits_to_return(const struct rs_conn *c)
{
	return c->returns && !c->bound && c->claim == RS_CLAIM_DONE;
}
/* A reference, unless the connection is gone. */
bool rs_conn_get(struct rs_conn *c);
void rs_conn_put(struct rs_conn *c);

/* ---- data ---- */

/*
 * Where somebody found a connection. It need have no reference: connections are never unmapped, and
 * whoever takes `word` away from there takes the lock before it lets the connection go.
 */
struct rs_conn_found {
	const uintptr_t *entry;
	uintptr_t word;
};

/*
 * As send(2) and recv(2) with one buffer, when that can be done on the fast path and nothing else is to be
 * thought of. Receiving waits if need be. RS_LONG_WAY: nothing was done. Else as below.
 */
#define RS_LONG_WAY (-ENOTSUP)
ssize_t rs_conn_send_fast(struct rs_conn *c, struct rs_conn_found found, const void *buf, size_t n);
ssize_t rs_conn_recv_fast(struct rs_conn *c, struct rs_conn_found found, int fd, void *buf,
			  size_t n, int flags);
/* As recv(2)/send(2) with an iovec. Result or -errno. `fd`: the descriptor that the caller used. */
ssize_t rs_conn_recv(struct rs_conn *c, int fd, const struct iovec *iov, size_t n, int flags);
/* Does not raise SIGPIPE: -EPIPE is for the caller. */
ssize_t rs_conn_send(struct rs_conn *c, int fd, const struct iovec *iov, size_t n, int flags);
/*
 * poll(2) readiness. Returns the bits that rsock answers for; *ask_kernel: the bits for which the
 * kernel's answer on the socket counts.
 */
uint32_t rs_conn_poll(struct rs_conn *c, uint32_t events, uint32_t *ask_kernel);
/* Bytes that recv() would give now; -errno: ask the kernel (-EAGAIN). */
long rs_conn_readable(struct rs_conn *c);
long rs_conn_unsent(struct rs_conn *c);
int rs_conn_shutdown(struct rs_conn *c, int fd, int how);
/*
 * The last descriptor `fd` is being closed: does what precedes the kernel's close, which the caller
 * does next. If the peer may still write control bytes, the connection keeps a duplicate of its own.
 * False: another process has it (owner.h), and sets that hold it go on to speak of it.
 */
bool rs_conn_close(struct rs_conn *c, int fd);
/* O_NONBLOCK or a socket time-out was, or may have been, changed. */
void rs_conn_modes_changed(struct rs_conn *c);
/* Under the lock: SO_SNDBUF or SO_RCVBUF was set. */
void rs_conn_buffers(struct rs_conn *c);
/* Takes a pending error (SO_ERROR); 0: ask the kernel. */
int rs_conn_take_error(struct rs_conn *c);

enum rs_conn_left {
	RS_FDS_REMAIN,
	RS_FDS_NONE, /* rs_conn_close() is due */
	RS_FDS_IN_USE, /* none, but calls in other threads still wait: the last of them will close */
};

/* The program has one more descriptor: under the lock, as what makes it known to `other` below. */
void rs_conn_fd_added(struct rs_conn *c);
/*
 * The program has one less. `other`: called under the lock for one that remains, or -1: then those that
 * remain are being closed by other threads, which have still to come here.
 */
enum rs_conn_left rs_conn_fd_closed(struct rs_conn *c, int fd,
				    int (*other)(const struct rs_conn *c, int fd));
/* Told, with no lock held, of a connection that has just become one that nobody can name. */
extern void (*rs_conn_nameless)(struct rs_conn *c);
/* Of an orphan: the last of the calls that were in it does what close() would have done. */
void rs_conn_end_orphan(struct rs_conn *c);

/* ---- paths ---- */

/*
 * Makes the connection plain TCP for good. When `wait`, returns only when it is (or after
 * `wait_ms`). `consumed`: what was not consumed must be in the kernel again. 0; -ETIMEDOUT: not yet;
 * -EINPROGRESS: sending is, but bytes or a reset are left that only rs_conn_recv() can have, for the peer
 * has ended, or has brought back all that it will.
 */
int rs_conn_leave(struct rs_conn *c, enum rs_reason why, bool consumed, uint32_t wait_ms);
/* Leaves the fast path, to look for it again at once (the connecting side), or when it is claimed. */
void rs_conn_renew(struct rs_conn *c);
/* It is about to leave so that what was not consumed comes again: also when the peer leaves first. */
void rs_conn_hand_over(struct rs_conn *c);
/* The stream cannot be had in order: RST. */
void rs_conn_abort(struct rs_conn *c);
/* Hands TCP what a leave still owes it, as far as it goes; true: there is more. */
bool rs_conn_flush(struct rs_conn *c);
/*
 * At exit: takes the control bytes that have come; true: a MARK or a FIN frame is on its way. What comes
 * when the process is gone, or is unread then, its kernel answers with RST, and the peer with an error.
 */
bool rs_conn_expects(struct rs_conn *c);
/* The CPU on which the peer last sent + 1; 0: not known. */
uint32_t rs_conn_peer_cpu(struct rs_conn *c);
/* tx path | rx path << 4 (enum rs_path). Under the lock. */
int rs_conn_path(struct rs_conn *c);

void rs_conn_watch(struct rs_conn *c, struct rs_watch *w);
void rs_conn_unwatch(struct rs_conn *c, struct rs_watch *w);
/* Under the lock: these bits are an edge when they are there next, although they were told before. */
void rs_conn_untell(struct rs_conn *c, uint32_t bits);
/* Under the lock: whether bytes have come since the last time that `w` asked. */
bool rs_conn_arrived(struct rs_conn *c, struct rs_watch *w);
/* Under the lock: what poll(2) says now. POLLIN may be a control byte that nobody has taken yet. */
uint32_t rs_conn_ready(const struct rs_conn *c, uint32_t events);
/* A poll() sleeper's bell rings on changes while set, for room too if it waits for any of `events`. */
void rs_conn_set_bell(struct rs_conn *c, uint32_t bell, uint32_t events);
void rs_conn_clear_bell(struct rs_conn *c, uint32_t bell);
/* Under the lock: who wants news of arriving bytes and of room (masks of bells). */
void rs_conn_want(struct rs_conn *c, uint32_t bell, bool room);

/* ---- for the control thread ---- */

/* Something happened on the TCP side. */
void rs_conn_tcp_event(struct rs_conn *c, uint32_t events);
void rs_conn_timer(struct rs_conn *c, uint64_t now);
/* The earliest time (ms) at which rs_conn_timer() wants to be called; 0: never. */
uint64_t rs_conn_deadline(const struct rs_conn *c);
/* The peer gets so many ms more for what it is awaited for. */
void rs_conn_postpone(struct rs_conn *c, uint64_t ms);
/* Ids, secrets and slots are agreed: may enter now. */
void rs_conn_attach(struct rs_conn *c, const uint8_t key[RS_KEY_LEN]);
void rs_conn_message(struct rs_conn *c, const struct rs_msg *m);
/* Plain for good, if it is not attached; but one that has left tries again, if `why` may pass. */
void rs_conn_give_up(struct rs_conn *c, enum rs_reason why);
void rs_conn_ring(struct rs_conn *c);
/*
 * The process is about to end: what lies in staging rings goes to TCP, which outlives it. Then whether
 * it is there; `hurry`: do not wait for the peer's answer.
 */
void rs_conn_exit(struct rs_conn *c);
bool rs_conn_exited(struct rs_conn *c, bool hurry);
/* The link has moved bytes or acknowledgements of a connection that the control thread cares for. */
void rs_conn_poke(struct rs_conn *c);

#endif
