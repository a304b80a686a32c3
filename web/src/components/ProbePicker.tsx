import type { Probe } from "../api/types";
import { useCell } from "../lib/cell";
import { formatBound } from "../lib/numbers";
import { chooseBackground, probes, selection, slotOf, toggleUnderline, UNDERLINES } from "../state/probes";

/** List of the engine's probes, to select one for the background and up to three for underlines. */
export function ProbePicker() {
  const list = useCell(probes);
  const chosen = useCell(selection);
  const full = chosen.underlines.filter((id) => id !== null).length === UNDERLINES;
  return (
    <section className="card" aria-labelledby="probes-title">
      <h2 id="probes-title">
        Probes <span className="muted">one colours the background, up to three underline</span>
      </h2>
      {list.length === 0 && <p className="muted">No probes yet. They appear when the engine is up.</p>}
      <ul className="probes" data-testid="probes">
        {list.map((probe) => (
          <ProbeRow key={probe.id} probe={probe} slot={slotOf(chosen, probe.id)} full={full} />
        ))}
      </ul>
    </section>
  );
}

function ProbeRow({ probe, slot, full }: { probe: Probe; slot: number | null; full: boolean }) {
  const under = slot !== null && slot > 0;
  return (
    <li data-testid="probe" data-probe={probe.id} data-slot={slot ?? undefined}>
      <label className="probe-name" title={probe.description}>
        <input
          type="radio"
          name="background"
          checked={slot === 0}
          onChange={() => chooseBackground(probe.id)}
          data-testid={`background-${probe.id}`}
        />
        <span className="swatch" data-slot={slot ?? undefined} />
        <span className="probe-label">{probe.label}</span>
      </label>
      <span className="probe-facts numbers muted">{factsOf(probe)}</span>
      <label className="probe-under" title={`Underline tokens by ${probe.label}`}>
        <input
          type="checkbox"
          checked={under}
          disabled={!under && full}
          onChange={() => toggleUnderline(probe.id)}
          data-testid={`underline-${probe.id}`}
          aria-label={`Underline by ${probe.label}`}
        />
        <span aria-hidden="true">U</span>
      </label>
    </li>
  );
}

function factsOf({ site, threshold, auroc }: Probe): string {
  const facts = [site];
  if (threshold !== null) facts.push(`≥ ${formatBound(threshold)}`);
  if (auroc !== null) facts.push(`AUROC ${auroc.toFixed(2)}`);
  return facts.join(" · ");
}
