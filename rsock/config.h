/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * config.h - settings from the environment (RSOCK_*), read once
 *
 * A bad value never stops the host program: the default stays, and the log (if asked for) says so.
 */
#ifndef RSOCK_CONFIG_H
#define RSOCK_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "rsock/mac.h"

enum rs_key { RS_KEY_NONE, RS_KEY_GOOD, RS_KEY_BAD };

struct rs_config {
	bool off; /* RSOCK_DISABLE=1 */
	uint32_t spin_us; /* RSOCK_SPIN_US: longest spin before a wait sleeps; 0: never spin */
	uint32_t window_ms; /* RSOCK_WINDOW_MS: how long an accepted connection may be claimed */
	uint32_t enter_ms; /* RSOCK_ENTER_MS: an unanswered entry is abandoned after this */
	uint32_t
		park_ms; /* RSOCK_PARK_MS: a stream idle for so long gives up its rings; 0: never */
	/*
	 * RSOCK_KEY_FILE: only who has the same file's bytes may be a peer on another host. BAD: it was
	 * asked for and cannot be had, so nobody may.
	 */
	enum rs_key key;
	uint8_t key_bytes[RS_KEY_LEN]; /* SHA-256 of the file */
};

extern struct rs_config rs_config;
/* Idempotent. Call before other threads use rs_config. */
void rs_config_load(void);

#endif
