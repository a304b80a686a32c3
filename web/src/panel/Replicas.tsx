import type { Info, Replica } from "../api/types";
import { useCell } from "../lib/cell";
import { formatCount } from "../lib/numbers";
import { engine, engineInfo } from "../state/engine";

/** Shows each engine of a server that has several, or one that is not whole: what is read of it, and what is wrong. */
export function Replicas() {
  const info = engineInfo(useCell(engine));
  if (!info) return null;
  const wrong = info.replicas.some((one) => !isWhole(one)) || missing(info) > 0;
  if (info.replicas.length < 2 && !wrong) return null;
  return (
    <details className="card replicas" data-testid="replicas" data-wrong={wrong} open={wrong}>
      <summary>
        Engines <span className="muted">{summaryOf(info)}</span>
      </summary>
      <ul>
        {info.replicas.map((one) => (
          <Row key={one.id} one={one} />
        ))}
      </ul>
      {missing(info) > 0 && (
        <p className="muted">
          {missing(info) === 1 ? "One more engine is" : `${missing(info)} more engines are`} not found on this
          machine. Requests that run there have no scores.
        </p>
      )}
    </details>
  );
}

function Row({ one }: { one: Replica }) {
  const lost = (one.ring?.missed_rows ?? 0) + (one.ring?.dropped_rows ?? 0);
  return (
    <li data-testid="replica" data-replica={one.replica}>
      <span className="dot" data-state={isWhole(one) ? "running" : "failed"} />
      <span className="numbers" title={`card ${one.id}, process ${one.pid}`}>
        {one.replica} · {one.device}
      </span>
      <span className="muted numbers">
        {one.ring ? `${formatCount(one.ring.rows)} rows` : "no rows"}
        {lost > 0 && `, ${formatCount(lost)} lost`}, {one.probes.length} probes
      </span>
      {!isWhole(one) && (
        <p className="muted">
          {one.scores === "read"
            ? "It does not answer, so probes and marks do not reach it"
            : "Its scores are not read"}
          {one.why ? `: ${one.why}` : "."}
        </p>
      )}
    </li>
  );
}

function isWhole(one: Replica): boolean {
  return one.scores === "read" && one.controls === "answer";
}

/** The number of engines that the server has and that were not found. */
function missing(info: Info): number {
  return Math.max(0, info.replicas_expected - info.replicas.length);
}

function summaryOf(info: Info): string {
  const read = info.replicas.filter((one) => one.scores === "read").length;
  const all = info.replicas.length + missing(info);
  return read === all ? `scores of all ${all}` : `scores of ${read} of ${all}`;
}
