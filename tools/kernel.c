/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * kernel.c - one sock_diag dump of the TCP sockets, sorted by inode
 */
#include "tools/kernel.h"

#include <arpa/inet.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/tcp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* enum from include/net/tcp_states.h; <netinet/tcp.h> has it but contradicts <linux/tcp.h> */
enum {
	STATE_SYN_SENT = 2,
	STATE_FIN_WAIT1 = 4,
	STATE_FIN_WAIT2 = 5,
	STATE_CLOSE_WAIT = 8,
	STATE_LAST_ACK = 9,
	STATE_CLOSING = 11,
	STATE_LISTEN = 10,
};

static struct {
	struct kernel_socket *sockets;
	size_t count;
	size_t room;
} snapshot;

static int by_inode(const void *a, const void *b)
{
	uint64_t x = ((const struct kernel_socket *)a)->inode;
	uint64_t y = ((const struct kernel_socket *)b)->inode;

	return (x > y) - (x < y);
}

static void set_addr(struct rs_stats_addr *addr, const __be32 ip[4], __be16 port)
{
	addr->port = ntohs(port);
	memcpy(addr->ip, ip, sizeof(addr->ip));
}

static void add_socket(const struct nlmsghdr *nlh)
{
	const struct inet_diag_msg *msg = NLMSG_DATA(nlh);
	unsigned int left;
	const struct rtattr *attr;
	struct kernel_socket s = { 0 };

	if (nlh->nlmsg_len < NLMSG_LENGTH(sizeof(*msg)) || msg->idiag_inode == 0 ||
	    msg->idiag_state == STATE_LISTEN)
		return;
	if (snapshot.count == snapshot.room) {
		size_t room = snapshot.room ? 2 * snapshot.room : 64;
		void *bigger = reallocarray(snapshot.sockets, room, sizeof(s));

		if (!bigger)
			return;
		snapshot.sockets = bigger;
		snapshot.room = room;
	}
	s.inode = msg->idiag_inode;
	s.family = msg->idiag_family;
	s.state = msg->idiag_state;
	set_addr(&s.local, msg->id.idiag_src, msg->id.idiag_sport);
	set_addr(&s.peer, msg->id.idiag_dst, msg->id.idiag_dport);

	left = nlh->nlmsg_len - (unsigned int)NLMSG_LENGTH(sizeof(*msg));
	for (attr = (const void *)(msg + 1); RTA_OK(attr, left); attr = RTA_NEXT(attr, left)) {
		struct tcp_info info = { 0 };
		size_t len = (size_t)RTA_PAYLOAD(attr);

		if (attr->rta_type != INET_DIAG_INFO)
			continue;
		memcpy(&info, RTA_DATA(attr), len < sizeof(info) ? len : sizeof(info));
		s.written = info.tcpi_bytes_acked + msg->idiag_wqueue;
		s.read = info.tcpi_bytes_received - msg->idiag_rqueue;
		s.unread = msg->idiag_rqueue;
	}
	snapshot.sockets[snapshot.count++] = s;
}

static void dump(int nl, int family)
{
	struct {
		struct nlmsghdr nlh;
		struct inet_diag_req_v2 req;
	} ask = {
		.nlh = { .nlmsg_len = sizeof(ask),
			 .nlmsg_type = SOCK_DIAG_BY_FAMILY,
			 .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP },
		.req = { .sdiag_family = (uint8_t)family,
			 .sdiag_protocol = IPPROTO_TCP,
			 .idiag_ext = 1 << (INET_DIAG_INFO - 1),
			 .idiag_states = ~0u },
	};
	static _Alignas(struct nlmsghdr) char buf[1 << 16];

	if (send(nl, &ask, sizeof(ask), 0) != sizeof(ask))
		return;
	for (;;) {
		ssize_t n = recv(nl, buf, sizeof(buf), 0);
		const struct nlmsghdr *nlh = (const void *)buf;
		size_t left = n > 0 ? (size_t)n : 0;

		if (n <= 0)
			return;
		for (; NLMSG_OK(nlh, left); nlh = NLMSG_NEXT(nlh, left)) {
			if (nlh->nlmsg_type == NLMSG_DONE || nlh->nlmsg_type == NLMSG_ERROR)
				return;
			if (nlh->nlmsg_type == SOCK_DIAG_BY_FAMILY)
				add_socket(nlh);
		}
	}
}

static void take_snapshot(void)
{
	int nl = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);

	if (nl < 0)
		return;
	dump(nl, AF_INET);
	dump(nl, AF_INET6);
	close(nl);
	if (snapshot.count)
		qsort(snapshot.sockets, snapshot.count, sizeof(*snapshot.sockets), by_inode);
}

const struct kernel_socket *kernel_socket_find(uint64_t inode)
{
	static bool taken;
	struct kernel_socket key = { .inode = inode };

	if (!taken)
		take_snapshot();
	taken = true;
	if (inode == 0 || snapshot.count == 0)
		return NULL;
	return bsearch(&key, snapshot.sockets, snapshot.count, sizeof(key), by_inode);
}

/* tcpi_bytes_acked counts our SYN, but only on the connecting side (measured), and our FIN. */
uint64_t kernel_tx_bytes(const struct kernel_socket *s, int accepted)
{
	bool fin = s->state == STATE_FIN_WAIT1 || s->state == STATE_FIN_WAIT2 ||
		   s->state == STATE_CLOSING || s->state == STATE_LAST_ACK;
	uint64_t extra = (accepted ? 0u : 1u) + (fin ? 1u : 0u);

	return s->written > extra ? s->written - extra : 0;
}

/* The peer's FIN is in the receive queue until the program has read the end of file. */
uint64_t kernel_rx_bytes(const struct kernel_socket *s)
{
	bool fin = s->state == STATE_CLOSE_WAIT || s->state == STATE_LAST_ACK ||
		   s->state == STATE_CLOSING;

	return s->read - (fin && s->unread == 0 && s->read > 0 ? 1u : 0u);
}
