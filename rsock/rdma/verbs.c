/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * verbs.c - queue pairs by libibverbs and librdmacm (librsock-rdma.so)
 */
#include <errno.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <netinet/in.h>
#include <pthread.h>
#include <rdma/rdma_cma.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>

#include "rsock/rdma.h"
#include "rsock/rdma/advice.h"
#include "rsock/rdma/device.h"
#include "rsock/rdma/iwarp.h"
#include "rsock/rdma/opened.h"
#include "rsock/rdma/path.h"
#include "rsock/rdma/watch.h"
#include "rsock/sys.h"
#include "rsock/wire.h"

#define SEND_DEPTH 256u
#define RECV_DEPTH 512u
#define SIGNAL_EVERY 32u
#define INLINE_MAX 64u
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
	struct ibv_pd *pd;
	struct ibv_comp_channel *channel;
	struct ibv_cq *cq;
	void *user;
	bool broken;
	uint8_t *bytes; /* RECV_DEPTH receive buffers, then SEND_DEPTH send buffers */
	struct ibv_mr *mr;
	uint32_t sq_used; /* work requests posted, that are not known to be complete */
	uint32_t sq_unsignaled; /* posted since the last signaled one */
	uint32_t sq_msg; /* the next send buffer */
	bool full; /* somebody was told EAGAIN */
	bool iwarp;
	struct rs_credits credits; /* iWARP */
	uint8_t hello[RS_RDMA_HELLO_MAX];
	size_t hello_len;
	struct rs_opened *device; /* that the id is bound to; NULL: none yet */
	int failed; /* errno: DOWN is to be told; 0: no */
	bool told; /* DOWN was */
	struct rs_path path;
	char text[192]; /* of it */
};

static struct rs_rdma_host host;
static struct rdma_event_channel *events; /* NULL until there is a device */
static struct rs_qp *qps;
static int sources = -1; /* an epoll of all that next_event() reads */
static bool some_failed; /* a queue pair of the list has */

enum { FROM_WATCH = 1, FROM_CM }; /* epoll words; others are opened.h's */

/* ---- opening ---- */

static void nonblocking(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static int watch(int fd, uint64_t word)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = word };

	return (int)rs_sys4(SYS_epoll_ctl, sources, EPOLL_CTL_ADD, fd, &ev);
}

static int rs_open(const struct rs_rdma_host *h, int *fd)
{
	int news[2], r;

	host = *h;
	sources = (int)rs_sys1(SYS_epoll_create1, EPOLL_CLOEXEC);
	if (sources < 0)
		return sources;
	sources = host.hide(sources);
	r = rs_watch_open(&host, news);
	if (r == 0)
		r = watch(news[0], FROM_WATCH);
	if (r == 0 && news[1] >= 0)
		r = watch(news[1], FROM_WATCH);
	if (r != 0) {
		rs_watch_forget(&host);
		host.close(sources);
		return r;
	}
	rs_opened_init(&host, sources);
	ibv_fork_init(); /* fails only when something is registered already: not by us */
	*fd = sources;
	return 0;
}

static bool rs_usable(void)
{
	if (!rs_devices()->nports)
		rs_devices_forget();
	return rs_devices()->nports || rs_devices()->denied;
}

/* librdmacm has no event channel without a device. 0 or -errno. */
static int need_events(void)
{
	if (events)
		return 0;
	if (!rs_usable())
		return -ENODEV;
	errno = 0;
	events = rdma_create_event_channel();
	if (!events)
		return errno == ENODEV ? -ENODEV
				       : rs_advice(&host, "opening /dev/infiniband/rdma_cm", 0,
						   errno ? errno : EACCES);
	events->fd = host.hide(events->fd);
	nonblocking(events->fd);
	return watch(events->fd, FROM_CM);
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
	if (qp->pd)
		ibv_dealloc_pd(qp->pd);
	if (qp->cq)
		ibv_destroy_cq(qp->cq);
	if (qp->channel)
		ibv_destroy_comp_channel(qp->channel);
	if (qp->bytes)
		munmap(qp->bytes, BYTES);
	qp->mr = NULL;
	qp->pd = NULL;
	qp->cq = NULL;
	qp->channel = NULL;
	qp->bytes = NULL;
}

static void enlist(struct rs_qp *qp)
{
	qp->next = qps;
	qp->prev = &qps;
	if (qps)
		qps->prev = &qp->next;
	qps = qp;
}

static void unlist(struct rs_qp *qp)
{
	*qp->prev = qp->next;
	if (qp->next)
		qp->next->prev = qp->prev;
}

/* The id is bound to a device now. 0 or -errno. */
static int bound(struct rs_qp *qp)
{
	if (qp->device)
		return 0;
	if (!qp->id->verbs)
		return -ENODEV;
	qp->device = rs_opened_use(qp->id->verbs);
	return qp->device ? 0 : -ENOBUFS;
}

/*
 * What the CM has picked must be what the route asks for, or serve the route as well: two devices may be
 * behind one netdev. The path is that of the CM from here on.
 */
static int confirm(struct rs_qp *qp)
{
	const char *device = ibv_get_device_name(qp->id->verbs->device);
	const union ibv_gid *gid = &qp->id->route.addr.addr.ibaddr.sgid;
	struct rs_path p = qp->path;
	int r = 0;

	if (strcmp(p.device, device) != 0 || p.port != qp->id->port_num)
		r = rs_path_find(&host, rdma_get_local_addr(qp->id), rdma_get_peer_addr(qp->id),
				 device, qp->id->port_num, &p);
	/* librdmacm knows the GID only of kernels that tell it. */
	if (r == 0 && p.kind == RS_PORT_ROCE &&
	    (gid->global.subnet_prefix || gid->global.interface_id) &&
	    memcmp(gid->raw, p.gid, 16) != 0)
		r = -ENODEV;
	if (r != 0) {
		snprintf(qp->text, sizeof(qp->text),
			 "the RDMA CM takes %s port %u, which does not serve the route", device,
			 qp->id->port_num);
		host.log(qp->text);
		return r;
	}
	qp->path = p;
	rs_path_text(&p, qp->text, sizeof(qp->text));
	return 0;
}

/* Everything that needs the device; the id is bound to one by now. */
static int make(struct rs_qp *qp)
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
	int r = bound(qp);

	if (r != 0)
		return r;
	errno = 0;
	qp->iwarp = qp->id->verbs->device->transport_type == IBV_TRANSPORT_IWARP;
	qp->credits.depth = RECV_DEPTH;
	/* Of its own: what a peer may write is the memory of its own link, not that of others. */
	qp->pd = ibv_alloc_pd(qp->id->verbs);
	if (!qp->pd)
		goto fail;
	doing = "creating a completion queue";
	qp->channel = ibv_create_comp_channel(qp->id->verbs);
	if (!qp->channel)
		goto fail;
	qp->channel->fd = host.hide(qp->channel->fd);
	nonblocking(qp->channel->fd);
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
	for (uint64_t i = 0; i < RECV_DEPTH; i++)
		if (post_recv(qp, i) != 0)
			goto fail;
	if (ibv_req_notify_cq(qp->cq, 0) != 0)
		goto fail;
	return 0;
fail:
	r = rs_advice(&host, doing, size, errno ? errno : EIO);
	unmake(qp);
	return r;
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

static size_t address_len(const struct sockaddr *sa)
{
	return sa->sa_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

static void set_port(struct sockaddr_storage *sa, uint16_t port)
{
	if (sa->ss_family == AF_INET)
		((struct sockaddr_in *)sa)->sin_port = htons(port);
	else
		((struct sockaddr_in6 *)sa)->sin6_port = htons(port);
}

static uint16_t port_of(const struct sockaddr_storage *sa)
{
	return ntohs(sa->ss_family == AF_INET ? ((const struct sockaddr_in *)sa)->sin_port
					      : ((const struct sockaddr_in6 *)sa)->sin6_port);
}

static struct rs_qp *rs_connect(const struct sockaddr *from, const struct sockaddr *to,
				bool tcp_port, const void *hello, size_t len, int *error)
{
	struct rs_qp *qp = calloc(1, sizeof(*qp));
	struct sockaddr_storage here, there;
	int r = -ENOBUFS;

	if (!qp || len > sizeof(qp->hello))
		goto fail;
	memset(&here, 0, sizeof(here));
	memset(&there, 0, sizeof(there));
	memcpy(&here, from, address_len(from));
	memcpy(&there, to, address_len(to));
	rs_path_scope((struct sockaddr *)&here, (struct sockaddr *)&there);
	r = rs_path_find(&host, (struct sockaddr *)&here, (struct sockaddr *)&there, NULL, 0,
			 &qp->path);
	if (r == 0)
		r = need_events();
	if (r != 0)
		goto fail;
	if (tcp_port && qp->path.kind == RS_PORT_IWARP)
		set_port(&there, rs_rdma_iwarp_port(port_of(&there)));
	memcpy(qp->hello, hello, len);
	qp->hello_len = len;
	r = -1;
	if (rdma_create_id(events, &qp->id, qp, RDMA_PS_TCP) != 0)
		goto fail;
	if (rdma_resolve_addr(qp->id, (struct sockaddr *)&here, (struct sockaddr *)&there,
			      RESOLVE_MS) != 0) {
		int e = errno;

		rdma_destroy_id(qp->id);
		errno = e;
		goto fail;
	}
	enlist(qp);
	return qp;
fail:
	*error = r == -1 ? errno : -r;
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
	if (rs_path_find(&host, rdma_get_local_addr(qp->id), rdma_get_peer_addr(qp->id),
			 ibv_get_device_name(qp->id->verbs->device), qp->id->port_num,
			 &qp->path) == 0)
		rs_path_text(&qp->path, qp->text, sizeof(qp->text));
	else /* the peer's route is another than ours back */
		snprintf(qp->text, sizeof(qp->text), "%s port %u",
			 ibv_get_device_name(qp->id->verbs->device), qp->id->port_num);
	return rdma_accept(qp->id, &param) == 0 ? 0 : -errno;
}

static void rs_drop(struct rs_qp *qp)
{
	if (qp->cq)
		rdma_disconnect(qp->id);
	unmake(qp);
	unlist(qp);
	if (qp->device)
		rs_opened_unuse(qp->device);
	rdma_destroy_id(qp->id);
	free(qp);
}

static void rs_reject(struct rs_qp *qp, const void *data, size_t len)
{
	rdma_reject(qp->id, data, (uint8_t)len);
	unmake(qp);
	rs_drop(qp);
}

static bool any_iwarp(void)
{
	const struct rs_devices *d = rs_devices();

	for (uint32_t i = 0; i < d->nports; i++)
		if (d->ports[i].kind == RS_PORT_IWARP)
			return true;
	return false;
}

struct listener {
	struct rdma_cm_id *id[2]; /* one for both families, or, on iWARP, one each */
};

static int listen_on(struct sockaddr *any, bool one_family, struct rdma_cm_id **id)
{
	int on = one_family, e;

	if (rdma_create_id(events, id, NULL, RDMA_PS_TCP) != 0)
		return -errno;
	if (rdma_set_option(*id, RDMA_OPTION_ID, RDMA_OPTION_ID_AFONLY, &on, sizeof(on)) == 0 &&
	    rdma_bind_addr(*id, any) == 0 && rdma_listen(*id, 128) == 0)
		return 0;
	e = errno;
	rdma_destroy_id(*id);
	*id = NULL;
	return -e;
}

static int rs_listen(uint16_t *port, void **out)
{
	struct sockaddr_in6 any6 = { .sin6_family = AF_INET6 };
	struct sockaddr_in any4 = { .sin_family = AF_INET };
	struct listener *l;
	bool iwarp;
	int r = need_events();

	if (r != 0)
		return r;
	l = calloc(1, sizeof(*l));
	if (!l)
		return -ENOBUFS;
	iwarp = any_iwarp();
	/* On the TCP port itself an iWARP device would answer the TCP connections of other addresses. */
	if (*port && iwarp)
		*port = rs_rdma_iwarp_port(*port);
	any4.sin_port = htons(*port);
	/* The wildcard address of IPv6 takes both families (rdma_bind_addr(3)), but not on siw. */
	if (iwarp)
		r = listen_on((struct sockaddr *)&any4, true, &l->id[1]);
	any6.sin6_port = l->id[1] ? rdma_get_src_port(l->id[1]) : htons(*port);
	if (r == 0)
		r = listen_on((struct sockaddr *)&any6, iwarp, &l->id[0]);
	if (r != 0 && !l->id[1]) {
		free(l);
		return r;
	}
	*port = ntohs(any6.sin6_port ? any6.sin6_port : rdma_get_src_port(l->id[0]));
	*out = l;
	return 0;
}

static void rs_unlisten(void *listener)
{
	struct listener *l = listener;

	for (int i = 0; i < 2; i++)
		if (l->id[i])
			rdma_destroy_id(l->id[i]);
	free(l);
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
	enlist(qp);
	bound(qp); /* if it cannot be, make() says why */
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

/* Every queue pair of the device, or of its port, is DOWN; port 0: of all. */
static void fail_all(const struct rs_opened *device, uint32_t port, int error)
{
	for (struct rs_qp *qp = qps; qp; qp = qp->next)
		if (qp->device == device && (!port || qp->id->port_num == port) && !qp->failed) {
			qp->failed = error;
			some_failed = true;
		}
}

/* GIDs, LID or partitions of a port are others: who has lost its own cannot go on. */
static void fail_changed(const struct rs_opened *device, uint32_t port, bool lid)
{
	for (struct rs_qp *qp = qps; qp; qp = qp->next) {
		struct ibv_port_attr now;
		union ibv_gid gid;
		bool lost;

		if (qp->device != device || qp->id->port_num != port || !qp->id->qp ||
		    !qp->path.device[0] || qp->failed)
			continue;
		lost = ibv_query_port(qp->id->verbs, (uint8_t)port, &now) != 0 ||
		       now.state != IBV_PORT_ACTIVE;
		if (!lost && qp->path.kind == RS_PORT_ROCE)
			lost = ibv_query_gid(qp->id->verbs, (uint8_t)port, (int)qp->path.gid_index,
					     &gid) != 0 ||
			       memcmp(gid.raw, qp->path.gid, 16) != 0;
		else if (qp->path.kind == RS_PORT_IB)
			lost |= lid;
		if (lost) {
			qp->failed = ENETDOWN;
			some_failed = true;
		}
	}
}

static void removed(void)
{
	if (!rs_opened_check())
		return;
	for (struct rs_qp *qp = qps; qp; qp = qp->next)
		if (qp->device && rs_opened_gone(qp->device) && !qp->failed) {
			qp->failed = ENODEV;
			some_failed = true;
		}
}

/* A queue pair that has failed and that nobody was told of. */
static bool next_failed(struct rs_rdma_event *ev)
{
	if (!some_failed)
		return false;
	for (struct rs_qp *qp = qps; qp; qp = qp->next)
		if (qp->failed && !qp->told) {
			qp->told = true;
			ev->what = RS_RDMA_DOWN;
			ev->qp = qp;
			ev->error = qp->failed;
			return true;
		}
	some_failed = false;
	return false;
}

static void changed(struct rs_rdma_event *ev, const struct rs_changes *c)
{
	rs_path_forget(c->devices);
	if (c->devices)
		removed();
	ev->what = RS_RDMA_CHANGED;
	ev->prefix = c->prefix;
	ev->devices = c->devices;
}

static void async(struct rs_rdma_event *ev, const struct rs_async *a)
{
	struct rs_changes all = { .some = true, .devices = true };
	char text[128];

	if (!a->what)
		return;
	snprintf(text, sizeof(text), "RDMA device: %s", a->what);
	host.log(text);
	if (a->qp) {
		((struct rs_qp *)a->qp)->failed = EIO;
		some_failed = true;
		return;
	}
	if (a->changed)
		fail_changed(a->device, a->port, a->lid);
	else
		fail_all(a->device, a->port, ENETDOWN);
	changed(ev, &all);
}

/* What is ready; what the CM has is taken last, when it is known which devices have gone (opened.h). */
static bool look(struct rs_rdma_event *ev)
{
	struct epoll_event ready[40];
	struct rs_changes c;
	struct rs_async a;
	long n = rs_sys6(SYS_epoll_pwait, sources, (long)ready, 40, 0, 0, 8);
	bool cm = false;

	for (long i = 0; i < n; i++) {
		if (ready[i].data.u64 == FROM_CM) {
			cm = true;
		} else if (ready[i].data.u64 == FROM_WATCH) {
			rs_watch_read(&c);
			if (c.some)
				changed(ev, &c);
		} else if (rs_opened_event(ready[i].data.u64, &a)) {
			async(ev, &a);
		}
		if (ev->what != RS_RDMA_NOTHING)
			return false;
	}
	return cm;
}

static int rs_next_event(struct rs_rdma_event *ev)
{
	struct rdma_cm_event *cm, copy;
	struct rdma_conn_param param;
	struct rs_qp *qp;

	memset(ev, 0, sizeof(*ev));
	ev->what = RS_RDMA_NOTHING;
	if (next_failed(ev))
		return 1;
	if (!look(ev))
		return ev->what != RS_RDMA_NOTHING || some_failed;
	if (rdma_get_cm_event(events, &cm) != 0)
		return 0;
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
		step(qp, bound(qp), ev);
		if (ev->what == RS_RDMA_NOTHING)
			step(qp, confirm(qp), ev);
		if (ev->what == RS_RDMA_NOTHING)
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
		removed();
		if (qp->device)
			fail_all(qp->device, 0, ENODEV);
		ev->what = RS_RDMA_DOWN;
		ev->error = ENODEV;
		break;
	case RDMA_CM_EVENT_ADDR_CHANGE: /* a bond uses another slave */
		ev->what = RS_RDMA_DOWN;
		ev->error = ENETDOWN;
		break;
	default: /* TIMEWAIT_EXIT among them */
		break;
	}
	if (ev->what == RS_RDMA_DOWN)
		qp->told = true;
	return 1;
}

/* ---- data ---- */

static int rs_map(struct rs_qp *qp, struct rs_rdma_mem *m, bool remote)
{
	unsigned int access =
		IBV_ACCESS_LOCAL_WRITE | (remote ? (unsigned int)IBV_ACCESS_REMOTE_WRITE : 0);
	struct ibv_mr *mr = ibv_reg_mr(qp->pd, m->addr, m->len, access);

	if (!mr)
		return rs_advice(&host, "registering memory", m->len, errno);
	m->mr = mr;
	m->lkey = mr->lkey;
	m->rkey = mr->rkey;
	return 0;
}

static void rs_unmap(struct rs_rdma_mem *m)
{
	ibv_dereg_mr(m->mr);
}

static bool has_room(const struct rs_qp *qp)
{
	/* On iWARP a write and its note go together. */
	return __atomic_load_n(&qp->sq_used, __ATOMIC_SEQ_CST) + qp->iwarp < SEND_DEPTH &&
	       (!qp->iwarp || rs_credits_allow(&qp->credits, false));
}

/* Says so first, looks again then: rs_poll() does it the other way round. */
static bool is_full(struct rs_qp *qp)
{
	if (has_room(qp))
		return false;
	__atomic_store_n(&qp->full, true, __ATOMIC_SEQ_CST);
	return !has_room(qp);
}

/* All of a list, for which there is room. */
static int post(struct rs_qp *qp, struct ibv_send_wr *wr)
{
	struct ibv_send_wr *bad;
	int cancel, r;

	if (__atomic_load_n(&qp->broken, __ATOMIC_RELAXED))
		return -EPIPE;
	for (struct ibv_send_wr *w = wr; w; w = w->next) {
		if (++qp->sq_unsignaled == SIGNAL_EVERY) {
			w->send_flags |= IBV_SEND_SIGNALED;
			w->wr_id = (uint64_t)1 << 63 | qp->sq_unsignaled;
			qp->sq_unsignaled = 0;
		}
		if (w->opcode == IBV_WR_SEND)
			__atomic_fetch_add(&qp->credits.sent, 1, __ATOMIC_SEQ_CST);
		__atomic_fetch_add(&qp->sq_used, 1, __ATOMIC_SEQ_CST);
	}
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	r = ibv_post_send(qp->id->qp, wr, &bad);
	pthread_setcancelstate(cancel, NULL);
	if (r != 0) {
		__atomic_store_n(&qp->broken, true, __ATOMIC_RELAXED);
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

	if (is_full(qp))
		return -EAGAIN;
	/* The buffer's last use is SEND_DEPTH messages ago: complete, or there were no room. */
	memcpy(buf, bytes, len);
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

static int rs_settle(struct rs_qp *qp)
{
	uint8_t bytes[RS_NOTE_LEN];
	struct ibv_send_wr wr;
	struct ibv_sge sge;

	if (!qp->iwarp || !rs_credits_owed(&qp->credits))
		return 0;
	/* Full of what? Of notes that tell the same. */
	if (__atomic_load_n(&qp->sq_used, __ATOMIC_SEQ_CST) >= SEND_DEPTH ||
	    !rs_credits_allow(&qp->credits, true))
		return -EAGAIN;
	wr = note(qp, bytes, &sge, RS_NOTE_NONE);
	return post(qp, &wr);
}

static int rs_post_write(struct rs_qp *qp, const void *from, uint32_t len, uint32_t lkey,
			 uint64_t to, uint32_t rkey, uint32_t imm)
{
	struct ibv_sge sge = { (uintptr_t)from, len, lkey }, note_sge;
	uint8_t bytes[RS_NOTE_LEN];
	struct ibv_send_wr behind;
	struct ibv_send_wr wr = {
		.sg_list = &sge,
		.num_sge = len != 0,
		.opcode = imm == UINT32_MAX ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_WRITE_WITH_IMM,
		.send_flags = len <= INLINE_MAX ? IBV_SEND_INLINE : 0,
		.imm_data = htonl(imm),
		.wr.rdma = { .remote_addr = to, .rkey = rkey },
	};

	if (is_full(qp))
		return -EAGAIN;
	if (qp->iwarp && imm != UINT32_MAX) {
		wr.opcode = IBV_WR_RDMA_WRITE;
		behind = note(qp, bytes, &note_sge, imm);
		wr.next = &behind;
	}
	return post(qp, &wr);
}

static int rs_poll(struct rs_qp *qp, int max, rs_rdma_done_fn fn, void *arg)
{
	struct ibv_wc wc[16];
	int n = ibv_poll_cq(qp->cq, max < 16 ? max : 16, wc);

	for (int i = 0; i < n; i++) {
		struct rs_rdma_done d = { 0 };

		if (wc[i].status != IBV_WC_SUCCESS) {
			bool told = __atomic_exchange_n(&qp->broken, true, __ATOMIC_RELAXED);

			d.kind = RS_RDMA_BROKEN;
			if (!told)
				fn(arg, &d);
			continue;
		}
		if (wc[i].wr_id >> 63) {
			__atomic_fetch_sub(&qp->sq_used, (uint32_t)wc[i].wr_id, __ATOMIC_SEQ_CST);
			if (!__atomic_exchange_n(&qp->full, false, __ATOMIC_SEQ_CST))
				continue;
			d.kind = RS_RDMA_ROOM;
			fn(arg, &d);
			continue;
		}
		if (wc[i].opcode == IBV_WC_RECV_RDMA_WITH_IMM) {
			d.kind = RS_RDMA_DATA;
			d.imm = ntohl(wc[i].imm_data);
		} else if (qp->iwarp && wc[i].byte_len == RS_NOTE_LEN) {
			d.kind = RS_RDMA_DATA;
			d.imm = rs_note_take(&qp->credits, qp->bytes + wc[i].wr_id * RS_MSG_MAX);
			if (__atomic_exchange_n(&qp->full, false, __ATOMIC_SEQ_CST))
				fn(arg, &(struct rs_rdma_done){ .kind = RS_RDMA_ROOM });
		} else {
			d.kind = RS_RDMA_MSG;
			d.bytes = qp->bytes + wc[i].wr_id * RS_MSG_MAX;
			d.len = wc[i].byte_len;
		}
		if (!qp->iwarp || d.kind == RS_RDMA_MSG || d.imm != RS_NOTE_NONE)
			fn(arg, &d);
		post_recv(qp, wc[i].wr_id);
		__atomic_fetch_add(&qp->credits.took, 1, __ATOMIC_SEQ_CST);
		if (qp->iwarp && rs_credits_owed(&qp->credits))
			fn(arg, &(struct rs_rdma_done){ .kind = RS_RDMA_OWES });
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
	int cancel;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	/* There is one for each arm() at most. */
	if (ibv_get_cq_event(qp->channel, &cq, &context) == 0)
		ibv_ack_cq_events(cq, 1);
	pthread_setcancelstate(cancel, NULL);
}

static int rs_arm(struct rs_qp *qp)
{
	int cancel, r;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	r = ibv_req_notify_cq(qp->cq, 0);
	pthread_setcancelstate(cancel, NULL);
	return r == 0 ? 0 : -EIO;
}

/* The parent's, which the child would keep from going away with it. */
static void rs_forget(void)
{
	for (struct rs_qp *qp = qps; qp; qp = qp->next)
		if (qp->channel)
			host.close(qp->channel->fd);
	rs_opened_forget();
	rs_watch_forget(&host);
	if (events)
		host.close(events->fd);
	if (sources >= 0)
		host.close(sources);
}

static const char *rs_device(struct rs_qp *qp)
{
	return qp->id->verbs ? ibv_get_device_name(qp->id->verbs->device) : "";
}

static const char *rs_path(struct rs_qp *qp)
{
	return qp->text;
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
	.usable = rs_usable,
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
	.settle = rs_settle,
	.poll = rs_poll,
	.fd = rs_fd,
	.disarm = rs_disarm,
	.arm = rs_arm,
	.device = rs_device,
	.path = rs_path,
	.forget = rs_forget,
};
