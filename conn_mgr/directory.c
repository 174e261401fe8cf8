/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/directory.h"

#include <string.h>
#include <sys/mman.h>

#include "rsock/sys.h"

#define ENTRIES 16384u
#define PROBES 32u
#define REFUSED_MS 70000 /* longer than a client goes on asking (claim.c) */

enum { FREE, BUSY, FULL };

struct entry {
	uint32_t state;
	uint32_t pid;
	uint16_t port;
	uint8_t family;
	uint8_t reason; /* 0: the name is good */
	uint8_t ip[16];
	union {
		char name[RS_NAME_LEN];
		struct {
			uint64_t inode, at; /* at: ms */
		};
	};
} __attribute__((aligned(64)));

struct rs_directory {
	struct entry e[ENTRIES];
};

struct rs_directory *rs_directory_new(void)
{
	long p = rs_sys6(SYS_mmap, 0, sizeof(struct rs_directory), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return (unsigned long)p > -4096UL ? NULL : (struct rs_directory *)p;
}

static uint32_t hash(uint8_t family, const uint8_t ip[16], uint16_t port)
{
	uint64_t h = port + (uint64_t)family * 131071u;

	for (size_t i = 0; i < (family == 4 ? 4u : 16u); i++)
		h = (h ^ ip[i]) * 0x100000001b3ULL;
	h ^= h >> 29;
	h *= 0xbf58476d1ce4e5b9ULL;
	return (uint32_t)(h >> 32);
}

static bool same(const struct entry *e, uint8_t family, const uint8_t ip[16], uint16_t port)
{
	return e->port == port && e->family == family && memcmp(e->ip, ip, 16) == 0;
}

static bool dead(uint32_t pid)
{
	return rs_sys2(SYS_kill, pid, 0) == -ESRCH;
}

/* Nobody needs it any more. Only when all are taken is it worth asking (`ask`) who is dead. */
static bool reusable(const struct entry *e, uint64_t now, bool ask)
{
	return e->reason ? now - e->at > REFUSED_MS : ask && dead(e->pid);
}

/* A place for the client, BUSY until the caller has filled it; NULL: none is left. */
static struct entry *place(struct rs_directory *d, uint8_t family, const uint8_t ip[16],
			   uint16_t port)
{
	uint32_t h = hash(family, ip, port);
	uint64_t now = rs_now_ms();

	for (int pass = 0; pass < 2; pass++) {
		for (uint32_t i = 0; i < PROBES; i++) {
			struct entry *e = &d->e[(h + i) % ENTRIES];
			uint32_t from = __atomic_load_n(&e->state, __ATOMIC_ACQUIRE);

			if (from == FULL && !same(e, family, ip, port) && !reusable(e, now, pass))
				continue;
			if (from == BUSY ||
			    !__atomic_compare_exchange_n(&e->state, &from, BUSY, false,
							 __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
				continue;
			e->pid = (uint32_t)rs_sys0(SYS_getpid);
			e->family = family;
			e->port = port;
			memcpy(e->ip, ip, 16);
			return e;
		}
	}
	return NULL;
}

void rs_directory_put(struct rs_directory *d, uint8_t family, const uint8_t ip[16], uint16_t port,
		      const char name[RS_NAME_LEN])
{
	struct entry *e = place(d, family, ip, port);

	if (!e)
		return;
	e->reason = 0;
	memcpy(e->name, name, RS_NAME_LEN);
	__atomic_store_n(&e->state, FULL, __ATOMIC_RELEASE);
}

void rs_directory_refuse(struct rs_directory *d, uint8_t family, const uint8_t ip[16],
			 uint16_t port, uint64_t inode, uint8_t reason)
{
	struct entry *e = place(d, family, ip, port);

	if (!e)
		return;
	e->reason = reason;
	e->inode = inode;
	e->at = rs_now_ms();
	__atomic_store_n(&e->state, FULL, __ATOMIC_RELEASE);
}

uint8_t rs_directory_refused(struct rs_directory *d, uint8_t family, const uint8_t ip[16],
			     uint16_t port, uint64_t inode)
{
	uint32_t h = hash(family, ip, port);

	for (uint32_t i = 0; i < PROBES; i++) {
		struct entry *e = &d->e[(h + i) % ENTRIES];
		uint8_t reason;

		if (__atomic_load_n(&e->state, __ATOMIC_ACQUIRE) != FULL ||
		    !same(e, family, ip, port))
			continue;
		reason = e->reason;
		if (reason && e->inode == inode &&
		    __atomic_load_n(&e->state, __ATOMIC_ACQUIRE) == FULL)
			return reason;
	}
	return 0;
}

bool rs_directory_get(struct rs_directory *d, uint8_t family, const uint8_t ip[16], uint16_t port,
		      char name[RS_NAME_LEN])
{
	uint32_t h = hash(family, ip, port);

	for (uint32_t i = 0; i < PROBES; i++) {
		struct entry *e = &d->e[(h + i) % ENTRIES];

		if (__atomic_load_n(&e->state, __ATOMIC_ACQUIRE) != FULL ||
		    !same(e, family, ip, port) || e->reason)
			continue;
		memcpy(name, e->name, RS_NAME_LEN);
		name[RS_NAME_LEN - 1] = '\0';
		if (__atomic_load_n(&e->state, __ATOMIC_ACQUIRE) == FULL)
			return true;
	}
	return false;
}

void rs_directory_drop(struct rs_directory *d, uint8_t family, const uint8_t ip[16], uint16_t port)
{
	uint32_t h = hash(family, ip, port), pid = (uint32_t)rs_sys0(SYS_getpid);

	for (uint32_t i = 0; i < PROBES; i++) {
		struct entry *e = &d->e[(h + i) % ENTRIES];
		uint32_t from = FULL;

		if (__atomic_load_n(&e->state, __ATOMIC_ACQUIRE) == FULL && e->pid == pid &&
		    !e->reason && same(e, family, ip, port))
			__atomic_compare_exchange_n(&e->state, &from, FREE, false, __ATOMIC_RELEASE,
						    __ATOMIC_RELAXED);
	}
}
