/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/shm.h"

#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "rsock/bell.h"
#include "rsock/faults.h"
#include "rsock/remote.h"
#include "rsock/sys.h"

/* 64 KiB stays in cache; 1 MiB streams; 8 MiB takes what the kernel's buffers would. */
const uint8_t rs_shm_shift[RS_TIERS] = { 16, 20, 23 };

#define HEAD_SIZE ((sizeof(struct rs_shm_head) + 4095u) & ~(size_t)4095u)
#define TIER_SIZE(t) ((size_t)1 << rs_shm_shift[t])
#define STRIDE (TIER_SIZE(0) + TIER_SIZE(1) + TIER_SIZE(2))
#define SEGMENT_SIZE (HEAD_SIZE + RS_SHM_SLOTS * STRIDE)
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define MAX_SNDBUF (4u << 20) /* net.ipv4.tcp_wmem's default maximum */
#define MIN_RCVBUF (64u << 10) /* the window that TCP offers before it has seen anybody read */
/*
 * What is staged the peer cannot see, and a program that writes as long as there is nothing to read gets
 * ahead by as much. Should the entry fail, it goes to TCP behind what that holds already. The other end, which
 * has got ahead too, must still find room in its ring to read its way through all of that.
 */
#define MAX_STAGED (1u << 20)
#define TABLE_MASK (((uintptr_t)2 << 20) - 1)
#define SHRINK_AFTER 64 /* times found empty */
#define GROW_AFTER 16 /* times found full */

/*
 * Both ends' segments take a lot of address space. Where the program has a limit on that, it is meant
 * for the program: we take a tenth of what is left at most, for our segment and the peer's.
 */
static bool address_space_left(size_t need)
{
	char buf[32];
	struct rlimit rl;
	uint64_t pages = 0;
	long fd, n;

	if (rs_sys4(SYS_prlimit64, 0, RLIMIT_AS, NULL, &rl) != 0 || rl.rlim_cur == RLIM_INFINITY)
		return true;
	fd = rs_sys4(SYS_openat, AT_FDCWD, "/proc/self/statm", O_RDONLY | O_CLOEXEC, 0);
	if (fd < 0)
		return false;
	n = rs_sys3(SYS_read, fd, buf, sizeof(buf));
	rs_sys1(SYS_close, fd);
	for (long i = 0; i < n && buf[i] >= '0' && buf[i] <= '9'; i++)
		pages = pages * 10 + (uint64_t)(buf[i] - '0');
	return n > 0 && pages * 4096 < rl.rlim_cur && need <= (rl.rlim_cur - pages * 4096) / 10;
}

static int map_segment(int memfd, struct rs_shm_head **head)
{
	/*
	 * A program that did mlockall(MCL_FUTURE) would get all of the segment populated and locked at
	 * once. Nothing is populated that cannot be read.
	 */
	void *p = (void *)rs_sys6(SYS_mmap, 0, (long)SEGMENT_SIZE, PROT_NONE,
				  MAP_SHARED | MAP_NORESERVE, memfd, 0);
	long r;

	if ((unsigned long)p > -4096UL)
		return (int)(long)p;
	rs_sys2(SYS_munlock, p, SEGMENT_SIZE);
	r = rs_sys3(SYS_mprotect, p, SEGMENT_SIZE, PROT_READ | PROT_WRITE);
	if (r != 0) {
		rs_sys2(SYS_munmap, p, SEGMENT_SIZE);
		return (int)r;
	}
	rs_sys3(SYS_madvise, p, SEGMENT_SIZE, MADV_DONTDUMP);
	/* A forked child has no business in the rings: the parent stays their owner. */
	rs_sys3(SYS_madvise, p, SEGMENT_SIZE, MADV_DONTFORK);
	*head = p;
	return 0;
}

int rs_shm_create(struct rs_shm_head **head)
{
	struct rlimit rl;
	struct rs_shm_head *h;
	long fd, r;

	/* ftruncate beyond the limit would kill the program by SIGXFSZ. */
	if (rs_sys4(SYS_prlimit64, 0, RLIMIT_FSIZE, NULL, &rl) == 0 && rl.rlim_cur < SEGMENT_SIZE)
		return -EFBIG;
	if (!address_space_left(2 * SEGMENT_SIZE))
		return -ENOMEM;
	fd = rs_sys2(SYS_memfd_create, "rsock-slab", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return (int)fd;
	fd = rs_fd_hide((int)fd);
	r = rs_sys2(SYS_ftruncate, fd, SEGMENT_SIZE);
	if (r == 0)
		r = rs_sys3(SYS_fcntl, fd, F_ADD_SEALS, SEALS);
	if (r == 0)
		r = map_segment((int)fd, &h);
	if (r != 0) {
		rs_fd_close((int)fd);
		return (int)r;
	}
	h->slots = RS_SHM_SLOTS;
	memcpy(h->tier_shift, rs_shm_shift, sizeof(rs_shm_shift));
	__atomic_store_n(&h->magic, RS_SHM_MAGIC, __ATOMIC_RELEASE);
	*head = h;
	return (int)fd;
}

int rs_shm_map(int memfd, struct rs_shm_head **head)
{
	struct rs_shm_head *h;
	struct stat st;
	/* First of all: only a memfd has seals, and asks nobody for what follows. */
	long seals = rs_sys2(SYS_fcntl, memfd, F_GET_SEALS);
	int r;

	if (seals < 0 || (seals & SEALS) != SEALS)
		return -EPERM;
	if (rs_sys2(SYS_fstat, memfd, &st) != 0 || (uint64_t)st.st_size != SEGMENT_SIZE)
		return -EPERM;
	if (!address_space_left(SEGMENT_SIZE))
		return -ENOMEM;
	r = map_segment(memfd, &h);
	if (r != 0)
		return r == -EACCES ? -EPERM : r;
	if (__atomic_load_n(&h->magic, __ATOMIC_ACQUIRE) != RS_SHM_MAGIC ||
	    h->slots != RS_SHM_SLOTS ||
	    memcmp(h->tier_shift, rs_shm_shift, sizeof(rs_shm_shift)) != 0) {
		rs_shm_unmap(h);
		return -EPERM;
	}
	*head = h;
	return 0;
}

/* What the head says is the peer's to change: a private one is told by who has made it. */
void rs_shm_unmap(struct rs_shm_head *head)
{
	if (head)
		rs_sys2(SYS_munmap, head, SEGMENT_SIZE);
}

void rs_shm_inherit(struct rs_shm_head *head)
{
	rs_sys3(SYS_madvise, head, SEGMENT_SIZE, MADV_DOFORK);
}

void rs_shm_disinherit(struct rs_shm_head *head)
{
	rs_sys3(SYS_madvise, head, SEGMENT_SIZE, MADV_DONTFORK);
}

struct rs_shm_head *rs_shm_private(void)
{
	long p = rs_sys6(SYS_mmap, 0, (long)HEAD_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct rs_shm_head *h = (struct rs_shm_head *)p;

	if ((unsigned long)p > -4096UL)
		return NULL;
	h->slots = RS_SHM_SLOTS;
	return h;
}

void rs_shm_private_free(struct rs_shm_head *head)
{
	if (head)
		rs_sys2(SYS_munmap, head, HEAD_SIZE);
}

static void rings(struct rs_shm_head *h, uint32_t slot, uint8_t *ring[RS_TIERS])
{
	uint8_t *p = (uint8_t *)h + HEAD_SIZE + slot * STRIDE;

	for (int t = 0; t < RS_TIERS; t++) {
		ring[t] = p;
		p += TIER_SIZE(t);
	}
}

/*
 * The kernel frees a page table (of 2 MiB, since Linux 6.14) when all of what it is for is given up. What the
 * slot's first one has of the slot before loses its pages from it, not their contents.
 */
static void unmap_rings(struct rs_shm_head *h, uint32_t slot)
{
	uint8_t *ring[RS_TIERS];
	uintptr_t from, to;

	rings(h, slot, ring);
	from = (uintptr_t)ring[0] & ~TABLE_MASK;
	to = ((uintptr_t)ring[0] + STRIDE) & ~TABLE_MASK;
	if (from < (uintptr_t)h)
		from = (uintptr_t)h;
	rs_sys3(SYS_madvise, from, to - from, MADV_DONTNEED);
}

void rs_shm_empty(struct rs_shm_link *l, uint32_t id, uint32_t peer_id)
{
	struct rs_shm_head *h = l->mine[id / RS_SHM_SLOTS];
	uint8_t *ring[RS_TIERS];

	rings(h, id % RS_SHM_SLOTS, ring);
	rs_sys3(SYS_madvise, ring[0], STRIDE, MADV_REMOVE);
	unmap_rings(h, id % RS_SHM_SLOTS);
	if (peer_id / RS_SHM_SLOTS < l->npeer)
		unmap_rings(l->peer[peer_id / RS_SHM_SLOTS], peer_id % RS_SHM_SLOTS);
}

__attribute__((no_sanitize("thread"))) void rs_chan_set(struct rs_chan *c, const struct rs_chan *to)
{
	const uint64_t *from = (const uint64_t *)(const void *)to;
	uint64_t *word = (uint64_t *)(void *)c;

	_Static_assert(sizeof(*c) % sizeof(*word) == 0, "struct rs_chan is words");
	for (size_t i = 0; i < sizeof(*c) / sizeof(*word); i++)
		__atomic_store_n(&word[i], from[i], __ATOMIC_RELAXED);
}

bool rs_chan_bind(struct rs_chan *c, struct rs_shm_link *l, uint32_t id, uint32_t peer_id)
{
	uint32_t seg = id / RS_SHM_SLOTS, peer_seg = peer_id / RS_SHM_SLOTS;
	struct rs_chan to = { .link = l };

	if (seg >= l->nmine || peer_seg >= l->npeer)
		return false;
	to.mine = &l->mine[seg]->slot[id % RS_SHM_SLOTS];
	to.peer = &l->peer[peer_seg]->slot[peer_id % RS_SHM_SLOTS];
	to.mine_bells = l->mine[seg]->bells;
	to.peer_bells = l->peer[peer_seg]->bells;
	to.peer_bells0 = l->peer[0]->bells;
	to.peer_bit = peer_id % RS_SHM_SLOTS;
	rings(l->mine[seg], id % RS_SHM_SLOTS, to.rx_ring);
	rings(l->peer[peer_seg], peer_id % RS_SHM_SLOTS, to.tx_ring);
	memcpy(to.shift, rs_shm_shift, sizeof(to.shift));
	to.rx_most = TIER_SIZE(0) + TIER_SIZE(1) + TIER_SIZE(2);
	to.tx_tiers = RS_TIERS;
	rs_chan_set(c, &to);
	return true;
}

void rs_slot_reset(struct rs_shm_slot *s)
{
	memset(s, 0, sizeof(*s));
}

/* ---- waking ---- */

static void ring_bells(struct rs_chan *c, uint32_t mask)
{
	uint64_t bit = (uint64_t)1 << (c->peer_bit % 64);

	while (mask) {
		uint32_t b = (uint32_t)__builtin_ctz(mask);
		struct rs_shm_bell *where = &c->peer_bells[b], *bell = &c->peer_bells0[b];
		uint64_t *word = &where->ready[c->peer_bit / 64];
		uint32_t when;

		mask &= mask - 1;
		if (!(__atomic_load_n(word, __ATOMIC_RELAXED) & bit)) {
			__atomic_fetch_or(word, bit, __ATOMIC_SEQ_CST);
			__atomic_store_n(&bell->pending, 1, __ATOMIC_SEQ_CST);
		}
		when = __atomic_load_n(&bell->asleep, __ATOMIC_SEQ_CST);
		if (when == RS_BELL_ONCE)
			when = __atomic_exchange_n(&bell->asleep, RS_BELL_NEVER, __ATOMIC_SEQ_CST);
		if (when != RS_BELL_NEVER) {
			int fd = __atomic_load_n(&c->link->bell_fd[b], __ATOMIC_ACQUIRE);

			/* Its trigger has not come yet: the control thread over there forwards. */
			rs_trigger_pull(fd >= 0 ? fd : c->link->bell_fd[0]);
		}
	}
}

static void wake_futex(uint32_t *word)
{
	if (__atomic_exchange_n(word, 0, __ATOMIC_SEQ_CST))
		rs_futex_wake(word, INT_MAX, false);
}

uint32_t rs_slot_wake(struct rs_shm_link *l, uint32_t *word)
{
	uint32_t how = __atomic_exchange_n(word, 0, __ATOMIC_SEQ_CST);
	long n = 0;

	if (how & RS_SLEEP_LEADS && l->remote)
		rs_remote_wake_leader(l->remote);
	if (how & RS_SLEEP_FUTEX)
		n = rs_futex_wake(word, INT_MAX, false);
	return n > 0 ? (uint32_t)n : 0;
}

uint32_t rs_shm_wake(struct rs_shm_link *l, uint32_t id, bool rx)
{
	struct rs_shm_head *h = l->mine[id / RS_SHM_SLOTS], *h0 = l->mine[0];
	struct rs_shm_slot *s = &h->slot[id % RS_SHM_SLOTS];
	uint32_t *futex = rx ? &s->rx_wait : &s->tx_wait;
	uint32_t mask = __atomic_load_n(rx ? &s->rx_mask : &s->tx_mask, __ATOMIC_SEQ_CST), ring = 0;
	uint64_t bit = (uint64_t)1 << (id % 64);
	uint32_t woken = 0;

	if (__atomic_load_n(futex, __ATOMIC_SEQ_CST))
		woken = rs_slot_wake(l, futex);
	while (mask) {
		uint32_t b = (uint32_t)__builtin_ctz(mask), when;

		mask &= mask - 1;
		__atomic_fetch_or(&h->bells[b].ready[id % RS_SHM_SLOTS / 64], bit,
				  __ATOMIC_SEQ_CST);
		__atomic_store_n(&h0->bells[b].pending, 1, __ATOMIC_SEQ_CST);
		when = __atomic_load_n(&h0->bells[b].asleep, __ATOMIC_SEQ_CST);
		if (when == RS_BELL_ONCE)
			when = __atomic_exchange_n(&h0->bells[b].asleep, RS_BELL_NEVER,
						   __ATOMIC_SEQ_CST);
		/* The control thread always sleeps on its own. */
		if (when != RS_BELL_NEVER || b == 0)
			ring |= 1u << b;
	}
	if (ring)
		rs_bell_ring(ring & rs_bell_made());
	return woken;
}

static uint32_t cpu_now(void)
{
	return (uint32_t)sched_getcpu() + 1;
}

/* ---- ring sizes ---- */

static size_t size_of(const struct rs_chan *c, int tier)
{
	return (size_t)1 << c->shift[tier];
}

/* ---- switches ---- */

/* The tier that holds offset `at`, and where that part ends (UINT64_MAX: no later switch). */
static uint8_t tier_at(const uint64_t *segs, uint32_t count, uint64_t at, uint64_t *upto)
{
	*upto = UINT64_MAX;
	for (uint32_t i = 0; i < RS_SEGS && i < count; i++) {
		uint64_t seg = __atomic_load_n(&segs[(count - 1 - i) % RS_SEGS], __ATOMIC_ACQUIRE);

		if (seg >> 2 <= at)
			return seg & 3;
		*upto = seg >> 2;
	}
	return 0; /* where the epoch began */
}

/* ---- sending ---- */

void rs_chan_tx_begin(struct rs_chan *c, uint64_t n)
{
	c->tail = n;
	c->nseg = 0;
	c->tx_head = n;
	c->tx_start = n;
	c->tx_tier = 0;
	c->tx_small = 0;
	c->tx_full = 0;
	if (c->remote) {
		c->posted = n;
		c->burst = 0;
		c->held = false;
		__atomic_store_n(&c->peer->head, n, __ATOMIC_RELAXED);
		return;
	}
	__atomic_store_n(&c->peer->fin, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&c->peer->nseg, 0, __ATOMIC_RELEASE);
	__atomic_store_n(&c->peer->tail, n, __ATOMIC_RELEASE);
}

uint64_t rs_chan_tx_head(struct rs_chan *c)
{
	uint64_t head = __atomic_load_n(&c->peer->head, __ATOMIC_ACQUIRE);

	/* An old or a lying head must not make us overwrite what we have still to keep. */
	if (head > c->tx_head && head <= c->tail)
		__atomic_store_n(&c->tx_head, head, __ATOMIC_RELAXED);
	return c->tx_head;
}

/* So much the reader may have consumed over RDMA without telling: it knows of a switch by what follows. */
static uint64_t untold(const struct rs_chan *c)
{
	return rs_remote_tell(c->nseg != 0);
}

uint64_t rs_chan_tx_limit(const struct rs_chan *c)
{
	uint32_t rx = __atomic_load_n(&c->peer->rx_limit, __ATOMIC_RELAXED);
	bool staging = __atomic_load_n(&c->staging, __ATOMIC_RELAXED); /* a waiter has no lock */
	uint64_t max;

	if (!(c->tx_limit | rx))
		return staging ? MAX_STAGED : 0;
	max = (c->tx_limit ? c->tx_limit : MAX_SNDBUF) + (uint64_t)(rx ? rx : MIN_RCVBUF);
	if (staging && max > MAX_STAGED)
		max = MAX_STAGED;
	/* With less in flight than is told of at a time, nothing would be told, and it would stop. */
	if (c->remote && max < untold(c) + RS_REMOTE_CUT)
		max = untold(c) + RS_REMOTE_CUT;
	return max;
}

static size_t room(const struct rs_chan *c)
{
	uint64_t head = __atomic_load_n(&c->tx_head, __ATOMIC_RELAXED); /* a waiter has no lock */
	uint64_t from = head > c->tx_start ? head : c->tx_start;
	size_t free = size_of(c, c->tx_tier) - (size_t)(c->tail - from);
	uint64_t max = rs_chan_tx_limit(c), used = c->tail - head;

	if (__builtin_expect(max != 0, 0) && free > (used < max ? max - used : 0))
		free = used < max ? (size_t)(max - used) : 0;
	return free;
}

/* The program asked for no more than this: a larger ring would not be room. */
static bool at_limit(const struct rs_chan *c)
{
	uint64_t max = rs_chan_tx_limit(c);

	return max && c->tail - c->tx_head >= max;
}

/*
 * The switch that would be overwritten is one that the reader needs no more. On shm only an empty ring is
 * left for a smaller one, and the larger is found empty when it is needed again. Over RDMA much is empty
 * that the sender was not told of: what is in the ring that it left last must have been read.
 */
static bool may_switch(const struct rs_chan *c)
{
	if (c->remote && c->nseg && c->tx_head < c->tx_start && !RS_FAULT(RING_EARLY))
		return false;
	return c->nseg < RS_SEGS || c->tail == c->tx_start ||
	       c->tx_head >= c->seg[(c->nseg + 1) % RS_SEGS] >> 2;
}

static void switch_tier(struct rs_chan *c, uint8_t tier)
{
	uint32_t n = c->nseg;

	if (n && c->tail == c->tx_start)
		n--; /* nothing was written since the last one: it never was */
	c->seg[n % RS_SEGS] = c->tail << 2 | tier;
	c->nseg = n + 1;
	if (!c->remote) { /* else each write says it */
		__atomic_store_n(&c->peer->seg[n % RS_SEGS], c->seg[n % RS_SEGS], __ATOMIC_RELEASE);
		__atomic_store_n(&c->peer->nseg, c->nseg, __ATOMIC_RELEASE);
	}
	c->tx_start = c->tail;
	c->tx_tier = tier;
	c->tx_full = 0;
	c->tx_small = 0;
}

uint8_t rs_chan_tx_tier(const struct rs_chan *c, uint64_t at, uint64_t *upto)
{
	uint8_t tier = tier_at(c->seg, c->nseg, at, upto);

	if (*upto > c->tail)
		*upto = c->tail;
	return tier;
}

bool rs_chan_tx_down(struct rs_chan *c)
{
	if (c->tx_tier == 0)
		return true;
	rs_chan_tx_head(c);
	if (!may_switch(c))
		return false;
	switch_tier(c, 0);
	return true;
}

/* Over RDMA, as rs_chan_tx_room(): there is no room, or little (`n`) in the large ring. */
static __attribute__((noinline)) size_t other_ring(struct rs_chan *c, size_t n, bool grow)
{
	if (c->tx_tier) {
		c->needed = true;
		return n;
	}
	if (at_limit(c))
		return 0;
	if (c->tx_tiers > 1 && may_switch(c)) {
		switch_tier(c, 1);
		c->needed = true;
		return room(c);
	}
	if (grow || ++c->tx_full >= GROW_AFTER)
		rs_remote_ask(c);
	return 0;
}

size_t rs_chan_tx_room(struct rs_chan *c, bool grow)
{
	size_t n = room(c);

	if (n < size_of(c, c->tx_tier) / 2) {
		rs_chan_tx_head(c);
		n = room(c);
	}
	if (c->remote) {
		if (n == 0 && rs_remote_progress(c->remote)) {
			rs_chan_tx_head(c);
			n = room(c);
		}
		if (n == 0 || (c->tx_tier && n < size_of(c, c->tx_tier) / 2))
			n = other_ring(c, n, grow);
		return n;
	}
	if (n == 0 && c->tx_tier + 1 < c->tx_tiers && may_switch(c) && !at_limit(c)) {
		/* A reader that is slow gets a larger ring; one that stands still, the largest. */
		if (grow && c->tx_head - c->tx_start < size_of(c, c->tx_tier))
			switch_tier(c, (uint8_t)(c->tx_tiers - 1));
		else if (grow || ++c->tx_full >= GROW_AFTER)
			switch_tier(c, (uint8_t)(c->tx_tier + 1));
		n = room(c);
	} else if (c->tx_tier > 0 && n > size_of(c, c->tx_tier) / 2) {
		/* Back to a warmer ring once the large one is found empty often enough. */
		if (rs_chan_tx_head(c) == c->tail &&
		    ++c->tx_small >= (c->tx_tier == c->tx_tiers - 1 ? 1 : SHRINK_AFTER) &&
		    may_switch(c)) {
			switch_tier(c, (uint8_t)(c->tx_tier - 1));
			n = room(c);
		}
	}
	return n;
}

static void copy_in(uint8_t *ring, size_t size, uint64_t at, const uint8_t *src, size_t len)
{
	size_t pos = at & (size - 1), first = size - pos;

	if (first > len)
		first = len;
	memcpy(ring + pos, src, first);
	if (len > first)
		memcpy(ring, src + first, len - first);
}

static void copy_out(const uint8_t *ring, size_t size, uint64_t at, uint8_t *dst, size_t len)
{
	size_t pos = at & (size - 1), first = size - pos;

	if (first > len)
		first = len;
	memcpy(dst, ring + pos, first);
	if (len > first)
		memcpy(dst + first, ring, len - first);
}

void rs_chan_tx_copy(struct rs_chan *c, uint64_t at, const void *buf, size_t len)
{
	copy_in(c->tx_ring[c->tx_tier], size_of(c, c->tx_tier), at, buf, len);
}

void rs_chan_tx_publish(struct rs_chan *c, uint64_t tail)
{
	uint32_t cpu, mask;

	c->tail = tail;
	if (c->remote) {
		if (!c->held || tail - c->posted >= RS_REMOTE_SMALL)
			rs_remote_post(c);
		return;
	}
	cpu = cpu_now();
	if (c->peer->tx_cpu != cpu)
		__atomic_store_n(&c->peer->tx_cpu, cpu, __ATOMIC_RELAXED);
	/* Publish, then look for waiters: sequentially consistent against their arm-and-look. */
	__atomic_store_n(&c->peer->tail, tail, __ATOMIC_SEQ_CST);
	mask = __atomic_load_n(&c->peer->rx_mask, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&c->peer->rx_wait, __ATOMIC_SEQ_CST))
		wake_futex(&c->peer->rx_wait);
	if (mask)
		ring_bells(c, mask);
}

void rs_chan_tx_fetch(const struct rs_chan *c, uint64_t from, void *buf, size_t len)
{
	uint8_t *dst = buf;

	while (len) {
		uint64_t upto;
		uint8_t tier = tier_at(c->seg, c->nseg, from, &upto);
		size_t n = upto - from < len ? (size_t)(upto - from) : len;

		copy_out(c->tx_ring[tier], size_of(c, tier), from, dst, n);
		from += n;
		dst += n;
		len -= n;
	}
}

void rs_chan_tx_fin(struct rs_chan *c, uint64_t m)
{
	if (c->remote)
		return; /* goes as a message */
	__atomic_store_n(&c->peer->fin, m + 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&c->peer->rx_wait, __ATOMIC_SEQ_CST))
		wake_futex(&c->peer->rx_wait);
	ring_bells(c, __atomic_load_n(&c->peer->rx_mask, __ATOMIC_SEQ_CST));
}

bool rs_chan_tx_writable(struct rs_chan *c)
{
	uint64_t used, max = rs_chan_tx_limit(c);

	/* While a larger ring can be had, there is room. */
	used = c->tail - rs_chan_tx_head(c);
	/* What was consumed over RDMA is told in large steps. */
	if (max && used > max / 3 * 2 + (c->remote ? untold(c) : 0))
		return false;
	if (c->tx_tier + 1 < c->tx_tiers && may_switch(c))
		return true;
	return room(c) > 0 && used <= size_of(c, c->tx_tiers - 1) / 3 * 2;
}

bool rs_chan_tx_room_now(const struct rs_chan *c)
{
	uint64_t head = __atomic_load_n(&c->peer->head, __ATOMIC_SEQ_CST);

	/* Another thread may have noted the head since the caller found no room. */
	return (head > __atomic_load_n(&c->tx_head, __ATOMIC_RELAXED) && head <= c->tail) ||
	       room(c) > 0 ||
	       (c->remote && c->tx_tier + 1 < c->tx_tiers && may_switch(c) && !at_limit(c));
}

/* ---- receiving ---- */

void rs_chan_rx_begin(struct rs_chan *c, uint64_t n)
{
	c->head = n;
	__atomic_store_n(&c->mine->head, n, __ATOMIC_RELEASE);
	if (c->remote) {
		c->told = n;
		c->tell_at = n + rs_remote_tell(0);
		__atomic_store_n(&c->mine->nseg, 0, __ATOMIC_RELEASE);
		__atomic_store_n(&c->mine->tail, n, __ATOMIC_RELEASE);
	}
}

uint64_t rs_chan_rx_tail(struct rs_chan *c)
{
	uint64_t tail = __atomic_load_n(&c->mine->tail, __ATOMIC_ACQUIRE);

	if (c->remote && tail == c->head && rs_remote_progress(c->remote))
		tail = __atomic_load_n(&c->mine->tail, __ATOMIC_ACQUIRE);
	if (tail < c->head || tail - c->head > c->rx_most) {
		c->rx_bad = true;
		return c->head;
	}
	return tail;
}

uint64_t rs_chan_rx_survived(const struct rs_chan *c, uint64_t off)
{
	uint64_t tail = __atomic_load_n(&c->mine->tail, __ATOMIC_ACQUIRE);

	if (tail < off || tail - off > c->rx_most)
		return off;
	return tail;
}

uint64_t rs_chan_rx_told(const struct rs_chan *c)
{
	return __atomic_load_n(&c->mine->tail, __ATOMIC_ACQUIRE);
}

void rs_chan_rx_copy(struct rs_chan *c, uint64_t at, void *buf, size_t len)
{
	uint32_t count = __atomic_load_n(&c->mine->nseg, __ATOMIC_ACQUIRE);
	uint8_t *dst = buf;

	while (len) {
		uint64_t upto;
		uint8_t tier = tier_at(c->mine->seg, count, at, &upto);
		size_t n = upto - at < len ? (size_t)(upto - at) : len;

		/* As much as fits one ring, whatever the peer says. */
		if (tier >= RS_TIERS || !c->rx_ring[tier] || n > size_of(c, tier)) {
			c->rx_bad = true;
			return;
		}
		copy_out(c->rx_ring[tier], size_of(c, tier), at, dst, n);
		at += n;
		dst += n;
		len -= n;
	}
}

void rs_chan_rx_consume(struct rs_chan *c, uint64_t head)
{
	struct rs_shm_slot *peer = c->peer;
	uint32_t mask, wait;
	uint64_t upto;
	uint8_t tier;

	c->head = head;
	if (c->remote) {
		__atomic_store_n(&c->mine->head, head, __ATOMIC_RELEASE);
		if (c->eager || head >= c->tell_at)
			rs_remote_credit(c);
		return;
	}
	__atomic_store_n(&c->mine->head, head, __ATOMIC_SEQ_CST);
	mask = __atomic_load_n(&peer->tx_mask, __ATOMIC_SEQ_CST);
	wait = __atomic_load_n(&peer->tx_wait, __ATOMIC_SEQ_CST);
	if (!(mask | wait))
		return;
	/* As the kernel: a waiting sender runs when a third is free. */
	tier = tier_at(c->mine->seg, __atomic_load_n(&c->mine->nseg, __ATOMIC_ACQUIRE), UINT64_MAX,
		       &upto);
	if (tier < RS_TIERS &&
	    __atomic_load_n(&c->mine->tail, __ATOMIC_RELAXED) - head > size_of(c, tier) / 3 * 2)
		return;
	if (wait)
		wake_futex(&peer->tx_wait);
	ring_bells(c, mask);
}

void rs_chan_rx_watch(struct rs_chan *c)
{
	struct rs_shm_head *first = c->link->mine[0];

	/* It sleeps on its eventfd, as far as peers know, only while somebody wants this. */
	if (first && !c->remote)
		__atomic_store_n(&first->bells[0].asleep, RS_BELL_ALWAYS, __ATOMIC_SEQ_CST);
	__atomic_fetch_or(&c->mine->rx_mask, 1, __ATOMIC_SEQ_CST);
}

bool rs_chan_rx_fin(const struct rs_chan *c, uint64_t *m)
{
	uint64_t fin = __atomic_load_n(&c->mine->fin, __ATOMIC_ACQUIRE);

	*m = fin - 1;
	return fin != 0;
}
