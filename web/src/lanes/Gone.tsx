import { useCell } from "../lib/cell";
import { absent, departed, selectedSlots, selection } from "../state/probes";

/** Says which selected probes the engine does not have, so that tokens without a colour are explained. */
export function Gone() {
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
