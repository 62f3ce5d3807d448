/**
 * Other networks of Kubernetes nodes, by what they leave: devices, chains, sets, tables, files. Names only, so a device of
 * such a name may be somebody else's after all: nothing is removed unless a person names the product.
 */

export interface Product {
  /** As `--fix=<name>` takes it. */
  readonly name: string;
  /** The node's own devices. */
  readonly links?: RegExp;
  /** Host ends of its pods: as long as one is there, a pod has its network from it. */
  readonly podLinks?: RegExp;
  /** Chains of iptables, in both back ends. */
  readonly chains?: RegExp;
  /** Comments of rules that it writes into built-in chains. */
  readonly comments?: RegExp;
  /** Ip sets. */
  readonly sets?: RegExp;
  /** Tables of nftables. */
  readonly tables?: RegExp;
  /** Its network configuration. */
  readonly conflists?: RegExp;
  /** Files and directories that say it was here. */
  readonly paths?: readonly string[];
  /** TCP ports of the node on which it listens while it runs. */
  readonly ports?: readonly number[];
  /** Names of its programs, as far as they can be seen from here. */
  readonly programs?: readonly string[];
  /** It may run beside Tulle where Tulle does not serve Services: only what is left of it when it does not run is a finding. */
  readonly isWelcome?: true;
  /** How its own tools remove it. */
  readonly remedy: string;
}

export const PRODUCTS: readonly Product[] = [
  {
    name: 'flannel',
    links: /^(flannel(\d+|\.\d+|-v6\.\d+|-wg|-wg-v6|\.ipip)|cni0)$/,
    chains: /^FLANNEL-/,
    comments: /^flanneld /,
    tables: /^flannel-/,
    conflists: /flannel/,
    paths: ['/run/flannel'],
    programs: ['flanneld'],
    remedy: 'kubectl -n kube-flannel delete daemonset kube-flannel-ds',
  },
  {
    name: 'kube-proxy',
    links: /^kube-ipvs0$/,
    // Not those of the kubelet: KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT, KUBE-MARK-DROP.
    chains:
      /^KUBE-(SERVICES|EXTERNAL-SERVICES|NODEPORTS|POSTROUTING|FORWARD|MARK-MASQ|PROXY-CANARY|PROXY-FIREWALL|NODE-PORT|LOAD-BALANCER|IPVS-FILTER|IPVS-OUT-FILTER|SOURCE-RANGES-FIREWALL|(SVC|SVL|SEP|FW|XLB|EXT)-.+)$/,
    sets: /^KUBE-(?!SRC-|DST-|NWPLCY)/,
    tables: /^kube-proxy$/,
    ports: [10256, 10249],
    programs: ['kube-proxy'],
    isWelcome: true,
    remedy: 'kube-proxy --cleanup on this node',
  },
  {
    name: 'calico',
    links: /^(vxlan(-v6)?\.calico|wireguard\.cali|wg-v6\.cali|bpfin\.cali|bpfout\.cali)$/,
    podLinks: /^cali[0-9a-f]{11}$/,
    chains: /^cali-/,
    comments: /^cali:/,
    sets: /^cali[46]0/,
    tables: /^calico$/,
    conflists: /calico/,
    paths: ['/run/calico', '/sys/fs/bpf/calico'],
    ports: [9099],
    programs: ['calico-node', 'calico-felix'],
    remedy: 'kubectl delete the tigera-operator installation, or daemonset calico-node',
  },
  {
    name: 'cilium',
    links: /^cilium_(host|net|vxlan|geneve|wg0|ipip4|ipip6|tunl)$/,
    podLinks: /^lxc[0-9a-f]{8,12}$/,
    chains: /^(OLD_)?CILIUM_/,
    sets: /^cilium_/,
    conflists: /cilium/,
    paths: ['/run/cilium', '/sys/fs/bpf/cilium', '/sys/fs/bpf/tc/globals/cilium_calls_overlay'],
    ports: [9879],
    programs: ['cilium-agent'],
    remedy: 'cilium uninstall, and on the node cilium-dbg post-uninstall-cleanup -f',
  },
  {
    name: 'weave',
    links: /^(weave|datapath|vxlan-6784|vethwe-(bridge|datapath|pcap))$/,
    podLinks: /^vethwepl/,
    chains: /^WEAVE(-|$)/,
    sets: /^weave-/,
    conflists: /weave/,
    paths: ['/run/weave'],
    ports: [6784],
    programs: ['weaver'],
    remedy: 'kubectl -n kube-system delete daemonset weave-net, and on the node weave reset',
  },
  {
    name: 'kube-router',
    links: /^(kube-bridge|kube-dummy-if|kube-tunnel-if)$/,
    chains: /^KUBE-(ROUTER-|POD-FW-|NWPLCY-)/,
    sets: /^(inet6:)?(kube-router-|KUBE-(SRC|DST)-|KUBE-NWPLCY)/,
    tables: /^kube-router/,
    conflists: /kube-?router/,
    ports: [20244],
    programs: ['kube-router'],
    remedy: 'kubectl -n kube-system delete daemonset kube-router, and on the node kube-router --cleanup-config',
  },
];
