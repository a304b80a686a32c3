import type { Probe } from "../api/types";
import { isOver, type Place, placeOf, strongest } from "../heatmap/paint";
import { knownProbe, type Selection, slotOf } from "../state/probes";
import type { CellState, Column } from "../trace/column";
import type { Trace } from "../trace/trace";

/** Number of probes that a card shows before it is asked for all. */
export const ROWS_SHOWN = 6;

/** What one probe says of the positions `[from, to)`: its strongest score and where that is. */
export interface ScoreLine {
  readonly id: string;
  readonly label: string;
  readonly slot: number | null;
  readonly at: number;
  readonly state: CellState;
  readonly score: number | null;
  readonly over: boolean;
  readonly place: Place;
  /** How far above its threshold the score is, as a share of the scale; without a threshold, above the scale's end. */
  readonly rise: number;
}

/** Returns a line for each probe that read the request: those selected first, then from the highest above its threshold down. */
export function scoreLines(
  trace: Trace,
  from: number,
  to: number,
  chosen: Selection,
  probes: readonly Probe[],
): ScoreLine[] {
  const lines = trace.columns.map((column) => lineOf(column, from, to, chosen, probes));
  return lines.sort((a, b) => (a.slot ?? 9) - (b.slot ?? 9) || b.rise - a.rise);
}

function lineOf(
  column: Column,
  from: number,
  to: number,
  chosen: Selection,
  probes: readonly Probe[],
): ScoreLine {
  const probe = knownProbe(column.id, probes, column.since);
  const at = strongest(column, from, to);
  const score = column.scoreAt(at);
  return {
    id: column.id,
    label: probe?.label ?? column.id,
    slot: slotOf(chosen, column.id),
    at,
    state: column.stateAt(at),
    score,
    over: isOver(score, probe?.threshold),
    place: score === null || !probe ? "on" : placeOf(score, at, probe),
    rise: riseOf(score, probe),
  };
}

function riseOf(score: number | null, probe: Probe | undefined): number {
  if (score === null) return Number.NEGATIVE_INFINITY;
  const [low, high] = probe?.range ?? [0, 1];
  return (score - (probe?.threshold ?? high)) / (high - low || 1);
}
