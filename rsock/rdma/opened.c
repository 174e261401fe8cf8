/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/rdma/opened.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>

#include "rsock/sys.h"

#define DEVICES 32u

/* librdmacm may free a context that no id is on, once it learns that the device is gone. */
struct rs_opened {
	struct ibv_context *verbs; /* NULL: a free place; not looked into without users */
	struct ibv_device *device; /* only compared */
	int cmd_fd, async_fd;
	dev_t file; /* what cmd_fd is */
	uint32_t users;
	bool gone;
};

static struct rs_opened opened[DEVICES];
static const struct rs_rdma_host *host;
static int epoll = -1;

void rs_opened_init(const struct rs_rdma_host *h, int epoll_fd)
{
	host = h;
	epoll = epoll_fd;
}

static dev_t file_behind(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) ? st.st_rdev : 0;
}

/*
 * The numbers are in public fields that libibverbs reads at each use (struct ibv_context), so
 * they can be moved. What host.hide() has moved it gives back as it is.
 */
static void hide(struct rs_opened *o)
{
	struct ibv_context *verbs = o->verbs;

	verbs->cmd_fd = host->hide(verbs->cmd_fd);
	verbs->async_fd = host->hide(verbs->async_fd);
	fcntl(verbs->async_fd, F_SETFL, fcntl(verbs->async_fd, F_GETFL) | O_NONBLOCK);
	o->cmd_fd = verbs->cmd_fd;
	o->async_fd = verbs->async_fd;
	o->file = file_behind(o->cmd_fd);
}

static void drain(struct ibv_context *verbs)
{
	struct ibv_async_event ev;

	while (ibv_get_async_event(verbs, &ev) == 0)
		ibv_ack_async_event(&ev);
}

struct rs_opened *rs_opened_use(struct ibv_context *verbs)
{
	struct rs_opened *o = NULL;
	struct epoll_event ev = { .events = EPOLLIN };

	for (uint32_t i = 0; i < DEVICES; i++) {
		if (opened[i].verbs == verbs) {
			o = &opened[i];
			break;
		}
		if (!opened[i].verbs && !o)
			o = &opened[i];
	}
	if (!o)
		return NULL;
	o->verbs = verbs;
	if (o->users++ == 0) {
		o->device = verbs->device;
		o->gone = false;
		hide(o);
		drain(verbs); /* of before: nobody whom it concerned is left */
		ev.data.u64 = (uintptr_t)o;
		rs_sys4(SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, o->async_fd, &ev);
	}
	return o;
}

/* Some number that takes neither commands nor gives events. */
static void replace(int fd, int by)
{
	rs_sys3(SYS_dup3, by, fd, O_CLOEXEC);
}

static void let_go(struct rs_opened *o)
{
	/* The numbers may be others' already, if librdmacm was first. */
	long by = file_behind(o->cmd_fd) == o->file
			  ? rs_sys2(SYS_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK)
			  : -1;

	if (by >= 0) {
		by = host->hide((int)by);
		replace(o->cmd_fd, (int)by);
		replace(o->async_fd, (int)by);
		host->close((int)by);
	}
	memset(o, 0, sizeof(*o));
}

void rs_opened_unuse(struct rs_opened *o)
{
	struct epoll_event ev = { 0 };

	if (--o->users)
		return;
	rs_sys4(SYS_epoll_ctl, epoll, EPOLL_CTL_DEL, o->async_fd, &ev);
	if (o->gone)
		let_go(o);
}

bool rs_opened_gone(const struct rs_opened *o)
{
	return o->gone;
}

bool rs_opened_check(void)
{
	struct ibv_device **list = NULL;
	bool some = false, read = false;

	for (uint32_t i = 0; i < DEVICES; i++) {
		struct rs_opened *o = &opened[i];
		bool there = false;

		if (!o->verbs || o->gone)
			continue;
		if (!read) {
			list = ibv_get_device_list(NULL);
			read = true;
		}
		if (!list)
			break; /* no memory: nothing is known */
		for (size_t k = 0; list[k]; k++)
			there |= list[k] == o->device;
		if (there)
			continue;
		o->gone = true;
		some = true;
		if (!o->users)
			let_go(o);
	}
	if (list)
		ibv_free_device_list(list);
	return some;
}

static struct rs_opened *of(uint64_t word)
{
	for (uint32_t i = 0; i < DEVICES; i++)
		if (word == (uintptr_t)&opened[i])
			return &opened[i];
	return NULL;
}

bool rs_opened_event(uint64_t word, struct rs_async *a)
{
	struct rs_opened *o = of(word);
	struct ibv_async_event ev;

	if (!o || !o->users || ibv_get_async_event(o->verbs, &ev) != 0)
		return false;
	*a = (struct rs_async){ .device = o, .what = ibv_event_type_str(ev.event_type) };
	switch (ev.event_type) {
	case IBV_EVENT_QP_FATAL:
	case IBV_EVENT_QP_REQ_ERR:
	case IBV_EVENT_QP_ACCESS_ERR:
	case IBV_EVENT_PATH_MIG_ERR:
		a->qp = ev.element.qp->qp_context;
		break;
	case IBV_EVENT_CQ_ERR:
		a->qp = ev.element.cq->cq_context;
		break;
	case IBV_EVENT_PORT_ERR:
		a->port = (uint32_t)ev.element.port_num;
		break;
	case IBV_EVENT_PORT_ACTIVE:
	case IBV_EVENT_GID_CHANGE:
	case IBV_EVENT_LID_CHANGE:
	case IBV_EVENT_PKEY_CHANGE:
	case IBV_EVENT_CLIENT_REREGISTER:
		a->port = (uint32_t)ev.element.port_num;
		a->changed = true;
		a->lid = ev.event_type == IBV_EVENT_LID_CHANGE;
		break;
	case IBV_EVENT_DEVICE_FATAL:
		break;
	default: /* COMM_EST and the like: nothing is wrong */
		a->changed = true;
		a->what = NULL;
		break;
	}
	/* Before anything is destroyed: that would wait for it. */
	ibv_ack_async_event(&ev);
	return true;
}

void rs_opened_forget(void)
{
	for (uint32_t i = 0; i < DEVICES; i++)
		if (opened[i].verbs) {
			host->close(opened[i].cmd_fd);
			host->close(opened[i].async_fd);
		}
}
