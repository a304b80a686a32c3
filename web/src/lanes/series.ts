import { CellState, type Column } from "../trace/column";
import type { Axis } from "./axis";

/** The highest and the lowest score of each pixel; NaN where none of its positions has one. */
export interface Envelope {
  readonly high: Float64Array;
  readonly low: Float64Array;
}

export function newEnvelope(width: number): Envelope {
  return { high: new Float64Array(width), low: new Float64Array(width) };
}

/** What a lane draws: numbers at some positions. Where there is none, none is known, which is not 0. */
export interface Series {
  at(position: number): number | null;
  /** Fills an envelope with the scores of an axis. */
  fill(into: Envelope, axis: Axis): void;
}

/** Calls `visit` with the positions `[start, end)` of each pixel: at least one, so that a position can be many pixels wide. */
function eachPixel(
  { from, to, span }: Axis,
  width: number,
  visit: (pixel: number, start: number, end: number) => void,
): void {
  for (let pixel = 0; pixel < width; pixel++) {
    const start = from + Math.floor((pixel * span) / width);
    const end = from + Math.floor(((pixel + 1) * span) / width);
    visit(pixel, start, Math.min(to, Math.max(end, start + 1)));
  }
}

/** The scores of one probe. `skip` leaves out the first token, which is not on a learnt scale. */
export class ProbeSeries implements Series {
  constructor(
    readonly column: Column,
    private readonly skip: number,
  ) {}

  at(position: number): number | null {
    return this.column.scoreAt(position);
  }

  fill({ high, low }: Envelope, axis: Axis): void {
    const { scores, states } = this.column;
    eachPixel(axis, high.length, (pixel, start, end) => {
      let top = Number.NaN;
      let bottom = Number.NaN;
      for (let p = Math.max(start, this.skip); p < end; p++) {
        if (states[p] !== CellState.computed) continue;
        const score = scores[p] ?? Number.NaN;
        if (!(score <= top)) top = score;
        if (!(score >= bottom)) bottom = score;
      }
      high[pixel] = top;
      low[pixel] = bottom;
    });
  }
}

/** The activations of one SAE feature where it was among the strongest: elsewhere they are unknown. */
export class FeatureSeries implements Series {
  readonly positions: number[] = [];
  readonly values: number[] = [];
  max = 0;

  /** Adds the activation at a position, in any order. */
  add(position: number, value: number): void {
    const at = this.indexFrom(position);
    if (this.positions[at] === position) return;
    this.positions.splice(at, 0, position);
    this.values.splice(at, 0, value);
    this.max = Math.max(this.max, value);
  }

  at(position: number): number | null {
    const at = this.indexFrom(position);
    return this.positions[at] === position ? (this.values[at] ?? null) : null;
  }

  fill({ high, low }: Envelope, axis: Axis): void {
    let at = this.indexFrom(axis.from);
    eachPixel(axis, high.length, (pixel, start, end) => {
      while ((this.positions[at] ?? Infinity) < start) at++;
      let top = Number.NaN;
      for (let i = at; (this.positions[i] ?? Infinity) < end; i++) {
        const value = this.values[i] ?? Number.NaN;
        if (!(value <= top)) top = value;
      }
      high[pixel] = low[pixel] = top;
    });
  }

  /** Returns the index of the first activation at or behind a position. */
  private indexFrom(position: number): number {
    let low = 0;
    let high = this.positions.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.positions[middle] ?? 0) < position) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
