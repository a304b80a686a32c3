import { useEffect, useState } from "react";
import { isOver } from "../heatmap/paint";
import { formatScore } from "../lib/numbers";
import { probes, selectedSlots, selection } from "../state/probes";
import { visible } from "../trace/marks";
import type { Trace } from "../trace/trace";

const QUIET_MS = 2_500;

/** Announces to screen readers, at a limited rate, when a selected probe crosses its threshold upwards. */
export function Announcer({ trace }: { trace: Trace }) {
  const [words, setWords] = useState("");
  useEffect(() => {
    let latest = "";
    let timer = 0;
    const say = () => {
      timer = 0;
      setWords(latest);
    };
    const stop = trace.subscribe((from, to) => {
      // A full repaint is no new event.
      if (from === 0 && to > 1) return;
      latest = lastCrossing(trace, from, to) ?? latest;
      if (latest !== "" && timer === 0) timer = window.setTimeout(say, QUIET_MS);
    });
    return () => {
      stop();
      window.clearTimeout(timer);
    };
  }, [trace]);
  return (
    <div className="sr-only" aria-live="polite" data-testid="announcer">
      {words}
    </div>
  );
}

/** Describes the last upward crossing in `[from, to)`; null if there is none. */
export function lastCrossing(trace: Trace, from: number, to: number): string | null {
  for (let p = to - 1; p >= Math.max(0, from); p--) {
    for (const { id } of selectedSlots(selection.get())) {
      const column = trace.column(id);
      const probe = probes.get().find((known) => known.id === id);
      const score = column?.scoreAt(p) ?? null;
      if (!isOver(score, probe?.threshold) || isOver(column?.scoreAt(p - 1) ?? null, probe?.threshold))
        continue;
      return `${probe?.label ?? id} at or over threshold at ${visible(trace.units.at(p).text)}, position ${p}: ${formatScore(score ?? 0)}`;
    }
  }
  return null;
}
