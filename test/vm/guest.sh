#!/bin/sh
# Process 1 of the guest once it has a root file system: gives it what a machine has after its start, runs a command and
# powers off. Arguments: the modules of this kernel, a directory to work in, and the command. What the command says goes to
# the second serial line, where the last line is `exit <code>`; the first one, the console, is for what the kernel says.
set -eu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
modules=$1 home=$2
shift 2

mount -n -t proc proc /proc
mount -n -t sysfs sysfs /sys
mount -n -t tmpfs -o mode=755 tmpfs /run
mkdir -p /dev/pts /dev/shm /run/lock /run/netns
mount -n -t devpts devpts /dev/pts
mount -n -t tmpfs tmpfs /dev/shm
mount -n -t cgroup2 cgroup2 /sys/fs/cgroup
mount -n -t bpf bpf /sys/fs/bpf
hostname vm
ip link set lo up

# Modules are loaded when the kernel or iptables asks for them, as on any host.
mkdir -p "/lib/modules/$(uname -r)"
mount -n --bind "$modules" "/lib/modules/$(uname -r)"
if ! command -v modprobe >/dev/null; then
  printf '#!/bin/sh\nexec busybox modprobe "$@"\n' >/sbin/modprobe
  chmod +x /sbin/modprobe
fi

# But for this one: what asks for it is a file that udev or systemd makes when a host starts.
modprobe tun

cd "$home"
# Compiling is what an emulated Node does most of its time. What this machine has compiled is there; more goes to the overlay.
export NODE_COMPILE_CACHE="$home/node_modules/.cache/tulle"
set +e
"$@" </dev/null >/dev/ttyS1 2>&1
echo "exit $?" >/dev/ttyS1
echo o >/proc/sysrq-trigger
# The power goes in a moment; until then process 1 must not end.
read -r _ </dev/ttyS1
