/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/state.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "rsock/lock.h"
#include "rsock/sys.h"

#define CHUNK 64u /* states at a time */
#define CHUNKS 4096u

struct chunk {
	struct rs_state *own; /* NULL: the parent's */
	struct rs_state *seen; /* read only; NULL: no child is to have them */
	struct rs_shared *shared;
};

#define OWN_SIZE (CHUNK * sizeof(struct rs_state))
#define SHARED_SIZE (CHUNK * sizeof(struct rs_shared))

static struct rs_lock lock;
static struct chunk chunk[CHUNKS];
static uint32_t nchunks, ninherited; /* of which so many came with a fork */
static uint32_t left; /* states of the last that were never used */

static void *map(size_t size, int prot, int how, int fd)
{
	long p = rs_sys6(SYS_mmap, 0, (long)size, prot, how, fd, 0);

	return (unsigned long)p > -4096UL ? NULL : (void *)p;
}

static void unmap(void *p, size_t size)
{
	if (p)
		rs_sys2(SYS_munmap, p, size);
}

/* Twice the same memory. After the seal nobody gets a view of it that can be written, nor made so. */
static bool map_sealed(struct chunk *k)
{
	const int seals = F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	struct rlimit rl;
	int fd;

	/* ftruncate beyond the limit would kill the program by SIGXFSZ. */
	if (rs_sys4(SYS_prlimit64, 0, RLIMIT_FSIZE, NULL, &rl) == 0 && rl.rlim_cur < OWN_SIZE)
		return false;
	fd = (int)rs_sys2(SYS_memfd_create, "rsock-states", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return false;
	if (rs_sys2(SYS_ftruncate, fd, OWN_SIZE) == 0)
		k->own = map(OWN_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	if (k->own && rs_sys3(SYS_fcntl, fd, F_ADD_SEALS, seals) == 0)
		k->seen = map(OWN_SIZE, PROT_READ, MAP_SHARED, fd);
	rs_sys1(SYS_close, fd);
	return k->own && k->seen;
}

static bool new_chunk(struct chunk *k)
{
	*k = (struct chunk){ 0 };
	if (!map_sealed(k)) {
		/* No descriptor, a limit, or a kernel before 5.1: streams leave before a fork. */
		unmap(k->own, OWN_SIZE);
		k->own = map(OWN_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	}
	k->shared = map(SHARED_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
	if (k->own && k->shared)
		return true;
	unmap(k->own, OWN_SIZE);
	unmap(k->seen, OWN_SIZE);
	unmap(k->shared, SHARED_SIZE);
	return false;
}

bool rs_state_take(struct rs_state_mem *m)
{
	bool there;

	if (rs_lock_mine(&lock))
		return false; /* a handler that interrupted us */
	rs_lock(&lock);
	if (!left && nchunks < CHUNKS && new_chunk(&chunk[nchunks])) {
		nchunks++;
		left = CHUNK;
	}
	there = left;
	if (there) {
		const struct chunk *k = &chunk[nchunks - 1];

		left--;
		*m = (struct rs_state_mem){
			.own = &k->own[left],
			.seen = k->seen ? &k->seen[left] : NULL,
			.shared = &k->shared[left],
		};
	}
	rs_unlock(&lock);
	return there;
}

/* ---- in a forked child ---- */

void rs_states_forget(void)
{
	lock.word = 0;
	ninherited = nchunks;
	left = 0;
}

/* False: no memory. */
static bool keep_copy(struct chunk *k)
{
	void *copy = map(OWN_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (!copy)
		return false;
	memcpy(copy, k->seen, OWN_SIZE);
	return rs_sys5(SYS_mremap, copy, OWN_SIZE, OWN_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED,
		       k->own) == (long)k->own;
}

void rs_states_seal(bool inside)
{
	for (uint32_t i = 0; i < ninherited; i++) {
		if (chunk[i].own && chunk[i].seen && !(inside && keep_copy(&chunk[i])))
			unmap(chunk[i].own, OWN_SIZE);
		chunk[i].own = NULL;
	}
}

void rs_states_unmap_inherited(void)
{
	for (uint32_t i = 0; i < ninherited; i++) {
		unmap(chunk[i].seen, OWN_SIZE);
		unmap(chunk[i].shared, SHARED_SIZE);
		chunk[i] = (struct chunk){ 0 };
	}
}
