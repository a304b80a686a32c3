import { heightOf } from "../lanes/draw";
import { PLACE_WORDS } from "../heatmap/describe";
import { formatScore } from "../lib/numbers";
import { STATE_WORDS } from "../trace/column";
import type { ScoreLine } from "./score-lines";

interface Props {
  line: ScoreLine;
  /** Whether the unit has several positions: the row then says whose score it is. */
  several: boolean;
  /** Score of the token beside; null if it has none, undefined if there is no such token. */
  beside?: number | null | undefined;
}

/** One probe's score (the exact value as its tooltip) on its scale, with its threshold. */
export function ScoreRow({ line, several, beside }: Props) {
  const { id, label, slot, score, at, over, place, change } = line;
  const state = STATE_WORDS[line.state];
  return (
    <tr
      data-testid="score"
      data-probe={id}
      data-state={state}
      data-score={score ?? undefined}
      data-over={over || undefined}
      data-rise={line.rise}
      data-place={place === "on" ? undefined : place}
    >
      <th scope="row" title={label}>
        <span className="score-label">
          <span className="swatch" data-slot={slot ?? undefined} />
          <span className="score-name">{label}</span>
        </span>
      </th>
      <td title={score === null ? state : String(score)}>{score === null ? state : formatScore(score)}</td>
      <td className="score-scale">
        <Bar line={line} />
      </td>
      <td className="over-mark" title={PLACE_WORDS[place] || undefined}>
        {over ? "over" : place === "on" ? "" : <span className="muted">off scale</span>}
      </td>
      {beside === undefined ? (
        <td className="muted change" title="Difference to the token before">
          {several && score !== null ? `@${at}` : change === null ? "" : signed(change)}
        </td>
      ) : (
        <td className="beside">{beside === null ? "—" : formatScore(beside)}</td>
      )}
    </tr>
  );
}

/** The score as a bar on its scale, and the threshold as a tick. The number beside it says the same. */
function Bar({ line: { probe, score, over, slot } }: { line: ScoreLine }) {
  const range = probe?.range;
  if (!range) return null;
  const percent = (value: number) => `${100 * heightOf(value, range)}%`;
  return (
    <span className="bar" aria-hidden="true">
      {score !== null && (
        <i
          className="bar-fill"
          data-over={over || undefined}
          data-slot={slot ?? undefined}
          style={{ width: percent(score) }}
        />
      )}
      {probe.threshold !== null && <i className="bar-tick" style={{ left: percent(probe.threshold) }} />}
    </span>
  );
}

function signed(change: number): string {
  return `${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(2)}`;
}
