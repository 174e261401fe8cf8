/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/rdma/watch.h"

#include <errno.h>
#include <linux/rtnetlink.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <string.h>
#include <sys/socket.h>

#define UEVENTS_GROUP 1 /* the kernel's own; 2 is udev's */
#define BUDGET 256 /* messages at once; the rest makes the descriptor readable again */

static struct nl_sock *sock;
static int uevents = -1;

/* ---- rtnetlink ---- */

static void everything(struct rs_changes *c)
{
	c->some = true;
	memset(&c->prefix, 0, sizeof(c->prefix));
}

static void add_prefix(struct rs_changes *c, const struct rs_rdma_prefix *p)
{
	if (!c->some)
		c->prefix = *p;
	else if (memcmp(&c->prefix, p, sizeof(*p)) != 0)
		memset(&c->prefix, 0, sizeof(c->prefix));
	c->some = true;
}

static void route_changed(struct nlmsghdr *h, struct rs_changes *c)
{
	const struct rtmsg *rtm = nlmsg_data(h);
	struct nlattr *tb[RTA_MAX + 1];
	struct rs_rdma_prefix p = { .bits = 0 };
	bool v4 = rtm->rtm_family == AF_INET;

	if (!nlmsg_valid_hdr(h, sizeof(*rtm)) || (rtm->rtm_flags & RTM_F_CLONED) ||
	    (!v4 && rtm->rtm_family != AF_INET6) || rtm->rtm_type == RTN_MULTICAST ||
	    rtm->rtm_type == RTN_BROADCAST || rtm->rtm_type == RTN_ANYCAST)
		return;
	if (nlmsg_parse(h, sizeof(*rtm), tb, RTA_MAX, NULL) != 0 || !tb[RTA_DST]) {
		everything(c); /* the default route, or of a kind that we do not know */
		return;
	}
	if (nla_len(tb[RTA_DST]) != (v4 ? 4 : 16))
		return;
	memcpy(p.ip, nla_data(tb[RTA_DST]), v4 ? 4 : 16);
	p.family = v4 ? 4 : 6;
	p.bits = rtm->rtm_dst_len;
	add_prefix(c, &p);
}

static int changed(struct nl_msg *msg, void *arg)
{
	struct nlmsghdr *h = nlmsg_hdr(msg);
	struct rs_changes *c = arg;

	switch (h->nlmsg_type) {
	case RTM_NEWROUTE:
	case RTM_DELROUTE:
		route_changed(h, c);
		break;
	case RTM_NEWLINK:
	case RTM_DELLINK:
	case RTM_NEWADDR:
	case RTM_DELADDR:
		everything(c);
		break;
	}
	return NL_OK;
}

static int open_rtnetlink(const struct rs_rdma_host *host)
{
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);

	if (fd < 0)
		return -errno;
	fd = host->hide(fd);
	sock = nl_socket_alloc();
	if (!sock || nl_socket_set_fd(sock, NETLINK_ROUTE, fd) != 0) {
		host->close(fd);
		nl_socket_free(sock);
		sock = NULL;
		return -ENOMEM;
	}
	nl_socket_disable_seq_check(sock); /* nothing of it is an answer */
	if (nl_socket_add_memberships(sock, RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR,
				      RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE, RTNLGRP_NONE) != 0) {
		nl_socket_free(sock);
		sock = NULL;
		return -EIO;
	}
	return fd;
}

static void read_rtnetlink(struct rs_changes *c)
{
	int r = 0;

	nl_socket_modify_cb(sock, NL_CB_VALID, NL_CB_CUSTOM, changed, c);
	for (int i = 0; i < BUDGET && r >= 0; i++)
		r = nl_recvmsgs_default(sock);
	if (r < 0 && r != -NLE_AGAIN)
		everything(c); /* the socket was full */
}

/* ---- uevents ---- */

/*
 * The only news of a device that comes or goes which all kernels tell to all users. Where a user
 * namespace has none of them, the events of open devices and of the CM are left.
 */
static int open_uevents(const struct rs_rdma_host *host)
{
	const struct sockaddr_nl nl = { .nl_family = AF_NETLINK, .nl_groups = UEVENTS_GROUP };
	int fd =
		socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);

	if (fd < 0)
		return -1;
	fd = host->hide(fd);
	if (bind(fd, (const struct sockaddr *)&nl, sizeof(nl)) != 0) {
		host->close(fd);
		return -1;
	}
	return fd;
}

/* "remove@/devices/...", then NAME=VALUE, each with a NUL. */
static bool of_rdma(const char *text, size_t len)
{
	static const char wanted[] = "SUBSYSTEM=infiniband"; /* or infiniband_verbs */

	for (size_t at = 0; at < len; at += strnlen(text + at, len - at) + 1)
		if (len - at >= sizeof(wanted) &&
		    memcmp(text + at, wanted, sizeof(wanted) - 1) == 0)
			return true;
	return false;
}

static void read_uevents(struct rs_changes *c)
{
	char text[4096];
	struct sockaddr_nl from;
	ssize_t n = 0;

	for (int i = 0; i < BUDGET; i++) {
		socklen_t len = sizeof(from);

		n = recvfrom(uevents, text, sizeof(text), MSG_DONTWAIT, (struct sockaddr *)&from,
			     &len);
		if (n < 0)
			break;
		if (from.nl_pid == 0 && of_rdma(text, (size_t)n))
			c->devices = true;
	}
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		c->devices = true; /* the socket was full */
	if (c->devices)
		everything(c);
}

int rs_watch_open(const struct rs_rdma_host *host, int fd[2])
{
	fd[1] = -1;
	fd[0] = open_rtnetlink(host);
	if (fd[0] < 0)
		return fd[0];
	uevents = open_uevents(host);
	fd[1] = uevents;
	return 0;
}

void rs_watch_read(struct rs_changes *c)
{
	memset(c, 0, sizeof(*c));
	if (sock)
		read_rtnetlink(c);
	if (uevents >= 0)
		read_uevents(c);
}

void rs_watch_forget(const struct rs_rdma_host *host)
{
	if (sock)
		host->close(nl_socket_get_fd(sock));
	if (uevents >= 0)
		host->close(uevents);
}
