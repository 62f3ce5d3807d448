/** `tulle lab svc ...`: Services of the lab, written and read by its API. */
import { type Command, Option } from 'commander';
import { table } from '../agent/commands/table.ts';
import type { ApiObject } from './api-server/objects.ts';
import { apiPath } from './api-writer.ts';
import { control } from './current-lab.ts';
import { label, portNumber, wholeNumber } from './option-values.ts';
import { checkRoot } from './preflight.ts';
import { printLines } from './print.ts';
import { type ServiceRequest, type ServiceRow, serviceObject, serviceRows } from './services.ts';

type ExposeOptions = Omit<ServiceRequest, 'name' | 'selector'> & { readonly selector?: ServiceRequest['selector'] };

export function addServiceCommands(lab: Command): void {
  const svc = lab.command('svc').alias('service').description('Services of the lab');
  addExpose(svc);
  svc
    .command('ls')
    .description('list Services as the API has them: addresses, and the endpoints behind them')
    .option('--json', 'print JSON')
    .action(async ({ json }: { json?: boolean }) => {
      const rows = await readRows();
      printLines(json ? [JSON.stringify(rows, undefined, 2)] : describe(rows));
    });
  withNamespace(svc.command('rm').description('remove a Service').argument('<name>')).action(
    async (name: string, { namespace }: { namespace: string }) => {
      checkRoot();
      await control().callApi({ method: 'DELETE', path: apiPath.service(namespace, name) });
    },
  );
  withNamespace(
    svc
      .command('lb-ip')
      .description('set the addresses of a LoadBalancer, as the controller of a cloud does')
      .argument('<name>')
      .argument('[ip...]', 'none: it has no address yet'),
  )
    .addOption(new Option('--ip-mode <mode>', 'how traffic arrives').choices(['VIP', 'Proxy']))
    .action(async (name: string, ips: string[], { namespace, ipMode }: { namespace: string; ipMode?: string }) => {
      checkRoot();
      const ingress = ips.map((ip) => ({ ip, ...(ipMode !== undefined && { ipMode }) }));
      const path = `${apiPath.service(namespace, name)}/status`;
      await control().callApi({ method: 'PATCH', path, object: { status: { loadBalancer: { ingress } } } });
    });
}

const withNamespace = (command: Command): Command =>
  command.option('--namespace <namespace>', 'its namespace', 'default');

function addExpose(svc: Command): void {
  withNamespace(svc.command('expose').description('create a Service').argument('<name>'))
    .requiredOption('--port <port>', 'its port', portNumber)
    .option('--target-port <port>', 'number or name of the port of its pods; the same as --port unless given')
    .addOption(new Option('--protocol <protocol>').choices(['TCP', 'UDP', 'SCTP']).default('TCP'))
    .option('--selector <key=value>', 'a label that its pods have; may be repeated; app=NAME unless given', label)
    .addOption(new Option('--type <type>').choices(['ClusterIP', 'NodePort', 'LoadBalancer']).default('ClusterIP'))
    .option('--node-port <port>', 'the port of every node', portNumber)
    .option('--cluster-ip <ip>', 'its address, or None for a headless Service')
    .addOption(new Option('--families <families>', 'addresses of how many families').choices(['single', 'dual']))
    .option('--affinity-seconds <n>', 'a client keeps its backend for so long', wholeNumber(1, 86_400))
    .addOption(new Option('--internal-policy <policy>', 'for traffic from the cluster').choices(['Cluster', 'Local']))
    .addOption(new Option('--external-policy <policy>', 'for traffic from outside').choices(['Cluster', 'Local']))
    .addOption(
      new Option('--distribution <preference>', 'which endpoints are preferred').choices([
        'PreferClose',
        'PreferSameZone',
        'PreferSameNode',
      ]),
    )
    .option('--external-ips <ip...>', 'further addresses that lead to it')
    .action(async (name: string, options: ExposeOptions) => {
      checkRoot();
      const request = { selector: { app: name }, ...options, name };
      const path = apiPath.services(options.namespace);
      const created = await control().callApi({ method: 'POST', path, object: serviceObject(request) });
      printLines(serviceRows([created as ApiObject], []).map((row) => `${row.service}: ${row.frontends.join(', ')}`));
    });
}

async function readRows(): Promise<readonly ServiceRow[]> {
  checkRoot();
  const list = async (path: string) =>
    ((await control().callApi({ method: 'GET', path })) as unknown as { items: readonly ApiObject[] }).items;
  const [services, slices] = await Promise.all([list(apiPath.allServices), list(apiPath.allEndpointSlices)]);
  return serviceRows(services, slices);
}

/** A line for each frontend or endpoint, whichever are more. */
function describe(rows: readonly ServiceRow[]): readonly string[] {
  const cells = rows.flatMap(({ service, type, frontends, endpoints }) =>
    Array.from({ length: Math.max(1, frontends.length, endpoints.length) }, (_, i) => [
      i === 0 ? service : '',
      i === 0 ? type : '',
      frontends[i] ?? '',
      endpoints[i] ?? (i === 0 ? 'none' : ''),
    ]),
  );
  return table([['SERVICE', 'TYPE', 'FRONTENDS', 'ENDPOINTS'], ...cells]);
}
