import { CellState, type Column } from "../trace/column";

/** What one probe said of an answer so far. */
export interface Tally {
  /** Highest score; null if there is none. */
  readonly max: number | null;
  /** Number of positions at or over the threshold. */
  readonly over: number;
}

/**
 * Counts a column's scores from a position on, each once: rows come in order, so what is behind the first pending cell is not
 * looked at yet. `skip` is the first token of a learnt scale.
 */
export class RunningTally implements Tally {
  max: number | null = null;
  over = 0;
  private next: number;

  constructor(
    readonly column: Column,
    readonly from: number,
    readonly threshold: number | null,
    skip: number,
  ) {
    this.next = Math.max(from, skip);
  }

  /** Counts up to `length`, or to the first cell that is pending. */
  advance(length: number): void {
    const { scores, states } = this.column;
    for (; this.next < length && states[this.next] !== CellState.pending; this.next++) {
      if (states[this.next] !== CellState.computed) continue;
      const score = scores[this.next] ?? 0;
      if (this.max === null || score > this.max) this.max = score;
      if (this.threshold !== null && score >= this.threshold) this.over++;
    }
  }
}
