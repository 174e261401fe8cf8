/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * link.c - links whose peer says anything, with descriptors of any kind: link*.c, claim.c, elsewhere.c
 *
 * One link on a real unix socket, or over a model queue pair; two connections, one of each side, that are
 * only as much of one as claims need. A connection must not be attached to a peer that has not proved
 * that it holds the other end, and whatever came, no descriptor may be left when all links are closed.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "conn_mgr/accepted.h"
#include "conn_mgr/claim.h"
#include "conn_mgr/conn.h"
#include "conn_mgr/conn_edge.h"
#include "conn_mgr/control.h"
#include "conn_mgr/elsewhere.h"
#include "conn_mgr/link_parts.h"
#include "conn_mgr/proof.h"
#include "conn_mgr/rdma.h"
#include "conn_mgr/rendezvous.h"
#include "conn_mgr/tuple.h"
#include "rsock/bell.h"
#include "rsock/sys.h"
#include "tests/fuzz/fuzz.h"

#define PORT 80
#define FAR_FUTURE 100000 /* ms: dead links are reclaimed by then */

struct rs_conn *rs_control_conns;

static struct rs_conn server, client;
static struct rs_state state[2]; /* of server and client: little happens on them */
static struct rs_link *link_;
static int sock; /* the peer's end; -1: over RDMA */
static uint64_t claims_inode; /* of the descriptor that the last message had with it */
static struct rs_directory *directory;

/* The descriptors that the peer has to send. */
enum { SLAB, OTHER_SLAB, CLIENT_SOCKET, SERVER_SOCKET, EVENTFD, FILE_, FOLDER, MEMFD, KINDS };
static int kind[KINDS];
static uint64_t client_inode, server_inode;

static const struct rs_tuple tuple = { .family = 4,
				       .client_port = 4000,
				       .server_port = PORT,
				       .client_ip = { 127, 0, 0, 1 },
				       .server_ip = { 127, 0, 0, 1 } };

static uint64_t inode_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 ? st.st_ino : 0;
}

/* ---- what link.c and claim.c need of the rest ---- */

static bool same(const struct rs_tuple *t)
{
	return memcmp(t, &tuple, sizeof(*t)) == 0;
}

struct rs_conn *rs_accepted_find(const struct rs_tuple *t)
{
	return same(t) ? &server : NULL;
}

bool rs_accepted_has(const struct rs_tuple *t)
{
	return same(t);
}

void rs_accepted_adopt(struct rs_conn *c)
{
	(void)c;
}

void rs_conn_attach(struct rs_conn *c, const uint8_t key[RS_KEY_LEN])
{
	(void)key;
	if (c->plain || c->closed || c->bound)
		return;
	if (sock >= 0)
		CHECK(claims_inode == (c->server ? client_inode : server_inode));
	CHECK(c->link && c->id < c->link->slots && c->link->slot[c->id].conn == c);
	if (sock < 0 &&
	    !rs_remote_bind(&c->st->ch, c->link->shm.remote, c->id, c->peer_id, &c->peer_block)) {
		c->plain = true;
		return;
	}
	c->claim = RS_CLAIM_DONE;
	c->bound = true;
}

void rs_conn_give_up(struct rs_conn *c, enum rs_reason why)
{
	CHECK(why < RS_REASON_COUNT);
	c->plain |= !c->bound;
}

void rs_conn_message(struct rs_conn *c, const struct rs_msg *m)
{
	CHECK(m->type >= RS_MSG_ENTER && m->type <= RS_MSG_FIN);
	CHECK(c == &server || c == &client);
}

bool rs_conn_get(struct rs_conn *c)
{
	c->refs++;
	return true;
}

void rs_conn_put(struct rs_conn *c)
{
	if (c->refs) /* rs_accepted_find() takes none here */
		c->refs--;
}

void rs_conn_poke(struct rs_conn *c)
{
	(void)c;
}

void rs_conn_ring(struct rs_conn *c)
{
	(void)c;
}

void rs_conn_take_control(struct rs_conn *c)
{
	(void)c;
}

void rs_conn_settle(struct rs_conn *c)
{
	(void)c;
}

void rs_conn_check_gone(struct rs_conn *c)
{
	(void)c;
}

void rs_control_due(uint64_t ms)
{
	(void)ms;
}

void rs_control_take_added(void)
{
}

int rs_control_watch(int fd, uint32_t events, struct rs_source *s)
{
	(void)fd;
	(void)events;
	(void)s;
	return 0;
}

void rs_control_unwatch(int fd)
{
	(void)fd;
}

/* Its socket of either end is an unconnected one here: what matters is the inode. */
int64_t rs_proof_inode(const struct rs_tuple *t, bool server_end)
{
	if (!same(t))
		return -ENOENT;
	return (int64_t)(server_end ? server_inode : client_inode);
}

int rs_proof_handle(int fd)
{
	(void)fd;
	return fcntl(kind[FOLDER], F_DUPFD_CLOEXEC, 3);
}

uint64_t rs_proof_handle_inode(int handle)
{
	claims_inode = inode_of(handle);
	return claims_inode;
}

struct rs_link *rs_rdma_link(const struct rs_tuple *t, uint16_t port, int *err)
{
	(void)t;
	(void)port;
	*err = -ENODEV;
	return NULL;
}

void rs_rdma_moved(struct rs_link *l)
{
	(void)l;
}

void rs_rdma_refused(const struct rs_link *l, int error)
{
	(void)l;
	(void)error;
}

uint16_t rs_rdma_own_port(void)
{
	return 4711;
}

enum rs_reason rs_rdma_reason(int error)
{
	(void)error;
	return RS_REASON_NO_ROUTE;
}

const uint8_t *rs_process_id(void)
{
	static const uint8_t id[16] = { 1 };

	return id;
}

const char *rs_process_name(void)
{
	return "rsock.p.1.00000001";
}

struct rs_directory *rs_rendezvous_directory(uint16_t port)
{
	return port == PORT ? directory : NULL;
}

int rs_rendezvous_index(uint16_t port)
{
	(void)port;
	return 0;
}

void rs_rendezvous_name(uint16_t port, uint32_t index, char name[RS_NAME_LEN])
{
	snprintf(name, RS_NAME_LEN, "rsock.%u.%u", port, index);
}

int rs_rendezvous_connect(const char *name)
{
	CHECK(strlen(name) < RS_NAME_LEN);
	return -ECONNREFUSED;
}

void rs_rendezvous_refused(uint16_t port, uint64_t now)
{
	(void)port;
	(void)now;
}

void rs_rendezvous_answered(uint16_t port)
{
	(void)port;
}

bool rs_tuple_learn(struct rs_conn *c)
{
	c->tuple = tuple;
	return true;
}

/* ---- the model queue pair: one message at a time ---- */

struct rs_qp {
	uint8_t bytes[RS_MSG_MAX];
	size_t len;
};
static struct rs_qp qp;

static int post_msg(struct rs_qp *q, const void *bytes, size_t len)
{
	(void)q;
	(void)bytes;
	CHECK(len <= RS_MSG_MAX);
	return 0;
}

static int poll_cq(struct rs_qp *q, int max, rs_rdma_done_fn fn, void *arg)
{
	const struct rs_rdma_done d = { .kind = RS_RDMA_MSG,
					.bytes = q->bytes,
					.len = (uint32_t)q->len };

	(void)max;
	if (!q->len)
		return 0;
	q->len = 0;
	fn(arg, &d);
	return 1;
}

static int qp_fd(struct rs_qp *q)
{
	(void)q;
	return -1;
}

static int qp_arm(struct rs_qp *q)
{
	(void)q;
	return 0;
}

static void qp_nothing(struct rs_qp *q)
{
	(void)q;
}

static int qp_map(struct rs_qp *q, struct rs_rdma_mem *m, bool remote)
{
	(void)remote;
	m->mr = q;
	return 0;
}

static void qp_unmap(struct rs_rdma_mem *m)
{
	m->mr = NULL;
}

static const char *qp_path(struct rs_qp *q)
{
	(void)q;
	return "model";
}

static const struct rs_rdma_ops ops = {
	.map = qp_map,
	.unmap = qp_unmap,
	.post_msg = post_msg,
	.poll = poll_cq,
	.fd = qp_fd,
	.disarm = qp_nothing,
	.arm = qp_arm,
	.drop = qp_nothing,
	.path = qp_path,
};

/* ---- the peer ---- */

static size_t send_fds(uint8_t what, int fds[2])
{
	size_t n = what % 8 == 7 ? 2 : what % 8 != 6;

	fds[0] = kind[what / 8 % KINDS];
	fds[1] = kind[EVENTFD];
	return n;
}

static void say(const uint8_t *bytes, size_t len, const int *fds, size_t nfds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(2 * sizeof(int))];
	} ctl = { 0 };
	struct iovec iov = { (void *)(uintptr_t)bytes, len };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (sock < 0) {
		qp.len = len < RS_MSG_MAX ? len : RS_MSG_MAX;
		memcpy(qp.bytes, bytes, qp.len);
		return;
	}
	if (nfds) {
		mh.msg_control = ctl.buf;
		mh.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		ctl.align.cmsg_level = SOL_SOCKET;
		ctl.align.cmsg_type = SCM_RIGHTS;
		ctl.align.cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(&ctl.align), fds, nfds * sizeof(int));
	}
	sendmsg(sock, &mh, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static uint32_t some_id(struct fuzz_in *in)
{
	uint8_t how = (uint8_t)fuzz_int(in, 1);

	if (how < 64)
		return how % 4;
	if (how < 128)
		return how & 1 ? server.id : client.id;
	return (uint32_t)fuzz_wild(in, RS_SHM_SLOTS);
}

/* What an honest peer would say of that type, and some of it changed. */
static void message(struct fuzz_in *in)
{
	uint8_t type = (uint8_t)(1 + fuzz_int(in, 1) % 18), what = (uint8_t)fuzz_int(in, 1);
	static const uint8_t natural[RS_MSG_COUNT] = {
		[RS_MSG_HELLO] = SLAB * 8 + 7, /* and a trigger */
		[RS_MSG_CLAIM] = CLIENT_SOCKET * 8, [RS_MSG_CLAIM_OK] = SERVER_SOCKET * 8,
		[RS_MSG_BELL] = EVENTFD * 8,	    [RS_MSG_SEGMENT] = OTHER_SLAB * 8,
	};
	struct rs_msg m = { .type = type, .tuple = tuple, .slots = RS_SHM_SLOTS, .code = 1 };
	uint8_t bytes[RS_MSG_MAX] = { 0 };
	int fds[2];
	size_t len, nfds;

	m.features = sock < 0 ? RS_FEATURE_RDMA | RS_FEATURE_RINGS
			      : RS_FEATURE_SHM | RS_FEATURE_TRIGGER | RS_FEATURE_WHERE;
	m.tier_shift[0] = 18;
	m.id = some_id(in);
	m.from = some_id(in);
	m.epoch = (uint32_t)fuzz_int(in, 1);
	m.index =
		type == RS_MSG_SEGMENT && link_ ? link_->peer_segments : (uint32_t)fuzz_int(in, 1);
	m.reason = (uint8_t)fuzz_int(in, 1);
	m.port = (uint16_t)fuzz_int(in, 1);
	memcpy(m.name, "rsock.p.2.00000002", 19);
	/* REVEAL must be what CLAIM has promised. */
	if (type == RS_MSG_CLAIM)
		rs_sha256(m.secret, sizeof(m.secret), m.secret);
	if (what & 64) {
		m.code = (uint8_t)(1 + fuzz_int(in, 1) % 4);
		m.features = (uint32_t)fuzz_int(in, 1);
		m.index = (uint32_t)fuzz_int(in, 1);
		m.slots = (uint32_t)fuzz_int(in, 2);
		m.secret[0] ^= (uint8_t)fuzz_int(in, 1);
		m.tuple.server_port = (uint16_t)(m.tuple.server_port ^ fuzz_int(in, 1));
		fuzz_bytes(in, m.name, 12);
	}
	len = rs_msg_encode(&m, bytes);
	if (what & 128) {
		bytes[fuzz_int(in, 1) % RS_MSG_MAX] ^= (uint8_t)fuzz_int(in, 1);
		len = (len + fuzz_int(in, 1)) % RS_MSG_MAX;
	}
	if (what & 1)
		nfds = send_fds((uint8_t)fuzz_int(in, 1), fds);
	else
		nfds = type < RS_MSG_COUNT && (natural[type]) ? send_fds(natural[type], fds) : 0;
	say(bytes, len, fds, nfds);
}

/* ---- this end ---- */

static void listen_(void)
{
	uint8_t bytes[RS_MSG_MAX];

	if (link_->dead)
		return;
	link_->source.event(&link_->source, EPOLLIN);
	/* Without room for descriptors they are closed. */
	while (sock >= 0 && recv(sock, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
		;
}

static void check_link(const struct rs_link *l)
{
	uint32_t used = 0;

	CHECK(l->shm.nmine <= RS_SHM_SEGMENTS && l->shm.npeer <= l->peer_segments);
	CHECK(l->peer_segments <= RS_SHM_SEGMENTS);
	CHECK(l->dead || l->slots <= l->shm.nmine * RS_SHM_SLOTS);
	for (uint32_t i = 0; i < l->shm.npeer; i++)
		CHECK(l->shm.peer[i]);
	for (uint32_t id = 0; id < l->slots; id++)
		used += l->slot[id].used;
	CHECK(used == l->used);
	if (rs_link_alive(l))
		for (uint32_t b = 0; b < RS_BELLS && sock >= 0; b++)
			CHECK(l->shm.bell_fd[b] == -1 || rs_fd_is_eventfd(l->shm.bell_fd[b]));
}

/* A claim of ours, on this link. */
static void claim(void)
{
	uint64_t now = rs_now_ms();

	if (client.claim != RS_CLAIM_NONE || !rs_link_alive(link_) || client.plain)
		return;
	client.claim = RS_CLAIM_SENT;
	client.id = UINT32_MAX;
	client.link = link_;
	rs_claim_link_up(link_);
	client.window_end = now + 1000;
}

static void leave(struct rs_conn *c)
{
	struct rs_link *l = c->link;

	if (!c->bound || !l)
		return;
	rs_lock(&l->lock);
	if (l->slot[c->id].conn == c)
		l->slot[c->id].gone_sent = true;
	rs_unlock(&l->lock);
	rs_link_detach(c);
	c->plain = true;
}

static void set_up(void)
{
	struct rs_shm_head *h;

	rs_bell_init();
	kind[SLAB] = rs_shm_create(&h);
	rs_shm_unmap(h);
	kind[OTHER_SLAB] = rs_shm_create(&h);
	h->slots = RS_SHM_SLOTS;
	kind[CLIENT_SOCKET] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	kind[SERVER_SOCKET] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	kind[EVENTFD] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	kind[FILE_] = open("/dev/null", O_RDWR | O_CLOEXEC);
	kind[FOLDER] = open("/", O_PATH | O_CLOEXEC);
	kind[MEMFD] = memfd_create("small", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	for (int i = 0; i < KINDS; i++)
		CHECK(kind[i] >= 0);
	client_inode = inode_of(kind[CLIENT_SOCKET]);
	server_inode = inode_of(kind[SERVER_SOCKET]);
	directory = rs_directory_new();
}

static void open_link(uint8_t how)
{
	int pair[2];

	if (how & 1) {
		sock = -1;
		qp.len = 0;
		link_ = rs_link_new_remote(&ops, &qp, &tuple, how & 2 ? PORT : 0);
		CHECK(link_);
		rs_link_remote_up(link_);
		return;
	}
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
	sock = pair[1];
	link_ = rs_link_new(pair[0], how & 2 ? "rsock.80.0" : NULL);
	CHECK(link_);
}

static void close_all(void)
{
	uint64_t now = rs_now_ms();

	if (sock >= 0)
		close(sock);
	for (struct rs_link *l = rs_links; l; l = l->next)
		rs_link_kill(l, now);
	leave(&server);
	leave(&client);
	for (int turns = 0; !rs_links_close() && turns < 3; turns++)
		rs_links_timer(now + FAR_FUTURE);
	for (struct rs_link *l = rs_links; l; l = l->next)
		CHECK(l->dead && !l->used && !l->shm.nmine && !l->shm.npeer);
	while (rs_fd_asides())
		sched_yield();
}

static int open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	CHECK(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = { data, size };
	uint8_t how = (uint8_t)fuzz_int(&in, 1);
	static const char name[RS_NAME_LEN] = "rsock.p.9.00000009";
	int before;

	if (!directory)
		set_up();
	before = open_fds();
	server = (struct rs_conn){ .server = true, .fd = -1, .tuple = tuple, .st = &state[0] };
	client = (struct rs_conn){ .fd = -1, .tuple = tuple, .st = &state[1] };
	server.next = &client;
	rs_control_conns = &server;
	claims_inode = 0;
	rs_elsewhere_forget();
	if (how & 4)
		rs_directory_put(directory, 4, tuple.client_ip, 4001, name);
	open_link(how);
	for (int budget = 60; in.left && budget; budget--) {
		uint8_t op = (uint8_t)fuzz_int(&in, 1);

		if (op % 8 < 5)
			message(&in);
		else if (op % 8 == 5)
			say(in.p, in.left < 64 ? in.left : 64, NULL, 0);
		else if (op % 8 == 6)
			claim();
		else
			leave(op & 8 ? &server : &client);
		/* Over RDMA there is one at a time. */
		if (sock < 0 || op & 16)
			listen_();
		check_link(link_);
	}
	listen_();
	check_link(link_);
	close_all();
	CHECK(open_fds() == before);
	return 0;
}
