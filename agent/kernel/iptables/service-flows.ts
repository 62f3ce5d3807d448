/**
 * Which UDP flows the rules of nat serve, read from the rules themselves: so it is known after a restart, too, what an
 * earlier agent had translated. After each write it tells the places whose backends may be others now, for conntrack.
 */
import type { Family } from '../../model/ip.ts';
import { networkOf, parseCidr, parseIp } from '../../model/ip.ts';
import { type ChainPart, type Key, keyOf, type Rule } from '../../model/items.ts';
import type { FlowEnd, ServedPlace } from '../conntrack.ts';
import type { FoundPart } from './render.ts';

/** What one part says: to which chains a place leads, or which backends its chain has. */
interface Meaning {
  readonly family: Family;
  readonly chain: string;
  readonly place?: FlowEnd;
  readonly leadsTo: readonly string[];
  readonly backends: readonly FlowEnd[];
}

export class ServiceFlows {
  readonly #parts = new Map<Key<'chain-part'>, Meaning>();
  /** Parts by `<family> <chain>` that they lead to, and by the one that they are in if they name backends. */
  readonly #leading = new Map<string, Set<Key<'chain-part'>>>();
  readonly #choosing = new Map<string, Set<Key<'chain-part'>>>();

  /** What a list has found, in the place of all that was known. */
  hold(parts: Iterable<ChainPart>): void {
    this.#parts.clear();
    this.#leading.clear();
    this.#choosing.clear();
    for (const part of parts) {
      const meaning = meaningOf(part);
      if (meaning) this.#put(keyOf('chain-part', part), meaning);
    }
  }

  /** Notes parts as they are now, `undefined` for removed ones. Returns the places that are concerned, by family. */
  wrote(parts: Iterable<readonly [Key<'chain-part'>, ChainPart | undefined]>): ReadonlyMap<Family, ServedPlace[]> {
    const touched = new Map<string, Meaning>();
    const touch = (key: Key<'chain-part'>): void => {
      const known = this.#parts.get(key);
      if (!known) return;
      const leading = known.place ? [key] : (this.#leading.get(`${known.family} ${known.chain}`) ?? []);
      for (const each of leading) {
        const meaning = this.#parts.get(each);
        if (meaning?.place) touched.set(`${meaning.place.ip} ${meaning.place.port}`, meaning);
      }
    };
    for (const [key, part] of parts) {
      touch(key);
      this.#put(key, part && meaningOf(part));
      touch(key);
    }
    const served = [...touched.values()].map(
      ({ family, place }) => [family, this.#served(family, place as FlowEnd)] as const,
    );
    return new Map(
      [...Map.groupBy(served, ([family]) => family)].map(([family, own]) => [family, own.map(([, place]) => place)]),
    );
  }

  #put(key: Key<'chain-part'>, meaning: Meaning | undefined): void {
    const former = this.#parts.get(key);
    for (const [index, name] of former ? this.#entries(former) : []) index.get(name)?.delete(key);
    if (!meaning) this.#parts.delete(key);
    else this.#parts.set(key, meaning);
    for (const [index, name] of meaning ? this.#entries(meaning) : [])
      index.set(name, (index.get(name) ?? new Set()).add(key));
  }

  *#entries({ family, chain, place, leadsTo, backends }: Meaning) {
    for (const next of leadsTo) yield [this.#leading, `${family} ${next}`] as const;
    if (backends.length > 0) yield [this.#choosing, `${family} ${chain}`] as const;
    if (place) yield [this.#leading, placeName(place)] as const;
  }

  #served(family: Family, place: FlowEnd): ServedPlace {
    const keys = [...(this.#leading.get(placeName(place)) ?? [])];
    const chains = new Set(keys.flatMap((key) => this.#parts.get(key)?.leadsTo ?? []));
    const choosing = [...chains].flatMap((chain) => [...(this.#choosing.get(`${family} ${chain}`) ?? [])]);
    return { place, backends: choosing.flatMap((key) => this.#parts.get(key)?.backends ?? []) };
  }
}

const placeName = ({ ip, port }: FlowEnd): string => `to ${ip} ${port}`;

/** Undefined for what is no business of UDP flows to Services: nearly every part. */
function meaningOf(part: ChainPart): Meaning | undefined {
  if (part.table !== 'nat' || !mentionsUdp(part)) return undefined;
  const { family, chain, rules } = part;
  const udp = rules.filter((rule) => optionOf(rule, '-p') === 'udp');
  const backends = udp.flatMap((rule) => endOf(optionOf(rule, '--to-destination')) ?? []);
  const [first] = udp;
  const address = first && optionOf(first, '-d');
  const ip = address === undefined ? undefined : (parseIp(address) ?? addressOf(address));
  const port = Number(first && optionOf(first, '--dport'));
  const leadsTo = udp.flatMap((rule) => optionOf(rule, '-g') ?? []);
  const isPlace = ip !== undefined && Number.isInteger(port) && leadsTo.length > 0;
  if (!isPlace && backends.length === 0) return undefined;
  return { family, chain, leadsTo, backends, ...(isPlace && { place: { ip, port } }) };
}

/** To read the rules of all parts that a list has found takes longer than the list. */
const mentionsUdp = (part: ChainPart): boolean => {
  const { lines } = part as Partial<FoundPart>;
  return lines?.some((line) => line.includes(' -p udp ')) ?? true;
};

const optionOf = ({ args }: Rule, option: string): string | undefined => {
  const at = args.indexOf(option);
  return at < 0 ? undefined : args[at + 1];
};

const addressOf = (text: string) => {
  const cidr = parseCidr(text);
  return cidr && networkOf(cidr);
};

/** `10.84.0.1:8080`, `[fd84::1]:8080`. */
function endOf(text: string | undefined): FlowEnd | undefined {
  const [, address = '', port] = /^\[?([^\]]+?)\]?:(\d+)$/.exec(text ?? '') ?? [];
  const ip = parseIp(address);
  return ip && { ip, port: Number(port) };
}
