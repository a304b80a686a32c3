import { useState } from "react";
import { Lanes } from "../lanes/Lanes";
import { useCell } from "../lib/cell";
import { Reader } from "../reader/Reader";
import { active } from "../state/focus";
import { Facts } from "./Facts";
import { Legend } from "./Legend";
import { Replicas } from "./Replicas";
import { RequestList } from "./RequestList";

/** The panel beside the text: lanes, scale, what is pointed at, and facts and requests. */
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
        {open ? "Back to the text" : "Lanes, scale and requests"}
      </button>
      <Lanes trace={trace} />
      <Legend />
      <Reader />
      <div className="more-facts">
        <Facts trace={trace} />
        <Replicas />
        <RequestList />
      </div>
    </aside>
  );
}
