// SPDX-License-Identifier: Apache-2.0
/* One request to the agent, one answer back. */
#define _GNU_SOURCE
#include "tulle-cni.h"

#include <ctype.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

int connect_agent(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int64_t left = call.deadline - now_ms();
	/* How long a full backlog is waited for; zero would be for ever. */
	struct timeval timeout = { .tv_sec = left > 0 ? (time_t)(left / 1000) : 0, .tv_usec = left > 0 ? (left % 1000) * 1000 + 1 : 1 };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), error;

	if (fd < 0)
		return -1;
	snprintf(address.sun_path, sizeof address.sun_path, "%s/cni.sock", call.run_dir);
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
	if (connect(fd, (const struct sockaddr *)&address, sizeof address) == 0)
		return fd;
	error = errno;
	close(fd);
	errno = error;
	return -1;
}

static enum outcome send_request(int fd)
{
	size_t sent = 0;

	while (sent < call.request.length) {
		ssize_t got = send(fd, call.request.data + sent, call.request.length - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (got > 0)
			sent += (size_t)got;
		else if (errno == EAGAIN && !wait_for(fd, POLLOUT, call.deadline))
			return TIMED_OUT;
		else if (errno != EAGAIN && errno != EINTR)
			break; /* the agent may have answered and closed before it read everything */
	}
	shutdown(fd, SHUT_WR);
	return ANSWERED;
}

/*
 * An answer broke off, or is not all here yet, if it has no exit code, does not end in a newline, or lacks the text that
 * must be there: the result of an ADD, the object of an error.
 */
static bool parse_answer(struct span received, struct answer *answer)
{
	size_t at = 0;

	answer->exit_code = 0;
	for (; at < received.length && at < 3 && isdigit((unsigned char)received.data[at]); at++)
		answer->exit_code = answer->exit_code * 10 + (received.data[at] - '0');
	if (at == 0 || at == received.length || received.data[at] != '\n' || answer->exit_code > 255)
		return false;
	answer->output = (struct span){ received.data + at + 1, received.length - at - 1 };
	if (answer->output.length == 0)
		return answer->exit_code == 0 && call.verb != ADD;
	return received.data[received.length - 1] == '\n';
}

/* Not further than to the end of the answer: the runtime need not wait until the agent has closed the connection, too. */
static enum outcome receive_answer(int fd, struct answer *answer)
{
	static char bytes[ANSWER_MAX];
	struct span received = { bytes, 0 };

	while (received.length < sizeof bytes) {
		ssize_t got = recv(fd, bytes + received.length, sizeof bytes - received.length, MSG_DONTWAIT);
		if (got > 0) {
			received.length += (size_t)got;
			if (parse_answer(received, answer))
				return ANSWERED;
		} else if (got == 0 || (errno != EAGAIN && errno != EINTR))
			return BROKEN;
		else if (errno == EAGAIN && !wait_for(fd, POLLIN, call.deadline))
			return TIMED_OUT;
	}
	return BROKEN;
}

enum outcome exchange(int fd, struct answer *answer)
{
	enum outcome outcome = send_request(fd);

	if (outcome == ANSWERED)
		outcome = receive_answer(fd, answer);
	close(fd);
	return outcome;
}

int print_answer(const struct answer *answer)
{
	return write_all(STDOUT_FILENO, answer->output.data, answer->output.length) ? answer->exit_code : 1;
}
