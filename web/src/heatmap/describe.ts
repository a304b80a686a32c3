import type { Probe } from "../api/types";
import { formatScore } from "../lib/numbers";
import { knownProbe, type Selection, selectedSlots } from "../state/probes";
import { STATE_WORDS } from "../trace/column";
import { visible } from "../trace/marks";
import type { Trace } from "../trace/trace";
import { isOver, type Place, placeOf, strongest } from "./paint";

/** Where a score lies, in words; empty if it is on its scale. */
export const PLACE_WORDS: Record<Place, string> = {
  on: "",
  beyond: "beyond the scale",
  first: "first token, not on the scale",
  unscaled: "no scale yet",
};

/** Says which positions `[from, to)` a unit has. */
export function positionsOf(from: number, to: number): string {
  return to - from > 1 ? `positions ${from}–${to - 1}` : `position ${from}`;
}

/** Describes a token in words, for readers who do not see its colour. */
export function describe(
  trace: Trace,
  position: number,
  chosen: Selection,
  probes: readonly Probe[],
): string {
  const { text, from, to } = trace.units.at(position);
  const parts = [visible(text), positionsOf(from, to)];
  for (const { id } of selectedSlots(chosen)) {
    const column = trace.column(id);
    const probe = knownProbe(id, probes, column?.since);
    if (!column) {
      parts.push(`${probe?.label ?? id} not read`);
      continue;
    }
    const at = strongest(column, from, to);
    const score = column.scoreAt(at);
    const value = score === null ? STATE_WORDS[column.stateAt(at)] : formatScore(score);
    parts.push(`${probe?.label ?? id} ${value}`);
    if (isOver(score, probe?.threshold)) parts.push("at or over threshold");
    const place = score === null || !probe ? "on" : placeOf(score, at, probe);
    if (place !== "on") parts.push(PLACE_WORDS[place]);
  }
  return parts.join(", ");
}
