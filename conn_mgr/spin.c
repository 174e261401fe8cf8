/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/spin.h"

#include "rsock/config.h"
#include "rsock/sys.h"

#define REMOTE_ANSWER 20u

__thread bool rs_asked __attribute__((tls_model("initial-exec")));

uint32_t rs_spin_us(const struct rs_spin *s, bool remote)
{
	uint32_t us = __atomic_load_n(&s->us[remote && rs_asked], __ATOMIC_RELAXED);

	return us ? us : rs_config.spin_us;
}

void rs_spin_waited(struct rs_spin *s, bool remote, uint64_t ticks)
{
	bool answer = remote && rs_asked;
	uint32_t most = answer ? rs_config.spin_us * REMOTE_ANSWER : rs_config.spin_us;
	uint32_t us = rs_spin_us(s, remote);

	rs_asked = false;
	if (!ticks || !most)
		return;
	/* Twice: when both ends sleep, each waits for the other's wake-up as well. */
	if (ticks < 2 * (uint64_t)most * rs_ticks_per_us())
		us = us * 4 + 2 < most ? us * 4 + 2 : most;
	else
		us = us / 2 > 1 ? us / 2 : 1;
	__atomic_store_n(&s->us[answer], us, __ATOMIC_RELAXED);
}
