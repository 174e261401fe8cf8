/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * control.h - the control thread: one per process, from the first TCP listen or accept, or the first
 * connect that may have a fast path
 *
 * It owns the rendezvous sockets and links (conn_mgr/link.h), watches the TCP side of connections
 * that are off the beaten path, and runs timers. All functions are thread-safe. Those that end the
 * thread wait for it, and no others.
 */
#ifndef CONN_MGR_CONTROL_H
#define CONN_MGR_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

struct rs_conn;

/* What an epoll event of the control thread belongs to. */
struct rs_source {
	void (*event)(struct rs_source *s, uint32_t events);
};

/* Starts the thread if it does not run. 0 or -errno (EAGAIN, ENOMEM, EMFILE ...). */
int rs_control_start(void);
bool rs_control_running(void);
/* This thread is starting or stopping it, and was interrupted by a signal handler. */
bool rs_control_locked(void);
/* The thread makes this system call too, now: it is about the credentials of the one that calls. */
void rs_control_call(long n, const long a[3]);
/* Ends the thread, but keeps its work for the next start; false: it did not run. */
bool rs_control_pause(void);
/* At the end of a process that has used RDMA: until TCP has what was sent. */
void rs_control_exit(void);
/* The process ends: stops the thread, its work is the caller's. False: it does not stop. */
bool rs_control_stop(void);
/* The first thread ends: the process must end when no other thread of its own is left. */
void rs_control_main_exits(void);
/* True on the control thread itself. */
bool rs_control_self(void);
/* Wakes the thread: it looks at new connections, claims and deadlines. */
void rs_control_kick(void);

/* Puts a connection under the control thread's care, which takes a reference and looks at it at
 * `due` (ms; 0: soon). */
void rs_control_add(struct rs_conn *c, uint64_t due);
/* Connections that were added lately are in rs_control_conns from here on. Control thread only. */
void rs_control_take_added(void);
/* Something is due at `ms`. */
void rs_control_due(uint64_t ms);

/* Watches `fd`; epoll `events` (EPOLLET allowed). 0 or -errno. The source must outlive the watch. */
int rs_control_watch(int fd, uint32_t events, struct rs_source *s);
void rs_control_unwatch(int fd);
/* Watches the TCP side of a connection (edge-triggered). Holds no reference: unwatch first. */
int rs_control_watch_conn(int fd, struct rs_conn *c);

/* In a forked child: no thread, nothing watched. */
void rs_control_forget(void);

/* The connections under care, for the control thread only. */
extern struct rs_conn *rs_control_conns;

#endif
