/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * util.h - what the subcommands of `rsock` share
 */
#ifndef RSOCK_TOOLS_UTIL_H
#define RSOCK_TOOLS_UTIL_H

/* Exit statuses of the command itself; `rsock run` otherwise exits as its program does. */
enum exit_status {
	EXIT_USAGE = 2, /* bad command line */
	EXIT_OURS = 125, /* `rsock run` itself failed */
	EXIT_NOEXEC = 126, /* the program cannot be executed */
	EXIT_NOTFOUND = 127, /* the program does not exist */
};

/* Subcommands. argv[0] is the subcommand's name; the return value is the exit status. */
int cmd_run(int argc, char **argv);
int cmd_stat(int argc, char **argv);

/* Print "rsock: " and the message and a newline to stderr. */
void warn_msg(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
