import type { Trace } from "../trace/trace";
import { FeatureSeries } from "./series";

/** All SAE features of a request that were among the strongest of some token, as they come. */
export class FeatureIndex {
  readonly byId = new Map<number, FeatureSeries>();
  private readonly seen: boolean[] = [];

  constructor(private readonly trace: Trace) {}

  /** Reads positions `[from, to)`. Returns whether there are features that were not there before. */
  update(from: number, to: number): boolean {
    const before = this.byId.size;
    for (let p = from; p < to; p++) {
      if (this.seen[p] === true) continue;
      const row = this.trace.featuresAt(p, Number.POSITIVE_INFINITY);
      if (row.length === 0) continue;
      this.seen[p] = true;
      for (const { id, value } of row) if (value !== null) this.series(id).add(p, value);
    }
    return this.byId.size > before;
  }

  private series(id: number): FeatureSeries {
    const known = this.byId.get(id);
    if (known) return known;
    const made = new FeatureSeries();
    this.byId.set(id, made);
    return made;
  }
}
