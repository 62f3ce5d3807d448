/** Tables and base chains of nftables, whoever made them; read over nfnetlink (linux/netfilter/nf_tables.h). */
import { KernelError } from './errors.ts';
import { parseAttributes, textOf } from './netlink/attributes.ts';
import type { NetlinkClient, NetlinkMessage } from './netlink/message.ts';

const NFNL_SUBSYS_NFTABLES = 10;
const NFT_MSG = { GETTABLE: 1, GETCHAIN: 4 } as const;
const TABLE = { NAME: 1 } as const;
const CHAIN = { TABLE: 1, NAME: 3, HOOK: 4, POLICY: 5 } as const;
const HOOK = { HOOKNUM: 1, PRIORITY: 2 } as const;
const NF_DROP = 0;
/** struct nfgenmsg. */
const NFGENMSG_BYTES = 4;

/** NFPROTO_* (linux/netfilter.h), as nft writes them. */
const FAMILY_NAMES: Readonly<Record<number, string>> = {
  1: 'inet',
  2: 'ip',
  3: 'arp',
  5: 'netdev',
  7: 'bridge',
  10: 'ip6',
};
/** NF_INET_* (linux/netfilter.h). */
const HOOK_NAMES = ['prerouting', 'input', 'forward', 'output', 'postrouting'] as const;

export interface NftTable {
  /** `ip`, `ip6`, `inet` … */
  readonly family: string;
  readonly name: string;
}

export interface NftBaseChain {
  readonly family: string;
  readonly table: string;
  readonly name: string;
  readonly hook: (typeof HOOK_NAMES)[number];
  readonly priority: number;
  readonly policy: 'accept' | 'drop';
}

/** None where the kernel has no nf_tables. Throws other KernelErrors. */
export async function listTables(client: NetlinkClient): Promise<readonly NftTable[]> {
  const messages = await dump(client, NFT_MSG.GETTABLE, 'tables');
  return messages.flatMap((message) => {
    const name = textOf(attributesOf(message).get(TABLE.NAME));
    return name === undefined ? [] : [{ family: familyName(message), name }];
  });
}

/** Chains that see packets by themselves, at the hooks of IP. */
export async function listBaseChains(client: NetlinkClient): Promise<readonly NftBaseChain[]> {
  const messages = await dump(client, NFT_MSG.GETCHAIN, 'chains');
  return messages.flatMap((message) => readBaseChain(message) ?? []);
}

function readBaseChain(message: NetlinkMessage): NftBaseChain | undefined {
  const attributes = attributesOf(message);
  const [table, name] = [textOf(attributes.get(CHAIN.TABLE)), textOf(attributes.get(CHAIN.NAME))];
  const hook = attributes.get(CHAIN.HOOK);
  const family = familyName(message);
  if (table === undefined || name === undefined || !hook || !['ip', 'ip6', 'inet'].includes(family)) return undefined;
  const hookAttributes = parseAttributes(hook);
  const hookName = HOOK_NAMES[u32BeOf(hookAttributes.get(HOOK.HOOKNUM)) ?? -1];
  if (!hookName) return undefined;
  const policy = u32BeOf(attributes.get(CHAIN.POLICY)) === NF_DROP ? 'drop' : 'accept';
  return {
    family,
    table,
    name,
    hook: hookName,
    priority: (u32BeOf(hookAttributes.get(HOOK.PRIORITY)) ?? 0) | 0,
    policy,
  };
}

async function dump(client: NetlinkClient, command: number, what: string): Promise<readonly NetlinkMessage[]> {
  const type = (NFNL_SUBSYS_NFTABLES << 8) | command;
  try {
    return await client.dump({
      type,
      payload: Buffer.alloc(NFGENMSG_BYTES),
      operation: 'list',
      object: `${what} of nftables`,
    });
  } catch (error) {
    if (error instanceof KernelError && ['EINVAL', 'EOPNOTSUPP', 'ENOTSUP'].includes(error.code)) return [];
    throw error;
  }
}

const attributesOf = ({ payload }: NetlinkMessage) => parseAttributes(payload, NFGENMSG_BYTES);

const familyName = ({ payload }: NetlinkMessage): string => FAMILY_NAMES[payload[0] ?? 0] ?? `family ${payload[0]}`;

const u32BeOf = (payload: Buffer | undefined): number | undefined =>
  payload?.length === 4 ? payload.readUInt32BE(0) : undefined;
