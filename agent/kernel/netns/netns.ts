/** Network namespaces of pods: checked before anything is done in them, entered only to open sockets and files. */
import { closeSync, constants, openSync, statSync } from 'node:fs';
import type { PodLink } from '../../model/items.ts';
import { KernelError } from '../errors.ts';
import { fileIdentity, isNetnsFd, withFd } from '../libc.ts';
import type { NetlinkClient } from '../netlink/message.ts';
import { NETLINK_PROTOCOL } from '../netlink/message.ts';
import { NetlinkSocket } from '../netlink/socket.ts';
import { openSysctls, type SysctlFiles } from '../sysctl/files.ts';

/** Device and inode of a namespace's file as decimal text: they differ between any two namespaces that exist at once. */
export type NetnsIdentity = Pick<PodLink['netns'], 'device' | 'inode'>;

/** A namespace that is open for work. */
export interface OpenNetns {
  readonly fd: number;
  readonly client: NetlinkClient;
  readonly sysctls: SysctlFiles;
  close(): void;
}

/** Opens the namespace of a pod, or of a fake. Throws KernelError. */
export type OpenPodNetns = (netns: PodLink['netns']) => OpenNetns;

export interface NetnsOptions {
  /** Identity of the host's namespace, which no pod may name; this process's own by default. */
  readonly host?: NetnsIdentity | undefined;
  readonly sysctlRoot?: string;
}

/**
 * Identity of the network namespace at a path. Throws KernelError: ENOENT and others of open(2), EINVAL when the file is no
 * network namespace, EPERM when it is the host's own.
 */
export function identifyNetns(path: string, { host }: NetnsOptions = {}): NetnsIdentity {
  const { fd, identity } = openChecked(path, host);
  closeSync(fd);
  return identity;
}

/** Opens a pod's namespace for work. As identifyNetns; ESTALE when the path now leads to another namespace. */
export function openPodNetns({ path, device, inode }: PodLink['netns'], options: NetnsOptions = {}): OpenNetns {
  const { host, sysctlRoot } = options;
  const { fd, identity: found } = openChecked(path, host);
  try {
    if (found.device !== device || found.inode !== inode) {
      const detail = `expected the namespace ${device}:${inode}, got ${found.device}:${found.inode}: another namespace has taken its place`;
      throw netnsError('ESTALE', path, detail);
    }
    const client = new NetlinkSocket(NETLINK_PROTOCOL.ROUTE, { netnsFd: fd });
    return {
      fd,
      client,
      sysctls: openSysctls({ netnsFd: fd, ...(sysctlRoot !== undefined && { root: sysctlRoot }) }),
      close() {
        client.close();
        closeSync(fd);
      },
    };
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/** Of this process's own namespace, which it never leaves for good: looked up once. */
let home: NetnsIdentity | undefined;
function homeIdentity(): NetnsIdentity {
  home ??= withFd('/proc/thread-self/ns/net', fileIdentity);
  return home;
}

/** An fd of a file that is a network namespace and not the host's. */
function openChecked(path: string, host = homeIdentity()): { readonly fd: number; readonly identity: NetnsIdentity } {
  const fd = openNetnsFile(path);
  try {
    if (!isNetnsFd(fd)) throw notNetns(path);
    const identity = fileIdentity(fd);
    if (identity.device === host.device && identity.inode === host.inode)
      throw netnsError('EPERM', path, "it is the host's own namespace, not a pod's");
    return { fd, identity };
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function openNetnsFile(path: string): number {
  try {
    // Opening alone has effects on a device or a FIFO. A namespace shows as a regular file.
    if (!statSync(path).isFile()) throw notNetns(path);
    // Not blocking: the path may lead elsewhere by now.
    return openSync(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
  } catch (error) {
    if (error instanceof KernelError) throw error;
    const code = (error as NodeJS.ErrnoException).code ?? 'EIO';
    const detail =
      code === 'ENOENT'
        ? 'no such file: the pod is gone, or the directory of namespaces is not mounted where the agent runs'
        : undefined;
    throw netnsError(code, path, detail, error);
  }
}

const notNetns = (path: string): KernelError =>
  netnsError(
    'EINVAL',
    path,
    'expected a network namespace, got another kind of file; where the agent runs in a container, the directory of namespaces needs the mount propagation HostToContainer',
  );

const netnsError = (code: string, path: string, detail: string | undefined, cause?: unknown): KernelError =>
  new KernelError({ code, operation: 'open', object: `network namespace ${path}`, detail, cause });
