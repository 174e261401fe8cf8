/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/rdma/route.h"

#include <errno.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/route/link.h>
#include <netlink/route/route.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#define ANSWER_S 1 /* the kernel answers at once, or has had no memory to answer */

bool rs_route_address(const struct sockaddr *sa, uint8_t ip[16])
{
	if (sa->sa_family == AF_INET) {
		memset(ip, 0, 10);
		memset(ip + 10, 0xff, 2);
		memcpy(ip + 12, &((const struct sockaddr_in *)(const void *)sa)->sin_addr, 4);
		return true;
	}
	if (sa->sa_family == AF_INET6) {
		memcpy(ip, &((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr, 16);
		return true;
	}
	return false;
}

/* ---- the socket ---- */

/* On a descriptor that the program cannot close by accident; nl_socket_free() closes it. */
static struct nl_sock *open_socket(const struct rs_rdma_host *host)
{
	const struct timeval tv = { .tv_sec = ANSWER_S };
	struct nl_sock *sk = nl_socket_alloc();
	int fd;

	if (!sk)
		return NULL;
	fd = host->hide(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv)) != 0 ||
	    nl_socket_set_fd(sk, NETLINK_ROUTE, fd) != 0) {
		if (fd >= 0)
			host->close(fd);
		nl_socket_free(sk);
		return NULL;
	}
	/* An answer or an error is enough. */
	nl_socket_disable_auto_ack(sk);
	return sk;
}

/* ---- the route ---- */

static void keep(struct nl_object *obj, void *arg)
{
	struct rtnl_route **route = arg;

	if (*route)
		return;
	nl_object_get(obj);
	*route = (struct rtnl_route *)obj;
}

static int answered(struct nl_msg *msg, void *arg)
{
	nl_msg_parse(msg, keep, arg);
	return NL_OK;
}

static const void *bytes_of(const struct sockaddr *sa, int *len)
{
	*len = sa->sa_family == AF_INET ? 4 : 16;
	if (sa->sa_family == AF_INET)
		return &((const struct sockaddr_in *)(const void *)sa)->sin_addr;
	return &((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr;
}

static struct nl_msg *question(const struct sockaddr *from, const struct sockaddr *to)
{
	struct nl_msg *msg = nlmsg_alloc_simple(RTM_GETROUTE, 0);
	int len;
	const void *src = bytes_of(from, &len), *dst = bytes_of(to, &len);
	uint32_t scope = to->sa_family == AF_INET6
				 ? ((const struct sockaddr_in6 *)(const void *)to)->sin6_scope_id
				 : 0;
	struct rtmsg rtm = {
		.rtm_family = (unsigned char)to->sa_family,
		.rtm_dst_len = (unsigned char)(len * 8),
		.rtm_src_len = (unsigned char)(len * 8),
	};

	if (msg && nlmsg_append(msg, &rtm, sizeof(rtm), NLMSG_ALIGNTO) == 0 &&
	    nla_put(msg, RTA_SRC, len, src) == 0 && nla_put(msg, RTA_DST, len, dst) == 0 &&
	    (!scope || nla_put_u32(msg, RTA_OIF, scope) == 0))
		return msg;
	nlmsg_free(msg);
	return NULL;
}

/* The route, for the caller to put; NULL: none (*err). */
static struct rtnl_route *ask(struct nl_sock *sk, const struct sockaddr *from,
			      const struct sockaddr *to, int *err)
{
	struct nl_msg *msg = question(from, to);
	struct rtnl_route *route = NULL;
	int r;

	*err = -ENOMEM;
	if (!msg)
		return NULL;
	nl_socket_modify_cb(sk, NL_CB_VALID, NL_CB_CUSTOM, answered, &route);
	r = nl_send_auto(sk, msg);
	nlmsg_free(msg);
	if (r >= 0)
		r = nl_recvmsgs_default(sk);
	nl_socket_modify_cb(sk, NL_CB_VALID, NL_CB_DEFAULT, NULL, NULL);
	/* libnl has numbers of its own; what the kernel says of a route that is not there are many. */
	*err = r == -NLE_NOMEM ? -ENOMEM : -EHOSTUNREACH;
	return route;
}

/* ---- netdevs ---- */

static bool kind_is(struct rtnl_link *l, const char *kind)
{
	const char *type = rtnl_link_get_type(l);

	return type && strcmp(type, kind) == 0;
}

/* The slave that carries a bond's traffic in modes that have one; libnl-3 does not tell. */
static void active_slave(const char *bond, char name[IF_NAMESIZE])
{
	char path[64];
	FILE *f;

	name[0] = '\0';
	snprintf(path, sizeof(path), "/sys/class/net/%s/bonding/active_slave", bond);
	f = fopen(path, "re");
	if (!f)
		return;
	if (!fgets(name, IF_NAMESIZE, f))
		name[0] = '\0';
	name[strcspn(name, "\n")] = '\0';
	fclose(f);
}

static bool add(struct rs_way *w, struct rtnl_link *l, unsigned int depth)
{
	struct rs_netdev *d = &w->netdev[w->n];
	unsigned int flags = rtnl_link_get_flags(l);
	struct nl_addr *hw = rtnl_link_get_addr(l);
	const char *name = rtnl_link_get_name(l);

	if (w->n == RS_WAY_NETDEVS)
		return false;
	for (uint32_t i = 0; i < w->n; i++)
		if (w->netdev[i].index == (uint32_t)rtnl_link_get_ifindex(l))
			return false;
	memset(d, 0, sizeof(*d));
	d->index = (uint32_t)rtnl_link_get_ifindex(l);
	snprintf(d->name, sizeof(d->name), "%s", name ? name : "?");
	d->depth = (uint8_t)depth;
	d->bridge = kind_is(l, "bridge");
	d->up = (flags & IFF_UP) && (flags & IFF_RUNNING);
	d->mtu = rtnl_link_get_mtu(l);
	if (hw && nl_addr_get_len(hw) <= sizeof(d->hw)) {
		d->hw_len = (uint8_t)nl_addr_get_len(hw);
		memcpy(d->hw, nl_addr_get_binary_addr(hw), d->hw_len);
	}
	w->n++;
	return true;
}

static void add_slaves(struct rs_way *w, struct nl_cache *links, uint32_t at)
{
	const struct rs_netdev *master = &w->netdev[at];
	char active[IF_NAMESIZE];

	active_slave(master->name, active);
	for (struct nl_object *o = nl_cache_get_first(links); o; o = nl_cache_get_next(o)) {
		struct rtnl_link *l = (struct rtnl_link *)o;

		if (rtnl_link_get_master(l) == (int)master->index && add(w, l, master->depth + 1u))
			w->netdev[w->n - 1].passive =
				active[0] && strcmp(active, w->netdev[w->n - 1].name) != 0;
	}
}

/* What is below netdevs, and below that. */
static void descend(struct rs_way *w, struct nl_cache *links)
{
	for (uint32_t at = 0; at < w->n; at++) {
		struct rtnl_link *l = rtnl_link_get(links, (int)w->netdev[at].index), *lower;

		if (!l)
			continue;
		if (kind_is(l, "bond") || kind_is(l, "team")) {
			add_slaves(w, links, at);
		} else if (kind_is(l, "vlan") || kind_is(l, "macvlan")) {
			lower = rtnl_link_get(links, rtnl_link_get_link(l));
			if (lower) {
				add(w, lower, w->netdev[at].depth + 1u);
				rtnl_link_put(lower);
			}
		}
		rtnl_link_put(l);
	}
}

static int look_at_netdevs(struct nl_sock *sk, int index, struct rs_way *w)
{
	struct rtnl_link *l;
	struct nl_cache *links;
	bool stacked;

	if (rtnl_link_get_kernel(sk, index, NULL, &l) != 0)
		return -EHOSTUNREACH; /* it has gone this moment */
	add(w, l, 0);
	stacked = rtnl_link_get_type(l) != NULL;
	rtnl_link_put(l);
	if (!stacked || w->netdev[0].bridge)
		return 0;
	if (rtnl_link_alloc_cache(sk, AF_UNSPEC, &links) != 0)
		return -ENOMEM;
	descend(w, links);
	nl_cache_free(links);
	return 0;
}

int rs_route_find(const struct rs_rdma_host *host, const struct sockaddr *from,
		  const struct sockaddr *to, struct rs_way *w)
{
	struct nl_sock *sk = open_socket(host);
	struct rtnl_route *route;
	struct rtnl_nexthop *hop;
	int r;

	memset(w, 0, sizeof(*w));
	if (!sk)
		return -ENOMEM;
	r = -EHOSTUNREACH;
	if (!rs_route_address(from, w->ip) || from->sa_family != to->sa_family)
		goto free_socket;
	route = ask(sk, from, to, &r);
	if (!route)
		goto free_socket;
	hop = rtnl_route_nexthop_n(route, 0);
	r = -EHOSTUNREACH;
	if (rtnl_route_get_type(route) == RTN_LOCAL)
		r = -EADDRNOTAVAIL;
	else if (rtnl_route_get_type(route) == RTN_UNICAST && hop)
		r = look_at_netdevs(sk, rtnl_route_nh_get_ifindex(hop), w);
	if (r == 0 && rtnl_route_get_metric(route, RTAX_MTU, &w->mtu) != 0)
		w->mtu = 0;
	rtnl_route_put(route);
free_socket:
	nl_socket_free(sk);
	return r;
}
