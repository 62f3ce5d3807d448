/** The chain that a connection to a Service ends in: it chooses a backend, and the connection is translated to it. Pure. */
import { familyOf } from '../../../model/ip.ts';
import type { Rule } from '../../../model/items.ts';
import { hash } from '../../../model/kernel-names.ts';
import type { Backend, BackendSet, Protocol } from '../../../model/services.ts';
import { SET_MARK } from './base.ts';

export interface Choice {
  readonly chain: string;
  readonly protocol: Protocol;
  readonly set: BackendSet;
  readonly affinitySeconds: number | undefined;
  /** Set the mark for packets that have come without. */
  readonly marks: boolean;
  /** For people. */
  readonly service: string;
}

/**
 * Every backend with the same probability. With affinity, a client first meets the backends that it was at; the kernel keeps
 * the last 100 clients of each (xt_recent, ip_list_tot), for as long as a rule names the backend.
 */
export function backendRules(choice: Choice): readonly Rule[] {
  const { set, marks, service } = choice;
  const translations = set.backends.map((backend) => translation(choice, backend));
  return [
    ...(marks ? [{ args: SET_MARK, comment: service }] : []),
    ...translations.flatMap(({ again }) => again ?? []),
    ...translations.map(({ protocol, isNew, to }, i) => ({
      args: [...protocol, ...chance(translations.length - i), ...isNew, ...to],
      comment: service,
    })),
  ];
}

interface Translation {
  readonly protocol: readonly string[];
  /** For a client that was here before. */
  readonly again?: Rule;
  /** Notes the client. */
  readonly isNew: readonly string[];
  readonly to: readonly string[];
}

function translation({ chain, protocol: name, affinitySeconds, service }: Choice, { ip, port }: Backend): Translation {
  const protocol = ['-p', name.toLowerCase()];
  const isIpv6 = familyOf(ip) === 'ipv6';
  const to = ['-j', 'DNAT', '--to-destination', isIpv6 ? `[${ip}]:${port}` : `${ip}:${port}`];
  if (affinitySeconds === undefined) return { protocol, isNew: [], to };
  const mask = isIpv6 ? 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff' : '255.255.255.255';
  const list = ['--name', `tulle-${hash(`${chain} ${ip} ${port}`, 16)}`, '--mask', mask, '--rsource'];
  const was = ['-m', 'recent', '--update', '--seconds', String(affinitySeconds), '--reap', ...list];
  return {
    protocol,
    again: { args: [...protocol, ...was, ...to], comment: service },
    isNew: ['-m', 'recent', '--set', ...list],
    to,
  };
}

/** As iptables-save words it: a multiple of 2^-31 (linux/netfilter/xt_statistic.h). */
function chance(left: number): readonly string[] {
  if (left === 1) return [];
  const probability = Math.round(2 ** 31 / left) / 2 ** 31;
  return ['-m', 'statistic', '--mode', 'random', '--probability', probability.toFixed(11)];
}
