// SPDX-License-Identifier: Apache-2.0
/*
 * DEL without an agent: the request waits in <run dir>/delete-queue, one file an attachment.
 *
 * A starting agent holds <run dir>/delete-queue.lock exclusively until it has taken the files and listens; we hold it
 * shared from the second attempt to connect until the file is there. So a request reaches the agent on one way or the
 * other, whoever comes first. Past the bound the runtime is asked to try again (several at once may pass it together).
 */
#define _GNU_SOURCE
#include "tulle-cni.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define AWAY "cannot DEL: the tulle agent is not answering, and "

static _Noreturn void queue_failed(const char *file, int error)
{
	die(TRY_AGAIN_LATER, NULL, AWAY "%s%s: %s", call.run_dir, file, strerror(error));
}

/* The least that the agent needs; checked here because for a queued request it would be too late to complain. */
void require_container_id(const char *id)
{
	static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-";

	if (id == NULL || !isalnum((unsigned char)id[0]) || id[strspn(id, allowed)] != '\0')
		die(INVALID_ENVIRONMENT, NULL,
		    "cannot DEL: CNI_CONTAINERID: expected a letter or digit, then letters, digits, '_', '.', '-', got %.200s",
		    id == NULL || id[0] == '\0' ? "nothing" : id);
}

struct queue lock_queue(void)
{
	struct queue queue;
	int64_t end = now_ms() + LOCK_MS;

	if (mkdir(call.run_dir, 0700) != 0 && errno != EEXIST)
		queue_failed("", errno);
	queue.run_fd = open(call.run_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (queue.run_fd < 0)
		queue_failed("", errno);
	queue.lock_fd = openat(queue.run_fd, "delete-queue.lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (queue.lock_fd < 0)
		queue_failed("/delete-queue.lock", errno);
	/* flock has no time limit of its own, hence the steps. */
	while (flock(queue.lock_fd, LOCK_SH | LOCK_NB) != 0) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			queue_failed("/delete-queue.lock", errno);
		if (now_ms() >= end)
			queue_failed("/delete-queue.lock", ETIMEDOUT);
		poll(NULL, 0, 5);
	}
	return queue;
}

/* Does nothing for a queue that was never locked. */
void unlock_queue(struct queue queue)
{
	if (queue.lock_fd >= 0)
		close(queue.lock_fd);
	if (queue.run_fd >= 0)
		close(queue.run_fd);
}

/* FNV-1a with 64 bits (RFC 9923) of "<container id>/<interface>". */
static uint64_t hash_of(const char *container_id, const char *interface)
{
	const char *const parts[] = { container_id, "/", interface };
	uint64_t hash = UINT64_C(0xcbf29ce484222325);

	for (size_t i = 0; i < 3; i++)
		for (const char *at = parts[i]; *at != '\0'; at++)
			hash = (hash ^ (unsigned char)*at) * UINT64_C(0x100000001b3);
	return hash;
}

static bool is_full(int queue_fd)
{
	int files = 0, fd = openat(queue_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *entry;

	if (dir == NULL)
		queue_failed("/delete-queue", errno);
	while (files < QUEUE_MAX && (entry = readdir(dir)) != NULL)
		files += entry->d_name[0] != '.';
	closedir(dir);
	return files >= QUEUE_MAX;
}

/* Written beside and renamed, so that the agent never reads half a request; names with a dot are never requests. */
static void write_file(int queue_fd, const char *name)
{
	char beside[64];
	int fd;

	snprintf(beside, sizeof beside, ".%s.%d", name, (int)getpid());
	fd = openat(queue_fd, beside, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		queue_failed("/delete-queue", errno);
	if (!write_all(fd, call.request.data, call.request.length) || close(fd) != 0 ||
	    renameat(queue_fd, beside, queue_fd, name) != 0) {
		int error = errno;
		unlinkat(queue_fd, beside, 0);
		queue_failed("/delete-queue", error);
	}
}

/* The same DEL again replaces its file. */
void store_request(struct queue queue, const char *container_id, const char *interface)
{
	char name[32];
	int queue_fd;

	if (mkdirat(queue.run_fd, "delete-queue", 0700) != 0 && errno != EEXIST)
		queue_failed("/delete-queue", errno);
	queue_fd = openat(queue.run_fd, "delete-queue", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (queue_fd < 0)
		queue_failed("/delete-queue", errno);
	snprintf(name, sizeof name, "%016" PRIx64, hash_of(container_id, interface));
	if (faccessat(queue_fd, name, F_OK, 0) != 0 && is_full(queue_fd))
		die(TRY_AGAIN_LATER, "the log of this node's tulle agent says why it is not running", AWAY "%d deletions wait for it already",
		    QUEUE_MAX);
	write_file(queue_fd, name);
	close(queue_fd);
}
