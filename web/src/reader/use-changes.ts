import { useEffect, useState } from "react";
import type { Trace } from "../trace/trace";

/** Renders again when the unit at a position, or the token before it, gets text, scores or features; not at others. */
export function useChangesAt(trace: Trace, position: number): void {
  const [, setVersion] = useState(0);
  useEffect(
    () =>
      trace.subscribe((from, to) => {
        const unit = trace.units.at(position);
        if (from < Math.max(unit.to, position + 1) && to >= unit.from) setVersion((version) => version + 1);
      }),
    [trace, position],
  );
}
