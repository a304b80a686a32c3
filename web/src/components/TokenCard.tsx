import { useState } from "react";
import { PLACE_WORDS, positionsOf } from "../heatmap/describe";
import { useCell } from "../lib/cell";
import { formatActivation, formatScore } from "../lib/numbers";
import { type Spot, unpin } from "../state/focus";
import { probes, selection } from "../state/probes";
import { viewUrl } from "../state/view-url";
import { CellState, STATE_WORDS } from "../trace/column";
import { visible } from "../trace/marks";
import type { Feature } from "../trace/trace";
import { useTraceValue } from "../trace/use-trace";
import { ROWS_SHOWN, type ScoreLine, scoreLines } from "./score-lines";

const FEATURES_SHOWN = 5;

/**
 * Details of the character or word at one position: text, positions, ids, scores (the exact value as their tooltip), and the
 * strongest features. What several tokens make together has, as its colour does, the strongest score of them.
 */
export function TokenCard({ spot: { trace, position }, pinned }: { spot: Spot; pinned: boolean }) {
  const chosen = useCell(selection);
  const known = useCell(probes);
  const { text, from, to } = trace.units.at(position);
  useTraceValue(trace, (t) => printOf(t.units.at(position)));
  useTraceValue(trace, (t) => scoreLines(t, from, to, chosen, known).map(keyOf).join());
  useTraceValue(trace, (t) => t.featuresAt(position, 1).length);
  const [all, setAll] = useState(false);
  const lines = scoreLines(trace, from, to, chosen, known);
  const shown = all && pinned ? lines : lines.slice(0, ROWS_SHOWN);
  const more = lines.length - shown.length;
  return (
    <>
      <div className="token-head">
        <q className="token-text">{visible(text)}</q>
        <span className="numbers muted" data-testid="popover-position">
          {positionsOf(from, to)} · {idsOf(trace.ids.slice(from, to))}
        </span>
        {pinned && (
          <button
            type="button"
            className="link close"
            aria-label="Close"
            data-testid="popover-close"
            onClick={unpin}
          >
            ✕
          </button>
        )}
      </div>
      <table className="token-scores numbers">
        <tbody>
          {shown.map((line) => (
            <ScoreRow key={line.id} line={line} several={to - from > 1} />
          ))}
        </tbody>
      </table>
      {more > 0 && !pinned && <p className="muted more">{more} more, when it is pinned</p>}
      {more > 0 && pinned && (
        <button type="button" className="link more" data-testid="more-scores" onClick={() => setAll(true)}>
          {more} more
        </button>
      )}
      <FeatureList features={trace.featuresAt(position, FEATURES_SHOWN)} />
      {pinned && <CopyLink request={trace.request} position={position} />}
    </>
  );
}

function printOf({ text, from, to }: { text: string; from: number; to: number }): string {
  return `${from} ${to} ${text}`;
}

function keyOf({ id, state, score, at }: ScoreLine): string {
  return `${id} ${state} ${score} ${at}`;
}

function idsOf(ids: Int32Array): string {
  return ids.length > 1 ? `${ids.length} tokens, ids ${ids.join(" ")}` : `id ${ids[0]}`;
}

function ScoreRow({ line, several }: { line: ScoreLine; several: boolean }) {
  const { id, label, slot, score, at, over, place } = line;
  const state = STATE_WORDS[line.state];
  return (
    <tr
      data-testid="score"
      data-probe={id}
      data-state={state}
      data-score={score ?? undefined}
      data-over={over || undefined}
      data-place={place === "on" ? undefined : place}
    >
      <th scope="row" title={label}>
        <span className="score-label">
          <span className="swatch" data-slot={slot ?? undefined} />
          <span className="score-name">{label}</span>
        </span>
      </th>
      <td title={score === null ? state : String(score)}>{score === null ? state : formatScore(score)}</td>
      {several && <td className="muted">{score === null ? "" : `@${at}`}</td>}
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
  const [words, setWords] = useState("Copy link to this token");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(
        new URL(viewUrl({ chat: null, request, position }), location.href).href,
      );
      setWords("Link copied");
    } catch {
      setWords("Not copied: this browser refuses access to the clipboard");
    }
  };
  return (
    <button
      type="button"
      className="link"
      data-testid="copy-link"
      aria-keyshortcuts="c"
      onClick={() => void copy()}
    >
      {words}
    </button>
  );
}
