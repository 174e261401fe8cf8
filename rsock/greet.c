/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/greet.h"

#include <errno.h>
#include <string.h>

#define MAGIC 0x44524b52u /* "RKRD" */
#define HEAD 16
#define ADDRESSES 37 /* family, ports, addresses */

enum { REQUEST = 1, REPLY = 2, REJECT = 3 };

static void put(uint8_t *p, uint64_t v, size_t n)
{
	for (size_t i = 0; i < n; i++)
		p[i] = (uint8_t)(v >> (8 * i));
}

static uint32_t get(const uint8_t *p, size_t n)
{
	uint32_t v = 0;

	for (size_t i = 0; i < n; i++)
		v |= (uint32_t)p[i] << (8 * i);
	return v;
}

static void put_head(uint8_t out[HEAD], uint8_t type, const struct rs_greet *g, const uint8_t *key)
{
	memset(out, 0, HEAD);
	put(out, MAGIC, 4);
	out[4] = RS_WIRE_VERSION;
	out[5] = type;
	out[6] = g->ring_shift;
	out[7] = g->stream_shift;
	put(out + 8, (g->features & ~RS_GREET_KEYED) | (key ? RS_GREET_KEYED : 0), 2);
}

static int get_head(const uint8_t *in, size_t len, uint8_t type, size_t need, struct rs_greet *g)
{
	if (len < 5 || get(in, 4) != MAGIC)
		return -EPROTO;
	if (in[4] != RS_WIRE_VERSION)
		return -EPROTONOSUPPORT;
	if (len < need || in[5] != type)
		return -EPROTO;
	g->ring_shift = in[6];
	g->stream_shift = in[7];
	g->features = (uint16_t)get(in + 8, 2);
	return 0;
}

static void addresses(const struct rs_tuple *t, uint8_t out[ADDRESSES])
{
	out[0] = t->family;
	put(out + 1, t->client_port, 2);
	put(out + 3, t->server_port, 2);
	memcpy(out + 5, t->client_ip, 16);
	memcpy(out + 21, t->server_ip, 16);
}

/* So that no MAC of one use is one of another. */
#define LABEL 16
static const char request_label[LABEL] = "rsock request";
static const char reply_label[LABEL] = "rsock reply";
static const char hello_label[LABEL] = "rsock hello";

#define REQUEST_BODY (RS_GREET_REQUEST_LEN - RS_GREET_PROOF_LEN)
#define REPLY_BODY (RS_GREET_REPLY_LEN - RS_GREET_PROOF_LEN)

static void request_proof(const uint8_t *key, const uint8_t *request, const struct rs_tuple *t,
			  uint8_t out[RS_GREET_PROOF_LEN])
{
	uint8_t buf[LABEL + REQUEST_BODY + ADDRESSES];

	memset(out, 0, RS_GREET_PROOF_LEN);
	if (!key)
		return;
	memcpy(buf, request_label, LABEL);
	memcpy(buf + LABEL, request, REQUEST_BODY);
	addresses(t, buf + LABEL + REQUEST_BODY);
	rs_hmac(key, buf, sizeof(buf), out, RS_GREET_PROOF_LEN);
}

/* The REQUEST's own proof covers the addresses, and is covered here. */
static void both_proof(const uint8_t *key, const char label[LABEL], const uint8_t *request,
		       const uint8_t *reply, size_t reply_len, uint8_t out[RS_GREET_PROOF_LEN])
{
	uint8_t buf[LABEL + RS_GREET_REQUEST_LEN + RS_GREET_REPLY_LEN];

	memset(out, 0, RS_GREET_PROOF_LEN);
	if (!key)
		return;
	memcpy(buf, label, LABEL);
	memcpy(buf + LABEL, request, RS_GREET_REQUEST_LEN);
	memcpy(buf + LABEL + RS_GREET_REQUEST_LEN, reply, reply_len);
	rs_hmac(key, buf, LABEL + RS_GREET_REQUEST_LEN + reply_len, out, RS_GREET_PROOF_LEN);
}

/* Without a key the proof is 0s, so one check does for both. */
static int check_proof(const struct rs_greet *g, const uint8_t *key, const uint8_t *expect,
		       const uint8_t *got)
{
	if (!key != !(g->features & RS_GREET_KEYED) ||
	    !rs_mem_equal(expect, got, RS_GREET_PROOF_LEN))
		return -EKEYREJECTED;
	return 0;
}

static void hash_addresses(const struct rs_tuple *t, uint8_t out[8])
{
	uint8_t buf[ADDRESSES], hash[RS_HASH_LEN];

	addresses(t, buf);
	rs_sha256(buf, sizeof(buf), hash);
	memcpy(out, hash, 8);
}

void rs_greet_request(const struct rs_greet *g, const uint8_t *key,
		      uint8_t out[RS_GREET_REQUEST_LEN])
{
	put_head(out, REQUEST, g, key);
	put(out + 10, g->tuple.client_port, 2);
	put(out + 12, g->tuple.server_port, 2);
	out[14] = g->tuple.family;
	memcpy(out + 16, g->process, sizeof(g->process));
	memcpy(out + 24, g->nonce, sizeof(g->nonce));
	hash_addresses(&g->tuple, out + 32);
	request_proof(key, out, &g->tuple, out + REQUEST_BODY);
}

int rs_greet_request_decode(const uint8_t *in, size_t len, const uint8_t *key, struct rs_greet *g)
{
	uint8_t expect[RS_GREET_PROOF_LEN], hash[8];
	int r = get_head(in, len, REQUEST, RS_GREET_REQUEST_LEN, g);

	if (r != 0)
		return r;
	if (in[15] != 0)
		return -EPROTO;
	g->tuple.client_port = (uint16_t)get(in + 10, 2);
	g->tuple.server_port = (uint16_t)get(in + 12, 2);
	memcpy(g->process, in + 16, sizeof(g->process));
	memcpy(g->nonce, in + 24, sizeof(g->nonce));
	hash_addresses(&g->tuple, hash);
	if (in[14] != g->tuple.family || memcmp(hash, in + 32, sizeof(hash)) != 0)
		return -EADDRNOTAVAIL;
	request_proof(key, in, &g->tuple, expect);
	return check_proof(g, key, expect, in + REQUEST_BODY);
}

void rs_greet_reply(const struct rs_greet *g, const uint8_t *key,
		    const uint8_t request[RS_GREET_REQUEST_LEN], uint8_t out[RS_GREET_REPLY_LEN])
{
	put_head(out, REPLY, g, key);
	memcpy(out + 16, g->process, sizeof(g->process));
	memcpy(out + 24, g->nonce, sizeof(g->nonce));
	both_proof(key, reply_label, request, out, REPLY_BODY, out + REPLY_BODY);
}

int rs_greet_reply_decode(const uint8_t *in, size_t len, const uint8_t *key,
			  const uint8_t request[RS_GREET_REQUEST_LEN], struct rs_greet *g)
{
	uint8_t expect[RS_GREET_PROOF_LEN];
	int r = get_head(in, len, REPLY, RS_GREET_REPLY_LEN, g);

	if (r != 0)
		return r;
	if (get(in + 10, 4) != 0 || get(in + 14, 2) != 0)
		return -EPROTO;
	memcpy(g->process, in + 16, sizeof(g->process));
	memcpy(g->nonce, in + 24, sizeof(g->nonce));
	both_proof(key, reply_label, request, in, REPLY_BODY, expect);
	return check_proof(g, key, expect, in + REPLY_BODY);
}

void rs_greet_session(const uint8_t *key, const uint8_t request[RS_GREET_REQUEST_LEN],
		      const uint8_t reply[RS_GREET_REPLY_LEN], uint8_t proof[RS_GREET_PROOF_LEN])
{
	both_proof(key, hello_label, request, reply, RS_GREET_REPLY_LEN, proof);
}

void rs_greet_reject(enum rs_greet_no code, uint8_t out[RS_GREET_REJECT_LEN])
{
	memset(out, 0, RS_GREET_REJECT_LEN);
	put(out, MAGIC, 4);
	out[4] = RS_WIRE_VERSION;
	out[5] = REJECT;
	out[6] = (uint8_t)code;
}

int rs_greet_reject_decode(const uint8_t *in, size_t len)
{
	static const uint8_t zero[RS_GREET_REJECT_LEN];
	struct rs_greet g;
	int r = get_head(in, len, REJECT, RS_GREET_REJECT_LEN, &g);

	if (r == -EPROTONOSUPPORT)
		return RS_GREET_VERSION;
	if (r != 0 || in[6] < RS_GREET_NOT_YET || in[6] > RS_GREET_MEMLOCK ||
	    memcmp(in + 7, zero, RS_GREET_REJECT_LEN - 7) != 0)
		return -1;
	return in[6];
}
