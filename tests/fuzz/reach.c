/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * reach.c - the ELF headers and first lines that `rsock run` looks at
 */
#include <sys/mman.h>

#include "tools/reach.c" /* by descriptor */
#include "tests/fuzz/fuzz.h"

#define FILE_LEN (3 * PATH_MAX) /* more than what it says fits */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int fd = -1;
	static struct elf_facts facts;
	static char path[PATH_MAX];
	struct fuzz_in in = { data, size };
	uint8_t bytes[FILE_LEN] = { 0 };
	Elf64_Ehdr eh = { .e_ident = { 0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB },
			  .e_machine = EM_X86_64,
			  .e_phoff = sizeof(eh),
			  .e_phentsize = sizeof(Elf64_Phdr),
			  .e_shentsize = sizeof(Elf64_Shdr) };
	Elf64_Phdr ph = { .p_type = PT_INTERP };
	Elf64_Shdr sh = { 0 };
	uint8_t how = (uint8_t)fuzz_int(&in, 1);

	if (fd < 0)
		fd = memfd_create("program", MFD_CLOEXEC);
	if (how & 1) {
		fuzz_bytes(&in, bytes, FILE_LEN);
	} else {
		/* One that is right but for its numbers. */
		eh.e_phnum = (uint16_t)(fuzz_int(&in, 1) % 4 + (how & 2 ? 0xfff0u : 0));
		eh.e_shoff = fuzz_wild(&in, 512);
		eh.e_shnum = (uint16_t)fuzz_int(&in, 1);
		eh.e_shstrndx = (uint16_t)fuzz_int(&in, 1);
		if (how & 4)
			eh.e_phoff = fuzz_wild(&in, sizeof(eh));
		ph.p_offset = fuzz_wild(&in, 1024);
		ph.p_filesz = fuzz_wild(&in, 16);
		sh.sh_offset = fuzz_wild(&in, 2048);
		sh.sh_size = fuzz_wild(&in, 32);
		memcpy(bytes, &eh, sizeof(eh));
		memcpy(bytes + sizeof(eh), &ph, sizeof(ph));
		for (size_t at = 512; at < 1024; at += sizeof(sh))
			memcpy(bytes + at, &sh, sizeof(sh));
		fuzz_bytes(&in, bytes + 1024, FILE_LEN - 1024);
	}
	CHECK(pwrite(fd, bytes, FILE_LEN, 0) == FILE_LEN);
	CHECK(ftruncate(fd, how & 8 ? (off_t)(fuzz_wild(&in, FILE_LEN) % FILE_LEN) : FILE_LEN) ==
	      0);
	if (read_elf(fd, &facts)) {
		CHECK(memchr(facts.linker, '\0', sizeof(facts.linker)));
		judge(fd, &facts);
	} else if (script_interpreter(fd, path)) {
		CHECK(memchr(path, '\0', sizeof(path)));
	}
	return 0;
}
