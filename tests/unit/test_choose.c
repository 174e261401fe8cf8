/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * test_choose.c - which RDMA port and GID serve a route: plain netdevs, VLANs, bonds, bridges, both
 * address families, RoCE, iWARP and InfiniBand
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <arpa/inet.h>
#include <cmocka.h>

#include "rsock/rdma/choose.h"

#define V4(text) (address("::ffff:" text))
#define V6(text) (address(text))

struct ip {
	uint8_t b[16];
};

static struct ip address(const char *text)
{
	struct ip ip;

	assert_int_equal(inet_pton(AF_INET6, text, ip.b), 1);
	return ip;
}

static struct rs_netdev netdev(uint32_t index, uint8_t depth, uint32_t mtu)
{
	return (struct rs_netdev){
		.index = index,
		.depth = depth,
		.up = true,
		.mtu = mtu,
		.hw = { 0x52, 0x54, 0, 0, 0, (uint8_t)index },
		.hw_len = 6,
	};
}

static struct rs_way way(struct ip ip, struct rs_netdev d)
{
	struct rs_way w = { .n = 1, .netdev = { d } };

	memcpy(w.ip, ip.b, 16);
	return w;
}

static void below(struct rs_way *w, struct rs_netdev d)
{
	w->netdev[w->n++] = d;
}

static struct rs_gid gid(uint32_t port, uint32_t index, uint32_t nd, bool v2, struct ip ip)
{
	struct rs_gid g = { .port = port, .index = index, .netdev = nd, .v2 = v2 };

	memcpy(g.raw, ip.b, 16);
	return g;
}

static const struct rs_port roce[] = {
	{ "rxe0", 1, RS_PORT_ROCE, true, 4096 },
	{ "rxe1", 1, RS_PORT_ROCE, true, 1024 },
};

static void the_gid_of_the_own_address(void **state)
{
	const struct rs_gid gids[] = {
		gid(0, 0, 2, true, V6("fe80::1")),    gid(0, 1, 2, false, V4("10.0.0.1")),
		gid(0, 2, 2, true, V4("10.0.0.1")),   gid(0, 3, 2, true, V6("fd00::1")),
		gid(0, 4, 2, true, V4("10.0.0.100")),
	};
	struct rs_way w = way(V4("10.0.0.1"), netdev(2, 0, 4200));
	struct rs_choice c;

	(void)state;
	assert_int_equal(rs_choose(&w, roce, 2, gids, 5, &c), RS_SERVED);
	assert_int_equal(gids[c.gid].index, 2);
	assert_int_equal(c.mtu, 4096);
	w = way(V6("fd00::1"), netdev(2, 0, 1500));
	assert_int_equal(rs_choose(&w, roce, 2, gids, 5, &c), RS_SERVED);
	assert_int_equal(gids[c.gid].index, 3);
	assert_int_equal(c.mtu, 1024);
	/* ::10.0.0.1 is not ::ffff:10.0.0.1 */
	w = way(V6("::10.0.0.1"), netdev(2, 0, 1500));
	assert_int_equal(rs_choose(&w, roce, 2, gids, 5, &c), RS_UNSERVED_NO_GID);
	/* only RoCE v1 left */
	w = way(V4("10.0.0.1"), netdev(2, 0, 4200));
	assert_int_equal(rs_choose(&w, roce, 2, gids, 2, &c), RS_UNSERVED_NO_GID);
}

static void another_netdev_does_not_do(void **state)
{
	const struct rs_gid gids[] = { gid(0, 1, 2, true, V4("10.0.0.1")),
				       gid(7, 1, 3, true, V4("10.0.0.1")) };
	struct rs_way w = way(V4("10.0.0.1"), netdev(3, 0, 1500));
	struct rs_choice c;

	(void)state;
	assert_int_equal(rs_choose(&w, roce, 2, gids, 2, &c), RS_UNSERVED_NO_PORT);
	assert_int_equal(rs_choose(&w, roce, 0, gids, 2, &c), RS_UNSERVED_NO_PORT);
	assert_int_equal(rs_choose(&w, roce, 2, NULL, 0, &c), RS_UNSERVED_NO_PORT);
	w.n = 0;
	assert_int_equal(rs_choose(&w, roce, 2, gids, 2, &c), RS_UNSERVED_NO_PORT);
}

static void only_what_is_up(void **state)
{
	struct rs_port ports[] = { roce[0], roce[1] };
	const struct rs_gid gids[] = { gid(0, 1, 2, true, V4("10.0.0.1")),
				       gid(1, 1, 2, true, V4("10.0.0.1")) };
	struct rs_way w = way(V4("10.0.0.1"), netdev(2, 0, 4200));
	struct rs_choice c;

	(void)state;
	ports[0].active = false;
	assert_int_equal(rs_choose(&w, ports, 2, gids, 2, &c), RS_SERVED);
	assert_int_equal(c.port, 1);
	assert_int_equal(c.mtu, 1024); /* the port's own is less than the netdev's */
	ports[1].active = false;
	assert_int_equal(rs_choose(&w, ports, 2, gids, 2, &c), RS_UNSERVED_DOWN);
	ports[0].active = true;
	w.netdev[0].up = false;
	assert_int_equal(rs_choose(&w, ports, 2, gids, 2, &c), RS_UNSERVED_DOWN);
	w.netdev[0].up = true;
	w.mtu = 300; /* of the route: not even the smallest packet */
	assert_int_equal(rs_choose(&w, ports, 2, gids, 2, &c), RS_UNSERVED_DOWN);
	w.mtu = 1280;
	assert_int_equal(rs_choose(&w, ports, 2, gids, 2, &c), RS_SERVED);
	assert_int_equal(c.mtu, 1024);
}

static void a_vlan(void **state)
{
	const struct rs_gid gids[] = { gid(0, 1, 2, true, V4("10.0.0.1")),
				       gid(0, 5, 9, true, V4("10.1.0.1")) };
	struct rs_way w = way(V4("10.1.0.1"), netdev(9, 0, 1500));
	struct rs_choice c;

	(void)state;
	below(&w, netdev(2, 1, 4200));
	assert_int_equal(rs_choose(&w, roce, 2, gids, 2, &c), RS_SERVED);
	assert_int_equal(gids[c.gid].index, 5);
	assert_int_equal(c.netdev, 0);
	assert_int_equal(c.mtu, 1024); /* the VLAN's, not that of what is below */
	/* No GID of that address, but a port: that is worth another text. */
	assert_int_equal(rs_choose(&w, roce, 2, gids, 1, &c), RS_UNSERVED_NO_GID);
	/* The address on both: the outgoing netdev wins, wherever it is in the table. */
	const struct rs_gid both[] = { gid(0, 1, 2, true, V4("10.1.0.1")),
				       gid(0, 5, 9, true, V4("10.1.0.1")) };

	assert_int_equal(rs_choose(&w, roce, 2, both, 2, &c), RS_SERVED);
	assert_int_equal(both[c.gid].index, 5);
}

static void a_bond(void **state)
{
	const struct rs_gid gids[] = { gid(0, 1, 2, true, V4("10.0.0.1")),
				       gid(1, 1, 3, true, V4("10.0.0.1")) };
	struct rs_way w = way(V4("10.0.0.1"), netdev(9, 0, 4200));
	struct rs_choice c;

	(void)state;
	below(&w, netdev(2, 1, 4200));
	below(&w, netdev(3, 1, 4200));
	w.netdev[1].passive = true;
	assert_int_equal(rs_choose(&w, roce, 2, gids, 2, &c), RS_SERVED);
	assert_int_equal(c.port, 1);
	w.netdev[1].passive = false;
	w.netdev[2].passive = true;
	assert_int_equal(rs_choose(&w, roce, 2, gids, 2, &c), RS_SERVED);
	assert_int_equal(c.port, 0);
	/* The active one is down, and the bond does not know yet. */
	w.netdev[1].up = false;
	assert_int_equal(rs_choose(&w, roce, 2, gids, 2, &c), RS_SERVED);
	assert_int_equal(c.port, 1);
}

static void a_bridge_is_a_no(void **state)
{
	const struct rs_gid gids[] = { gid(0, 1, 9, true, V4("10.0.0.1")) };
	struct rs_way w = way(V4("10.0.0.1"), netdev(9, 0, 4200));
	struct rs_choice c;

	(void)state;
	w.netdev[0].bridge = true;
	assert_int_equal(rs_choose(&w, roce, 2, gids, 1, &c), RS_UNSERVED_BRIDGE);
}

static void iwarp_and_infiniband(void **state)
{
	const struct rs_port ports[] = { { "siw0", 1, RS_PORT_IWARP, true, 1024 },
					 { "mlx4_0", 2, RS_PORT_IB, true, 2048 } };
	struct rs_gid gids[] = { { .port = 0, .raw = { 0x52, 0x54, 0, 0, 0, 2 } },
				 { .port = 1, .raw = { 0xfe, 0x80, [15] = 7 } } };
	struct rs_way w = way(V4("10.0.0.1"), netdev(2, 0, 1500));
	struct rs_choice c;

	(void)state;
	assert_int_equal(rs_choose(&w, ports, 2, gids, 2, &c), RS_SERVED);
	assert_int_equal(c.port, 0);
	assert_int_equal(c.mtu, 1500);
	w = way(V4("10.0.0.1"), netdev(5, 0, 2044));
	memset(w.netdev[0].hw, 0x80, 4);
	memcpy(w.netdev[0].hw + 4, gids[1].raw, 16);
	w.netdev[0].hw_len = 20;
	assert_int_equal(rs_choose(&w, ports, 2, gids, 2, &c), RS_SERVED);
	assert_int_equal(c.port, 1);
	assert_int_equal(c.mtu, 2048);
	w.netdev[0].hw[19]++;
	assert_int_equal(rs_choose(&w, ports, 2, gids, 2, &c), RS_UNSERVED_NO_PORT);
}

static void mtus(void **state)
{
	(void)state;
	assert_int_equal(rs_roce_mtu(0), 0);
	assert_int_equal(rs_roce_mtu(96 + 255), 0);
	assert_int_equal(rs_roce_mtu(96 + 256), 256);
	assert_int_equal(rs_roce_mtu(1500), 1024);
	assert_int_equal(rs_roce_mtu(96 + 2047), 1024);
	assert_int_equal(rs_roce_mtu(96 + 2048), 2048);
	assert_int_equal(rs_roce_mtu(4191), 2048);
	assert_int_equal(rs_roce_mtu(4192), 4096);
	assert_int_equal(rs_roce_mtu(UINT32_MAX), 4096);
}

static void texts(void **state)
{
	(void)state;
	for (int u = RS_SERVED; u <= RS_UNSERVED_DOWN; u++)
		assert_true(strlen(rs_unserved_text((enum rs_unserved)u)) > 5);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_gid_of_the_own_address),
		cmocka_unit_test(another_netdev_does_not_do),
		cmocka_unit_test(only_what_is_up),
		cmocka_unit_test(a_vlan),
		cmocka_unit_test(a_bond),
		cmocka_unit_test(a_bridge_is_a_no),
		cmocka_unit_test(iwarp_and_infiniband),
		cmocka_unit_test(mtus),
		cmocka_unit_test(texts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
