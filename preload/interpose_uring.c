/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * interpose_uring.c - liburing's functions that begin to use a ring
 *
 * The system calls are in the library itself, where nobody can see them.
 */
#include <dlfcn.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <stddef.h>
#include <stdint.h>

#include "preload/process.h"

#define EXPORT __attribute__((visibility("default")))

#pragma GCC diagnostic ignored "-Wmissing-prototypes"

/*
 * Of the one that is behind ours. It may be in a library that only the caller knows, for it was loaded
 * with RTLD_LOCAL.
 */
static void *next(const char *name, const void *ours, const void *caller)
{
	void *p = dlsym(RTLD_NEXT, name), *library;
	Dl_info info;

	if (!p && dladdr(caller, &info) && info.dli_fname) {
		library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
		if (library) {
			p = dlsym(library, name);
			dlclose(library);
		}
	}
	return p == ours ? NULL : p;
}

/* RING(name, parameters, arguments): negative is an error. */
#define RING(name, params, args)                                                              \
	EXPORT int name params                                                                \
	{                                                                                     \
		int(*real) params;                                                            \
		void *to = next(#name, (void *)(uintptr_t)name, __builtin_return_address(0)); \
		int r;                                                                        \
                                                                                              \
		if (!to)                                                                      \
			return -ENOSYS;                                                       \
		__builtin_memcpy(&real, &to, sizeof(to));                                     \
		r = real args;                                                                \
		if (r >= 0)                                                                   \
			rs_process_has_ring();                                                \
		return r;                                                                     \
	}

struct io_uring;

RING(io_uring_queue_init, (unsigned int n, struct io_uring *ring, unsigned int flags),
     (n, ring, flags))
RING(io_uring_queue_init_params, (unsigned int n, struct io_uring *ring, struct io_uring_params *p),
     (n, ring, p))
RING(io_uring_queue_init_mem,
     (unsigned int n, struct io_uring *ring, struct io_uring_params *p, void *buf, size_t size),
     (n, ring, p, buf, size))
RING(io_uring_queue_mmap, (int fd, struct io_uring_params *p, struct io_uring *ring), (fd, p, ring))
RING(io_uring_setup, (unsigned int n, struct io_uring_params *p), (n, p))
