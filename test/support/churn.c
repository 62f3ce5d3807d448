// SPDX-License-Identifier: Apache-2.0
/*
 * Many small runtimes at once, inside a lab node: eight processes that attach and detach pods by the installed CNI
 * executable, as libcni calls it, and now and then kill it in the middle. churn.ts has the other half.
 *
 *     churn PAIRS CONCURRENCY LIVE SEED KILL_PERCENT
 *
 * PAIRS pods are attached and detached again; up to LIVE of them stand at a time. What a runtime knows of a pod counts:
 * from the success of its ADD until its DEL is called, its addresses are its own. An address that two such pods have, a
 * CHECK that finds a pod damaged, and a call that never succeeds are faults: one line each on standard output. Lines of
 * `+` say that ten more pods were attached; the last line is counts, as JSON.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define EXECUTABLE "/opt/cni/bin/tulle"
#define CONFIG "{\"cniVersion\":\"1.0.0\",\"name\":\"tulle\",\"type\":\"tulle\""
enum { LIVE_MAX = 64, WORKERS_MAX = 32, ADDRESSES_MAX = 4096, IPS = 2 };
/* Longer than any agent takes to come back. A bound against hanging. */
enum { PATIENCE_MS = 60000, PAUSE_MS = 200, CHECK_PERCENT = 2, EARLY_END_PERCENT = 20, SAME_ID_PERCENT = 10 };
/* The code of a CHECK that found a difference, and of what is to be tried again. */
enum { CHECK_FAILED = 100, KILLED = -2, NO_ANSWER = -1 };

struct ip {
	uint8_t bytes[16];
};

struct pod {
	char id[65], netns[64], result[4096];
	struct ip ips[IPS];
	int ip_count;
};

/* Shared by all workers. An address is held by the slot that holds its bytes; a worker never dies holding the lock. */
static struct shared {
	atomic_int started, adds, dels, checks, retries, kills, faults;
	atomic_flag lock;
	int used;
	struct ip live[ADDRESSES_MAX];
} *shared;

static uint64_t random_state;
static int worker, host_netns, kill_percent;
static struct pod pods[LIVE_MAX];
static int pod_count, serial;
static char last_id[65];

static uint64_t draw(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static bool chance(int percent)
{
	return draw() % 100 < (uint64_t)percent;
}

static int64_t now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* As a runtime pauses before it tries again. */
static void pause_ms(int64_t ms)
{
	struct timespec time = { ms / 1000, ms % 1000 * 1000000 };
	nanosleep(&time, NULL);
}

__attribute__((format(printf, 1, 2))) static void fault(const char *format, ...)
{
	char line[512];
	va_list arguments;
	va_start(arguments, format);
	int length = vsnprintf(line, sizeof line - 1, format, arguments);
	va_end(arguments);
	if (length > (int)sizeof line - 2)
		length = sizeof line - 2;
	for (int i = 0; i < length; i++)
		line[i] = line[i] == '\n' ? ' ' : line[i];
	line[length] = '\n';
	if (write(STDOUT_FILENO, line, (size_t)length + 1) < 0)
		_exit(3);
	atomic_fetch_add(&shared->faults, 1);
}

static void give_up(const char *what)
{
	fault("cannot %s: %s", what, strerror(errno));
	_exit(3);
}

/* ---- Addresses of pods that stand --------------------------------------------------------------------------------- */

static int find_live(const struct ip *ip)
{
	for (int i = 0; i < shared->used; i++)
		if (memcmp(&shared->live[i], ip, sizeof *ip) == 0)
			return i;
	return -1;
}

static void claim(const struct pod *pod)
{
	char text[INET6_ADDRSTRLEN];

	while (atomic_flag_test_and_set(&shared->lock))
		sched_yield();
	for (int i = 0; i < pod->ip_count; i++) {
		if (find_live(&pod->ips[i]) >= 0)
			fault("%s was given to two pods", inet_ntop(AF_INET6, &pod->ips[i], text, sizeof text));
		if (shared->used < ADDRESSES_MAX)
			shared->live[shared->used++] = pod->ips[i];
	}
	atomic_flag_clear(&shared->lock);
}

static void unclaim(const struct pod *pod)
{
	while (atomic_flag_test_and_set(&shared->lock))
		sched_yield();
	for (int i = 0; i < pod->ip_count; i++) {
		int at = find_live(&pod->ips[i]);
		if (at >= 0)
			shared->live[at] = shared->live[--shared->used];
	}
	atomic_flag_clear(&shared->lock);
}

/* The values of "address" in a result, without their prefix lengths. */
static void read_ips(struct pod *pod)
{
	static const char key[] = "\"address\":\"";

	pod->ip_count = 0;
	for (const char *at = pod->result; (at = strstr(at, key)) != NULL && pod->ip_count < IPS;) {
		char text[INET6_ADDRSTRLEN + 8] = "::ffff:";
		at += sizeof key - 1;
		size_t length = strcspn(at, "/\"");
		size_t offset = memchr(at, ':', length) != NULL ? 0 : 7;
		if (length >= INET6_ADDRSTRLEN)
			continue;
		memcpy(text + offset, at, length);
		text[offset + length] = '\0';
		if (inet_pton(AF_INET6, text, &pod->ips[pod->ip_count]) == 1)
			pod->ip_count++;
	}
}

/* ---- Calls of the executable -------------------------------------------------------------------------------------- */

static int code_of(const char *answer)
{
	const char *at = strstr(answer, "\"code\":");
	return at != NULL ? atoi(at + 7) : NO_ANSWER;
}

/* Reads until the end; kills the process at a random moment if it shall not live. */
static bool follow(pid_t child, int out, bool doomed, char *answer, size_t capacity)
{
	struct timespec wait = { 0, (long)(draw() % 6000000) };
	struct pollfd end = { .fd = out, .events = POLLIN };
	size_t length = 0;
	bool killed = false;

	for (;;) {
		if (doomed && !killed && ppoll(&end, 1, &wait, NULL) == 0) {
			kill(child, SIGKILL);
			killed = true;
		}
		ssize_t got = read(out, answer + length, capacity - 1 - length);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		length += (size_t)got;
	}
	answer[length] = '\0';
	return killed;
}

/* 0, the code of the error object, or KILLED. */
static int call(const char *verb, const struct pod *pod, const char *netns, bool may_die, char *answer, size_t capacity)
{
	static char command[32], id[96], path[128], arguments[160], config[8192];
	static char *const environment[] = {
		command, id, path, arguments, "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL,
	};
	static char *const argv[] = { "tulle", NULL };
	int in[2], out[2], status;
	bool doomed = may_die && chance(kill_percent);

	snprintf(command, sizeof command, "CNI_COMMAND=%s", verb);
	snprintf(id, sizeof id, "CNI_CONTAINERID=%s", pod->id);
	snprintf(path, sizeof path, "CNI_NETNS=%s", netns);
	snprintf(arguments, sizeof arguments, "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=churn;K8S_POD_NAME=%.64s", pod->netns + 15);
	int length = snprintf(config, sizeof config, pod->result[0] != '\0' ? CONFIG ",\"prevResult\":%s}" : CONFIG "}", pod->result);
	if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0)
		give_up("make a pipe");
	if (write(in[1], config, (size_t)length) != length)
		give_up("write a configuration");
	close(in[1]);
	pid_t child = vfork();
	if (child == 0) {
		dup2(in[0], STDIN_FILENO);
		dup2(out[1], STDOUT_FILENO);
		execve(EXECUTABLE, argv, environment);
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	if (child < 0)
		give_up("start the executable");
	bool killed = follow(child, out[0], doomed, answer, capacity);
	close(out[0]);
	waitpid(child, &status, 0);
	if (killed)
		atomic_fetch_add(&shared->kills, 1);
	/* Killed after its work was done: its answer is as good as none. */
	if (killed || WIFSIGNALED(status))
		return KILLED;
	return status == 0 ? 0 : code_of(answer);
}

/* ---- Pods --------------------------------------------------------------------------------------------------------- */

static void create_netns(struct pod *pod)
{
	/* `ip netns add` made this directory a shared mount; here an ordinary one will do. */
	int fd = open(pod->netns, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);

	if (fd < 0)
		give_up("create a file for a namespace");
	close(fd);
	if (unshare(CLONE_NEWNET) != 0 || mount("/proc/thread-self/ns/net", pod->netns, NULL, MS_BIND, NULL) != 0 ||
	    setns(host_netns, CLONE_NEWNET) != 0)
		give_up("make a namespace");
}

static void remove_netns(const struct pod *pod)
{
	if (umount2(pod->netns, MNT_DETACH) != 0 || unlink(pod->netns) != 0)
		give_up("remove a namespace");
}

/* Until it succeeds, as kubelet would have it. */
static void detach(struct pod *pod)
{
	char answer[4096];
	int64_t end = now_ms() + PATIENCE_MS;
	bool early = chance(EARLY_END_PERCENT);

	unclaim(pod);
	if (early)
		remove_netns(pod);
	for (;;) {
		int code = call("DEL", pod, early ? "" : pod->netns, true, answer, sizeof answer);
		if (code == 0)
			break;
		atomic_fetch_add(&shared->retries, 1);
		if (now_ms() > end) {
			fault("DEL of %s does not succeed: code %d: %.300s", pod->id, code, answer);
			break;
		}
		if (code != KILLED)
			pause_ms(PAUSE_MS);
	}
	if (!early)
		remove_netns(pod);
	atomic_fetch_add(&shared->dels, 1);
}

/* A failed ADD is followed by a DEL and a new sandbox. */
static bool attach(struct pod *pod)
{
	*pod = (struct pod){ 0 };
	if (last_id[0] != '\0' && chance(SAME_ID_PERCENT)) {
		memcpy(pod->id, last_id, sizeof pod->id);
		last_id[0] = '\0';
	} else
		snprintf(pod->id, sizeof pod->id, "%016llx%016llx%032x", (unsigned long long)draw(), (unsigned long long)draw(), worker);
	snprintf(pod->netns, sizeof pod->netns, "/run/netns/cni-churn-%d-%d", worker, serial++);
	create_netns(pod);
	int code = call("ADD", pod, pod->netns, true, pod->result, sizeof pod->result);
	if (code != 0) {
		char answer[sizeof pod->result];
		memcpy(answer, pod->result, sizeof answer);
		pod->result[0] = '\0';
		/* 11: the agent is away, or not ready. */
		if (code != KILLED && code != 11)
			fault("ADD of %s: code %d: %.300s", pod->id, code, answer);
		atomic_fetch_add(&shared->retries, 1);
		detach(pod);
		atomic_fetch_sub(&shared->dels, 1);
		if (code != KILLED)
			pause_ms(PAUSE_MS);
		return false;
	}
	read_ips(pod);
	if (pod->ip_count == 0)
		fault("ADD of %s gave no address: %.300s", pod->id, pod->result);
	claim(pod);
	if (atomic_fetch_add(&shared->adds, 1) % 10 == 9 && write(STDOUT_FILENO, "+\n", 2) < 0)
		_exit(3);
	return true;
}

static void check(const struct pod *pod)
{
	char answer[4096];
	int code = call("CHECK", pod, pod->netns, false, answer, sizeof answer);

	if (code == CHECK_FAILED)
		fault("CHECK of %s: %.400s", pod->id, answer);
	if (code == 0)
		atomic_fetch_add(&shared->checks, 1);
}

static void detach_one(int at)
{
	struct pod pod = pods[at];

	pods[at] = pods[--pod_count];
	detach(&pod);
	memcpy(last_id, pod.id, sizeof last_id);
}

static void work(int pairs, int live)
{
	int64_t last = now_ms();

	while (atomic_fetch_add(&shared->started, 1) < pairs) {
		while (!attach(&pods[pod_count]))
			if (now_ms() > last + PATIENCE_MS) {
				fault("no ADD succeeds for %d s", PATIENCE_MS / 1000);
				return;
			}
		last = now_ms();
		pod_count++;
		if (chance(CHECK_PERCENT))
			check(&pods[draw() % (uint64_t)pod_count]);
		/* The number of pods goes up and down all the way between none and the most. */
		if (pod_count == live || chance(45))
			for (int n = 1 + (int)(draw() % 3); n > 0 && pod_count > 0; n--)
				detach_one((int)(draw() % (uint64_t)pod_count));
	}
	while (pod_count > 0)
		detach_one(pod_count - 1);
}

int main(int argc, char **argv)
{
	if (argc != 6) {
		fprintf(stderr, "usage: churn PAIRS CONCURRENCY LIVE SEED KILL_PERCENT\n");
		return 2;
	}
	int pairs = atoi(argv[1]), workers = atoi(argv[2]), live = atoi(argv[3]) / workers;
	uint64_t seed = strtoull(argv[4], NULL, 10);
	if (workers < 1 || workers > WORKERS_MAX || live < 1 || live > LIVE_MAX)
		return 2;
	kill_percent = atoi(argv[5]);
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	host_netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	if (shared == MAP_FAILED || host_netns < 0 || (mkdir("/run/netns", 0755) != 0 && errno != EEXIST))
		return 3;
	for (worker = 0; worker < workers; worker++) {
		if (fork() != 0)
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		random_state = (seed * WORKERS_MAX + (uint64_t)worker + 1) * 0x9e3779b97f4a7c15;
		work(pairs, live);
		return 0;
	}
	int status, failed = 0;
	while (wait(&status) > 0)
		failed += status != 0;
	printf("{\"adds\":%d,\"dels\":%d,\"checks\":%d,\"retries\":%d,\"kills\":%d,\"faults\":%d}\n", shared->adds, shared->dels,
	       shared->checks, shared->retries, shared->kills, shared->faults + failed);
	return 0;
}
