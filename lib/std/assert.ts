/** @std/assert where JSR is out of reach: the names and signatures that the tests use, over node:assert. */
import { AssertionError, deepStrictEqual, notDeepStrictEqual, strictEqual } from "node:assert/strict";

export { AssertionError };

// deno-lint-ignore no-explicit-any -- the std's own signature
type ErrorClass<E extends Error> = new (...args: any[]) => E;

export function fail(message = "failed"): never {
  throw new AssertionError({ message });
}

export function assert(condition: unknown, message = "want a true value"): asserts condition {
  if (!condition) fail(message);
}

export function assertFalse(condition: unknown, message = "want a false value"): void {
  if (condition) fail(message);
}

export function assertEquals<T>(actual: T, expected: T, message?: string): void {
  deepStrictEqual(actual, expected, message);
}

export function assertNotEquals<T>(actual: T, expected: T, message?: string): void {
  notDeepStrictEqual(actual, expected, message);
}

export function assertStrictEquals<T>(actual: unknown, expected: T, message?: string): asserts actual is T {
  strictEqual(actual, expected, message);
}

/** Within `tolerance`, or within 1e-7 of the expected value. */
export function assertAlmostEquals(actual: number, expected: number, tolerance?: number, message?: string): void {
  const allowed = tolerance ?? (Number.isFinite(expected) ? Math.abs(expected * 1e-7) : 1e-7);
  if (Object.is(actual, expected) || Math.abs(actual - expected) <= allowed) return;
  fail(message ?? `${actual} is not within ${allowed} of ${expected}`);
}

export function assertGreater<T>(actual: T, expected: T, message?: string): void {
  if (!(actual > expected)) fail(message ?? `${actual} is not greater than ${expected}`);
}

export function assertGreaterOrEqual<T>(actual: T, expected: T, message?: string): void {
  if (!(actual >= expected)) fail(message ?? `${actual} is less than ${expected}`);
}

export function assertLess<T>(actual: T, expected: T, message?: string): void {
  if (!(actual < expected)) fail(message ?? `${actual} is not less than ${expected}`);
}

export function assertLessOrEqual<T>(actual: T, expected: T, message?: string): void {
  if (!(actual <= expected)) fail(message ?? `${actual} is greater than ${expected}`);
}

export function assertStringIncludes(actual: string, expected: string, message?: string): void {
  if (!actual.includes(expected)) fail(message ?? `${JSON.stringify(actual)} does not contain ${JSON.stringify(expected)}`);
}

export function assertMatch(actual: string, expected: RegExp, message?: string): void {
  if (!expected.test(actual)) fail(message ?? `${JSON.stringify(actual)} does not match ${expected}`);
}

export function assertExists<T>(actual: T, message?: string): asserts actual is NonNullable<T> {
  if (actual === undefined || actual === null) fail(message ?? `${actual}: want a value`);
}

export function assertInstanceOf<E extends Error>(actual: unknown, expected: ErrorClass<E>, message?: string): asserts actual is E {
  if (!(actual instanceof expected)) fail(message ?? `${actual} is no ${expected.name}`);
}

export function assertThrows<E extends Error = Error>(
  work: () => unknown,
  errorClass?: ErrorClass<E>,
  includes?: string,
  message?: string,
): E {
  let caught: unknown;
  try {
    work();
  } catch (error) {
    caught = error;
  }
  return check(caught, errorClass, includes, message);
}

/** A function that throws before it returns a promise fails. */
export async function assertRejects<E extends Error = Error>(
  work: () => PromiseLike<unknown>,
  errorClass?: ErrorClass<E>,
  includes?: string,
  message?: string,
): Promise<E> {
  let caught: unknown;
  const promise = work();
  try {
    await promise;
  } catch (error) {
    caught = error;
  }
  return check(caught, errorClass, includes, message);
}

function check<E extends Error>(caught: unknown, errorClass: ErrorClass<E> | undefined, includes: string | undefined, message?: string): E {
  if (caught === undefined) fail(message ?? "want it to throw");
  if (!(caught instanceof Error)) fail(message ?? "want it to throw an Error");
  if (errorClass) assertInstanceOf(caught, errorClass, message ?? `${caught.name} (${caught.message}) is no ${errorClass.name}`);
  if (includes !== undefined) assertStringIncludes(caught.message, includes, message);
  return caught as E;
}
