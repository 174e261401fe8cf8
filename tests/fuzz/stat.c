/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * stat.c - `rsock stat`, shown a statistics segment that another user's process has made up
 */
#include <sys/mman.h>

#include "tools/stat.c" /* one segment */
#include "tests/fuzz/fuzz.h"

/* What the kernel says is not the process's to make up. */
const struct kernel_socket *kernel_socket_find(uint64_t inode)
{
	(void)inode;
	return NULL;
}

uint64_t kernel_tx_bytes(const struct kernel_socket *s, int accepted)
{
	(void)s;
	(void)accepted;
	return 0;
}

uint64_t kernel_rx_bytes(const struct kernel_socket *s)
{
	(void)s;
	return 0;
}

void warn_msg(const char *format, ...)
{
	(void)format;
}

static void check_text(const char *s, size_t room)
{
	CHECK(memchr(s, '\0', room) != NULL);
	for (; *s; s++)
		CHECK(*s >= ' ' && *s <= '~');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct rs_stats_head head = {
		.magic = RS_STATS_MAGIC,
		.version = RS_STATS_VERSION,
		.row_size = sizeof(struct rs_stats_row),
	};
	static int proc = -1, fd;
	struct fuzz_in in = { data, size };
	uint8_t how = (uint8_t)fuzz_int(&in, 1);

	if (proc < 0) {
		proc = open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		fd = memfd_create("rows", MFD_CLOEXEC);
		CHECK(proc >= 0 && fd >= 0 && freopen("/dev/null", "w", stdout));
	}
	head.pid = own_pid(proc);
	head.rows = how >> 2 & 7;
	if (how & 1)
		head.rows = (uint32_t)fuzz_wild(&in, ROWS_MAX);
	if (how & 2)
		fuzz_bytes(&in, (uint8_t *)&head + fuzz_int(&in, 1) % sizeof(head) / 8 * 8, 8);
	CHECK(ftruncate(fd, 0) == 0);
	CHECK(pwrite(fd, &head, sizeof(head), 0) == sizeof(head));
	for (off_t at = sizeof(head); in.left; at += (off_t)sizeof(struct rs_stats_row)) {
		struct rs_stats_row row = { .used = 1 };
		uint8_t what = (uint8_t)fuzz_int(&in, 1);

		fuzz_bytes(&in, (uint8_t *)&row + what % 8 * 24, sizeof(row) - what % 8 * 24);
		row.used = what & 8 ? row.used : 1;
		row.gen = what & 16 ? row.gen : 2;
		row.rx_path = what & 32 ? RS_PATH_RDMA : row.rx_path;
		CHECK(pwrite(fd, &row, sizeof(row), at) == sizeof(row));
	}
	/* The file may be as long as it has to be, or too short for the last row. */
	if (how & 32)
		CHECK(ftruncate(fd, (off_t)(sizeof(head) +
					    (head.rows & 15) * sizeof(struct rs_stats_row)) -
					    (how >> 6)) == 0);
	read_segment(proc, fd, getpid());
	CHECK(found.count <= head.rows);
	for (size_t i = 0; i < found.count; i++) {
		check_text(found.streams[i].command, sizeof(found.streams[i].command));
		check_text(found.streams[i].local, ADDR_LEN);
		check_text(found.streams[i].peer, ADDR_LEN);
		check_text(found.streams[i].device, sizeof(found.streams[i].device));
	}
	print_json();
	print_table();
	free(found.streams);
	memset(&found, 0, sizeof(found));
	return 0;
}
