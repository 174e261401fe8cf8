/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "preload/files.h"

#include <stddef.h>
#include <sys/mman.h>

#include "conn_mgr/owner.h"
#include "preload/process.h"
#include "rsock/sys.h"

uintptr_t *rs_files[RS_FILES_CHUNKS];

bool rs_file_set(int fd, uintptr_t word)
{
	uintptr_t **slot, *chunk;

	if ((unsigned int)fd >= RS_FILES_CHUNK * RS_FILES_CHUNKS)
		return false;
	slot = &rs_files[(unsigned int)fd / RS_FILES_CHUNK];
	chunk = __atomic_load_n(slot, __ATOMIC_ACQUIRE);
	if (!chunk) {
		size_t size = RS_FILES_CHUNK * sizeof(*chunk);
		long p = rs_sys6(SYS_mmap, 0, (long)size, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if ((unsigned long)p > -4096UL)
			return false;
		if (__atomic_compare_exchange_n(slot, &chunk, (uintptr_t *)p, false,
						__ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
			chunk = (uintptr_t *)p;
		else
			rs_sys2(SYS_munmap, p, size);
	}
	__atomic_store_n(&chunk[(unsigned int)fd % RS_FILES_CHUNK], word, __ATOMIC_SEQ_CST);
	return true;
}

uintptr_t rs_file_take(int fd)
{
	uintptr_t *chunk;

	if ((unsigned int)fd >= RS_FILES_CHUNK * RS_FILES_CHUNKS)
		return 0;
	chunk = __atomic_load_n(&rs_files[(unsigned int)fd / RS_FILES_CHUNK], __ATOMIC_ACQUIRE);
	if (!chunk)
		return 0;
	return __atomic_exchange_n(&chunk[(unsigned int)fd % RS_FILES_CHUNK], 0, __ATOMIC_SEQ_CST);
}

struct rs_conn *rs_file_conn_slow(int fd, uintptr_t word)
{
	if (rs_alive && !*rs_alive)
		rs_process_forked(); /* a child of _Fork() or of a raw system call */
	for (;;) {
		struct rs_conn *c = rs_file_pointer(word);

		if (__atomic_load_n(&c->plain, __ATOMIC_ACQUIRE) &&
		    !__atomic_load_n(&c->owed, __ATOMIC_RELAXED) &&
		    !__atomic_load_n(&c->err, __ATOMIC_RELAXED) &&
		    !__atomic_load_n(&c->rest, __ATOMIC_RELAXED))
			return NULL;
		if (rs_conn_get(c)) {
			/* Not for a handler that interrupted our own call, which finds it locked. */
			bool claimed = c->foreign && !rs_lock_mine(&c->lock);

			if (claimed)
				rs_owner_claim(c);
			if (!claimed && rs_file(fd) == word)
				return c;
			rs_conn_put(c);
		}
		/* Closed, perhaps reused, meanwhile. */
		word = rs_file(fd);
		if (rs_file_kind(word) != RS_KIND_CONN)
			return NULL;
	}
}

void rs_files_each(unsigned int from, unsigned int to,
		   void (*each)(int fd, uintptr_t word, void *arg), void *arg)
{
	const unsigned int limit = RS_FILES_CHUNK * RS_FILES_CHUNKS - 1;

	if (to > limit)
		to = limit;
	for (unsigned int fd = from; fd <= to; fd++) {
		uintptr_t word;

		if (!__atomic_load_n(&rs_files[fd / RS_FILES_CHUNK], __ATOMIC_ACQUIRE)) {
			fd |= RS_FILES_CHUNK - 1;
			continue;
		}
		word = rs_file((int)fd);
		if (word)
			each((int)fd, word, arg);
	}
}

struct other {
	int not_this, found;
	uintptr_t word;
};

static void match(int fd, uintptr_t word, void *arg)
{
	struct other *o = arg;

	if (word == o->word && fd != o->not_this && o->found < 0)
		o->found = fd;
}

int rs_files_other(int fd, uintptr_t word)
{
	struct other o = { fd, -1, word };

	rs_files_each(0, UINT32_MAX, match, &o);
	return o.found;
}

bool rs_files_foreign(void)
{
	if (rs_alive && !*rs_alive) {
		rs_process_forked();
		return false;
	}
	return rs_sys0(SYS_getpid) != rs_process_pid;
}
