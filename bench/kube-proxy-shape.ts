/**
 * What kube-proxy leaves in the kernel for such Services, made here as text: chains and rules as in `iptables-save` of a
 * cluster in iptables mode (one line in KUBE-SERVICES a port, KUBE-SVC-… that chooses, KUBE-SEP-… that translates), and the
 * layout of its nftables mode (a verdict map by address, protocol and port; KEP-3866). Cluster addresses and TCP only. Pure.
 */
import type { Family, IpAddress } from '../agent/model/ip.ts';
import { ipPortText } from '../agent/model/ip-port.ts';
import { hash } from '../agent/model/kernel-names.ts';
import { type BenchService, NAMESPACE, POD_CIDRS, targetPort } from './service-set.ts';

/** One after the other, each one call of the tool. */
export interface Shape {
  readonly file: string;
  readonly args: readonly string[];
  full(services: readonly BenchService[]): readonly string[];
  /** One Service is another now; `services` are all as they are now. */
  partial(services: readonly BenchService[], before: BenchService, now: BenchService): readonly string[];
}

const MARK = '0x4000/0x4000';
const portName = ({ name }: BenchService, port: number): string => `${NAMESPACE}/${name}:p${port}`;
const sum = (text: string): string => hash(text, 16).toUpperCase();
/** Where an endpoint listens. */
const at = (ip: IpAddress, port: number): string => ipPortText({ ip, port: targetPort(port) });
const svcChain = (service: BenchService, port: number): string => `KUBE-SVC-${sum(portName(service, port))}`;
const sepChain = (service: BenchService, port: number, ip: string): string =>
  `KUBE-SEP-${sum(`${portName(service, port)} ${ip}`)}`;

const BASE_CHAINS = ['KUBE-SERVICES', 'KUBE-NODEPORTS', 'KUBE-POSTROUTING', 'KUBE-MARK-MASQ'];

const TABLES = { ipv4: 'iptables', ipv6: 'ip6tables' } as const satisfies Record<Family, string>;

export const iptablesShape = (backend: 'nft' | 'legacy', family: Family): Shape => ({
  file: `${TABLES[family]}-${backend}-restore`,
  args: ['-w', '5', '--noflush', '--counters'],
  full: (services) => [
    natTable(services, services, [
      '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
      '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
      '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
    ]),
  ],
  // As since 1.27: what all share is written whole, of the others what changed. The chain of the former endpoint stays for now.
  partial: (services, _, now) => [natTable(services, [now], [])],
});

function natTable(
  services: readonly BenchService[],
  changed: readonly BenchService[],
  jumps: readonly string[],
): string {
  const own = changed.flatMap((service) => service.ports.map((port) => serviceRules(service, port)));
  return [
    '*nat',
    ...BASE_CHAINS.map((chain) => `:${chain} - [0:0]`),
    ...own.flatMap(({ chains }) => chains.map((chain) => `:${chain} - [0:0]`)),
    ...jumps,
    `-A KUBE-POSTROUTING -m mark ! --mark ${MARK} -j RETURN`,
    '-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000',
    '-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully',
    '-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000',
    ...services.flatMap((service) => service.ports.map((port) => serviceLine(service, port))),
    '-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS',
    ...own.flatMap(({ rules }) => rules),
    'COMMIT\n',
  ].join('\n');
}

const serviceLine = (service: BenchService, port: number): string =>
  `-A KUBE-SERVICES -m comment --comment "${portName(service, port)} cluster IP" -m tcp -p tcp -d ${service.ip} --dport ${port} -j ${svcChain(service, port)}`;

function serviceRules(service: BenchService, port: number) {
  const { ip, endpoints, family } = service;
  const name = portName(service, port);
  const chain = svcChain(service, port);
  const seps = endpoints.map((address) => ({ address, sep: sepChain(service, port, address) }));
  const chance = (i: number): string =>
    i === seps.length - 1 ? '' : `-m statistic --mode random --probability ${(1 / (seps.length - i)).toFixed(10)} `;
  const rules = [
    `-A ${chain} -m comment --comment "${name} cluster IP" -m tcp -p tcp -d ${ip} --dport ${port} ! -s ${POD_CIDRS[family]} -j KUBE-MARK-MASQ`,
    ...seps.map(
      ({ address, sep }, i) =>
        `-A ${chain} -m comment --comment "${name} -> ${at(address, port)}" ${chance(i)}-j ${sep}`,
    ),
    ...seps.flatMap(({ address, sep }) => [
      `-A ${sep} -m comment --comment ${name} -s ${address} -j KUBE-MARK-MASQ`,
      `-A ${sep} -m comment --comment ${name} -m tcp -p tcp -j DNAT --to-destination ${at(address, port)}`,
    ]),
  ];
  return { chains: [chain, ...seps.map(({ sep }) => sep)], rules };
}

/** In one transaction nft 1.0.6 takes 97 s for 10,000 Services, in such portions a quarter of that. */
const SERVICES_A_TRANSACTION = 250;
/** The word of a family in nft, for its tables and for the headers of its packets. */
const WORDS = { ipv4: 'ip', ipv6: 'ip6' } as const satisfies Record<Family, string>;
const tableOf = ({ family }: Pick<BenchService, 'family'>): string => `${WORDS[family]} kube-proxy`;

export const nftablesShape = (family: Family): Shape => ({
  file: 'nft',
  args: ['-f', '-'],
  full: (services) => [nftBase(family), ...portions(services).map((some) => lines(some.flatMap(nftService)))],
  partial: (_, before, now) => [
    lines([
      ...now.endpoints.filter((ip) => !before.endpoints.includes(ip)).flatMap((ip) => nftEndpoints(now, [ip])),
      ...now.ports.flatMap((port) => [`flush chain ${tableOf(now)} ${nftChain(now, port)}`, ...nftChoice(now, port)]),
    ]),
  ],
});

const nftBase = (family: Family): string => `table ${tableOf({ family })} {
  map service-ips { type ${family}_addr . inet_proto . inet_service : verdict; }
  chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
  chain services { ${WORDS[family]} daddr . meta l4proto . th dport vmap @service-ips; }
  chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
  chain nat-output { type nat hook output priority -100; jump services; }
  chain nat-postrouting {
    type nat hook postrouting priority srcnat;
    meta mark & 0x4000 == 0 return; meta mark set meta mark xor 0x4000; masquerade fully-random;
  }
}
`;

const portions = (services: readonly BenchService[]): readonly (readonly BenchService[])[] =>
  Array.from({ length: Math.ceil(services.length / SERVICES_A_TRANSACTION) }, (_, i) =>
    services.slice(i * SERVICES_A_TRANSACTION, (i + 1) * SERVICES_A_TRANSACTION),
  );
const lines = (all: readonly string[]): string => all.map((line) => `${line}\n`).join('');

const nftChain = (service: BenchService, port: number): string =>
  `service-${sum(portName(service, port))}-${NAMESPACE}/${service.name}/tcp/p${port}`;
const nftEndpointChain = (service: BenchService, port: number, ip: string): string =>
  // A colon ends a name.
  `endpoint-${sum(`${portName(service, port)} ${ip}`)}-${NAMESPACE}/${service.name}/tcp/p${port}__${ip.replaceAll(':', '.')}/${targetPort(port)}`;

const nftService = (service: BenchService): readonly string[] => [
  ...nftEndpoints(service, service.endpoints),
  ...service.ports.flatMap((port) => [
    `add chain ${tableOf(service)} ${nftChain(service, port)}`,
    ...nftChoice(service, port),
    `add element ${tableOf(service)} service-ips { ${service.ip} . tcp . ${port} : goto ${nftChain(service, port)} }`,
  ]),
];

const nftChoice = (service: BenchService, port: number): readonly string[] => {
  const numbered = service.endpoints.map((ip, i) => `${i} : goto ${nftEndpointChain(service, port, ip)}`);
  const rule = `add rule ${tableOf(service)} ${nftChain(service, port)}`;
  const { ip, family } = service;
  const header = WORDS[family];
  return [
    `${rule} ${header} daddr ${ip} tcp dport ${port} ${header} saddr != ${POD_CIDRS[family]} jump mark-for-masquerade`,
    `${rule} numgen random mod ${numbered.length} vmap { ${numbered.join(', ')} }`,
  ];
};

const nftEndpoints = (service: BenchService, ips: readonly IpAddress[]): readonly string[] =>
  service.ports.flatMap((port) =>
    ips.flatMap((ip) => {
      const [table, chain] = [tableOf(service), nftEndpointChain(service, port, ip)];
      return [
        `add chain ${table} ${chain}`,
        `add rule ${table} ${chain} ${WORDS[service.family]} saddr ${ip} jump mark-for-masquerade`,
        `add rule ${table} ${chain} meta l4proto tcp dnat to ${at(ip, port)}`,
      ];
    }),
  );

/** Rules and elements in such a text. */
export const entriesOf = (text: string): number => text.match(/^(-A|add rule|add element) /gm)?.length ?? 0;
