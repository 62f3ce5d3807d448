#!/bin/sh
# Process 1 of a lab node. Gives the node what a machine of its own would have, none of it visible outside:
# /run, /etc, /opt and /var/lib that it may write, /sys of its own network, bpffs, and a cgroup tree whose root it is.
# Arguments: the node's directory, the node's name. Prints this process's id as the host sees it when all is ready.
set -eu
dir=$1 name=$2

# Still the host's /proc, which tells the host's number of this process.
read -r pid _ </proc/self/stat
mount -n -t proc proc /proc

# Built aside and moved into place, because the node's directory is below the /run that is about to be covered.
mkdir -p "$dir/run"
mount -n -t tmpfs -o mode=755 tmpfs "$dir/run"
cd "$dir/run"
mkdir -p lab-node lock netns
mount -n --bind "$dir" lab-node
for tree in etc opt var/lib; do
  mkdir -p ".upper/$tree" ".work/$tree"
  mount -n -t overlay -o "lowerdir=/$tree,upperdir=.upper/$tree,workdir=.work/$tree" overlay "/$tree"
done
cd /
mount -n --move "$dir/run" /run
mkdir -p /etc/cni/net.d /opt/cni/bin /var/lib/cni

mount -n -t sysfs sysfs /sys
mount -n -t bpf bpf /sys/fs/bpf
mount -n -t cgroup2 cgroup2 /sys/fs/cgroup

echo "$name" >/proc/sys/kernel/hostname
# Duplicate address detection would hold back the first packet of each address for a second.
if [ -d /proc/sys/net/ipv6 ]; then
  echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
  echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
fi
ip link set lo up

echo "$pid"
# A shell that waits also reaps what is orphaned in the node.
while :; do sleep 86400; done
