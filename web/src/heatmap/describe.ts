import type { Probe } from "../api/types";
import { formatScore } from "../lib/numbers";
import { type Selection, selectedSlots } from "../state/probes";
import { STATE_WORDS } from "../trace/column";
import { visible } from "../trace/marks";
import type { Trace } from "../trace/trace";
import { isOver } from "./paint";

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
    const probe = probes.find((known) => known.id === id);
    const score = column.scoreAt(position);
    const value = score === null ? STATE_WORDS[column.stateAt(position)] : formatScore(score);
    parts.push(
      `${probe?.label ?? id} ${value}${isOver(score, probe?.threshold) ? ", at or over threshold" : ""}`,
    );
  }
  return parts.join(", ");
}
