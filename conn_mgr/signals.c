/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/signals.h"

#include <signal.h>
#include <stdint.h>

#include "rsock/sys.h"

#define SIGNALS 64
#define LIBC_FIRST 32 /* libc's own: cancellation, which does not come back, and setuid */
#define LIBC_LAST 33
#define RESTORER_BYTES 16 /* what follows the flags of the kernel's struct sigaction */

/* The kernel's struct, not libc's (x86-64 and the generic one differ in the restorer only). */
struct kernel_sigaction {
	void *handler;
	unsigned long flags;
	uint8_t rest[RESTORER_BYTES];
};

static uint32_t changes;
static uint64_t known; /* `changes` << 2 | the answer then */

static enum rs_signals look(void)
{
	bool restart = false, interrupt = false;

	for (long sig = 1; sig <= SIGNALS; sig++) {
		struct kernel_sigaction sa = { 0 };

		if ((sig >= LIBC_FIRST && sig <= LIBC_LAST) ||
		    rs_sys4(SYS_rt_sigaction, sig, NULL, &sa, SIGNALS / 8) != 0)
			continue;
		if (sa.handler == (void *)SIG_DFL || sa.handler == (void *)SIG_IGN)
			continue;
		if (sa.flags & SA_RESTART)
			restart = true;
		else
			interrupt = true;
	}
	if (restart && interrupt)
		return RS_SIGNALS_MIXED;
	return interrupt ? RS_SIGNALS_INTERRUPT : RS_SIGNALS_RESTART;
}

enum rs_signals rs_signals_agree(void)
{
	uint32_t now = __atomic_load_n(&changes, __ATOMIC_SEQ_CST);
	uint64_t k = __atomic_load_n(&known, __ATOMIC_RELAXED);
	enum rs_signals answer;

	if (!now)
		return RS_SIGNALS_MIXED;
	if (k >> 2 == now)
		return (enum rs_signals)(k & 3);
	answer = look();
	__atomic_store_n(&known, (uint64_t)now << 2 | answer, __ATOMIC_RELAXED);
	return answer;
}

void rs_signals_changed(void)
{
	/* Never back to 0. */
	if (__atomic_add_fetch(&changes, 1, __ATOMIC_SEQ_CST) == 0)
		__atomic_add_fetch(&changes, 1, __ATOMIC_SEQ_CST);
}
