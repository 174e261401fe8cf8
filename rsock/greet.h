/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * greet.h - what two processes say in the private data of the RDMA CM, before they have a link
 *
 * REQUEST (client), then REPLY or REJECT (server). A REQUEST names the TCP connection for which it is
 * made: the ports in clear, the addresses by a hash, for the CM tells the acceptor the addresses
 * anyway. With a cluster key both ends prove that they know it: the REQUEST by a MAC over itself and
 * the addresses, the REPLY by one over the REQUEST and itself, and the client's HELLO by one over
 * both (rs_greet_session()). Each has a nonce that its sender chose, so none of the last two can be
 * one from an earlier day. docs/protocol.md has the table.
 *
 * Pure functions. Decoding takes any bytes, and more than the message (the CM pads): what lies behind
 * it is not looked at.
 */
#ifndef RSOCK_GREET_H
#define RSOCK_GREET_H

#include <stddef.h>
#include <stdint.h>

#include "rsock/mac.h"
#include "rsock/wire.h"

#define RS_GREET_REQUEST_LEN 56 /* all that a CM request has room for (rdma_connect(3)) */
#define RS_GREET_REPLY_LEN 48
#define RS_GREET_REJECT_LEN 16
#define RS_GREET_ID_LEN 8
#define RS_GREET_PROOF_LEN RS_HELLO_PROOF_LEN

#define RS_GREET_KEYED 0x0001u /* feature bit: it ends in a proof; others are ignored */

enum rs_greet_no {
	RS_GREET_NOT_YET = 1, /* the TCP connection is not known here: try again */
	RS_GREET_VERSION = 2, /* another version of the protocol, or other rings */
	RS_GREET_KEY = 3, /* the keys differ, or one of us has none */
	RS_GREET_NO_ROOM =
		4, /* no memory or device resources for a link, or too many are being made */
	RS_GREET_MEMLOCK = 5, /* RLIMIT_MEMLOCK does not allow one */
};

struct rs_greet {
	uint8_t ring_shift; /* log2 of the bytes of a ring */
	uint8_t stream_shift; /* log2 of the streams that a link can have */
	uint16_t features;
	uint8_t process[RS_GREET_ID_LEN]; /* the first bytes of the identity that HELLO will say */
	uint8_t nonce[8];
	struct rs_tuple tuple; /* REQUEST */
};

/* `key`: NULL for none. `g->features` gets KEYED by itself. */
void rs_greet_request(const struct rs_greet *g, const uint8_t *key,
		      uint8_t out[RS_GREET_REQUEST_LEN]);
/*
 * g->tuple holds the addresses and the family that the CM says; its ports are filled in. 0; -EPROTO:
 * nobody of ours; -EPROTONOSUPPORT: another version; -EADDRNOTAVAIL: made for a connection between
 * other addresses; -EKEYREJECTED: the proof is wrong, missing, or there although we have no key.
 */
int rs_greet_request_decode(const uint8_t *in, size_t len, const uint8_t *key, struct rs_greet *g);

/* `request`: the bytes that it answers. */
void rs_greet_reply(const struct rs_greet *g, const uint8_t *key,
		    const uint8_t request[RS_GREET_REQUEST_LEN], uint8_t out[RS_GREET_REPLY_LEN]);
/* 0; -EPROTO, -EPROTONOSUPPORT, -EKEYREJECTED as above. */
int rs_greet_reply_decode(const uint8_t *in, size_t len, const uint8_t *key,
			  const uint8_t request[RS_GREET_REQUEST_LEN], struct rs_greet *g);
/* What the client's HELLO must say; without a key all 0. */
void rs_greet_session(const uint8_t *key, const uint8_t request[RS_GREET_REQUEST_LEN],
		      const uint8_t reply[RS_GREET_REPLY_LEN], uint8_t proof[RS_GREET_PROOF_LEN]);

void rs_greet_reject(enum rs_greet_no code, uint8_t out[RS_GREET_REJECT_LEN]);
/* enum rs_greet_no; VERSION also for a REJECT of another version; -1: nobody of ours. */
int rs_greet_reject_decode(const uint8_t *in, size_t len);

#endif
