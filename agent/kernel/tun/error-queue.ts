/** What ICMP says about datagrams that were sent (ip(7), IP_RECVERR; linux/errqueue.h). */
import { bare } from '../libc.ts';
import { type Arena, arena, Iovecs, Messages } from './memory.ts';

const MSG_ERRQUEUE = 0x2000;
const MSG_DONTWAIT = 0x40;
const NAME_BYTES = 32;
const CONTROL_BYTES = 512;
/** struct cmsghdr: length (8), level, type; then struct sock_extended_err: errno, origin, type, code, pad, info. */
const ERROR_AT = 16;
const INFO_AT = ERROR_AT + 8;

export interface SocketError {
  /** errno of the datagram: ECONNREFUSED, EMSGSIZE, EHOSTUNREACH. */
  readonly errno: number;
  /** With EMSGSIZE, the MTU of the path. */
  readonly info: number;
}

export class ErrorQueue {
  readonly #fd: number;
  readonly #message = new Messages(1);
  readonly #iovec = new Iovecs(1);
  readonly #data: Arena = arena(8);
  readonly #control: Arena = arena(CONTROL_BYTES);
  readonly #name: Arena = arena(NAME_BYTES);

  constructor(fd: number) {
    this.#fd = fd;
    this.#iovec.add(this.#data.address, 8);
    this.#message.setIovecs(0, this.#iovec.addressOf(0), 1);
  }

  /** `onError` is given the struct sockaddr that the datagram was for, which is only there until it returns. */
  drain(onError: (to: Buffer, error: SocketError) => void): void {
    for (;;) {
      this.#message.setName(0, this.#name.address, NAME_BYTES);
      this.#message.setControl(0, this.#control.address, CONTROL_BYTES);
      if (bare.recvmsg(this.#fd, this.#message.addressOf(0), MSG_ERRQUEUE | MSG_DONTWAIT) < 0) return;
      if (this.#message.controlLengthOf(0) < INFO_AT + 4) continue;
      const { bytes } = this.#control;
      onError(this.#name.bytes, { errno: bytes.readUInt32LE(ERROR_AT), info: bytes.readUInt32LE(INFO_AT) });
    }
  }
}
