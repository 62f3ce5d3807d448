// SPDX-License-Identifier: Apache-2.0
/*
 * nb: small packets and streams between two pods. Both ends are pinned to a CPU, usually the same one: what is counted
 * then is what the path costs, not how long an idle CPU takes to wake up.
 *
 *     nb serve PORT CPU                             says "ready"; ends with its standard input
 *     nb rr|crr|udp|stream ADDRESS PORT SECONDS CPU
 *
 * rr: one byte there, one byte back over one connection. crr: the same with a connection each, which the server closes
 * first. udp: datagrams of 18 bytes as fast as they can be sent; those that arrived are counted. stream: bytes in one
 * connection. The client prints
 *
 *     {"count":N,"sent":N,"us":N,"cpuUs":N,"mss":N,"p50Ns":N,"p99Ns":N}
 *
 * with the CPU time of both ends. Latencies are of single exchanges (rr), of connect (crr), else 0. A wait of more than
 * DEADLINE_S for the other end is a failure.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { DATAGRAM_BYTES = 18, BATCH = 64, BLOCK_BYTES = 128 * 1024, MAX_LATENCIES = 1 << 20, DEADLINE_S = 10 };
enum { RECEIVE_BUFFER_BYTES = 64 << 20 };
/* Ports from the first: echo and datagrams, one byte a connection, stream, what the server counted. */
enum { ECHO, ONCE, SINK, COUNTED };

/* The server's counters, sent as they are: both ends are this program on one machine. */
struct counted {
	long datagrams;
	long last_ns; /* arrival of the last one, CLOCK_MONOTONIC */
	long bytes;
	long cpu_us;
};

static atomic_long datagrams, last_ns, bytes;
static unsigned latencies[MAX_LATENCIES];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static long now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static long cpu_us(void)
{
	struct rusage usage;
	getrusage(RUSAGE_SELF, &usage);
	return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000L + usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
}

static void pin(int cpu)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity");
}

static void set_option(int fd, int level, int name, int value)
{
	if (setsockopt(fd, level, name, &value, sizeof(value)))
		die("setsockopt");
}

static int listen_on(int type, int port)
{
	struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons((unsigned short)port)};
	int fd = socket(AF_INET6, type | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket");
	set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
	if (bind(fd, (struct sockaddr *)&any, sizeof(any)))
		die("bind");
	if (type == SOCK_STREAM && listen(fd, 128))
		die("listen");
	return fd;
}

static int next_connection(int listener)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		die("accept4");
	set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	return fd;
}

static void *serve_echo(void *listener)
{
	char byte;
	for (;;) {
		int fd = next_connection(*(int *)listener);
		while (read(fd, &byte, 1) == 1 && write(fd, &byte, 1) == 1)
			;
		close(fd);
	}
	return NULL;
}

static void *serve_once(void *listener)
{
	char byte;
	for (;;) {
		int fd = next_connection(*(int *)listener);
		if (read(fd, &byte, 1) == 1 && write(fd, &byte, 1) != 1)
			perror("write");
		close(fd);
	}
	return NULL;
}

static void *serve_sink(void *listener)
{
	static char block[BLOCK_BYTES];
	for (;;) {
		int fd = next_connection(*(int *)listener);
		ssize_t n;
		while ((n = read(fd, block, sizeof(block))) > 0) {
			atomic_fetch_add(&bytes, n);
			atomic_store(&last_ns, now_ns());
		}
		close(fd);
	}
	return NULL;
}

static void *serve_counted(void *listener)
{
	for (;;) {
		int fd = next_connection(*(int *)listener);
		struct counted all = {atomic_load(&datagrams), atomic_load(&last_ns), atomic_load(&bytes), cpu_us()};
		if (write(fd, &all, sizeof(all)) != sizeof(all))
			perror("write");
		close(fd);
	}
	return NULL;
}

static void *serve_datagrams(void *socket)
{
	static char payload[BATCH][DATAGRAM_BYTES];
	struct iovec parts[BATCH];
	struct mmsghdr messages[BATCH] = {0};
	for (int i = 0; i < BATCH; i++) {
		parts[i] = (struct iovec){payload[i], DATAGRAM_BYTES};
		messages[i].msg_hdr.msg_iov = &parts[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	for (;;) {
		int n = recvmmsg(*(int *)socket, messages, BATCH, MSG_WAITFORONE, NULL);
		if (n < 0 && errno != EINTR)
			die("recvmmsg");
		atomic_fetch_add(&datagrams, n);
		atomic_store(&last_ns, now_ns());
	}
	return NULL;
}

static int serve(int port)
{
	static int fds[5];
	static void *(*const servers[])(void *) = {serve_echo, serve_once, serve_sink, serve_counted, serve_datagrams};
	char byte;
	for (int i = 0; i < 5; i++) {
		pthread_t id;
		bool is_datagrams = i == 4;
		fds[i] = is_datagrams ? listen_on(SOCK_DGRAM, port) : listen_on(SOCK_STREAM, port + i);
		/* What the client sends in one turn on their common CPU has to fit. */
		if (is_datagrams)
			set_option(fds[i], SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES);
		if (pthread_create(&id, NULL, servers[i], &fds[i]))
			die("pthread_create");
	}
	puts("ready");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}

static struct addrinfo *peer[COUNTED + 1];

static void resolve(const char *address, int port)
{
	struct addrinfo hints = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_STREAM};
	for (int i = ECHO; i <= COUNTED; i++) {
		char service[8];
		snprintf(service, sizeof(service), "%d", port + i);
		if (getaddrinfo(address, service, &hints, &peer[i])) {
			fprintf(stderr, "cannot use address %s\n", address);
			exit(2);
		}
	}
}

static int connect_to(int which, int type)
{
	const struct addrinfo *to = peer[which];
	int fd = socket(to->ai_family, type | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket");
	if (connect(fd, to->ai_addr, to->ai_addrlen))
		die("connect");
	return fd;
}

static struct counted ask_server(void)
{
	struct counted all;
	int fd = connect_to(COUNTED, SOCK_STREAM);
	if (recv(fd, &all, sizeof(all), MSG_WAITALL) != sizeof(all))
		die("recv");
	close(fd);
	return all;
}

static int mss_of(int fd)
{
	struct tcp_info info = {0};
	socklen_t length = sizeof(info);
	getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length);
	return (int)info.tcpi_snd_mss;
}

static void exchange(int fd)
{
	char byte = 'x';
	if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
		die("exchange");
}

struct outcome {
	long count, sent;
	long end_ns;
	int mss;
	int latencies;
};

static void note_latency(struct outcome *outcome, long ns)
{
	if (outcome->latencies < MAX_LATENCIES)
		latencies[outcome->latencies++] = (unsigned)ns;
}

static void run_rr(struct outcome *outcome, long until)
{
	int fd = connect_to(ECHO, SOCK_STREAM);
	set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	for (long at = now_ns(), next; at < until; at = next) {
		exchange(fd);
		next = now_ns();
		note_latency(outcome, next - at);
		outcome->count++;
	}
	outcome->mss = mss_of(fd);
	close(fd);
}

static void run_crr(struct outcome *outcome, long until)
{
	char byte;
	for (long at = now_ns(); at < until; at = now_ns()) {
		int fd = connect_to(ONCE, SOCK_STREAM);
		note_latency(outcome, now_ns() - at);
		exchange(fd);
		if (outcome->count++ == 0)
			outcome->mss = mss_of(fd);
		if (read(fd, &byte, 1) != 0)
			die("end of the connection");
		close(fd);
	}
}

/* The clock is asked once a batch; the loss of a full queue of this end is no datagram sent. */
static void run_udp(struct outcome *outcome, long until, struct counted before)
{
	static const char payload[DATAGRAM_BYTES];
	int fd = connect_to(ECHO, SOCK_DGRAM);
	while (now_ns() < until)
		for (int i = 0; i < BATCH; i++)
			outcome->sent += send(fd, payload, sizeof(payload), 0) == sizeof(payload);
	struct counted now = ask_server();
	/* What is still under way comes, or nothing more does for a while. */
	for (long quiet_ns = 50000000; now.datagrams - before.datagrams < outcome->sent; now = ask_server()) {
		if (now_ns() - (now.last_ns > until ? now.last_ns : until) > quiet_ns)
			break;
		usleep(1000);
	}
	outcome->count = now.datagrams - before.datagrams;
	outcome->end_ns = now.last_ns;
	close(fd);
}

static void run_stream(struct outcome *outcome, long until, struct counted before)
{
	static const char block[BLOCK_BYTES];
	char byte;
	int fd = connect_to(SINK, SOCK_STREAM);
	while (now_ns() < until)
		if (write(fd, block, sizeof(block)) < 0)
			die("write");
	outcome->mss = mss_of(fd);
	shutdown(fd, SHUT_WR);
	while (read(fd, &byte, 1) > 0)
		;
	struct counted now = ask_server();
	outcome->count = now.bytes - before.bytes;
	outcome->end_ns = now.last_ns;
	close(fd);
}

static int compare(const void *a, const void *b)
{
	unsigned left = *(const unsigned *)a, right = *(const unsigned *)b;
	return (left > right) - (left < right);
}

static int measure(const char *what, double seconds)
{
	struct outcome outcome = {0};
	alarm((unsigned)seconds + DEADLINE_S);
	struct counted before = ask_server();
	long own_us = cpu_us(), start = now_ns(), until = start + (long)(seconds * 1e9);
	if (strcmp(what, "rr") == 0)
		run_rr(&outcome, until);
	else if (strcmp(what, "crr") == 0)
		run_crr(&outcome, until);
	else if (strcmp(what, "udp") == 0)
		run_udp(&outcome, until, before);
	else
		run_stream(&outcome, until, before);
	long end = outcome.end_ns ? outcome.end_ns : now_ns();
	own_us = cpu_us() - own_us;
	int n = outcome.latencies;
	qsort(latencies, (size_t)n, sizeof(latencies[0]), compare);
	printf("{\"count\":%ld,\"sent\":%ld,\"us\":%ld,\"cpuUs\":%ld,\"mss\":%d,\"p50Ns\":%u,\"p99Ns\":%u}\n", outcome.count,
	       outcome.sent, (end - start) / 1000, own_us + ask_server().cpu_us - before.cpu_us, outcome.mss,
	       n ? latencies[n / 2] : 0, n ? latencies[(long)n * 99 / 100] : 0);
	return 0;
}

int main(int argc, char *argv[])
{
	signal(SIGPIPE, SIG_IGN);
	if (argc == 4 && strcmp(argv[1], "serve") == 0) {
		pin(atoi(argv[3]));
		return serve(atoi(argv[2]));
	}
	if (argc == 6) {
		pin(atoi(argv[5]));
		resolve(argv[2], atoi(argv[3]));
		return measure(argv[1], atof(argv[4]));
	}
	fprintf(stderr, "usage: nb serve PORT CPU | nb rr|crr|udp|stream ADDRESS PORT SECONDS CPU\n");
	return 2;
}
