/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "rsock/log.h"
#include "rsock/sys.h"

#define KEY_MIN 16
#define KEY_MAX 1024

struct rs_config rs_config = {
	.spin_us = 50, .window_ms = 2000, .enter_ms = 250, .park_ms = 300000
};

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

/* What is wrong with it; NULL: nothing. */
static const char *read_key(long fd, uint8_t key[RS_KEY_LEN])
{
	uint8_t bytes[KEY_MAX + 1];
	size_t len = 0;
	struct stat st;
	long r = 0;

	if (rs_sys4(SYS_newfstatat, fd, "", &st, AT_EMPTY_PATH) != 0 || !S_ISREG(st.st_mode))
		return "not a regular file";
	if (st.st_uid != 0 && st.st_uid != (uid_t)rs_sys0(SYS_geteuid))
		return "neither its user's nor root's";
	if (st.st_mode & 077)
		return "open to group or others (chmod 600)";
	while (len < sizeof(bytes)) {
		r = rs_sys3(SYS_read, fd, bytes + len, sizeof(bytes) - len);
		if (r == -EINTR)
			continue;
		if (r <= 0)
			break;
		len += (size_t)r;
	}
	if (r >= 0 && len >= KEY_MIN && len <= KEY_MAX)
		rs_sha256(bytes, len, key);
	explicit_bzero(bytes, sizeof(bytes));
	if (r < 0)
		return "cannot be read";
	return len < KEY_MIN || len > KEY_MAX ? "not 16 to 1024 bytes long" : NULL;
}

static void load_key(void)
{
	const char *path = getenv("RSOCK_KEY_FILE"), *wrong = "cannot be opened";
	long fd;

	if (!path || !*path)
		return;
	/* Not to hang in a FIFO, nor to take a terminal. */
	fd = rs_sys4(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);
	if (fd >= 0) {
		wrong = read_key(fd, rs_config.key_bytes);
		rs_sys1(SYS_close, fd);
	}
	rs_config.key = wrong ? RS_KEY_BAD : RS_KEY_GOOD;
	if (wrong)
		rs_log(RS_LOG_ERROR, "RSOCK_KEY_FILE=%s: %s; no RDMA", path, wrong);
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
	number("RSOCK_PARK_MS", 86400000, &rs_config.park_ms);
	if (!off)
		load_key();
}
