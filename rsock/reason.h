/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * reason.h - the fixed vocabulary of "why is this stream on TCP"
 *
 * Every stream that is not on the fast path carries one of these; `rsock stat`, the log and the
 * documentation use the same words; README.md and rsock-stat(1) explain each.
 */
#ifndef RSOCK_REASON_H
#define RSOCK_REASON_H

/* X(symbol, word, one-line explanation). The order is an ABI of the stats segment: append only. */
#define RS_REASONS(X)                                                                  \
	X(NONE, "", "on the fast path")                                                \
	X(STARTING, "starting", "looking for the peer")                                \
	X(PEER_PLAIN, "peer-plain", "the peer does not run rsock")                     \
	X(NO_DEVICE, "no-device", "no RDMA device serves the route to the peer")       \
	X(NO_ROUTE, "no-route", "the peer cannot be reached by shared memory or RDMA") \
	X(DISABLED, "disabled", "rsock is switched off for this process")              \
	X(EXCLUDED, "excluded-by-rule", "a rule keeps this connection on TCP")         \
	X(SELF, "self-connected", "both ends have the same address and port")          \
	X(NO_PROOF, "no-proof", "the peer's identity could not be proved")             \
	X(NO_MEMORY, "no-memory", "memory for rings could not be had")                 \
	X(NO_FDS, "no-fds", "no file descriptors left for rsock's own use")            \
	X(NO_THREAD, "no-thread", "the control thread could not be started")           \
	X(MEMLOCK, "memlock", "RLIMIT_MEMLOCK is too small")                           \
	X(FORKED, "forked", "the connection is shared with another process")           \
	X(EXEC, "exec", "the connection is inherited by another program")              \
	X(PASSED, "passed", "the connection was passed to another process")            \
	X(OPTION, "option", "an option is set that only kernel TCP can honour")        \
	X(CALL, "call", "a call was made that only kernel TCP can honour")             \
	X(FOREIGN_IO, "foreign-io", "bytes moved that rsock did not see")              \
	X(LINK_LOST, "link-lost", "the fast path died")                                \
	X(PEER_LEFT, "peer-left", "the peer left the fast path")                       \
	X(PEER_CLOSED, "peer-closed", "the peer closed the connection")                \
	X(CLOSING, "closing", "the connection is being closed")                        \
	X(PARKED, "parked", "the fast path was given up for a while")                  \
	X(VERSION, "version", "the peer speaks another version of the protocol")       \
	X(PROTOCOL, "protocol", "the peer broke the protocol")                         \
	X(KEY, "key", "the cluster key is missing, unreadable or not the peer's")      \
	X(NO_PERMISSION, "no-permission", "no permission for the RDMA device")         \
	X(RDMA_LIMIT, "rdma-limit", "a limit of the RDMA device or a control group is reached")

enum rs_reason {
#define X(sym, word, text) RS_REASON_##sym,
	RS_REASONS(X)
#undef X
		RS_REASON_COUNT
};

/* The word for `r` ("peer-plain" ...); "unknown" when out of range. Never NULL. Thread-safe. */
const char *rs_reason_word(unsigned int r);
/* One line of English for `r`. Never NULL. Thread-safe. */
const char *rs_reason_text(unsigned int r);

#endif
