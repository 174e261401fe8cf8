/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * conformance.c - runs the conformance cases and prints one line for each
 *
 *	conformance [--two] [--peer-preload LIB|none] [--jobs N] [--timeout S] [--filter REGEX] [NAME ...]
 *	conformance --list
 *
 * Environment: CONF_STATE before|while|entered|left|again, CONF_ROLE client|server, CONF_FAMILY 4|6.
 * Every case runs in a process of its own; one that does not end in time is killed with all its
 * helpers and prints TIMEOUT.
 */
#include "tests/conformance/conf.h"

#include <regex.h>
#include <sys/prctl.h>

#include "tests/conformance/libconf.h"

extern const struct conf_case *const __start_conf_cases[];
extern const struct conf_case *const __stop_conf_cases[];

/* name them, so that no file is left out when they come from an archive */
extern const char conf_file_recv, conf_file_send, conf_file_close, conf_file_poll, conf_file_epoll,
	conf_file_fd, conf_file_proc, conf_file_sig, conf_file_thread, conf_file_sock,
	conf_file_bulk, conf_file_exotic, conf_file_libc, conf_file_owner;
static const char *const files[] = {
	&conf_file_recv, &conf_file_send,   &conf_file_close, &conf_file_poll,	 &conf_file_epoll,
	&conf_file_fd,	 &conf_file_proc,   &conf_file_sig,   &conf_file_thread, &conf_file_sock,
	&conf_file_bulk, &conf_file_exotic, &conf_file_libc,  &conf_file_owner,
};

struct job {
	const struct conf_case *c;
	struct conf_text *text;
	pid_t pid;
	long end;
	bool done;
};

static enum conf_state state;
static const char *peer_preload = "none";
static long timeout_ms = 5000;
static long jobs_max = 1;

static int by_name(const void *a, const void *b)
{
	const struct job *x = a, *y = b;

	return strcmp(x->c->name, y->c->name);
}

static void start_peer(int *chan)
{
	int sv[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv))
		bail("socketpair");
	*chan = fcntl(sv[0], F_DUPFD_CLOEXEC, 300);
	close(sv[0]);
	pid = fork();
	if (pid < 0)
		bail("fork");
	if (!pid) {
		char num[16];

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (dup2(sv[1], 3) < 0)
			_exit(126);
		if (sv[1] == 3)
			fcntl(3, F_SETFD, 0);
		snprintf(num, sizeof(num), "%d", 3);
		if (!strcmp(peer_preload, "none"))
			unsetenv("LD_PRELOAD");
		else
			setenv("LD_PRELOAD", peer_preload, 1);
		execl(conf_self, conf_self, "--peer", num, (char *)NULL);
		_exit(127);
	}
	close(sv[1]);
}

static void run_case(struct job *j)
{
	int chan = -1;

	setpgid(0, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (conf_two) {
		conf_setup(state, j->text, -1);
		start_peer(&chan);
	}
	conf_setup(state, j->text, chan);
	j->c->fn();
	_exit(0);
}

static void start(struct job *j)
{
	fflush(stdout);
	j->end = now_ms() + timeout_ms + (state >= STATE_ENTERED ? 3000 : 0);
	j->pid = fork();
	if (j->pid < 0) {
		perror("fork");
		exit(2);
	}
	if (!j->pid)
		run_case(j);
	setpgid(j->pid, j->pid);
}

/* true when the case is over */
static bool check(struct job *j)
{
	siginfo_t si = { 0 };
	const char *add = NULL;
	char tmp[32];

	if (waitid(P_PID, (id_t)j->pid, &si, WEXITED | WNOHANG | WNOWAIT) == 0 && si.si_pid) {
		if (si.si_code == CLD_EXITED && si.si_status) {
			snprintf(tmp, sizeof(tmp), " EXIT(%d)", si.si_status);
			add = tmp;
		} else if (si.si_code != CLD_EXITED) {
			snprintf(tmp, sizeof(tmp), " KILLED(SIG%s)", sigabbrev_np(si.si_status));
			add = tmp;
		}
	} else if (now_ms() > j->end) {
		add = " TIMEOUT";
	} else {
		return false;
	}
	/* the leader is not reaped yet, so this number is still its group */
	kill(-j->pid, SIGKILL);
	while (waitpid(j->pid, NULL, 0) < 0 && errno == EINTR)
		;
	if (add) {
		size_t n = strlen(add);

		if (j->text->len + n < sizeof(j->text->text)) {
			memcpy(j->text->text + j->text->len, add, n + 1);
			j->text->len += n;
		}
	}
	j->done = true;
	return true;
}

static void run_all(struct job *jobs, size_t n)
{
	size_t next = 0, printed = 0;
	long running = 0;

	while (printed < n) {
		bool moved = false;

		for (size_t i = printed; i < next; i++) {
			if (!jobs[i].done && check(&jobs[i])) {
				running--;
				moved = true;
			}
		}
		while (printed < next && jobs[printed].done) {
			printf("%s:%s\n", jobs[printed].c->name, jobs[printed].text->text);
			fflush(stdout);
			printed++;
		}
		while (running < jobs_max && next < n) {
			start(&jobs[next++]);
			running++;
			moved = true;
		}
		if (!moved)
			nap(2);
	}
}

static bool named(const char *name, char **list, const regex_t *re)
{
	if (re && regexec(re, name, 0, NULL, 0))
		return false;
	if (!*list)
		return true;
	for (; *list; list++) {
		if (!strcmp(name, *list))
			return true;
	}
	return false;
}

static void env(void)
{
	static const char *const names[] = { "before", "while", "entered", "left", "again" };
	const char *s = getenv("CONF_STATE");

	if (s) {
		for (unsigned int i = 0;; i++) {
			if (i == sizeof(names) / sizeof(names[0])) {
				fprintf(stderr, "conformance: CONF_STATE=%s?\n", s);
				exit(2);
			}
			if (!strcmp(s, names[i])) {
				state = (enum conf_state)i;
				break;
			}
		}
	}
	s = getenv("CONF_ROLE");
	conf_server = s && !strcmp(s, "server");
	s = getenv("CONF_FAMILY");
	if (s && !strcmp(s, "6"))
		conf_family = AF_INET6;
}

int main(int argc, char **argv)
{
	static char self[4096];
	const struct conf_case *const *c;
	bool list = false;
	regex_t re_buf, *re = NULL;
	struct job *jobs;
	struct conf_text *texts;
	size_t total, n = 0;
	int i;

	if (!files[0] || readlink("/proc/self/exe", self, sizeof(self) - 1) < 0)
		return 2;
	conf_self = self;
	if (argc == 3 && !strcmp(argv[1], "--peer"))
		return conf_peer_main(atoi(argv[2]));
	if (argc > 1 && !strcmp(argv[1], "--exec-child"))
		return conf_exec_child(argc, argv);
	for (i = 1; i < argc && argv[i][0] == '-'; i++) {
		const char *val = i + 1 < argc ? argv[i + 1] : "";

		if (!strcmp(argv[i], "--list")) {
			list = true;
		} else if (!strcmp(argv[i], "--two")) {
			conf_two = true;
		} else if (!strcmp(argv[i], "--peer-preload")) {
			peer_preload = val;
			i++;
		} else if (!strcmp(argv[i], "--jobs")) {
			jobs_max = atol(val);
			i++;
		} else if (!strcmp(argv[i], "--timeout")) {
			timeout_ms = atol(val) * 1000;
			i++;
		} else if (!strcmp(argv[i], "--filter")) {
			if (regcomp(&re_buf, val, REG_EXTENDED | REG_NOSUB))
				return 2;
			re = &re_buf;
			i++;
		} else {
			fprintf(stderr, "conformance: %s?\n", argv[i]);
			return 2;
		}
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	env();
	/* cppcheck-suppress comparePointers */
	total = (size_t)(__stop_conf_cases - __start_conf_cases);
	jobs = calloc(total + 1, sizeof(*jobs));
	texts = mmap(NULL, (total + 1) * sizeof(*texts), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!jobs || texts == MAP_FAILED)
		return 2;
	/* cppcheck-suppress comparePointers */
	for (c = __start_conf_cases; c < __stop_conf_cases; c++) {
		if (!list && ((*c)->flags & (conf_two ? ONE : TWO)))
			continue;
		if (!named((*c)->name, argv + i, re))
			continue;
		jobs[n].c = *c;
		jobs[n].text = &texts[n];
		n++;
	}
	qsort(jobs, n, sizeof(*jobs), by_name);
	if (list) {
		for (size_t j = 0; j < n; j++)
			printf("%s %s%s%s\n", jobs[j].c->name, jobs[j].c->flags & ONE ? "one " : "",
			       jobs[j].c->flags & TWO ? "two " : "",
			       jobs[j].c->flags & NOSTATE ? "nostate" : "");
		return 0;
	}
	if (!n) {
		fprintf(stderr, "conformance: no such case\n");
		return 2;
	}
	run_all(jobs, n);
	return 0;
}
