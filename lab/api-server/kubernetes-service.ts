/** The Service by which Pods find the API server: the real one keeps it itself, first of all cluster IPs. */

import { familyOf } from '../../agent/model/ip.ts';
import type { IpPort } from '../../agent/model/ip-port.ts';
import type { Controller } from './controllers.ts';
import { SERVICE_NAME_LABEL } from './endpoint-slices.ts';
import { KINDS, type KindRow } from './kinds.ts';
import type { Store } from './store.ts';

const REF = { namespace: 'default', name: 'kubernetes' };
const PORT = 443;

/** `clusterIp`: the first address of the first service CIDR. */
export function kubernetesService(store: Store, advertised: IpPort, clusterIp: string): Controller {
  const service = {
    metadata: { ...REF, labels: { component: 'apiserver', provider: 'kubernetes' } },
    spec: {
      type: 'ClusterIP',
      clusterIP: clusterIp,
      ports: [{ name: 'https', port: PORT, targetPort: advertised.port, protocol: 'TCP' }],
    },
  };
  const slice = {
    metadata: { ...REF, labels: { [SERVICE_NAME_LABEL]: REF.name } },
    addressType: familyOf(advertised.ip) === 'ipv4' ? 'IPv4' : 'IPv6',
    endpoints: [{ addresses: [advertised.ip], conditions: { ready: true } }],
    ports: [{ name: 'https', port: advertised.port, protocol: 'TCP' }],
  };
  const keep = (row: KindRow, object: typeof service | typeof slice) => {
    if (!store.find(row, REF)) store.create(row, object, REF.namespace);
  };
  const run = () => {
    keep(KINDS.service, service);
    keep(KINDS.endpointSlice, slice);
    store.update(KINDS.endpointSlice, REF, (present) => ({
      ...present,
      endpoints: slice.endpoints,
      ports: slice.ports,
    }));
    return false;
  };
  return { watches: [KINDS.service, KINDS.endpointSlice], run };
}
