/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/holders.h"

#include <stddef.h>
#include <sys/mman.h>

#include "rsock/sys.h"

#define COUNTS 16384u
#define SPOILT 0x80000000u /* beside the count */

/* The same memory in all descendants of the process that first had use for it. 0: free. */
static uint32_t *counts;
static uint32_t next;

static uint32_t *map(void)
{
	uint32_t *p = __atomic_load_n(&counts, __ATOMIC_ACQUIRE), *none = NULL;
	long m;

	if (p)
		return p;
	m = rs_sys6(SYS_mmap, 0, COUNTS * sizeof(*p), PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if ((unsigned long)m > -4096UL)
		return NULL;
	if (__atomic_compare_exchange_n(&counts, &none, (uint32_t *)m, false, __ATOMIC_ACQ_REL,
					__ATOMIC_ACQUIRE))
		return (uint32_t *)m;
	rs_sys2(SYS_munmap, m, COUNTS * sizeof(*p)); /* another thread was faster */
	return none;
}

uint32_t *rs_holders_add(uint32_t *holders)
{
	uint32_t *p = holders ? NULL : map();

	if (holders) {
		__atomic_fetch_add(holders, 1, __ATOMIC_SEQ_CST);
		return holders;
	}
	for (uint32_t i = 0; p && i < COUNTS; i++) {
		uint32_t *h = &p[__atomic_fetch_add(&next, 1, __ATOMIC_RELAXED) % COUNTS], free = 0;

		if (__atomic_compare_exchange_n(h, &free, 2, false, __ATOMIC_SEQ_CST,
						__ATOMIC_RELAXED))
			return h;
	}
	return NULL;
}

void rs_holders_drop(uint32_t *holders)
{
	if ((__atomic_sub_fetch(holders, 1, __ATOMIC_SEQ_CST) & ~SPOILT) == 0)
		rs_holders_end(holders);
}

void rs_holders_spoil(uint32_t *holders)
{
	__atomic_fetch_or(holders, SPOILT, __ATOMIC_SEQ_CST);
}

void rs_holders_end(uint32_t *holders)
{
	__atomic_store_n(holders, 0, __ATOMIC_SEQ_CST);
}
