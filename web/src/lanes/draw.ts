import { isBeyond } from "../color/ramp";
import type { LaneScale } from "./lane";
import type { Envelope } from "./series";

/** Colours of one strip. */
export interface Ink {
  readonly line: string;
  readonly body: string;
  readonly mark: string;
  readonly grid: string;
  readonly prompt: string;
}

/** A run of pixels with equal scores. */
export interface Run {
  readonly x: number;
  readonly width: number;
  readonly high: number;
  readonly low: number;
}

/** Returns the runs of an envelope, without the pixels that have no score. */
export function runsOf({ high, low }: Envelope): Run[] {
  const runs: Run[] = [];
  for (let x = 0; x < high.length;) {
    const [top = Number.NaN, bottom = Number.NaN] = [high[x], low[x]];
    let end = x + 1;
    while (end < high.length && Object.is(high[end], top) && Object.is(low[end], bottom)) end++;
    if (!Number.isNaN(top)) runs.push({ x, width: end - x, high: top, low: bottom });
    x = end;
  }
  return runs;
}

/** Returns how high a score is in its lane: 0 at the bottom, 1 at the top; clipped to both. */
export function heightOf(score: number, [low, high]: readonly [number, number]): number {
  return Math.min(1, Math.max(0, (score - low) / (high - low || 1)));
}

/** Returns the score from which a lane is filled: 0 where it is on a signed scale, else the scale's end nearest to 0. */
export function baseOf({ signed }: LaneScale, [low, high]: readonly [number, number]): number {
  return signed ? Math.min(high, Math.max(low, 0)) : low;
}

export interface Strip {
  readonly width: number;
  readonly height: number;
  /** Pixels of the canvas a pixel of the page. */
  readonly ratio: number;
  /** Where the prompt ends, in pixels of the canvas. */
  readonly promptEnd: number;
}

/**
 * Draws one lane: the prompt's ground, the scores filled from their base, what is over the threshold in full colour, and the
 * threshold. Where no score is known there is not even a base line.
 */
export function drawLane(
  to: CanvasRenderingContext2D,
  strip: Strip,
  envelope: Envelope,
  scale: LaneScale,
  ink: Ink,
): void {
  const { width, height, ratio, promptEnd } = strip;
  to.clearRect(0, 0, width, height);
  to.fillStyle = ink.prompt;
  if (promptEnd > 0) to.fillRect(0, 0, Math.min(promptEnd, width), height);
  const { range, threshold } = scale;
  if (range === null) return;
  const edge = Math.max(1, Math.round(1.5 * ratio));
  const y = (score: number) => Math.round((1 - heightOf(score, range)) * (height - edge));
  const base = y(baseOf(scale, range));
  const runs = runsOf(envelope);
  to.fillStyle = ink.body;
  for (const { x, width: wide, high, low } of runs) {
    const [top, bottom] = [Math.min(y(high), base), Math.max(y(low), base)];
    to.fillRect(x, top, wide, bottom - top + edge);
  }
  to.fillStyle = ink.line;
  for (const { x, width: wide, high, low } of runs) {
    const top = y(high);
    const isOver = threshold !== null && high >= threshold;
    // The whole bar: thresholds are often so close to the scale's end that what is above them is a pixel high.
    to.fillRect(x, top, wide, isOver ? Math.max(edge, base - top + edge) : edge);
    if (y(low) > base) to.fillRect(x, y(low), wide, edge);
  }
  to.fillStyle = ink.mark;
  for (const { x, width: wide, high, low } of runs) {
    if (isBeyond(high, { range, signed: scale.signed })) to.fillRect(x, 0, wide, edge);
    if (low < range[0]) to.fillRect(x, height - edge, wide, edge);
  }
  to.fillStyle = ink.grid;
  if (threshold === null || threshold < range[0] || threshold > range[1]) return;
  for (let x = 0; x < width; x += 7 * ratio)
    to.fillRect(x, y(threshold), 4 * ratio, Math.max(1, Math.round(ratio)));
}
