import type { Spot } from "../state/focus";

/** Returns the span that shows a spot; the last one if the prompt shows it too. */
export function tokenElement({ trace, position }: Spot): HTMLElement | null {
  const { units } = trace;
  const start = units.starts[units.indexAt(position)];
  const owned = document.querySelectorAll<HTMLElement>(`[data-trace="${trace.key}"] [data-pos="${start}"]`);
  return [...owned].at(-1) ?? null;
}
