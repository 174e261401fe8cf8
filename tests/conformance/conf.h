/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * conf.h - the small framework under the conformance cases
 *
 * A case is a function that makes connections with conf_pair(), does something to its own end (conn.fd),
 * asks the other end to do something with the p_*() calls, and prints what it saw. In the one-process
 * arrangement p_*() act on a descriptor of this process; in the two-process arrangement they are carried
 * out by `conformance --peer` in another process. A case does not notice which it is, unless it is
 * marked ONE (needs both descriptors) or TWO (needs the other process).
 *
 * What a case prints must not contain times, pids, ports or descriptor numbers.
 */
#ifndef TESTS_CONFORMANCE_CONF_H
#define TESTS_CONFORMANCE_CONF_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* a case only for the arrangement with both ends in this process, or in two processes */
#define ONE 1u
#define TWO 2u
/* a case whose subject is not a connection: no need to repeat it in every path state */
#define NOSTATE 4u

struct conf_case {
	const char *name;
	void (*fn)(void);
	unsigned int flags;
};

#define CASE(theme, what, flg)                                                                 \
	static void case_##theme##_##what(void);                                               \
	static const struct conf_case def_##theme##_##what = { #theme "." #what,               \
							       case_##theme##_##what, (flg) }; \
	static const struct conf_case *const ptr_##theme##_##what                              \
		__attribute__((section("conf_cases"), used)) = &def_##theme##_##what;          \
	static void case_##theme##_##what(void)

/* one connection: our descriptor, and the other end's (ours too in the one-process arrangement) */
struct conn {
	int fd;
	int peer;
};

enum conf_op {
	OP_LISTEN = 1,
	OP_CONNECT,
	OP_ACCEPT,
	OP_SEND,
	OP_SENDN,
	OP_RECV,
	OP_RECVN,
	OP_RECVALL,
	OP_RECVNB,
	OP_SHUT,
	OP_CLOSE,
	OP_RST,
	OP_SETOPT,
	OP_PATH,
	OP_LEAVE,
	OP_POLL,
	OP_DONE,
	OP_EXIT,
	OP_KILL,
	OP_RAISE,
	OP_PID,
	OP_NOP,
};

struct conf_req {
	int op;
	int fd;
	long n;
	long m;
	long v;
	int flags;
	int later; /* > 0: do it in a thread, so many ms from now; OP_DONE collects the result */
	size_t len;
	char data[2048];
};

struct conf_rsp {
	long ret;
	int err;
	size_t len;
	char data[2048];
};

extern bool conf_two; /* the two-process arrangement */
extern bool conf_server; /* our end is the accepted one */
extern int conf_family;
extern const char *conf_self; /* path of this program */

/* --- printing --- */
void out(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
long ret(const char *label, long r); /* " label=5" or " label=EAGAIN" */
long retd(const char *label, long r, const void *buf); /* with the bytes */
int peer_ret(const char *label, long r); /* for p_*(): a negative errno */
void yes(const char *label, bool v); /* " label=yes" */
void mask(const char *label, int revents); /* poll mask */
void emask(const char *label, uint32_t events); /* epoll mask */
const char *err_name(int e);
void status(const char *label, int wstatus);
void bail(const char *why) __attribute__((noreturn)); /* the case cannot go on */

/* --- connections --- */
void conf_pair(struct conn *k);
void conf_pair_fam(struct conn *k, int family, bool server);
void conf_pair_raw(struct conn *k, int family, bool server); /* without state control and NODELAY */
void conf_pair_one_shot(struct conn *k); /* the listener is closed before anything else */
void conf_settle(struct conn *k); /* the state control of CONF_STATE */
int conf_listen(int family, int backlog, struct sockaddr_storage *ss, socklen_t *len);
socklen_t conf_addr(int family, int port, struct sockaddr_storage *ss);
int conf_port(int fd);

/* --- the other end; all return >= 0 or -errno --- */
long p_call(struct conf_req *q, struct conf_rsp *s);
long p_send(struct conn *k, const char *text);
long p_send_flags(struct conn *k, const char *text, int flags);
long p_sendn(struct conn *k, long n, long seed);
long p_recv(struct conn *k, char *buf,
	    long n); /* exactly n, or up to the end; buf has n + 1 bytes */
long p_recvn(struct conn *k, long n, long seed); /* n pattern bytes; -EILSEQ when one differs */
long p_recvall(struct conn *k, long seed); /* pattern bytes to the end: how many */
long p_recvnb(struct conn *k, char *buf, long n); /* one MSG_DONTWAIT recv */
long p_shut(struct conn *k, int how);
long p_close(struct conn *k);
long p_rst(struct conn *k); /* SO_LINGER {1, 0} and close */
long p_setopt(struct conn *k, int level, int name, int value);
long p_poll(struct conn *k, int events, int ms);
long p_later(struct conn *k, int ms, int op, long n, long m, const char *text);
long p_done(void);
pid_t p_pid(void);
long p_exit(int op); /* OP_EXIT or OP_KILL: the other process ends */

/* --- our end --- */
bool wait_ev(int fd, int events); /* until poll shows all of events; false after 2 s */
bool wait_avail(int fd, int n); /* until FIONREAD >= n */
bool wait_taken(int fd); /* until FIONREAD is 0 */
int poll1(int fd, int events, int ms); /* revents, or -errno */
void poll_say(const char *label, int fd, int events, int ms);
long sendn(int fd, long n, long seed);
long recvn(int fd, long n, long seed);
long fill(int fd); /* pattern bytes (seed 7) by MSG_DONTWAIT until EAGAIN stays */
void pattern(void *buf, size_t n, uint64_t offset, uint64_t seed);
bool pattern_ok(const void *buf, size_t n, uint64_t offset, uint64_t seed);
int set_int(int fd, int level, int name, int value);
int get_int(int fd, int level, int name);
void nonblock(int fd, bool on);
long now_ms(void);
void nap(int ms);
/* A child with a connection to us, here the result, that it has used for so many ms: calls child(fd). */
int with_child(void (*child)(int fd), int ms, pid_t *pid);
void took(const char *label, long from, long low, long high); /* " label=in-time" or not */

/* wrong values that the compiler must not look through */
extern void *volatile conf_bad; /* points to nothing */
extern void *volatile conf_null;
extern volatile int conf_minus; /* -1 */
extern volatile size_t conf_max; /* SIZE_MAX */

/* --- signals --- */
extern volatile sig_atomic_t sig_count[65];
void sig_catch(int sig, int flags);
void alarm_ms(int first, int every);

/* --- files --- */
int temp_file(size_t n, long seed); /* an unlinked file with n pattern bytes */
void *bad_tail(size_t good); /* memory whose byte number `good` is not mapped */

#endif
