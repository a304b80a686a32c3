import { useCell } from "../lib/cell";
import { knownProbe, probes, selectedSlots, selection } from "../state/probes";
import type { Trace } from "../trace/trace";
import { useTraceValue } from "../trace/use-trace";

/** Names the selected probes that did not read a request: its tokens have no numbers of them. */
export function NotRead({ trace }: { trace: Trace }) {
  const chosen = useCell(selection);
  const known = useCell(probes);
  useTraceValue(trace, (t) => t.columnsVersion);
  const some = useTraceValue(trace, (t) => t.length > 0);
  const names = selectedSlots(chosen)
    .filter(({ id }) => !trace.column(id))
    .map(({ id }) => knownProbe(id, known)?.label ?? id);
  if (!some || names.length === 0) return null;
  return (
    <span className="muted" data-testid="not-read">
      not read by {new Intl.ListFormat("en").format(names)}
    </span>
  );
}
