/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
#include "rsock/rdma/advice.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/capability.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "rsock/sys.h"

enum kind { MEMLOCK, MEMORY, LIMIT, FDS, PERMISSION, OTHER };

static unsigned int told; /* bits of enum kind */

void rs_advice_again(void)
{
	__atomic_store_n(&told, 0, __ATOMIC_RELAXED);
}

/* The kernel does not count locked memory for such a process. */
static bool may_lock(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = { { 0 } };

	return rs_sys2(SYS_capget, &head, data) == 0 &&
	       (data[0].effective >> CAP_IPC_LOCK & 1) != 0;
}

/* 0: none that matters. */
static uint64_t memlock(void)
{
	struct rlimit rl;

	if (getrlimit(RLIMIT_MEMLOCK, &rl) != 0 || rl.rlim_cur == RLIM_INFINITY || may_lock())
		return 0;
	return rl.rlim_cur ? rl.rlim_cur : 1;
}

static void amount(uint64_t bytes, char *out, size_t size)
{
	if (bytes >= (uint64_t)1 << 20 && bytes % ((uint64_t)1 << 20) == 0)
		snprintf(out, size, "%" PRIu64 " MiB", bytes >> 20);
	else
		snprintf(out, size, "%" PRIu64 " KiB", bytes >> 10);
}

static enum kind kind_of(int err)
{
	switch (err) {
	case ENOMEM:
		return memlock() ? MEMLOCK : MEMORY;
	case EAGAIN: /* what the kernel says when it is a control group's */
	case ENOSPC:
		return LIMIT;
	case EMFILE:
	case ENFILE:
		return FDS;
	case EACCES:
	case EPERM:
		return PERMISSION;
	}
	return OTHER;
}

static void tell(const struct rs_rdma_host *host, enum kind k, const char *doing, size_t bytes,
		 int err)
{
	char what[96], size[32], limit[32], text[384];

	amount(bytes, size, sizeof(size));
	amount(memlock(), limit, sizeof(limit));
	snprintf(what, sizeof(what), "%s%s%s%s", doing, bytes ? " (" : "", bytes ? size : "",
		 bytes ? ")" : "");
	switch (k) {
	case MEMLOCK:
		snprintf(text, sizeof(text),
			 "%s failed: RLIMIT_MEMLOCK is %s; raise it with `ulimit -l unlimited`, or "
			 "LimitMEMLOCK=infinity in the service's unit",
			 what, limit);
		break;
	case MEMORY:
		snprintf(text, sizeof(text),
			 "%s failed: the system or the RDMA device has no memory left for it",
			 what);
		break;
	case LIMIT:
		snprintf(text, sizeof(text),
			 err == EAGAIN
				 ? "%s failed: a control group limits RDMA; raise hca_handle and "
				   "hca_object in its rdma.max (see /proc/self/cgroup)"
				 : "%s failed: the RDMA device has no more of these; `rdma "
				   "resource` shows who has them",
			 what);
		break;
	case FDS:
		snprintf(text, sizeof(text),
			 "%s failed: no file descriptors are left; raise `ulimit -n`", what);
		break;
	case PERMISSION:
		snprintf(text, sizeof(text),
			 "%s failed: no permission; this user needs read and write permission for "
			 "/dev/infiniband/rdma_cm and /dev/infiniband/uverbs*, in a container the "
			 "devices too",
			 what);
		break;
	case OTHER:
		snprintf(text, sizeof(text), "%s failed: %s", what, strerror(err));
		break;
	}
	host->log(text);
}

int rs_advice(const struct rs_rdma_host *host, const char *doing, size_t bytes, int err)
{
	enum kind k = kind_of(err);
	int saved = errno;

	if (!(__atomic_fetch_or(&told, 1u << k, __ATOMIC_RELAXED) >> k & 1))
		tell(host, k, doing, bytes, err);
	errno = saved;
	switch (k) {
	case MEMLOCK:
		return -ENOMEM;
	case MEMORY:
		return -ENOBUFS;
	case LIMIT:
		return -ENOSPC;
	case FDS:
		return -EMFILE;
	case PERMISSION:
		return -EACCES;
	case OTHER:
		break;
	}
	return -err;
}
