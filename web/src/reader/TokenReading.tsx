import { useState } from "react";
import { positionsOf } from "../heatmap/describe";
import { useCell } from "../lib/cell";
import { type Spot, unpin } from "../state/focus";
import { probes, selection } from "../state/probes";
import { visible } from "../trace/marks";
import { ChanceLines } from "./ChanceLines";
import { CopyLink } from "./CopyLink";
import { FeatureList } from "./FeatureList";
import { ROWS_SHOWN, scoreLines } from "./score-lines";
import { ScoreRow } from "./ScoreRow";
import { useChangesAt } from "./use-changes";

interface Props {
  spot: Spot;
  /** A token to compare with. */
  beside: Spot | null;
  pinned: boolean;
}

/**
 * The character or word at one position: text, positions, ids, probability, scores and features. What several tokens make
 * together has, as its colour does, the strongest score of them.
 */
export function TokenReading({ spot: { trace, position }, beside, pinned }: Props) {
  const chosen = useCell(selection);
  const known = useCell(probes);
  const { text, from, to } = trace.units.at(position);
  useChangesAt(trace, position);
  const [all, setAll] = useState(false);
  const lines = scoreLines(trace, from, to, chosen, known);
  const shown = all ? lines : lines.slice(0, ROWS_SHOWN);
  const more = lines.length - shown.length;
  const other = beside && readingOf(beside);
  return (
    <>
      <div className="token-head">
        <q className="token-text">{visible(text)}</q>
        <span className="numbers muted" data-testid="reader-position">
          {positionsOf(from, to)} · {idsOf(trace.ids.slice(from, to))}
        </span>
        {pinned && (
          <button
            type="button"
            className="link close"
            aria-label="Let go of this token"
            data-testid="reader-close"
            onClick={unpin}
          >
            ✕
          </button>
        )}
      </div>
      <div className="reader-body">
        <ChanceLines trace={trace} from={from} to={to} />
        <table className="token-scores numbers">
          <colgroup>
            <col />
            <col className="wide-value" />
            <col className="wide-scale" />
            <col className="wide-mark" />
            <col className="wide-change" />
          </colgroup>
          {other && (
            <thead>
              <tr>
                <td colSpan={5} data-testid="beside">
                  <span className="muted">beside it: </span>
                  <q>{other.text}</q> {other.position}
                </td>
              </tr>
            </thead>
          )}
          <tbody>
            {shown.map((line) => (
              <ScoreRow key={line.id} line={line} several={to - from > 1} beside={other?.scoreOf(line.id)} />
            ))}
          </tbody>
        </table>
        {more > 0 && (
          <button type="button" className="link more" data-testid="more-scores" onClick={() => setAll(true)}>
            {more} more
          </button>
        )}
        <FeatureList trace={trace} position={position} />
        {pinned && <CopyLink request={trace.request} position={position} />}
      </div>
    </>
  );
}

function readingOf({ trace, position }: Spot) {
  return {
    text: visible(trace.units.at(position).text),
    position,
    scoreOf: (id: string) => trace.column(id)?.scoreAt(position) ?? null,
  };
}

function idsOf(ids: Int32Array): string {
  return ids.length > 1 ? `${ids.length} tokens, ids ${ids.join(" ")}` : `id ${ids[0]}`;
}
