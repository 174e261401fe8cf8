/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * cm_peer.c - a process that is none of ours on the RDMA CM: squatters, liars, and those who stop
 *
 * cm_peer listen PORT HOW      answers requests on the RDMA port
 *   mute        takes the request and does not answer it
 *   silent      accepts as we would, and then says nothing
 *   bare        accepts without private data
 *   noise       accepts with private data that is noise
 *   reject      rejects with noise
 *   redirect    speaks the protocol, and answers each CLAIM with a redirect to PORT + 1
 *   squat       speaks the protocol, says CLAIM_OK and ENTER_OK to everything
 * cm_peer noise FROM TO PORT   requests of all lengths, all noise, and half of them with our magic
 * cm_peer claim PORT OWN CLAIM...
 *   a link at the RDMA port for the TCP connection OWN, as "10.0.0.1:40000>10.0.0.2:80"; then claims
 *   the others on it
 *
 * Prints one JSON object per line. For tests/lab.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <rdma/rdma_cma.h>
#include <rdma/rdma_verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "rsock/greet.h"
#include "rsock/reason.h"
#include "rsock/wire.h"

#define DEPTH 64

struct peer {
	struct rdma_cm_id *id;
	struct ibv_mr *mr;
	uint8_t recv[DEPTH][RS_MSG_MAX];
	uint8_t send[DEPTH][RS_MSG_MAX];
	unsigned int sent;
	uint8_t process[16];
};

static struct rdma_event_channel *channel;

static void die(const char *what)
{
	printf("{\"died\": \"%s: %s\"}\n", what, strerror(errno));
	exit(1);
}

static struct peer *make_peer(struct rdma_cm_id *id)
{
	struct ibv_qp_init_attr attr = {
		.qp_type = IBV_QPT_RC,
		.cap = { .max_send_wr = DEPTH,
			 .max_recv_wr = DEPTH,
			 .max_send_sge = 1,
			 .max_recv_sge = 1 },
	};
	struct peer *p = aligned_alloc(4096, (sizeof(*p) + 4095) & ~4095ul);

	if (!p)
		die("memory");
	memset(p, 0, sizeof(*p));
	p->id = id;
	if (getrandom(p->process, sizeof(p->process), 0) < 0 ||
	    rdma_create_qp(id, NULL, &attr) != 0)
		die("rdma_create_qp");
	p->mr = ibv_reg_mr(id->pd, p, sizeof(*p), IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
	if (!p->mr)
		die("ibv_reg_mr");
	for (size_t i = 0; i < DEPTH; i++)
		if (rdma_post_recv(id, p->recv[i], p->recv[i], RS_MSG_MAX, p->mr) != 0)
			die("rdma_post_recv");
	return p;
}

static void say(struct peer *p, const struct rs_msg *m)
{
	uint8_t *buf = p->send[p->sent++ % DEPTH];
	size_t len = rs_msg_encode(m, buf);
	struct ibv_wc wc;

	if (rdma_post_send(p->id, NULL, buf, len, p->mr, IBV_SEND_SIGNALED) != 0 ||
	    rdma_get_send_comp(p->id, &wc) <= 0)
		die("rdma_post_send");
}

/* The next message; false: the queue pair is broken. Anything else that comes is passed over. */
static int hear(struct peer *p, struct rs_msg *m)
{
	struct ibv_wc wc;

	for (;;) {
		uint8_t *buf;
		int r;

		if (rdma_get_recv_comp(p->id, &wc) <= 0 || wc.status != IBV_WC_SUCCESS)
			return 0;
		buf = (uint8_t *)(uintptr_t)wc.wr_id;
		r = wc.opcode == IBV_WC_RECV ? rs_msg_decode(buf, wc.byte_len, m) : -1;
		if (rdma_post_recv(p->id, buf, buf, RS_MSG_MAX, p->mr) != 0)
			return 0;
		if (r == 0)
			return 1;
	}
}

static struct rs_greet greeting(const struct peer *p)
{
	struct rs_greet g = { .ring_shift = 18, .stream_shift = 14 };

	memcpy(g.process, p->process, sizeof(g.process));
	memcpy(g.nonce, p->process + 8, sizeof(g.nonce));
	return g;
}

static struct rs_msg hello(const struct peer *p)
{
	struct rs_msg m = { .type = RS_MSG_HELLO, .features = RS_FEATURE_RDMA, .slots = 256 };

	m.tier_shift[0] = 18;
	memcpy(m.process, p->process, sizeof(m.process));
	return m;
}

/* ---- listening ---- */

static void talk(struct peer *p, uint16_t port, const char *how)
{
	struct rs_msg m, a;
	uint32_t theirs = 0;

	while (hear(p, &m)) {
		memset(&a, 0, sizeof(a));
		switch (m.type) {
		case RS_MSG_HELLO:
			a = hello(p);
			break;
		case RS_MSG_CLAIM:
			theirs = m.from;
			a.type = RS_MSG_CLAIM_NO;
			a.id = m.from;
			a.code = RS_CLAIM_REDIRECT;
			a.port = (uint16_t)(port + 1);
			if (strcmp(how, "redirect") == 0)
				break;
			a.type = RS_MSG_CLAIM_OK;
			a.block = (uintptr_t)p;
			a.block_key = p->mr->rkey;
			break;
		case RS_MSG_ENTER:
			a = m;
			a.type = RS_MSG_ENTER_OK;
			a.id = theirs;
			break;
		default:
			break;
		}
		printf("{\"heard\": %u, \"said\": %u}\n", m.type, a.type);
		if (a.type)
			say(p, &a);
	}
	printf("{\"link\": \"over\"}\n");
}

static void answer(struct rdma_cm_id *id, const uint8_t *request, uint16_t port, const char *how)
{
	uint8_t bytes[56];
	struct rdma_conn_param param = { .rnr_retry_count = 7, .private_data = bytes };
	struct rs_greet g;
	struct peer *p;

	printf("{\"request\": true}\n");
	if (getrandom(bytes, sizeof(bytes), 0) < 0 || strcmp(how, "mute") == 0)
		return;
	if (strcmp(how, "reject") == 0) {
		rdma_reject(id, bytes, sizeof(bytes));
		return;
	}
	p = make_peer(id);
	g = greeting(p);
	param.private_data_len = sizeof(bytes);
	if (strcmp(how, "bare") == 0) {
		param.private_data_len = 0;
	} else if (strcmp(how, "noise") != 0) {
		rs_greet_reply(&g, NULL, request, bytes);
		param.private_data_len = RS_GREET_REPLY_LEN;
	}
	if (rdma_accept(id, &param) != 0)
		die("rdma_accept");
	if (strcmp(how, "redirect") == 0 || strcmp(how, "squat") == 0)
		talk(p, port, how);
}

static int listening(uint16_t port, const char *how)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	struct rdma_cm_id *id;
	struct rdma_cm_event *ev;

	if (rdma_create_id(channel, &id, NULL, RDMA_PS_TCP) != 0 ||
	    rdma_bind_addr(id, (struct sockaddr *)&any) != 0 || rdma_listen(id, 10) != 0)
		die("listen");
	printf("{\"listening\": %u}\n", port);
	while (rdma_get_cm_event(channel, &ev) == 0) {
		uint8_t request[RS_GREET_REQUEST_LEN] = { 0 };
		struct rdma_cm_id *from = ev->id;
		int kind = ev->event;

		if (kind == RDMA_CM_EVENT_CONNECT_REQUEST && ev->param.conn.private_data)
			memcpy(request, ev->param.conn.private_data,
			       ev->param.conn.private_data_len < sizeof(request)
				       ? ev->param.conn.private_data_len
				       : sizeof(request));
		rdma_ack_cm_event(ev);
		if (kind == RDMA_CM_EVENT_CONNECT_REQUEST)
			answer(from, request, port, how);
	}
	return 0;
}

/* ---- connecting ---- */

static struct rdma_cm_event *next(void)
{
	struct rdma_cm_event *ev;

	if (rdma_get_cm_event(channel, &ev) != 0)
		die("rdma_get_cm_event");
	return ev;
}

static void expect(enum rdma_cm_event_type kind)
{
	struct rdma_cm_event *ev = next();

	if (ev->event != kind) {
		errno = EPROTO;
		die(rdma_event_str(ev->event));
	}
	rdma_ack_cm_event(ev);
}

/* An id on its way to the port. */
static struct rdma_cm_id *toward(const char *from, const char *to, uint16_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET },
			   b = { .sin_family = AF_INET, .sin_port = htons(port) };
	struct rdma_cm_id *id;

	if (inet_pton(AF_INET, from, &a.sin_addr) != 1 || inet_pton(AF_INET, to, &b.sin_addr) != 1)
		die("address");
	if (rdma_create_id(channel, &id, NULL, RDMA_PS_TCP) != 0 ||
	    rdma_resolve_addr(id, (struct sockaddr *)&a, (struct sockaddr *)&b, 2000) != 0)
		die("rdma_resolve_addr");
	expect(RDMA_CM_EVENT_ADDR_RESOLVED);
	if (rdma_resolve_route(id, 2000) != 0)
		die("rdma_resolve_route");
	expect(RDMA_CM_EVENT_ROUTE_RESOLVED);
	return id;
}

/* The code of the reject; 0: it was accepted; -1: a reject without a word. */
static int try(struct peer *p, const void *data, size_t len)
{
	struct rdma_conn_param param = {
		.private_data = len ? data : NULL,
		.private_data_len = (uint8_t)len,
		.retry_count = 6,
		.rnr_retry_count = 7,
	};
	struct rdma_cm_event *ev;
	int code = 0;

	if (rdma_connect(p->id, &param) != 0)
		die("rdma_connect");
	ev = next();
	if (ev->event == RDMA_CM_EVENT_REJECTED)
		code = rs_greet_reject_decode(ev->param.conn.private_data,
					      ev->param.conn.private_data_len);
	else if (ev->event != RDMA_CM_EVENT_ESTABLISHED)
		code = -2;
	rdma_ack_cm_event(ev);
	return code;
}

static void unmake(struct peer *p, int connected)
{
	if (connected && rdma_disconnect(p->id) == 0)
		rdma_ack_cm_event(next());
	rdma_destroy_qp(p->id);
	ibv_dereg_mr(p->mr);
	rdma_destroy_id(p->id);
	free(p);
}

static int noise(const char *from, const char *to, uint16_t port)
{
	int accepted = 0, unanswered = 0, codes = 0;

	for (size_t len = 0; len <= RS_GREET_REQUEST_LEN; len++)
		for (int ours = 0; ours < 2; ours++) {
			uint8_t bytes[RS_GREET_REQUEST_LEN];
			struct peer *p = make_peer(toward(from, to, port));
			int code;

			if (getrandom(bytes, sizeof(bytes), 0) < 0)
				die("getrandom");
			if (ours)
				memcpy(bytes, "RKRD\1\1\x12\x0e", 8);
			code = try(p, bytes, len);
			accepted += code == 0;
			unanswered += code == -2;
			codes += code > 0;
			unmake(p, code == 0);
		}
	printf("{\"accepted\": %d, \"unanswered\": %d, \"codes\": %d}\n", accepted, unanswered,
	       codes);
	return 0;
}

/* "10.0.0.1:40000>10.0.0.2:80" */
static struct rs_tuple tuple(const char *text)
{
	struct rs_tuple t = { .family = 4 };
	unsigned int cp, sp;
	char a[32], b[32];

	if (sscanf(text, "%31[0-9.]:%u>%31[0-9.]:%u", a, &cp, b, &sp) != 4 ||
	    inet_pton(AF_INET, a, t.client_ip) != 1 || inet_pton(AF_INET, b, t.server_ip) != 1) {
		errno = EINVAL;
		die(text);
	}
	t.client_port = (uint16_t)cp;
	t.server_port = (uint16_t)sp;
	return t;
}

static int claim(uint16_t port, int count, char **claims)
{
	uint8_t bytes[RS_GREET_REQUEST_LEN];
	struct rs_tuple own = tuple(claims[0]);
	char from[INET_ADDRSTRLEN], to[INET_ADDRSTRLEN];
	struct rs_greet g;
	struct rs_msg m;
	struct peer *p;
	int code;

	inet_ntop(AF_INET, own.client_ip, from, sizeof(from));
	inet_ntop(AF_INET, own.server_ip, to, sizeof(to));
	p = make_peer(toward(from, to, port));
	g = greeting(p);
	g.tuple = own;
	rs_greet_request(&g, NULL, bytes);
	code = try(p, bytes, sizeof(bytes));
	printf("{\"connect\": %d}\n", code);
	if (code != 0)
		return 0;
	m = hello(p);
	say(p, &m);
	if (!hear(p, &m))
		return 0;
	for (int i = 1; i < count; i++) {
		struct rs_msg ask = { .type = RS_MSG_CLAIM, .from = (uint32_t)i };

		ask.tuple = tuple(claims[i]);
		say(p, &ask);
		if (!hear(p, &m))
			break;
		printf("{\"claim\": \"%s\", \"type\": %u, \"code\": %u, \"reason\": \"%s\"}\n",
		       claims[i], m.type, m.code, rs_reason_word(m.reason));
	}
	unmake(p, 1);
	return 0;
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	channel = rdma_create_event_channel();
	if (!channel)
		die("rdma_create_event_channel");
	if (argc == 4 && strcmp(argv[1], "listen") == 0)
		return listening((uint16_t)atoi(argv[2]), argv[3]);
	if (argc == 5 && strcmp(argv[1], "noise") == 0)
		return noise(argv[2], argv[3], (uint16_t)atoi(argv[4]));
	if (argc >= 4 && strcmp(argv[1], "claim") == 0)
		return claim((uint16_t)atoi(argv[2]), argc - 3, argv + 3);
	fprintf(stderr, "usage: see the head of cm_peer.c\n");
	return 2;
}
