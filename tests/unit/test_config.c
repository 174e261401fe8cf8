/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * test_config.c - the vocabulary of reasons, RSOCK_* settings with good and bad values, and the log
 *
 * Settings are read once, when a process starts: each case is this program run anew.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "rsock/config.h"
#include "rsock/log.h"
#include "rsock/reason.h"
#include "rsock/sys.h"

/* ---- reasons ---- */

static void reasons(void **state)
{
	(void)state;
	assert_string_equal(rs_reason_word(RS_REASON_NONE), "");
	assert_string_equal(rs_reason_word(RS_REASON_PEER_PLAIN), "peer-plain");
	assert_string_equal(rs_reason_word(RS_REASON_PROTOCOL), "protocol");
	assert_string_equal(rs_reason_word(RS_REASON_COUNT), "unknown");
	assert_string_equal(rs_reason_word(255), "unknown");
	assert_string_equal(rs_reason_word(UINT32_MAX), "unknown");
	assert_non_null(rs_reason_text(UINT32_MAX));
	for (unsigned int i = 0; i < RS_REASON_COUNT; i++) {
		const char *w = rs_reason_word(i);

		assert_non_null(w);
		assert_true(strlen(rs_reason_text(i)) > 3);
		/* Words that scripts can compare and metrics can carry. */
		assert_int_equal(strspn(w, "abcdefghijklmnopqrstuvwxyz-"), strlen(w));
		for (unsigned int k = 0; k < i; k++)
			assert_string_not_equal(w, rs_reason_word(k));
	}
}

/* ---- settings ---- */

/* What a process makes of NAME=VALUE; what it wrote to standard error goes to `err`. */
static struct rs_config config_of(const char *name, const char *value, const char *log, char *err,
				  size_t size)
{
	struct rs_config c = { 0 };
	int out[2], errs[2], status;
	ssize_t n;
	pid_t pid;

	assert_int_equal(pipe(out), 0);
	assert_int_equal(pipe(errs), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		dup2(errs[1], 2);
		unsetenv("RSOCK_LOG");
		if (log)
			setenv("RSOCK_LOG", log, 1);
		if (name)
			setenv(name, value, 1);
		dup2(out[1], 1);
		execl("/proc/self/exe", "test_config", "show", NULL);
		_exit(1);
	}
	close(out[1]);
	close(errs[1]);
	assert_int_equal(read(out[0], &c, sizeof(c)), sizeof(c));
	n = err ? read(errs[0], err, size - 1) : 0;
	if (err)
		err[n > 0 ? n : 0] = '\0';
	close(out[0]);
	close(errs[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	return c;
}

static void good_values(void **state)
{
	struct rs_config def = config_of(NULL, NULL, NULL, NULL, 0);

	(void)state;
	assert_false(def.off);
	assert_true(config_of("RSOCK_DISABLE", "1", NULL, NULL, 0).off);
	assert_false(config_of("RSOCK_DISABLE", "0", NULL, NULL, 0).off);
	assert_int_equal(config_of("RSOCK_SPIN_US", "0", NULL, NULL, 0).spin_us, 0);
	assert_int_equal(config_of("RSOCK_SPIN_US", "77", NULL, NULL, 0).spin_us, 77);
	assert_int_equal(config_of("RSOCK_WINDOW_MS", "600000", NULL, NULL, 0).window_ms, 600000);
	assert_int_equal(config_of("RSOCK_ENTER_MS", "00017", NULL, NULL, 0).enter_ms, 17);
	assert_int_equal(config_of("RSOCK_PARK_MS", "0", NULL, NULL, 0).park_ms, 0);
	assert_int_equal(config_of("RSOCK_PARK_MS", "86400000", NULL, NULL, 0).park_ms, 86400000);
}

static void bad_values(void **state)
{
	static const char *const bad[] = { "",
					   " 5",
					   "5 ",
					   "-1",
					   "+1",
					   "0x10",
					   "1e3",
					   "abc",
					   "600001",
					   "4294967296",
					   "99999999999999999999999",
					   "1.5",
					   "\xff\xfe",
					   "12\n" };
	struct rs_config def = config_of(NULL, NULL, NULL, NULL, 0);

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		static const char *const names[] = { "RSOCK_SPIN_US", "RSOCK_WINDOW_MS",
						     "RSOCK_ENTER_MS", "RSOCK_DISABLE" };

		for (size_t n = 0; n < 4; n++) {
			char err[1000];
			struct rs_config c = config_of(names[n], bad[i], NULL, err, sizeof(err));

			assert_memory_equal(&c, &def, sizeof(c));
			assert_string_equal(err, ""); /* silent unless asked */
			config_of(names[n], bad[i], "warn", err, sizeof(err));
			assert_non_null(strstr(err, names[n]));
			assert_non_null(strstr(err, "warn: "));
		}
	}
	assert_int_equal(config_of("RSOCK_PARK_MS", "86400001", NULL, NULL, 0).park_ms, 300000);
	assert_false(config_of("RSOCK_DISABLE", "2", NULL, NULL, 0).off);
	assert_false(config_of("RSOCK_DISABLE", "yes", NULL, NULL, 0).off);
}

/* ---- the cluster key ---- */

static char folder[] = "/tmp/rsock-test-key-XXXXXX";

static const char *key_file(const char *name, const void *bytes, size_t len, mode_t mode)
{
	static char file[200];
	int fd;

	snprintf(file, sizeof(file), "%s/%s", folder, name);
	fd = open(file, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, len), len);
	assert_int_equal(fchmod(fd, mode), 0);
	close(fd);
	return file;
}

static void bad_key(const char *file, const char *why)
{
	static const uint8_t none[RS_KEY_LEN];
	char err[1000];
	struct rs_config c = config_of("RSOCK_KEY_FILE", file, NULL, err, sizeof(err));

	assert_int_equal(c.key, RS_KEY_BAD);
	assert_memory_equal(c.key_bytes, none, sizeof(none));
	assert_string_equal(err, ""); /* silent unless asked */
	config_of("RSOCK_KEY_FILE", file, "error", err, sizeof(err));
	assert_non_null(strstr(err, "RSOCK_KEY_FILE"));
	if (!strstr(err, why))
		fail_msg("%s: %s", file, err);
}

static void key_files(void **state)
{
	uint8_t bytes[1025], want[RS_KEY_LEN];
	char other[300], fifo[300];
	struct rs_config c;

	(void)state;
	assert_non_null(mkdtemp(folder));
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(i * 7);
	assert_int_equal(config_of(NULL, NULL, NULL, NULL, 0).key, RS_KEY_NONE);
	assert_int_equal(config_of("RSOCK_KEY_FILE", "", NULL, NULL, 0).key, RS_KEY_NONE);
	for (size_t len = 0; len <= sizeof(bytes); len += len < 20 || len >= 1020 ? 1 : 100) {
		const char *file = key_file("key", bytes, len, 0600);

		if (len < 16 || len > 1024) {
			bad_key(file, "not 16 to 1024 bytes");
			continue;
		}
		c = config_of("RSOCK_KEY_FILE", file, NULL, NULL, 0);
		rs_sha256(bytes, len, want);
		assert_int_equal(c.key, RS_KEY_GOOD);
		assert_memory_equal(c.key_bytes, want, sizeof(want));
	}
	assert_int_equal(
		config_of("RSOCK_KEY_FILE", key_file("key", bytes, 32, 0400), NULL, NULL, 0).key,
		RS_KEY_GOOD);
	for (mode_t bit = 1; bit <= 040; bit <<= 1)
		bad_key(key_file("key", bytes, 32, 0600 | bit), "open to group or others");
	/* Found behind a name of another kind, and by a way that would hang. */
	snprintf(other, sizeof(other), "%s/link", folder);
	assert_int_equal(symlink(key_file("key", bytes, 32, 0600), other), 0);
	assert_int_equal(config_of("RSOCK_KEY_FILE", other, NULL, NULL, 0).key, RS_KEY_GOOD);
	bad_key(folder, "not a regular file");
	snprintf(fifo, sizeof(fifo), "%s/fifo", folder);
	assert_int_equal(mkfifo(fifo, 0600), 0);
	bad_key(fifo, "not a regular file");
	bad_key("/nonexistent/key", "cannot be opened");
	if (geteuid() == 0) {
		assert_int_equal(chown(key_file("key", bytes, 32, 0600), 12345, 12345), 0);
		bad_key(key_file("key", bytes, 32, 0600), "neither its user's nor root's");
	}
	unlink(other);
	unlink(fifo);
	unlink(key_file("key", "", 0, 0600));
	rmdir(folder);
}

/* ---- the log ---- */

static char path[] = "/tmp/rsock-test-log-XXXXXX";

/* Runs `write_lines` in a child with RSOCK_LOG=log; its standard error goes to err. */
static void logged(const char *log, void (*write_lines)(void), char *err, size_t size)
{
	int errs[2], status;
	size_t n = 0;
	ssize_t r;
	pid_t pid;

	assert_int_equal(pipe(errs), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		dup2(errs[1], 2);
		close(errs[0]);
		close(errs[1]);
		unsetenv("RSOCK_LOG");
		if (log)
			setenv("RSOCK_LOG", log, 1);
		rs_log_open();
		errno = ENOTTY;
		write_lines();
		_exit(errno == ENOTTY ? 0 : 1);
	}
	close(errs[1]);
	while (n < size - 1 && (r = read(errs[0], err + n, size - 1 - n)) > 0)
		n += (size_t)r;
	err[n] = '\0';
	close(errs[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void all_levels(void)
{
	rs_log(RS_LOG_ERROR, "an %s", "error");
	rs_log(RS_LOG_WARN, "a warning %d", 1);
	rs_log(RS_LOG_INFO, "info");
	rs_log(RS_LOG_DEBUG, "debug");
}

static size_t lines(const char *s)
{
	size_t n = 0;

	for (; *s; s++)
		n += *s == '\n';
	return n;
}

static void levels(void **state)
{
	static const struct {
		const char *setting;
		size_t lines;
	} cases[] = {
		{ NULL, 0 },   { "", 0 },      { "none", 0 },	 { "error", 1 },    { "warn", 2 },
		{ "info", 3 }, { "debug", 4 }, { "warning", 0 }, { "inf", 0 },	    { "INFO", 0 },
		{ "5", 0 },    { "info,", 3 }, { ",", 0 },	 { "bogus,/x", 0 },
	};
	char err[2000];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		logged(cases[i].setting, all_levels, err, sizeof(err));
		assert_int_equal(lines(err), cases[i].lines);
	}
	logged("debug", all_levels, err, sizeof(err));
	assert_non_null(strstr(err, "error: an error\n"));
	assert_non_null(strstr(err, "warn: a warning 1\n"));
}

static void to_a_file(void **state)
{
	char setting[100], err[2000], text[2000];
	struct stat st;
	FILE *f;
	size_t n;

	(void)state;
	close(mkstemp(path));
	unlink(path);
	snprintf(setting, sizeof(setting), "warn,%s", path);
	for (int i = 0; i < 2; i++) {
		logged(setting, all_levels, err, sizeof(err));
		assert_string_equal(err, "");
	}
	f = fopen(path, "r");
	assert_non_null(f);
	n = fread(text, 1, sizeof(text) - 1, f);
	text[n] = '\0';
	fclose(f);
	assert_int_equal(lines(text), 4); /* appended */
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 077, 0);
	unlink(path);
	/* A file that cannot be had silences it: standard error is the program's. */
	logged("debug,/nonexistent/dir/log", all_levels, err, sizeof(err));
	assert_string_equal(err, "");
}

static void long_line(void)
{
	char big[3000];

	memset(big, 'y', sizeof(big) - 1);
	big[sizeof(big) - 1] = '\0';
	rs_log(RS_LOG_ERROR, "%s", big);
	rs_log(RS_LOG_ERROR, "after");
}

static void long_lines_are_cut(void **state)
{
	char err[5000];

	(void)state;
	logged("error", long_line, err, sizeof(err));
	assert_int_equal(lines(err), 2);
	assert_true(strlen(err) < 700);
	assert_non_null(strstr(err, "error: after\n"));
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reasons),    cmocka_unit_test(good_values),
		cmocka_unit_test(bad_values), cmocka_unit_test(levels),
		cmocka_unit_test(to_a_file),  cmocka_unit_test(long_lines_are_cut),
		cmocka_unit_test(key_files),
	};

	if (argc > 1 && strcmp(argv[1], "show") == 0) {
		rs_config_load(); /* once more changes nothing */
		return write(1, &rs_config, sizeof(rs_config)) != sizeof(rs_config);
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
