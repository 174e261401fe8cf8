/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * probe.c - prints what is in this process: threads, descriptors, mapped files
 *
 *	probe [socket]
 *
 * With "socket" it first opens, and closes again, an unconnected TCP socket.
 */
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int entries(const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	int n = 0;

	if (!d)
		return -1;
	while ((e = readdir(d)))
		n += e->d_name[0] != '.';
	closedir(d);
	return n;
}

int main(int argc, char **argv)
{
	char line[1024];
	FILE *f;

	if (argc > 1 && !strcmp(argv[1], "socket"))
		close(socket(AF_INET, SOCK_STREAM, 0));
	printf("threads %d\n", entries("/proc/self/task"));
	/* one of them is the directory itself */
	printf("descriptors %d\n", entries("/proc/self/fd") - 1);
	f = fopen("/proc/self/maps", "r");
	while (f && fgets(line, sizeof(line), f)) {
		char *p = strchr(line, '/');

		if (p)
			printf("map %s", p);
	}
	if (f)
		fclose(f);
	return 0;
}
