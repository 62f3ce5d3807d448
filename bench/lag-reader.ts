/** Inside a node: prints, for each line of its standard input, how often its agent caught up so far, and the sum of seconds. */
import { createInterface } from 'node:readline';

const URL = 'http://127.0.0.1:9440/metrics';
const FAMILY = 'tulle_api_to_kernel_duration_seconds';

for await (const _ of createInterface({ input: process.stdin })) {
  const page = await (await fetch(URL)).text();
  const figure = (name: string) => Number(new RegExp(`^${FAMILY}_${name} (\\S+)`, 'm').exec(page)?.[1]);
  console.log(JSON.stringify({ count: figure('count'), seconds: figure('sum') }));
}
