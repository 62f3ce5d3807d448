#!/bin/busybox sh
# /init of the initramfs: makes the guest's root file system from the host's, which is shared read-only, and goes on there
# with what /command says, a word a line: the script to become, and its arguments.
set -eu
export PATH=/bin
/bin/busybox mkdir -p /proc /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
# Listed in the order in which they need each other.
while read -r module; do insmod "/modules/$module"; done </modules/order

set --
while read -r word; do set -- "$@" "$word"; done </command

mkdir -p /host /over /root
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose host /host
mount -t tmpfs -o size=50% over /over
mkdir /over/upper /over/work
mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work root /root
mount --move /dev /root/dev
umount /proc
exec switch_root /root "$@"
