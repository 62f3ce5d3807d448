/** What the agent uses of the CNI protocol: requests in, results and errors out. The rest of this folder is internal. */
export { CNI_CODES, type CniCode, CniError, renderError } from './cni-error.ts';
export { deleteQueueName, REQUEST_MAX_BYTES, renderAnswer, renderRequest } from './frame.ts';
export type { AttachmentId, Bandwidth, NetworkConfig, RuntimeConfig } from './network-config.ts';
export {
  type AddRequest,
  type CheckRequest,
  type CniRequest,
  type DelRequest,
  type GcRequest,
  type NetnsReference,
  type PodArgs,
  parseRequest,
  type StatusRequest,
  type Verb,
} from './request.ts';
export {
  type PodIp,
  type PodResult,
  type PodRoute,
  type PrevIp,
  type PrevResult,
  parsePrevResult,
  renderResult,
} from './result.ts';
export { type CniVersion, supportedVersions } from './versions.ts';
