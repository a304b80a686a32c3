import type { Probe } from "../api/types";
import { placeOf } from "../heatmap/paint";
import { knownProbe, type Selection, selectedSlots } from "../state/probes";
import type { Column } from "../trace/column";
import type { Trace } from "../trace/trace";

/** One line of the chart, on its own probe's scale. */
export interface Line {
  id: string;
  slot: number;
  label: string;
  threshold: number | null;
  /** Name of its scale in the chart. Lines with equal scales share one. */
  scale: string;
  probe: Pick<Probe, "range" | "learnt" | "signed">;
  column: Column;
}

export interface Plan {
  lines: readonly Line[];
  /** The scales by name. `y`, of the first line, has the axis. */
  scales: ReadonlyMap<string, readonly [low: number, high: number]>;
}

/** Name of the scale that the axis shows. */
export const AXIS = "y";
const UNKNOWN = { range: null, learnt: false, signed: false, threshold: null } as const;

/** Lines of the selected probes. A probe whose scale is not known yet has none. */
export function planFor(trace: Trace, chosen: Selection, probes: readonly Probe[]): Plan {
  const scales = new Map<string, readonly [number, number]>();
  const lines = selectedSlots(chosen).flatMap(({ id, slot }): Line[] => {
    const column = trace.column(id);
    if (!column) return [];
    const known = knownProbe(id, probes, column.since);
    const probe = known ?? UNKNOWN;
    if (probe.range === null) return [];
    const scale = nameOf(scales, probe.range);
    return [{ id, slot, label: known?.label ?? id, threshold: probe.threshold, scale, probe, column }];
  });
  if (scales.size === 0) scales.set(AXIS, [0, 1]);
  return { lines, scales };
}

function nameOf(scales: Map<string, readonly [number, number]>, range: readonly [number, number]): string {
  for (const [name, [low, high]] of scales) {
    if (low === range[0] && high === range[1]) return name;
  }
  const name = scales.size === 0 ? AXIS : `y${scales.size + 1}`;
  scales.set(name, range);
  return name;
}

/** The arrays that uPlot draws: x, then one row per line. Cells without a number are gaps. */
export class PlotData {
  readonly rows: [number[], ...(number | null)[][]];

  constructor(private readonly plan: Plan) {
    this.rows = [[], ...plan.lines.map(() => [])];
  }

  /** Rereads positions `[from, to)`. Scores beyond a scale are clipped to it; the first token is not on a learnt one. */
  update(from: number, to: number): void {
    const [xs, ...ys] = this.rows;
    for (let p = xs.length; p < to; p++) xs.push(p);
    this.plan.lines.forEach((line, i) => {
      const row = ys[i];
      if (!row) return;
      for (let p = Math.min(from, row.length); p < to; p++) row[p] = this.heightAt(line, p);
    });
  }

  private heightAt({ column, probe, scale }: Line, position: number): number | null {
    const score = column.scoreAt(position);
    if (score === null || placeOf(score, position, probe) === "first") return null;
    const [low, high] = this.plan.scales.get(scale) ?? [0, 1];
    return Math.min(high, Math.max(low, score));
  }
}
