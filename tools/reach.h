/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * reach.h - can LD_PRELOAD reach a program?
 */
#ifndef RSOCK_TOOLS_REACH_H
#define RSOCK_TOOLS_REACH_H

#include <limits.h>

enum reach {
	REACH_OK, /* as far as can be seen */
	REACH_STATIC, /* no dynamic linker to preload anything */
	REACH_GO, /* Go makes its system calls without libc */
	REACH_SETID, /* set-user-ID, set-group-ID or capabilities: the linker ignores LD_PRELOAD */
	REACH_MACHINE, /* another word size or machine than rsock */
	REACH_LIBC, /* another dynamic linker, so another libc, than rsock */
};

/*
 * Resolve `program` as execvp(3) does. Returns 0 and the path in `path`, or ENOENT, or EACCES when
 * there is a file of that name that cannot be executed.
 */
int reach_resolve(const char *program, char path[PATH_MAX]);

/*
 * Look at the executable `path`. Scripts are followed to their interpreter, also through env(1);
 * `binary` receives the path of the ELF file that was judged. What cannot be read is REACH_OK.
 */
enum reach reach_check(const char *path, char binary[PATH_MAX]);

/* What follows the path in a message: "is statically linked: LD_PRELOAD cannot reach it". */
const char *reach_text(enum reach reach);

#endif
