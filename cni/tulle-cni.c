// SPDX-License-Identifier: Apache-2.0
/*
 * tulle-cni: the executable that a container runtime calls for every pod (CNI SPEC 1.1.0, section 2).
 *
 * It decides nothing. It relays the runtime's environment and standard input to the agent's Unix socket, prints the
 * answer, and knows only what must work without an agent: VERSION, the message that the agent is away, and a queue for
 * DEL, so that a pod can always be removed. Under the name `loopback` it is the plugin of that name, which some runtimes
 * ask for before ours.
 *
 * Request:  "TULLE1", then NAME=value strings, then an empty string, each ended by NUL; then standard input; then the
 *           writing side is closed. A request that is queued is stored as these same bytes.
 * Answer:   the exit code in decimal, a newline, and what goes to standard output, which ends in a newline if not empty.
 * The other side is frame.ts.
 *
 * Everything is bounded: buffers are static, and every wait has a deadline.
 */
#define _GNU_SOURCE
#include "tulle-cni.h"

#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define RUNTIME_NAME_MAX 64

#ifndef TULLE_VERSION
#define TULLE_VERSION "unknown"
#endif

static const char *const verb_names[VERBS] = { "ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION" };
static const int64_t limits_ms[VERBS] = { ADD_MS, DEL_MS, CHECK_MS, STATUS_MS, GC_MS, STATUS_MS };

static const char *const versions[] = { "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0" };
#define VERSIONS (sizeof versions / sizeof versions[0])

static char config_bytes[CONFIG_MAX + 1];
static char request_bytes[HEADER_MAX + CONFIG_MAX];

struct call call = {
	.version = "1.1.0",
	.run_dir = "/run/tulle",
	.config = { config_bytes, 0 },
	.request = { request_bytes, 0, sizeof request_bytes, false },
};

int64_t now_ms(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

bool wait_for(int fd, short events, int64_t end)
{
	struct pollfd poll_fd = { .fd = fd, .events = events };

	for (;;) {
		int64_t left = end - now_ms();
		int ready = poll(&poll_fd, 1, left > 0 ? (int)left : 0);
		if (ready != 0)
			return ready > 0 || errno != EINTR; /* of an error the next read or write says what it is */
		if (left <= 0)
			return false;
	}
}

/* ---- The configuration on standard input ------------------------------------------------------------------------ */

/* Nothing about the configuration keeps a DEL from being done: it goes on without, and so does VERSION. */
static void give_up_config(enum code code, const char *why)
{
	call.config.length = 0;
	if (call.verb != DEL && call.verb != VERSION)
		die(code, NULL, "cannot %s: network configuration on standard input: %s", call.verb_name, why);
}

static void read_config(void)
{
	int64_t end = now_ms() + STDIN_MS;

	for (;;) {
		if (!wait_for(STDIN_FILENO, POLLIN, end))
			return give_up_config(IO_FAILURE, "expected its end within 5 s, got none");
		ssize_t got = read(STDIN_FILENO, config_bytes + call.config.length, sizeof config_bytes - call.config.length);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return give_up_config(IO_FAILURE, strerror(errno));
		if (got == 0)
			return;
		call.config.length += (size_t)got;
		if (call.config.length > CONFIG_MAX)
			return give_up_config(DECODING_FAILURE, "expected at most 1 MiB, got more");
	}
}

static void choose_version(void)
{
	struct span value;

	if (!find_value(call.config, "\"cniVersion\"", &value))
		return;
	for (size_t i = 0; i < VERSIONS; i++) {
		size_t length = strlen(versions[i]);
		if (value.length == length + 2 && value.data[0] == '"' && memcmp(value.data + 1, versions[i], length) == 0) {
			call.version = versions[i];
			call.version_known = true;
		}
	}
}

static void take_config(void)
{
	read_config();
	choose_version();
}

/* ---- The request ------------------------------------------------------------------------------------------------ */

static void append_variable(const char *name, const char *value)
{
	append_text(&call.request, name);
	append_text(&call.request, "=");
	append(&call.request, value, strlen(value) + 1);
}

static void append_number(const char *name, uint64_t value)
{
	char text[24];
	snprintf(text, sizeof text, "%" PRIu64, value);
	append_variable(name, text);
}

/*
 * Which namespace the runtime sees under the path: the agent finds another one there if it lives among other mounts.
 * stat and not open, so that a path to a device or a pipe does nothing.
 */
static void append_netns_identity(const char *path)
{
	struct stat netns;

	if (stat(path, &netns) != 0)
		return append_number("TULLE_NETNS_ERROR", (uint64_t)errno);
	append_number("TULLE_NETNS_DEV", netns.st_dev);
	append_number("TULLE_NETNS_INO", netns.st_ino);
}

/*
 * The name of the program that calls: two runtimes of one host may use the same network, and what one of them does not
 * list is not for it to collect. An update replaces the program's file while it runs, which the kernel then marks.
 */
static void append_runtime(void)
{
	static const char mark[] = " (deleted)";
	char link[32], path[4096];

	snprintf(link, sizeof link, "/proc/%d/exe", (int)getppid());
	ssize_t length = readlink(link, path, sizeof path - 1);
	if (length <= 0)
		return;
	path[length] = '\0';
	char *end = strstr(path, mark);
	if (end != NULL && end[sizeof mark - 1] == '\0')
		*end = '\0';
	const char *slash = strrchr(path, '/');
	const char *name = slash != NULL ? slash + 1 : path;
	if (name[0] != '\0' && strlen(name) <= RUNTIME_NAME_MAX)
		append_variable("TULLE_RUNTIME", name);
}

static void build_request(void)
{
	static const char *const forwarded[] = {
		"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH", "CNI_NETNS_OVERRIDE",
	};
	const char *netns = getenv("CNI_NETNS");

	append(&call.request, "TULLE1", sizeof "TULLE1");
	for (size_t i = 0; i < sizeof forwarded / sizeof forwarded[0]; i++) {
		const char *value = getenv(forwarded[i]);
		if (value != NULL)
			append_variable(forwarded[i], value);
		if (call.request.overflow || call.request.length > HEADER_MAX - 256)
			die(INVALID_ENVIRONMENT, NULL, "cannot %s: %s: expected at most 64 KiB of CNI variables, got more",
			    call.verb_name, forwarded[i]);
	}
	if (netns != NULL && netns[0] != '\0')
		append_netns_identity(netns);
	append_runtime();
	append(&call.request, "", 1);
	append(&call.request, call.config.data, call.config.length);
}

/* ---- Verbs ------------------------------------------------------------------------------------------------------ */

static int answer_version(void)
{
	char out[256];
	struct buffer to = { out, 0, sizeof out, false };

	append_text(&to, "{\"cniVersion\":");
	append_json(&to, call.version);
	append_text(&to, ",\"supportedVersions\":[");
	for (size_t i = 0; i < VERSIONS; i++) {
		append_text(&to, i > 0 ? "," : "");
		append_json(&to, versions[i]);
	}
	append_text(&to, "]}\n");
	return write_all(STDOUT_FILENO, to.data, to.length) ? 0 : 1;
}

static int agent_unreachable(int error)
{
	bool away = error == ENOENT || error == ECONNREFUSED;
	enum code code = away || error == EAGAIN ? TRY_AGAIN_LATER : IO_FAILURE;
	char details[512];

	/* The agent collects by itself when it is back; nothing is lost. */
	if (away && call.verb == GC)
		return 0;
	snprintf(details, sizeof details, "%s/cni.sock: %s; the log of this node's tulle agent says why", call.run_dir, strerror(error));
	die(call.verb == STATUS ? NOT_AVAILABLE : code, details, "cannot %s: the tulle agent %s", call.verb_name,
	    away ? "is not running on this node" : "cannot be reached");
}

/* ADD, CHECK, STATUS and GC are the agent's. `fd` and `error` are what connect_agent() said. */
static int relay(int fd, int error)
{
	enum code code = call.verb == STATUS ? NOT_AVAILABLE : TRY_AGAIN_LATER;
	struct answer answer;

	if (fd < 0)
		return agent_unreachable(error);
	switch (exchange(fd, &answer)) {
	case ANSWERED:
		return print_answer(&answer);
	case TIMED_OUT:
		die(code, "the log of this node's tulle agent says what it waits for",
		    "cannot %s: expected an answer of the tulle agent within %" PRId64 " s, got none", call.verb_name,
		    limits_ms[call.verb] / 1000);
	case BROKEN:
	default:
		die(code, "the agent may have been restarted; its log says why", "cannot %s: the tulle agent's answer broke off",
		    call.verb_name);
	}
}

/* DEL is the agent's too, but succeeds without it, see delete_queue.c. */
static int delete(int fd)
{
	const char *container_id = getenv("CNI_CONTAINERID"), *interface = getenv("CNI_IFNAME");
	struct queue queue = { -1, -1 };
	struct answer answer;

	require_container_id(container_id);
	if (fd < 0) {
		queue = lock_queue();
		fd = connect_agent();
	}
	if (fd >= 0) {
		/* Not held while waiting for the agent, which may be waiting for the lock. */
		unlock_queue(queue);
		if (exchange(fd, &answer) == ANSWERED)
			return print_answer(&answer);
		queue = lock_queue();
	}
	store_request(queue, container_id, interface != NULL ? interface : "");
	unlock_queue(queue);
	return 0;
}

/* ---- main ------------------------------------------------------------------------------------------------------- */

static int usage(int exit_code)
{
	fprintf(stderr, "tulle-cni %s: a CNI plugin; container runtimes call it with CNI_COMMAND set.\nCNI versions:", TULLE_VERSION);
	for (size_t i = 0; i < VERSIONS; i++)
		fprintf(stderr, " %s", versions[i]);
	fprintf(stderr, "\n");
	return exit_code;
}

static void set_verb(const char *name)
{
	while (name != NULL && call.verb < VERBS && strcmp(verb_names[call.verb], name) != 0)
		call.verb++;
	if (name == NULL || call.verb == VERBS)
		die(INVALID_ENVIRONMENT, NULL, "cannot run: CNI_COMMAND: expected ADD, DEL, CHECK, STATUS, GC or VERSION, got %.200s",
		    name == NULL || name[0] == '\0' ? "none" : name);
	call.verb_name = verb_names[call.verb];
	call.deadline = now_ms() + limits_ms[call.verb];
}

static void set_run_dir(const char *dir)
{
	size_t most = sizeof((struct sockaddr_un *)NULL)->sun_path - sizeof "/cni.sock";

	if (dir == NULL || dir[0] == '\0')
		return;
	if (dir[0] != '/' || strlen(dir) > most)
		die(INVALID_ENVIRONMENT, NULL, "cannot %s: TULLE_RUN_DIR: expected an absolute path of at most %zu bytes, got %.200s",
		    call.verb_name, most, dir);
	call.run_dir = dir;
}

int main(int argc, char **argv)
{
	const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
	const char *name = slash != NULL ? slash + 1 : argc > 0 ? argv[0] : "";
	int fd, error;

	if (argc > 1 && strcmp(argv[1], "--version") == 0)
		return usage(0);
	if (getenv("CNI_COMMAND") == NULL && isatty(STDIN_FILENO))
		return usage(2);
	signal(SIGPIPE, SIG_IGN);
	set_verb(getenv("CNI_COMMAND"));
	if (call.verb == VERSION || strcmp(name, "loopback") == 0) {
		take_config();
		return call.verb == VERSION ? answer_version() : loopback();
	}
	set_run_dir(secure_getenv("TULLE_RUN_DIR"));
	/* Before the request is ready: meanwhile the agent wakes up and accepts. */
	fd = connect_agent();
	error = errno;
	take_config();
	build_request();
	return call.verb == DEL ? delete(fd) : relay(fd, error);
}
