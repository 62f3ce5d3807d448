/** The tunnel's device: that it is there, and that nobody else has its name, its VNI with its port, or its port. */

import { isNodeLink } from '../kernel/netlink/links.ts';
import type { LinkFacts } from '../kernel/netlink/rtnetlink.ts';
import { vxlanIdentity } from '../kernel/netlink/vxlan.ts';
import { vxlanLinkName } from '../model/kernel-names.ts';
import { type Facts, runningAgent } from './facts.ts';
import { type Check, type Finding, verdict } from './finding.ts';
import { type LocalSocket, udpSockets } from './sockets.ts';

export const tunnelDevice: Check = {
  name: 'tunnel-device',
  async run(facts) {
    const { config } = facts;
    if (config.backend !== 'vxlan') return { skipped: `backend ${config.backend} has no tunnel` };
    const links = await facts.links();
    const name = vxlanLinkName(config['vxlan.vni']);
    const own = links.find((link) => link.name === name);
    const rivals = links.filter((link) => isRival(link, facts) && link !== own);
    const holders = udpSockets().filter(({ port }) => port === config['vxlan.port']);
    const isTunnelPort = links.some((link) => vxlanIdentity(link)?.port === config['vxlan.port']);
    const isForeign = own !== undefined && !isNodeLink(own);
    const findings = [
      isForeign ? foreign(own) : undefined,
      ...rivals.map((rival) => taken(rival, facts)),
      holders[0] && !isTunnelPort ? occupied(holders[0], facts) : undefined,
    ].filter((finding) => finding !== undefined);
    if (findings.length === 0 && !own) return verdict('', [absent(name, facts)]);
    if (own && !own.up && !isForeign) findings.push(down(own));
    return verdict(
      `${name}, VNI ${config['vxlan.vni']}, UDP port ${config['vxlan.port']}, MTU ${own?.mtuBytes}`,
      findings,
    );
  },
};

function isRival(link: LinkFacts, { config }: Facts): boolean {
  const identity = vxlanIdentity(link);
  return identity?.vni === config['vxlan.vni'] && identity.port === config['vxlan.port'];
}

const describeLink = (link: LinkFacts): string => {
  const { vni, port } = vxlanIdentity(link) ?? {};
  const tunnel = vni === undefined ? '' : `, VNI ${vni}, port ${port}`;
  return `link ${link.name}: ${link.kind || 'hardware'}${tunnel}, ${link.up ? 'up' : 'down'}, alias ${JSON.stringify(link.alias)}`;
};

const foreign = (link: LinkFacts): Finding => ({
  severity: 'error',
  summary: `a link ${link.name} exists that is not Tulle's`,
  evidence: [describeLink(link)],
  cause:
    'Somebody made a device of this name, or removed the alias by which Tulle knows its own. Tulle never changes what is not its own.',
  remedy: `ip link delete ${link.name}, or another vxlan.vni on all nodes`,
});

const taken = (link: LinkFacts, { config }: Facts): Finding => ({
  severity: 'error',
  summary: `${link.name} has VNI ${config['vxlan.vni']} and UDP port ${config['vxlan.port']}, which Tulle needs`,
  evidence: [describeLink(link)],
  cause:
    'The kernel refuses a second device with the same VNI and port (EEXIST). It was made by another network, or under an earlier name.',
  remedy: `ip link delete ${link.name} if nobody needs it, or another vxlan.vni or vxlan.port on all nodes`,
});

const occupied = ({ line }: LocalSocket, { config }: Facts): Finding => ({
  severity: 'error',
  summary: `a program holds UDP port ${config['vxlan.port']}, which the tunnel needs`,
  evidence: [line],
  cause: 'It bound the port before the tunnel did; the device can then not come up (EADDRINUSE).',
  remedy: `find it with ss -ulpn 'sport = :${config['vxlan.port']}' and stop it, or another vxlan.port on all nodes`,
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
