/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * rdma.h - what rsock needs of libibverbs and librdmacm: queue pairs, as a table of functions
 *
 * The functions are in an object of their own, librsock-rdma.so, which is loaded when the first
 * connection could use it: a program that makes no such connection loads no RDMA library, and a
 * machine that has none loses nothing else.
 *
 * A queue pair (reliable connected) carries messages (RS_MSG_MAX bytes at most) and RDMA writes in
 * one order. CM calls and events are for one thread (the control thread). Of one queue pair the post_*,
 * posted and pending need a lock of the caller, and poll, disarm and arm another one.
 *
 * Errors are returned as -errno. Those that stand for something of this host:
 *   ENODEV         no RDMA port serves the route, or there is no device at all
 *   EADDRNOTAVAIL  the address is one of this host
 *   ENOMEM         RLIMIT_MEMLOCK is too small
 *   ENOBUFS        other memory cannot be had
 *   ENOSPC         the device, or a control group, has no more queue pairs, memory regions ...
 *   EMFILE         no descriptors are left
 *   EACCES         no permission for the device
 * The last five are told to host.log() with what to change, each once until devices come or go.
 */
#ifndef RSOCK_RDMA_H
#define RSOCK_RDMA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#define RS_RDMA_ABI 5
#define RS_RDMA_HELLO_MAX 56 /* private data of a CM request in RDMA_PS_TCP (rdma_connect(3)) */
#define RS_RDMA_ANSWER_MAX 148 /* of a reject, and more than that of a reply that we read */

/*
 * Where iWARP devices listen for those who look for a TCP port: they have TCP's own ports, and that one
 * is taken. Above what Linux gives to clients.
 */
static inline uint16_t rs_rdma_iwarp_port(uint16_t port)
{
	return (uint16_t)(61000 + port % 4500);
}

struct rs_qp;

/* Of so many work requests in a row, one at least is known to be complete as soon as it is. */
#define RS_RDMA_SIGNAL_EVERY 32u

/* What the object needs of its host. */
struct rs_rdma_host {
	int (*hide)(
		int fd); /* to where the program does not look; the new number; again: the same */
	void (*close)(int fd); /* what was hidden */
	void (*log)(const char *text); /* one line for people, at info level; any thread */
	/*
	 * Where libraries that call read() and write() call these two, *own_calls() makes them no
	 * cancellation points of this thread. NULL: there is no such thing.
	 */
	bool *(*own_calls)(void);
	ssize_t (*read)(int fd, void *buf, size_t n);
	ssize_t (*write)(int fd, const void *buf, size_t n);
};

/* Registered memory; `mr` is the object's own. */
struct rs_rdma_mem {
	void *addr;
	size_t len;
	uint32_t lkey, rkey;
	void *mr;
};

enum rs_rdma_what {
	RS_RDMA_REQUEST, /* somebody connects: accept() or drop() */
	RS_RDMA_UP,
	RS_RDMA_DOWN, /* could not be connected (`error`), or is not connected any more */
	RS_RDMA_CHANGED, /* routes, addresses, netdevs or devices: what was learnt may be wrong */
	RS_RDMA_NOTHING, /* look for the next one */
};

/* Addresses that begin with the first `bits` bits of `ip`. */
struct rs_rdma_prefix {
	uint8_t family; /* 4 or 6 */
	uint8_t bits; /* 0: all addresses, of both families */
	uint8_t ip[16];
};

struct rs_rdma_event {
	enum rs_rdma_what what;
	struct rs_qp *qp;
	/* DOWN: ECONNREFUSED (nobody listens), ECONNABORTED (rejected by who does), ENODEV ... */
	int error;
	struct rs_rdma_prefix prefix; /* CHANGED: only what concerns these */
	bool devices; /* CHANGED: devices have come or gone: ask usable(), listen() again */
	struct sockaddr_storage local, peer; /* REQUEST */
	/* Private data: of the REQUEST; UP: of the reply to ours; DOWN: of the reject. May be padded. */
	uint8_t data[RS_RDMA_ANSWER_MAX];
	size_t data_len;
};

enum rs_rdma_kind {
	RS_RDMA_MSG, /* `bytes`, `len`: valid during the call */
	RS_RDMA_DATA, /* `imm` of an RDMA write; what it and those before it wrote is there */
	RS_RDMA_ROOM, /* work requests are complete, after EAGAIN or pending() */
	RS_RDMA_OWES, /* settle() is due */
	RS_RDMA_BROKEN, /* the queue pair is in error: nothing will come or go any more */
};

struct rs_rdma_done {
	enum rs_rdma_kind kind;
	uint32_t imm;
	const uint8_t *bytes;
	uint32_t len;
};

typedef void (*rs_rdma_done_fn)(void *arg, const struct rs_rdma_done *d);

struct rs_rdma_ops {
	uint32_t abi; /* RS_RDMA_ABI */

	/* ---- connection management ---- */

	/*
	 * Once. `*fd`: readable when next_event() has something. Devices need not be there: CHANGED tells
	 * of their coming.
	 */
	int (*open)(const struct rs_rdma_host *host, int *fd);
	/* Whether there is any RDMA device. */
	bool (*usable)(void);
	/* 1: an event; 0: none. */
	int (*next_event)(struct rs_rdma_event *ev);
	/*
	 * Listens on an RDMA port of all addresses (0: any, which it is then told), and of all devices that
	 * come and go; *l for unlisten(). -ENODEV: needs a first device. With an iWARP device there it is
	 * rs_rdma_iwarp_port(), for all.
	 */
	int (*listen)(uint16_t *port, void **l);
	void (*unlisten)(void *l);
	/*
	 * Begins to connect; UP or DOWN follows. NULL: not even that (*error). The RDMA CM is not asked when
	 * the kernel's route to `to` does not leave through an active RDMA port. `tcp_port`: the port is
	 * that of a TCP listener, which listen() was called with; else one that listen() has told.
	 */
	struct rs_qp *(*connect)(const struct sockaddr *from, const struct sockaddr *to,
				 bool tcp_port, const void *hello, size_t len, int *error);
	/* `data`: private data of the reply. 0: UP follows; else reject() or drop(). */
	int (*accept)(struct rs_qp *qp, const void *data, size_t len);
	/* Rejects a REQUEST and frees it. */
	void (*reject)(struct rs_qp *qp, const void *data, size_t len);
	/* Ends and frees it in any state; no event follows. */
	void (*drop)(struct rs_qp *qp);
	void (*set_user)(struct rs_qp *qp, void *user);
	void *(*user)(struct rs_qp *qp);

	/* ---- data, from UP (or accept()) on ---- */

	/* Memory that the peer may write when `remote`. 0 or -errno. */
	int (*map)(struct rs_qp *qp, struct rs_rdma_mem *m, bool remote);
	void (*unmap)(struct rs_rdma_mem *m);
	/* -EAGAIN: the send queue is full, ROOM will come. */
	int (*post_msg)(struct rs_qp *qp, const void *bytes, size_t len);
	/* At least one byte. `imm` is delivered to the peer as DATA. */
	int (*post_write)(struct rs_qp *qp, const void *from, uint32_t len, uint32_t lkey,
			  uint64_t to, uint32_t rkey, uint32_t imm);
	/* How many work requests were posted so far, mod 2^32. */
	uint32_t (*posted)(struct rs_qp *qp);
	/* Whether some of the first `n` of them are not known to be complete: then ROOM will come. */
	bool (*pending)(struct rs_qp *qp, uint32_t n);
	/* Posts what the queue pair itself has to tell the peer's. -errno as post_msg(). */
	int (*settle)(struct rs_qp *qp);
	/* Takes what has completed, at most `max`; returns how many there were: fewer are all. */
	int (*poll)(struct rs_qp *qp, int max, rs_rdma_done_fn fn, void *arg);
	/* The descriptor that becomes readable once after arm(), when something completes. */
	int (*fd)(struct rs_qp *qp);
	/* Takes what made it readable / asks for it. After arm() poll once more. */
	void (*disarm)(struct rs_qp *qp);
	int (*arm)(struct rs_qp *qp);
	/* "mlx5_0", for people. */
	const char *(*device)(struct rs_qp *qp);
	/* "rxe0 port 1 gid 1 mtu 4096 by vec0 (RoCE)", for people. From UP (or accept()) on. */
	const char *(*path)(struct rs_qp *qp);
	/* In a forked child: closes what it has inherited. Nothing else may be called any more. */
	void (*forget)(void);
};

/* The only symbol of librsock-rdma.so. */
extern const struct rs_rdma_ops rs_rdma_ops;

#endif
