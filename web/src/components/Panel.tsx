import { useState } from "react";
import { Chart } from "../chart/Chart";
import { useCell } from "../lib/cell";
import { active } from "../state/focus";
import { Facts } from "./Facts";
import { Legend } from "./Legend";
import { ProbePicker } from "./ProbePicker";
import { Readout } from "./Readout";
import { Replicas } from "./Replicas";
import { RequestList } from "./RequestList";

/** The panel beside the text: chart, legend, probes, facts and requests. */
export function Panel() {
  const trace = useCell(active);
  // Counts in narrow and low windows only.
  const [open, setOpen] = useState(false);
  return (
    <aside className="panel" id="instrument" aria-label="Instrument" data-open={open || undefined}>
      <button
        type="button"
        className="sheet-toggle"
        aria-expanded={open}
        data-testid="sheet"
        onClick={() => setOpen(!open)}
      >
        {open ? "Back to the text" : "Chart, probes and requests"}
      </button>
      <section className="screen" aria-label="Chart">
        {trace ? <Chart trace={trace} /> : <div className="chart chart-idle">no signal yet</div>}
        <Readout trace={trace} />
      </section>
      <Legend />
      <ProbePicker />
      <Facts trace={trace} />
      <Replicas />
      <RequestList />
    </aside>
  );
}
