/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * interpose_dlsym.c - who asks for libc's function by its library gets rsock's
 *
 * Only where that is what stands behind rsock's: one of another preload library, which may call the one
 * that it has found this way, gets what it asks for. RTLD_NEXT and RTLD_DEFAULT depend on the caller, by
 * its return address: hence the jump, in assembler. This may run before all constructors, and those of
 * sanitizers too.
 */
#include <dlfcn.h>
#include <link.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)

#define EARLY __attribute__((no_sanitize("address", "thread", "undefined")))

typedef void *(*dlsym_fn)(void *, const char *);
typedef void *(*dlvsym_fn)(void *, const char *, const char *);

extern ElfW(Dyn) _DYNAMIC[] __attribute__((visibility("hidden")));

/* For the assembler below. */
dlsym_fn rs_next_dlsym __attribute__((visibility("hidden")));
dlvsym_fn rs_next_dlvsym __attribute__((visibility("hidden")));
void rs_dlsym_load(void);
void *rs_dlsym_in(void *library, const char *name);
void *rs_dlvsym_in(void *library, const char *name, const char *version);

EARLY static bool same(const char *a, const char *b)
{
	while (*a && *a == *b) {
		a++;
		b++;
	}
	return *a == *b;
}

/* What a library exports under this name, in some version of it, by its DT_GNU_HASH; NULL: nothing. */
EARLY static void *exported(const struct link_map *m, const char *name)
{
	const uint32_t *table = NULL, *bucket, *chain;
	const ElfW(Sym) *sym = NULL;
	const char *str = NULL;
	uint32_t hash = 5381, i;

	for (const ElfW(Dyn) *d = m->l_ld; d->d_tag != DT_NULL; d++) {
		if (d->d_tag == DT_GNU_HASH)
			table = (const uint32_t *)d->d_un.d_ptr;
		else if (d->d_tag == DT_SYMTAB)
			sym = (const ElfW(Sym) *)d->d_un.d_ptr;
		else if (d->d_tag == DT_STRTAB)
			str = (const char *)d->d_un.d_ptr;
	}
	if (!table || !sym || !str || !table[0])
		return NULL;
	for (const char *p = name; *p; p++)
		hash = hash * 33 + (uint8_t)*p;
	/* Number of buckets, first symbol, words of the filter, shift; the filter. */
	bucket = table + 4 + table[2] * (sizeof(ElfW(Addr)) / sizeof(*table));
	chain = bucket + table[0];
	i = bucket[hash % table[0]];
	if (i < table[1])
		return NULL;
	for (;; i++) {
		uint32_t h = chain[i - table[1]];

		if ((h | 1) == (hash | 1) && sym[i].st_shndx != SHN_UNDEF &&
		    same(str + sym[i].st_name, name))
			return (void *)(m->l_addr + sym[i].st_value);
		if (h & 1)
			return NULL;
	}
}

EARLY static const struct link_map *ourselves(void)
{
	const struct link_map *m = _r_debug.r_map;

	while (m && m->l_ld != _DYNAMIC)
		m = m->l_next;
	return m;
}

/*
 * What the next library behind ours that exports it has. No further than libc: what comes later may be
 * unloaded by another thread.
 */
EARLY static void *behind(const char *name)
{
	const struct link_map *m = ourselves();
	bool libc = false;
	void *p = NULL;

	while (!p && !libc && m && (m = m->l_next))
		/* The kernel's vdso has no path, and its tables are not relocated. */
		if (m->l_name[0] == '/') {
			p = exported(m, name);
			libc = exported(m, "gnu_get_libc_version") != NULL;
		}
	return p;
}

EARLY static void *none(void)
{
	return NULL;
}

EARLY void rs_dlsym_load(void)
{
	void *p = behind("dlsym"), *v = behind("dlvsym");

	rs_next_dlvsym = v ? (dlvsym_fn)(uintptr_t)v : (dlvsym_fn)(uintptr_t)none;
	__atomic_store_n(&rs_next_dlsym, p ? (dlsym_fn)(uintptr_t)p : (dlsym_fn)(uintptr_t)none,
			 __ATOMIC_RELEASE);
}

EARLY static void *instead(void *p, const char *name)
{
	const struct link_map *self = ourselves();
	void *ours = p && self ? exported(self, name) : NULL;

	/* A look-up that fails would leave a message for dlerror(). */
	if (!ours || ours == p || !behind(name))
		return p;
	return rs_next_dlsym(RTLD_NEXT, name) == p ? ours : p;
}

EARLY void *rs_dlsym_in(void *library, const char *name)
{
	return instead(rs_next_dlsym(library, name), name);
}

EARLY void *rs_dlvsym_in(void *library, const char *name, const char *version)
{
	return instead(rs_next_dlvsym(library, name, version), name);
}

/* RTLD_DEFAULT is 0, RTLD_NEXT -1. */
#define JUMP(name, next, in)                             \
	__asm__(".text\n"                                \
		".p2align 4\n"                           \
		".globl " name "\n"                      \
		".type " name ", @function\n" name ":\n" \
		".cfi_startproc\n"                       \
		"	cmpq $0, rs_next_dlsym(%rip)\n"        \
		"	je 2f\n"                               \
		"1:	lea 1(%rdi), %rax\n"                 \
		"	cmp $1, %rax\n"                        \
		"	ja " in "\n"                     \
		"	jmp *" next "(%rip)\n"           \
		"2:	push %rdi\n"                         \
		".cfi_adjust_cfa_offset 8\n"             \
		"	push %rsi\n"                           \
		".cfi_adjust_cfa_offset 8\n"             \
		"	push %rdx\n"                           \
		".cfi_adjust_cfa_offset 8\n"             \
		"	call rs_dlsym_load\n"                  \
		"	pop %rdx\n"                            \
		".cfi_adjust_cfa_offset -8\n"            \
		"	pop %rsi\n"                            \
		".cfi_adjust_cfa_offset -8\n"            \
		"	pop %rdi\n"                            \
		".cfi_adjust_cfa_offset -8\n"            \
		"	jmp 1b\n"                              \
		".cfi_endproc\n"                         \
		".size " name ", . - " name "\n")

JUMP("dlsym", "rs_next_dlsym", "rs_dlsym_in");
JUMP("dlvsym", "rs_next_dlvsym", "rs_dlvsym_in");

#endif
