/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/proof.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#include "rsock/lock.h"
#include "rsock/sys.h"

#define NETDEVS 256u /* numbers that are tried */

static struct rs_lock lock;
static int diag_fd = -1; /* under it */

static int open_diag(void)
{
	const struct timeval tv = { .tv_sec = 1 };
	long fd;

	if (diag_fd >= 0)
		return 0;
	fd = rs_sys3(SYS_socket, AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	if (fd < 0)
		return (int)fd;
	diag_fd = rs_fd_hide((int)fd);
	rs_sys5(SYS_setsockopt, diag_fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	return 0;
}

static int64_t ask(const struct rs_tuple *t, bool server_end, uint32_t netdev)
{
	static uint32_t seq;
	struct {
		struct nlmsghdr nlh;
		struct inet_diag_req_v2 r;
	} req;
	union {
		struct nlmsghdr nlh;
		uint8_t bytes[4096];
	} ans;
	size_t addr_len = t->family == 4 ? 4 : 16;
	long r;

	r = open_diag();
	if (r < 0)
		return r;
	memset(&req, 0, sizeof(req));
	req.nlh.nlmsg_len = sizeof(req);
	req.nlh.nlmsg_type = SOCK_DIAG_BY_FAMILY;
	req.nlh.nlmsg_flags = NLM_F_REQUEST; /* no NLM_F_DUMP: exactly this socket */
	req.nlh.nlmsg_seq = ++seq;
	req.r.sdiag_family = t->family == 4 ? AF_INET : AF_INET6;
	req.r.sdiag_protocol = IPPROTO_TCP;
	req.r.idiag_states = ~0u;
	req.r.id.idiag_cookie[0] = INET_DIAG_NOCOOKIE;
	req.r.id.idiag_cookie[1] = INET_DIAG_NOCOOKIE;
	req.r.id.idiag_sport = htons(server_end ? t->server_port : t->client_port);
	req.r.id.idiag_dport = htons(server_end ? t->client_port : t->server_port);
	req.r.id.idiag_if = netdev;
	memcpy(req.r.id.idiag_src, server_end ? t->server_ip : t->client_ip, addr_len);
	memcpy(req.r.id.idiag_dst, server_end ? t->client_ip : t->server_ip, addr_len);
	r = rs_sys6(SYS_sendto, diag_fd, (long)&req, sizeof(req), MSG_NOSIGNAL, 0, 0);
	if (r < 0)
		return r;
	for (;;) {
		struct inet_diag_msg *m = NLMSG_DATA(&ans.nlh);

		r = rs_sys6(SYS_recvfrom, diag_fd, (long)&ans, sizeof(ans), 0, 0, 0);
		if (r == -EINTR)
			continue;
		if (r < 0)
			return r;
		if ((size_t)r < sizeof(ans.nlh) || ans.nlh.nlmsg_seq != seq)
			continue;
		if (ans.nlh.nlmsg_type == NLMSG_ERROR) {
			struct nlmsgerr *e = NLMSG_DATA(&ans.nlh);

			return e->error ? e->error : -EPROTO;
		}
		if ((size_t)r < NLMSG_LENGTH(sizeof(*m)))
			return -EPROTO;
		/* A lookup may answer with a listener on the port: that is not the connection. */
		if (m->id.idiag_dport != req.r.id.idiag_dport)
			return -ENOENT;
		return m->idiag_inode;
	}
}

int64_t rs_proof_inode(const struct rs_tuple *t, bool server_end)
{
	bool link_local =
		t->family == 6 && t->server_ip[0] == 0xfe && (t->server_ip[1] & 0xc0) == 0x80;
	int64_t inode;

	if (rs_lock_mine(&lock))
		return -EBUSY; /* a handler that interrupted us */
	rs_lock(&lock);
	inode = ask(t, server_end, 0);
	/* Such a connection belongs to a netdev, which its addresses do not say. */
	for (uint32_t netdev = 1; link_local && inode == -ENOENT && netdev <= NETDEVS; netdev++)
		inode = ask(t, server_end, netdev);
	rs_unlock(&lock);
	return inode;
}

int rs_proof_handle(int fd)
{
	char path[32];

	rs_fd_path(fd, path);
	return (int)rs_sys4(SYS_openat, AT_FDCWD, path, O_PATH | O_CLOEXEC, 0);
}

/* Not fstat(): the peer chose the file, and a file system of its own need never answer. */
uint64_t rs_proof_handle_inode(int handle)
{
	static const char socket[] = "socket:[";
	char what[64], *p = what + sizeof(socket) - 1;
	uint64_t inode = 0;

	if (!rs_fd_describe(handle, what, sizeof(what)) ||
	    strncmp(what, socket, sizeof(socket) - 1) != 0)
		return 0;
	for (; *p >= '0' && *p <= '9'; p++)
		inode = inode * 10 + (uint64_t)(*p - '0');
	return *p == ']' ? inode : 0;
}

void rs_proof_forget(void)
{
	if (diag_fd >= 0)
		rs_fd_close(diag_fd);
	diag_fd = -1;
	lock.word = 0;
}
