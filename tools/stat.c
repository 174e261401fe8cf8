/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * stat.c - `rsock stat`: every stream of every process under rsock
 *
 * rsock/stats.h says how the numbers are found. The segments belong to other processes and are not
 * trusted: they are read, not mapped, so that one that shrinks under us cannot kill us (SIGBUS).
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "rsock/reason.h"
#include "rsock/stats.h"
#include "tools/kernel.h"
#include "tools/util.h"

#define ROWS_MAX (1u << 20) /* more than any process can have open */
#define ROW_RETRIES 100
#define ADDR_LEN (INET6_ADDRSTRLEN + sizeof("[]:65535"))

static const char usage[] =
	"Usage: rsock stat [--json] [PID...]\n\n"
	"Show the TCP connections of all processes under rsock, or of those given.\n\n"
	"  --json   a JSON array with one object per connection\n"
	"  --help   show this text\n";

struct stream {
	int pid;
	char command[32];
	char local[ADDR_LEN];
	char peer[ADDR_LEN];
	char device[sizeof(((struct rs_stats_row *)0)->device)]; /* printable */
	struct rs_stats_row row;
};

static struct {
	struct stream *streams;
	size_t count;
	size_t room;
	uint64_t lost;
} found;

static void add_stream(const struct stream *s)
{
	if (found.count == found.room) {
		size_t room = found.room ? 2 * found.room : 64;
		void *bigger = reallocarray(found.streams, room, sizeof(*s));

		if (!bigger) {
			warn_msg("out of memory");
			exit(EXIT_FAILURE);
		}
		found.streams = bigger;
		found.room = room;
	}
	found.streams[found.count++] = *s;
}

/* ---- reading one process ---- */

static void format_addr(char out[ADDR_LEN], int family, const struct rs_stats_addr *addr)
{
	char ip[INET6_ADDRSTRLEN] = "";
	const uint8_t *bytes = addr->ip;
	struct in6_addr in6;

	out[0] = '\0';
	memcpy(&in6, bytes, sizeof(in6));
	if (family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&in6)) {
		family = AF_INET;
		bytes += 12;
	}
	if (family != AF_INET && family != AF_INET6)
		return;
	inet_ntop(family, bytes, ip, sizeof(ip));
	snprintf(out, ADDR_LEN, family == AF_INET ? "%s:%u" : "[%s]:%u", ip, addr->port);
}

static void make_printable(char *text)
{
	for (; *text; text++) {
		if (!isascii(*text) || !isprint(*text))
			*text = '?';
	}
}

/* /proc/PID/`name` (a file of one line) into `out`, printable ASCII only. */
static void read_line(int proc, const char *name, char *out, size_t size)
{
	int fd = openat(proc, name, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd >= 0 ? read(fd, out, size - 1) : 0;

	if (fd >= 0)
		close(fd);
	out[n > 0 ? n : 0] = '\0';
	out[strcspn(out, "\n")] = '\0';
	make_printable(out);
}

/* The pid that the process has in its own pid namespace: the last number of the NSpid line. */
static unsigned int own_pid(int proc)
{
	int fd = openat(proc, "status", O_RDONLY | O_CLOEXEC);
	FILE *file = fd >= 0 ? fdopen(fd, "r") : NULL;
	char line[256];
	unsigned int pid = 0;

	if (!file) {
		if (fd >= 0)
			close(fd);
		return 0;
	}
	while (fgets(line, sizeof(line), file)) {
		if (strncmp(line, "NSpid:", 6) == 0)
			pid = (unsigned int)strtoul(strrchr(line, '\t'), NULL, 10);
	}
	fclose(file);
	return pid;
}

static uint64_t socket_inode(int proc, int fd)
{
	char name[32], target[64];
	uint64_t inode;
	ssize_t n;

	snprintf(name, sizeof(name), "fd/%d", fd);
	n = readlinkat(proc, name, target, sizeof(target) - 1);
	if (n < 0)
		return 0;
	target[n] = '\0';
	return sscanf(target, "socket:[%" SCNu64 "]", &inode) == 1 ? inode : 0;
}

/* Complete a row from the kernel where rsock does not look itself. */
static void ask_kernel(int proc, struct stream *s)
{
	struct rs_stats_row *row = &s->row;
	const struct kernel_socket *k;

	if (!row->plain && row->family != 0)
		return;
	k = kernel_socket_find(socket_inode(proc, row->fd));
	if (!k)
		return;
	if (row->family == 0) {
		row->family = k->family;
		row->local = k->local;
		row->peer = k->peer;
	}
	if (row->plain) {
		uint64_t tx = kernel_tx_bytes(k, row->server), rx = kernel_rx_bytes(k);

		row->tx_bytes += tx > row->ktx_base ? tx - row->ktx_base : 0;
		row->rx_bytes += rx > row->krx_base ? rx - row->krx_base : 0;
	}
}

/* One consistent copy of the row at `offset`; false if it describes no stream. */
static bool read_row(int fd, off_t offset, struct rs_stats_row *row)
{
	for (int i = 0; i < ROW_RETRIES; i++) {
		uint32_t gen;

		if (pread(fd, row, sizeof(*row), offset) != (ssize_t)sizeof(*row))
			return false;
		if (row->used != 1 && row->gen % 2 == 0)
			return false;
		if (pread(fd, &gen, sizeof(gen), offset) != (ssize_t)sizeof(gen))
			return false;
		if (gen == row->gen && gen % 2 == 0)
			return true;
		sched_yield();
	}
	return false;
}

/* The path of a stream: the fast one if either direction is on it. */
static uint8_t stream_path(const struct rs_stats_row *row)
{
	return row->tx_path != RS_PATH_TCP ? row->tx_path : row->rx_path;
}

/* All rows of the segment `fd`, if it is one that process `pid` wrote itself. */
static bool read_segment(int proc, int fd, int pid)
{
	struct rs_stats_head head;
	struct stream s = { .pid = pid };
	struct stat st;

	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) ||
	    pread(fd, &head, sizeof(head), 0) != (ssize_t)sizeof(head) ||
	    head.magic != RS_STATS_MAGIC || head.pid != own_pid(proc))
		return false;
	if (head.version != RS_STATS_VERSION || head.row_size != sizeof(s.row) ||
	    head.rows > ROWS_MAX ||
	    (uint64_t)st.st_size < sizeof(head) + (uint64_t)head.rows * sizeof(s.row)) {
		warn_msg("process %d runs another version of rsock", pid);
		return true;
	}
	found.lost += head.lost;
	read_line(proc, "comm", s.command, sizeof(s.command));
	for (uint32_t i = 0; i < head.rows; i++) {
		if (!read_row(fd, (off_t)(sizeof(head) + i * sizeof(s.row)), &s.row))
			continue;
		ask_kernel(proc, &s);
		format_addr(s.local, s.row.family, &s.row.local);
		format_addr(s.peer, s.row.family, &s.row.peer);
		memset(s.device, 0, sizeof(s.device));
		if (stream_path(&s.row) == RS_PATH_RDMA)
			memcpy(s.device, s.row.device, sizeof(s.device) - 1);
		make_printable(s.device);
		add_stream(&s);
	}
	return true;
}

/*
 * Add the streams of process `pid`. Returns 0; ESRCH: no such process; ENOENT: it does not run
 * under rsock; or another errno. A fork inherits its parent's segment: only its own counts, but it
 * does run under rsock.
 */
static int read_process(int pid)
{
	char path[64];
	int proc, fds, err = ENOENT;
	DIR *dir = NULL;
	struct dirent *entry;

	snprintf(path, sizeof(path), "/proc/%d", pid);
	proc = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (proc < 0)
		return ESRCH;
	fds = openat(proc, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fds >= 0)
		dir = fdopendir(fds);
	if (!dir) {
		err = errno;
		close(proc);
		return err == ENOENT ? ESRCH : err;
	}
	while ((entry = readdir(dir))) {
		static const char wanted[] = "/memfd:" RS_STATS_MEMFD " (deleted)";
		char target[sizeof(wanted) + 1];
		ssize_t n = readlinkat(fds, entry->d_name, target, sizeof(target));
		bool done;
		int fd;

		if (n != sizeof(wanted) - 1 || memcmp(target, wanted, sizeof(wanted) - 1) != 0)
			continue;
		err = 0;
		/* In a mount namespace of its own a process can have a FIFO of that name. */
		fd = openat(fds, entry->d_name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
		if (fd < 0)
			continue;
		done = read_segment(proc, fd, pid);
		close(fd);
		if (done)
			break;
	}
	closedir(dir);
	close(proc);
	return err;
}

static void read_all(void)
{
	DIR *dir = opendir("/proc");
	struct dirent *entry;

	if (!dir) {
		warn_msg("/proc: %s", strerror(errno));
		return;
	}
	/* Processes that end, or that belong to others, are not an error here. */
	while ((entry = readdir(dir))) {
		int pid = atoi(entry->d_name);

		if (pid > 0)
			read_process(pid);
	}
	closedir(dir);
}

static int read_given(int count, char **words)
{
	int status = EXIT_SUCCESS;

	for (int i = 0; i < count; i++) {
		char *end;
		long pid = strtol(words[i], &end, 10);
		int err;

		if (*end != '\0' || pid <= 0 || pid > INT32_MAX) {
			warn_msg("'%s' is not a process id", words[i]);
			return EXIT_USAGE;
		}
		err = read_process((int)pid);
		if (err == ENOENT)
			warn_msg("%ld does not run under rsock", pid);
		else if (err == ESRCH)
			warn_msg("there is no process %ld", pid);
		else if (err)
			warn_msg("process %ld: %s", pid, strerror(err));
		if (err)
			status = EXIT_FAILURE;
	}
	return status;
}

/* ---- output ---- */

static int by_pid_and_fd(const void *a, const void *b)
{
	const struct stream *x = a, *y = b;

	if (x->pid != y->pid)
		return x->pid < y->pid ? -1 : 1;
	return (x->row.fd > y->row.fd) - (x->row.fd < y->row.fd);
}

static const char *path_word(uint8_t path)
{
	static const char *const words[] = { "tcp", "shm", "rdma" };

	return path < sizeof(words) / sizeof(words[0]) ? words[path] : "unknown";
}

/* All strings that we print are printable ASCII: only two characters need an escape. */
static void json_string(const char *key, const char *value)
{
	printf("\"%s\": \"", key);
	for (; *value; value++) {
		if (*value == '"' || *value == '\\')
			putchar('\\');
		putchar(*value);
	}
	fputs("\", ", stdout);
}

static void print_json(void)
{
	putchar('[');
	for (size_t i = 0; i < found.count; i++) {
		const struct stream *s = &found.streams[i];
		const struct rs_stats_row *row = &s->row;

		printf("%s\n{\"pid\": %d, ", i ? "," : "", s->pid);
		json_string("command", s->command);
		printf("\"fd\": %d, \"server\": %s, ", row->fd, row->server ? "true" : "false");
		json_string("local", s->local);
		json_string("peer", s->peer);
		json_string("path", path_word(stream_path(row)));
		json_string("tx_path", path_word(row->tx_path));
		json_string("rx_path", path_word(row->rx_path));
		json_string("device", s->device);
		json_string("reason", rs_reason_word(row->reason));
		printf("\"tx_bytes\": %" PRIu64 ", \"rx_bytes\": %" PRIu64 ", ", row->tx_bytes,
		       row->rx_bytes);
		printf("\"tx_fast_bytes\": %" PRIu64 ", \"rx_fast_bytes\": %" PRIu64 ", ",
		       row->tx_fast_bytes, row->rx_fast_bytes);
		printf("\"enters\": %" PRIu64 ", \"leaves\": %" PRIu64 "}", row->enters,
		       row->leaves);
	}
	puts(found.count ? "\n]" : "]");
}

enum { COLUMNS = 11, CELL = 64 };

static const char *const titles[COLUMNS] = { "PID",    "COMMAND", "FD", "LOCAL",   "PEER",   "PATH",
					     "REASON", "TX",	  "RX", "TX-FAST", "RX-FAST" };

static bool right_aligned(int column)
{
	return column == 0 || column == 2 || column >= 7;
}

static void human_bytes(char cell[CELL], uint64_t bytes)
{
	static const char units[] = "KMGTPE";
	double value = (double)bytes;
	int unit = -1;

	while (value >= 999.5 && units[unit + 1]) {
		value /= 1024;
		unit++;
	}
	if (unit < 0)
		snprintf(cell, CELL, "%" PRIu64, bytes);
	else
		snprintf(cell, CELL, "%.*f%c", value < 9.95 ? 1 : 0, value, units[unit]);
}

/* The cells of line `i` of the table; line 0 has the titles. */
static void make_line(size_t i, char cells[COLUMNS][CELL])
{
	const struct rs_stats_row *row;
	const struct stream *s;

	if (i == 0) {
		for (int c = 0; c < COLUMNS; c++)
			snprintf(cells[c], CELL, "%s", titles[c]);
		return;
	}
	s = &found.streams[i - 1];
	row = &s->row;
	snprintf(cells[0], CELL, "%d", s->pid);
	snprintf(cells[1], CELL, "%s", s->command);
	snprintf(cells[2], CELL, "%d", row->fd);
	snprintf(cells[3], CELL, "%s", *s->local ? s->local : "-");
	snprintf(cells[4], CELL, "%s", *s->peer ? s->peer : "-");
	snprintf(cells[5], CELL, "%s", path_word(stream_path(row)));
	snprintf(cells[6], CELL, "%s", row->reason ? rs_reason_word(row->reason) : "-");
	human_bytes(cells[7], row->tx_bytes);
	human_bytes(cells[8], row->rx_bytes);
	human_bytes(cells[9], row->tx_fast_bytes);
	human_bytes(cells[10], row->rx_fast_bytes);
}

static void print_table(void)
{
	char cells[COLUMNS][CELL];
	int width[COLUMNS] = { 0 };

	for (size_t i = 0; i <= found.count; i++) {
		make_line(i, cells);
		for (int c = 0; c < COLUMNS; c++) {
			int len = (int)strlen(cells[c]);

			width[c] = len > width[c] ? len : width[c];
		}
	}
	for (size_t i = 0; i <= found.count; i++) {
		make_line(i, cells);
		for (int c = 0; c < COLUMNS; c++)
			printf("%*s%s", right_aligned(c) ? width[c] : -width[c], cells[c],
			       c < COLUMNS - 1 ? "  " : "\n");
	}
}

int cmd_stat(int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	bool json = false;
	int opt, status = EXIT_SUCCESS;

	argv[0] = (char[]){ "rsock stat" };
	while ((opt = getopt_long(argc, argv, "jh", options, NULL)) != -1) {
		switch (opt) {
		case 'j':
			json = true;
			break;
		case 'h':
			fputs(usage, stdout);
			return EXIT_SUCCESS;
		default:
			return EXIT_USAGE;
		}
	}
	if (optind < argc)
		status = read_given(argc - optind, argv + optind);
	else
		read_all();
	if (status == EXIT_USAGE)
		return status;
	if (found.count)
		qsort(found.streams, found.count, sizeof(*found.streams), by_pid_and_fd);
	if (json)
		print_json();
	else if (found.count || status == EXIT_SUCCESS)
		print_table();
	if (found.lost)
		warn_msg("%" PRIu64 " more connections had no room in the statistics", found.lost);
	free(found.streams);
	return status;
}
