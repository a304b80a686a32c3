/** Formats a score: four decimals, with a true minus sign. */
export function formatScore(score: number): string {
  return score.toFixed(4).replace("-", "−");
}

/** Formats a feature's activation: two decimals. */
export function formatActivation(value: number): string {
  return value.toFixed(2).replace("-", "−");
}

/** Formats a bound or threshold with at most three significant digits. */
export function formatBound(value: number): string {
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

export function formatCount(count: number): string {
  return count.toLocaleString("en-US");
}
