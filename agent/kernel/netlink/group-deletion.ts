/**
 * Destroys links, many in one request: each request for one link costs 16 ms inside the kernel, one for fifty as much. The
 * request names a group and takes every device of it, so the group's number is a fresh random one that is checked.
 */
import { KernelError } from '../errors.ts';
import { u32 } from './attributes.ts';
import { dumpLinks } from './links.ts';
import type { NetlinkClient } from './message.ts';
import { IFLA, type LinkFacts, linkHeader, RTM } from './rtnetlink.ts';

/** A link to destroy: all three must still be the same, or it is left alone. */
export type DoomedLink = Pick<LinkFacts, 'ifindex' | 'name' | 'alias'>;

/** Numbers that are in use, by accident or by malice, are tried again. */
const GROUP_ATTEMPTS = 5;

const randomGroupNumber = (): number => 1 + Math.floor(Math.random() * 0x7ffffffe);

/** Resolves when those of the links that still exist are gone. Throws KernelError. `randomGroup` gives 1 to 2^31 - 1. */
export async function deleteLinks(
  client: NetlinkClient,
  doomed: readonly DoomedLink[],
  randomGroup = randomGroupNumber,
): Promise<void> {
  for (let attempt = 1; attempt <= GROUP_ATTEMPTS; attempt++) {
    const all = await dumpLinks(client);
    const victims = all.filter((link) => doomed.some((other) => isSameLink(link, other)));
    const [only] = victims;
    if (!only) return;
    if (victims.length === 1) return ignoreGone(deleteOne(client, only));
    if (await deleteAsGroup(client, all, victims, randomGroup())) return;
  }
  const detail = `${GROUP_ATTEMPTS} random group numbers were all in use by other devices`;
  throw new KernelError({ code: 'EBUSY', operation: 'delete', object: `${doomed.length} links`, detail });
}

const isSameLink = (a: DoomedLink, b: DoomedLink): boolean =>
  a.ifindex === b.ifindex && a.name === b.name && a.alias === b.alias;

const deleteOne = async (client: NetlinkClient, { ifindex, name }: LinkFacts): Promise<void> => {
  await client.request({
    type: RTM.DELLINK,
    payload: linkHeader({ ifindex }),
    operation: 'delete',
    object: `link ${name}`,
  });
};

/** False when somebody else's device has that group. */
async function deleteAsGroup(
  client: NetlinkClient,
  before: readonly LinkFacts[],
  victims: readonly LinkFacts[],
  group: number,
): Promise<boolean> {
  if (before.some((link) => link.group === group)) return false;
  const marks = victims.map(({ ifindex, name }) => ({
    type: RTM.SETLINK,
    payload: Buffer.concat([linkHeader({ ifindex }), u32(IFLA.GROUP, group)]),
    operation: 'mark',
    object: `link ${name}`,
  }));
  const failed = (await client.batch(marks)).find((error) => error !== undefined && error.code !== 'ENODEV');
  if (failed) throw failed;
  const members = (await dumpLinks(client)).filter((link) => link.group === group);
  if (!members.every((member) => victims.some((victim) => isSameLink(member, victim)))) return false;
  const payload = Buffer.concat([linkHeader(), u32(IFLA.GROUP, group)]);
  await ignoreGone(
    client.request({ type: RTM.DELLINK, payload, operation: 'delete', object: `${members.length} links` }),
  );
  return true;
}

/** The namespace of a pod may end at the same time: the kernel then destroys its pair itself. */
async function ignoreGone(deletion: Promise<unknown>): Promise<void> {
  try {
    await deletion;
  } catch (error) {
    if (!(error instanceof KernelError && error.code === 'ENODEV')) throw error;
  }
}
