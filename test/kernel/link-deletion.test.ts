/** The reaper of links, on a real kernel. */
import { execFile } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { promisify } from 'node:util';
import test, { type ExecutionContext } from 'ava';
import { KernelError } from '../../agent/kernel/errors.ts';
import { dumpLinks, readLink } from '../../agent/kernel/netlink/links.ts';
import { NETLINK_PROTOCOL, type NetlinkRequest } from '../../agent/kernel/netlink/message.ts';
import { BackgroundReaper } from '../../agent/kernel/netlink/reaper.ts';
import { type LinkFacts, linkHeader, RTM } from '../../agent/kernel/netlink/rtnetlink.ts';
import { NetlinkSocket } from '../../agent/kernel/netlink/socket.ts';
import { createNetns, waitFor } from '../support/netns.ts';

async function openHost(t: ExecutionContext, count: number) {
  const host = await createNetns(t, 'host');
  const netnsFd = openSync(host.path, 'r');
  const client = new NetlinkSocket(NETLINK_PROTOCOL.ROUTE, { netnsFd });
  const errors: Error[] = [];
  const reaper = new BackgroundReaper({ netnsFd, delayMs: 50, onError: (error) => errors.push(error) });
  t.teardown(async () => {
    await reaper.close();
    client.close();
    closeSync(netnsFd);
  });
  const commands = Array.from({ length: count }, (_, n) => `link add v${n} type veth peer name p${n}`);
  await host.feed(commands.join('\n'), 'ip', '-batch', '-');
  const pairs = (await dumpLinks(client)).filter(({ name }) => name.startsWith('v'));
  return { host, client, reaper, pairs, errors };
}

test('reaper: fifty pairs go soon, together, and the main thread goes on meanwhile', async (t) => {
  const { client, reaper, pairs, errors } = await openHost(t, 51);
  const [kept, ...doomed] = pairs as [LinkFacts, ...LinkFacts[]];
  for (const link of doomed) reaper.later(link);
  t.true(doomed.every(({ ifindex }) => reaper.isDoomed(ifindex)));
  t.is((await dumpLinks(client)).length, 103, 'not yet');
  await waitFor(() => doomed.every(({ ifindex }) => !reaper.isDoomed(ifindex)), { describe: 'the end of fifty pairs' });
  t.deepEqual(
    (await dumpLinks(client)).map(({ name }) => name).filter((name) => name.startsWith('v')),
    [kept.name],
  );
  t.deepEqual(errors, []);
});

test('netlink: the main thread works on while the kernel carries out a request in the background', async (t) => {
  const { client, pairs } = await openHost(t, 2);
  const turnsDuring = async (send: (request: NetlinkRequest) => Promise<unknown>, { ifindex, name }: LinkFacts) => {
    const deletion = { type: RTM.DELLINK, payload: linkHeader({ ifindex }), operation: 'delete', object: name };
    let turns = 0;
    const turn = setInterval(() => turns++, 1);
    await send(deletion);
    clearInterval(turn);
    return turns;
  };
  const [first, second] = pairs as [LinkFacts, LinkFacts];
  t.is(await turnsDuring((request) => client.request(request), first), 0);
  t.true((await turnsDuring((request) => client.requestInBackground(request), second)) > 0);
  t.is((await dumpLinks(client)).length, 1);
});

test('netlink: what the kernel refuses in the background is said as always', async (t) => {
  const { client } = await openHost(t, 0);
  const deletion = { type: RTM.DELLINK, payload: linkHeader({ ifindex: 99 }), operation: 'delete', object: 'link 99' };
  await t.throwsAsync(client.requestInBackground(deletion), { instanceOf: KernelError, message: /ENODEV/ });
  client.close();
  await t.throwsAsync(client.requestInBackground(deletion), { instanceOf: KernelError, message: /ECANCELED/ });
});

test('reaper: destroy waits for the end, and what is gone already is no error', async (t) => {
  const { client, reaper, pairs } = await openHost(t, 2);
  await reaper.destroy(pairs);
  t.is(await readLink(client, 'v0'), undefined);
  await t.notThrowsAsync(reaper.destroy(pairs));
});

test('reaper: closing waits for its work and refuses what comes after', async (t) => {
  const { client, reaper, pairs } = await openHost(t, 1);
  for (const link of pairs) reaper.later(link);
  await reaper.close();
  await t.throwsAsync(reaper.destroy(pairs), { instanceOf: KernelError, message: /ECANCELED/ });
  t.truthy(await readLink(client, 'v0'), 'what was collected stays for the next process');
});

test('reaper: what is collected does not keep the process alive', async (t) => {
  const url = new URL('../../agent/kernel/netlink/reaper.ts', import.meta.url);
  const source = `
    const { BackgroundReaper } = await import(${JSON.stringify(url.href)});
    const reaper = new BackgroundReaper();
    await reaper.destroy([{ ifindex: 999999, name: 'tl-none', alias: '' }]);
    reaper.later({ ifindex: 999999, name: 'tl-none', alias: '' });
    console.log('done');
  `;
  const run = promisify(execFile)(process.execPath, ['--input-type=module', '--eval', source], { timeout: 20_000 });
  t.is((await run).stdout, 'done\n');
});
