/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * config.c - RSOCK_* settings, and the bytes of a key file
 */
#include <sys/mman.h>
#include <unistd.h>

#include "rsock/config.c" /* each setting by itself: a process reads them once */
#include "tests/fuzz/fuzz.h"

static void setting(const uint8_t *data, size_t size)
{
	char *value = malloc(size + 1);
	uint32_t max = size ? (uint32_t)data[0] << 24 | 99 : 0, out = 17;

	memcpy(value, data, size);
	value[size] = '\0';
	setenv("RSOCK_SPIN_US", value, 1);
	number("RSOCK_SPIN_US", max, &out);
	CHECK(out == 17 || out <= max);
	if (out != 17) /* what was taken for a number is one, and that */
		CHECK(strspn(value, "0123456789") == strlen(value) &&
		      strtoul(value, NULL, 10) == out);
	free(value);
}

static void key_file(const uint8_t *data, size_t size)
{
	static int fd = -1;
	uint8_t key[RS_KEY_LEN] = { 0 }, want[RS_KEY_LEN] = { 0 };
	/* The rest of the bytes is zeros: the length is what matters. */
	size_t len = size > 1 ? ((size_t)data[0] << 8 | data[1]) % 1100 : 0;
	uint8_t bytes[1100] = { 0 };
	const char *wrong;

	if (fd < 0) {
		fd = memfd_create("key", MFD_CLOEXEC);
		fchmod(fd, 0600);
	}
	memcpy(bytes, data, size < len ? size : len);
	CHECK(ftruncate(fd, 0) == 0 && pwrite(fd, bytes, len, 0) == (ssize_t)len &&
	      lseek(fd, 0, SEEK_SET) == 0);
	wrong = read_key(fd, key);
	CHECK(!wrong == (len >= 16 && len <= 1024));
	if (!wrong)
		rs_sha256(bytes, len, want);
	CHECK(memcmp(key, want, sizeof(key)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	setting(data, size);
	key_file(data, size);
	return 0;
}
