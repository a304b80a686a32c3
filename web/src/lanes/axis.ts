/** The positions `[from, to)` that the lanes show, over `span` places: a short answer does not fill the width. */
export interface Axis {
  readonly from: number;
  readonly to: number;
  readonly span: number;
}

/** Which part of a request the lanes show: its answer, all of it, or positions `[from, to)` that were chosen. */
export type Extent = "answer" | "all" | readonly [from: number, to: number];

/** Fewest places on the axis. */
export const LEAST_SPAN = 48;
/** Fewest positions that can be chosen. */
const LEAST_CHOSEN = 4;

/** Returns the axis of a request with `length` tokens, of which `prompt` are its prompt. Without an answer, it shows the prompt. */
export function axisOf(extent: Extent, prompt: number, length: number): Axis {
  if (typeof extent !== "string") {
    const [from, to] = extent;
    return { from, to: Math.min(to, length), span: Math.max(1, to - from) };
  }
  const from = extent === "answer" && length > prompt ? prompt : 0;
  return { from, to: length, span: Math.max(LEAST_SPAN, length - from) };
}

/** Returns the position under a place `x` of a strip that is `width` wide; the nearest one beyond its ends. */
export function positionAt({ from, to, span }: Axis, x: number, width: number): number {
  const position = from + Math.floor((x / Math.max(1, width)) * span);
  return Math.max(from, Math.min(to - 1, position));
}

/** Returns the middle of a position's place in a strip; null if it is not on the axis. */
export function placeOn({ from, to, span }: Axis, position: number, width: number): number | null {
  if (position < from || position >= to) return null;
  return ((position - from + 0.5) / span) * width;
}

/** Returns the positions between two places of a strip. */
export function chosenBetween(axis: Axis, one: number, other: number, width: number): Extent {
  const from = positionAt(axis, Math.min(one, other), width);
  const to = positionAt(axis, Math.max(one, other), width) + 1;
  return [from, Math.max(to, from + LEAST_CHOSEN)];
}
