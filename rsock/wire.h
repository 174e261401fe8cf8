/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * wire.h - every byte that two rsock processes say to each other
 *
 * Two kinds of control data exist:
 *  - frames: inside MARK ... RESUME of the TCP stream itself; fixed size, keyed;
 *  - messages: on the link between two processes (one per datagram).
 * All integers are little-endian. docs/protocol.md has the table. Encoding and decoding are pure;
 * decoding accepts any bytes and says -1 for those that are not exactly a valid encoding.
 */
#ifndef RSOCK_WIRE_H
#define RSOCK_WIRE_H

#include <stddef.h>
#include <stdint.h>

#include "rsock/mac.h"

/* ---- in the TCP stream ---- */

#define RS_MARK_LEN 16
#define RS_FRAME_LEN 48

enum rs_frame_type {
	RS_FRAME_FIN = 1, /* a: final offset M of the direction */
	RS_FRAME_PING = 2,
	RS_FRAME_RESUME = 3, /* a: start, b: rx_have, c: end (offset of the last byte owed) */
};

#define RS_FRAME_CLOSING 0x01 /* the sender has closed: it will read nothing more */

struct rs_frame {
	uint8_t type;
	uint8_t flags;
	uint32_t epoch; /* of the direction that the frame is written in */
	uint32_t have_epoch; /* RESUME: epoch that rx_have speaks of; 0: rx_have says nothing */
	uint64_t a;
	uint64_t b;
	uint64_t c;
};

/* Keyed hash used for MARK and frames; rs_hmac in production, a cheap one in the simulator. */
typedef void (*rs_mac_fn)(const uint8_t key[RS_KEY_LEN], const void *msg, size_t len, uint8_t *out,
			  size_t out_len);

/* `dir`: 0 for the bytes that the connecting side sends, 1 for the other direction. */
void rs_mark_make(rs_mac_fn mac, const uint8_t key[RS_KEY_LEN], int dir, uint32_t epoch,
		  uint64_t offset, uint8_t out[RS_MARK_LEN]);
void rs_frame_encode(rs_mac_fn mac, const uint8_t key[RS_KEY_LEN], int dir,
		     const struct rs_frame *f, uint8_t out[RS_FRAME_LEN]);
/* Returns 0, or -1 when the frame is not one that the holder of `key` wrote for `dir`. */
int rs_frame_decode(rs_mac_fn mac, const uint8_t key[RS_KEY_LEN], int dir,
		    const uint8_t in[RS_FRAME_LEN], struct rs_frame *f);

/* ---- on the link ---- */

#define RS_WIRE_MAGIC 0x4b52u /* "RK" */
#define RS_WIRE_VERSION 1u
#define RS_MSG_HEAD 8
#define RS_MSG_MAX 192
#define RS_TIERS 3
#define RS_HELLO_PROOF_LEN 16

/* Feature bits of HELLO: unknown bits are ignored; both ends use the intersection. */
#define RS_FEATURE_SHM 0x00000001u
#define RS_FEATURE_RDMA 0x00000002u
#define RS_FEATURE_TRIGGER 0x00000004u /* HELLO carries a trigger of bell 0 */
#define RS_FEATURE_WHERE 0x00000008u /* WHERE and HERE are understood */
#define RS_FEATURE_RINGS 0x00000010u /* over RDMA: WANT, RING and DROP are */

enum rs_msg_type {
	RS_MSG_HELLO = 1, /* first message of each end of a link */
	RS_MSG_CLAIM = 2, /* "this connection's other end is yours": carries an O_PATH fd */
	RS_MSG_CLAIM_OK = 3, /* carries an O_PATH fd */
	RS_MSG_CLAIM_NO = 4,
	RS_MSG_REVEAL = 5,
	RS_MSG_ENTER = 6,
	RS_MSG_ENTER_OK = 7,
	RS_MSG_NAK = 8,
	RS_MSG_LEAVE = 9, /* please leave */
	RS_MSG_LEFT = 10, /* no write of this epoch will follow */
	/* The sender has forgotten the stream; in `epoch` it wrote `offset` control bytes to TCP. */
	RS_MSG_GONE = 11,
	RS_MSG_FIN = 12, /* hint: the direction ends at `offset` */
	RS_MSG_BELL = 13, /* carries an eventfd: a trigger of the sender's bell number `index` */
	RS_MSG_SEGMENT = 14, /* carries a memfd: segment number `index` of the sender's slab */
	RS_MSG_WHERE = 15, /* have you accepted `tuple`? on one host, for a client on another */
	RS_MSG_HERE = 16, /* the answer to a WHERE: at RDMA port `port` */
	/* Over RDMA, of the larger ring for what the sender of the first and last of these sends. */
	RS_MSG_WANT = 17,
	RS_MSG_RING = 18, /* the answer to WANT: it is at `block`; 0: there is none */
	RS_MSG_DROP = 19, /* no write to it follows */
	RS_MSG_COUNT
};

enum rs_claim_no {
	RS_CLAIM_UNKNOWN = 1, /* no such connection here */
	RS_CLAIM_NOT_YET = 2, /* still in the listen backlog: ask again */
	RS_CLAIM_REDIRECT = 3, /* ask the process with rendezvous name `name`; RDMA: at `port` */
	RS_CLAIM_REFUSED = 4, /* here, but it stays on TCP; `reason` says why */
};

struct rs_tuple {
	uint8_t family; /* 4 or 6; v4-mapped addresses are always sent as 4 */
	uint16_t client_port; /* host byte order in this struct */
	uint16_t server_port;
	uint8_t client_ip[16]; /* network byte order; IPv4 uses the first four bytes */
	uint8_t server_ip[16];
};

#define RS_NAME_LEN 32

struct rs_msg {
	uint8_t type;
	uint32_t id; /* the addressee's stream id; 0 where none is known */
	/* The sender's stream id (CLAIM, CLAIM_OK); WHERE: any number, which HERE says in `id`. */
	uint32_t from;
	uint32_t epoch; /* ENTER ... GONE */
	uint64_t offset; /* ENTER: N, FIN: M, LEFT: 1 if a MARK of this epoch was written */
	/* HELLO */
	uint32_t features;
	uint8_t process[16]; /* random identity of the sending process */
	/* Slots of each slab segment of the sender. With `features` 0: enum rs_reason, why it has none. */
	uint32_t slots;
	uint8_t tier_shift[RS_TIERS]; /* log2 of the ring sizes of a slot */
	uint8_t proof[RS_HELLO_PROOF_LEN]; /* over RDMA, of the initiator (greet.h) */
	/* CLAIM, WHERE */
	struct rs_tuple tuple;
	uint8_t secret[RS_HASH_LEN]; /* CLAIM: hash of it; CLAIM_OK, REVEAL: itself */
	/* CLAIM, CLAIM_OK, RING over RDMA: where the sender's memory for it is, */
	uint64_t block;
	uint32_t block_key; /* and its rkey; over shm 0 */
	/* CLAIM_NO */
	uint8_t code; /* enum rs_claim_no */
	uint8_t reason; /* enum rs_reason */
	uint16_t port; /* REDIRECT over RDMA, HERE */
	char name[RS_NAME_LEN]; /* REDIRECT: NUL-terminated */
	/* BELL, SEGMENT */
	uint32_t index;
};

/* Encodes into `out`; returns the length (<= RS_MSG_MAX). `m` must be valid. */
size_t rs_msg_encode(const struct rs_msg *m, uint8_t out[RS_MSG_MAX]);
/*
 * Decodes one datagram. Returns 0; -1: not a message (bad magic, length, type or field);
 * -2: another protocol version. Never reads past `len`.
 */
int rs_msg_decode(const uint8_t *in, size_t len, struct rs_msg *m);

#endif
