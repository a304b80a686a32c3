import type { Trace } from "./trace";

/**
 * Finds the last occurrence of `text` in the prompt, as positions `[from, to)` of whole units; null if there is none. White
 * space at its ends does not count: chat templates remove it.
 */
export function findInPrompt(trace: Trace, sent: string): [number, number] | null {
  const { units } = trace;
  const text = sent.trim();
  const end = units.indexAt((trace.promptTokens ?? 0) - 1) + 1;
  const at = units.texts.slice(0, end).join("").lastIndexOf(text);
  if (at < 0 || text === "") return null;
  let offset = 0;
  let from: number | null = null;
  for (let u = 0; u < end; u++) {
    offset += units.texts[u]?.length ?? 0;
    if (from === null && offset > at) from = units.starts[u] ?? 0;
    if (from !== null && offset >= at + text.length) return [from, units.ends[u] ?? 0];
  }
  return null;
}
