/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* libconf.h - what only the runner of the conformance cases needs */
#ifndef TESTS_CONFORMANCE_LIBCONF_H
#define TESTS_CONFORMANCE_LIBCONF_H

#include <stddef.h>

enum conf_state {
	STATE_BEFORE,
	STATE_WHILE,
	STATE_ENTERED,
	STATE_LEFT,
	STATE_AGAIN, /* left, and entered again */
};

/* where a case prints: shared memory, so that a killed case keeps what it said */
struct conf_text {
	size_t len;
	char text[16384 - sizeof(size_t)];
};

void conf_setup(enum conf_state st, struct conf_text *text, int chan);
void conf_find_hooks(void);
int conf_peer_main(int chan);
int conf_exec_child(int argc, char **argv);

#endif
