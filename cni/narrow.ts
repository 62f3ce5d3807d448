/** Narrowing of decoded JSON: each function returns the value in its type or throws a CniError that names the field. */
import { CNI_CODES, type CniCode, invalid } from './cni-error.ts';

export type JsonObject = Readonly<Record<string, unknown>>;

export const isObject = (value: unknown): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Go writes an empty list or map as null, so null is as good as absent everywhere. */
export const isAbsent = (value: unknown): value is undefined | null => value === undefined || value === null;

export function objectAt(field: string, value: unknown, code: CniCode = CNI_CODES.invalidConfig): JsonObject {
  if (!isObject(value)) throw invalid(code, field, 'an object', value);
  return value;
}

/** Elements narrowed one by one, under the name `field[index]`; an absent list is empty. */
export function listAt<T>(field: string, value: unknown, narrow: (field: string, element: unknown) => T): readonly T[] {
  if (isAbsent(value)) return [];
  if (!Array.isArray(value)) throw invalid(CNI_CODES.invalidConfig, field, 'a list', value);
  return value.map((element, index) => narrow(`${field}[${index}]`, element));
}

export function matchAt(field: string, value: unknown, pattern: RegExp, expected: string): string {
  if (typeof value !== 'string' || !pattern.test(value)) throw invalid(CNI_CODES.invalidConfig, field, expected, value);
  return value;
}

export function integerAt(field: string, value: unknown, least: number, most: number): number {
  if (!Number.isSafeInteger(value) || (value as number) < least || (value as number) > most) {
    throw invalid(CNI_CODES.invalidConfig, field, `an integer from ${least} to ${most}`, value);
  }
  return value as number;
}

/** What `parse` makes of a text, where it returns undefined for what it does not accept. */
export function parsedAt<T>(
  field: string,
  value: unknown,
  parse: (text: string) => T | undefined,
  expected: string,
): T {
  const parsed = typeof value === 'string' ? parse(value) : undefined;
  if (parsed === undefined) throw invalid(CNI_CODES.invalidConfig, field, expected, value);
  return parsed;
}
