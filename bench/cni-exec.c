// SPDX-License-Identifier: Apache-2.0
/*
 * cni-exec: calls CNI plugins as a runtime's libcni does, and times each call from before the process is made until it
 * has ended, with the CPU time of the process and those that it waited for. Its own share is one vfork-like spawn and two pipes, so that what is timed is the plugin.
 *
 *     cni-exec PLUGIN CONFIG [PLUGIN CONFIG]...
 *
 * The pairs are the chain of one network: ADD in order, each result handed to the next as prevResult; DEL in reverse, with
 * the last result. CONFIG is a JSON object as libcni passes it, with name and cniVersion. Each line of standard input is
 * answered by one line of JSON; pods are numbers below SLOTS, ranges end before their second number:
 *
 *     new FIRST END                 make the pods' network namespaces
 *     call VERB FIRST END THREADS   ADD or DEL
 *     mix FIRST END FIRST END       ADD of the first range one by one, while DEL and the end of the namespace go through
 *                                   the second; only the ADDs that began meanwhile are told, and how many DELs there were
 *     end FIRST END                 drop the namespaces
 *
 *     {"wallUs":N,"us":[N...],"cpuUs":[N...],"others":N,"failed":N,"message":"..."}
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SLOTS = 512, MAX_CHAIN = 4, MAX_RESULT = 16384, MAX_STDIN = 24576, MAX_THREADS = 64, ID_BYTES = 32 };

#define NETNS_DIR "/run/netns"

struct pod {
	char container_id[2 * ID_BYTES + 1];
	char netns[64];
	char result[MAX_RESULT];
	long us;
	long cpu_us;
	bool failed;
};

static struct pod pods[SLOTS];
static char *const *chain; /* PLUGIN CONFIG ... */
static int chain_length;
static int host_netns;

/* One command's work, shared by its threads. */
static bool is_add;
static int range_end;
static atomic_int next_slot;
static atomic_bool stopping;
static atomic_bool others_run;
static int others_done;
static int others_first, others_end;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static long now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void fill_environment(const struct pod *pod, const char *verb, char text[6][256], char *envp[7])
{
	const char *path = pod->netns;
	snprintf(text[0], sizeof(text[0]), "CNI_COMMAND=%s", verb);
	snprintf(text[1], sizeof(text[1]), "CNI_CONTAINERID=%s", pod->container_id);
	snprintf(text[2], sizeof(text[2]), "CNI_NETNS=%s", path);
	snprintf(text[3], sizeof(text[3]), "CNI_IFNAME=eth0");
	snprintf(text[4], sizeof(text[4]), "CNI_PATH=/opt/cni/bin:/usr/lib/cni");
	snprintf(text[5], sizeof(text[5]),
		 "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME=%s;K8S_POD_INFRA_CONTAINER_ID=%s",
		 strrchr(path, '/') + 1, pod->container_id);
	for (int i = 0; i < 6; i++)
		envp[i] = text[i];
	envp[6] = NULL;
}

/* The configuration, with the result so far put in as its last member. */
static int render_stdin(char *out, const char *config, const char *prev_result)
{
	int length = (int)strlen(config);
	if (prev_result[0] == '\0')
		return snprintf(out, MAX_STDIN, "%s", config);
	return snprintf(out, MAX_STDIN, "%.*s,\"prevResult\":%s}", length - 1, config, prev_result);
}

static int read_all(int fd, char *out)
{
	int length = 0;
	for (;;) {
		ssize_t n = read(fd, out + length, (size_t)(MAX_RESULT - 1 - length));
		if (n <= 0)
			break;
		length += (int)n;
	}
	out[length] = '\0';
	while (length > 0 && (out[length - 1] == '\n' || out[length - 1] == ' '))
		out[--length] = '\0';
	return length;
}

static long microseconds(struct timeval t)
{
	return t.tv_sec * 1000000 + t.tv_usec;
}

/* Runs one plugin to its end; what it prints goes to `out`, its CPU time is added. False when it fails. */
static bool run_plugin(const char *file, const char *stdin_text, int stdin_length, char *const envp[], char *out,
		       long *cpu_us)
{
	int in[2], answer[2], status = 0;
	struct rusage usage;
	pid_t pid;
	posix_spawn_file_actions_t actions;
	char *const argv[] = {(char *)file, NULL};

	if (pipe2(in, O_CLOEXEC) || pipe2(answer, O_CLOEXEC))
		die("pipe2");
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, in[0], 0);
	posix_spawn_file_actions_adddup2(&actions, answer[1], 1);
	if (write(in[1], stdin_text, (size_t)stdin_length) != stdin_length)
		die("write");
	close(in[1]);
	if (posix_spawn(&pid, file, &actions, NULL, argv, envp))
		die(file);
	close(in[0]);
	close(answer[1]);
	read_all(answer[0], out);
	if (wait4(pid, &status, 0, &usage) != pid)
		die("wait4");
	*cpu_us += microseconds(usage.ru_utime) + microseconds(usage.ru_stime);
	close(answer[0]);
	posix_spawn_file_actions_destroy(&actions);
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/* Timed: the whole chain. After DEL the result is forgotten. A failure leaves what the plugin said in its place. */
static void call(struct pod *pod, bool add)
{
	char text[6][256], *envp[7], in[MAX_STDIN], out[MAX_RESULT];
	long start = now_us();
	fill_environment(pod, add ? "ADD" : "DEL", text, envp);
	if (add)
		pod->result[0] = '\0';
	pod->failed = false;
	pod->cpu_us = 0;
	for (int i = 0; i < chain_length && !pod->failed; i++) {
		char *const *link = chain + 2 * (add ? i : chain_length - 1 - i);
		int length = render_stdin(in, link[1], pod->result);
		pod->failed = !run_plugin(link[0], in, length, envp, out, &pod->cpu_us);
		if (add || pod->failed)
			strcpy(pod->result, out);
	}
	if (!add && !pod->failed)
		pod->result[0] = '\0';
	pod->us = now_us() - start;
}

static void new_pod(struct pod *pod, int number)
{
	unsigned char random[ID_BYTES];
	int fd;
	if (getrandom(random, sizeof(random), 0) != sizeof(random))
		die("getrandom");
	for (int i = 0; i < ID_BYTES; i++)
		sprintf(pod->container_id + 2 * i, "%02x", random[i]);
	snprintf(pod->netns, sizeof(pod->netns), NETNS_DIR "/bench-%d-%.8s", number, pod->container_id);
	pod->result[0] = '\0';
	if ((fd = open(pod->netns, O_CREAT | O_EXCL | O_RDONLY | O_CLOEXEC, 0444)) < 0)
		die(pod->netns);
	close(fd);
	if (unshare(CLONE_NEWNET))
		die("unshare");
	if (mount("/proc/thread-self/ns/net", pod->netns, NULL, MS_BIND, NULL))
		die("mount");
	if (setns(host_netns, CLONE_NEWNET))
		die("setns");
}

static void end_pod(struct pod *pod)
{
	if (umount2(pod->netns, MNT_DETACH) || unlink(pod->netns))
		die(pod->netns);
}

static void *call_slots(void *unused)
{
	for (;;) {
		int slot = atomic_fetch_add(&next_slot, 1);
		if (slot >= range_end)
			return unused;
		call(&pods[slot], is_add);
	}
}

static void call_range(const char *verb, int first, int end, int threads)
{
	pthread_t ids[MAX_THREADS];
	is_add = strcmp(verb, "ADD") == 0;
	range_end = end;
	atomic_store(&next_slot, first);
	if (threads == 1) {
		call_slots(NULL);
		return;
	}
	for (int i = 0; i < threads; i++)
		if (pthread_create(&ids[i], NULL, call_slots, NULL))
			die("pthread_create");
	for (int i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
}

static void *delete_others(void *unused)
{
	others_done = 0;
	for (int slot = others_first; slot < others_end && !atomic_load(&stopping); slot++) {
		call(&pods[slot], false);
		if (pods[slot].failed) {
			fprintf(stderr, "DEL failed: %s\n", pods[slot].result);
			exit(1);
		}
		end_pod(&pods[slot]);
		others_done++;
	}
	atomic_store(&others_run, false);
	return unused;
}

/* Returns the end of the ADDs that began while others were deleted. */
static int mix(int first, int end)
{
	pthread_t id;
	int counted = end;
	atomic_store(&stopping, false);
	atomic_store(&others_run, true);
	if (pthread_create(&id, NULL, delete_others, NULL))
		die("pthread_create");
	for (int slot = first; slot < end; slot++) {
		if (!atomic_load(&others_run) && counted == end)
			counted = slot;
		call(&pods[slot], true);
	}
	atomic_store(&stopping, true);
	pthread_join(id, NULL);
	return counted;
}

static void print_string(const char *text)
{
	putchar('"');
	for (; *text; text++) {
		if (*text == '"' || *text == '\\')
			putchar('\\');
		putchar((unsigned char)*text < ' ' ? ' ' : *text);
	}
	putchar('"');
}

static void answer(long wall_us, int first, int end)
{
	int failed = 0;
	const char *message = "";
	printf("{\"wallUs\":%ld,\"us\":[", wall_us);
	for (int slot = first; slot < end; slot++) {
		printf(slot == first ? "%ld" : ",%ld", pods[slot].us);
		if (!pods[slot].failed)
			continue;
		failed++;
		message = pods[slot].result;
	}
	printf("],\"cpuUs\":[");
	for (int slot = first; slot < end; slot++)
		printf(slot == first ? "%ld" : ",%ld", pods[slot].cpu_us);
	printf("],\"others\":%d,\"failed\":%d,\"message\":", others_done, failed);
	print_string(message);
	printf("}\n");
	fflush(stdout);
}

static void obey(const char *line)
{
	char verb[8] = "";
	int first = 0, end = 0, threads = 1;
	long start = now_us();
	others_done = 0;
	if (sscanf(line, "new %d %d", &first, &end) == 2) {
		for (int slot = first; slot < end; slot++)
			new_pod(&pods[slot], slot);
		answer(now_us() - start, 0, 0);
	} else if (sscanf(line, "end %d %d", &first, &end) == 2) {
		for (int slot = first; slot < end; slot++)
			end_pod(&pods[slot]);
		answer(now_us() - start, 0, 0);
	} else if (sscanf(line, "call %7s %d %d %d", verb, &first, &end, &threads) == 4) {
		call_range(verb, first, end, threads);
		answer(now_us() - start, first, end);
	} else if (sscanf(line, "mix %d %d %d %d", &first, &end, &others_first, &others_end) == 4) {
		end = mix(first, end);
		answer(now_us() - start, first, end);
	} else {
		fprintf(stderr, "cannot obey %s", line);
		exit(2);
	}
}

int main(int argc, char *argv[])
{
	char line[256];
	if (argc < 3 || argc % 2 == 0 || argc > 1 + 2 * MAX_CHAIN) {
		fprintf(stderr, "usage: cni-exec PLUGIN CONFIG [PLUGIN CONFIG]...\n");
		return 2;
	}
	chain = argv + 1;
	chain_length = (argc - 1) / 2;
	if ((host_netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)) < 0)
		die("/proc/self/ns/net");
	mkdir(NETNS_DIR, 0755);
	while (fgets(line, sizeof(line), stdin))
		obey(line);
	return 0;
}
