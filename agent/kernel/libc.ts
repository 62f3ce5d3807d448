/** The only file that calls C directly. Everything here is thread-safe, and synchronous unless it says otherwise. */
import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { getSystemErrorName } from 'node:util';
import koffi from 'koffi';
import { KernelError } from './errors.ts';

const libc = koffi.load(null);
const setnsCall = libc.func('int setns(int fd, int nstype)');
const unshareCall = libc.func('int unshare(int flags)');
const ioctlCall = libc.func('int ioctl(int fd, unsigned long request, void *argument)');
const setsockoptCall = libc.func('int setsockopt(int fd, int level, int name, const void *value, uint32_t length)');
const socketCall = libc.func('int socket(int domain, int type, int protocol)');
const sendCall = libc.func('intptr_t send(int fd, const void *data, size_t length, int flags)');
const recvCall = libc.func('intptr_t recv(int fd, _Out_ void *data, size_t length, int flags)');
const flockCall = libc.func('int flock(int fd, int operation)');
const getsockoptCall = libc.func(
  'int getsockopt(int fd, int level, int name, _Out_ void *value, _Inout_ uint32_t *length)',
);
const bpfCall = libc.func(
  'long syscall(long number, int command, void *attribute, uint32_t size, const void *a, const void *b, const void *c, const void *d)',
);
const getsocknameCall = libc.func('int getsockname(int fd, _Out_ void *address, _Inout_ uint32_t *length)');

/** CLONE_NEWNET (linux/sched.h). */
const CLONE_NEWNET = 0x40000000;
/** ioctl that names the type of a namespace (linux/nsfs.h). */
const NS_GET_NSTYPE = 0xb703;

/** Errno name of the call that just returned on this thread. */
const lastErrno = (): string => getSystemErrorName(-koffi.errno());

/** The fd of this process's own network namespace, opened once: where every excursion returns to. */
let home: number | undefined;
const homeFd = (): number => {
  home ??= openSync('/proc/thread-self/ns/net', constants.O_RDONLY);
  return home;
};

/**
 * Runs `action` with this thread in another network namespace. The action must be synchronous: nothing else of the
 * process may run meanwhile. A failed return would leave the agent in a pod's namespace, so it ends the process.
 */
export const inNetns = <T>(netnsFd: number, action: () => T): T =>
  awayFromHome('enter', () => setnsCall(netnsFd, CLONE_NEWNET), action);

/** The same in a new, empty namespace. It ends with the last socket that the action opened in it. */
export const inNewNetns = <T>(action: () => T): T => awayFromHome('make', () => unshareCall(CLONE_NEWNET), action);

function awayFromHome<T>(operation: 'enter' | 'make', leave: () => number, action: () => T): T {
  const back = homeFd();
  if (leave() !== 0) throw new KernelError({ code: lastErrno(), operation, object: 'network namespace' });
  try {
    return action();
  } finally {
    if (setnsCall(back, CLONE_NEWNET) !== 0) process.abort();
  }
}

/** Whether an open file is a network namespace (false: another namespace, or no namespace at all). */
export const isNetnsFd = (fd: number): boolean => ioctlCall(fd, NS_GET_NSTYPE, null) === CLONE_NEWNET;

/** st_dev and st_ino as decimal text: the identity of a namespace as long as something holds it. */
export function fileIdentity(fd: number): { readonly device: string; readonly inode: string } {
  const { dev, ino } = fstatSync(fd, { bigint: true });
  return { device: String(dev), inode: String(ino) };
}

export const isHomeNetns = (fd: number): boolean => {
  const [own, other] = [fileIdentity(homeFd()), fileIdentity(fd)];
  return own.device === other.device && own.inode === other.inode;
};

/** Opens a file for the length of one synchronous action. */
export function withFd<T>(path: string, action: (fd: number) => T): T {
  const fd = openSync(path, constants.O_RDONLY);
  try {
    return action(fd);
  } finally {
    closeSync(fd);
  }
}

/** ioctl(2) with a buffer that the kernel may write to. */
export function ioctl(
  fd: number,
  request: number,
  argument: Uint8Array,
  what: { operation: string; object: string },
): void {
  if (ioctlCall(fd, request, argument) < 0) throw new KernelError({ code: lastErrno(), ...what });
}

const ioctlNumberCall = libc.func('int ioctl(int fd, unsigned long request, unsigned long argument)');

/** ioctl(2) whose argument is a number itself. */
export function ioctlNumber(
  fd: number,
  request: number,
  argument: number,
  what: { operation: string; object: string },
): void {
  if (ioctlNumberCall(fd, request, argument) < 0) throw new KernelError({ code: lastErrno(), ...what });
}

/** Address of a buffer for structures that hold pointers (ifreq.ifr_data). The buffer must stay referenced. */
export const addressOf = (buffer: Uint8Array): bigint => koffi.address(buffer);

/** setsockopt(2) with an int value. */
export function setsockoptInt(fd: number, level: number, name: number, value: number): void {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value);
  if (setsockoptCall(fd, level, name, bytes, 4) !== 0) {
    throw new KernelError({ code: lastErrno(), operation: 'set', object: `socket option ${level}/${name}` });
  }
}

/** SO_NETNS_COOKIE (asm-generic/socket.h), Linux 5.14. */
const SO_NETNS_COOKIE = 71;

/** The kernel's own number of the network namespace of this process, or of another; never given again. Throws KernelError. */
export function netnsCookie(netnsFd?: number): bigint {
  const fd = openIoctlSocket(netnsFd);
  const value = Buffer.alloc(8);
  try {
    if (getsockoptCall(fd, 1, SO_NETNS_COOKIE, value, [value.length]) === 0) return value.readBigUInt64LE();
    throw new KernelError({ code: lastErrno(), operation: 'read', object: 'cookie of a network namespace' });
  } finally {
    closeSync(fd);
  }
}

/** Number of bpf(2), for which there is no function in libc (asm/unistd.h). */
const BPF_CALLS: Readonly<Record<string, number>> = { x64: 321, arm64: 280 };

/** The address of `to` stands at offset `at` of `in`, or of the attribute. */
export interface Pointer {
  readonly at: number;
  readonly to: Uint8Array;
  readonly in?: Buffer;
}

/**
 * bpf(2). Writes the addresses of up to four buffers where they belong in `attribute` (union bpf_attr). The kernel may write
 * to it and to them, also when it fails. Returns what the command does. Throws KernelError.
 */
export function bpf(
  command: number,
  attribute: Buffer,
  pointers: readonly Pointer[],
  what: { operation: string; object: string },
): number {
  const number = BPF_CALLS[process.arch];
  if (number === undefined) throw new KernelError({ code: 'ENOSYS', ...what, detail: `no bpf(2) on ${process.arch}` });
  for (const { at, to, in: holder = attribute } of pointers) holder.writeBigUInt64LE(addressOf(to), at);
  // The kernel looks at three arguments. The others keep the buffers where they are until it has answered.
  const [a, b, c, d] = pointers.map(({ to }) => to);
  const result = Number(
    bpfCall(number, command, attribute, attribute.length, a ?? null, b ?? null, c ?? null, d ?? null),
  );
  if (result < 0) throw new KernelError({ code: lastErrno(), ...what });
  return result;
}

/** nl_pid of an AF_NETLINK socket, or undefined when the fd is something else. */
export function netlinkPort(fd: number): number | undefined {
  const address = Buffer.alloc(128);
  const length = [address.length];
  if (getsocknameCall(fd, address, length) !== 0 || address.readUInt16LE(0) !== 16) return undefined;
  return address.readUInt32LE(4);
}

/** LOCK_EX | LOCK_NB (sys/file.h). The lock ends with the descriptor. */
const LOCK_EX_NB = 2 | 4;

/** Takes flock(2)'s exclusive lock if nobody holds it. */
export function tryLockExclusive(fd: number): boolean {
  if (flockCall(fd, LOCK_EX_NB) === 0) return true;
  const code = lastErrno();
  if (code === 'EAGAIN' || code === 'EINTR') return false;
  throw new KernelError({ code, operation: 'lock', object: `file descriptor ${fd}` });
}

/** linux/socket.h; SOCK_CLOEXEC is part of both. */
const SOCKETS = { ioctl: { domain: 2, type: 0x80002 }, netlink: { domain: 16, type: 0x80003 } } as const;

/** An fd for ioctls on the links of a network namespace (SIOCETHTOOL), of this process's own by default. Close it. */
export const openIoctlSocket = (netnsFd?: number): number => openSocket('ioctl', 0, netnsFd);

/** A netlink socket. Its port is given by the kernel at the first request. Close it. */
export const openNetlinkFd = (protocol: number, netnsFd?: number): number => openSocket('netlink', protocol, netnsFd);

function openSocket(kind: keyof typeof SOCKETS, protocol: number, netnsFd: number | undefined): number {
  const open = (): number => {
    const fd = socketCall(SOCKETS[kind].domain, SOCKETS[kind].type, protocol) as number;
    if (fd < 0) throw new KernelError({ code: lastErrno(), operation: 'open', object: `socket for ${kind}` });
    return fd;
  };
  return netnsFd === undefined ? open() : inNetns(netnsFd, open);
}

/** send(2) of one datagram. */
export function sendDatagram(fd: number, bytes: Uint8Array, what: { operation: string; object: string }): void {
  if (sendCall(fd, bytes, bytes.length, 0) < 0) throw new KernelError({ code: lastErrno(), ...what });
}

/**
 * The same from a thread of libuv's pool, for what takes the kernel long. Rejects with KernelError EIO: errno stays with
 * that thread. The process must not end meanwhile by process.exit, which waits for the kernel.
 *
 * koffi keeps nothing but the callback until a thread is free, so the callback has to hold on to the bytes: the kernel would
 * carry out whatever has taken their place.
 */
export function sendDatagramInBackground(
  fd: number,
  bytes: Uint8Array,
  what: { operation: string; object: string },
): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  sendCall.async(fd, bytes, bytes.length, 0, (error: Error | null, sent: number) => {
    if (error === null && Number(sent) === bytes.length) resolve();
    else reject(new KernelError({ code: 'EIO', ...what, ...(error && { cause: error }) }));
  });
  return promise;
}

/** linux/socket.h */
const MSG_DONTWAIT = 0x40;

/** recv(2) of one datagram that has arrived into a buffer; returns its length. Throws KernelError, EAGAIN when there is none. */
export function receiveDatagram(fd: number, into: Uint8Array, what: { operation: string; object: string }): number {
  for (;;) {
    const length = recvCall(fd, into, into.length, MSG_DONTWAIT) as number;
    if (length >= 0) return length;
    const code = lastErrno();
    if (code !== 'EINTR') throw new KernelError({ code, ...what });
  }
}

const sendtoCall = libc.func(
  'intptr_t sendto(int fd, const void *data, size_t length, int flags, const void *address, uint32_t addressLength)',
);
const recvfromCall = libc.func(
  'intptr_t recvfrom(int fd, void *data, size_t length, int flags, void *address, void *addressLength)',
);

/** SOL_SOCKET and SO_RCVTIMEO (asm-generic/socket.h). */
const SOL_SOCKET_LEVEL = 1;
const SO_RCVTIMEO_OPTION = 20;

/** SOCK_DGRAM and SOCK_RAW (linux/net.h), with SOCK_CLOEXEC. */
const INET_TYPES = { datagram: 0x80002, raw: 0x80003 } as const;

/** A socket of IPv4 (2) or IPv6 (10) for probes. Throws KernelError. Close it. */
export function openInetSocket(addressFamily: number, type: keyof typeof INET_TYPES, protocol: number): number {
  const fd = socketCall(addressFamily, INET_TYPES[type], protocol) as number;
  if (fd < 0) throw new KernelError({ code: lastErrno(), operation: 'open', object: `${type} socket for probes` });
  return fd;
}

/** sendto(2) with a struct sockaddr_in or sockaddr_in6. Throws KernelError. */
export function sendDatagramTo(
  fd: number,
  bytes: Uint8Array,
  address: Uint8Array,
  what: { operation: string; object: string },
): void {
  if (sendtoCall(fd, bytes, bytes.length, 0, address, address.length) < 0)
    throw new KernelError({ code: lastErrno(), ...what });
}

/** The same without waiting: whether the kernel took it. */
export const trySendDatagramTo = (fd: number, bytes: Uint8Array, address: Uint8Array): boolean =>
  sendtoCall(fd, bytes, bytes.length, MSG_DONTWAIT, address, address.length) >= 0;

/**
 * recvfrom(2) on a thread of the pool, so that nothing else waits: the length of a datagram, or undefined when none came
 * within the time. Not more than one call a socket at once, and no close before it has ended.
 */
export async function receiveDatagramFrom(
  fd: number,
  into: Uint8Array,
  address: Uint8Array,
  timeoutMs: number,
): Promise<number | undefined> {
  const timeval = Buffer.alloc(16);
  timeval.writeBigInt64LE(BigInt(Math.floor(timeoutMs / 1000)), 0);
  timeval.writeBigInt64LE(BigInt(Math.max(1, Math.round((timeoutMs % 1000) * 1000))), 8);
  if (setsockoptCall(fd, SOL_SOCKET_LEVEL, SO_RCVTIMEO_OPTION, timeval, timeval.length) !== 0)
    throw new KernelError({ code: lastErrno(), operation: 'set', object: 'time limit of a socket' });
  const addressLength = Buffer.alloc(4);
  addressLength.writeUInt32LE(address.length);
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  // See sendDatagramInBackground: this callback, too, holds what the kernel writes to.
  const written = [into, address, addressLength];
  recvfromCall.async(fd, into, into.length, 0, address, addressLength, (error: Error | null, length: number) =>
    error ? reject(error) : resolve(Math.min(Number(length), written[0]?.length ?? 0)),
  );
  const length = await promise;
  return length >= 0 ? length : undefined;
}

const bindCall = libc.func('int bind(int fd, const void *address, uint32_t length)');
/** bind(2) to a struct sockaddr_in or sockaddr_in6. */
export function bindSocket(fd: number, address: Uint8Array, what: { operation: string; object: string }): void {
  if (bindCall(fd, address, address.length) !== 0) throw new KernelError({ code: lastErrno(), ...what });
}

/** getsockopt(2) into a buffer; returns the length that the kernel gave. */
export function getsockopt(fd: number, level: number, name: number, into: Uint8Array): number {
  const length = [into.length];
  if (getsockoptCall(fd, level, name, into, length) === 0) return length[0] as number;
  throw new KernelError({ code: lastErrno(), operation: 'read', object: `socket option ${level}/${name}` });
}

/**
 * Calls for loops that carry packets. Memory is given by its address (addressOf, as a number), so that nothing is made for a
 * call; it must stay referenced and be no part of V8's heap. Each returns what the kernel does, or -1: see errnoOfLastCall.
 */
export const bare = {
  read: libc.func('intptr_t read(int fd, uintptr_t data, size_t length)') as BareCall<[number, number, number]>,
  write: libc.func('intptr_t write(int fd, uintptr_t data, size_t length)') as BareCall<[number, number, number]>,
  writev: libc.func('intptr_t writev(int fd, uintptr_t vector, int count)') as BareCall<[number, number, number]>,
  /** `array` of struct pollfd. */
  poll: libc.func('int poll(uintptr_t array, unsigned long count, int timeoutMs)') as BareCall<
    [number, number, number]
  >,
  sendmmsg: libc.func('int sendmmsg(int fd, uintptr_t vector, unsigned int count, int flags)') as BareCall<
    [number, number, number, number]
  >,
  recvmmsg: libc.func(
    'int recvmmsg(int fd, uintptr_t vector, unsigned int count, int flags, uintptr_t timeout)',
  ) as BareCall<[number, number, number, number, number]>,
  connect: libc.func('int connect(int fd, uintptr_t address, uint32_t length)') as BareCall<[number, number, number]>,
  preadv2: libc.func('intptr_t preadv2(int fd, uintptr_t vector, int count, intptr_t offset, int flags)') as BareCall<
    [number, number, number, number, number]
  >,
  recvmsg: libc.func('intptr_t recvmsg(int fd, uintptr_t message, int flags)') as BareCall<[number, number, number]>,
} as const;
type BareCall<A extends readonly number[]> = (...args: A) => number;

/** Number of errno after a call that returned -1, on the same thread and before any other call. */
export const errnoOfLastCall = (): number => koffi.errno();

/**
 * OpenSSL's calls for ciphers, which Node exports to addons (Node.js documentation, "Linking to libraries included with
 * Node.js"; EVP_EncryptInit(3)). node:crypto makes an object and a buffer for each message, which costs several times what it
 * takes to encipher a small one. Memory is given by its address, as in `bare`. Bound when they are first asked for.
 */
export const openAead = (): AeadCalls => {
  aead ??= {
    fetch: libc.func('uintptr_t EVP_CIPHER_fetch(void *library, const char *name, const char *properties)'),
    newContext: libc.func('uintptr_t EVP_CIPHER_CTX_new()'),
    freeContext: libc.func('void EVP_CIPHER_CTX_free(uintptr_t context)'),
    init: libc.func(
      'int EVP_CipherInit_ex2(uintptr_t context, uintptr_t cipher, uintptr_t key, uintptr_t iv, int encrypts, uintptr_t parameters)',
    ),
    update: libc.func(
      'int EVP_CipherUpdate(uintptr_t context, uintptr_t out, uintptr_t outLength, uintptr_t in, int inLength)',
    ),
    final: libc.func('int EVP_CipherFinal_ex(uintptr_t context, uintptr_t out, uintptr_t outLength)'),
    control: libc.func('int EVP_CIPHER_CTX_ctrl(uintptr_t context, int type, int argument, uintptr_t pointer)'),
  } as AeadCalls;
  return aead;
};
let aead: AeadCalls | undefined;

export interface AeadCalls {
  /** A cipher by its name, or 0. */
  readonly fetch: (library: null, name: string, properties: null) => number | bigint;
  readonly newContext: () => number | bigint;
  readonly freeContext: (context: number | bigint) => void;
  readonly init: (
    context: number | bigint,
    cipher: number | bigint,
    key: number,
    iv: number,
    encrypts: -1 | 0 | 1,
    parameters: 0,
  ) => number;
  readonly update: (context: number | bigint, out: number, outLength: number, from: number, length: number) => number;
  readonly final: (context: number | bigint, out: number, outLength: number) => number;
  readonly control: (context: number | bigint, type: number, argument: number, pointer: number) => number;
}

const sigactionCall = libc.func('int sigaction(int signal, const void *action, void *former)');
const tgkillCall = libc.func('int tgkill(int process, int thread, int signal)');
const gettidCall = libc.func('int gettid()');

/** SIGURG (asm-generic/signal.h): nothing happens where nobody handles it. Go's runtime uses it for the same purpose. */
const SIGURG = 23;
/** struct sigaction of libc: handler, mask of 128 bytes, flags, restorer. */
const SIGACTION_BYTES = 152;

/** Lets interruptThread end calls of any thread with EINTR. The handler is a call of libc that changes nothing. Throws KernelError. */
export function allowInterrupts(): void {
  const action = Buffer.alloc(SIGACTION_BYTES);
  action.writeBigUInt64LE(koffi.address(libc.symbol('getppid', 'void')));
  if (sigactionCall(SIGURG, action, null) !== 0) {
    throw new KernelError({ code: lastErrno(), operation: 'handle', object: 'signal SIGURG' });
  }
}

/** Number of this thread in the kernel, which interruptThread takes. */
export const threadId = (): number => gettidCall() as number;

/** Ends what a thread waits for in the kernel, with EINTR. A thread that is about to wait is not held up by it: say it again. */
export const interruptThread = (thread: number): void => void tgkillCall(process.pid, thread, SIGURG);
