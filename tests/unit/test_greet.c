/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * test_greet.c - the private data of the RDMA CM: every length, every changed byte, every wrong key
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "rsock/greet.h"

static const uint8_t key[RS_KEY_LEN] = "a key that only we know, 32 byte";
static const uint8_t other_key[RS_KEY_LEN] = "a key that only we know, 32 bytf";

static struct rs_greet sample(uint8_t family)
{
	struct rs_greet g = { .ring_shift = 18, .stream_shift = 14 };

	memcpy(g.process, "process.", 8);
	memcpy(g.nonce, "nonce...", 8);
	g.tuple.family = family;
	g.tuple.client_port = 40000;
	g.tuple.server_port = 80;
	memset(g.tuple.client_ip, 0xc1, family == 4 ? 4 : 16);
	memset(g.tuple.server_ip, 0x5e, family == 4 ? 4 : 16);
	return g;
}

/* What the acceptor knows before it has decoded: the CM's addresses. */
static int decode_request(const uint8_t *in, size_t len, const uint8_t *k, uint8_t family,
			  struct rs_greet *got)
{
	struct rs_greet g = sample(family);
	uint8_t *exact =
		malloc(len ? len : 1); /* a read beyond it is one that valgrind, ASan see */
	int r;

	assert_non_null(exact);
	memcpy(exact, in, len);
	memset(got, 0, sizeof(*got));
	got->tuple = g.tuple;
	got->tuple.client_port = 0;
	got->tuple.server_port = 0;
	r = rs_greet_request_decode(exact, len, k, got);
	free(exact);
	return r;
}

static int decode_reply(const uint8_t *in, size_t len, const uint8_t *k, const uint8_t *request)
{
	uint8_t *exact = malloc(len ? len : 1);
	struct rs_greet got;
	int r;

	assert_non_null(exact);
	memcpy(exact, in, len);
	r = rs_greet_reply_decode(exact, len, k, request, &got);
	free(exact);
	return r;
}

static void request_round_trip(void **state)
{
	(void)state;
	for (uint8_t family = 4; family <= 6; family = (uint8_t)(family + 2))
		for (int keyed = 0; keyed < 2; keyed++) {
			const uint8_t *k = keyed ? key : NULL;
			struct rs_greet g = sample(family), got;
			uint8_t buf[RS_GREET_REQUEST_LEN + 100] = { 0 };

			rs_greet_request(&g, k, buf);
			assert_int_equal(decode_request(buf, RS_GREET_REQUEST_LEN, k, family, &got),
					 0);
			g.features = keyed ? RS_GREET_KEYED : 0;
			assert_memory_equal(&got, &g, sizeof(g));
			/* The CM pads. */
			assert_int_equal(decode_request(buf, sizeof(buf), k, family, &got), 0);
		}
}

/* As docs/protocol.md has it, made once by hand (the hash by sha256sum). */
static void request_layout(void **state)
{
	static const uint8_t want[32] = {
		'R', 'K', 'R', 'D', 1,	 1,   18,  14,	0,   0,	  0x40, 0x9c, 80,  0,	4,   0,
		'p', 'r', 'o', 'c', 'e', 's', 's', '.', 'n', 'o', 'n',	'c',  'e', '.', '.', '.',
	};
	struct rs_greet g = sample(4);
	uint8_t buf[RS_GREET_REQUEST_LEN], tuple[37] = { 4, 0x40, 0x9c, 80, 0 }, hash[RS_HASH_LEN];
	static const uint8_t none[RS_GREET_PROOF_LEN];

	(void)state;
	rs_greet_request(&g, NULL, buf);
	assert_memory_equal(buf, want, sizeof(want));
	memset(tuple + 5, 0xc1, 4);
	memset(tuple + 21, 0x5e, 4);
	rs_sha256(tuple, sizeof(tuple), hash);
	assert_memory_equal(buf + 32, hash, 8);
	assert_memory_equal(buf + 40, none, sizeof(none));
}

static void request_lengths(void **state)
{
	struct rs_greet g = sample(4), got;
	uint8_t buf[RS_GREET_REQUEST_LEN];

	(void)state;
	rs_greet_request(&g, key, buf);
	for (size_t n = 0; n < sizeof(buf); n++)
		assert_int_equal(decode_request(buf, n, key, 4, &got), -EPROTO);
}

/* With a key no bit may change. Without one: none that is looked at. */
static void request_changes(void **state)
{
	struct rs_greet g = sample(4), got;
	uint8_t buf[RS_GREET_REQUEST_LEN];

	(void)state;
	for (int keyed = 0; keyed < 2; keyed++) {
		const uint8_t *k = keyed ? key : NULL;

		rs_greet_request(&g, k, buf);
		for (size_t bit = 0; bit < 8 * sizeof(buf); bit++) {
			size_t at = bit / 8;
			int r, free_without_key = at == 6 || at == 7 || (at >= 16 && at < 32) ||
						  (bit > 64 && at < 10);

			buf[at] ^= (uint8_t)(1u << bit % 8);
			r = decode_request(buf, sizeof(buf), k, 4, &got);
			if (at == 4)
				assert_int_equal(r, -EPROTONOSUPPORT);
			else if (!keyed && free_without_key)
				assert_int_equal(r, 0);
			else
				assert_true(r == -EPROTO || r == -EADDRNOTAVAIL ||
					    r == -EKEYREJECTED);
			buf[at] ^= (uint8_t)(1u << bit % 8);
		}
	}
}

static void request_keys(void **state)
{
	struct rs_greet g = sample(6), got;
	uint8_t buf[RS_GREET_REQUEST_LEN];

	(void)state;
	rs_greet_request(&g, key, buf);
	assert_int_equal(decode_request(buf, sizeof(buf), other_key, 6, &got), -EKEYREJECTED);
	assert_int_equal(decode_request(buf, sizeof(buf), NULL, 6, &got), -EKEYREJECTED);
	rs_greet_request(&g, NULL, buf);
	assert_int_equal(decode_request(buf, sizeof(buf), key, 6, &got), -EKEYREJECTED);
}

/* It was made for a connection between other hosts: somebody hands on what he has heard. */
static void request_addresses(void **state)
{
	struct rs_greet g = sample(4), got;
	uint8_t buf[RS_GREET_REQUEST_LEN];

	(void)state;
	rs_greet_request(&g, key, buf);
	for (int end = 0; end < 2; end++)
		for (size_t i = 0; i < 4; i++) {
			got = sample(4);
			(end ? got.tuple.server_ip : got.tuple.client_ip)[i] ^= 1;
			assert_int_equal(rs_greet_request_decode(buf, sizeof(buf), key, &got),
					 -EADDRNOTAVAIL);
		}
	got = sample(4);
	got.tuple.family = 6;
	assert_int_equal(rs_greet_request_decode(buf, sizeof(buf), key, &got), -EADDRNOTAVAIL);
}

static void reply(void **state)
{
	struct rs_greet g = sample(4), got;
	uint8_t request[RS_GREET_REQUEST_LEN], buf[RS_GREET_REPLY_LEN + 100] = { 0 };

	(void)state;
	for (int keyed = 0; keyed < 2; keyed++) {
		const uint8_t *k = keyed ? key : NULL;

		rs_greet_request(&g, k, request);
		rs_greet_reply(&g, k, request, buf);
		assert_int_equal(rs_greet_reply_decode(buf, RS_GREET_REPLY_LEN, k, request, &got),
				 0);
		assert_int_equal(got.ring_shift, 18);
		assert_int_equal(got.stream_shift, 14);
		assert_int_equal(got.features, keyed ? RS_GREET_KEYED : 0);
		assert_memory_equal(got.process, g.process, 8);
		assert_memory_equal(got.nonce, g.nonce, 8);
		assert_int_equal(decode_reply(buf, sizeof(buf), k, request), 0);
		for (size_t n = 0; n < RS_GREET_REPLY_LEN; n++)
			assert_int_equal(decode_reply(buf, n, k, request), -EPROTO);
		for (size_t bit = 0; bit < (size_t)8 * RS_GREET_REPLY_LEN; bit++) {
			size_t at = bit / 8;
			int r, free_without_key = at == 6 || at == 7 || (at >= 16 && at < 32) ||
						  (bit > 64 && at < 10);

			buf[at] ^= (uint8_t)(1u << bit % 8);
			r = decode_reply(buf, RS_GREET_REPLY_LEN, k, request);
			if (at == 4)
				assert_int_equal(r, -EPROTONOSUPPORT);
			else if (!keyed && free_without_key)
				assert_int_equal(r, 0);
			else
				assert_true(r == -EPROTO || r == -EKEYREJECTED);
			buf[at] ^= (uint8_t)(1u << bit % 8);
		}
	}
	/* Of another day, of another request, with another key, without one. */
	rs_greet_request(&g, key, request);
	rs_greet_reply(&g, key, request, buf);
	assert_int_equal(decode_reply(buf, RS_GREET_REPLY_LEN, other_key, request), -EKEYREJECTED);
	assert_int_equal(decode_reply(buf, RS_GREET_REPLY_LEN, NULL, request), -EKEYREJECTED);
	g.nonce[7] ^= 1;
	rs_greet_request(&g, key, request);
	assert_int_equal(decode_reply(buf, RS_GREET_REPLY_LEN, key, request), -EKEYREJECTED);
	rs_greet_reply(&g, NULL, request, buf);
	assert_int_equal(decode_reply(buf, RS_GREET_REPLY_LEN, key, request), -EKEYREJECTED);
	/* A request is no reply to itself. */
	assert_int_equal(decode_reply(request, sizeof(request), key, request), -EPROTO);
}

static void session(void **state)
{
	uint8_t request[RS_GREET_REQUEST_LEN] = { 1 }, bytes[RS_GREET_REPLY_LEN] = { 2 };
	uint8_t first[RS_GREET_PROOF_LEN], proof[RS_GREET_PROOF_LEN];
	static const uint8_t none[RS_GREET_PROOF_LEN];

	(void)state;
	rs_greet_session(NULL, request, bytes, proof);
	assert_memory_equal(proof, none, sizeof(none));
	rs_greet_session(key, request, bytes, first);
	for (size_t i = 0; i < sizeof(request); i++) {
		request[i] ^= 0x80;
		rs_greet_session(key, request, bytes, proof);
		assert_memory_not_equal(proof, first, sizeof(proof));
		request[i] ^= 0x80;
	}
	for (size_t i = 0; i < sizeof(bytes); i++) {
		bytes[i] ^= 0x80;
		rs_greet_session(key, request, bytes, proof);
		assert_memory_not_equal(proof, first, sizeof(proof));
		bytes[i] ^= 0x80;
	}
	rs_greet_session(other_key, request, bytes, proof);
	assert_memory_not_equal(proof, first, sizeof(proof));
}

static void rejects(void **state)
{
	uint8_t buf[RS_GREET_REJECT_LEN + 132] = { 0 };

	(void)state;
	for (int code = RS_GREET_NOT_YET; code <= RS_GREET_MEMLOCK; code++) {
		rs_greet_reject((enum rs_greet_no)code, buf);
		assert_int_equal(rs_greet_reject_decode(buf, RS_GREET_REJECT_LEN), code);
		assert_int_equal(rs_greet_reject_decode(buf, sizeof(buf)), code);
		for (size_t n = 0; n < RS_GREET_REJECT_LEN; n++)
			assert_int_equal(rs_greet_reject_decode(buf, n), -1);
		for (size_t at = 0; at < RS_GREET_REJECT_LEN; at++) {
			buf[at] ^= 0x40;
			assert_int_equal(rs_greet_reject_decode(buf, RS_GREET_REJECT_LEN),
					 at == 4 ? RS_GREET_VERSION : -1);
			buf[at] ^= 0x40;
		}
	}
	assert_int_equal(rs_greet_reject_decode(buf, 0), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(request_round_trip),
		cmocka_unit_test(request_layout),
		cmocka_unit_test(request_lengths),
		cmocka_unit_test(request_changes),
		cmocka_unit_test(request_keys),
		cmocka_unit_test(request_addresses),
		cmocka_unit_test(reply),
		cmocka_unit_test(session),
		cmocka_unit_test(rejects),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
