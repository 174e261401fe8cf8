/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * sim.h - the simulator's model world: two ends of one connection, a TCP and a link between them
 *
 * Everything that happens in a schedule is decided by one random number generator, so that a seed
 * replays exactly. Nothing is allocated: a world is reset and used again for the next seed.
 *
 *   rng, trace, fail     here          tcp.c    model TCP         link.c   rings, messages
 *   edge.c  the model of the code around struct rs_stream        app.c    model applications
 *   forge.c a lying peer                check.c  invariants       sched.c  one schedule
 *   main.c  threads, shrinking, TAP
 */
#ifndef SIM_H
#define SIM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "rsock/stream.h"

/* ---- what a schedule may contain; drawn from the seed, narrowed by --mask ---- */

#define FEATURES(X)                                                     \
	X(VERBS, "link without a surviving ring")                       \
	X(SHUT, "shutdown(WR)")                                         \
	X(BOTH, "shutdown(RDWR) on the fast path")                      \
	X(CLOSE, "close")                                               \
	X(LINGER, "close with SO_LINGER {1,0}")                         \
	X(LEAVE, "voluntary leaves")                                    \
	X(HANDOVER, "hand-over to another process")                     \
	X(CUT, "the link dies")                                         \
	X(REATTACH, "a new link after that")                            \
	X(KILL, "a process is killed")                                  \
	X(FORGE, "end 1 lies")                                          \
	X(PREFIX, "application data that looks like the start of MARK") \
	X(SLOW, "MARKs arrive slower than the hold time")               \
	X(PING, "PINGs")                                                \
	X(HOLDFIRE, "the hold of a closed socket expires")              \
	X(SMALL, "small TCP buffers")                                   \
	X(ONEWAY, "one end never enters by itself")                     \
	X(SPLITMARK, "MARK is written in parts")

enum feature_bit {
#define X(name, text) BIT_##name,
	FEATURES(X)
#undef X
		FEATURE_COUNT
};
enum feature {
#define X(name, text) F_##name = 1 << BIT_##name,
	FEATURES(X)
#undef X
};

/* ---- coverage: X(name, must not be zero, text) ---- */

#define COVERS(X)                                                   \
	X(ENTER, 1, "entries started")                              \
	X(REENTER, 1, "entries started after a RESUME")             \
	X(REENTER_FAST, 1, "MARKs written after a RESUME")          \
	X(ENTER_DRAIN, 1, "entries in the drain")                   \
	X(ABANDON_ARMED, 1, "entries abandoned before ENTER_OK")    \
	X(ABANDON_MARK, 1, "entries abandoned with MARK unwritten") \
	X(MARK_WRITTEN, 1, "MARKs written")                         \
	X(MARK_READ, 1, "MARKs read")                               \
	X(RX_ARMED, 1, "receivers armed")                           \
	X(RX_DISARMED, 1, "armed receivers that found no MARK")     \
	X(SUPERSEDED, 0, "armed receivers that got a newer ENTER")  \
	X(PENDED, 1, "ENTERs that waited for a RESUME")             \
	X(NAK, 1, "NAKs")                                           \
	X(RESUME, 1, "RESUMEs read")                                \
	X(RESUME_BOTH, 1, "RESUMEs that crossed")                   \
	X(SKIP, 1, "overlaps discarded")                            \
	X(FIN_FRAME, 1, "FIN frames written")                       \
	X(FIN_RAW, 1, "ends of the direction on TCP")               \
	X(PING, 1, "PINGs written")                                 \
	X(ORPHAN, 1, "orphaned senders")                            \
	X(HELD, 1, "closed sockets held")                           \
	X(HOLD_EXPIRED, 1, "holds that expired")                    \
	X(PREFIX_HELD, 1, "prefixes of MARK held")                  \
	X(PREFIX_LATE, 1, "prefixes handed on after the hold")      \
	X(MARK_LATE, 1, "MARKs completed after that")               \
	X(STOOD_STILL, 1, "answers awaited for longer")             \
	X(CLOSE_UNREAD, 1, "closes with unread bytes")              \
	X(DATA_TO_CLOSED, 1, "bytes that reached a closed socket")  \
	X(SHUT_BOTH, 1, "shutdowns of both directions")             \
	X(SHUT_UNREAD, 1, "... with unread bytes")                  \
	X(SHUT_ANSWERED, 1, "bytes that came after that")           \
	X(CUT_RAW, 1, "link deaths seen in tx RAW")                 \
	X(CUT_ARMED, 1, "link deaths seen in tx ARMED")             \
	X(CUT_MARK, 1, "link deaths seen in tx MARK")               \
	X(CUT_FAST, 1, "link deaths seen in tx FAST")               \
	X(CUT_DONE, 1, "link deaths seen in tx DONE")               \
	X(LOST_POSTED, 1, "posted bytes lost by a link death")      \
	X(NEW_LINK, 1, "new links")                                 \
	X(KILL_RAW, 1, "kills in tx RAW")                           \
	X(KILL_ARMED, 1, "kills in tx ARMED")                       \
	X(KILL_MARK, 1, "kills in tx MARK")                         \
	X(KILL_FAST, 1, "kills in tx FAST")                         \
	X(KILL_DONE, 1, "kills in tx DONE")                         \
	X(KILL_RING, 1, "dead senders' bytes read from the ring")   \
	X(KILL_CUT, 1, "bytes lost with a killed sender, and told") \
	X(HANDOVER, 1, "hand-overs asked for")                      \
	X(HANDED_UNREAD, 1, "hand-overs with unread ring bytes")    \
	X(HANDED, 1, "hand-overs completed")                        \
	X(PLAIN_READ, 1, "bytes read after a hand-over")            \
	X(VIOLATION, 1, "lies that were noticed")                   \
	X(REUSABLE, 1, "rings given back")                          \
	X(EOF, 1, "ends of file delivered")                         \
	X(RESET, 1, "ECONNRESETs delivered")

enum cover {
#define X(name, must, text) C_##name,
	COVERS(X)
#undef X
		C_COUNT
};

/* ---- model TCP ---- */

#define TCPQ 1024u /* >= sndbuf + rcvbuf; power of two */
#define TAG_CTL 0xffffffffu /* other tags are the application byte's offset */

enum grammar { G_RAW, G_FRAMES, G_FIN };

struct tcp_dir {
	uint8_t data[TCPQ];
	uint32_t tag[TCPQ];
	uint32_t w, a, r; /* written, arrived in the receiver's kernel, read */
	uint32_t sndbuf, rcvbuf;
	bool fin, fin_arrived;
	bool rst; /* the writer's kernel has sent RST */
	bool rst_legit; /* ... for a reason that plain TCP would have had too */
	uint8_t grammar; /* of what was written so far */
	uint8_t unit_len; /* bytes of the MARK or frame that is being written */
	uint8_t unit_type;
};

struct tcp_sock {
	bool closed; /* by its owner, for good */
	bool killed; /* ... by the owner's death */
	bool reset; /* RST has come */
	bool reset_legit;
};

/* ---- model link ---- */

#define LINKQ 128u
#define RING_MAX 128u

enum item_kind { IT_MSG, IT_DATA, IT_ACK };

struct item {
	uint8_t kind, type;
	uint32_t epoch;
	uint64_t a, b; /* MSG: offset; DATA: range; ACK: consumed */
};

struct ring {
	uint8_t mem[RING_MAX]; /* in the receiver's memory */
	uint8_t staging[RING_MAX]; /* VERBS: in the sender's */
	uint64_t head; /* shm: consumed, written by the receiver */
	uint64_t tail; /* shm: published by the sender on the fast path */
	uint64_t accepted; /* shm: appended, whether on the fast path or not */
	bool released; /* the receiver may use the memory for another stream */
};

struct link {
	struct item q[2][LINKQ]; /* [receiving end] */
	uint32_t first[2], count[2];
	bool up;
	uint8_t key_serial;
};

/* ---- an end: process, edge and application ---- */

struct end {
	struct rs_stream s;
	bool alive;
	bool want_out; /* the edge watches for TCP to be writable */
	bool want_ack;
	uint64_t acked; /* VERBS: last ACK sent */
	bool reset_told; /* the stream knows of RST */
	bool lingering; /* hold expired: whatever comes now gets RST */
	uint8_t last_tx, last_rx;
	bool last_orphan;
	bool has_left; /* wrote a RESUME at some time */
	uint32_t mark_gen; /* link generation whose MARK was read */

	bool app_shut, app_closed, app_aborted;
	bool shut_both; /* what comes behind shut_at is answered by RST */
	uint64_t shut_at;
	bool handover, plain; /* asked for; another process has it */
	bool had_left; /* when it was asked for: RESUME had promised received bytes */
	bool saw_eof, saw_reset;
	bool poisoned; /* a part of MARK was delivered: only a reset can follow */
	uint64_t sent, got;
	bool rx_sleep, tx_sleep;
	uint8_t rx_sleep_plan, tx_sleep_plan;
};

struct world {
	uint64_t rng;
	uint64_t seed;
	uint32_t features;
	uint32_t step, steps;
	uint32_t ring_size;
	uint64_t now;
	uint32_t link_gen;
	bool draining;
	bool verbose;
	const char *invariant; /* the first one that was violated */
	char detail[160];
	uint64_t *cover;

	struct end end[2];
	struct tcp_sock sock[2];
	struct link link;
	struct tcp_dir dir[2]; /* [writing end] */
	struct ring ring[2]; /* [receiving end] */
};

/* ---- random numbers ---- */

static inline uint64_t rnd64(struct world *w)
{
	uint64_t z = w->rng += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

/* 0 .. n-1 */
static inline uint32_t rnd(struct world *w, uint32_t n)
{
	return (uint32_t)(((rnd64(w) >> 32) * n) >> 32);
}

static inline uint32_t min32(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

static inline bool has(const struct world *w, uint32_t feature)
{
	return (w->features & feature) != 0;
}

static inline void cover(struct world *w, enum cover c)
{
	w->cover[c]++;
}

/* The byte at `offset` of what end `dir` sends. */
static inline uint8_t app_byte(int dir, uint64_t offset)
{
	return (uint8_t)(((uint32_t)offset * 0x9e3779b1u + (uint32_t)dir * 0x85ebca6bu) >> 23);
}

#define trace(w, ...)                                  \
	do {                                           \
		if (__builtin_expect((w)->verbose, 0)) \
			trace_line(w, __VA_ARGS__);    \
	} while (0)
void trace_line(struct world *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void fail(struct world *w, const char *invariant, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* ---- tcp.c ---- */

uint32_t tcp_space(const struct world *w, int e);
uint32_t tcp_readable(const struct world *w, int e);
bool tcp_at_eof(const struct world *w, int e);
void tcp_write_app(struct world *w, int e, const uint8_t *p, uint64_t offset, uint32_t n);
/* `mark`: the first byte belongs to a MARK. */
void tcp_write_ctl(struct world *w, int e, const uint8_t *p, uint32_t n, bool mark);
void tcp_shutdown(struct world *w, int e);
void tcp_abort(struct world *w, int e, bool legit);
void tcp_close(struct world *w, int e, bool killed);
/* Moves bytes, FIN and RST that end `e` sent towards the other; `all`: as much as there is. */
bool tcp_deliver(struct world *w, int e, bool all);

/* ---- link.c ---- */

void sim_mac(const uint8_t key[RS_KEY_LEN], const void *msg, size_t len, uint8_t *out,
	     size_t out_len);
void link_attach(struct world *w);
bool link_may_attach(const struct world *w);
void link_send(struct world *w, int from, struct item it);
bool link_deliver(struct world *w, int to);
void link_cut(struct world *w, int killed);
bool link_notice(struct world *w, int e);
bool link_post(struct world *w, int e, bool all);
bool link_ack(struct world *w, int e);

/* ---- edge.c ---- */

void edge_sync(struct world *w, int e);
void edge_obey(struct world *w, int e);
bool edge_out(struct world *w, int e);
bool edge_watch(struct world *w, int e);
bool edge_timer(struct world *w, int e);
/* The TCP side gave nothing: EOF or RST, if so. */
bool edge_tcp_end(struct world *w, int e);
bool edge_mark(struct world *w, int e);
uint32_t edge_skip(struct world *w, int e, uint64_t n);
uint64_t edge_room(const struct world *w, int e);
uint64_t edge_tail(const struct world *w, int e);

/* ---- app.c ---- */

bool app_send(struct world *w, int e, uint32_t k);
bool app_recv(struct world *w, int e, uint32_t k);
bool app_shutdown(struct world *w, int e);
bool app_shutdown_both(struct world *w, int e);
bool app_close(struct world *w, int e, bool linger);
bool app_handover(struct world *w, int e);
bool app_take_over(struct world *w, int e);
bool app_kill(struct world *w, int e);

/* ---- forge.c, check.c, sched.c ---- */

bool forge(struct world *w);
void check_step(struct world *w);
void check_delivered(struct world *w, const char *when);
void check_eof(struct world *w, int e);
void check_reset(struct world *w, int e);
void check_byte(struct world *w, int e, uint8_t byte);
void schedule_run(struct world *w, uint64_t seed, uint32_t mask, uint32_t max_steps);

#endif
