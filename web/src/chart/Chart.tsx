import { useEffect, useMemo, useRef } from "react";
import "uplot/dist/uPlot.min.css";
import { useCell } from "../lib/cell";
import { hover, pinned } from "../state/focus";
import { probes, selection } from "../state/probes";
import { theme } from "../state/theme";
import type { Trace } from "../trace/trace";
import { useTraceValue } from "../trace/use-trace";
import { Plot } from "./plot";
import { planFor } from "./series";

/** The live chart of the selected probes' scores over absolute positions. */
export function Chart({ trace }: { trace: Trace }) {
  const host = useRef<HTMLDivElement>(null);
  const chosen = useCell(selection);
  const known = useCell(probes);
  const columns = useTraceValue(trace, (t) => t.columnsVersion);
  // eslint-disable-next-line react-hooks/exhaustive-deps -- a trace gains columns but stays the same object
  const plan = useMemo(() => planFor(trace, chosen, known), [trace, chosen, known, columns]);

  useEffect(() => {
    if (!host.current) return;
    const plot = new Plot(host.current, trace, plan);
    const lead = () => {
      const spot = hover.get() ?? pinned.get();
      plot.lead(spot?.trace === trace ? spot.position : null);
    };
    const recolor = () => requestAnimationFrame(() => plot.recolor());
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", recolor);
    const stops = [hover.subscribe(lead), pinned.subscribe(lead), theme.subscribe(recolor)];
    lead();
    return () => {
      scheme.removeEventListener("change", recolor);
      for (const stop of stops) stop();
      plot.dispose();
    };
  }, [trace, plan]);

  const names = plan.lines.map(({ label }) => label).join(", ") || "no probe selected";
  return (
    <div
      ref={host}
      role="img"
      className="chart"
      data-testid="chart"
      aria-label={`Scores over positions: ${names}. The tokens of the text hold the same numbers.`}
    />
  );
}
