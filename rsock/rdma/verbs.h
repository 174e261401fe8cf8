/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * verbs.h - between verbs.c, cm.c and qp.c: what a queue pair is made of
 *
 * verbs.c keeps the queue pairs, hears what concerns all of them, and is the table of functions (rdma.h,
 * which says what those promise); cm.c connects them; qp.c makes them and moves their data. Of one queue
 * pair the data path has the threads that rdma.h says; all else is for one thread.
 */
#ifndef RSOCK_RDMA_VERBS_H
#define RSOCK_RDMA_VERBS_H

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include "rsock/rdma.h"
#include "rsock/rdma/iwarp.h"
#include "rsock/rdma/path.h"

struct rs_opened;

#define RS_QP_RECYCLE 32u

struct rs_qp {
	struct rs_qp *next, **prev;
	struct rdma_cm_id *id;
	struct ibv_pd *pd;
	struct ibv_comp_channel *channel;
	struct ibv_cq *cq;
	void *user;
	bool broken;
	uint8_t *bytes; /* RECV_DEPTH receive buffers, then SEND_DEPTH send buffers (qp.c) */
	struct ibv_mr *mr;
	uint16_t idle[RS_QP_RECYCLE]; /* receive buffers that are to be posted again, together */
	uint32_t nidle;
	uint32_t sq_posted; /* work requests, and */
	uint32_t sq_done; /* how many of them are known to be complete */
	uint32_t sq_unsignaled; /* posted since the last signaled one */
	uint32_t sq_msg; /* the next send buffer */
	struct ibv_send_wr write; /* what rs_qp_post_write() posts, */
	struct ibv_sge write_sge; /* and its bytes */
	bool full; /* somebody was told to wait for ROOM */
	uint32_t unacked; /* events of the channel that libibverbs has yet to be told of */
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

/* ---- verbs.c ---- */

extern struct rs_rdma_host rs_verbs_host;

enum { RS_FROM_WATCH = 1, RS_FROM_CM }; /* epoll words; others are opened.h's */

void rs_verbs_nonblocking(int fd);
/* rs_next_event() reads `fd` too; `word`: one of these. 0 or -errno. */
int rs_verbs_watch(int fd, uint64_t word);
bool rs_verbs_usable(void);

/* The list of all that have an id. */
void rs_qp_enlist(struct rs_qp *qp);
void rs_qp_unlist(struct rs_qp *qp);

/* Every queue pair of the device, or of its port, is DOWN; port 0: of all. */
void rs_verbs_fail_all(const struct rs_opened *device, uint32_t port, int error);
/* Devices have gone, or may have: every queue pair of those that have is DOWN. */
void rs_verbs_removed(void);

/* ---- cm.c ---- */

struct rs_qp *rs_cm_connect(const struct sockaddr *from, const struct sockaddr *to, bool tcp_port,
			    const void *hello, size_t len, int *error);
int rs_cm_accept(struct rs_qp *qp, const void *data, size_t len);
void rs_cm_reject(struct rs_qp *qp, const void *data, size_t len);
void rs_cm_drop(struct rs_qp *qp);
int rs_cm_listen(uint16_t *port, void **out);
void rs_cm_unlisten(void *listener);

/* The CM has an event: *ev, empty until now, is what becomes of it. 1; 0: there was none. */
int rs_cm_next(struct rs_rdma_event *ev);
/* In a forked child: closes what it has inherited. */
void rs_cm_forget(void);

/* ---- qp.c ---- */

/* The id is bound to a device now. 0 or -errno. */
int rs_qp_bound(struct rs_qp *qp);
/* Everything that needs the device; the id is bound to one by now. 0 or -errno. */
int rs_qp_make(struct rs_qp *qp);
/* Also of one that is not made, or only in part. */
void rs_qp_unmake(struct rs_qp *qp);
/* It is UP: how soon a peer that found no receive buffer tries again. */
void rs_qp_rnr_timer(struct rs_qp *qp);

int rs_qp_map(struct rs_qp *qp, struct rs_rdma_mem *m, bool remote);
void rs_qp_unmap(struct rs_rdma_mem *m);
int rs_qp_post_msg(struct rs_qp *qp, const void *bytes, size_t len);
int rs_qp_post_write(struct rs_qp *qp, const void *from, uint32_t len, uint32_t lkey, uint64_t to,
		     uint32_t rkey, uint32_t imm);
uint32_t rs_qp_posted(struct rs_qp *qp);
bool rs_qp_pending(struct rs_qp *qp, uint32_t n);
int rs_qp_settle(struct rs_qp *qp);
int rs_qp_poll(struct rs_qp *qp, int max, rs_rdma_done_fn fn, void *arg);
int rs_qp_fd(struct rs_qp *qp);
void rs_qp_disarm(struct rs_qp *qp);
int rs_qp_arm(struct rs_qp *qp);

#endif
