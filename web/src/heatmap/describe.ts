import type { Probe } from "../api/types";
import { formatScore } from "../lib/numbers";
import { knownProbe, type Selection, selectedSlots } from "../state/probes";
import { STATE_WORDS } from "../trace/column";
import { visible } from "../trace/marks";
import type { Trace } from "../trace/trace";
import { isOver, type Place, placeOf } from "./paint";

/** Where a score lies, in words; empty if it is on its scale. */
export const PLACE_WORDS: Record<Place, string> = {
  on: "",
  beyond: "beyond the scale",
  first: "first token, not on the scale",
  unscaled: "no scale yet",
};

/** Describes a token in words, for readers who do not see its colour. */
export function describe(
  trace: Trace,
  position: number,
  chosen: Selection,
  probes: readonly Probe[],
): string {
  const parts = [visible(trace.textAt(position)), `position ${position}`];
  for (const { id } of selectedSlots(chosen)) {
    const column = trace.column(id);
    if (!column) continue;
    const probe = knownProbe(id, probes);
    const score = column.scoreAt(position);
    const value = score === null ? STATE_WORDS[column.stateAt(position)] : formatScore(score);
    parts.push(`${probe?.label ?? id} ${value}`);
    if (isOver(score, probe?.threshold)) parts.push("at or over threshold");
    const place = score === null || !probe ? "on" : placeOf(score, position, probe);
    if (place !== "on") parts.push(PLACE_WORDS[place]);
  }
  return parts.join(", ");
}
