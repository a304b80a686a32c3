import type { Probe } from "../api/types";
import { useCell } from "../lib/cell";
import { formatBound } from "../lib/numbers";
import {
  absent,
  chooseBackground,
  departed,
  probes,
  selection,
  selectedSlots,
  slotOf,
  toggleUnderline,
  UNDERLINES,
} from "../state/probes";

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
      <Gone />
      <ul className="probes" data-testid="probes">
        {list.map((probe) => (
          <ProbeRow key={probe.id} probe={probe} slot={slotOf(chosen, probe.id)} full={full} />
        ))}
        {[...useCell(departed).values()].map(({ probe, at }) => (
          <ProbeRow key={probe.id} probe={probe} slot={slotOf(chosen, probe.id)} full={full} left={at} />
        ))}
      </ul>
    </section>
  );
}

/** Says which selected probes the engine does not have, so that tokens without a colour are no riddle. */
function Gone() {
  const chosen = useCell(selection);
  const left = useCell(departed);
  const missing = useCell(absent);
  const gone = selectedSlots(chosen).flatMap(({ id }) => left.get(id)?.probe.label ?? []);
  return (
    <div role="status" data-testid="gone">
      {gone.length > 0 && (
        <p className="gone">
          {listOf(gone)} left the engine: new answers have no scores of {gone.length === 1 ? "it" : "them"}.
          Choose another probe.
        </p>
      )}
      {missing && (
        <p className="gone">
          The engine does not have {listOf(missing.ids)}, which this page’s address names.
          {missing.instead !== null && ` The background shows ${missing.instead} instead.`}{" "}
          <button type="button" className="link" onClick={() => absent.set(null)}>
            OK
          </button>
        </p>
      )}
    </div>
  );
}

const listOf = (names: readonly string[]) => new Intl.ListFormat("en").format(names);

interface RowProps {
  probe: Probe;
  slot: number | null;
  full: boolean;
  /** When it left the engine, if it has. */
  left?: Date;
}

function ProbeRow({ probe, slot, full, left }: RowProps) {
  const under = slot !== null && slot > 0;
  return (
    <li
      data-testid={left ? "departed" : "probe"}
      data-probe={probe.id}
      data-slot={slot ?? undefined}
      data-left={left !== undefined || undefined}
    >
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
      <span className="probe-facts numbers muted">
        {left ? `left the engine at ${timeOf(left)}` : factsOf(probe)}
      </span>
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

function timeOf(date: Date): string {
  return date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
}

function factsOf({ site, threshold, auroc }: Probe): string {
  const facts = [site];
  if (threshold !== null) facts.push(`≥ ${formatBound(threshold)}`);
  if (auroc !== null) facts.push(`AUROC ${auroc.toFixed(2)}`);
  return facts.join(" · ");
}
