/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * names.c - a program with functions of its own that have names of libc's, as Erlang has
 *
 * Its sigaction() is found before rsock's by everybody, rsock too. Here it calls libc's by another
 * name: that must not bring it back. Others are called by nobody at all.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int __sigaction(int sig, const struct sigaction *act, struct sigaction *old);
sighandler_t __sysv_signal(int sig, sighandler_t handler);

#define SEEN __attribute__((visibility("default")))

static int calls;

SEEN int sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	if (++calls > 1)
		abort();
	return __sigaction(sig, act, old);
}

SEEN sighandler_t sysv_signal(int sig, sighandler_t handler)
{
	if (++calls > 2)
		abort();
	return __sysv_signal(sig, handler);
}

SEEN int vdprintf(int fd, const char *format, va_list args)
{
	(void)fd, (void)format, (void)args;
	abort();
}

SEEN int execve(const char *path, char *const *args, char *const *env)
{
	(void)path, (void)args, (void)env;
	abort();
}

static void handler(int sig)
{
	(void)sig;
}

int main(void)
{
	struct sigaction sa = { .sa_handler = handler };

	if (sigaction(SIGUSR1, &sa, NULL) < 0 || sysv_signal(SIGUSR2, handler) == SIG_ERR)
		return 1;
	if (dprintf(STDOUT_FILENO, "ok\n") != 3)
		return 1;
	execl("/bin/true", "true", NULL);
	return 1;
}
