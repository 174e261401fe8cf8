/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * verbs.c - the object (librsock-rdma.so): its table of functions, its queue pairs, and what becomes of
 * them when devices, ports and routes change
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#include "rsock/rdma/device.h"
#include "rsock/rdma/opened.h"
#include "rsock/rdma/path.h"
#include "rsock/rdma/verbs.h"
#include "rsock/rdma/watch.h"
#include "rsock/sys.h"

struct rs_rdma_host rs_verbs_host;
static struct rs_qp *qps;
static int sources = -1; /* an epoll of all that next_event() reads */
static bool some_failed; /* a queue pair of the list has */

/* ---- opening ---- */

void rs_verbs_nonblocking(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

int rs_verbs_watch(int fd, uint64_t word)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = word };

	return (int)rs_sys4(SYS_epoll_ctl, sources, EPOLL_CTL_ADD, fd, &ev);
}

static int rs_open(const struct rs_rdma_host *h, int *fd)
{
	int news[2], r;

	rs_verbs_host = *h;
	if (h->read != read || h->write != write) /* those of somebody else stand before them */
		rs_verbs_host.own_calls = NULL;
	sources = (int)rs_sys1(SYS_epoll_create1, EPOLL_CLOEXEC);
	if (sources < 0)
		return sources;
	sources = rs_verbs_host.hide(sources);
	r = rs_watch_open(&rs_verbs_host, news);
	if (r == 0)
		r = rs_verbs_watch(news[0], RS_FROM_WATCH);
	if (r == 0 && news[1] >= 0)
		r = rs_verbs_watch(news[1], RS_FROM_WATCH);
	if (r != 0) {
		rs_watch_forget(&rs_verbs_host);
		rs_verbs_host.close(sources);
		return r;
	}
	rs_opened_init(&rs_verbs_host, sources);
	ibv_fork_init(); /* fails only when something is registered already: not by us */
	*fd = sources;
	return 0;
}

bool rs_verbs_usable(void)
{
	if (!rs_devices()->nports)
		rs_devices_forget();
	return rs_devices()->nports || rs_devices()->denied;
}

/* ---- queue pairs ---- */

void rs_qp_enlist(struct rs_qp *qp)
{
	qp->next = qps;
	qp->prev = &qps;
	if (qps)
		qps->prev = &qp->next;
	qps = qp;
}

void rs_qp_unlist(struct rs_qp *qp)
{
	*qp->prev = qp->next;
	if (qp->next)
		qp->next->prev = qp->prev;
}

/* ---- events ---- */

void rs_verbs_fail_all(const struct rs_opened *device, uint32_t port, int error)
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

void rs_verbs_removed(void)
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
		rs_verbs_removed();
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
	rs_verbs_host.log(text);
	if (a->qp) {
		((struct rs_qp *)a->qp)->failed = EIO;
		some_failed = true;
		return;
	}
	if (a->changed)
		fail_changed(a->device, a->port, a->lid);
	else
		rs_verbs_fail_all(a->device, a->port, ENETDOWN);
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
		if (ready[i].data.u64 == RS_FROM_CM) {
			cm = true;
		} else if (ready[i].data.u64 == RS_FROM_WATCH) {
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
	memset(ev, 0, sizeof(*ev));
	ev->what = RS_RDMA_NOTHING;
	if (next_failed(ev))
		return 1;
	if (!look(ev))
		return ev->what != RS_RDMA_NOTHING || some_failed;
	return rs_cm_next(ev);
}

/* ---- the table ---- */

/* The parent's, which the child would keep from going away with it. */
static void rs_forget(void)
{
	for (struct rs_qp *qp = qps; qp; qp = qp->next)
		if (qp->channel)
			rs_verbs_host.close(qp->channel->fd);
	rs_opened_forget();
	rs_watch_forget(&rs_verbs_host);
	rs_cm_forget();
	if (sources >= 0)
		rs_verbs_host.close(sources);
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
	.usable = rs_verbs_usable,
	.next_event = rs_next_event,
	.listen = rs_cm_listen,
	.unlisten = rs_cm_unlisten,
	.connect = rs_cm_connect,
	.accept = rs_cm_accept,
	.reject = rs_cm_reject,
	.drop = rs_cm_drop,
	.set_user = rs_set_user,
	.user = rs_user,
	.map = rs_qp_map,
	.unmap = rs_qp_unmap,
	.post_msg = rs_qp_post_msg,
	.post_write = rs_qp_post_write,
	.posted = rs_qp_posted,
	.pending = rs_qp_pending,
	.settle = rs_qp_settle,
	.poll = rs_qp_poll,
	.fd = rs_qp_fd,
	.disarm = rs_qp_disarm,
	.arm = rs_qp_arm,
	.device = rs_device,
	.path = rs_path,
	.forget = rs_forget,
};
