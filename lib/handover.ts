/** Work that has something to say while it goes on, as a generator: it says nothing more until what it said was taken. */

/**
 * Runs `work` and yields what it says. `say` resolves when the loop comes back for more. When the loop is left, `stop` is called and the work
 * awaited: nothing runs on.
 */
export async function* handover<T>(
  work: (say: (said: readonly T[]) => Promise<void>) => Promise<void>,
  stop: () => void,
): AsyncGenerator<T, void, undefined> {
  let news = Promise.withResolvers<void>();
  let said: { readonly what: readonly T[]; taken(): void } | undefined;
  let hasEnded = false;
  const done = work((what) =>
    new Promise<void>((taken) => {
      said = { what, taken };
      news.resolve();
    })
  ).finally(() => {
    hasEnded = true;
    news.resolve();
  });
  done.catch(() => {}); // thrown below
  try {
    while (!hasEnded) {
      await news.promise;
      if (!said) continue;
      news = Promise.withResolvers();
      yield* said.what;
      const { taken } = said;
      said = undefined;
      taken();
    }
    await done;
  } finally {
    if (!hasEnded) {
      stop();
      said?.taken();
      await done.catch(() => {});
    }
  }
}
