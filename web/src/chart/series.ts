import type { Probe } from "../api/types";
import { type Selection, selectedSlots } from "../state/probes";
import type { Column } from "../trace/column";
import type { Trace } from "../trace/trace";

/** One line of the chart. */
export interface Line {
  id: string;
  slot: number;
  label: string;
  threshold: number | null;
  column: Column;
}

export interface Plan {
  lines: readonly Line[];
  /** The fixed scale: the union of the probes' ranges. */
  low: number;
  high: number;
}

export function planFor(trace: Trace, chosen: Selection, probes: readonly Probe[]): Plan {
  const ranges: (readonly [number, number])[] = [];
  const lines = selectedSlots(chosen).flatMap(({ id, slot }): Line[] => {
    const column = trace.column(id);
    if (!column) return [];
    const probe = probes.find((known) => known.id === id);
    ranges.push(probe?.range ?? [0, 1]);
    return [{ id, slot, label: probe?.label ?? id, threshold: probe?.threshold ?? null, column }];
  });
  if (ranges.length === 0) return { lines, low: 0, high: 1 };
  return {
    lines,
    low: Math.min(...ranges.map(([low]) => low)),
    high: Math.max(...ranges.map(([, high]) => high)),
  };
}

/** The arrays that uPlot draws: x, then one row per line. Cells without a number are gaps. */
export class PlotData {
  readonly rows: [number[], ...(number | null)[][]];

  constructor(private readonly plan: Plan) {
    this.rows = [[], ...plan.lines.map(() => [])];
  }

  /** Rereads positions `[from, to)`. Scores beyond the scale are clipped to it. */
  update(from: number, to: number): void {
    const { lines, low, high } = this.plan;
    const [xs, ...ys] = this.rows;
    for (let p = xs.length; p < to; p++) xs.push(p);
    lines.forEach(({ column }, i) => {
      const row = ys[i];
      if (!row) return;
      for (let p = Math.min(from, row.length); p < to; p++) {
        const score = column.scoreAt(p);
        row[p] = score === null ? null : Math.min(high, Math.max(low, score));
      }
    });
  }
}
