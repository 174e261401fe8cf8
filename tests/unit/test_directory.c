/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * test_directory.c - the directory of a pre-forking server, within one process, between processes
 * and after the death of one
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "conn_mgr/directory.h"

static const uint8_t local[16] = { 127, 0, 0, 1 };

static void name_for(uint32_t n, char name[RS_NAME_LEN])
{
	memset(name, 0, RS_NAME_LEN);
	snprintf(name, RS_NAME_LEN, "rsock.p.%u", n);
}

static bool has(struct rs_directory *d, uint8_t family, const uint8_t *ip, uint16_t port,
		uint32_t n)
{
	char got[RS_NAME_LEN], want[RS_NAME_LEN];

	name_for(n, want);
	return rs_directory_get(d, family, ip, port, got) && strcmp(got, want) == 0;
}

static void put_get_drop(void **state)
{
	struct rs_directory *d = rs_directory_new();
	char name[RS_NAME_LEN];

	(void)state;
	assert_non_null(d);
	assert_false(rs_directory_get(d, 4, local, 1, name));
	name_for(1, name);
	rs_directory_put(d, 4, local, 1, name);
	assert_true(has(d, 4, local, 1, 1));
	assert_false(has(d, 4, local, 2, 1));
	assert_false(rs_directory_get(d, 6, local, 1, name));
	/* The same client again: the newer one counts. */
	name_for(2, name);
	rs_directory_put(d, 4, local, 1, name);
	assert_true(has(d, 4, local, 1, 2));
	rs_directory_drop(d, 4, local, 1);
	assert_false(rs_directory_get(d, 4, local, 1, name));
	rs_directory_drop(d, 4, local, 1);
}

/* The later half of an address is no part of an IPv4 address, and much of an IPv6 one. */
static void families(void **state)
{
	struct rs_directory *d = rs_directory_new();
	uint8_t ip[16] = { 0x20, 1, 0xd, 0xb8 };
	char name[RS_NAME_LEN];

	(void)state;
	for (uint32_t i = 0; i < 100; i++) {
		ip[15] = (uint8_t)i;
		name_for(i, name);
		rs_directory_put(d, 6, ip, 443, name);
	}
	for (uint32_t i = 0; i < 100; i++) {
		ip[15] = (uint8_t)i;
		assert_true(has(d, 6, ip, 443, i));
	}
}

static void many(void **state)
{
	struct rs_directory *d = rs_directory_new();
	char name[RS_NAME_LEN];
	uint32_t kept = 0;

	(void)state;
	/* Half full: all of them are found. */
	for (uint32_t i = 0; i < 8000; i++) {
		name_for(i, name);
		rs_directory_put(d, 4, local, (uint16_t)i, name);
	}
	for (uint32_t i = 0; i < 8000; i++)
		assert_true(has(d, 4, local, (uint16_t)i, i));
	/* More than there is room for: entries are dropped, and nothing is found that is wrong. */
	for (uint32_t i = 8000; i < 65536; i++) {
		name_for(i, name);
		rs_directory_put(d, 4, local, (uint16_t)i, name);
	}
	for (uint32_t i = 0; i < 65536; i++) {
		if (!rs_directory_get(d, 4, local, (uint16_t)i, name))
			continue;
		assert_true(has(d, 4, local, (uint16_t)i, i));
		kept++;
	}
	assert_true(kept > 12000 && kept <= 16384);
	for (uint32_t i = 0; i < 65536; i++)
		rs_directory_drop(d, 4, local, (uint16_t)i);
	for (uint32_t i = 0; i < 65536; i++)
		assert_false(rs_directory_get(d, 4, local, (uint16_t)i, name));
}

static void names_end(void **state)
{
	struct rs_directory *d = rs_directory_new();
	char name[RS_NAME_LEN];

	(void)state;
	memset(name, 'x', sizeof(name)); /* whoever wrote that could have written anything */
	rs_directory_put(d, 4, local, 9, name);
	assert_true(rs_directory_get(d, 4, local, 9, name));
	assert_int_equal(strlen(name), RS_NAME_LEN - 1);
}

/* What one worker puts in, another finds; only the owner drops it. */
static void shared(void **state)
{
	struct rs_directory *d = rs_directory_new();
	char name[RS_NAME_LEN];
	int status;
	pid_t pid;

	(void)state;
	name_for(1, name);
	rs_directory_put(d, 4, local, 1, name);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		bool ok = has(d, 4, local, 1, 1);

		rs_directory_drop(d, 4, local, 1);
		name_for(2, name);
		rs_directory_put(d, 4, local, 2, name);
		_exit(ok ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_true(has(d, 4, local, 1, 1));
	assert_true(has(d, 4, local, 2, 2));
}

/* Entries of a dead worker make room. */
static void dead_worker(void **state)
{
	struct rs_directory *d = rs_directory_new();
	char name[RS_NAME_LEN];
	uint32_t found = 0;
	int status;
	pid_t pid = fork();

	(void)state;
	assert_true(pid >= 0);
	if (pid == 0) {
		name_for(7, name);
		for (uint32_t i = 0; i < 65536; i++)
			rs_directory_put(d, 4, local, (uint16_t)i, name);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	name_for(8, name);
	for (uint32_t i = 0; i < 10000; i++)
		rs_directory_put(d, 6, local, (uint16_t)i, name);
	for (uint32_t i = 0; i < 10000; i++)
		found += has(d, 6, local, (uint16_t)i, 8);
	assert_true(found > 9000);
}

/* A reason is that of one socket, is no name, and outlives what the same process drops. */
static void refused(void **state)
{
	struct rs_directory *d = rs_directory_new();
	char name[RS_NAME_LEN];

	(void)state;
	assert_int_equal(rs_directory_refused(d, 4, local, 1, 77), 0);
	name_for(1, name);
	rs_directory_put(d, 4, local, 1, name);
	assert_int_equal(rs_directory_refused(d, 4, local, 1, 77), 0);
	rs_directory_refuse(d, 4, local, 1, 77, 5);
	assert_int_equal(rs_directory_refused(d, 4, local, 1, 77), 5);
	assert_int_equal(rs_directory_refused(d, 4, local, 1, 78), 0);
	assert_int_equal(rs_directory_refused(d, 4, local, 2, 77), 0);
	assert_int_equal(rs_directory_refused(d, 6, local, 1, 77), 0);
	assert_false(rs_directory_get(d, 4, local, 1, name));
	rs_directory_drop(d, 4, local, 1);
	assert_int_equal(rs_directory_refused(d, 4, local, 1, 77), 5);
	/* The client's port serves again. */
	name_for(2, name);
	rs_directory_put(d, 4, local, 1, name);
	assert_true(has(d, 4, local, 1, 2));
	assert_int_equal(rs_directory_refused(d, 4, local, 1, 77), 0);
	rs_directory_refuse(d, 4, local, 1, 78, 6);
	assert_int_equal(rs_directory_refused(d, 4, local, 1, 77), 0);
	assert_int_equal(rs_directory_refused(d, 4, local, 1, 78), 6);
}

/* Several processes write and read at once: whatever is found belongs to the client. */
static void at_once(void **state)
{
	struct rs_directory *d = rs_directory_new();
	pid_t pid[4];

	(void)state;
	for (uint32_t p = 0; p < 4; p++) {
		pid[p] = fork();
		assert_true(pid[p] >= 0);
		if (pid[p] == 0) {
			char name[RS_NAME_LEN];
			bool ok = true;

			for (uint32_t i = 0; i < 40000; i++) {
				uint16_t port = (uint16_t)(i * 7919 % 500);

				name_for(port, name);
				if (i % 3 == 0)
					rs_directory_put(d, 4, local, port, name);
				else if (i % 3 == 1)
					rs_directory_drop(d, 4, local, port);
				else if (rs_directory_get(d, 4, local, port, name))
					ok &= strncmp(name, "rsock.p.", 8) == 0 &&
					      (uint16_t)atoi(name + 8) == port;
			}
			_exit(ok ? 0 : 1);
		}
	}
	for (uint32_t p = 0; p < 4; p++) {
		int status;

		assert_int_equal(waitpid(pid[p], &status, 0), pid[p]);
		assert_int_equal(status, 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(put_get_drop), cmocka_unit_test(families),
		cmocka_unit_test(many),		cmocka_unit_test(names_end),
		cmocka_unit_test(shared),	cmocka_unit_test(dead_worker),
		cmocka_unit_test(refused),	cmocka_unit_test(at_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
