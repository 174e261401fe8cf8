/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/lock.h"

#include <limits.h>

#include "rsock/sys.h"

#define SPINS 200

__thread uint32_t rs_tid_cache __attribute__((tls_model("initial-exec")));

uint32_t rs_tid_slow(void)
{
	rs_tid_cache = (uint32_t)rs_sys0(SYS_gettid);
	return rs_tid_cache;
}

static int spins = SPINS;

/*
 * It is not worth to look where the owner needs the only CPU that we may run on. At the start, for later a
 * sandbox may not allow to ask.
 */
__attribute__((constructor)) static void count_cpus(void)
{
	uint64_t cpus[16] = { 0 };
	long len = rs_sys3(SYS_sched_getaffinity, 0, sizeof(cpus), cpus), n = 0;

	for (long i = 0; i < len / 8; i++)
		n += __builtin_popcountll(cpus[i]);
	if (n == 1)
		spins = 0;
}

void rs_lock_slow(struct rs_lock *l, uint32_t tid)
{
	for (int i = spins; i > 0; i--) {
		if (__atomic_load_n(&l->word, __ATOMIC_RELAXED) == 0 && rs_trylock(l))
			return;
		rs_cpu_relax();
	}
	for (;;) {
		uint32_t word = __atomic_load_n(&l->word, __ATOMIC_RELAXED);

		if (word == 0) {
			/* Others may sleep still: keep the bit so that the release wakes them. */
			if (__atomic_compare_exchange_n(&l->word, &word, tid | RS_LOCK_WAITERS,
							false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
				return;
			continue;
		}
		if (!(word & RS_LOCK_WAITERS) &&
		    !__atomic_compare_exchange_n(&l->word, &word, word | RS_LOCK_WAITERS, false,
						 __ATOMIC_RELAXED, __ATOMIC_RELAXED))
			continue;
		rs_futex_wait(&l->word, word | RS_LOCK_WAITERS, NULL, true);
	}
}

void rs_unlock_slow(struct rs_lock *l)
{
	__atomic_store_n(&l->word, 0, __ATOMIC_RELEASE);
	rs_futex_wake(&l->word, INT_MAX, true);
}
