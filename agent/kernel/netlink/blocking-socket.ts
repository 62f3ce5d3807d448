/**
 * A netlink client whose every call blocks its thread, for threads that have nothing else to do. Not over the `netlink`
 * package: its addon ends the whole process when a thread that has loaded it ends.
 */
import { closeSync } from 'node:fs';
import { KernelError } from '../errors.ts';
import { openNetlinkFd, receiveDatagram, sendDatagram, setReceiveTimeout, setsockoptInt } from '../libc.ts';
import {
  Answer,
  encode,
  NETLINK_EXT_ACK,
  NETLINK_GET_STRICT_CHK,
  type NetlinkClient,
  type NetlinkMessage,
  type NetlinkRequest,
  nameOf,
  type Outcome,
  SOL_NETLINK,
  splitDatagram,
  unwrap,
  wholeDump,
} from './message.ts';

/** The kernel writes dumps in pieces of at most 32 KiB. */
const BUFFER_BYTES = 128 << 10;
const TIMEOUT_MS = 10_000;

export class BlockingNetlink implements NetlinkClient {
  readonly #fd: number;
  readonly #buffer = Buffer.alloc(BUFFER_BYTES);
  #sequence = 0;

  /** Throws KernelError. */
  constructor(protocol: number, netnsFd?: number) {
    this.#fd = openNetlinkFd(protocol, netnsFd);
    setReceiveTimeout(this.#fd, TIMEOUT_MS);
    setsockoptInt(this.#fd, SOL_NETLINK, NETLINK_EXT_ACK, 1);
    setsockoptInt(this.#fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1);
  }

  async request(request: NetlinkRequest): Promise<readonly NetlinkMessage[]> {
    return unwrap(this.#exchange(request));
  }

  async batch(requests: readonly NetlinkRequest[]): Promise<readonly (KernelError | undefined)[]> {
    return requests.map((request) => {
      const outcome = this.#exchange(request);
      return outcome instanceof KernelError ? outcome : undefined;
    });
  }

  dump(request: NetlinkRequest): Promise<readonly NetlinkMessage[]> {
    return wholeDump(request, (asDump) => this.#exchange(asDump));
  }

  close(): void {
    closeSync(this.#fd);
  }

  #exchange(request: NetlinkRequest): Outcome {
    const sequence = ++this.#sequence;
    const answer = new Answer(request);
    try {
      sendDatagram(this.#fd, encode(request, sequence, 0), nameOf(request));
      for (;;) {
        const length = receiveDatagram(this.#fd, this.#buffer, nameOf(request));
        // The messages stay with whoever asked, the buffer does not.
        for (const part of splitDatagram(Buffer.from(this.#buffer.subarray(0, length)))) {
          // Late answers to a request that timed out.
          const outcome = part.sequence === sequence ? answer.take(part.message) : undefined;
          if (outcome) return outcome;
        }
      }
    } catch (error) {
      if (error instanceof KernelError) return error;
      throw error;
    }
  }
}
