import type { Selection } from "../state/probes";
import { slotOf } from "../state/probes";
import type { Lane, LaneScale } from "./lane";

/**
 * Returns how far a score is above its threshold, in widths of its scale; without a threshold, above the scale's end. So
 * lanes of different scales compare, and above 0 is an event.
 */
export function riseOf(score: number | null, { range, threshold }: LaneScale): number {
  if (score === null) return Number.NEGATIVE_INFINITY;
  const [low, high] = range ?? [0, 1];
  return (score - (threshold ?? high)) / (high - low || 1);
}

/**
 * Returns the keys of lanes from the loudest down: those selected first, then probes by how far they rose above their
 * thresholds, then features by their highest activation. Equally loud ones keep their order.
 */
export function loudestFirst(
  lanes: readonly Lane[],
  maxOf: (lane: Lane) => number | null,
  chosen: Selection,
): string[] {
  const rank = (lane: Lane) => (lane.kind === "feature" ? 99 : (slotOf(chosen, lane.id) ?? 9));
  const keyed = lanes.map((lane) => ({ lane, rank: rank(lane), loud: loudnessOf(lane, maxOf(lane)) }));
  keyed.sort((a, b) => a.rank - b.rank || compare(b.loud, a.loud));
  return keyed.map(({ lane }) => lane.key);
}

function loudnessOf({ kind, scale }: Lane, max: number | null): number {
  return kind === "feature" ? (max ?? Number.NEGATIVE_INFINITY) : riseOf(max, scale);
}

/** As a difference, without NaN for two infinities. */
function compare(a: number, b: number): number {
  return a === b ? 0 : a - b;
}

/** Returns the lanes as they were ordered before, and those that are new behind them: rows do not jump while scores stream. */
export function inOrder(lanes: readonly Lane[], keys: readonly string[]): Lane[] {
  const rank = new Map(keys.map((key, i) => [key, i]));
  const last = keys.length;
  return [...lanes].sort((a, b) => (rank.get(a.key) ?? last) - (rank.get(b.key) ?? last));
}
