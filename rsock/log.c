/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rsock/sys.h"

int rs_log_level = RS_LOG_NONE;
static int log_fd = 2;

void rs_log_open(void)
{
	static const char *const names[] = { "none", "error", "warn", "info", "debug" };
	const char *s = getenv("RSOCK_LOG");
	size_t len;

	if (!s)
		return;
	len = strcspn(s, ",");
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strlen(names[i]) == len && strncmp(s, names[i], len) == 0)
			rs_log_level = (int)i;
	if (s[len] == ',' && s[len + 1]) {
		long fd = rs_sys4(SYS_openat, AT_FDCWD, s + len + 1,
				  O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

		if (fd >= 0)
			log_fd = rs_fd_hide((int)fd);
		else
			rs_log_level = RS_LOG_NONE;
	}
}

void rs_log_line(int level, const char *fmt, ...)
{
	static const char *const tags[] = { "", "error", "warn", "info", "debug" };
	char buf[512];
	int saved = errno, n, m;
	va_list ap;

	n = snprintf(buf, sizeof(buf), "rsock[%ld] %s: ", rs_sys0(SYS_getpid), tags[level]);
	va_start(ap, fmt);
	m = vsnprintf(buf + n, sizeof(buf) - (size_t)n - 1, fmt, ap);
	va_end(ap);
	if (m > 0)
		n += m < (int)sizeof(buf) - n - 1 ? m : (int)sizeof(buf) - n - 2;
	buf[n++] = '\n';
	rs_sys3(SYS_write, log_fd, buf, n);
	errno = saved;
}
