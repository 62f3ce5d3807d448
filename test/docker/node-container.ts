/** A container that is a node: containerd and what it needs come from the host's /usr, everything else is its own. */
import type { ContainerRequest } from './machine.ts';

/** What a machine that boots has, and a container of Docker has not. The last word is left to NodeRef's users. */
const INIT = `
umount -R /sys/fs/cgroup
mount -o remount,rw /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount --make-rshared /
mkdir -p /run/netns /run/lock /etc/cni/net.d /opt/cni/bin /var/lib/cni
touch /run/is-up
while :; do sleep 86400; done
`;

/** Root but for CAP_SYS_RESOURCE, which root in a container often lacks itself. */
export const nodeContainer = (name: string, image: string, network: readonly string[]): ContainerRequest => ({
  name,
  image,
  options: [
    ...['--cap-add', 'ALL', '--cap-drop', 'SYS_RESOURCE', '--cgroupns', 'private'],
    ...['seccomp', 'apparmor', 'systempaths'].flatMap((what) => ['--security-opt', `${what}=unconfined`]),
    ...['--tmpfs', '/run', '--tmpfs', '/tmp', '--volume', '/usr:/usr:ro'],
    // What the links of /usr lead to; and a disk for overlayfs, which does not stack on that of Docker.
    ...['--volume', '/etc/alternatives:/etc/alternatives:ro', '--volume', '/run/containerd-root'],
    ...['--sysctl', 'net.ipv6.conf.all.disable_ipv6=0', ...network],
  ],
  command: ['sh', '-ec', INIT],
});
