#!/bin/sh
# Process 1 of the namespaces in which the tests that need root run: gives them a private /run, the /sys of their own
# network, bpffs, and a cgroup v2 tree whose root is theirs; then runs the arguments. Everything ends with it.
set -eu

mount -n -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns
# Taken away, not covered: what is covered is still listed in /proc/self/mounts.
umount -n --lazy --recursive /sys
mount -n -t sysfs sysfs /sys
mount -n -t bpf bpf /sys/fs/bpf
mount -n -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up

# A shell that waits also reaps what is orphaned.
"$@" &
wait $!
