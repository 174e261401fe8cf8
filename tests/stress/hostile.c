/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * hostile.c - a peer that lies on the link: the process that it lies to goes on, with all its other
 * streams, and keeps none of its descriptors
 *
 * The liar is this program again, in a process of its own which knows nothing of rsock but what
 * docs/protocol.md says: `hostile WHAT PORT UID`. Its exit status is how often it was not answered as
 * it should have been.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rsock/rsock.h"
#include "tests/stress/libstress.h"

#define SLAB 2432749568
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define HELLO 1
#define HELLO_LEN 52
#define CLAIM 2
#define CLAIM_OK 3
#define CLAIM_NO 4
#define REVEAL 5
#define BELL 13
#define SEGMENT 14
#define FLOOD 900
#define PENDING 64

/* ---- the liar ---- */

static uint16_t target;
static int bad;

static int dial(void)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	int n = snprintf(un.sun_path + 1, sizeof(un.sun_path) - 1, "rsock.%u.0", target);

	if (fd < 0 ||
	    connect(fd, (struct sockaddr *)&un,
		    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n)) != 0) {
		printf("# dial: %s\n", strerror(errno));
		exit(100);
	}
	return fd;
}

/* A message of that type: header, then zeros up to `len`. */
static size_t message(uint8_t *m, uint8_t type, size_t len)
{
	const uint8_t head[8] = { 'R', 'K', 1, type, (uint8_t)len, (uint8_t)(len >> 8) };

	memset(m, 0, len);
	memcpy(m, head, sizeof(head));
	return len;
}

static ssize_t say(int sock, const void *bytes, size_t len, const int *fds, size_t nfds)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(253 * sizeof(int))];
	} ctl;
	struct iovec iov = { (void *)(uintptr_t)bytes, len };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (nfds) {
		struct cmsghdr *cm;

		memset(&ctl, 0, sizeof(ctl));
		mh.msg_control = ctl.buf;
		mh.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		cm = CMSG_FIRSTHDR(&mh);
		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(cm), fds, nfds * sizeof(int));
	}
	return sendmsg(sock, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Of the last message that was heard. */
static int heard[2] = { -1, -1 };

/* The type of the next message, 0: the end, -1: nothing comes. */
static int hear(int sock, int ms)
{
	struct pollfd p = { sock, POLLIN, 0 };
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(heard))];
	} ctl;
	uint8_t bytes[256];
	struct iovec iov = { bytes, sizeof(bytes) };
	struct msghdr mh = { .msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = ctl.buf,
			     .msg_controllen = sizeof(ctl.buf) };
	struct cmsghdr *cm;
	ssize_t n;

	if (poll(&p, 1, ms) <= 0)
		return -1;
	for (int i = 0; i < 2; i++) {
		if (heard[i] >= 0)
			close(heard[i]);
		heard[i] = -1;
	}
	n = recvmsg(sock, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	cm = n > 0 ? CMSG_FIRSTHDR(&mh) : NULL;
	if (cm && cm->cmsg_type == SCM_RIGHTS)
		memcpy(heard, CMSG_DATA(cm), cm->cmsg_len - CMSG_LEN(0));
	return n >= 8 ? bytes[3] : 0;
}

static bool hear_type(int sock, int type)
{
	int got;

	do
		got = hear(sock, 3000);
	while (got > 0 && got != type);
	return got == type;
}

static void check(bool good, const char *what)
{
	if (good)
		return;
	printf("# FAILED: %s\n", what);
	bad++;
}

static void ends(int sock, const char *what)
{
	check(hear_type(sock, 0), what);
	close(sock);
}

static int slab(uint64_t magic, off_t size, int seals, int flags)
{
	static const uint8_t shift[3] = { 16, 20, 23 };
	int fd = memfd_create("liar", MFD_CLOEXEC | MFD_ALLOW_SEALING), again;
	const uint32_t slots = 256;
	char path[40];

	if (ftruncate(fd, size) != 0 || pwrite(fd, &magic, 8, 0) != 8 ||
	    pwrite(fd, &slots, 4, 8) != 4 || pwrite(fd, shift, 3, 12) != 3 ||
	    ftruncate(fd, size) != 0 || (seals && fcntl(fd, F_ADD_SEALS, seals) != 0))
		exit(101);
	if (flags == O_RDWR)
		return fd;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, flags);
	close(fd);
	return again;
}

#define MAGIC 0x314d48534b434f52u

static size_t hello(uint8_t *m)
{
	message(m, HELLO, HELLO_LEN);
	m[8] = 5; /* SHM, TRIGGER */
	m[29] = 1; /* 256 slots */
	m[32] = 16;
	m[33] = 20;
	m[34] = 23;
	return HELLO_LEN;
}

/* What an honest HELLO carries. */
static const int *gifts(void)
{
	static int fds[2];

	if (!fds[0]) {
		fds[0] = slab(MAGIC, SLAB, SEALS, O_RDWR);
		fds[1] = eventfd(0, EFD_NONBLOCK);
	}
	return fds;
}

/* A link that is up. */
static int linked(void)
{
	int sock = dial();
	uint8_t m[64];

	say(sock, m, hello(m), gifts(), 2);
	if (!hear_type(sock, HELLO)) {
		check(false, "no answer to an honest HELLO");
		exit(bad);
	}
	return sock;
}

/* It answers: the link is up and the control thread at work. */
static void answers(int sock, const char *what)
{
	struct pollfd p = { sock, POLLOUT, 0 };
	uint8_t m[96];

	message(m, CLAIM, 96);
	m[12] = 4;
	while (say(sock, m, 96, NULL, 0) < 0 && errno == EAGAIN && poll(&p, 1, 3000) == 1)
		;
	check(hear_type(sock, CLAIM_NO), what);
}

/* Descriptors of every kind that is not what the message wants. */
static size_t zoo(int *fds)
{
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_port = htons(target),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	static const char zeros[65536];
	int p[2], l;
	size_t n = 0;

	if (pipe(p) != 0)
		exit(102);
	close(p[0]);
	fds[n++] = p[1]; /* SIGPIPE */
	if (pipe(p) != 0)
		exit(102);
	fcntl(p[1], F_SETFL, O_NONBLOCK);
	while (write(p[1], zeros, sizeof(zeros)) > 0)
		;
	fcntl(p[1], F_SETFL, 0);
	fds[n++] = p[1]; /* blocks */
	fds[n++] = p[0];
	/* A socket whose close lingers: nobody reads what it still has to send. */
	fds[n++] = socket(AF_INET, SOCK_STREAM, 0);
	l = socket(AF_INET, SOCK_STREAM, 0);
	sa.sin_port = 0;
	if (bind(l, (struct sockaddr *)&sa, sizeof(sa)) == 0 && listen(l, 1) == 0) {
		const struct linger lin = { 1, 1000 };
		socklen_t len = sizeof(sa);

		getsockname(l, (struct sockaddr *)&sa, &len);
		if (connect(fds[n - 1], (struct sockaddr *)&sa, len) == 0)
			while (send(fds[n - 1], zeros, sizeof(zeros), MSG_DONTWAIT) > 0)
				;
		setsockopt(fds[n - 1], SOL_SOCKET, SO_LINGER, &lin, sizeof(lin));
	}
	fds[n++] = open("/dev/zero", O_RDWR);
	fds[n++] = open("/proc/self/exe", O_PATH);
	fds[n++] = open("/tmp", O_RDONLY);
	fds[n++] = slab(MAGIC, SLAB, 0, O_RDWR); /* could be cut */
	fds[n++] = slab(MAGIC, 4096, SEALS, O_RDWR);
	fds[n++] = slab(MAGIC, SLAB + 4096, SEALS, O_RDWR);
	fds[n++] = slab(MAGIC + 1, SLAB, SEALS, O_RDWR);
	fds[n++] = slab(0, SLAB, SEALS, O_RDWR);
	fds[n++] = slab(MAGIC, SLAB, SEALS, O_RDONLY);
	fds[n++] = slab(MAGIC, SLAB, SEALS | F_SEAL_WRITE, O_RDWR);
	return n;
}

static void lie_words(void)
{
	uint8_t m[4096];
	int sock;

	for (size_t len = 0; len < HELLO_LEN; len += 5) {
		sock = dial();
		hello(m);
		say(sock, m, len, gifts(), 2);
		ends(sock, "a cut HELLO");
	}
	sock = dial();
	hello(m);
	say(sock, m, HELLO_LEN + 1, gifts(), 2);
	ends(sock, "a long HELLO");
	sock = dial();
	say(sock, m, 4096, NULL, 0);
	ends(sock, "4096 bytes");
	for (int type = 0; type < 256; type += type < 20 ? 1 : 47) {
		if (type == HELLO)
			continue;
		sock = dial();
		say(sock, m, message(m, (uint8_t)type, 24), NULL, 0);
		ends(sock, "something before HELLO");
	}
	for (int at = 0; at < HELLO_LEN; at++) {
		if (at == 9 || at == 10 || at == 11 || (at >= 12 && at < 28))
			continue; /* unknown features, the identity */
		sock = dial();
		hello(m);
		m[at] = (uint8_t)(m[at] + 64);
		if (at == 8)
			m[at] = 1;
		say(sock, m, HELLO_LEN, gifts(), 2);
		if (at >= 32 && at < 35)
			close(sock); /* the slab's own word counts */
		else
			ends(sock, "a wrong HELLO");
	}
	sock = linked();
	say(sock, m, hello(m), gifts(), 2);
	ends(sock, "two HELLOs");
	/* Streams that do not exist, whatever is said of them. */
	sock = linked();
	for (int type = CLAIM_OK; type < BELL; type++) {
		static const uint8_t len[] = { [CLAIM_OK] = 60, [CLAIM_NO] = 48, [REVEAL] = 44 };
		static const uint32_t ids[] = {
			0, 1, 255, 256, 16383, 16384, 0x7fffffff, UINT32_MAX
		};

		for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
			message(m, (uint8_t)type, type <= REVEAL ? len[type] : type == 9 ? 12 : 24);
			memcpy(m + 8, &ids[i], 4);
			if (type == CLAIM_NO)
				m[12] = 1;
			say(sock, m, m[4], NULL, 0);
		}
	}
	answers(sock, "streams that do not exist");
	close(sock);
	/* Questions whose answers nobody reads. */
	sock = linked();
	message(m, CLAIM, 96);
	m[12] = 4;
	for (int i = 0; i < 60000; i++) {
		struct pollfd p = { sock, POLLOUT, 0 };

		if (say(sock, m, 96, NULL, 0) < 0 && (errno != EAGAIN || poll(&p, 1, 3000) <= 0))
			break;
	}
	ends(sock, "answers that nobody reads");
}

static void lie_descriptors(void)
{
	const int good = gifts()[0], bell = gifts()[1];
	int fds[300], sock;
	size_t n = zoo(fds);
	uint8_t m[128];

	for (size_t i = 0; i < n; i++) {
		sock = dial();
		say(sock, m, hello(m), (int[]){ fds[i], bell }, 2);
		ends(sock, "a HELLO with the wrong slab");
		sock = dial();
		say(sock, m, hello(m), (int[]){ good, fds[i] }, 2);
		ends(sock, "a HELLO with the wrong trigger");
		sock = linked();
		message(m, BELL, 12);
		say(sock, m, 12, &fds[i], 1);
		ends(sock, "a BELL that is none");
		sock = linked();
		message(m, BELL, 12);
		m[8] = 7;
		say(sock, m, 12, &fds[i], 1);
		ends(sock, "a BELL 7 that is none");
		sock = linked();
		message(m, SEGMENT, 12);
		m[8] = 1;
		say(sock, m, 12, &fds[i], 1);
		ends(sock, "a SEGMENT that is none");
		/* A claim is only refused. */
		sock = linked();
		message(m, CLAIM, 96);
		m[12] = 4;
		say(sock, m, 96, &fds[i], 1);
		answers(sock, "a CLAIM with the wrong descriptor");
		/* Left unread: the end comes first. */
		say(sock, "x", 1, NULL, 0);
		say(sock, m, 96, &fds[i], 1);
		say(sock, m, 0, &fds[i], 1);
		ends(sock, "rubbish");
	}
	sock = dial();
	say(sock, m, hello(m), NULL, 0);
	ends(sock, "a HELLO without descriptor");
	sock = dial();
	say(sock, m, hello(m), gifts(), 1);
	ends(sock, "a HELLO without a trigger");
	sock = dial();
	say(sock, m, hello(m), (int[]){ bell, good }, 2);
	ends(sock, "a HELLO whose descriptors are the wrong way round");
	sock = dial();
	say(sock, m, hello(m), (int[]){ good, bell, bell }, 3);
	ends(sock, "a HELLO with three descriptors");
	for (size_t i = 0; i < 253; i++)
		fds[i] = fds[i % n];
	sock = dial();
	say(sock, m, hello(m), fds, 253);
	ends(sock, "a HELLO with 253 descriptors");
	sock = linked();
	say(sock, m, message(m, BELL, 12), NULL, 0);
	ends(sock, "a BELL without descriptor");
	sock = linked();
	message(m, BELL, 12);
	m[8] = 32;
	say(sock, m, 12, &bell, 1);
	ends(sock, "BELL 32");
	sock = linked();
	message(m, SEGMENT, 12);
	m[8] = 2;
	say(sock, m, 12, &good, 1);
	ends(sock, "a SEGMENT that leaves one out");
	sock = linked();
	message(m, BELL, 12);
	say(sock, m, 12, &bell, 1);
	ends(sock, "BELL 0, which HELLO had");
	sock = linked();
	message(m, BELL, 12);
	m[8] = 1;
	say(sock, m, 12, &bell, 1);
	message(m, SEGMENT, 12);
	m[8] = 1;
	say(sock, m, 12, &good, 1);
	answers(sock, "a good BELL and a good SEGMENT");
	close(sock);
}

/* Triggers: its own, which it leaves full and blocking, and those that it got, which it keeps. */
static void lie_triggers(void)
{
	static const uint64_t full = UINT64_MAX - 1, one = 1;
	int sock = linked(), got = dup(heard[1]), mine = gifts()[1];
	uint64_t n;

	check(got >= 0 && fcntl(got, F_SETFL, O_NONBLOCK) == 0, "a HELLO without a trigger");
	for (int i = 0; i < 200000; i++)
		check(read(got, &n, sizeof(n)) == sizeof(n), "a trigger that cannot be pulled");
	answers(sock, "a trigger that is pulled again and again");
	while (write(got, &one, sizeof(one)) == sizeof(one))
		;
	fcntl(got, F_SETFL, 0);
	write(mine, &full, sizeof(full));
	fcntl(mine, F_SETFL, 0);
	answers(sock, "full triggers on which calls wait");
	close(sock);
	usleep(200000);
	fcntl(got, F_SETFL, O_NONBLOCK);
	for (int i = 0; i < 200000; i++)
		check(read(got, &n, sizeof(n)) == sizeof(n), "a trigger that cannot be pulled");
	sock = linked();
	answers(sock, "one that was kept is pulled again and again");
	close(sock);
}

static void lie_flood(void)
{
	int socks[FLOOD], sock;

	for (int i = 0; i < FLOOD; i++)
		socks[i] = dial();
	sock = linked();
	answers(sock, "an honest one among many that say nothing");
	usleep(500000);
	for (int i = 0; i < FLOOD; i++)
		close(socks[i]);
	close(sock);
}

static int liar(char **argv)
{
	static const struct {
		const char *name;
		void (*lie)(void);
	} lies[] = {
		{ "words", lie_words },
		{ "descriptors", lie_descriptors },
		{ "triggers", lie_triggers },
		{ "flood", lie_flood },
	};
	uid_t uid = (uid_t)strtoul(argv[3], NULL, 10);

	setvbuf(stdout, NULL, _IOLBF, 0);
	target = (uint16_t)strtoul(argv[2], NULL, 10);
	if (uid != getuid() && setresuid(uid, uid, uid) != 0)
		return 103;
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++)
		if (strcmp(argv[1], lies[i].name) == 0)
			lies[i].lie();
	return bad;
}

/* ---- the honest process ---- */

static int listener;
static uint16_t port;
static bool over;
static uint64_t rounds;

static void *echo(void *arg)
{
	int fd = *(int *)arg;
	char buf[512];
	ssize_t n;

	while ((n = rsock_recv(fd, buf, sizeof(buf), 0)) > 0)
		if (rsock_send(fd, buf, (size_t)n, MSG_NOSIGNAL) != n)
			stress_fail("echo: %s", strerror(errno));
	return NULL;
}

static void *play(void *arg)
{
	struct pollfd p = { *(int *)arg, POLLIN, 0 };
	char out[300], in[300];

	for (uint64_t at = 0; !__atomic_load_n(&over, __ATOMIC_SEQ_CST); at += sizeof(out)) {
		pattern_fill(7, at, out, sizeof(out));
		if (rsock_send(p.fd, out, sizeof(out), 0) != sizeof(out) ||
		    rsock_poll(&p, 1, 10000) != 1 ||
		    rsock_recv(p.fd, in, sizeof(in), MSG_WAITALL) != sizeof(in) ||
		    !pattern_check(7, at, in, sizeof(in))) {
			stress_fail("an innocent stream: %s", strerror(errno));
			break;
		}
		__atomic_fetch_add(&rounds, 1, __ATOMIC_SEQ_CST);
		usleep(500);
	}
	rsock_shutdown(p.fd, SHUT_WR);
	return NULL;
}

static void honest(const char *what, uid_t uid)
{
	char port_arg[8], uid_arg[12];
	char *argv[] = { "hostile", (char *)(uintptr_t)what, port_arg, uid_arg, NULL };
	uint32_t before = stress_fds(0, 0), most = 0, now;
	uint64_t end = stress_now() + 90000, at, done;
	int fds[2], status;
	pid_t pid;

	snprintf(port_arg, sizeof(port_arg), "%u", port);
	snprintf(uid_arg, sizeof(uid_arg), "%u", uid);
	if (posix_spawn(&pid, "/proc/self/exe", NULL, NULL, argv, environ) != 0)
		stress_bail("posix_spawn");
	at = __atomic_load_n(&rounds, __ATOMIC_SEQ_CST);
	while (waitpid(pid, &status, WNOHANG) == 0) {
		now = stress_fds(0, 0);
		most = now > most ? now : most;
		if (stress_now() > end) {
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			break;
		}
		usleep(20000);
	}
	if (status != 0)
		stress_fail("%s as %u: %s %d", what, uid, WIFSIGNALED(status) ? "signal" : "status",
			    WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	if (strcmp(what, "flood") == 0 && most > before + PENDING + 64)
		stress_fail("%u descriptors for a peer that says nothing", most - before);
	/* A short lie may find no CPU left for the innocent meanwhile. */
	end = stress_now() + 3000;
	while ((done = __atomic_load_n(&rounds, __ATOMIC_SEQ_CST) - at) < 20 && stress_now() < end)
		usleep(1000);
	if (done < 20)
		stress_fail("the innocent stream stands still: %llu rounds",
			    (unsigned long long)done);
	/* New ones come up as before. */
	stress_pair(listener, port, fds);
	if (!stress_wait_fast(fds[0], STRESS_LONG_MS))
		stress_fail("a new stream stays on TCP");
	rsock_close(fds[0]);
	rsock_close(fds[1]);
	stress_note("as %u: %u descriptors before, %u at most", uid, before, most);
}

int main(int argc, char **argv)
{
	static const char *const lies[] = { "words", "descriptors", "triggers", "flood" };
	uint32_t before, after;
	pthread_t a, b;
	int fds[2];

	if (argc == 4)
		return liar(argv);
	stress_begin(5, 280);
	signal(SIGPIPE, SIG_DFL); /* nothing of ours may raise it */
	listener = stress_listen(&port);
	stress_pair(listener, port, fds);
	if (!stress_wait_fast(fds[0], STRESS_LONG_MS))
		stress_fail("the innocent stream stays on TCP");
	a = stress_thread(echo, &fds[1]);
	b = stress_thread(play, &fds[0]);
	usleep(200000);
	before = stress_fds(0, 0);
	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		honest(lies[i], getuid());
		if (getuid() == 0)
			honest(lies[i], 12345);
		stress_point(lies[i]);
	}
	/* Links that were up keep their memory for 10 s. */
	after = stress_fds(before, 20000);
	if (after > before)
		stress_fail("%u descriptors more than before", after - before);
	__atomic_store_n(&over, true, __ATOMIC_SEQ_CST);
	pthread_join(b, NULL);
	pthread_join(a, NULL);
	rsock_close(fds[0]);
	rsock_close(fds[1]);
	stress_slots();
	rsock_close(listener);
	stress_point("nothing is left of it");
	return stress_end();
}
