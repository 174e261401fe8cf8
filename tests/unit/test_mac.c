/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * test_mac.c - SHA-256 and HMAC-SHA-256 against published vectors
 *
 * FIPS 180-4 examples (abc, two blocks, a million 'a'), and HMAC vectors of RFC 4231: rs_hmac takes
 * keys of exactly 32 bytes, which zero padding to the block size makes equal to shorter ones.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "rsock/mac.h"

static void unhex(const char *hex, uint8_t *out, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		char byte[3] = { hex[2 * i], hex[2 * i + 1], '\0' };

		out[i] = (uint8_t)strtoul(byte, NULL, 16);
	}
}

static void check_sha(const void *msg, size_t len, const char *hex)
{
	uint8_t got[RS_HASH_LEN], want[RS_HASH_LEN];

	unhex(hex, want, sizeof(want));
	rs_sha256(msg, len, got);
	assert_memory_equal(got, want, sizeof(want));
}

static void sha256_vectors(void **state)
{
	static const char two[] = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
	uint8_t *million = malloc(1000000);

	(void)state;
	check_sha("", 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
	check_sha("abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
	check_sha(two, 56, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
	assert_non_null(million);
	memset(million, 'a', 1000000);
	check_sha(million, 1000000,
		  "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
	free(million);
}

/* Lengths around the block size: the padding takes one block more from 56 bytes on. */
static void sha256_lengths(void **state)
{
	uint8_t a[130], b[RS_HASH_LEN], last[RS_HASH_LEN] = { 0 };

	(void)state;
	memset(a, 'x', sizeof(a));
	for (size_t len = 0; len <= sizeof(a); len++) {
		rs_sha256(a, len, b);
		assert_memory_not_equal(b, last, sizeof(b));
		memcpy(last, b, sizeof(b));
	}
	check_sha(a, 55, "d5e285683cd4efc02d021a5c62014694958901005d6f71e89e0989fac77e4072");
	check_sha(a, 64, "7ce100971f64e7001e8fe5a51973ecdfe1ced42befe7ee8d5fd6219506b5393c");
	check_sha(a, 65, "9537c5fdf120482f7d58d25e9ed583f52c02b4e304ea814db1633ad565aed7e9");
}

static void check_hmac(const char *key_hex, size_t key_len, const void *msg, size_t len,
		       const char *hex)
{
	uint8_t key[RS_KEY_LEN] = { 0 }, got[RS_HASH_LEN], want[RS_HASH_LEN];

	unhex(key_hex, key, key_len);
	unhex(hex, want, sizeof(want));
	rs_hmac(key, msg, len, got, sizeof(got));
	assert_memory_equal(got, want, sizeof(want));
}

static void hmac_vectors(void **state)
{
	uint8_t dd[50], cd[50];

	(void)state;
	memset(dd, 0xdd, sizeof(dd));
	memset(cd, 0xcd, sizeof(cd));
	check_hmac("0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b", 20, "Hi There", 8,
		   "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
	check_hmac("4a656665", 4, "what do ya want for nothing?", 28,
		   "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
	check_hmac("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 20, dd, sizeof(dd),
		   "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe");
	check_hmac("0102030405060708090a0b0c0d0e0f10111213141516171819", 25, cd, sizeof(cd),
		   "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b");
}

static void hmac_truncates(void **state)
{
	uint8_t key[RS_KEY_LEN] = { 1, 2, 3 }, full[RS_HASH_LEN], part[RS_HASH_LEN + 8];

	(void)state;
	rs_hmac(key, "message", 7, full, sizeof(full));
	for (size_t len = 0; len <= RS_HASH_LEN; len++) {
		memset(part, 0xee, sizeof(part));
		rs_hmac(key, "message", 7, part, len);
		assert_memory_equal(part, full, len);
		assert_int_equal(part[len], 0xee);
	}
	/* More than there is: the rest stays as it was. */
	memset(part, 0xee, sizeof(part));
	rs_hmac(key, "message", 7, part, sizeof(part));
	assert_memory_equal(part, full, RS_HASH_LEN);
	assert_int_equal(part[RS_HASH_LEN], 0xee);
}

static void mem_equal(void **state)
{
	uint8_t a[40], b[40];

	(void)state;
	for (size_t i = 0; i < sizeof(a); i++)
		a[i] = b[i] = (uint8_t)i;
	assert_true(rs_mem_equal(a, b, 0));
	assert_true(rs_mem_equal(a, b, sizeof(a)));
	for (size_t i = 0; i < sizeof(a); i++) {
		for (int bit = 0; bit < 8; bit++) {
			b[i] ^= (uint8_t)(1 << bit);
			assert_false(rs_mem_equal(a, b, sizeof(a)));
			assert_true(rs_mem_equal(a, b, i));
			b[i] ^= (uint8_t)(1 << bit);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sha256_vectors), cmocka_unit_test(sha256_lengths),
		cmocka_unit_test(hmac_vectors),	  cmocka_unit_test(hmac_truncates),
		cmocka_unit_test(mem_equal),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
