/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/config.h"

#include <stdlib.h>

#include "rsock/log.h"

struct rs_config rs_config = { .spin_us = 50, .window_ms = 2000, .enter_ms = 250 };

static void number(const char *name, uint32_t max, uint32_t *out)
{
	const char *s = getenv(name);
	unsigned long v = 0;
	size_t i;

	if (!s)
		return;
	for (i = 0; s[i] >= '0' && s[i] <= '9' && i < 9; i++)
		v = v * 10 + (unsigned long)(s[i] - '0');
	if (i == 0 || s[i] || v > max) {
		rs_log(RS_LOG_WARN, "%s=%s: not a number from 0 to %u; using %u", name, s, max,
		       *out);
		return;
	}
	*out = (uint32_t)v;
}

void rs_config_load(void)
{
	static bool loaded;
	uint32_t off = 0;

	if (loaded)
		return;
	loaded = true;
	rs_log_open();
	number("RSOCK_DISABLE", 1, &off);
	rs_config.off = off;
	number("RSOCK_SPIN_US", 100000, &rs_config.spin_us);
	number("RSOCK_WINDOW_MS", 600000, &rs_config.window_ms);
	number("RSOCK_ENTER_MS", 60000, &rs_config.enter_ms);
}
