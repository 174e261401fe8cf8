/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * rsock.c - the `rsock` command: a table of subcommands
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/util.h"

static const struct subcommand {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *synopsis;
	const char *summary;
} subcommands[] = {
	{ "run", cmd_run, "[--log=LEVEL] PROGRAM [ARGS...]", "run a program with rsock" },
	{ "stat", cmd_stat, "[--json] [PID...]", "show every connection and its path" },
};

#define SUBCOMMANDS (sizeof(subcommands) / sizeof(subcommands[0]))

void warn_msg(const char *format, ...)
{
	va_list args;

	fputs("rsock: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
}

static void usage(FILE *out)
{
	fputs("Usage: rsock SUBCOMMAND [OPTIONS]\n\n", out);
	for (size_t i = 0; i < SUBCOMMANDS; i++)
		fprintf(out, "  %-5s%-33s%s\n", subcommands[i].name, subcommands[i].synopsis,
			subcommands[i].summary);
	fputs("\n`rsock SUBCOMMAND --help` says more. Also: --help, --version.\n", out);
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : NULL;

	if (name == NULL) {
		usage(stderr);
		return EXIT_USAGE;
	}
	if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
		usage(stdout);
		return EXIT_SUCCESS;
	}
	if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
		puts("rsock " RSOCK_VERSION);
		return EXIT_SUCCESS;
	}
	for (size_t i = 0; i < SUBCOMMANDS; i++) {
		if (strcmp(name, subcommands[i].name) == 0)
			return subcommands[i].run(argc - 1, argv + 1);
	}
	warn_msg("unknown %s '%s' (see rsock --help)", name[0] == '-' ? "option" : "subcommand",
		 name);
	return EXIT_USAGE;
}
