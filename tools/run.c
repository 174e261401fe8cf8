/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * run.c - `rsock run`: execute a program with the preload library
 */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/reach.h"
#include "tools/util.h"

#define PRELOAD "librsock-preload.so"

static const char usage[] =
	"Usage: rsock run [--log=LEVEL] PROGRAM [ARGS...]\n\n"
	"Run PROGRAM so that its TCP connections to other programs under rsock use shared\n"
	"memory or RDMA. All other connections stay on kernel TCP.\n\n"
	"  --log=LEVEL   write a log to stderr: error, warn, info or debug\n"
	"  --help        show this text\n";

/* The preload library beside this command: in the build folder, or as installed. */
static int find_preload(char path[PATH_MAX])
{
	static const char *const places[] = { "", "../lib/rsock/" };
	char self[PATH_MAX], candidate[2 * PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char *slash;

	if (n < 0)
		return -1;
	self[n] = '\0';
	slash = strrchr(self, '/');
	if (!slash)
		return -1;
	slash[1] = '\0';
	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		snprintf(candidate, sizeof(candidate), "%s%s%s", self, places[i], PRELOAD);
		if (realpath(candidate, path))
			return 0;
	}
	return -1;
}

/* Put `library` in front of what LD_PRELOAD already has. */
static int prepend_preload(const char *library)
{
	const char *others = getenv("LD_PRELOAD");
	char *value;
	int err;

	if (asprintf(&value, "%s%s%s", library, others && *others ? ":" : "",
		     others ? others : "") < 0)
		return -1;
	err = setenv("LD_PRELOAD", value, 1);
	free(value);
	return err;
}

static int prepare(const char *log_level)
{
	char library[PATH_MAX];

	if (find_preload(library) != 0) {
		warn_msg("cannot find " PRELOAD " beside this command");
		return -1;
	}
	if (strpbrk(library, ": \t")) {
		warn_msg("%s: LD_PRELOAD cannot hold a path with spaces or colons", library);
		return -1;
	}
	if (prepend_preload(library) != 0 ||
	    (log_level && setenv("RSOCK_LOG", log_level, 1) != 0)) {
		warn_msg("environment: %s", strerror(errno));
		return -1;
	}
	return 0;
}

static int exec_failed(const char *program, int err)
{
	if (err == ENOENT && !strchr(program, '/'))
		warn_msg("%s: command not found", program);
	else
		warn_msg("%s: %s", program, strerror(err));
	return err == ENOENT ? EXIT_NOTFOUND : EXIT_NOEXEC;
}

int cmd_run(int argc, char **argv)
{
	static const struct option options[] = {
		{ "log", required_argument, NULL, 'l' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	char path[PATH_MAX], binary[PATH_MAX];
	const char *log_level = NULL;
	enum reach reach;
	int opt, err;

	argv[0] = (char[]){ "rsock run" };
	while ((opt = getopt_long(argc, argv, "+h", options, NULL)) != -1) {
		switch (opt) {
		case 'l':
			log_level = optarg;
			break;
		case 'h':
			fputs(usage, stdout);
			return EXIT_SUCCESS;
		default:
			return EXIT_USAGE;
		}
	}
	argv += optind;
	if (!argv[0]) {
		fputs(usage, stderr);
		return EXIT_USAGE;
	}

	err = reach_resolve(argv[0], path);
	if (err)
		return exec_failed(argv[0], err);
	reach = reach_check(path, binary);
	if (reach != REACH_OK)
		warn_msg("%s %s; its connections stay on kernel TCP", binary, reach_text(reach));
	/* Another C library's linker would not ignore a library that it cannot load, but give up. */
	if (reach != REACH_LIBC && prepare(log_level) != 0)
		return EXIT_OURS;
	execvp(argv[0], argv);
	return exec_failed(path, errno);
}
