/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * test_shm.c - slabs, rings, tiers and bells of the shared-memory link, both ends in one process
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "rsock/bell.h"
#include "rsock/shm.h"
#include "rsock/sys.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define BIG ((size_t)10 << 20) /* more than all rings of a slot hold */

/* Two ends: each owns a segment that the other has mapped too. */
static struct rs_shm_link left, right;
static int left_fd, right_fd;
static struct rs_chan a, b; /* a: left's end of the stream, b: right's */

static uint64_t next_random(void)
{
	static uint64_t x = 88172645463325252u;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x;
}

static uint8_t byte_at(uint64_t offset)
{
	return (uint8_t)((offset * 0x9e3779b97f4a7c15ULL) >> 56);
}

static void fill(uint64_t at, uint8_t *buf, size_t n)
{
	for (size_t i = 0; i < n; i++)
		buf[i] = byte_at(at + i);
}

static bool right_bytes(uint64_t at, const uint8_t *buf, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (buf[i] != byte_at(at + i))
			return false;
	return true;
}

static int make_link(void **state)
{
	(void)state;
	memset(&left, 0, sizeof(left));
	memset(&right, 0, sizeof(right));
	memset(left.bell_fd, 0xff, sizeof(left.bell_fd));
	memset(right.bell_fd, 0xff, sizeof(right.bell_fd));
	left_fd = rs_shm_create(&left.mine[0]);
	right_fd = rs_shm_create(&right.mine[0]);
	if (left_fd < 0 || right_fd < 0 || rs_shm_map(left_fd, &right.peer[0]) != 0 ||
	    rs_shm_map(right_fd, &left.peer[0]) != 0)
		return -1;
	left.nmine = left.npeer = right.nmine = right.npeer = 1;
	if (!rs_chan_bind(&a, &left, 3, 70) || !rs_chan_bind(&b, &right, 70, 3))
		return -1;
	return 0;
}

static int drop_link(void **state)
{
	(void)state;
	rs_shm_unmap(left.mine[0]);
	rs_shm_unmap(left.peer[0]);
	rs_shm_unmap(right.mine[0]);
	rs_shm_unmap(right.peer[0]);
	rs_fd_close(left_fd);
	rs_fd_close(right_fd);
	return 0;
}

/* The epoch of a -> b begins at n. */
static void begin(uint64_t n)
{
	rs_chan_rx_begin(&b, n);
	rs_chan_tx_begin(&a, n);
}

/* Sends what fits, up to n bytes. */
static size_t send_some(size_t n, bool grow)
{
	size_t room = rs_chan_tx_room(&a, grow);
	uint8_t *buf;

	if (n > room)
		n = room;
	if (!n)
		return 0;
	buf = malloc(n);
	fill(a.tail, buf, n);
	rs_chan_tx_copy(&a, a.tail, buf, n);
	rs_chan_tx_publish(&a, a.tail + n);
	free(buf);
	return n;
}

static size_t receive_some(size_t n)
{
	uint64_t tail = rs_chan_rx_tail(&b);
	uint8_t *buf;

	assert_false(b.rx_bad);
	if (n > tail - b.head)
		n = (size_t)(tail - b.head);
	if (!n)
		return 0;
	buf = malloc(n);
	rs_chan_rx_copy(&b, b.head, buf, n);
	assert_false(b.rx_bad);
	assert_true(right_bytes(b.head, buf, n));
	rs_chan_rx_consume(&b, b.head + n);
	free(buf);
	return n;
}

/* ---- segments ---- */

static void sealed(void **state)
{
	struct stat st;

	(void)state;
	assert_int_equal(fcntl(left_fd, F_GET_SEALS) & SEALS, SEALS);
	assert_int_equal(fcntl(left_fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	assert_true(rs_fd_private(left_fd));
	assert_int_equal(fstat(left_fd, &st), 0);
	assert_int_equal(ftruncate(left_fd, st.st_size / 2), -1);
	assert_int_equal(ftruncate(left_fd, st.st_size * 2), -1);
	/* A segment costs what is touched, not what it spans. */
	assert_true(st.st_blocks * 512 < 1 << 20);
}

static int memfd(uint64_t size, bool seal)
{
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	if (seal)
		assert_int_equal(fcntl(fd, F_ADD_SEALS, SEALS), 0);
	return fd;
}

static void refused(int fd)
{
	struct rs_shm_head *h = NULL;

	assert_true(rs_shm_map(fd, &h) < 0);
	close(fd);
}

static void hostile_segments(void **state)
{
	static const struct {
		uint64_t magic;
		uint32_t slots;
		uint8_t shift;
	} heads[] = {
		{ RS_SHM_MAGIC ^ 1, 0, 0 },
		{ RS_SHM_MAGIC, RS_SHM_SLOTS + 1, 0 },
		{ RS_SHM_MAGIC, 0x7fffffff, 0 },
		{ RS_SHM_MAGIC, RS_SHM_SLOTS, 63 },
	};
	struct rs_shm_head *h;
	struct stat st;
	int fd;

	(void)state;
	fstat(left_fd, &st);
	refused(memfd((uint64_t)st.st_size, false)); /* could be cut under our feet: SIGBUS */
	refused(memfd(0, true));
	refused(memfd(4096, true));
	refused(memfd((uint64_t)st.st_size - 4096, true));
	refused(memfd((uint64_t)st.st_size + 4096, true));
	refused(memfd((uint64_t)st.st_size, true)); /* of the right size and empty */
	refused(open("/dev/zero", O_RDWR | O_CLOEXEC));
	refused(eventfd(0, EFD_CLOEXEC));
	assert_true(rs_shm_map(-1, &h) < 0);
	for (size_t i = 0; i < sizeof(heads) / sizeof(heads[0]); i++) {
		fd = memfd((uint64_t)st.st_size, true);
		h = mmap(NULL, sizeof(*h), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		assert_ptr_not_equal(h, MAP_FAILED);
		*h = *left.mine[0];
		h->magic = heads[i].magic;
		if (heads[i].slots)
			h->slots = heads[i].slots;
		if (heads[i].shift)
			h->tier_shift[1] = heads[i].shift;
		munmap(h, sizeof(*h));
		refused(fd);
	}
}

static uint64_t status_kb(const char *name)
{
	FILE *f = fopen("/proc/self/status", "r");
	uint64_t kb = 0;
	char line[128];

	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		if (strncmp(line, name, strlen(name)) == 0)
			kb = strtoull(line + strlen(name), NULL, 10);
	fclose(f);
	return kb;
}

/* What the peer writes into a head does not decide how much is unmapped. */
static void unmap_is_whole(void **state)
{
	uint64_t before = status_kb("VmSize:");
	struct rs_shm_head *h;
	int fd = rs_shm_create(&h);

	(void)state;
	assert_true(fd >= 0);
	assert_true(status_kb("VmSize:") > before + 2000000);
	h->magic = 0;
	rs_shm_unmap(h);
	assert_in_range(status_kb("VmSize:"), 0, before + 1000000);
	refused(fd);
	assert_in_range(status_kb("VmSize:"), 0, before + 1000000);
}

static void address_space(void **state)
{
	struct rlimit old, rl;
	struct rs_shm_head *h;
	int fd;

	(void)state;
	assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
	if (old.rlim_max < status_kb("VmSize:") * 1024 + ((rlim_t)200 << 30))
		skip(); /* somebody has limited the test itself */
	rl = old;
	rl.rlim_cur = status_kb("VmSize:") * 1024 + ((rlim_t)20 << 30);
	assert_int_equal(setrlimit(RLIMIT_AS, &rl), 0);
	assert_int_equal(rs_shm_create(&h), -ENOMEM);
	assert_int_equal(rs_shm_map(left_fd, &h), -ENOMEM);
	rl.rlim_cur = status_kb("VmSize:") * 1024 + ((rlim_t)200 << 30);
	assert_int_equal(setrlimit(RLIMIT_AS, &rl), 0);
	fd = rs_shm_create(&h);
	assert_true(fd >= 0);
	assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
	rs_shm_unmap(h);
	close(fd);
}

/* A program that locks what it maps does not get all of a slab locked, nor even populated. */
static void locked_memory(void **state)
{
	uint64_t rss, locked;
	struct rs_shm_head *h;
	struct rlimit rl;
	int fd;

	(void)state;
	assert_int_equal(getrlimit(RLIMIT_MEMLOCK, &rl), 0);
	if (mlockall(MCL_FUTURE) != 0)
		skip(); /* we may not lock anything */
	rss = status_kb("VmRSS:");
	locked = status_kb("VmLck:");
	fd = rs_shm_create(&h);
	munlockall();
	if (fd == -EAGAIN && rl.rlim_cur < (rlim_t)2 << 30)
		skip(); /* RLIMIT_MEMLOCK: connections stay on TCP */
	assert_true(fd >= 0);
	assert_in_range(status_kb("VmRSS:"), 0, rss + 100000);
	assert_in_range(status_kb("VmLck:"), 0, locked + 100000);
	rs_shm_unmap(h);
	close(fd);
}

static void bind_checks_ids(void **state)
{
	struct rs_chan c;

	(void)state;
	assert_true(rs_chan_bind(&c, &left, RS_SHM_SLOTS - 1, RS_SHM_SLOTS - 1));
	assert_false(rs_chan_bind(&c, &left, RS_SHM_SLOTS, 0));
	assert_false(rs_chan_bind(&c, &left, 0, RS_SHM_SLOTS));
	assert_false(rs_chan_bind(&c, &left, 0, UINT32_MAX));
	assert_false(rs_chan_bind(&c, &left, UINT32_MAX, 0));
}

/* ---- bytes ---- */

static void one_byte(void **state)
{
	(void)state;
	begin(0);
	assert_int_equal(receive_some(10), 0);
	assert_int_equal(send_some(1, false), 1);
	assert_int_equal(rs_chan_rx_tail(&b), 1);
	assert_int_equal(rs_chan_tx_head(&a), 0);
	assert_int_equal(receive_some(10), 1);
	assert_int_equal(rs_chan_tx_head(&a), 1);
}

/* Random sizes, from all kinds of first offsets; the receiver is now faster, now slower. */
static void random_traffic(void **state)
{
	static const uint64_t starts[] = { 0,
					   1,
					   65535,
					   65536,
					   8388607,
					   1u << 20,
					   ((uint64_t)1 << 40) + 4711,
					   ((uint64_t)1 << 61) - 77777 };
	uint32_t seen = 0;

	(void)state;
	for (size_t s = 0; s < sizeof(starts) / sizeof(starts[0]); s++) {
		uint64_t sent = 0, got = 0;

		begin(starts[s]);
		for (int i = 0; i < 3000; i++) {
			uint64_t r = next_random();
			size_t n = 1 + (size_t)(next_random() & (((uint64_t)1 << (r % 18)) - 1));
			/* Phases in which one side is much slower. */
			bool send = (i / 200 % 3 == 0) ? r >> 8 & 3 : !(r >> 8 & 3);

			if (i / 200 % 3 == 2)
				send = r >> 8 & 1;
			if (send)
				sent += send_some(n, r >> 16 & 1);
			else
				got += receive_some(n);
			assert_true(got <= sent);
			assert_int_equal(a.tail, starts[s] + sent);
			assert_int_equal(b.head, starts[s] + got);
			seen |= 1u << a.tx_tier;
		}
		while (got < sent)
			got += receive_some(1 + (size_t)(next_random() % 100000));
		assert_int_equal(rs_chan_tx_head(&a), a.tail);
	}
	assert_int_equal(seen, 7); /* all tiers were in use */
}

/* What is not consumed can be read back by the sender, over wraps and over one switch. */
static void fetch_back(void **state)
{
	uint8_t *buf = malloc(BIG);

	(void)state;
	begin(60000);
	for (int i = 0; i < 800; i++) {
		uint64_t head = rs_chan_tx_head(&a), r = next_random();
		size_t unread = (size_t)(a.tail - head), n = 0, skip = 0;

		if (unread) {
			skip = (size_t)(next_random() % unread);
			n = 1 + (size_t)(next_random() % (unread - skip));
			if (n > 200000)
				n = 200000;
		}
		rs_chan_tx_fetch(&a, head + skip, buf, n);
		assert_true(right_bytes(head + skip, buf, n));
		if (r % 3)
			send_some(1 + (size_t)(r >> 8) % 30000, r >> 40 & 1);
		else
			receive_some(1 + (size_t)(r >> 8) % 50000);
	}
	free(buf);
}

static void grows_and_shrinks(void **state)
{
	size_t small, total = 0, n;

	(void)state;
	begin(5);
	/* Without leave to grow a few looks at a full ring do not change it. */
	while ((n = send_some(BIG, false)) != 0)
		total += n;
	small = total;
	assert_int_equal(a.tx_tier, 0);
	assert_int_equal(small, 65536);
	assert_false(rs_chan_tx_room_now(&a));
	assert_true(rs_chan_tx_writable(&a)); /* a larger ring can be had */
	while ((n = send_some(BIG, true)) != 0)
		total += n;
	assert_true(a.tx_tier == RS_TIERS - 1);
	assert_true(total >= (size_t)8 << 20);
	assert_false(rs_chan_tx_writable(&a));
	assert_int_equal(rs_chan_tx_room(&a, true), 0);
	/* A look at what is there changes nothing. */
	assert_int_equal(rs_chan_rx_tail(&b) - b.head, total);
	while (receive_some(100000))
		;
	assert_true(rs_chan_tx_room_now(&a));
	assert_true(rs_chan_tx_writable(&a));
	/* Back to the small ring, sooner or later. */
	for (int i = 0; i < 1000 && a.tx_tier; i++) {
		send_some(100, false);
		receive_some(100);
	}
	assert_int_equal(a.tx_tier, 0);
}

static void writable_after_two_thirds(void **state)
{
	size_t total = 0, n;

	(void)state;
	begin(0);
	while ((n = send_some(BIG, true)) != 0)
		total += n;
	assert_false(rs_chan_tx_writable(&a));
	receive_some(total / 10);
	assert_false(rs_chan_tx_writable(&a));
	receive_some(total / 2);
	assert_true(rs_chan_tx_writable(&a));
}

/* As long as the peer cannot see it, less is taken. */
static void staged(void **state)
{
	size_t total = 0, n;

	(void)state;
	begin(7);
	a.staging = true;
	while ((n = send_some(BIG, true)) != 0)
		total += n;
	assert_int_equal(total, (size_t)1 << 20);
	assert_false(rs_chan_tx_writable(&a));
	assert_false(rs_chan_tx_room_now(&a));
	a.staging = false;
	assert_true(rs_chan_tx_writable(&a));
	assert_true(rs_chan_tx_room_now(&a));
	while ((n = send_some(BIG, true)) != 0)
		total += n;
	assert_true(total >= (size_t)8 << 20);
	while (receive_some(100000))
		;
}

static void fin_hint(void **state)
{
	uint64_t m;

	(void)state;
	begin(0);
	assert_false(rs_chan_rx_fin(&b, &m));
	rs_chan_tx_fin(&a, 0);
	assert_true(rs_chan_rx_fin(&b, &m));
	assert_int_equal(m, 0);
	rs_chan_tx_fin(&a, ((uint64_t)1 << 62) + 5);
	assert_true(rs_chan_rx_fin(&b, &m));
	assert_int_equal(m, ((uint64_t)1 << 62) + 5);
	rs_chan_tx_begin(&a, 100);
	assert_false(rs_chan_rx_fin(&b, &m));
}

static void room_for_a_waiter(void **state)
{
	(void)state;
	begin(0);
	send_some(65536, false);
	assert_false(rs_chan_tx_room_now(&a));
	b.mine->head = 65537; /* a lie */
	assert_false(rs_chan_tx_room_now(&a));
	b.mine->head = 1;
	assert_true(rs_chan_tx_room_now(&a));
	/* Another thread has noted it meanwhile. */
	assert_int_equal(rs_chan_tx_head(&a), 1);
	assert_true(rs_chan_tx_room_now(&a));
}

/* ---- liars ---- */

static void lying_head(void **state)
{
	uint8_t buf[1000];

	(void)state;
	begin(1000);
	send_some(1000, false);
	/* Beyond the tail, or going back: not believed, and nothing of ours is overwritten. */
	b.mine->head = 2001;
	assert_int_equal(rs_chan_tx_head(&a), 1000);
	b.mine->head = UINT64_MAX;
	assert_int_equal(rs_chan_tx_head(&a), 1000);
	b.mine->head = 1500;
	assert_int_equal(rs_chan_tx_head(&a), 1500);
	b.mine->head = 1200;
	assert_int_equal(rs_chan_tx_head(&a), 1500);
	b.mine->head = 0;
	assert_int_equal(rs_chan_tx_head(&a), 1500);
	assert_true(rs_chan_tx_room(&a, true) <= 65536);
	rs_chan_tx_fetch(&a, 1500, buf, 500);
	assert_true(right_bytes(1500, buf, 500));
}

/* Whatever was sent before, a reader that stands still is offered the largest ring. */
static void grows_after_shrinking(void **state)
{
	(void)state;
	begin(77);
	for (int i = 0; i < 300; i++) {
		size_t burst = next_random() % 4 ? 100 : (size_t)next_random() % 3000000, sent = 0;

		while (sent < burst) {
			size_t k = rs_chan_tx_room(&a, next_random() & 1);

			k = k < burst - sent ? k : burst - sent;
			if (!k)
				break;
			rs_chan_tx_publish(&a, a.tail + k);
			sent += k;
		}
		if (i % 10 != 9) {
			rs_chan_rx_consume(&b, rs_chan_rx_tail(&b));
			continue;
		}
		/* Nobody reads: all that the largest ring takes can be sent. */
		for (size_t k; (k = rs_chan_tx_room(&a, true)) != 0;)
			rs_chan_tx_publish(&a, a.tail + k);
		assert_true(a.tail - b.head >= (size_t)1 << 23);
		rs_chan_rx_consume(&b, rs_chan_rx_tail(&b));
	}
}

static void lying_tail(void **state)
{
	static const uint64_t tails[] = { 0, 999, 1000 + ((uint64_t)10 << 20), UINT64_MAX,
					  (uint64_t)1 << 63 };

	(void)state;
	for (size_t i = 0; i < sizeof(tails) / sizeof(tails[0]); i++) {
		begin(1000);
		b.rx_bad = false;
		b.mine->tail = tails[i];
		assert_int_equal(rs_chan_rx_tail(&b), 1000);
		assert_true(b.rx_bad);
	}
	b.rx_bad = false;
}

static void lie(uint64_t seg)
{
	uint32_t i = (uint32_t)next_random() % RS_SEGS;

	b.mine->seg[i] = seg;
	b.mine->nseg = next_random() & 1 ? i + 1 : (uint32_t)next_random();
}

/* Any tail, any switch: the receiver reads within its own ring (the sanitizers and guards tell). */
static void lying_switch(void **state)
{
	size_t most = ((size_t)1 << 16) + ((size_t)1 << 20) + ((size_t)1 << 23);
	uint8_t *buf = malloc(most + 64);

	(void)state;
	for (int i = 0; i < 300; i++) {
		uint64_t n = next_random() >> 2, tail;
		size_t k;

		begin(n);
		b.rx_bad = false;
		b.mine->tail = n + next_random() % (most + 1);
		switch (next_random() % 4) {
		case 0:
			lie(next_random());
			break;
		case 1:
			lie(n << 2 | 3); /* no such tier */
			break;
		case 2:
			lie((n + next_random() % most) << 2 | (next_random() & 3));
			break;
		default:
			lie((n - next_random() % 1000) << 2 | (next_random() & 3));
			break;
		}
		tail = rs_chan_rx_tail(&b);
		assert_true(tail >= n && tail - n <= most);
		k = (size_t)(tail - n);
		/* As the callers do: pieces. */
		for (size_t at = 0; at < k && !b.rx_bad;) {
			size_t piece = k - at < 32768 ? k - at : 32768;

			memset(buf + at + piece, 0x5a, 64);
			rs_chan_rx_copy(&b, n + at, buf + at, piece);
			for (size_t g = 0; g < 64; g++)
				assert_int_equal(buf[at + piece + g], 0x5a);
			rs_chan_rx_consume(&b, n + at + piece);
			at += piece;
			if (next_random() % 8 == 0)
				lie(next_random());
		}
	}
	b.rx_bad = false;
	free(buf);
}

/* A sender whose receiver writes rubbish all the time stays within the ring. */
static void lying_receiver(void **state)
{
	(void)state;
	begin(12345);
	for (int i = 0; i < 3000; i++) {
		size_t room;

		switch (next_random() % 3) {
		case 0:
			b.mine->head = next_random();
			break;
		case 1:
			b.mine->head = a.tail - next_random() % 100000;
			break;
		default:
			break;
		}
		room = rs_chan_tx_room(&a, next_random() & 1);
		assert_true(room <= (size_t)1 << 23);
		assert_true(a.tx_head <= a.tail && a.tx_head >= 12345);
		assert_true(a.tx_tier < RS_TIERS);
		send_some(1 + (size_t)next_random() % 100000, next_random() & 1);
	}
}

/* ---- waking ---- */

static void bells(void **state)
{
	struct rs_shm_bell *bell5 = &right.mine[0]->bells[5], *bell0 = &right.mine[0]->bells[0];
	uint32_t rings5, rings0;

	(void)state;
	assert_int_equal(rs_bell_init(), 0);
	rings5 = rs_bell_get();
	rings0 = rs_bell_get();
	assert_true(rings5 && rings0 && rings5 != rings0);
	left.bell_fd[0] = rs_bell_trigger(rings0);
	rs_bell_clear(rings0);
	rs_bell_clear(rings5);
	begin(0);
	/* Nobody wants to know. */
	send_some(1, false);
	assert_int_equal(bell5->pending, 0);
	/* Right's bell 5 wants news of slot 70; nobody sleeps: no system call. */
	b.mine->rx_mask = 1u << 5;
	send_some(1, false);
	assert_int_equal(bell5->pending, 1);
	assert_int_equal(bell5->ready[70 / 64], (uint64_t)1 << (70 % 64));
	assert_false(rs_bell_clear(rings0));
	/* Somebody sleeps, but the trigger has not come yet: the control thread's bell forwards. */
	bell5->asleep = 1;
	send_some(1, false);
	assert_int_equal(bell5->asleep, 0);
	assert_true(rs_bell_clear(rings0));
	/* It has come. Only the first of several writes rings. */
	left.bell_fd[5] = rs_bell_trigger(rings5);
	bell5->asleep = 1;
	send_some(1, false);
	assert_true(rs_bell_clear(rings5));
	send_some(1, false);
	assert_false(rs_bell_clear(rings5));
	assert_false(rs_bell_clear(rings0));
	/* Taken; the next byte sets the bit again. */
	bell5->pending = 0;
	bell5->ready[70 / 64] = 0;
	send_some(1, false);
	assert_int_equal(bell5->pending, 1);
	/* FIN is news. */
	bell5->pending = 0;
	bell5->ready[70 / 64] = 0;
	bell5->asleep = 1;
	rs_chan_tx_fin(&a, 6);
	assert_int_equal(bell5->pending, 1);
	assert_true(rs_bell_clear(rings5));
	/* Several bells at once, the highest too. */
	b.mine->rx_mask = 1u | 1u << 5 | 1u << 31;
	bell0->asleep = bell5->asleep = 1;
	send_some(1, false);
	assert_true(rs_bell_clear(rings0));
	assert_true(rs_bell_clear(rings5));
	assert_int_equal(right.mine[0]->bells[31].pending, 1);
	rs_bell_untrigger(rings0, left.bell_fd[0]);
	rs_bell_untrigger(rings5, left.bell_fd[5]);
	rs_bell_put(rings0);
	rs_bell_put(rings5);
	left.bell_fd[0] = left.bell_fd[5] = -1;
}

/* A peer has a trigger too, and does with it what it likes. */
static void hostile_triggers(void **state)
{
	static const uint64_t most = UINT64_MAX - 1, one = 1;
	struct pollfd p = { .events = POLLIN };
	uint32_t bell = rs_bell_get();
	int good = rs_bell_trigger(bell), bad = rs_bell_trigger(bell), copy;
	uint64_t count;

	(void)state;
	alarm(5);
	assert_true(good >= 0 && bad >= 0);
	copy = dup(bad);
	p.fd = rs_bell_fd(bell);
	rs_bell_clear(bell);
	/* No trigger rings by being made; each pull does, until it is cleared. */
	for (int i = 0; i < 3; i++) {
		assert_int_equal(poll(&p, 1, 0), 0);
		rs_trigger_pull(i ? good : bad);
		rs_trigger_pull(good);
		assert_int_equal(poll(&p, 1, 0), 1);
		assert_true(rs_bell_clear(bell));
		assert_false(rs_bell_clear(bell));
	}
	rs_bell_ring(1u << bell);
	assert_true(rs_bell_clear(bell));
	/* Full, and no call on it returns but those that are told not to wait. */
	assert_int_equal(fcntl(copy, F_SETFL, 0), 0);
	while (poll(&(struct pollfd){ copy, POLLOUT, 0 }, 1, 0) == 1)
		assert_int_equal(write(copy, &one, sizeof(one)), sizeof(one));
	rs_trigger_pull(bad);
	assert_true(rs_bell_clear(bell));
	rs_trigger_pull(good);
	assert_true(rs_bell_clear(bell));
	/* One of another kind, which a pull empties. */
	close(copy);
	copy = eventfd(0, 0);
	assert_int_equal(write(copy, &most, sizeof(most)), sizeof(most));
	rs_trigger_pull(copy);
	rs_trigger_pull(copy);
	assert_int_equal(fcntl(copy, F_SETFL, O_NONBLOCK), 0);
	assert_int_equal(read(copy, &count, sizeof(count)), -1);
	close(copy);
	/* A copy that outlives the trigger rings nothing. */
	copy = dup(bad);
	rs_bell_untrigger(bell, bad);
	rs_trigger_pull(copy);
	assert_false(rs_bell_clear(bell));
	rs_trigger_pull(good);
	assert_true(rs_bell_clear(bell));
	close(copy);
	rs_bell_untrigger(bell, good);
	rs_bell_put(bell);
	alarm(0);
}

static void room_wakes(void **state)
{
	struct rs_shm_bell *bell = &left.mine[0]->bells[2];
	uint32_t rings = rs_bell_get();
	size_t n;

	(void)state;
	right.bell_fd[2] = rs_bell_trigger(rings);
	rs_bell_clear(rings);
	begin(0);
	while (send_some(BIG, true))
		;
	/* Left waits for room, by bell and by futex word, in its own slot. */
	a.mine->tx_mask = 1u << 2;
	a.mine->tx_wait = 1;
	bell->asleep = 1;
	/* A little room is not worth a wake-up; when a third is free it is. */
	receive_some(1000);
	assert_false(rs_bell_clear(rings));
	assert_int_equal(a.mine->tx_wait, 1);
	for (n = 0; n < (size_t)8 << 20 && !bell->pending; n += 10000)
		receive_some(10000);
	assert_true(n >= (size_t)2 << 20 && n < (size_t)4 << 20);
	assert_true(rs_bell_clear(rings));
	assert_int_equal(a.mine->tx_wait, 0);
	rs_bell_untrigger(rings, right.bell_fd[2]);
	rs_bell_put(rings);
	right.bell_fd[2] = -1;
}

static void futex_word(void **state)
{
	(void)state;
	begin(0);
	b.mine->rx_wait = 1;
	send_some(1, false);
	assert_int_equal(b.mine->rx_wait, 0);
	b.mine->rx_wait = 1;
	rs_chan_tx_fin(&a, 1);
	assert_int_equal(b.mine->rx_wait, 0);
}

static void slot_reset(void **state)
{
	static const struct rs_shm_slot zero;

	(void)state;
	begin(77);
	send_some(10, false);
	rs_slot_reset(b.mine);
	assert_memory_equal(b.mine, &zero, sizeof(zero));
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, make_link, drop_link)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(sealed),
		TEST(hostile_segments),
		TEST(unmap_is_whole),
		TEST(address_space),
		TEST(locked_memory),
		TEST(bind_checks_ids),
		TEST(one_byte),
		TEST(random_traffic),
		TEST(fetch_back),
		TEST(grows_and_shrinks),
		TEST(writable_after_two_thirds),
		TEST(staged),
		TEST(fin_hint),
		TEST(room_for_a_waiter),
		TEST(lying_head),
		TEST(grows_after_shrinking),
		TEST(lying_tail),
		TEST(lying_switch),
		TEST(lying_receiver),
		TEST(bells),
		TEST(hostile_triggers),
		TEST(room_wakes),
		TEST(futex_word),
		TEST(slot_reset),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
