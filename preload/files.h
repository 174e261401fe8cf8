/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * files.h - which descriptors of the program rsock knows something about
 *
 * A word per descriptor: a kind in the low bits and, for connections and epoll sets, a pointer.
 * Descriptors that are not in the table are the kernel's alone. A look-up is two loads.
 */
#ifndef PRELOAD_FILES_H
#define PRELOAD_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "conn_mgr/conn.h"

enum rs_kind {
	RS_KIND_NONE = 0,
	RS_KIND_SOCKET = 1, /* a TCP socket that is neither connected nor listening */
	RS_KIND_LISTENER = 2, /* port << 3 */
	RS_KIND_CONN = 3, /* struct rs_conn * */
	RS_KIND_EPOLL = 4, /* struct rs_epoll * */
};

#define RS_KIND_MASK 7u
#define RS_FILES_CHUNK 1024u
#define RS_FILES_CHUNKS 4096u

extern uintptr_t *rs_files[RS_FILES_CHUNKS];
extern const uint32_t *rs_alive; /* wiped to 0 in a child that fork handlers did not see */

/* Where the word of `fd` is, for ever; NULL: it has none. */
static inline const uintptr_t *rs_file_entry(int fd)
{
	const uintptr_t *chunk;

	if ((unsigned int)fd >= RS_FILES_CHUNK * RS_FILES_CHUNKS)
		return NULL;
	chunk = __atomic_load_n(&rs_files[(unsigned int)fd / RS_FILES_CHUNK], __ATOMIC_ACQUIRE);
	return chunk ? &chunk[(unsigned int)fd % RS_FILES_CHUNK] : NULL;
}

static inline uintptr_t rs_file(int fd)
{
	const uintptr_t *entry = rs_file_entry(fd);

	return entry ? __atomic_load_n(entry, __ATOMIC_ACQUIRE) : 0;
}

static inline enum rs_kind rs_file_kind(uintptr_t word)
{
	return (enum rs_kind)(word & RS_KIND_MASK);
}

static inline void *rs_file_pointer(uintptr_t word)
{
	return (void *)(word & ~(uintptr_t)RS_KIND_MASK);
}

/* Puts a word in; false: out of memory. The old word is the caller's business. */
bool rs_file_set(int fd, uintptr_t word);
uintptr_t rs_file_take(int fd);

struct rs_conn *rs_file_conn_slow(int fd, uintptr_t word);

/* The same, of a connection; NULL: it is none just now. */
static inline const uintptr_t *rs_file_conn_entry(int fd)
{
	const uintptr_t *entry = rs_file_entry(fd);

	if (!entry ||
	    __builtin_expect(rs_file_kind(__atomic_load_n(entry, __ATOMIC_ACQUIRE)) != RS_KIND_CONN,
			     1))
		return NULL;
	return entry;
}

/* Whether the connection behind `fd` is another process's, which it has been since a fork. */
static inline bool rs_file_foreign(int fd)
{
	uintptr_t word = rs_file(fd);

	return rs_file_kind(word) == RS_KIND_CONN &&
	       ((const struct rs_conn *)rs_file_pointer(word))->foreign;
}

/*
 * The connection behind `fd`, which is about to be used, with a reference. NULL: there is none, or it is
 * plain TCP for good and has nothing to say that the kernel does not know.
 */
static inline struct rs_conn *rs_file_conn(int fd)
{
	uintptr_t word = rs_file(fd);

	if (__builtin_expect(rs_file_kind(word) != RS_KIND_CONN, 1))
		return NULL;
	return rs_file_conn_slow(fd, word);
}

/* Calls `each` for every known descriptor in [from, to]. */
void rs_files_each(unsigned int from, unsigned int to,
		   void (*each)(int fd, uintptr_t word, void *arg), void *arg);
/* Another descriptor with the same word, or -1. */
int rs_files_other(int fd, uintptr_t word);

/* A call that changes the table comes from a vfork child: it runs in its parent's memory. */
bool rs_files_foreign(void);

#endif
