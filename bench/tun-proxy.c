// SPDX-License-Identifier: Apache-2.0
/*
 * tun-proxy: packets between a TUN device and UDP one at a time, in the shape of flannel's `udp` backend: one thread,
 * each packet is one read, one look for the peer that has its destination, one datagram; and back. No offloads, no
 * batches, the system's own buffer sizes. TTL, ICMP errors and control are left out: no packet of a bench needs them.
 *
 *     tun-proxy DEVICE ADDRESS PORT PREFIX/LENGTH=PEER...     says "ready"; ends with its standard input
 *
 * The device is there. Addresses of the tunnel and of what goes through it may be of either family.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <netdb.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_PACKET_BYTES = 65536, MAX_ROUTES = 64 };

struct route {
	int family;
	unsigned bits;
	unsigned char prefix[16];
	struct sockaddr_storage peer;
	socklen_t peer_bytes;
};

static struct route routes[MAX_ROUTES];
static unsigned route_count;
static unsigned char packet[MAX_PACKET_BYTES];

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void refuse(const char *text)
{
	fprintf(stderr, "cannot use %s\n", text);
	exit(2);
}

static int open_tun(const char *device)
{
	struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		die("/dev/net/tun");
	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", device);
	if (ioctl(fd, TUNSETIFF, &request))
		die("TUNSETIFF");
	return fd;
}

static void resolve(const char *address, const char *port, struct sockaddr_storage *into, socklen_t *bytes)
{
	struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_DGRAM}, *found;
	if (getaddrinfo(address, port, &hints, &found))
		refuse(address);
	memcpy(into, found->ai_addr, found->ai_addrlen);
	*bytes = found->ai_addrlen;
	freeaddrinfo(found);
}

static int open_udp(const char *address, const char *port)
{
	struct sockaddr_storage own;
	socklen_t bytes;
	resolve(address, port, &own, &bytes);
	int fd = socket(own.ss_family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&own, bytes))
		die("UDP socket");
	return fd;
}

static void add_route(char *text, const char *port)
{
	char *peer = strchr(text, '='), *length = strchr(text, '/');
	if (!peer || !length || length > peer || route_count == MAX_ROUTES)
		refuse(text);
	*peer++ = *length++ = 0;
	struct route *route = &routes[route_count++];
	route->family = strchr(text, ':') ? AF_INET6 : AF_INET;
	route->bits = (unsigned)atoi(length);
	if (route->bits > (route->family == AF_INET ? 32u : 128u) || inet_pton(route->family, text, route->prefix) != 1)
		refuse(text);
	resolve(peer, port, &route->peer, &route->peer_bytes);
}

static bool covers(const struct route *route, int family, const unsigned char *address)
{
	unsigned bytes = route->bits / 8, rest = route->bits % 8;
	if (family != route->family || memcmp(route->prefix, address, bytes))
		return false;
	return rest == 0 || (route->prefix[bytes] ^ address[bytes]) >> (8 - rest) == 0;
}

/* NULL: no peer has it, or it is no whole packet. */
static const struct route *find_route(size_t bytes)
{
	int version = packet[0] >> 4;
	if ((version != 4 || bytes < 20) && (version != 6 || bytes < 40))
		return NULL;
	int family = version == 4 ? AF_INET : AF_INET6;
	const unsigned char *destination = packet + (version == 4 ? 16 : 24);
	for (unsigned i = 0; i < route_count; i++)
		if (covers(&routes[i], family, destination))
			return &routes[i];
	return NULL;
}

static bool would_block(const char *what)
{
	if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)
		return true;
	/* A peer that is not there yet, which a later call on the socket is told. */
	if (errno == ECONNREFUSED)
		return true;
	die(what);
	return false;
}

/* Each moves one packet and says whether there was one; what cannot be passed on is lost, as on any wire. */
static bool tun_to_udp(int tun, int udp)
{
	ssize_t bytes = read(tun, packet, sizeof(packet));
	if (bytes < 0)
		return !would_block("read");
	const struct route *route = find_route((size_t)bytes);
	if (route && sendto(udp, packet, (size_t)bytes, 0, (const struct sockaddr *)&route->peer, route->peer_bytes) < 0)
		would_block("sendto");
	return true;
}

static bool udp_to_tun(int tun, int udp)
{
	ssize_t bytes = recv(udp, packet, sizeof(packet), 0);
	if (bytes < 0)
		return !would_block("recv");
	if (write(tun, packet, (size_t)bytes) < 0 && errno != EINVAL)
		would_block("write");
	return true;
}

int main(int argc, char *argv[])
{
	if (argc < 5) {
		fprintf(stderr, "usage: tun-proxy DEVICE ADDRESS PORT PREFIX/LENGTH=PEER...\n");
		return 2;
	}
	int tun = open_tun(argv[1]), udp = open_udp(argv[2], argv[3]);
	for (int i = 4; i < argc; i++)
		add_route(argv[i], argv[3]);
	puts("ready");
	fflush(stdout);
	struct pollfd ready[] = {{.fd = tun, .events = POLLIN}, {.fd = udp, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
	for (;;) {
		if (poll(ready, 3, -1) < 0 && errno != EINTR)
			die("poll");
		if (ready[2].revents)
			return 0;
		/* To ask both in turn until neither has one costs less than a poll between them. */
		bool sent, received;
		do {
			sent = tun_to_udp(tun, udp);
			received = udp_to_tun(tun, udp);
		} while (sent || received);
	}
}
