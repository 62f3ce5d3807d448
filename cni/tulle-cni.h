// SPDX-License-Identifier: Apache-2.0
/* What the parts of the CNI executable share. tulle-cni.c has the overview. */
#pragma once

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The test build has short deadlines, so that testing them takes no time. */
#ifdef TEST_BUILD
enum { ADD_MS = 400, CHECK_MS = 400, DEL_MS = 400, STATUS_MS = 400, GC_MS = 400 };
enum { STDIN_MS = 2000, LOCK_MS = 400, QUEUE_MAX = 256 };
#else
enum { ADD_MS = 60000, CHECK_MS = 30000, DEL_MS = 10000, STATUS_MS = 10000, GC_MS = 10000 };
enum { STDIN_MS = 5000, LOCK_MS = 5000, QUEUE_MAX = 256 };
#endif

enum { HEADER_MAX = 64 * 1024, CONFIG_MAX = 1024 * 1024, ANSWER_MAX = 1024 * 1024 };

/* CNI SPEC, section 5, "Error"; from 100 on the codes are ours. */
enum code {
	INCOMPATIBLE_VERSION = 1,
	INVALID_ENVIRONMENT = 4,
	IO_FAILURE = 5,
	DECODING_FAILURE = 6,
	TRY_AGAIN_LATER = 11,
	NOT_AVAILABLE = 50,
	CHECK_FAILED = 100,
};

enum verb { ADD, DEL, CHECK, STATUS, GC, VERSION, VERBS };

struct span {
	const char *data;
	size_t length;
};

/* Bytes under construction. What does not fit is dropped and remembered, so that only the end has to be checked. */
struct buffer {
	char *data;
	size_t length, capacity;
	bool overflow;
};

/* One process, one call: what it is about. */
struct call {
	enum verb verb;
	const char *verb_name;
	/* Monotonic milliseconds. */
	int64_t deadline;
	/* The version to answer in: the configuration's if that is a known one. */
	const char *version;
	bool version_known;
	const char *run_dir;
	struct span config;
	struct buffer request;
};
extern struct call call;

/* output.c */
void append(struct buffer *to, const char *data, size_t length);
void append_text(struct buffer *to, const char *text);
void append_json(struct buffer *to, const char *text);
bool write_all(int fd, const char *data, size_t length);
/* The one way out with an error: the spec's object on standard output, exit code 1. `details` may be NULL. */
__attribute__((format(printf, 3, 4))) _Noreturn void die(enum code code, const char *details, const char *format, ...);

/* json.c */
bool find_value(struct span json, const char *quoted_key, struct span *value);

/* tulle-cni.c */
int64_t now_ms(void);
/* True once `events`, or an error, are there; false at the end of the time. */
bool wait_for(int fd, short events, int64_t end);

/* agent.c */
enum outcome { ANSWERED, TIMED_OUT, BROKEN };
struct answer {
	int exit_code;
	struct span output;
};
/* A connected socket, or -1 and errno. */
int connect_agent(void);
/* Sends the request, receives the whole answer, closes the socket. */
enum outcome exchange(int fd, struct answer *answer);
/* Returns the exit code of the process. */
int print_answer(const struct answer *answer);

/* delete_queue.c */
struct queue {
	int run_fd, lock_fd;
};
struct queue lock_queue(void);
void unlock_queue(struct queue queue);
void require_container_id(const char *id);
void store_request(struct queue queue, const char *container_id, const char *interface);

/* loopback.c */
int loopback(void);
