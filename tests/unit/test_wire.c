/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * test_wire.c - MARK, frames and messages: round trips, exactness, and bytes from a liar
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "rsock/wire.h"

static const uint8_t key[RS_KEY_LEN] = "0123456789abcdef0123456789abcde";

static uint64_t next_random(void)
{
	static uint64_t x = 88172645463325252u;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x;
}

/* ---- MARK ---- */

static void mark_is_bound(void **state)
{
	uint8_t a[RS_MARK_LEN], b[RS_MARK_LEN], other[RS_KEY_LEN];

	(void)state;
	memcpy(other, key, sizeof(other));
	other[31] ^= 1;
	rs_mark_make(rs_hmac, key, 0, 7, 1000, a);
	rs_mark_make(rs_hmac, key, 0, 7, 1000, b);
	assert_memory_equal(a, b, sizeof(a));
	rs_mark_make(rs_hmac, key, 1, 7, 1000, b);
	assert_memory_not_equal(a, b, sizeof(a));
	rs_mark_make(rs_hmac, key, 0, 8, 1000, b);
	assert_memory_not_equal(a, b, sizeof(a));
	rs_mark_make(rs_hmac, key, 0, 7, 1001, b);
	assert_memory_not_equal(a, b, sizeof(a));
	rs_mark_make(rs_hmac, other, 0, 7, 1000, b);
	assert_memory_not_equal(a, b, sizeof(a));
}

/* ---- frames ---- */

static const struct rs_frame resume = {
	.type = RS_FRAME_RESUME,
	.flags = RS_FRAME_CLOSING,
	.epoch = 0x01020304,
	.have_epoch = 0x05060708,
	.a = 0x1112131415161718,
	.b = 0x2122232425262728,
	.c = 0x3132333435363738,
};

static void frame_round_trip(void **state)
{
	static const uint8_t body[40] = {
		3,    1,    0,	  0,	4,    3,    2,	  1,	8,    7,    6,	  5,	0,    0,
		0,    0,    0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11, 0x28, 0x27, 0x26, 0x25,
		0x24, 0x23, 0x22, 0x21, 0x38, 0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31,
	};
	uint8_t buf[RS_FRAME_LEN];
	struct rs_frame f;

	(void)state;
	for (int dir = 0; dir < 2; dir++) {
		rs_frame_encode(rs_hmac, key, dir, &resume, buf);
		assert_memory_equal(buf, body, sizeof(body));
		assert_int_equal(rs_frame_decode(rs_hmac, key, dir, buf, &f), 0);
		assert_int_equal(f.type, resume.type);
		assert_int_equal(f.flags, resume.flags);
		assert_int_equal(f.epoch, resume.epoch);
		assert_int_equal(f.have_epoch, resume.have_epoch);
		assert_true(f.a == resume.a && f.b == resume.b && f.c == resume.c);
		/* Not one of the other direction: no reflection. */
		assert_int_equal(rs_frame_decode(rs_hmac, key, !dir, buf, &f), -1);
	}
}

static void frame_any_bit_counts(void **state)
{
	uint8_t buf[RS_FRAME_LEN], other[RS_KEY_LEN];
	struct rs_frame f;

	(void)state;
	rs_frame_encode(rs_hmac, key, 0, &resume, buf);
	for (size_t bit = 0; bit < 8 * sizeof(buf); bit++) {
		buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(rs_frame_decode(rs_hmac, key, 0, buf, &f), -1);
		buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	for (size_t bit = 0; bit < 8 * sizeof(other); bit++) {
		memcpy(other, key, sizeof(other));
		other[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(rs_frame_decode(rs_hmac, other, 0, buf, &f), -1);
	}
	assert_int_equal(rs_frame_decode(rs_hmac, key, 0, buf, &f), 0);
}

/* The key's holder may lie, too: types and reserved bytes are looked at behind a good MAC. */
static void weak_mac(const uint8_t k[RS_KEY_LEN], const void *msg, size_t len, uint8_t *out,
		     size_t out_len)
{
	(void)k;
	(void)msg;
	(void)len;
	memset(out, 0, out_len);
}

static void frame_fields_are_checked(void **state)
{
	uint8_t buf[RS_FRAME_LEN];
	struct rs_frame f = resume;

	(void)state;
	for (unsigned int type = 0; type < 256; type++) {
		int good = type >= RS_FRAME_FIN && type <= RS_FRAME_RESUME;

		f.type = (uint8_t)type;
		rs_frame_encode(weak_mac, key, 0, &f, buf);
		assert_int_equal(rs_frame_decode(weak_mac, key, 0, buf, &f), good ? 0 : -1);
	}
	rs_frame_encode(weak_mac, key, 0, &resume, buf);
	for (size_t i = 0; i < RS_FRAME_LEN - 8; i++) {
		int reserved = i == 2 || i == 3 || (i >= 12 && i < 16);

		buf[i] ^= i == 0 ? 2 : 0x40;
		assert_int_equal(rs_frame_decode(weak_mac, key, 0, buf, &f), reserved ? -1 : 0);
		buf[i] ^= i == 0 ? 2 : 0x40;
	}
}

/* ---- messages ---- */

/* A message of `type` with every field that it carries set. */
static struct rs_msg sample(uint8_t type)
{
	struct rs_msg m;

	memset(&m, 0, sizeof(m));
	m.type = type;
	switch (type) {
	case RS_MSG_HELLO:
		m.features = 0x80000001;
		memcpy(m.process, "process identity", 16);
		m.slots = 256;
		memcpy(m.tier_shift, "\x0e\x12\x16", 3);
		memcpy(m.proof, "proof of the key", sizeof(m.proof));
		break;
	case RS_MSG_CLAIM:
		m.from = 77;
		m.tuple.family = 6;
		m.tuple.client_port = 65535;
		m.tuple.server_port = 80;
		memset(m.tuple.client_ip, 0xc1, 16);
		memset(m.tuple.server_ip, 0x5e, 16);
		memset(m.secret, 0x17, sizeof(m.secret));
		m.block = 0x7f12345678abc000;
		m.block_key = 0x8765fedc;
		break;
	case RS_MSG_CLAIM_OK:
		m.id = 5;
		m.from = 0xfffffffe;
		memset(m.secret, 0x71, sizeof(m.secret));
		m.block = 0x7fedcba987651000;
		m.block_key = 0x01020304;
		break;
	case RS_MSG_CLAIM_NO:
		m.id = 5;
		m.code = RS_CLAIM_REDIRECT;
		m.reason = 3;
		m.port = 0xfedc;
		memcpy(m.name, "worker-17", 10);
		break;
	case RS_MSG_REVEAL:
		m.id = 6;
		memset(m.secret, 0x33, sizeof(m.secret));
		break;
	case RS_MSG_LEAVE:
	case RS_MSG_WANT:
	case RS_MSG_DROP:
		m.id = 8;
		break;
	case RS_MSG_RING:
		m.id = 8;
		m.block = 0x7fedcba987651000;
		m.block_key = 0x01020304;
		break;
	case RS_MSG_BELL:
	case RS_MSG_SEGMENT:
		m.index = 31;
		break;
	case RS_MSG_WHERE:
		m.from = 0x11223344;
		m.tuple.family = 4;
		m.tuple.client_port = 12345;
		m.tuple.server_port = 65534;
		memset(m.tuple.client_ip, 0xc1, 4);
		memset(m.tuple.server_ip, 0x5e, 4);
		break;
	case RS_MSG_HERE:
		m.id = 0x11223344;
		m.port = 54321;
		break;
	default: /* ENTER ... FIN */
		m.id = 9;
		m.epoch = 0xa1b2c3d4;
		m.offset = 0x0102030405060708;
		break;
	}
	return m;
}

static void message_round_trip(void **state)
{
	uint8_t buf[RS_MSG_MAX], again[RS_MSG_MAX];

	(void)state;
	for (uint8_t type = RS_MSG_HELLO; type < RS_MSG_COUNT; type++) {
		struct rs_msg m = sample(type), got;
		size_t len = rs_msg_encode(&m, buf);

		assert_in_range(len, RS_MSG_HEAD, RS_MSG_MAX);
		assert_int_equal(rs_msg_decode(buf, len, &got), 0);
		assert_memory_equal(&got, &m, sizeof(m));
		assert_int_equal(rs_msg_encode(&got, again), len);
		assert_memory_equal(again, buf, len);
	}
}

static void message_layout(void **state)
{
	static const uint8_t enter[] = {
		0x52, 0x4b, 1,	  6,	24, 0, 0, 0, 9, 0, 0, 0,
		0xd4, 0xc3, 0xb2, 0xa1, 8,  7, 6, 5, 4, 3, 2, 1,
	};
	uint8_t buf[RS_MSG_MAX];
	struct rs_msg m = sample(RS_MSG_ENTER);

	(void)state;
	assert_int_equal(rs_msg_encode(&m, buf), sizeof(enter));
	assert_memory_equal(buf, enter, sizeof(enter));
}

/* Shorter, longer, with another length field: none of them is a message. */
static void message_length_is_exact(void **state)
{
	uint8_t buf[RS_MSG_MAX + 1];
	struct rs_msg m, got;

	(void)state;
	for (uint8_t type = RS_MSG_HELLO; type < RS_MSG_COUNT; type++) {
		size_t len;

		m = sample(type);
		memset(buf, 0, sizeof(buf));
		len = rs_msg_encode(&m, buf);
		for (size_t n = 0; n <= sizeof(buf); n++) {
			if (n == len)
				continue;
			assert_int_equal(rs_msg_decode(buf, n, &got), -1);
			/* Nor when the field says so. */
			buf[4] = (uint8_t)n;
			assert_int_equal(rs_msg_decode(buf, n, &got), -1);
			buf[4] = (uint8_t)len;
		}
		buf[5] = 1;
		assert_int_equal(rs_msg_decode(buf, len, &got), -1);
	}
}

static void message_head_is_checked(void **state)
{
	uint8_t buf[RS_MSG_MAX];
	struct rs_msg m = sample(RS_MSG_LEAVE), got;
	size_t len = rs_msg_encode(&m, buf);

	(void)state;
	buf[0] ^= 1;
	assert_int_equal(rs_msg_decode(buf, len, &got), -1);
	buf[0] ^= 1;
	buf[2] = RS_WIRE_VERSION + 1;
	assert_int_equal(rs_msg_decode(buf, len, &got), -2);
	buf[2] = RS_WIRE_VERSION;
	for (unsigned int type = 0; type < 256; type++) {
		if (type >= RS_MSG_HELLO && type < RS_MSG_COUNT)
			continue;
		buf[3] = (uint8_t)type;
		assert_int_equal(rs_msg_decode(buf, len, &got), -1);
	}
}

static int decode_changed(uint8_t type, size_t at, uint8_t value)
{
	uint8_t buf[RS_MSG_MAX];
	struct rs_msg m = sample(type), got;
	size_t len = rs_msg_encode(&m, buf);

	buf[at] = value;
	return rs_msg_decode(buf, len, &got);
}

static void message_fields_are_checked(void **state)
{
	(void)state;
	/* The family, and the reserved bytes beside it. */
	assert_int_equal(decode_changed(RS_MSG_CLAIM, 12, 4), 0);
	assert_int_equal(decode_changed(RS_MSG_CLAIM, 12, 5), -1);
	assert_int_equal(decode_changed(RS_MSG_CLAIM, 13, 1), -1);
	assert_int_equal(decode_changed(RS_MSG_CLAIM, 18, 1), -1);
	/* The code, the end of the name. */
	assert_int_equal(decode_changed(RS_MSG_CLAIM_NO, 12, 0), -1);
	assert_int_equal(decode_changed(RS_MSG_CLAIM_NO, 12, RS_CLAIM_REFUSED), 0);
	assert_int_equal(decode_changed(RS_MSG_CLAIM_NO, 12, RS_CLAIM_REFUSED + 1), -1);
	assert_int_equal(decode_changed(RS_MSG_CLAIM_NO, 16 + RS_NAME_LEN - 1, 'x'), -1);
	assert_int_equal(decode_changed(RS_MSG_HELLO, 35, 1), -1);
	assert_int_equal(decode_changed(RS_MSG_WHERE, 12, 7), -1);
	assert_int_equal(decode_changed(RS_MSG_HERE, 14, 1), -1);
	assert_int_equal(decode_changed(RS_MSG_HERE, 15, 1), -1);
}

/* Whatever decodes has exactly one encoding, and nothing is read beyond the datagram. */
static void message_fuzz(void **state)
{
	uint8_t buf[RS_MSG_MAX], again[RS_MSG_MAX];
	struct rs_msg m, got;
	unsigned int good = 0;

	(void)state;
	for (unsigned int i = 0; i < 300000; i++) {
		uint8_t type = (uint8_t)(RS_MSG_HELLO + next_random() % (RS_MSG_COUNT - 1));
		size_t len;

		m = sample(type);
		memset(buf, 0, sizeof(buf));
		len = rs_msg_encode(&m, buf);
		for (uint64_t n = next_random() % 4; n; n--)
			buf[next_random() % len] = (uint8_t)next_random();
		if (next_random() % 8 == 0)
			len = next_random() % (RS_MSG_MAX + 1);
		if (rs_msg_decode(buf, len, &got) != 0)
			continue;
		good++;
		assert_int_equal(rs_msg_encode(&got, again), len);
		assert_memory_equal(again, buf, len);
	}
	assert_in_range(good, 50000, 300000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mark_is_bound),
		cmocka_unit_test(frame_round_trip),
		cmocka_unit_test(frame_any_bit_counts),
		cmocka_unit_test(frame_fields_are_checked),
		cmocka_unit_test(message_round_trip),
		cmocka_unit_test(message_layout),
		cmocka_unit_test(message_length_is_exact),
		cmocka_unit_test(message_head_is_checked),
		cmocka_unit_test(message_fields_are_checked),
		cmocka_unit_test(message_fuzz),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
