/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * wire.c - messages of a link, and frames of the TCP stream: what is accepted has one encoding
 */
#include "rsock/wire.h"
#include "tests/fuzz/fuzz.h"

/* One that the fuzzer can get right: the frame's own checks are behind it. */
static void weak_mac(const uint8_t key[RS_KEY_LEN], const void *msg, size_t len, uint8_t *out,
		     size_t out_len)
{
	(void)key;
	(void)msg;
	(void)len;
	memset(out, 'M', out_len);
}

/* `head`: with one that is right. */
static void message(const uint8_t *data, size_t size, bool head)
{
	/* Of exactly that size, so that a read beyond it is seen. */
	uint8_t *in = malloc(size ? size : 1), again[RS_MSG_MAX];
	struct rs_msg m;
	int r;

	memcpy(in, data, size);
	if (head && size >= RS_MSG_HEAD) {
		const uint8_t right[] = { 'R',	 'K',		RS_WIRE_VERSION,
					  in[3], (uint8_t)size, (uint8_t)(size >> 8) };

		memcpy(in, right, sizeof(right));
	}
	r = rs_msg_decode(in, size, &m);
	CHECK(r == 0 || r == -1 || r == -2);
	if (r == 0) {
		CHECK(m.type >= RS_MSG_HELLO && m.type < RS_MSG_COUNT);
		CHECK(m.name[RS_NAME_LEN - 1] == '\0');
		CHECK(rs_msg_encode(&m, again) == size);
		CHECK(memcmp(again, in, size) == 0);
	}
	free(in);
}

static void frame(const uint8_t *data, size_t size)
{
	static const uint8_t key[RS_KEY_LEN];
	uint8_t in[RS_FRAME_LEN] = { 0 }, again[RS_FRAME_LEN];
	struct rs_frame f;

	memcpy(in, data, size < RS_FRAME_LEN ? size : RS_FRAME_LEN);
	CHECK(rs_frame_decode(rs_hmac, key, 0, in, &f) != 0);
	if (rs_frame_decode(weak_mac, key, 0, in, &f) != 0)
		return;
	CHECK(f.type >= RS_FRAME_FIN && f.type <= RS_FRAME_RESUME);
	rs_frame_encode(weak_mac, key, 0, &f, again);
	CHECK(memcmp(again, in, sizeof(in)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	message(data, size, false);
	message(data, size, true);
	frame(data, size);
	return 0;
}
