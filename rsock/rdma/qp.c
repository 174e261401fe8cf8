/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * qp.c - a queue pair: its resources, and what it sends and receives
 */
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "rsock/rdma/advice.h"
#include "rsock/rdma/iwarp.h"
#include "rsock/rdma/opened.h"
#include "rsock/rdma/verbs.h"
#include "rsock/wire.h"

#define SEND_DEPTH 256u
#define RECV_DEPTH 512u
#define INLINE_MAX 64u
/*
 * 4.096 us * 2^15 = 134 ms until the first retry; with the RETRIES of cm.c a dead path is known within a
 * second. It is left for good, so what passes by itself should not look like one: a host that gets no CPU, a
 * switch that converges. (The CM's own choice, 19, takes 15 seconds.) IB spec C9-140.
 */
#define ACK_TIMEOUT 15
#define RNR_TIMER 12 /* 0.64 ms until a sender that found no receive buffer tries again */

_Static_assert(RECV_DEPTH % RS_QP_RECYCLE == 0, "they are posted together");

/* ---- making ---- */

/* Posts the idle receive buffers. */
static int post_recvs(struct rs_qp *qp)
{
	struct ibv_recv_wr *bad, wr[RS_QP_RECYCLE];
	struct ibv_sge sge[RS_QP_RECYCLE];
	uint32_t n = qp->nidle;

	for (uint32_t i = 0; i < n; i++) {
		sge[i] = (struct ibv_sge){
			.addr = (uintptr_t)qp->bytes + qp->idle[i] * RS_MSG_MAX,
			.length = RS_MSG_MAX,
			.lkey = qp->mr->lkey,
		};
		wr[i] = (struct ibv_recv_wr){ .wr_id = qp->idle[i],
					      .next = i + 1 < n ? &wr[i + 1] : NULL,
					      .sg_list = &sge[i],
					      .num_sge = 1 };
	}
	qp->nidle = 0;
	return n ? ibv_post_recv(qp->id->qp, wr, &bad) : 0;
}

/* One buffer is free again: 0, or, when that many are, as post_recvs(). */
static int recycle(struct rs_qp *qp, uint64_t index)
{
	qp->idle[qp->nidle++] = (uint16_t)index;
	return qp->nidle == RS_QP_RECYCLE ? post_recvs(qp) : 0;
}

#define BYTES ((size_t)(RECV_DEPTH + SEND_DEPTH) * RS_MSG_MAX)

void rs_qp_unmake(struct rs_qp *qp)
{
	if (qp->id->qp)
		rdma_destroy_qp(qp->id);
	if (qp->mr)
		ibv_dereg_mr(qp->mr);
	if (qp->pd)
		ibv_dealloc_pd(qp->pd);
	/* Acknowledged together: each would cost a lock and a look for waiters, and the only one is this. */
	if (qp->unacked)
		ibv_ack_cq_events(qp->cq, qp->unacked);
	if (qp->cq)
		ibv_destroy_cq(qp->cq);
	if (qp->channel)
		ibv_destroy_comp_channel(qp->channel);
	if (qp->bytes)
		munmap(qp->bytes, BYTES);
	qp->mr = NULL;
	qp->pd = NULL;
	qp->cq = NULL;
	qp->unacked = 0;
	qp->channel = NULL;
	qp->bytes = NULL;
}

int rs_qp_bound(struct rs_qp *qp)
{
	if (qp->device)
		return 0;
	if (!qp->id->verbs)
		return -ENODEV;
	qp->device = rs_opened_use(qp->id->verbs);
	return qp->device ? 0 : -ENOBUFS;
}

int rs_qp_make(struct rs_qp *qp)
{
	struct ibv_qp_init_attr attr = {
		.qp_context = qp,
		.qp_type = IBV_QPT_RC,
		.cap = { .max_send_wr = SEND_DEPTH,
			 .max_recv_wr = RECV_DEPTH,
			 .max_send_sge = 1,
			 .max_recv_sge = 1,
			 .max_inline_data = INLINE_MAX },
	};
	uint8_t timeout = ACK_TIMEOUT;
	const char *doing = "allocating a protection domain";
	size_t size = 0;
	void *p;
	int r = rs_qp_bound(qp);

	if (r != 0)
		return r;
	errno = 0;
	qp->iwarp = qp->id->verbs->device->transport_type == IBV_TRANSPORT_IWARP;
	qp->credits.depth = RECV_DEPTH;
	qp->write = (struct ibv_send_wr){ .sg_list = &qp->write_sge,
					  .num_sge = 1,
					  .opcode = IBV_WR_RDMA_WRITE_WITH_IMM };
	/* Of its own: what a peer may write is the memory of its own link, not that of others. */
	qp->pd = ibv_alloc_pd(qp->id->verbs);
	if (!qp->pd)
		goto fail;
	doing = "creating a completion queue";
	qp->channel = ibv_create_comp_channel(qp->id->verbs);
	if (!qp->channel)
		goto fail;
	qp->channel->fd = rs_verbs_host.hide(qp->channel->fd);
	rs_verbs_nonblocking(qp->channel->fd);
	qp->cq = ibv_create_cq(qp->id->verbs, SEND_DEPTH + RECV_DEPTH, qp, qp->channel, 0);
	if (!qp->cq)
		goto fail;
	/* Shared: what a device knows by its physical address must not move when we fork. */
	p = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		goto fail;
	qp->bytes = p;
	attr.send_cq = qp->cq;
	attr.recv_cq = qp->cq;
	doing = "creating a queue pair";
	rdma_set_option(qp->id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout,
			sizeof(timeout));
	if (rdma_create_qp(qp->id, qp->pd, &attr) != 0)
		goto fail;
	doing = "registering memory";
	size = BYTES;
	qp->mr = ibv_reg_mr(qp->pd, qp->bytes, BYTES, IBV_ACCESS_LOCAL_WRITE);
	if (!qp->mr)
		goto fail;
	doing = "setting up a queue pair";
	size = 0;
	qp->nidle = 0;
	for (uint64_t i = 0; i < RECV_DEPTH; i++)
		if (recycle(qp, i) != 0)
			goto fail;
	if (ibv_req_notify_cq(qp->cq, 0) != 0)
		goto fail;
	return 0;
fail:
	r = rs_advice(&rs_verbs_host, doing, size, errno ? errno : EIO);
	rs_qp_unmake(qp);
	return r;
}

/* The CM sets 0, which stands for 655 ms (IB spec 9.7.5.2.8): that long would a full queue stop us. */
void rs_qp_rnr_timer(struct rs_qp *qp)
{
	struct ibv_qp_attr attr = { .min_rnr_timer = RNR_TIMER };

	ibv_modify_qp(qp->id->qp, &attr, IBV_QP_MIN_RNR_TIMER); /* else it is slow */
}

/* ---- data ---- */

int rs_qp_map(struct rs_qp *qp, struct rs_rdma_mem *m, bool remote)
{
	unsigned int access =
		IBV_ACCESS_LOCAL_WRITE | (remote ? (unsigned int)IBV_ACCESS_REMOTE_WRITE : 0);
	struct ibv_mr *mr = ibv_reg_mr(qp->pd, m->addr, m->len, access);

	if (!mr)
		return rs_advice(&rs_verbs_host, "registering memory", m->len, errno);
	m->mr = mr;
	m->lkey = mr->lkey;
	m->rkey = mr->rkey;
	return 0;
}

void rs_qp_unmap(struct rs_rdma_mem *m)
{
	ibv_dereg_mr(m->mr);
}

static uint32_t in_queue(const struct rs_qp *qp)
{
	return qp->sq_posted - __atomic_load_n(&qp->sq_done, __ATOMIC_SEQ_CST);
}

static bool has_room(const struct rs_qp *qp)
{
	/* On iWARP a write and its note go together. */
	return in_queue(qp) + qp->iwarp < SEND_DEPTH &&
	       (!qp->iwarp || rs_credits_allow(&qp->credits, false));
}

/* Says so first, looks again then: rs_qp_poll() does it the other way round. */
static bool is_full(struct rs_qp *qp)
{
	if (has_room(qp))
		return false;
	__atomic_store_n(&qp->full, true, __ATOMIC_SEQ_CST);
	return !has_room(qp);
}

static __always_inline void count(struct rs_qp *qp, struct ibv_send_wr *wr)
{
	if (++qp->sq_unsignaled == RS_RDMA_SIGNAL_EVERY) {
		wr->send_flags |= IBV_SEND_SIGNALED;
		wr->wr_id = (uint64_t)1 << 63 | qp->sq_unsignaled;
		qp->sq_unsignaled = 0;
	}
	if (wr->opcode == IBV_WR_SEND)
		__atomic_fetch_add(&qp->credits.sent, 1, __ATOMIC_SEQ_CST);
	qp->sq_posted++;
}

/*
 * What the provider calls between these two is no cancellation point of the program's thread. The flag
 * is the host's, or NULL; `old`: what it was, or pthread_setcancelstate() has said.
 */
static inline bool *quiet_begin(int *old)
{
	bool *flag;

	if (!rs_verbs_host.own_calls) {
		pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, old);
		return NULL;
	}
	flag = rs_verbs_host.own_calls();
	*old = *flag;
	*flag = true;
	return flag;
}

static inline void quiet_end(bool *flag, int old)
{
	if (flag)
		*flag = old;
	else
		pthread_setcancelstate(old, NULL);
}

/* What was counted, and there is room for. */
static __always_inline int post(struct rs_qp *qp, struct ibv_send_wr *wr)
{
	struct ibv_send_wr *bad;
	bool *flag;
	int old, r;

	if (__atomic_load_n(&qp->broken, __ATOMIC_RELAXED))
		return -EPIPE;
	flag = quiet_begin(&old);
	r = ibv_post_send(qp->id->qp, wr, &bad);
	quiet_end(flag, old);
	if (r != 0) {
		__atomic_store_n(&qp->broken, true, __ATOMIC_RELAXED);
		return -EPIPE;
	}
	return 0;
}

int rs_qp_post_msg(struct rs_qp *qp, const void *bytes, size_t len)
{
	uint8_t *buf = qp->bytes + (size_t)(RECV_DEPTH + qp->sq_msg) * RS_MSG_MAX;
	struct ibv_sge sge = { (uintptr_t)buf, (uint32_t)len, qp->mr->lkey };
	struct ibv_send_wr wr = { .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND };
	int r;

	if (is_full(qp))
		return -EAGAIN;
	/* The buffer's last use is SEND_DEPTH messages ago: complete, or there were no room. */
	memcpy(buf, bytes, len);
	count(qp, &wr);
	r = post(qp, &wr);
	if (r == 0)
		qp->sq_msg = (qp->sq_msg + 1) % SEND_DEPTH;
	return r;
}

/* The note of iWARP that goes with `wr`, if any. `bytes` must stay until post(). */
static struct ibv_send_wr note(struct rs_qp *qp, uint8_t bytes[RS_NOTE_LEN], struct ibv_sge *sge,
			       uint32_t imm)
{
	uint32_t took = __atomic_load_n(&qp->credits.took, __ATOMIC_SEQ_CST);

	__atomic_store_n(&qp->credits.told, took, __ATOMIC_RELAXED);
	rs_note_encode(bytes, imm, took);
	*sge = (struct ibv_sge){ (uintptr_t)bytes, RS_NOTE_LEN, 0 };
	return (struct ibv_send_wr){
		.sg_list = sge, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_INLINE
	};
}

uint32_t rs_qp_posted(struct rs_qp *qp)
{
	return qp->sq_posted;
}

static bool is_pending(const struct rs_qp *qp, uint32_t n)
{
	return (int32_t)(n - __atomic_load_n(&qp->sq_done, __ATOMIC_SEQ_CST)) > 0;
}

/* As is_full(). */
bool rs_qp_pending(struct rs_qp *qp, uint32_t n)
{
	if (!is_pending(qp, n))
		return false;
	__atomic_store_n(&qp->full, true, __ATOMIC_SEQ_CST);
	return is_pending(qp, n);
}

int rs_qp_settle(struct rs_qp *qp)
{
	uint8_t bytes[RS_NOTE_LEN];
	struct ibv_send_wr wr;
	struct ibv_sge sge;

	if (!qp->iwarp || !rs_credits_owed(&qp->credits))
		return 0;
	/* Full of what? Of notes that tell the same. */
	if (in_queue(qp) >= SEND_DEPTH || !rs_credits_allow(&qp->credits, true))
		return -EAGAIN;
	wr = note(qp, bytes, &sge, RS_NOTE_NONE);
	count(qp, &wr);
	return post(qp, &wr);
}

/* A write without immediate data, and the note that carries them. */
static __attribute__((noinline)) int post_iwarp(struct rs_qp *qp, uint32_t imm)
{
	struct ibv_send_wr write = qp->write, behind;
	uint8_t bytes[RS_NOTE_LEN];
	struct ibv_sge sge;

	behind = note(qp, bytes, &sge, imm);
	write.opcode = IBV_WR_RDMA_WRITE;
	write.next = &behind;
	count(qp, &write);
	count(qp, &behind);
	return post(qp, &write);
}

int rs_qp_post_write(struct rs_qp *qp, const void *from, uint32_t len, uint32_t lkey, uint64_t to,
		     uint32_t rkey, uint32_t imm)
{
	struct ibv_send_wr *wr = &qp->write;

	if (is_full(qp))
		return -EAGAIN;
	/* What never changes is in it (rs_qp_make()). */
	qp->write_sge = (struct ibv_sge){ (uintptr_t)from, len, lkey };
	wr->wr_id = 0;
	wr->send_flags = len <= INLINE_MAX ? IBV_SEND_INLINE : 0;
	wr->imm_data = htonl(imm);
	wr->wr.rdma.remote_addr = to;
	wr->wr.rdma.rkey = rkey;
	if (__builtin_expect(qp->iwarp, 0))
		return post_iwarp(qp, imm);
	count(qp, wr);
	return post(qp, wr);
}

static void breaks(struct rs_qp *qp, enum ibv_wc_status why, rs_rdma_done_fn fn, void *arg)
{
	char text[128];

	if (__atomic_exchange_n(&qp->broken, true, __ATOMIC_RELAXED))
		return;
	/* Flushed: the queue pair was in error before, and something else tells why. */
	if (why != IBV_WC_WR_FLUSH_ERR) {
		snprintf(text, sizeof(text), "a queue pair has failed: %s", ibv_wc_status_str(why));
		rs_verbs_host.log(text);
	}
	fn(arg, &(struct rs_rdma_done){ .kind = RS_RDMA_BROKEN });
}

/* One that has completed. */
static __always_inline void take(struct rs_qp *qp, const struct ibv_wc *wc, rs_rdma_done_fn fn,
				 void *arg)
{
	struct rs_rdma_done d = { 0 };

	if (wc->status != IBV_WC_SUCCESS) {
		breaks(qp, wc->status, fn, arg);
		return;
	}
	if (wc->wr_id >> 63) {
		__atomic_store_n(&qp->sq_done, qp->sq_done + (uint32_t)wc->wr_id, __ATOMIC_SEQ_CST);
		if (!__atomic_exchange_n(&qp->full, false, __ATOMIC_SEQ_CST))
			return;
		d.kind = RS_RDMA_ROOM;
		fn(arg, &d);
		return;
	}
	if (wc->opcode == IBV_WC_RECV_RDMA_WITH_IMM) {
		d.kind = RS_RDMA_DATA;
		d.imm = ntohl(wc->imm_data);
	} else if (qp->iwarp && wc->byte_len == RS_NOTE_LEN) {
		d.kind = RS_RDMA_DATA;
		d.imm = rs_note_take(&qp->credits, qp->bytes + wc->wr_id * RS_MSG_MAX);
		if (__atomic_exchange_n(&qp->full, false, __ATOMIC_SEQ_CST))
			fn(arg, &(struct rs_rdma_done){ .kind = RS_RDMA_ROOM });
	} else {
		d.kind = RS_RDMA_MSG;
		d.bytes = qp->bytes + wc->wr_id * RS_MSG_MAX;
		d.len = wc->byte_len;
	}
	if (!qp->iwarp || d.kind == RS_RDMA_MSG || d.imm != RS_NOTE_NONE)
		fn(arg, &d);
	if (recycle(qp, wc->wr_id) != 0)
		breaks(qp, IBV_WC_GENERAL_ERR, fn, arg);
	if (qp->nidle)
		return;
	__atomic_fetch_add(&qp->credits.took, RS_QP_RECYCLE, __ATOMIC_SEQ_CST);
	if (qp->iwarp && rs_credits_owed(&qp->credits))
		fn(arg, &(struct rs_rdma_done){ .kind = RS_RDMA_OWES });
}

int rs_qp_poll(struct rs_qp *qp, int max, rs_rdma_done_fn fn, void *arg)
{
	struct ibv_wc wc[16];
	int n = ibv_poll_cq(qp->cq, max < 16 ? max : 16, wc);

	for (int i = 0; i < n; i++)
		take(qp, &wc[i], fn, arg);
	return n > 0 ? n : 0;
}

int rs_qp_fd(struct rs_qp *qp)
{
	return qp->channel->fd;
}

void rs_qp_disarm(struct rs_qp *qp)
{
	struct ibv_cq *cq;
	void *context;
	int old;
	bool *flag = quiet_begin(&old);

	/* There is one for each arm() at most. */
	if (ibv_get_cq_event(qp->channel, &cq, &context) == 0)
		qp->unacked++;
	quiet_end(flag, old);
}

int rs_qp_arm(struct rs_qp *qp)
{
	int old, r;
	bool *flag = quiet_begin(&old);

	r = ibv_req_notify_cq(qp->cq, 0);
	quiet_end(flag, old);
	return r == 0 ? 0 : -EIO;
}
