// SPDX-License-Identifier: Apache-2.0
/*
 * The loopback plugin: `lo` of the pod's namespace goes up at ADD and down at DEL. It needs no agent. Installed only
 * where the host has none.
 */
#define _GNU_SOURCE
#include "tulle-cni.h"

#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* NULL once inside, else why not. */
static const char *enter_netns(const char *path)
{
	struct stat own, pod;
	const char *why = NULL;
	int fd;

	if (stat(path, &pod) != 0 || stat("/proc/self/ns/net", &own) != 0)
		return strerror(errno);
	if (!S_ISREG(pod.st_mode))
		return "not a namespace";
	if (own.st_dev == pod.st_dev && own.st_ino == pod.st_ino)
		return "the runtime's own namespace";
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWNET) != 0)
		why = errno == EINVAL ? "not a network namespace" : strerror(errno);
	if (fd >= 0)
		close(fd);
	return why;
}

/* The flags of lo with `set` added and `clear` taken away; -1 and errno on failure. */
static int change_flags(int set, int clear)
{
	struct ifreq lo = { .ifr_name = "lo" };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), flags = -1;

	if (fd < 0)
		return -1;
	if (ioctl(fd, SIOCGIFFLAGS, &lo) == 0) {
		flags = (lo.ifr_flags | set) & ~clear;
		lo.ifr_flags = (short)flags;
		if ((set | clear) != 0 && ioctl(fd, SIOCSIFFLAGS, &lo) != 0)
			flags = -1;
	}
	close(fd);
	return flags;
}

/* The kernel gives lo its IPv6 address when it comes up, if the namespace has IPv6; only then can it be bound. */
static bool has_ipv6_address(void)
{
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool has = fd >= 0 && bind(fd, (const struct sockaddr *)&address, sizeof address) == 0;

	if (fd >= 0)
		close(fd);
	return has;
}

static void append_ip(struct buffer *to, const char *family, const char *address)
{
	append_text(to, "{");
	if (call.version[0] == '0') { /* up to 0.4.0 the family is told apart */
		append_text(to, "\"version\":");
		append_json(to, family);
		append_text(to, ",");
	}
	append_text(to, "\"interface\":0,\"address\":");
	append_json(to, address);
	append_text(to, "}");
}

static int print_result(const char *netns)
{
	static char out[CONFIG_MAX + 8192];
	struct buffer to = { out, 0, sizeof out, false };
	struct span previous;

	/* An earlier plugin's result is passed on as it came (SPEC, section 2, ADD). */
	if (find_value(call.config, "\"prevResult\"", &previous) && previous.length > 0 && previous.data[0] == '{') {
		append(&to, previous.data, previous.length);
	} else {
		append_text(&to, "{\"cniVersion\":");
		append_json(&to, call.version);
		append_text(&to, ",\"interfaces\":[{\"name\":\"lo\",\"mac\":\"00:00:00:00:00:00\",\"sandbox\":");
		append_json(&to, netns);
		append_text(&to, "}],\"ips\":[");
		append_ip(&to, "4", "127.0.0.1/8");
		if (has_ipv6_address()) {
			append_text(&to, ",");
			append_ip(&to, "6", "::1/128");
		}
		append_text(&to, "],\"dns\":{}}");
	}
	append_text(&to, "\n");
	return write_all(STDOUT_FILENO, to.data, to.length) ? 0 : 1;
}

/* Gone with its namespace is as good as down, and of the runtime's own namespace a DEL keeps its hands off. */
static int bring_down(const char *netns)
{
	if (enter_netns(netns) == NULL)
		change_flags(0, IFF_UP);
	return 0;
}

int loopback(void)
{
	const char *netns = getenv("CNI_NETNS"), *why;
	int flags;

	if (netns == NULL)
		netns = "";
	if (call.verb == STATUS || call.verb == GC)
		return 0;
	if (call.verb == DEL)
		return bring_down(netns);
	if (!call.version_known)
		die(INCOMPATIBLE_VERSION, NULL, "cannot %s lo: cniVersion: expected 0.3.0, 0.3.1, 0.4.0, 1.0.0 or 1.1.0, got another",
		    call.verb_name);
	why = enter_netns(netns);
	if (why != NULL)
		die(INVALID_ENVIRONMENT, NULL, "cannot %s lo: CNI_NETNS: expected the path of a pod's network namespace, got '%.500s': %s",
		    call.verb_name, netns, why);
	flags = change_flags(call.verb == ADD ? IFF_UP : 0, 0);
	if (flags < 0)
		die(IO_FAILURE, NULL, "cannot %s lo in %.500s: %s", call.verb_name, netns, strerror(errno));
	if ((flags & IFF_UP) == 0)
		die(CHECK_FAILED, NULL, "cannot CHECK lo in %.500s: expected it up, got it down", netns);
	return call.verb == ADD ? print_result(netns) : 0;
}
