/** ip sets of one host: the `ipset restore` command behind `Run`, and the netlink protocol behind NetlinkClient. */
import type { Command, Run } from '../../agent/kernel/command.ts';
import { KernelError } from '../../agent/kernel/errors.ts';
import { named } from '../../agent/kernel/ipset/protocol.ts';
import { attribute, nested, parseAttributes, text, textOf, u8, u32Be } from '../../agent/kernel/netlink/attributes.ts';
import type { NetlinkClient, NetlinkMessage, NetlinkRequest } from '../../agent/kernel/netlink/message.ts';
import {
  bytesOf,
  type Cidr,
  FAMILIES,
  factsOf,
  families,
  hostCidr,
  type IpAddress,
  ipFromBytes,
  networkOf,
  parseCidr,
  prefixLengthOf,
} from '../../agent/model/ip.ts';
import type { IpSet } from '../../agent/model/items.ts';

interface FakeSet {
  readonly header: IpSet;
  /** By their text. */
  readonly elements: Map<string, Element>;
}

interface Element {
  readonly entry: Cidr;
  /** Bytes of the attributes PORT and PROTO. */
  readonly port?: readonly [port: Buffer, protocol: Buffer];
}

const textOfElement = ({ entry, port }: Element): string => [entry, ...(port ?? []).map(String)].join(' ');

const COMMANDS = { 3: 'destroy', 7: 'list', 9: 'add', 10: 'del' } as const;

export interface FakeIpsetOptions {
  /** Whether a rule uses this set. */
  readonly isUsed?: (name: string) => boolean;
}

export class FakeIpset implements NetlinkClient {
  readonly sets = new Map<string, FakeSet>();
  /** Netlink requests answered, dumps included. */
  requests = 0;
  readonly #options: FakeIpsetOptions;
  readonly #failures: { readonly object: string; readonly code: string }[] = [];

  constructor(options: FakeIpsetOptions = {}) {
    this.#options = options;
  }

  /** The next netlink request for this object (`member 10.0.0.0/8 of tulle-a`) fails. */
  failNext(object: string, code: string): void {
    this.#failures.push({ object, code });
  }

  async request(request: NetlinkRequest): Promise<readonly NetlinkMessage[]> {
    this.#change(request);
    return [];
  }

  async batch(requests: readonly NetlinkRequest[]): Promise<readonly (KernelError | undefined)[]> {
    return requests.map((request) => {
      try {
        this.#change(request);
        return undefined;
      } catch (error) {
        if (error instanceof KernelError) return error;
        throw error;
      }
    });
  }

  async dump(request: NetlinkRequest): Promise<readonly NetlinkMessage[]> {
    this.requests++;
    this.#inject(request);
    const name = textOf(parseAttributes(Buffer.from(request.payload), 4).get(2));
    if (name === undefined) return [...this.sets.values()].map(({ header }) => message(header, []));
    const set = this.sets.get(name);
    if (!set) throw failure(request, 'ENOENT');
    const messages: NetlinkMessage[] = [];
    const elements = [...set.elements.values()];
    // As the kernel does it, every message has the header's beginning; the elements are spread over them.
    for (let at = 0; at === 0 || at < elements.length; at += 100) {
      messages.push(message(set.header, elements.slice(at, at + 100)));
    }
    return messages;
  }

  close(): void {}

  readonly run: Run = async (command) => {
    if (command.file !== 'ipset' || command.args[0] !== 'restore')
      throw commandFailure(command, 'EINVAL', 'unknown command');
    for (const [i, line] of (command.stdin ?? '').split('\n').entries()) {
      if (line === '') continue;
      try {
        this.#line(line.split(' '));
      } catch (error) {
        if (!(error instanceof KernelError)) throw error;
        throw commandFailure(command, named(error).code, `Error in line ${i + 1}`);
      }
    }
    return { stdout: '' };
  };

  #line([verb, name, ...rest]: readonly string[]): void {
    if (name === undefined) throw refusal('EINVAL', verb ?? '');
    const other = rest[0] as string;
    if (verb === 'create') this.#create(name, rest);
    else if (verb === 'destroy') this.#destroy(name);
    else if (verb === 'flush') this.#set(name).elements.clear();
    else if (verb === 'add') this.#add(name, parseElement(other));
    else if (verb === 'swap') this.#swap(name, other);
    else throw refusal('EINVAL', verb ?? '');
  }

  #create(name: string, [type, , family, , maxElements, flag]: readonly string[]): void {
    const { family: own } = families.find(({ setFamily }) => setFamily === family) ?? FAMILIES.ipv4;
    const header: IpSet = { name, type: type as IpSet['type'], family: own, maxElements: Number(maxElements) };
    const old = this.sets.get(name);
    const isSame =
      old?.header.type === type && old?.header.family === own && old.header.maxElements === header.maxElements;
    if (old && !(flag === '-exist' && isSame)) throw refusal('EEXIST', name);
    if (!old) this.sets.set(name, { header, elements: new Map() });
  }

  #destroy(name: string): void {
    this.#set(name);
    if (this.#options.isUsed?.(name)) throw refusal('Unknown system error -4100', name);
    this.sets.delete(name);
  }

  #swap(first: string, second: string): void {
    const [a, b] = [this.#set(first), this.#set(second)];
    if (a.header.type !== b.header.type || a.header.family !== b.header.family)
      throw refusal('Unknown system error -4102', first);
    this.sets.set(first, { ...b, header: { ...b.header, name: first } });
    this.sets.set(second, { ...a, header: { ...a.header, name: second } });
  }

  #add(name: string, element: Element): void {
    const { header, elements } = this.#set(name);
    const text = textOfElement(element);
    this.#check(header, element);
    if (elements.size >= header.maxElements && !elements.has(text)) throw refusal('Unknown system error -4352', name);
    elements.set(text, element);
  }

  #check({ type, family, name }: IpSet, { entry, port }: Element): void {
    const { bits, family: own } = factsOf(entry);
    const length = prefixLengthOf(entry);
    if ((type === 'hash:ip,port') !== (port !== undefined)) throw refusal('Unknown system error -4097', name);
    const isWrong = own !== family || length === 0 || (type !== 'hash:net' && length < bits);
    if (isWrong) throw refusal('Unknown system error -4104', name);
  }

  #set(name: string): FakeSet {
    const set = this.sets.get(name);
    if (!set) throw refusal('ENOENT', name);
    return set;
  }

  #change(request: NetlinkRequest): void {
    this.requests++;
    this.#inject(request);
    const command = COMMANDS[(request.type & 0xff) as keyof typeof COMMANDS];
    const attributes = parseAttributes(Buffer.from(request.payload), 4);
    const name = textOf(attributes.get(2)) as string;
    try {
      if (command === 'destroy') this.#destroy(name);
      else if (command === 'add') this.#add(name, elementOf(attributes.get(7) as Buffer));
      else if (command === 'del')
        this.#set(name).elements.delete(textOfElement(elementOf(attributes.get(7) as Buffer)));
    } catch (error) {
      throw error instanceof KernelError ? failure(request, error.code) : error;
    }
  }

  #inject(request: NetlinkRequest): void {
    const at = this.#failures.findIndex(({ object }) => object === request.object);
    const [injected] = at < 0 ? [] : this.#failures.splice(at, 1);
    if (injected) throw failure(request, injected.code);
  }
}

function elementOf(data: Buffer): Element {
  const attributes = parseAttributes(data);
  const [address] = parseAttributes(attributes.get(1) as Buffer).values();
  const ip = ipFromBytes(address as Buffer);
  const [port, protocol] = [attributes.get(4), attributes.get(7)];
  return {
    entry: `${ip}/${attributes.get(3)?.[0] ?? factsOf(ip).bits}` as Cidr,
    ...(port && protocol && { port: [port, protocol] as const }),
  };
}

/** `10.0.0.0/8` or `10.0.0.1,tcp:80`. */
function parseElement(text: string): Element {
  const [ip = '', name, port] = text.split(/,|:(?=\d+$)/);
  const number = { tcp: 6, udp: 17, sctp: 132 }[name ?? ''];
  if (number === undefined) return { entry: parseCidr(text) as Cidr };
  const at = Number(port);
  return { entry: hostCidr(ip as IpAddress), port: [Buffer.of(at >> 8, at & 0xff), Buffer.of(number)] };
}

function message({ name, type, family, maxElements }: IpSet, elements: readonly Element[]): NetlinkMessage {
  const element = ({ entry, port }: Element) =>
    nested(
      7,
      nested(1, attribute(factsOf(entry) === FAMILIES.ipv4 ? 1 : 2, bytesOf(networkOf(entry)))),
      // A set of ports has no prefix lengths.
      ...(port ? [attribute(4, port[0]), attribute(7, port[1])] : [u8(3, prefixLengthOf(entry))]),
    );
  const payload = Buffer.concat([
    Uint8Array.of(FAMILIES[family].addressFamily, 0, 0, 0),
    u8(1, 7),
    text(2, name),
    text(3, type),
    u8(5, FAMILIES[family].addressFamily),
    nested(7, u32Be(19, maxElements)),
    nested(8, ...elements.map(element)),
  ]);
  return { type: 0, flags: 0, port: 0, payload };
}

const refusal = (code: string, object: string): KernelError => new KernelError({ code, operation: 'change', object });
const failure = ({ operation, object }: NetlinkRequest, code: string): KernelError =>
  new KernelError({ code, operation, object });
const commandFailure = ({ file, args }: Command, code: string, detail: string): KernelError =>
  new KernelError({ code, operation: 'run', object: [file, ...args].join(' '), detail });
