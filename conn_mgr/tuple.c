/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/tuple.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>

#include "conn_mgr/conn.h"
#include "rsock/rows.h"
#include "rsock/sys.h"

bool rs_address(const struct sockaddr_storage *sa, uint8_t *family, uint8_t ip[16], uint16_t *port)
{
	memset(ip, 0, 16);
	if (sa->ss_family == AF_INET) {
		const struct sockaddr_in *in = (const struct sockaddr_in *)sa;

		*family = 4;
		memcpy(ip, &in->sin_addr, 4);
		*port = ntohs(in->sin_port);
		return true;
	}
	if (sa->ss_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)sa;

		*port = ntohs(in6->sin6_port);
		if (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr)) {
			*family = 4;
			memcpy(ip, in6->sin6_addr.s6_addr + 12, 4);
		} else {
			*family = 6;
			memcpy(ip, &in6->sin6_addr, 16);
		}
		return true;
	}
	return false;
}

static bool name_of(int fd, bool peer, uint8_t *family, uint8_t ip[16], uint16_t *port)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);

	memset(&sa, 0, sizeof(sa));
	if (rs_sys3(peer ? SYS_getpeername : SYS_getsockname, fd, &sa, &len) != 0)
		return false;
	return rs_address(&sa, family, ip, port);
}

bool rs_tuple_learn(struct rs_conn *c)
{
	struct rs_stats_addr local = { 0 }, peer = { 0 };
	struct rs_tuple *t = &c->tuple;
	uint8_t lf, pf;

	if (!name_of(c->fd, false, &lf, local.ip, &local.port) ||
	    !name_of(c->fd, true, &pf, peer.ip, &peer.port) || lf != pf)
		return false;
	t->family = lf;
	memcpy(c->server ? t->server_ip : t->client_ip, local.ip, 16);
	*(c->server ? &t->server_port : &t->client_port) = local.port;
	/* Of an accepted one the peer is known, and others look it up by that without this lock. */
	if (!c->server || !t->client_port) {
		memcpy(c->server ? t->client_ip : t->server_ip, peer.ip, 16);
		*(c->server ? &t->client_port : &t->server_port) = peer.port;
	}
	rs_row_address(c->row, lf == 4 ? AF_INET : AF_INET6, &local, &peer);
	return true;
}
