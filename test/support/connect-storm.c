/* SPDX-License-Identifier: Apache-2.0 */
/*
 * connect-storm MILLISECONDS VIP PREFIX [VIP PREFIX]...: connects a datagram socket to port 80 of each VIP in turn, as fast
 * as it goes, and prints `CONNECTED FAILED ASTRAY`. Nothing is sent. Backends are addresses of this host, so the socket's
 * own address is that of the backend: one whose text does not begin with the VIP's prefix is astray.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
	long end = now_ms() + atol(argv[1]);
	long connected = 0, failed = 0, astray = 0;
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	while (now_ms() < end) {
		for (int round = 0; round < 100; round++) {
			for (int i = 2; i + 1 < argc; i += 2) {
				struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(80) }, own;
				struct sockaddr none = { .sa_family = AF_UNSPEC };
				socklen_t length = sizeof(own);
				char text[INET_ADDRSTRLEN];

				/* Forgets the address that the last connect chose. */
				connect(fd, &none, sizeof(none));
				inet_pton(AF_INET, argv[i], &to.sin_addr);
				if (connect(fd, (struct sockaddr *)&to, sizeof(to))) {
					failed++;
					continue;
				}
				connected++;
				getsockname(fd, (struct sockaddr *)&own, &length);
				inet_ntop(AF_INET, &own.sin_addr, text, sizeof(text));
				if (strncmp(text, argv[i + 1], strlen(argv[i + 1])))
					astray++;
			}
		}
	}
	printf("%ld %ld %ld\n", connected, failed, astray);
	return 0;
}
