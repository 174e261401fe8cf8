/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * log.h - the log, silent unless RSOCK_LOG asks
 *
 * RSOCK_LOG=LEVEL[,FILE] with LEVEL error, warn, info or debug; lines go to standard error or are
 * appended to FILE. Thread-safe (one write per line); never changes errno.
 */
#ifndef RSOCK_LOG_H
#define RSOCK_LOG_H

enum rs_log_level { RS_LOG_NONE, RS_LOG_ERROR, RS_LOG_WARN, RS_LOG_INFO, RS_LOG_DEBUG };

extern int rs_log_level;
void rs_log_open(void);
void rs_log_line(int level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define rs_log(level, ...)                                        \
	do {                                                      \
		if (__builtin_expect(rs_log_level >= (level), 0)) \
			rs_log_line((level), __VA_ARGS__);        \
	} while (0)

#endif
