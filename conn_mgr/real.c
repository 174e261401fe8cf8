/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "conn_mgr/real.h"

#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#include "rsock/sys.h"

static long result(long r)
{
	if ((unsigned long)r > -4096UL) {
		errno = (int)-r;
		return -1;
	}
	return r;
}

/* What may run before the constructor: descriptors of files, by allocators and loaders. */
static ssize_t raw_read(int fd, void *buf, size_t n)
{
	return result(rs_sys3(SYS_read, fd, buf, n));
}

static ssize_t raw_write(int fd, const void *buf, size_t n)
{
	return result(rs_sys3(SYS_write, fd, buf, n));
}

static int raw_close(int fd)
{
	return (int)result(rs_sys1(SYS_close, fd));
}

static ssize_t raw_recv(int fd, void *buf, size_t n, int flags)
{
	return result(rs_sys6(SYS_recvfrom, fd, (long)buf, (long)n, flags, 0, 0));
}

static ssize_t raw_sendmsg(int fd, const struct msghdr *m, int flags)
{
	return result(rs_sys3(SYS_sendmsg, fd, m, flags));
}

struct rs_real rs_real = {
	.read = raw_read,
	.write = raw_write,
	.close = raw_close,
	.recv = raw_recv,
	.sendmsg = raw_sendmsg,
};

struct rs_hooks rs_hooks;

void rs_real_load(void)
{
	static int loaded;
	void *p;

	if (__atomic_exchange_n(&loaded, 1, __ATOMIC_ACQ_REL))
		return;
		/* A function pointer may be wider than void * in C, not in POSIX: hence memcpy. */
#define X(ret, name, params)         \
	p = dlsym(RTLD_NEXT, #name); \
	if (p)                       \
		memcpy(&rs_real.name, &p, sizeof(p));
	RS_REAL_CALLS(X)
#undef X
	p = dlsym(RTLD_NEXT, "fcntl64");
	if (!p)
		p = dlsym(RTLD_NEXT, "fcntl");
	memcpy(&rs_real.fcntl, &p, sizeof(p));
	p = dlsym(RTLD_NEXT, "ioctl");
	memcpy(&rs_real.ioctl, &p, sizeof(p));
	p = dlsym(RTLD_NEXT, "clone");
	memcpy(&rs_real.clone, &p, sizeof(p));
}
