import { useCell } from "../lib/cell";
import type { Probe } from "../api/types";
import { formatBound, formatScore } from "../lib/numbers";
import { hover, pinned, type Spot } from "../state/focus";
import { knownProbe, probes, selectedSlots, selection } from "../state/probes";
import { STATE_WORDS } from "../trace/column";
import { visible } from "../trace/marks";
import type { Trace } from "../trace/trace";

/** The lines of the chart above, with their values at the cursor. */
export function Readout({ trace }: { trace: Trace | null }) {
  const hovered = useCell(hover);
  const held = useCell(pinned);
  const chosen = useCell(selection);
  const known = useCell(probes);
  const rows = selectedSlots(chosen).map(({ id, slot }) => ({
    id,
    slot,
    probe: knownProbe(id, known, trace?.column(id)?.since),
  }));
  const several = new Set(rows.map(({ probe }) => String(probe?.range))).size > 1;
  const spot = [hovered, held].find((one) => one !== null && one.trace === trace) ?? null;
  return (
    <div className="readout" data-testid="readout">
      <div className="readout-token numbers">
        {spot ? (
          <>
            <span className="readout-pos">{spot.position}</span>{" "}
            <q>{visible(spot.trace.units.at(spot.position).text)}</q>
          </>
        ) : (
          <span className="muted">point at a token or at the chart</span>
        )}
      </div>
      <ul>
        {rows.map(({ id, slot, probe }) => (
          <li key={id}>
            <span className="swatch" data-slot={slot} />
            {probe?.label ?? id}
            {several && <span className="numbers muted">{rangeOf(probe)}</span>}
            <span className="numbers readout-value">{spot ? valueAt(spot, id) : ""}</span>
          </li>
        ))}
      </ul>
    </div>
  );
}

/** Returns a line's scale in words: lines with different scales share one picture. */
function rangeOf(probe: Probe | undefined): string {
  if (!probe) return "";
  return probe.range ? `${formatBound(probe.range[0])} to ${formatBound(probe.range[1])}` : "no scale yet";
}

function valueAt({ trace, position }: Spot, id: string): string {
  const column = trace.column(id);
  if (!column) return "not read";
  const score = column.scoreAt(position);
  return score === null ? STATE_WORDS[column.stateAt(position)] : formatScore(score);
}
