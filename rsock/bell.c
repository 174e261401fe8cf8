/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/bell.h"

#include <sys/eventfd.h>
#include <sys/socket.h>

#include "rsock/lock.h"
#include "rsock/sys.h"
#include "rsock/wire.h"

static struct rs_lock lock;
static int fds[RS_BELLS]; /* eventfd + 1; 0: not made */
static uint32_t in_use = 1; /* bell 0 always is */

static int make(uint32_t bell)
{
	long fd;

	if (fds[bell])
		return 0;
	fd = rs_sys2(SYS_eventfd2, 0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (fd < 0)
		return (int)fd;
	__atomic_store_n(&fds[bell], rs_fd_hide((int)fd) + 1, __ATOMIC_RELEASE);
	return 0;
}

int rs_bell_init(void)
{
	int r;

	rs_lock(&lock);
	r = make(0);
	/* Passed on with the first link, and not when the program makes and closes descriptors. */
	if (r == 0)
		make(1);
	rs_unlock(&lock);
	return r;
}

uint32_t rs_bell_get(void)
{
	uint32_t bell = 0, free_bells;

	rs_lock(&lock);
	free_bells = ~in_use;
	if (free_bells) {
		bell = (uint32_t)__builtin_ctz(free_bells);
		if (make(bell) == 0)
			__atomic_fetch_or(&in_use, 1u << bell, __ATOMIC_SEQ_CST);
		else
			bell = 0;
	}
	rs_unlock(&lock);
	return bell;
}

void rs_bell_put(uint32_t bell)
{
	if (!bell)
		return;
	rs_lock(&lock);
	__atomic_fetch_and(&in_use, ~(1u << bell), __ATOMIC_SEQ_CST);
	rs_unlock(&lock);
}

int rs_bell_fd(uint32_t bell)
{
	return __atomic_load_n(&fds[bell], __ATOMIC_ACQUIRE) - 1;
}

uint32_t rs_bell_used(void)
{
	return __atomic_load_n(&in_use, __ATOMIC_SEQ_CST) & ~1u;
}

void rs_bell_ring(uint32_t mask)
{
	while (mask) {
		rs_eventfd_ring(rs_bell_fd((uint32_t)__builtin_ctz(mask)));
		mask &= mask - 1;
	}
}

void rs_bell_clear(uint32_t bell)
{
	rs_eventfd_clear(rs_bell_fd(bell));
}

void rs_bell_ring_peer(int bell_fd)
{
	const struct rs_msg m = { .type = RS_MSG_RING };
	uint8_t bytes[RS_MSG_MAX];

	if (bell_fd > RS_BELL_SOCKET(0)) {
		rs_eventfd_ring(bell_fd);
		return;
	}
	/* When the socket is full, a message is still to be read: who reads it looks too. */
	rs_sys6(SYS_sendto, RS_BELL_SOCKET(bell_fd), (long)bytes, (long)rs_msg_encode(&m, bytes),
		MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
}

uint32_t rs_bell_made(void)
{
	uint32_t mask = 0;

	for (uint32_t b = 0; b < RS_BELLS; b++)
		if (rs_bell_fd(b) >= 0)
			mask |= 1u << b;
	return mask;
}

void rs_bell_forget(void)
{
	for (uint32_t b = 0; b < RS_BELLS; b++)
		if (fds[b]) {
			rs_fd_close(fds[b] - 1);
			fds[b] = 0;
		}
	in_use = 1;
	lock.word = 0;
}
