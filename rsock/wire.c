/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/wire.h"

#include <string.h>

/* A bounded little-endian cursor: a read or write past the end only sets `bad`. */
struct cursor {
	uint8_t *p;
	size_t left;
	int bad;
};

static uint8_t *take(struct cursor *c, size_t n)
{
	uint8_t *p = c->p;

	if (c->left < n) {
		c->bad = 1;
		return NULL;
	}
	c->p += n;
	c->left -= n;
	return p;
}

static void put(struct cursor *c, uint64_t v, size_t n)
{
	uint8_t *p = take(c, n);

	for (size_t i = 0; p && i < n; i++)
		p[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t get(struct cursor *c, size_t n)
{
	uint8_t *p = take(c, n);
	uint64_t v = 0;

	for (size_t i = 0; p && i < n; i++)
		v |= (uint64_t)p[i] << (8 * i);
	return v;
}

/* Reserved bytes must be 0, so that every message has one encoding. */
static void get_zero(struct cursor *c, size_t n)
{
	if (get(c, n) != 0)
		c->bad = 1;
}

static void put_mem(struct cursor *c, const void *src, size_t n)
{
	uint8_t *p = take(c, n);

	if (p)
		memcpy(p, src, n);
}

static void get_mem(struct cursor *c, void *dst, size_t n)
{
	uint8_t *p = take(c, n);

	if (p)
		memcpy(dst, p, n);
}

/* ---- MARK and frames ---- */

void rs_mark_make(rs_mac_fn mac, const uint8_t key[RS_KEY_LEN], int dir, uint32_t epoch,
		  uint64_t offset, uint8_t out[RS_MARK_LEN])
{
	uint8_t buf[24] = "rsock mark";
	struct cursor c = { buf + 11, sizeof(buf) - 11, 0 };

	put(&c, (uint64_t)dir, 1);
	put(&c, epoch, 4);
	put(&c, offset, 8);
	mac(key, buf, sizeof(buf), out, RS_MARK_LEN);
}

#define FRAME_BODY (RS_FRAME_LEN - 8)

static void frame_mac(rs_mac_fn mac, const uint8_t key[RS_KEY_LEN], int dir,
		      const uint8_t frame[RS_FRAME_LEN], uint8_t out[8])
{
	uint8_t buf[1 + FRAME_BODY];

	buf[0] = (uint8_t)(0x80 | dir); /* never the first byte of a MARK's input */
	memcpy(buf + 1, frame, FRAME_BODY);
	mac(key, buf, sizeof(buf), out, 8);
}

void rs_frame_encode(rs_mac_fn mac, const uint8_t key[RS_KEY_LEN], int dir,
		     const struct rs_frame *f, uint8_t out[RS_FRAME_LEN])
{
	struct cursor c = { out, RS_FRAME_LEN, 0 };

	put(&c, f->type, 1);
	put(&c, f->flags, 1);
	put(&c, 0, 2);
	put(&c, f->epoch, 4);
	put(&c, f->have_epoch, 4);
	put(&c, 0, 4);
	put(&c, f->a, 8);
	put(&c, f->b, 8);
	put(&c, f->c, 8);
	frame_mac(mac, key, dir, out, out + FRAME_BODY);
}

int rs_frame_decode(rs_mac_fn mac, const uint8_t key[RS_KEY_LEN], int dir,
		    const uint8_t in[RS_FRAME_LEN], struct rs_frame *f)
{
	uint8_t buf[RS_FRAME_LEN], expect[8];
	struct cursor c = { buf, RS_FRAME_LEN, 0 };

	memcpy(buf, in, RS_FRAME_LEN);
	frame_mac(mac, key, dir, buf, expect);
	if (!rs_mem_equal(expect, buf + FRAME_BODY, 8))
		return -1;
	f->type = (uint8_t)get(&c, 1);
	f->flags = (uint8_t)get(&c, 1);
	if (get(&c, 2) != 0)
		return -1;
	f->epoch = (uint32_t)get(&c, 4);
	f->have_epoch = (uint32_t)get(&c, 4);
	if (get(&c, 4) != 0)
		return -1;
	f->a = get(&c, 8);
	f->b = get(&c, 8);
	f->c = get(&c, 8);
	if (f->type < RS_FRAME_FIN || f->type > RS_FRAME_RESUME)
		return -1;
	return 0;
}

/* ---- messages ---- */

static void put_tuple(struct cursor *c, const struct rs_tuple *t)
{
	put(c, t->family, 1);
	put(c, 0, 1);
	put(c, t->client_port, 2);
	put(c, t->server_port, 2);
	put(c, 0, 2);
	put_mem(c, t->client_ip, 16);
	put_mem(c, t->server_ip, 16);
}

static void get_tuple(struct cursor *c, struct rs_tuple *t)
{
	t->family = (uint8_t)get(c, 1);
	get_zero(c, 1);
	t->client_port = (uint16_t)get(c, 2);
	t->server_port = (uint16_t)get(c, 2);
	get_zero(c, 2);
	get_mem(c, t->client_ip, 16);
	get_mem(c, t->server_ip, 16);
	if (t->family != 4 && t->family != 6)
		c->bad = 1;
}

size_t rs_msg_encode(const struct rs_msg *m, uint8_t out[RS_MSG_MAX])
{
	struct cursor c = { out, RS_MSG_MAX, 0 };
	size_t len;

	put(&c, RS_WIRE_MAGIC, 2);
	put(&c, RS_WIRE_VERSION, 1);
	put(&c, m->type, 1);
	put(&c, 0, 4); /* the length, below */
	switch (m->type) {
	case RS_MSG_HELLO:
		put(&c, m->features, 4);
		put_mem(&c, m->process, sizeof(m->process));
		put(&c, m->slots, 4);
		put_mem(&c, m->tier_shift, RS_TIERS);
		put(&c, 0, 1);
		put_mem(&c, m->proof, sizeof(m->proof));
		break;
	case RS_MSG_CLAIM:
		put(&c, m->from, 4);
		put_tuple(&c, &m->tuple);
		put_mem(&c, m->secret, RS_HASH_LEN);
		put(&c, m->block, 8);
		put(&c, m->block_key, 4);
		break;
	case RS_MSG_CLAIM_OK:
		put(&c, m->id, 4);
		put(&c, m->from, 4);
		put_mem(&c, m->secret, RS_HASH_LEN);
		put(&c, m->block, 8);
		put(&c, m->block_key, 4);
		break;
	case RS_MSG_CLAIM_NO:
		put(&c, m->id, 4);
		put(&c, m->code, 1);
		put(&c, m->reason, 1);
		put(&c, m->port, 2);
		put_mem(&c, m->name, RS_NAME_LEN);
		break;
	case RS_MSG_REVEAL:
		put(&c, m->id, 4);
		put_mem(&c, m->secret, RS_HASH_LEN);
		break;
	case RS_MSG_ENTER:
	case RS_MSG_ENTER_OK:
	case RS_MSG_NAK:
	case RS_MSG_LEFT:
	case RS_MSG_GONE:
	case RS_MSG_FIN:
		put(&c, m->id, 4);
		put(&c, m->epoch, 4);
		put(&c, m->offset, 8);
		break;
	case RS_MSG_LEAVE:
	case RS_MSG_WANT:
	case RS_MSG_DROP:
		put(&c, m->id, 4);
		break;
	case RS_MSG_RING:
		put(&c, m->id, 4);
		put(&c, m->block_key, 4);
		put(&c, m->block, 8);
		break;
	case RS_MSG_BELL:
	case RS_MSG_SEGMENT:
		put(&c, m->index, 4);
		break;
	case RS_MSG_WHERE:
		put(&c, m->from, 4);
		put_tuple(&c, &m->tuple);
		break;
	case RS_MSG_HERE:
		put(&c, m->id, 4);
		put(&c, m->port, 2);
		put(&c, 0, 2);
		break;
	default:
		break;
	}
	len = RS_MSG_MAX - c.left;
	for (size_t i = 0; i < 4; i++)
		out[4 + i] = (uint8_t)(len >> (8 * i));
	return len;
}

int rs_msg_decode(const uint8_t *in, size_t len, struct rs_msg *m)
{
	uint8_t buf[RS_MSG_MAX];
	struct cursor c = { buf, len, 0 };

	memset(m, 0, sizeof(*m));
	if (len < RS_MSG_HEAD || len > RS_MSG_MAX)
		return -1;
	memcpy(buf, in, len);
	if (get(&c, 2) != RS_WIRE_MAGIC)
		return -1;
	if (get(&c, 1) != RS_WIRE_VERSION)
		return -2;
	m->type = (uint8_t)get(&c, 1);
	if (get(&c, 4) != len)
		return -1;
	switch (m->type) {
	case RS_MSG_HELLO:
		m->features = (uint32_t)get(&c, 4);
		get_mem(&c, m->process, sizeof(m->process));
		m->slots = (uint32_t)get(&c, 4);
		get_mem(&c, m->tier_shift, RS_TIERS);
		get_zero(&c, 1);
		get_mem(&c, m->proof, sizeof(m->proof));
		break;
	case RS_MSG_CLAIM:
		m->from = (uint32_t)get(&c, 4);
		get_tuple(&c, &m->tuple);
		get_mem(&c, m->secret, RS_HASH_LEN);
		m->block = get(&c, 8);
		m->block_key = (uint32_t)get(&c, 4);
		break;
	case RS_MSG_CLAIM_OK:
		m->id = (uint32_t)get(&c, 4);
		m->from = (uint32_t)get(&c, 4);
		get_mem(&c, m->secret, RS_HASH_LEN);
		m->block = get(&c, 8);
		m->block_key = (uint32_t)get(&c, 4);
		break;
	case RS_MSG_CLAIM_NO:
		m->id = (uint32_t)get(&c, 4);
		m->code = (uint8_t)get(&c, 1);
		m->reason = (uint8_t)get(&c, 1);
		m->port = (uint16_t)get(&c, 2);
		get_mem(&c, m->name, RS_NAME_LEN);
		if (m->code < RS_CLAIM_UNKNOWN || m->code > RS_CLAIM_REFUSED ||
		    m->name[RS_NAME_LEN - 1])
			return -1;
		break;
	case RS_MSG_REVEAL:
		m->id = (uint32_t)get(&c, 4);
		get_mem(&c, m->secret, RS_HASH_LEN);
		break;
	case RS_MSG_ENTER:
	case RS_MSG_ENTER_OK:
	case RS_MSG_NAK:
	case RS_MSG_LEFT:
	case RS_MSG_GONE:
	case RS_MSG_FIN:
		m->id = (uint32_t)get(&c, 4);
		m->epoch = (uint32_t)get(&c, 4);
		m->offset = get(&c, 8);
		break;
	case RS_MSG_LEAVE:
	case RS_MSG_WANT:
	case RS_MSG_DROP:
		m->id = (uint32_t)get(&c, 4);
		break;
	case RS_MSG_RING:
		m->id = (uint32_t)get(&c, 4);
		m->block_key = (uint32_t)get(&c, 4);
		m->block = get(&c, 8);
		break;
	case RS_MSG_BELL:
	case RS_MSG_SEGMENT:
		m->index = (uint32_t)get(&c, 4);
		break;
	case RS_MSG_WHERE:
		m->from = (uint32_t)get(&c, 4);
		get_tuple(&c, &m->tuple);
		break;
	case RS_MSG_HERE:
		m->id = (uint32_t)get(&c, 4);
		m->port = (uint16_t)get(&c, 2);
		get_zero(&c, 2);
		break;
	default:
		return -1;
	}
	if (c.bad || c.left)
		return -1;
	return 0;
}
