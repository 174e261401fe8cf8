/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * directory.c - the directory of a pre-forking server, into which one of the workers writes anything
 */
#include <unistd.h>

#include "conn_mgr/directory.c" /* its entries */
#include "tests/fuzz/fuzz.h"

static struct rs_directory *dir;

static void scribble(struct fuzz_in *in, uint32_t at)
{
	struct entry *e = &dir->e[at];
	size_t from = fuzz_int(in, 1) % sizeof(*e), n = fuzz_int(in, 1) % (sizeof(*e) - from + 1);

	fuzz_bytes(in, (uint8_t *)e + from, n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint8_t ip[16] = { 127, 0, 0, 1 };
	static const char ours[RS_NAME_LEN] = "rsock.p.1.00000000";
	struct fuzz_in in = { data, size };
	uint32_t at = hash(4, ip, 7);
	char name[RS_NAME_LEN];
	bool lied = false;

	/* Of exactly that size; only the entries of this client are ever touched. */
	if (!dir)
		dir = aligned_alloc(64, sizeof(*dir));
	for (uint32_t i = 0; i < 2 * PROBES; i++)
		memset(&dir->e[(at + i) % ENTRIES], 0, sizeof(struct entry));
	while (in.left) {
		switch (fuzz_int(&in, 1) % 6) {
		case 0:
			scribble(&in, (at + (uint32_t)fuzz_int(&in, 1) % (2 * PROBES)) % ENTRIES);
			lied = true;
			break;
		case 1:
			rs_directory_put(dir, 4, ip, 7, ours);
			if (lied)
				break;
			CHECK(rs_directory_get(dir, 4, ip, 7, name) && strcmp(name, ours) == 0);
			break;
		case 2:
			memset(name, 'x', sizeof(name));
			if (rs_directory_get(dir, 4, ip, 7, name))
				CHECK(memchr(name, '\0', sizeof(name)) != NULL);
			break;
		case 3:
			rs_directory_refuse(dir, 4, ip, 7, 99, 5);
			break;
		case 4:
			CHECK(lied || rs_directory_refused(dir, 4, ip, 7, 98) == 0);
			rs_directory_refused(dir, 4, ip, 7, 99);
			break;
		case 5:
			rs_directory_drop(dir, 4, ip, 7);
			CHECK(lied || !rs_directory_get(dir, 4, ip, 7, name));
			break;
		}
	}
	return 0;
}
