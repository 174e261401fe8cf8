/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * test_lock.c - the futex lock: exclusion, no lost wake-up, who owns it, from a signal handler too
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "rsock/lock.h"
#include "rsock/sys.h"

#define THREADS 6
#define ROUNDS 30000

static struct rs_lock lock;
static uint64_t counter; /* plain: the lock is what protects it */
static uint32_t inside;

static void alone(void **state)
{
	(void)state;
	assert_false(rs_lock_mine(&lock));
	rs_lock(&lock);
	assert_true(rs_lock_mine(&lock));
	assert_false(rs_trylock(&lock));
	rs_unlock(&lock);
	assert_false(rs_lock_mine(&lock));
	assert_true(rs_trylock(&lock));
	assert_int_equal(lock.word, (uint32_t)rs_sys0(SYS_gettid));
	rs_unlock(&lock);
	assert_int_equal(lock.word, 0);
}

static void *count(void *arg)
{
	uintptr_t kind = (uintptr_t)arg;

	for (uint32_t i = 0; i < ROUNDS; i++) {
		if (kind == 1) {
			while (!rs_trylock(&lock))
				sched_yield();
		} else {
			rs_lock(&lock);
		}
		if (inside++)
			abort();
		counter++;
		/* Now and then for so long that the others go to sleep. */
		if (i % 3000 == 0)
			usleep(200);
		if (!rs_lock_mine(&lock))
			abort();
		inside--;
		rs_unlock(&lock);
	}
	return NULL;
}

static void exclusion(void **state)
{
	pthread_t t[THREADS];

	(void)state;
	counter = 0;
	for (uintptr_t i = 0; i < THREADS; i++)
		pthread_create(&t[i], NULL, count, (void *)i);
	for (size_t i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	assert_int_equal(counter, (uint64_t)THREADS * ROUNDS);
	assert_int_equal(lock.word, 0);
}

static void *hold(void *arg)
{
	uint32_t *stage = arg;

	rs_lock(&lock);
	__atomic_store_n(stage, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(stage, __ATOMIC_SEQ_CST) == 1)
		usleep(100);
	rs_unlock(&lock);
	return NULL;
}

static void *take_once(void *arg)
{
	(void)arg;
	rs_lock(&lock);
	counter++;
	rs_unlock(&lock);
	return NULL;
}

/* Many sleepers behind one long hold: each is woken. */
static void sleepers(void **state)
{
	(void)state;
	for (int round = 0; round < 20; round++) {
		pthread_t holder, t[THREADS];
		uint32_t stage = 0;

		counter = 0;
		pthread_create(&holder, NULL, hold, &stage);
		while (!__atomic_load_n(&stage, __ATOMIC_SEQ_CST))
			sched_yield();
		assert_false(rs_lock_mine(&lock));
		for (size_t i = 0; i < THREADS; i++)
			pthread_create(&t[i], NULL, take_once, NULL);
		usleep(1000);
		__atomic_store_n(&stage, 2, __ATOMIC_SEQ_CST);
		for (size_t i = 0; i < THREADS; i++)
			pthread_join(t[i], NULL);
		pthread_join(holder, NULL);
		assert_int_equal(counter, THREADS);
		assert_int_equal(lock.word, 0);
	}
}

static volatile sig_atomic_t mine_in_handler;

static void handler(int sig)
{
	(void)sig;
	mine_in_handler = rs_lock_mine(&lock) ? 1 : 2;
}

static void in_a_handler(void **state)
{
	(void)state;
	signal(SIGUSR1, handler);
	raise(SIGUSR1);
	assert_int_equal(mine_in_handler, 2);
	rs_lock(&lock);
	raise(SIGUSR1);
	assert_int_equal(mine_in_handler, 1);
	rs_unlock(&lock);
	signal(SIGUSR1, SIG_DFL);
}

static void errno_stays(void **state)
{
	pthread_t holder;
	uint32_t stage = 0;

	(void)state;
	pthread_create(&holder, NULL, hold, &stage);
	while (!__atomic_load_n(&stage, __ATOMIC_SEQ_CST))
		sched_yield();
	errno = ENOTTY;
	__atomic_store_n(&stage, 2, __ATOMIC_SEQ_CST);
	rs_lock(&lock);
	assert_int_equal(errno, ENOTTY);
	rs_unlock(&lock);
	pthread_join(holder, NULL);
}

static void after_fork(void **state)
{
	uint32_t before = rs_tid();
	int status;
	pid_t pid = fork();

	(void)state;
	if (pid == 0) {
		rs_tid_cache = 0;
		_exit(rs_tid() != before && rs_tid() == (uint32_t)getpid() ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(alone),       cmocka_unit_test(exclusion),
		cmocka_unit_test(sleepers),    cmocka_unit_test(in_a_handler),
		cmocka_unit_test(errno_stays), cmocka_unit_test(after_fork),
	};

	alarm(60);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
