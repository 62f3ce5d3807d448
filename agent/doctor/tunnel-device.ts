/** The tunnel's device: that it is there, and that nobody else has its name, its VNI with its port, or its port. */

import { accessSync, constants } from 'node:fs';
import { isNodeLink } from '../kernel/netlink/links.ts';
import type { LinkFacts } from '../kernel/netlink/rtnetlink.ts';
import { TUN_FILE } from '../kernel/netlink/tun.ts';
import { vxlanIdentity } from '../kernel/netlink/vxlan.ts';
import type { TunnelPlace } from '../plan/backend.ts';
import { BACKENDS } from '../plan/backends.ts';
import { type Facts, runningAgent } from './facts.ts';
import { type Check, type Finding, verdict } from './finding.ts';
import { type LocalSocket, udpSockets } from './sockets.ts';

export const tunnelDevice: Check = {
  name: 'tunnel-device',
  async run(facts) {
    const { config } = facts;
    const place = BACKENDS[config.backend].tunnel?.(config);
    if (!place) return { skipped: `backend ${config.backend} has no tunnel` };
    const links = await facts.links();
    const own = links.find(({ name }) => name === place.link);
    const holder = udpSockets().find(({ port }) => port === place.port);
    const isForeign = own !== undefined && !isNodeLink(own);
    const findings = [
      ...(config.backend === 'tun' ? tunFile() : rivals(links, own, facts)),
      isForeign ? foreign(own, place) : undefined,
      holder && !isTunnelPort(links, place, facts) ? occupied(holder, place) : undefined,
    ].filter((finding) => finding !== undefined);
    if (findings.length === 0 && !own) return verdict('', [absent(place.link, facts)]);
    if (own && !own.up && !isForeign) findings.push(down(own));
    const vni = config.backend === 'vxlan' ? `, VNI ${config['vxlan.vni']}` : '';
    return verdict(`${place.link}${vni}, UDP port ${place.port}, MTU ${own?.mtuBytes}`, findings);
  },
};

/** Whether it is a tunnel that holds the port: one of the kernel, or the agent that carries it. */
const isTunnelPort = (links: readonly LinkFacts[], { port, portSetting }: TunnelPlace, facts: Facts): boolean =>
  portSetting === 'tun.port'
    ? runningAgent(facts)?.tunnel?.path?.port === port
    : links.some((link) => vxlanIdentity(link)?.port === port);

const rivals = (links: readonly LinkFacts[], own: LinkFacts | undefined, facts: Facts): readonly Finding[] =>
  links.filter((link) => isRival(link, facts) && link !== own).map((rival) => taken(rival, facts));

function tunFile(): readonly Finding[] {
  try {
    accessSync(TUN_FILE, constants.R_OK | constants.W_OK);
    return [];
  } catch (error) {
    return [
      {
        severity: 'error',
        summary: `${TUN_FILE} cannot be opened`,
        evidence: [(error as Error).message],
        cause: 'The module tun is not loaded, or the container of the agent does not have the file.',
        remedy: `modprobe tun; mount ${TUN_FILE} into the container, as deploy/tulle.yaml does`,
      },
    ];
  }
}

function isRival(link: LinkFacts, { config }: Facts): boolean {
  const identity = vxlanIdentity(link);
  return identity?.vni === config['vxlan.vni'] && identity.port === config['vxlan.port'];
}

const describeLink = (link: LinkFacts): string => {
  const { vni, port } = vxlanIdentity(link) ?? {};
  const tunnel = vni === undefined ? '' : `, VNI ${vni}, port ${port}`;
  return `link ${link.name}: ${link.kind || 'hardware'}${tunnel}, ${link.up ? 'up' : 'down'}, alias ${JSON.stringify(link.alias)}`;
};

const foreign = (link: LinkFacts, { portSetting }: TunnelPlace): Finding => ({
  severity: 'error',
  summary: `a link ${link.name} exists that is not Tulle's`,
  evidence: [describeLink(link)],
  cause:
    'Somebody made a device of this name, or removed the alias by which Tulle knows its own. Tulle never changes what is not its own.',
  remedy: `ip link delete ${link.name}${portSetting === 'vxlan.port' ? ', or another vxlan.vni on all nodes' : ''}`,
});

const taken = (link: LinkFacts, { config }: Facts): Finding => ({
  severity: 'error',
  summary: `${link.name} has VNI ${config['vxlan.vni']} and UDP port ${config['vxlan.port']}, which Tulle needs`,
  evidence: [describeLink(link)],
  cause:
    'The kernel refuses a second device with the same VNI and port (EEXIST). It was made by another network, or under an earlier name.',
  remedy: `ip link delete ${link.name} if nobody needs it, or another vxlan.vni or vxlan.port on all nodes`,
});

const occupied = ({ line }: LocalSocket, { port, portSetting }: TunnelPlace): Finding => ({
  severity: 'error',
  summary: `a program holds UDP port ${port}, which the tunnel needs`,
  evidence: [line],
  cause: 'It bound the port before the tunnel did, which can then not be opened (EADDRINUSE).',
  remedy: `find it with ss -ulpn 'sport = :${port}' and stop it, or another ${portSetting} on all nodes`,
});

const absent = (name: string, facts: Facts): Finding => ({
  severity: 'error',
  summary: `there is no tunnel device ${name}`,
  evidence: [`links: none named ${name}`],
  cause: runningAgent(facts)
    ? 'The agent has no podCIDR to work with, or the kernel refuses the device: see the other checks.'
    : 'No agent has made it since the last boot, or somebody removed it while none ran.',
  remedy: runningAgent(facts) ? '`tulle status` says what fails' : 'start the agent',
});

const down = (link: LinkFacts): Finding => ({
  severity: 'error',
  summary: `the tunnel device ${link.name} is down`,
  evidence: [describeLink(link)],
  cause: 'Somebody set it down (ip link, a network manager that takes every device for its own).',
  remedy: `start the agent, which sets it up again; let NetworkManager leave it alone (unmanaged-devices=interface-name:tulle*;interface-name:tl*)`,
});
