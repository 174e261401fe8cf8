/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * lock.h - a futex lock that knows its owner
 *
 * One uncontended atomic to take, one to release. The owner's thread id is in the word, so that a
 * signal handler that interrupted the owner can tell (rs_lock_mine()) instead of deadlocking. Not
 * recursive, not fair, private to the process. Never changes errno.
 */
#ifndef RSOCK_LOCK_H
#define RSOCK_LOCK_H

#include <stdbool.h>
#include <stdint.h>

#define RS_LOCK_WAITERS 0x80000000u

struct rs_lock {
	uint32_t word; /* 0, or the owner's thread id, with RS_LOCK_WAITERS when others sleep */
};

extern __thread uint32_t rs_tid_cache __attribute__((tls_model("initial-exec")));
uint32_t rs_tid_slow(void);
void rs_lock_slow(struct rs_lock *l, uint32_t tid);
void rs_unlock_slow(struct rs_lock *l);

/* This thread's id; after fork the child resets rs_tid_cache to 0. */
static inline uint32_t rs_tid(void)
{
	return rs_tid_cache ? rs_tid_cache : rs_tid_slow();
}

static inline bool rs_trylock(struct rs_lock *l)
{
	uint32_t free_word = 0;

	return __atomic_compare_exchange_n(&l->word, &free_word, rs_tid(), false, __ATOMIC_ACQUIRE,
					   __ATOMIC_RELAXED);
}

static inline void rs_lock(struct rs_lock *l)
{
	if (__builtin_expect(!rs_trylock(l), 0))
		rs_lock_slow(l, rs_tid());
}

static inline void rs_unlock(struct rs_lock *l)
{
	uint32_t mine = rs_tid();

	if (__builtin_expect(!__atomic_compare_exchange_n(&l->word, &mine, 0, false,
							  __ATOMIC_RELEASE, __ATOMIC_RELAXED),
			     0))
		rs_unlock_slow(l);
}

static inline bool rs_lock_mine(struct rs_lock *l)
{
	return (__atomic_load_n(&l->word, __ATOMIC_RELAXED) & ~RS_LOCK_WAITERS) == rs_tid();
}

#endif
