/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * test_state.c - the memory of streams: a forked child sees its parent's, and can never write it
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "conn_mgr/state.h"
#include "rsock/sys.h"

#define MANY 200 /* of several chunks */

static uintptr_t page_of(const void *p)
{
	return (uintptr_t)p & ~(uintptr_t)(getpagesize() - 1);
}

static bool is_mapped(const void *p)
{
	unsigned char in_core;

	return mincore((void *)page_of(p), 1, &in_core) == 0 || errno != ENOMEM;
}

static bool can_be_written(const void *p)
{
	return mprotect((void *)page_of(p), 1, PROT_READ | PROT_WRITE) == 0;
}

/* Runs `child` in a forked process; the byte that it is told by then was written after the fork. */
static void in_child(bool (*child)(struct rs_state_mem *m))
{
	struct rs_state_mem m = { 0 };
	int go[2], status;
	pid_t pid;
	char c;

	assert_true(rs_state_take(&m));
	m.own->ktx = 1;
	assert_int_equal(pipe(go), 0);
	pid = (pid_t)rs_sys0(SYS_fork); /* without the handlers of rsock, which do all this */
	assert_true(pid >= 0);
	if (pid == 0) {
		rs_states_forget();
		_exit(read(go[0], &c, 1) == 1 && child(&m) ? 0 : 1);
	}
	m.own->ktx = 2;
	assert_int_equal(write(go[1], "", 1), 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(m.own->ktx, 2);
	close(go[0]);
	close(go[1]);
}

static void each_has_its_own(void **state)
{
	static struct rs_state_mem m[MANY];

	(void)state;
	for (uint64_t i = 0; i < MANY; i++) {
		assert_true(rs_state_take(&m[i]));
		assert_non_null(m[i].seen);
		assert_int_equal(m[i].own->ktx | m[i].shared->rest | m[i].shared->ends, 0);
		m[i].own->ktx = i + 1;
		m[i].shared->rest = i + 1;
	}
	for (uint64_t i = 0; i < MANY; i++) {
		assert_int_equal(m[i].seen->ktx, i + 1);
		assert_int_equal(m[i].shared->rest, i + 1);
	}
}

static bool takes_unseen(struct rs_state_mem *m)
{
	const struct rlimit none = { 0 };
	struct rs_state_mem mine;

	rs_states_seal(false);
	if (setrlimit(RLIMIT_FSIZE, &none) != 0 || !rs_state_take(&mine) || mine.seen)
		return false;
	mine.own->ktx = mine.shared->rest = 5;
	return m->seen->ktx == 2;
}

static void without_files_no_child_sees_it(void **state)
{
	(void)state;
	in_child(takes_unseen);
}

static bool only_sees(struct rs_state_mem *m)
{
	rs_states_seal(false);
	return m->seen->ktx == 2 && !is_mapped(m->own) && !can_be_written(m->seen);
}

static void child_sees_and_cannot_write(void **state)
{
	(void)state;
	in_child(only_sees);
}

static bool has_a_copy(struct rs_state_mem *m)
{
	rs_states_seal(true);
	m->own->ktx = 3;
	return m->seen->ktx == 2 && !can_be_written(m->seen);
}

static void child_inside_a_call_has_a_copy(void **state)
{
	(void)state;
	in_child(has_a_copy);
}

static bool takes(struct rs_state_mem *m)
{
	struct rs_state_mem mine;

	rs_states_seal(false);
	if (!rs_state_take(&mine) || mine.own == m->own || mine.shared == m->shared)
		return false;
	mine.own->ktx = 4;
	rs_states_unmap_inherited();
	return mine.seen->ktx == 4 && !is_mapped(m->seen) && !is_mapped(m->shared);
}

static void child_takes_its_own(void **state)
{
	(void)state;
	in_child(takes);
}

static bool is_over_in_grandchild(struct rs_state_mem *m)
{
	int status;
	pid_t pid;

	rs_states_seal(false);
	pid = (pid_t)rs_sys0(SYS_fork); /* without the handlers of rsock, which do all this */
	if (pid == 0) {
		rs_states_forget();
		rs_states_seal(false);
		if (m->seen->ktx != 2 || can_be_written(m->seen))
			_exit(1);
		rs_states_unmap_inherited();
		_exit(is_mapped(m->seen) ? 1 : 0);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0 && m->seen->ktx == 2;
}

static void grandchild_sees_it_too(void **state)
{
	(void)state;
	in_child(is_over_in_grandchild);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_has_its_own),
		cmocka_unit_test(without_files_no_child_sees_it),
		cmocka_unit_test(child_sees_and_cannot_write),
		cmocka_unit_test(child_inside_a_call_has_a_copy),
		cmocka_unit_test(child_takes_its_own),
		cmocka_unit_test(grandchild_sees_it_too),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
