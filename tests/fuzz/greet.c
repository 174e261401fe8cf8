/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * greet.c - private data of the RDMA CM: any bytes, and ours with some of them changed
 *
 * With the cluster key a change of any byte must be noticed. Without it what is accepted must be what an
 * honest peer could have said.
 */
#include <errno.h>

#include "rsock/greet.h"
#include "tests/fuzz/fuzz.h"

#define ROOM 160 /* more than the CM hands on */

static const uint8_t key_bytes[RS_KEY_LEN] = { 1, 2, 3 };
static const struct rs_greet ours = {
	.ring_shift = 18,
	.stream_shift = 14,
	.process = { 4, 5, 6 },
	.nonce = { 7, 8, 9 },
	.tuple = { .family = 4,
		   .client_port = 4000,
		   .server_port = 80,
		   .client_ip = { 10, 0, 0, 1 },
		   .server_ip = { 10, 0, 0, 2 } },
};

/* Changes bytes of `msg`, and cuts or pads it. Returns its length. */
static size_t change(struct fuzz_in *in, uint8_t msg[ROOM], size_t len, bool *changed)
{
	uint8_t before[ROOM];
	size_t n = fuzz_int(in, 1) % 4, cut = fuzz_int(in, 1);

	memcpy(before, msg, ROOM);
	while (n--) {
		size_t at = fuzz_int(in, 1) % ROOM;

		msg[at] ^= (uint8_t)fuzz_int(in, 1);
	}
	*changed = memcmp(before, msg, len) != 0;
	return cut < ROOM ? cut : len;
}

/* A copy of exactly that size. */
static uint8_t *exact(const uint8_t *p, size_t len)
{
	uint8_t *copy = malloc(len ? len : 1);

	memcpy(copy, p, len);
	return copy;
}

static void request(const uint8_t *p, size_t len, const uint8_t *key, bool must_fail)
{
	uint8_t *bytes = exact(p, len), again[RS_GREET_REQUEST_LEN];
	struct rs_greet g = { .tuple = ours.tuple };
	int r = rs_greet_request_decode(bytes, len, key, &g);

	CHECK(r == 0 || r == -EPROTO || r == -EPROTONOSUPPORT || r == -EADDRNOTAVAIL ||
	      r == -EKEYREJECTED);
	CHECK(r != 0 || !must_fail);
	if (r == 0) {
		CHECK(len >= sizeof(again));
		rs_greet_request(&g, key, again);
		CHECK(memcmp(again, bytes, sizeof(again)) == 0);
	}
	free(bytes);
}

static void reply(const uint8_t *p, size_t len, const uint8_t *key, bool must_fail,
		  const uint8_t asked[RS_GREET_REQUEST_LEN])
{
	uint8_t *bytes = exact(p, len), again[RS_GREET_REPLY_LEN];
	struct rs_greet g = { 0 };
	int r = rs_greet_reply_decode(bytes, len, key, asked, &g);

	CHECK(r == 0 || r == -EPROTO || r == -EPROTONOSUPPORT || r == -EKEYREJECTED);
	CHECK(r != 0 || !must_fail);
	if (r == 0) {
		CHECK(len >= sizeof(again));
		rs_greet_reply(&g, key, asked, again);
		CHECK(memcmp(again, bytes, sizeof(again)) == 0);
	}
	free(bytes);
}

static void reject(const uint8_t *p, size_t len)
{
	uint8_t *bytes = exact(p, len), again[RS_GREET_REJECT_LEN];
	int r = rs_greet_reject_decode(bytes, len);

	CHECK(r == -1 || (r >= RS_GREET_NOT_YET && r <= RS_GREET_MEMLOCK));
	if (r >= 0 && r != RS_GREET_VERSION) {
		CHECK(len >= sizeof(again));
		rs_greet_reject((enum rs_greet_no)r, again);
		CHECK(memcmp(again, bytes, sizeof(again)) == 0);
	}
	free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = { data, size };
	uint8_t what = (uint8_t)fuzz_int(&in, 1), msg[ROOM] = { 0 }, asked[RS_GREET_REQUEST_LEN];
	const uint8_t *key = what & 1 ? key_bytes : NULL;
	const uint8_t *peers = what & 2 ? key_bytes : NULL;
	bool changed, other_key = !key != !peers;
	size_t len;

	rs_greet_request(&ours, key, asked);
	switch (what >> 2 & 3) {
	case 0:
		rs_greet_request(&ours, peers, msg);
		len = change(&in, msg, RS_GREET_REQUEST_LEN, &changed);
		request(msg, len, key, (changed && key) || other_key);
		break;
	case 1:
		rs_greet_reply(&ours, peers, asked, msg);
		len = change(&in, msg, RS_GREET_REPLY_LEN, &changed);
		reply(msg, len, key, (changed && key) || other_key, asked);
		break;
	case 2:
		rs_greet_reject((enum rs_greet_no)(what >> 4), msg);
		len = change(&in, msg, RS_GREET_REJECT_LEN, &changed);
		reject(msg, len);
		break;
	case 3: /* libFuzzer reads the right proof off the comparison: that it may */
		request(in.p, in.left, key, false);
		reply(in.p, in.left, key, false, asked);
		reject(in.p, in.left);
		break;
	}
	return 0;
}
