/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The first half of an SCTP association (RFC 9260 section 5.1), over raw sockets: for kernels that track and translate SCTP
 * without having sockets of it.
 *
 *   sctp-init answer TAG      answers each INIT with an INIT ACK that has this tag, in both families, until it is killed
 *   sctp-init ask IP PORT     sends an INIT and prints `TAG IP PORT` of the answer, or the errno, or `silent`
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { INIT = 1, INIT_ACK = 2 };

struct packet {
	uint16_t source, destination; /* network order, as all but the checksum */
	uint32_t tag;
	uint32_t checksum; /* CRC32c, least significant byte first */
	uint8_t type, flags;
	uint16_t length; /* of the chunk */
	uint32_t initiate_tag, window;
	uint16_t outbound, inbound;
	uint32_t tsn;
} __attribute__((packed));

_Static_assert(sizeof(struct packet) == 32, "packet");

static uint32_t crc32c(const uint8_t *bytes, size_t count)
{
	uint32_t crc = ~0u;

	for (size_t i = 0; i < count; i++) {
		crc ^= bytes[i];
		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0);
	}
	return ~crc;
}

static struct packet make(uint8_t type, uint16_t source, uint16_t destination, uint32_t tag, uint32_t initiate_tag)
{
	struct packet packet = {
		.source = source, .destination = destination, .tag = tag, .type = type, .length = htons(20),
		.initiate_tag = initiate_tag, .window = htonl(65536), .outbound = htons(1), .inbound = htons(1),
		.tsn = htonl(1),
	};

	packet.checksum = crc32c((uint8_t *)&packet, sizeof(packet));
	return packet;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int open_raw(int family)
{
	int fd = socket(family, SOCK_RAW, IPPROTO_SCTP);

	if (fd < 0)
		fail("socket");
	return fd;
}

/* One packet with one chunk of the type, whatever follows in it. IPv4 comes with its header. */
static int receive(int fd, int family, uint8_t type, struct packet *packet, struct sockaddr_storage *from)
{
	uint8_t bytes[2048];
	socklen_t size = sizeof(*from);
	ssize_t count = recvfrom(fd, bytes, sizeof(bytes), 0, (struct sockaddr *)from, &size);
	size_t header = family == AF_INET ? 4 * (bytes[0] & 15) : 0;

	if (count < 0)
		return -1;
	if ((size_t)count < header + sizeof(*packet))
		return 0;
	memcpy(packet, bytes + header, sizeof(*packet));
	return packet->type == type;
}

static void answer(uint32_t tag)
{
	static const int families[] = { AF_INET, AF_INET6 };
	struct pollfd fds[2];

	for (int i = 0; i < 2; i++)
		fds[i] = (struct pollfd){ .fd = open_raw(families[i]), .events = POLLIN };
	printf("ready\n");
	fflush(stdout);
	while (poll(fds, 2, -1) > 0) {
		for (int i = 0; i < 2; i++) {
			struct sockaddr_storage from = {};
			struct packet asked, reply;

			if (!(fds[i].revents & POLLIN) || receive(fds[i].fd, families[i], INIT, &asked, &from) <= 0)
				continue;
			reply = make(INIT_ACK, asked.destination, asked.source, asked.initiate_tag, htonl(tag));
			if (families[i] == AF_INET6)
				((struct sockaddr_in6 *)&from)->sin6_port = 0;
			sendto(fds[i].fd, &reply, sizeof(reply), 0, (struct sockaddr *)&from,
			       families[i] == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6));
		}
	}
}

static void ask(const char *ip, int port)
{
	struct sockaddr_in v4 = { .sin_family = AF_INET };
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6 };
	int family = inet_pton(AF_INET, ip, &v4.sin_addr) == 1 ? AF_INET : AF_INET6;
	uint16_t own = htons(20000 + getpid() % 20000);
	uint32_t tag = htonl(getpid());
	struct packet reply, init = make(INIT, own, htons(port), 0, tag);
	struct pollfd fd = { .fd = open_raw(family), .events = POLLIN };
	struct sockaddr_storage from;
	int error;

	if (family == AF_INET6 && inet_pton(AF_INET6, ip, &v6.sin6_addr) != 1)
		fail(ip);
	/* What is not connected hears nothing of a refusal. */
	error = family == AF_INET ? connect(fd.fd, (struct sockaddr *)&v4, sizeof(v4)) :
				    connect(fd.fd, (struct sockaddr *)&v6, sizeof(v6));
	if (error || send(fd.fd, &init, sizeof(init), 0) < 0) {
		printf("%s\n", strerrorname_np(errno));
		return;
	}
	while (poll(&fd, 1, 3000) > 0) {
		int found = receive(fd.fd, family, INIT_ACK, &reply, &from);

		if (found < 0) {
			printf("%s\n", strerrorname_np(errno));
			return;
		}
		/* Raw sockets see what is meant for others, too. */
		if (found && reply.tag == tag && reply.destination == own) {
			printf("%u %s %u\n", ntohl(reply.initiate_tag), ip, ntohs(reply.source));
			return;
		}
	}
	printf("silent\n");
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "answer") == 0)
		answer(strtoul(argv[2], NULL, 10));
	else if (argc == 4 && strcmp(argv[1], "ask") == 0)
		ask(argv[2], atoi(argv[3]));
	else
		return 2;
	return 0;
}
