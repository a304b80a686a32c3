import type { Probe } from "../api/types";
import { isOver, type Place, placeOf, strongest } from "../heatmap/paint";
import { riseOf } from "../lanes/order";
import { knownProbe, type Selection, slotOf } from "../state/probes";
import type { CellState, Column } from "../trace/column";
import type { Trace } from "../trace/trace";

/** Number of probes that the reader shows before it is asked for all. */
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
  readonly probe: Probe | undefined;
  /** How far above its threshold the score is, as a share of the scale; without a threshold, above the scale's end. */
  readonly rise: number;
  /** Difference to the score of the token before; null if either has none. */
  readonly change: number | null;
}

const UNKNOWN = { range: null, threshold: null, learnt: false, signed: false } as const;

/** Returns a line for each probe that read the request, from the highest above its threshold down. */
export function scoreLines(
  trace: Trace,
  from: number,
  to: number,
  chosen: Selection,
  probes: readonly Probe[],
): ScoreLine[] {
  const lines = trace.columns.map((column) => lineOf(column, from, to, chosen, probes));
  return lines.sort((a, b) => (a.rise === b.rise ? 0 : b.rise - a.rise));
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
  const before = from > 0 ? column.scoreAt(from - 1) : null;
  return {
    id: column.id,
    label: probe?.label ?? column.id,
    slot: slotOf(chosen, column.id),
    at,
    state: column.stateAt(at),
    score,
    over: isOver(score, probe?.threshold),
    place: score === null || !probe ? "on" : placeOf(score, at, probe),
    probe,
    rise: riseOf(score, probe ?? UNKNOWN),
    change: score === null || before === null ? null : score - before,
  };
}
