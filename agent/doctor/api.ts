/** The way to the API server, with the credentials of the agent: name, connection, TLS, token, rights, clock. */
import { type Check, type Finding, verdict } from './finding.ts';

/** Tokens and certificates are made with a leeway of about this much. */
const MAX_SKEW_MS = 60_000;
/** Answers tell whole seconds. */
const PRECISION_MS = 2_000;

export const api: Check = {
  name: 'api',
  async run(facts) {
    const { server, nodes, failures, skewMs } = await facts.api();
    const clock =
      skewMs === undefined || Math.abs(skewMs) < PRECISION_MS
        ? ''
        : `, clocks differ by ${Math.abs(Math.round(skewMs / 1000))} s`;
    const seen = `${server} answers, ${nodes?.size ?? 0} Nodes${clock}`;
    return verdict(seen, [...failures.map(failed), skewed(skewMs, facts.config.nodeName)]);
  },
};

/** Errors of this edge say themselves what was expected, what came and what to do (ApiError, ConfigError). */
function failed({ message }: Error): Finding {
  const [problem = message, ...remedies] = message.split('; ');
  return {
    severity: 'error',
    summary: 'the cluster API does not give the agent what it needs',
    evidence: [problem],
    cause: 'Without it the agent keeps what it last knew: Nodes that come or change are not followed.',
    remedy: remedies.join('; ') || 'see the message',
  };
}

function skewed(skewMs: number | undefined, nodeName: string): Finding | undefined {
  if (skewMs === undefined || Math.abs(skewMs) < MAX_SKEW_MS) return undefined;
  const seconds = Math.round(Math.abs(skewMs) / 1000);
  return {
    severity: 'warning',
    summary: `the clock of this node is ${seconds} s ${skewMs > 0 ? 'behind' : 'ahead of'} that of the API server`,
    evidence: [`Date of the answer minus own time: ${Math.round(skewMs / 1000)} s`],
    cause: 'One of the two clocks is wrong. Certificates and tokens are refused too early or too late.',
    remedy: `let both follow the same time servers (chronyc tracking, timedatectl) on node ${nodeName} and the control plane`,
  };
}
