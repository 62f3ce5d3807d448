/** The network configuration list that makes a runtime call Tulle (CNI SPEC, section 1). */

/** Sorts before what distributions install (87-podman-bridge.conflist): runtimes take the first file. */
export const CONFLIST_NAME = '10-tulle.conflist';

/** Reference plugins that may follow, and the capability by which each gets its arguments (CNI CONVENTIONS). */
const CHAINED = { portmap: 'portMappings', bandwidth: 'bandwidth' } as const;
export type ChainedPlugin = keyof typeof CHAINED;

export interface ConflistOptions {
  /** Takes the place of the MTU that the agent derives from the node's network. */
  readonly mtuBytes?: number;
  /** Tulle serves host ports, unless portmap is in the chain: no port is served twice. */
  readonly hostPorts?: boolean;
  /** What the runtime calls after Tulle. */
  readonly chain?: readonly ChainedPlugin[];
}

/**
 * The file's text. `cniVersion` stays 1.0.0: with 1.1.0 containerd 1.6 accepts the ADD and then fails every DEL, because
 * it cannot convert between the two. Newer runtimes choose the highest of `cniVersions` that they know.
 */
export function renderConflist({ mtuBytes, hostPorts = false, chain = [] }: ConflistOptions = {}): string {
  // What the runtime shall pass in runtimeConfig (CNI CONVENTIONS): only what the agent acts on.
  const capabilities = [
    'io.kubernetes.cri.pod-annotations',
    ...(hostPorts && !chain.includes('portmap') ? [CHAINED.portmap] : []),
  ];
  const plugin = {
    type: 'tulle',
    ...(mtuBytes !== undefined && { mtu: mtuBytes }),
    capabilities: Object.fromEntries(capabilities.map((name) => [name, true])),
  };
  const chained = chain.map((type) => ({ type, capabilities: { [CHAINED[type]]: true } }));
  const list = {
    cniVersion: '1.0.0',
    cniVersions: ['0.4.0', '1.0.0', '1.1.0'],
    name: 'tulle',
    plugins: [plugin, ...chained],
  };
  return `${JSON.stringify(list, null, 2)}\n`;
}
