/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * test_sys.c - private descriptors, direct system calls, clocks
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "rsock/sys.h"

static void hide(void **state)
{
	int fd = open("/dev/null", O_RDONLY), high = rs_fd_hide(fd);

	(void)state;
	assert_true(high > fd);
	assert_int_equal(fcntl(fd, F_GETFD), -1); /* the low number is free again */
	assert_int_equal(fcntl(high, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	assert_true(rs_fd_private(high));
	assert_false(rs_fd_private(fd));
	assert_int_equal(rs_fd_next_private(0), high);
	assert_int_equal(rs_fd_next_private(high), high);
	assert_int_equal(rs_fd_next_private(high + 1), -1);
	rs_fd_close(high);
	assert_false(rs_fd_private(high));
	assert_int_equal(fcntl(high, F_GETFD), -1);
	assert_int_equal(rs_fd_next_private(0), -1);
}

static void duplicate(void **state)
{
	int low = open("/dev/null", O_RDONLY), high;

	(void)state;
	close(low); /* free, and stays so: */
	high = rs_fd_dup(0);
	assert_true(high > low);
	assert_true(rs_fd_private(high));
	assert_int_equal(fcntl(high, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	rs_fd_close(high);
	assert_false(rs_fd_private(high));
	assert_int_equal(rs_fd_dup(-1), -EBADF);
	assert_int_equal(rs_fd_next_private(0), -1);
}

static void several(void **state)
{
	int fds[200], last = -1;

	(void)state;
	for (size_t i = 0; i < 200; i++)
		fds[i] = rs_fd_hide(eventfd(0, 0));
	for (size_t i = 0; i < 200; i++) {
		int next = rs_fd_next_private(last + 1);

		assert_true(next > last);
		last = next;
	}
	assert_int_equal(rs_fd_next_private(last + 1), -1);
	for (size_t i = 0; i < 200; i++)
		rs_fd_close(fds[i]);
	assert_int_equal(rs_fd_next_private(0), -1);
}

static void odd_numbers(void **state)
{
	(void)state;
	assert_int_equal(rs_fd_hide(-1), -1);
	assert_int_equal(rs_fd_hide(-24), -24);
	assert_false(rs_fd_private(-1));
	assert_false(rs_fd_private(INT32_MAX));
	assert_false(rs_fd_private(INT32_MIN));
	assert_int_equal(rs_fd_next_private(INT32_MAX), -1);
}

/* Without a free high number it is private where it is. */
static void no_room(void **state)
{
	int status;
	pid_t pid = fork();

	(void)state;
	if (pid == 0) {
		struct rlimit rl = { 8, 8 };
		int fd, hidden, k;

		for (k = 3; k < 30; k++)
			close(k);
		setrlimit(RLIMIT_NOFILE, &rl);
		while ((fd = open("/dev/null", O_RDONLY)) >= 0 && fd < 7)
			;
		if (fd != 7)
			_exit(1);
		hidden = rs_fd_hide(7);
		if (hidden != 7 || !rs_fd_private(7))
			_exit(2);
		rs_fd_close(7);
		_exit(rs_fd_private(7) || fcntl(7, F_GETFD) >= 0 ? 3 : 0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void results_and_errno(void **state)
{
	(void)state;
	errno = ENOTTY;
	assert_int_equal(rs_sys1(SYS_close, -1), -EBADF);
	assert_int_equal(rs_sys0(SYS_getpid), getpid());
	assert_int_equal(rs_sys3(SYS_read, -1, NULL, 0), -EBADF);
	rs_eventfd_ring(-1);
	assert_int_equal(errno, ENOTTY);
}

static void eventfds(void **state)
{
	int fd = eventfd(0, EFD_NONBLOCK);
	uint64_t count;

	(void)state;
	rs_eventfd_ring(fd);
	rs_eventfd_ring(fd);
	assert_int_equal(read(fd, &count, sizeof(count)), sizeof(count));
	assert_int_equal(count, 2);
	close(fd);
}

/* Who has the eventfd too may do this to it at any time. */
static void hostile_eventfds(void **state)
{
	const uint64_t full = UINT64_MAX - 1;
	int fd = eventfd(0, EFD_NONBLOCK);
	uint64_t count;

	(void)state;
	alarm(5);
	assert_int_equal(fcntl(fd, F_SETFL, 0), 0);
	rs_eventfd_clear(fd); /* an empty one */
	assert_int_equal(write(fd, &full, sizeof(full)), sizeof(full));
	rs_eventfd_ring(fd);
	rs_eventfd_clear(fd);
	rs_eventfd_ring(fd);
	assert_int_equal(read(fd, &count, sizeof(count)), sizeof(count));
	assert_int_equal(count, 1);
	alarm(0);
	close(fd);
}

static void only_eventfds(void **state)
{
	int fd = eventfd(0, EFD_SEMAPHORE), pipes[2], other;
	char what[64], cut[8];

	(void)state;
	assert_true(rs_fd_is_eventfd(fd));
	assert_true(rs_fd_describe(fd, what, sizeof(what)));
	assert_string_equal(what, "anon_inode:[eventfd]");
	assert_true(rs_fd_describe(fd, cut, sizeof(cut)));
	assert_string_equal(cut, "anon_in");
	close(fd);
	assert_false(rs_fd_is_eventfd(fd));
	assert_false(rs_fd_is_eventfd(-1));
	assert_int_equal(pipe(pipes), 0);
	assert_false(rs_fd_is_eventfd(pipes[1]));
	other = epoll_create1(0);
	assert_false(rs_fd_is_eventfd(other));
	close(other);
	other = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_false(rs_fd_is_eventfd(other));
	close(other);
	/* A file by that name. */
	assert_true(chdir("/tmp") == 0);
	other = open("anon_inode:[eventfd]", O_CREAT | O_RDWR, 0600);
	assert_true(other >= 0);
	assert_int_equal(unlink("anon_inode:[eventfd]"), 0);
	assert_false(rs_fd_is_eventfd(other));
	close(other);
	close(pipes[0]);
	close(pipes[1]);
}

/* The last close of a socket that lingers waits for its peer. */
static void close_aside(void **state)
{
	const struct linger lin = { 1, 60 };
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int l = socket(AF_INET, SOCK_STREAM, 0), c = socket(AF_INET, SOCK_STREAM, 0), s;
	static const char zeros[65536];
	socklen_t len = sizeof(sa);
	uint64_t start;

	(void)state;
	assert_int_equal(bind(l, (struct sockaddr *)&sa, len), 0);
	assert_int_equal(listen(l, 1), 0);
	assert_int_equal(getsockname(l, (struct sockaddr *)&sa, &len), 0);
	assert_int_equal(connect(c, (struct sockaddr *)&sa, len), 0);
	s = accept(l, NULL, NULL);
	assert_int_equal(setsockopt(c, SOL_SOCKET, SO_LINGER, &lin, sizeof(lin)), 0);
	while (send(c, zeros, sizeof(zeros), MSG_DONTWAIT) > 0)
		;
	start = rs_now_ms();
	rs_fd_close_aside(c);
	assert_true(rs_now_ms() - start < 5000);
	while (fcntl(c, F_GETFD) >= 0 && rs_now_ms() - start < 5000)
		usleep(1000);
	assert_int_equal(fcntl(c, F_GETFD), -1); /* the number is free, whatever else waits */
	close(s); /* with unread bytes: RST */
	close(l);
	while (rs_fd_asides() && rs_now_ms() - start < 10000)
		usleep(1000);
	assert_int_equal(rs_fd_asides(), 0);
}

static void *wake(void *arg)
{
	uint32_t *word = arg;

	usleep(2000);
	__atomic_store_n(word, 1, __ATOMIC_SEQ_CST);
	rs_futex_wake(word, 1, true);
	return NULL;
}

static void futexes(void **state)
{
	const struct timespec ts = { 0, 1000000 };
	uint32_t word = 0;
	pthread_t t;

	(void)state;
	assert_int_equal(rs_futex_wait(&word, 1, NULL, true), -EAGAIN);
	assert_int_equal(rs_futex_wait(&word, 0, &ts, true), -ETIMEDOUT);
	assert_int_equal(rs_futex_wait(&word, 0, &ts, false), -ETIMEDOUT);
	pthread_create(&t, NULL, wake, &word);
	while (!__atomic_load_n(&word, __ATOMIC_SEQ_CST))
		rs_futex_wait(&word, 0, NULL, true);
	pthread_join(t, NULL);
}

static void clocks(void **state)
{
	uint64_t ns = rs_now_ns(), ticks = rs_ticks(), us;

	(void)state;
	usleep(20000);
	us = (rs_ticks() - ticks) / rs_ticks_per_us();
	ns = rs_now_ns() - ns;
	assert_true(ns >= 20000000);
	/* Within ten per cent of each other. */
	assert_true(us > ns / 1000 * 9 / 10 && us < ns / 1000 * 11 / 10);
	assert_true(rs_now_ms() / 1000 <= rs_now_ns() / 1000000000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(hide),		 cmocka_unit_test(duplicate),
		cmocka_unit_test(several),	 cmocka_unit_test(odd_numbers),
		cmocka_unit_test(no_room),	 cmocka_unit_test(results_and_errno),
		cmocka_unit_test(eventfds),	 cmocka_unit_test(hostile_eventfds),
		cmocka_unit_test(only_eventfds), cmocka_unit_test(close_aside),
		cmocka_unit_test(futexes),	 cmocka_unit_test(clocks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
