import type { Probe } from "../api/types";
import { type Heat, heatStep, isBeyond, LEVELS, STEPS } from "../color/ramp";
import { knownProbe, type Selection } from "../state/probes";
import { CellState, type Column } from "../trace/column";
import type { Trace } from "../trace/trace";

type Scale = Pick<Probe, "range" | "learnt" | "signed" | "threshold">;

/** Scale of a probe that left the engine before this page was opened: none is known, so no colour is true. */
const UNKNOWN: Scale = { range: null, learnt: false, signed: false, threshold: null };

/** A selected probe, resolved against a trace: its column and its scale. */
interface Layer {
  column: Column;
  scale: Scale;
}

/** The selection resolved against a trace's columns. A selected probe that did not read the request is "unread". */
export interface Palette {
  background: Layer | "unread" | null;
  underlines: readonly (Layer | "unread" | null)[];
  heat: Heat;
}

export function paletteFor(
  trace: Trace,
  { background, underlines }: Selection,
  probes: readonly Probe[],
  heat: Heat,
): Palette {
  const layer = (id: string | null): Layer | "unread" | null => {
    if (id === null) return null;
    const column = trace.column(id);
    if (!column) return "unread";
    return { column, scale: knownProbe(column.id, probes, column.since) ?? UNKNOWN };
  };
  return { background: layer(background), underlines: underlines.map(layer), heat };
}

/** Returns whether a score is at or over the threshold, the rule by which false-positive rates were measured. */
export function isOver(score: number | null, threshold: number | null | undefined): boolean {
  return score !== null && threshold !== null && threshold !== undefined && score >= threshold;
}

/** Where a score lies: on its scale, outside it, at the first token (not on a learnt scale), or a scale is not known yet. */
export type Place = "on" | "beyond" | "first" | "unscaled";

export function placeOf(
  score: number,
  position: number,
  scale: Pick<Scale, "range" | "learnt" | "signed">,
): Place {
  const { range, learnt, signed } = scale;
  if (learnt && position === 0) return "first";
  if (range === null) return "unscaled";
  return isBeyond(score, { range, signed }) ? "beyond" : "on";
}

const STATE_CLASSES: Record<CellState, string> = {
  [CellState.pending]: " pending",
  [CellState.computed]: "",
  [CellState.never]: " never",
  [CellState.masked]: " masked",
  [CellState.notFinite]: " not-finite",
  [CellState.lost]: " lost",
};

/** Returns the CSS classes of the unit over positions `[from, to)`. Of several positions the strongest score counts. */
export function classesFor({ background, underlines, heat }: Palette, from: number, to: number): string {
  let classes = "t";
  if (background === "unread") classes += STATE_CLASSES[CellState.never];
  else if (background) classes += backgroundClasses(background, heat, from, to);
  for (const [i, line] of underlines.entries()) {
    const letter = "abc"[i] ?? "a";
    if (line === "unread") classes += ` ${letter}-none`;
    else if (line) classes += lineClass(line, heat, letter, from, to);
  }
  return classes;
}

function backgroundClasses({ column, scale }: Layer, heat: Heat, from: number, to: number): string {
  const at = strongest(column, from, to);
  const score = column.scoreAt(at);
  if (score === null) return STATE_CLASSES[column.stateAt(at)];
  const over = isOver(score, scale.threshold) ? " over" : "";
  const place = placeOf(score, at, scale);
  if (place === "first" || place === "unscaled") return ` ${place}${over}`;
  const step = stepAt(score, at, scale, heat);
  if (step === 0) return over;
  const colour = step > 0 ? ` s${step}` : ` n${-step} below`;
  return `${colour}${place === "beyond" ? " beyond" : ""}${over}`;
}

function lineClass({ column, scale }: Layer, heat: Heat, letter: string, from: number, to: number): string {
  const at = strongest(column, from, to);
  const score = column.scoreAt(at);
  // No number is not the number 0: a dotted line, where 0 has none.
  if (score === null) return ` ${letter}-none`;
  const level = Math.round((Math.abs(stepAt(score, at, scale, heat)) / STEPS) * LEVELS);
  return level === 0 ? "" : ` ${letter}${level}`;
}

/** Returns the step of a score; 0 if it has no place on a scale. */
function stepAt(score: number, position: number, scale: Scale, heat: Heat): number {
  const { range, learnt, signed, threshold } = scale;
  return range === null || (learnt && position === 0)
    ? 0
    : heatStep(score, { range, signed, threshold }, heat);
}

/** Returns the position in `[from, to)` with the score farthest from zero; `from` if none has a score. */
export function strongest(column: Column, from: number, to: number): number {
  let best = from;
  let size = -1;
  for (let p = from; p < to; p++) {
    const score = column.scoreAt(p);
    if (score === null || Math.abs(score) <= size) continue;
    best = p;
    size = Math.abs(score);
  }
  return best;
}
