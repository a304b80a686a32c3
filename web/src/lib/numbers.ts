/** A score as the page shows it everywhere: four decimals, with a true minus sign. */
export function formatScore(score: number): string {
  return score.toFixed(4).replace("-", "−");
}

/** A feature's activation: two decimals. */
export function formatActivation(value: number): string {
  return value.toFixed(2).replace("-", "−");
}

/** A bound or threshold: as short as it can be without lying. */
export function formatBound(value: number): string {
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

export function formatCount(count: number): string {
  return count.toLocaleString("en-US");
}
