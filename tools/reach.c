/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * reach.c - can LD_PRELOAD reach a program? Reads scripts' first lines and ELF headers.
 *
 * The files are not trusted: every offset and size from them is checked by the read that uses it.
 */
#include "tools/reach.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#define SCRIPT_DEPTH 5 /* interpreters of interpreters that Linux follows */
#define SCRIPT_LINE 256 /* bytes of the first line that Linux looks at */
#define NAMES_MAX (1 << 20) /* section name table that we are ready to read */

/* What we want to know of an ELF file. */
struct elf_facts {
	unsigned char class;
	unsigned char data;
	uint16_t machine;
	bool go;
	char linker[PATH_MAX]; /* PT_INTERP, or "" */
};

static int try_file(const char *path)
{
	struct stat st;

	if (stat(path, &st) != 0)
		return errno == EACCES ? EACCES : ENOENT;
	if (!S_ISREG(st.st_mode) || access(path, X_OK) != 0)
		return EACCES;
	return 0;
}

int reach_resolve(const char *program, char path[PATH_MAX])
{
	const char *dir = getenv("PATH");
	int result = ENOENT;

	if (*program == '\0')
		return ENOENT;
	if (strchr(program, '/')) {
		if (snprintf(path, PATH_MAX, "%s", program) >= PATH_MAX)
			return ENOENT;
		return try_file(path);
	}
	for (dir = dir ? dir : "/bin:/usr/bin"; dir; dir = *dir ? dir + 1 : NULL) {
		size_t len = strcspn(dir, ":");
		int n = snprintf(path, PATH_MAX, "%.*s%s%s", (int)len, dir, len ? "/" : "",
				 program);
		int err = n < PATH_MAX ? try_file(path) : ENOENT;

		if (err == 0)
			return 0;
		if (err == EACCES)
			result = EACCES;
		dir += len;
	}
	return result;
}

static bool read_at(int fd, void *buf, size_t len, uint64_t offset)
{
	return offset <= INT64_MAX && pread(fd, buf, len, (off_t)offset) == (ssize_t)len;
}

/* The section names, as "\0.text\0.data\0" with a 0 at the end too, or NULL. */
static char *section_names(int fd, const Elf64_Ehdr *eh, size_t *size)
{
	Elf64_Shdr sh;
	char *names;

	if (eh->e_shentsize != sizeof(sh) || eh->e_shstrndx >= eh->e_shnum ||
	    !read_at(fd, &sh, sizeof(sh), eh->e_shoff + (uint64_t)eh->e_shstrndx * sizeof(sh)) ||
	    sh.sh_size == 0 || sh.sh_size > NAMES_MAX)
		return NULL;
	names = malloc(sh.sh_size + 1);
	if (!names)
		return NULL;
	if (!read_at(fd, names, sh.sh_size, sh.sh_offset)) {
		free(names);
		return NULL;
	}
	names[sh.sh_size] = '\0';
	*size = sh.sh_size;
	return names;
}

static bool has_section(const char *names, size_t size, const char *wanted)
{
	for (size_t at = 0; at < size; at += strlen(names + at) + 1) {
		if (strcmp(names + at, wanted) == 0)
			return true;
	}
	return false;
}

/* False if the file is not ELF. For 32-bit files only the first fields are set. */
static bool read_elf(int fd, struct elf_facts *facts)
{
	Elf64_Ehdr eh;
	char *names;
	size_t size;

	memset(facts, 0, sizeof(*facts));
	if (!read_at(fd, &eh, sizeof(eh), 0) || memcmp(eh.e_ident, ELFMAG, SELFMAG) != 0)
		return false;
	facts->class = eh.e_ident[EI_CLASS];
	facts->data = eh.e_ident[EI_DATA];
	facts->machine = eh.e_machine; /* at the same place in every class */
	if (facts->class != ELFCLASS64)
		return true;

	for (unsigned int i = 0; i < eh.e_phnum && eh.e_phentsize == sizeof(Elf64_Phdr); i++) {
		Elf64_Phdr ph;

		if (!read_at(fd, &ph, sizeof(ph), eh.e_phoff + i * sizeof(ph)))
			break;
		if (ph.p_type == PT_INTERP && ph.p_filesz > 0 && ph.p_filesz < PATH_MAX &&
		    !read_at(fd, facts->linker, ph.p_filesz, ph.p_offset))
			facts->linker[0] = '\0';
	}
	names = section_names(fd, &eh, &size);
	if (names) {
		facts->go = has_section(names, size, ".note.go.buildid") ||
			    has_section(names, size, ".go.buildinfo");
		free(names);
	}
	return true;
}

/* Will the dynamic linker run in secure mode (AT_SECURE), where it ignores our library? */
static bool gains_privilege(int fd)
{
	struct stat st;
	struct statvfs fs;

	if (getuid() != geteuid() || getgid() != getegid())
		return true;
	if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 || fstat(fd, &st) != 0 ||
	    (fstatvfs(fd, &fs) == 0 && (fs.f_flag & ST_NOSUID)))
		return false;
	if ((st.st_mode & S_ISUID) && st.st_uid != getuid())
		return true;
	if ((st.st_mode & S_ISGID) && (st.st_mode & S_IXGRP) && st.st_gid != getgid())
		return true;
	return getuid() != 0 && fgetxattr(fd, "security.capability", NULL, 0) > 0;
}

/*
 * The program that env(1) would run for `words`, which is what follows it on a script's first line:
 * the first word that is neither an option nor an assignment. "-S" only splits words, as we do.
 */
static const char *env_program(char *words)
{
	char *save = NULL;

	for (char *word = strtok_r(words, " \t", &save); word;
	     word = strtok_r(NULL, " \t", &save)) {
		if (word[0] != '-' && strchr(word, '=') == NULL)
			return word;
		if (strncmp(word, "-S", 2) == 0 && word[2] != '\0')
			return word + 2;
	}
	return NULL;
}

/* If `fd` is a script, put the path of its interpreter into `path`. */
static bool script_interpreter(int fd, char path[PATH_MAX])
{
	char line[SCRIPT_LINE + 1];
	ssize_t n = pread(fd, line, SCRIPT_LINE, 0);
	char *interpreter, *rest;
	const char *program, *base;

	if (n < 2 || line[0] != '#' || line[1] != '!')
		return false;
	line[n] = '\0';
	line[strcspn(line, "\n")] = '\0';
	interpreter = line + 2 + strspn(line + 2, " \t");
	rest = interpreter + strcspn(interpreter, " \t");
	if (*rest != '\0')
		*rest++ = '\0';

	base = strrchr(interpreter, '/');
	if (base && strcmp(base, "/env") == 0) {
		program = env_program(rest);
		return program && reach_resolve(program, path) == 0;
	}
	return snprintf(path, PATH_MAX, "%s", interpreter) < PATH_MAX && *path != '\0';
}

static enum reach judge(int fd, const struct elf_facts *facts)
{
	struct elf_facts own;
	int self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	bool known = self >= 0 && read_elf(self, &own);

	if (self >= 0)
		close(self);
	if (known &&
	    (facts->class != own.class || facts->data != own.data || facts->machine != own.machine))
		return REACH_MACHINE;
	if (facts->linker[0] == '\0')
		return REACH_STATIC;
	if (known && strcmp(basename(facts->linker), basename(own.linker)) != 0)
		return REACH_LIBC;
	if (gains_privilege(fd))
		return REACH_SETID;
	return facts->go ? REACH_GO : REACH_OK;
}

enum reach reach_check(const char *path, char binary[PATH_MAX])
{
	enum reach result = REACH_OK;
	struct elf_facts facts;
	bool again = true;

	snprintf(binary, PATH_MAX, "%s", path);
	for (int depth = 0; again && depth <= SCRIPT_DEPTH; depth++) {
		int fd = open(binary, O_RDONLY | O_CLOEXEC);

		if (fd < 0)
			return REACH_OK;
		again = false;
		if (read_elf(fd, &facts))
			result = judge(fd, &facts);
		else
			again = script_interpreter(fd, binary);
		close(fd);
	}
	return result;
}

const char *reach_text(enum reach reach)
{
	switch (reach) {
	case REACH_STATIC:
		return "is statically linked: LD_PRELOAD cannot reach it";
	case REACH_GO:
		return "is a Go program: it makes its system calls without libc, where LD_PRELOAD "
		       "cannot reach them";
	case REACH_SETID:
		return "gains privileges when it starts: the dynamic linker ignores LD_PRELOAD";
	case REACH_MACHINE:
		return "is for another machine or word size than rsock: LD_PRELOAD cannot reach it";
	case REACH_LIBC:
		return "uses another C library than rsock: LD_PRELOAD cannot reach it";
	case REACH_OK:
		break;
	}
	return "can be reached";
}
