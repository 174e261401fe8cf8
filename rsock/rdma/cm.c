/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * cm.c - connection management: listening, connecting, accepting, and what the RDMA CM tells of them
 */
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rsock/rdma/advice.h"
#include "rsock/rdma/device.h"
#include "rsock/rdma/opened.h"
#include "rsock/rdma/path.h"
#include "rsock/rdma/verbs.h"

#define RESOLVE_MS 1000
#define RETRIES 6 /* each after ACK_TIMEOUT (qp.c); 7 would mean "for ever" on some devices */
#define RNR_FOR_EVER 7 /* a stopped process must not look like a dead path */
#define REJECTED_BY_CONSUMER 28 /* IB spec, table 111: not "no such service id" (8) */

static struct rdma_event_channel *events; /* NULL until there is a device */

/* librdmacm has no event channel without a device. 0 or -errno. */
static int need_events(void)
{
	if (events)
		return 0;
	if (!rs_verbs_usable())
		return -ENODEV;
	errno = 0;
	events = rdma_create_event_channel();
	if (!events)
		return errno == ENODEV
			       ? -ENODEV
			       : rs_advice(&rs_verbs_host, "opening /dev/infiniband/rdma_cm", 0,
					   errno ? errno : EACCES);
	events->fd = rs_verbs_host.hide(events->fd);
	rs_verbs_nonblocking(events->fd);
	return rs_verbs_watch(events->fd, RS_FROM_CM);
}

/* ---- connecting ---- */

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
		r = rs_path_find(&rs_verbs_host, rdma_get_local_addr(qp->id),
				 rdma_get_peer_addr(qp->id), device, qp->id->port_num, &p);
	/* librdmacm knows the GID only of kernels that tell it. */
	if (r == 0 && p.kind == RS_PORT_ROCE &&
	    (gid->global.subnet_prefix || gid->global.interface_id) &&
	    memcmp(gid->raw, p.gid, 16) != 0)
		r = -ENODEV;
	if (r != 0) {
		snprintf(qp->text, sizeof(qp->text),
			 "the RDMA CM takes %s port %u, which does not serve the route", device,
			 qp->id->port_num);
		rs_verbs_host.log(qp->text);
		return r;
	}
	qp->path = p;
	rs_path_text(&p, qp->text, sizeof(qp->text));
	return 0;
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

struct rs_qp *rs_cm_connect(const struct sockaddr *from, const struct sockaddr *to, bool tcp_port,
			    const void *hello, size_t len, int *error)
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
	r = rs_path_find(&rs_verbs_host, (struct sockaddr *)&here, (struct sockaddr *)&there, NULL,
			 0, &qp->path);
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
	rs_qp_enlist(qp);
	return qp;
fail:
	*error = r == -1 ? errno : -r;
	free(qp);
	return NULL;
}

int rs_cm_accept(struct rs_qp *qp, const void *data, size_t len)
{
	struct rdma_conn_param param;
	int r = rs_qp_make(qp);

	if (r != 0)
		return r;
	if (len > sizeof(qp->hello))
		return -EINVAL;
	memcpy(qp->hello, data, len);
	qp->hello_len = len;
	param = parameters(qp);
	if (rs_path_find(&rs_verbs_host, rdma_get_local_addr(qp->id), rdma_get_peer_addr(qp->id),
			 ibv_get_device_name(qp->id->verbs->device), qp->id->port_num,
			 &qp->path) == 0)
		rs_path_text(&qp->path, qp->text, sizeof(qp->text));
	else /* the peer's route is another than ours back */
		snprintf(qp->text, sizeof(qp->text), "%s port %u",
			 ibv_get_device_name(qp->id->verbs->device), qp->id->port_num);
	return rdma_accept(qp->id, &param) == 0 ? 0 : -errno;
}

void rs_cm_drop(struct rs_qp *qp)
{
	if (qp->cq)
		rdma_disconnect(qp->id);
	rs_qp_unmake(qp);
	rs_qp_unlist(qp);
	if (qp->device)
		rs_opened_unuse(qp->device);
	rdma_destroy_id(qp->id);
	free(qp);
}

void rs_cm_reject(struct rs_qp *qp, const void *data, size_t len)
{
	rdma_reject(qp->id, data, (uint8_t)len);
	rs_qp_unmake(qp);
	rs_cm_drop(qp);
}

/* ---- listening ---- */

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

int rs_cm_listen(uint16_t *port, void **out)
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

void rs_cm_unlisten(void *listener)
{
	struct listener *l = listener;

	for (int i = 0; i < 2; i++)
		if (l->id[i])
			rdma_destroy_id(l->id[i]);
	free(l);
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
	rs_qp_enlist(qp);
	rs_qp_bound(qp); /* if it cannot be, rs_qp_make() says why */
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

int rs_cm_next(struct rs_rdma_event *ev)
{
	struct rdma_cm_event *cm, copy;
	struct rdma_conn_param param;
	struct rs_qp *qp;

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
		step(qp, rs_qp_bound(qp), ev);
		if (ev->what == RS_RDMA_NOTHING)
			step(qp, confirm(qp), ev);
		if (ev->what == RS_RDMA_NOTHING)
			step(qp, rdma_resolve_route(qp->id, RESOLVE_MS) == 0 ? 0 : errno, ev);
		break;
	case RDMA_CM_EVENT_ROUTE_RESOLVED:
		step(qp, rs_qp_make(qp), ev);
		if (ev->what == RS_RDMA_DOWN)
			break;
		param = parameters(qp);
		step(qp, rdma_connect(qp->id, &param) == 0 ? 0 : errno, ev);
		break;
	case RDMA_CM_EVENT_ESTABLISHED:
		rs_qp_rnr_timer(qp);
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
		rs_verbs_removed();
		if (qp->device)
			rs_verbs_fail_all(qp->device, 0, ENODEV);
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

void rs_cm_forget(void)
{
	if (events)
		rs_verbs_host.close(events->fd);
}
