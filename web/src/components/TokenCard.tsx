import { useState } from "react";
import { PLACE_WORDS } from "../heatmap/describe";
import { isOver, placeOf } from "../heatmap/paint";
import { useCell } from "../lib/cell";
import { formatActivation, formatScore } from "../lib/numbers";
import { type Spot, unpin } from "../state/focus";
import { knownProbe, probes, selection, slotOf } from "../state/probes";
import { viewUrl } from "../state/view-url";
import { CellState, type Column, STATE_WORDS } from "../trace/column";
import { visible } from "../trace/marks";
import type { Feature } from "../trace/trace";
import { useTraceValue } from "../trace/use-trace";

const FEATURES_SHOWN = 5;

/** Details of one position: token, id, every probe's score (the exact value as its tooltip), and the strongest features. */
export function TokenCard({ spot: { trace, position }, pinned }: { spot: Spot; pinned: boolean }) {
  useTraceValue(trace, (t) =>
    t.columns.map((column) => `${column.stateAt(position)}${column.scoreAt(position)}`).join(),
  );
  useTraceValue(trace, (t) => t.featuresAt(position, 1).length);
  return (
    <>
      <header className="token-head">
        <q className="token-text">{visible(trace.textAt(position))}</q>
        <span className="numbers muted" data-testid="popover-position">
          position {position} · id {trace.ids[position]}
        </span>
        {pinned && (
          <button
            type="button"
            className="link"
            aria-label="Close"
            data-testid="popover-close"
            onClick={unpin}
          >
            ✕
          </button>
        )}
      </header>
      <table className="token-scores numbers">
        <tbody>
          {trace.columns.map((column) => (
            <ScoreRow key={column.id} column={column} position={position} />
          ))}
        </tbody>
      </table>
      <FeatureList features={trace.featuresAt(position, FEATURES_SHOWN)} />
      {pinned && <CopyLink request={trace.request} position={position} />}
    </>
  );
}

function ScoreRow({ column, position }: { column: Column; position: number }) {
  const probe = knownProbe(column.id, useCell(probes));
  const slot = slotOf(useCell(selection), column.id);
  const score = column.scoreAt(position);
  const state = STATE_WORDS[column.stateAt(position)];
  const over = isOver(score, probe?.threshold);
  const place = score === null || !probe ? "on" : placeOf(score, position, probe);
  return (
    <tr
      data-testid="score"
      data-probe={column.id}
      data-state={state}
      data-score={score ?? undefined}
      data-over={over || undefined}
      data-place={place === "on" ? undefined : place}
    >
      <th scope="row">
        <span className="swatch" data-slot={slot ?? undefined} />
        {probe?.label ?? column.id}
      </th>
      <td title={score === null ? state : String(score)}>{score === null ? state : formatScore(score)}</td>
      <td className="over-mark" title={PLACE_WORDS[place] || undefined}>
        {over ? "over" : place === "on" ? "" : <span className="muted">off scale</span>}
      </td>
    </tr>
  );
}

function FeatureList({ features }: { features: readonly Feature[] }) {
  if (features.length === 0) return null;
  return (
    <ol className="token-features numbers" aria-label="Strongest features" data-testid="features">
      {features.map(({ id, value }) => (
        <li key={id}>
          #{id} {value === null ? STATE_WORDS[CellState.notFinite] : formatActivation(value)}
        </li>
      ))}
    </ol>
  );
}

function CopyLink({ request, position }: { request: string; position: number }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(new URL(viewUrl({ request, position }), location.href).href);
    setDone(true);
  };
  return (
    <button type="button" className="link" data-testid="copy-link" onClick={() => void copy()}>
      {done ? "Link copied" : "Copy link to this token"}
    </button>
  );
}
