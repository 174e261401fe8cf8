/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * verbs.c - queue pairs by libibverbs and librdmacm (librsock-rdma.so)
 */
#include <errno.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <netinet/in.h>
#include <rdma/rdma_cma.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "rsock/rdma.h"
#include "rsock/wire.h"

#define SEND_DEPTH 256u
#define RECV_DEPTH 512u
#define SIGNAL_EVERY 32u
#define INLINE_MAX 64u
#define DEVICES 16
#define RESOLVE_MS 1000
/*
 * 4.096 us * 2^14 = 67 ms until the first retry, six of them: a dead path is known in half a second
 * (the CM's own choice, 19, takes seven). 7 would mean "for ever" on some devices. IB spec C9-140.
 */
#define ACK_TIMEOUT 14
#define RETRIES 6
#define RNR_FOR_EVER 7 /* a stopped process must not look like a dead path */
#define REJECTED_BY_CONSUMER 28 /* IB spec, table 111: not "no such service id" (8) */
#define RNR_TIMER 12 /* 0.64 ms until a sender that found no receive buffer tries again */

struct rs_qp {
	struct rs_qp *next, **prev;
	struct rdma_cm_id *id;
	struct ibv_comp_channel *channel;
	struct ibv_cq *cq;
	void *user;
	bool broken;
	uint8_t *bytes; /* RECV_DEPTH receive buffers, then SEND_DEPTH send buffers */
	struct ibv_mr *mr;
	uint32_t sq_used, sq_unsignaled; /* work requests posted, since the last signaled one */
	uint32_t sq_msg; /* the next send buffer */
	bool full; /* somebody was told EAGAIN */
	uint8_t hello[RS_RDMA_HELLO_MAX];
	size_t hello_len;
};

static struct rs_rdma_host host;
static struct rdma_event_channel *events;
static struct ibv_context *devices[DEVICES];
static struct rs_qp *qps; /* those with a completion channel */

/* ---- opening ---- */

static void nonblocking(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static int rs_open(const struct rs_rdma_host *h, int *fd)
{
	struct ibv_device **list;
	int n = 0;

	host = *h;
	list = ibv_get_device_list(&n);
	if (list)
		ibv_free_device_list(list);
	if (!list || n == 0)
		return -ENODEV;
	ibv_fork_init(); /* fails only when something is registered already: not by us */
	events = rdma_create_event_channel();
	if (!events)
		return -errno;
	events->fd = host.hide(events->fd);
	nonblocking(events->fd);
	*fd = events->fd;
	return 0;
}

/* ---- queue pairs ---- */

static int post_recv(struct rs_qp *qp, uint64_t index)
{
	struct ibv_sge sge = {
		.addr = (uintptr_t)qp->bytes + index * RS_MSG_MAX,
		.length = RS_MSG_MAX,
		.lkey = qp->mr->lkey,
	};
	struct ibv_recv_wr *bad, wr = { .wr_id = index, .sg_list = &sge, .num_sge = 1 };

	return ibv_post_recv(qp->id->qp, &wr, &bad);
}

#define BYTES ((size_t)(RECV_DEPTH + SEND_DEPTH) * RS_MSG_MAX)

static void unmake(struct rs_qp *qp)
{
	if (qp->id->qp)
		rdma_destroy_qp(qp->id);
	if (qp->mr)
		ibv_dereg_mr(qp->mr);
	if (qp->cq)
		ibv_destroy_cq(qp->cq);
	if (qp->channel) {
		*qp->prev = qp->next;
		if (qp->next)
			qp->next->prev = qp->prev;
		ibv_destroy_comp_channel(qp->channel);
	}
	if (qp->bytes)
		munmap(qp->bytes, BYTES);
	qp->mr = NULL;
	qp->cq = NULL;
	qp->channel = NULL;
	qp->bytes = NULL;
}

/*
 * libibverbs opens two descriptors per device, which it shares between all ids. The numbers are in
 * public fields that it reads at each use (verbs.h, struct ibv_context), so they can be moved. Once
 * for each device: what host.hide() has moved it gives back as it is.
 */
static void hide_device(struct ibv_context *verbs)
{
	for (int i = 0; i < DEVICES && devices[i] != verbs; i++)
		if (!devices[i]) {
			devices[i] = verbs;
			break;
		}
	verbs->cmd_fd = host.hide(verbs->cmd_fd);
	verbs->async_fd = host.hide(verbs->async_fd);
}

/* Everything that needs the device; the id is bound to one by now. */
static int make(struct rs_qp *qp)
{
	struct ibv_qp_init_attr attr = {
		.qp_type = IBV_QPT_RC,
		.cap = { .max_send_wr = SEND_DEPTH,
			 .max_recv_wr = RECV_DEPTH,
			 .max_send_sge = 1,
			 .max_recv_sge = 1,
			 .max_inline_data = INLINE_MAX },
	};
	uint8_t timeout = ACK_TIMEOUT;
	void *p;

	hide_device(qp->id->verbs);
	qp->channel = ibv_create_comp_channel(qp->id->verbs);
	if (!qp->channel)
		goto fail;
	qp->next = qps;
	qp->prev = &qps;
	if (qps)
		qps->prev = &qp->next;
	qps = qp;
	qp->channel->fd = host.hide(qp->channel->fd);
	nonblocking(qp->channel->fd);
	qp->cq = ibv_create_cq(qp->id->verbs, SEND_DEPTH + RECV_DEPTH, NULL, qp->channel, 0);
	if (!qp->cq)
		goto fail;
	/* Shared: what a device knows by its physical address must not move when we fork. */
	p = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		goto fail;
	qp->bytes = p;
	attr.send_cq = qp->cq;
	attr.recv_cq = qp->cq;
	rdma_set_option(qp->id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout,
			sizeof(timeout));
	if (rdma_create_qp(qp->id, NULL, &attr) != 0)
		goto fail;
	qp->mr = ibv_reg_mr(qp->id->pd, qp->bytes, BYTES, IBV_ACCESS_LOCAL_WRITE);
	if (!qp->mr)
		goto fail;
	for (uint64_t i = 0; i < RECV_DEPTH; i++)
		if (post_recv(qp, i) != 0)
			goto fail;
	if (ibv_req_notify_cq(qp->cq, 0) != 0)
		goto fail;
	return 0;
fail : {
	int e = errno ? errno : EIO;

	unmake(qp);
	return -e;
}
}

static struct rdma_conn_param parameters(struct rs_qp *qp)
{
	return (struct rdma_conn_param){
		.private_data = qp->hello_len ? qp->hello : NULL,
		.private_data_len = (uint8_t)qp->hello_len,
		.retry_count = RETRIES,
		.rnr_retry_count = RNR_FOR_EVER,
	};
}

static struct rs_qp *rs_connect(const struct sockaddr *from, const struct sockaddr *to,
				const void *hello, size_t len, int *error)
{
	struct rs_qp *qp = calloc(1, sizeof(*qp));

	*error = ENOMEM;
	if (!qp || len > sizeof(qp->hello))
		goto fail;
	memcpy(qp->hello, hello, len);
	qp->hello_len = len;
	if (rdma_create_id(events, &qp->id, qp, RDMA_PS_TCP) != 0) {
		*error = errno;
		goto fail;
	}
	if (rdma_resolve_addr(qp->id, (struct sockaddr *)(uintptr_t)from,
			      (struct sockaddr *)(uintptr_t)to, RESOLVE_MS) != 0) {
		*error = errno;
		rdma_destroy_id(qp->id);
		goto fail;
	}
	return qp;
fail:
	free(qp);
	return NULL;
}

static int rs_accept(struct rs_qp *qp, const void *data, size_t len)
{
	struct rdma_conn_param param;
	int r = make(qp);

	if (r != 0)
		return r;
	if (len > sizeof(qp->hello))
		return -EINVAL;
	memcpy(qp->hello, data, len);
	qp->hello_len = len;
	param = parameters(qp);
	return rdma_accept(qp->id, &param) == 0 ? 0 : -errno;
}

static void rs_reject(struct rs_qp *qp, const void *data, size_t len)
{
	rdma_reject(qp->id, data, (uint8_t)len);
	unmake(qp);
	rdma_destroy_id(qp->id);
	free(qp);
}

static void rs_drop(struct rs_qp *qp)
{
	if (qp->cq)
		rdma_disconnect(qp->id);
	unmake(qp);
	rdma_destroy_id(qp->id);
	free(qp);
}

static int rs_listen(uint16_t *port, void **l)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(*port) };
	struct rdma_cm_id *id;

	if (rdma_create_id(events, &id, NULL, RDMA_PS_TCP) != 0)
		return -errno;
	/* The wildcard address of IPv6 takes both families (rdma_bind_addr(3)). */
	if (rdma_bind_addr(id, (struct sockaddr *)&any) != 0 || rdma_listen(id, 128) != 0) {
		int e = errno;

		rdma_destroy_id(id);
		return -e;
	}
	*port = ntohs(rdma_get_src_port(id));
	*l = id;
	return 0;
}

static void rs_unlisten(void *l)
{
	rdma_destroy_id(l);
}

/* The CM sets 0, which stands for 655 ms (IB spec 9.7.5.2.8): that long would a full queue stop us. */
static void rnr_timer(struct rs_qp *qp)
{
	struct ibv_qp_attr attr = { .min_rnr_timer = RNR_TIMER };

	ibv_modify_qp(qp->id->qp, &attr, IBV_QP_MIN_RNR_TIMER); /* else it is slow */
}

/* ---- events ---- */

static int refused(const struct rdma_cm_event *cm)
{
	if (cm->event != RDMA_CM_EVENT_REJECTED)
		return EHOSTUNREACH;
	return cm->status == REJECTED_BY_CONSUMER ? ECONNABORTED : ECONNREFUSED;
}

static void take_data(const struct rdma_cm_event *cm, struct rs_rdma_event *ev)
{
	ev->data_len = cm->param.conn.private_data ? cm->param.conn.private_data_len : 0;
	if (ev->data_len > sizeof(ev->data))
		ev->data_len = sizeof(ev->data);
	if (ev->data_len)
		memcpy(ev->data, cm->param.conn.private_data, ev->data_len);
}

static void request(struct rdma_cm_event *cm, struct rs_rdma_event *ev)
{
	struct rs_qp *qp = calloc(1, sizeof(*qp));

	ev->what = RS_RDMA_NOTHING;
	if (!qp) {
		rdma_reject(cm->id, NULL, 0);
		rdma_destroy_id(cm->id);
		return;
	}
	qp->id = cm->id;
	cm->id->context = qp;
	ev->what = RS_RDMA_REQUEST;
	ev->qp = qp;
	memcpy(&ev->local, rdma_get_local_addr(cm->id), sizeof(struct sockaddr_in6));
	memcpy(&ev->peer, rdma_get_peer_addr(cm->id), sizeof(struct sockaddr_in6));
}

/* The next step of a connect; an error becomes DOWN. */
static void step(struct rs_qp *qp, int r, struct rs_rdma_event *ev)
{
	ev->what = r == 0 ? RS_RDMA_NOTHING : RS_RDMA_DOWN;
	ev->qp = qp;
	ev->error = r < 0 ? -r : r;
}

static int rs_next_event(struct rs_rdma_event *ev)
{
	struct rdma_cm_event *cm, copy;
	struct rdma_conn_param param;
	struct rs_qp *qp;

	if (rdma_get_cm_event(events, &cm) != 0)
		return 0;
	memset(ev, 0, sizeof(*ev));
	ev->what = RS_RDMA_NOTHING;
	qp = cm->id->context;
	ev->qp = qp;
	if (cm->event == RDMA_CM_EVENT_CONNECT_REQUEST || cm->event == RDMA_CM_EVENT_ESTABLISHED ||
	    cm->event == RDMA_CM_EVENT_REJECTED)
		take_data(cm, ev);
	if (cm->event == RDMA_CM_EVENT_CONNECT_REQUEST)
		request(cm, ev);
	copy = *cm;
	rdma_ack_cm_event(cm);
	if (copy.event == RDMA_CM_EVENT_CONNECT_REQUEST || !qp)
		return 1;
	switch (copy.event) {
	case RDMA_CM_EVENT_ADDR_RESOLVED:
		step(qp, rdma_resolve_route(qp->id, RESOLVE_MS) == 0 ? 0 : errno, ev);
		break;
	case RDMA_CM_EVENT_ROUTE_RESOLVED:
		step(qp, make(qp), ev);
		if (ev->what == RS_RDMA_DOWN)
			break;
		param = parameters(qp);
		step(qp, rdma_connect(qp->id, &param) == 0 ? 0 : errno, ev);
		break;
	case RDMA_CM_EVENT_ESTABLISHED:
		rnr_timer(qp);
		ev->what = RS_RDMA_UP;
		break;
	case RDMA_CM_EVENT_ADDR_ERROR:
	case RDMA_CM_EVENT_ROUTE_ERROR:
	case RDMA_CM_EVENT_CONNECT_ERROR:
	case RDMA_CM_EVENT_UNREACHABLE:
	case RDMA_CM_EVENT_REJECTED:
		ev->what = RS_RDMA_DOWN;
		ev->error = refused(&copy);
		break;
	case RDMA_CM_EVENT_DISCONNECTED:
		ev->what = RS_RDMA_DOWN;
		ev->error = ENOTCONN;
		break;
	case RDMA_CM_EVENT_DEVICE_REMOVAL:
		ev->what = RS_RDMA_DOWN;
		ev->error = ENODEV;
		break;
	default:
		break;
	}
	return 1;
}

/* ---- data ---- */

static int rs_map(struct rs_qp *qp, struct rs_rdma_mem *m, bool remote)
{
	unsigned int access =
		IBV_ACCESS_LOCAL_WRITE | (remote ? (unsigned int)IBV_ACCESS_REMOTE_WRITE : 0);
	struct ibv_mr *mr = ibv_reg_mr(qp->id->pd, m->addr, m->len, access);

	if (!mr)
		return -errno;
	m->mr = mr;
	m->lkey = mr->lkey;
	m->rkey = mr->rkey;
	return 0;
}

static void rs_unmap(struct rs_rdma_mem *m)
{
	ibv_dereg_mr(m->mr);
}

static int post(struct rs_qp *qp, struct ibv_send_wr *wr)
{
	struct ibv_send_wr *bad;

	if (qp->broken)
		return -EPIPE;
	if (qp->sq_used == SEND_DEPTH) {
		qp->full = true;
		return -EAGAIN;
	}
	if (++qp->sq_unsignaled == SIGNAL_EVERY) {
		wr->send_flags |= IBV_SEND_SIGNALED;
		wr->wr_id = (uint64_t)1 << 63 | qp->sq_unsignaled;
		qp->sq_unsignaled = 0;
	}
	qp->sq_used++;
	if (ibv_post_send(qp->id->qp, wr, &bad) != 0) {
		qp->broken = true;
		return -EPIPE;
	}
	return 0;
}

static int rs_post_msg(struct rs_qp *qp, const void *bytes, size_t len)
{
	uint8_t *buf = qp->bytes + (size_t)(RECV_DEPTH + qp->sq_msg) * RS_MSG_MAX;
	struct ibv_sge sge = { (uintptr_t)buf, (uint32_t)len, qp->mr->lkey };
	struct ibv_send_wr wr = { .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND };
	int r;

	if (qp->sq_used == SEND_DEPTH) {
		qp->full = true;
		return -EAGAIN;
	}
	/* The buffer's last use is SEND_DEPTH messages ago: complete, or there were no room. */
	memcpy(buf, bytes, len);
	r = post(qp, &wr);
	if (r == 0)
		qp->sq_msg = (qp->sq_msg + 1) % SEND_DEPTH;
	return r;
}

static int rs_post_write(struct rs_qp *qp, const void *from, uint32_t len, uint32_t lkey,
			 uint64_t to, uint32_t rkey, uint32_t imm)
{
	struct ibv_sge sge = { (uintptr_t)from, len, lkey };
	struct ibv_send_wr wr = {
		.sg_list = &sge,
		.num_sge = len != 0,
		.opcode = imm == UINT32_MAX ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_WRITE_WITH_IMM,
		.send_flags = len <= INLINE_MAX ? IBV_SEND_INLINE : 0,
		.imm_data = htonl(imm),
		.wr.rdma = { .remote_addr = to, .rkey = rkey },
	};

	return post(qp, &wr);
}

static int rs_poll(struct rs_qp *qp, int max, rs_rdma_done_fn fn, void *arg)
{
	struct ibv_wc wc[16];
	int n = ibv_poll_cq(qp->cq, max < 16 ? max : 16, wc);

	for (int i = 0; i < n; i++) {
		struct rs_rdma_done d = { 0 };

		if (wc[i].status != IBV_WC_SUCCESS) {
			bool told = qp->broken;

			qp->broken = true;
			d.kind = RS_RDMA_BROKEN;
			if (!told)
				fn(arg, &d);
			continue;
		}
		if (wc[i].wr_id >> 63) {
			qp->sq_used -= (uint32_t)wc[i].wr_id;
			if (!qp->full)
				continue;
			qp->full = false;
			d.kind = RS_RDMA_ROOM;
			fn(arg, &d);
			continue;
		}
		if (wc[i].opcode == IBV_WC_RECV_RDMA_WITH_IMM) {
			d.kind = RS_RDMA_DATA;
			d.imm = ntohl(wc[i].imm_data);
		} else {
			d.kind = RS_RDMA_MSG;
			d.bytes = qp->bytes + wc[i].wr_id * RS_MSG_MAX;
			d.len = wc[i].byte_len;
		}
		fn(arg, &d);
		post_recv(qp, wc[i].wr_id);
	}
	return n > 0 ? n : 0;
}

static int rs_fd(struct rs_qp *qp)
{
	return qp->channel->fd;
}

static void rs_disarm(struct rs_qp *qp)
{
	struct ibv_cq *cq;
	void *context;

	while (ibv_get_cq_event(qp->channel, &cq, &context) == 0)
		ibv_ack_cq_events(cq, 1);
}

static int rs_arm(struct rs_qp *qp)
{
	return ibv_req_notify_cq(qp->cq, 0) == 0 ? 0 : -EIO;
}

/* The parent's, which the child would keep from going away with it. */
static void rs_forget(void)
{
	for (struct rs_qp *qp = qps; qp; qp = qp->next)
		host.close(qp->channel->fd);
	for (int i = 0; i < DEVICES && devices[i]; i++) {
		host.close(devices[i]->cmd_fd);
		host.close(devices[i]->async_fd);
	}
	if (events)
		host.close(events->fd);
}

static const char *rs_device(struct rs_qp *qp)
{
	return qp->id->verbs ? ibv_get_device_name(qp->id->verbs->device) : "";
}

static void rs_set_user(struct rs_qp *qp, void *user)
{
	qp->user = user;
}

static void *rs_user(struct rs_qp *qp)
{
	return qp->user;
}

__attribute__((visibility("default"))) const struct rs_rdma_ops rs_rdma_ops = {
	.abi = RS_RDMA_ABI,
	.open = rs_open,
	.next_event = rs_next_event,
	.listen = rs_listen,
	.unlisten = rs_unlisten,
	.connect = rs_connect,
	.accept = rs_accept,
	.reject = rs_reject,
	.drop = rs_drop,
	.set_user = rs_set_user,
	.user = rs_user,
	.map = rs_map,
	.unmap = rs_unmap,
	.post_msg = rs_post_msg,
	.post_write = rs_post_write,
	.poll = rs_poll,
	.fd = rs_fd,
	.disarm = rs_disarm,
	.arm = rs_arm,
	.device = rs_device,
	.forget = rs_forget,
};
