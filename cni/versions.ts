/** The versions of the CNI SPEC that the executable and the agent answer in; tulle-cni.c has the same list. */

export const supportedVersions = ['0.3.0', '0.3.1', '0.4.0', '1.0.0', '1.1.0'] as const;

export type CniVersion = (typeof supportedVersions)[number];

export const LATEST_VERSION: CniVersion = '1.1.0';

export const isSupportedVersion = (value: unknown): value is CniVersion =>
  (supportedVersions as readonly unknown[]).includes(value);

export const isAtLeast = (version: CniVersion, least: CniVersion): boolean =>
  supportedVersions.indexOf(version) >= supportedVersions.indexOf(least);
