import { STEPS, stepOf } from "../color/ramp";
import { useCell } from "../lib/cell";
import { formatBound } from "../lib/numbers";
import { probes, selection } from "../state/probes";

const SAMPLES = 33;

/** The background's fixed scale, and the meaning of tokens without a colour. */
export function Legend() {
  const { background } = useCell(selection);
  const probe = useCell(probes).find(({ id }) => id === background);
  const [low, high] = probe?.range ?? [0, 1];
  const signed = probe?.signed ?? false;
  const share = (score: number) => `${(100 * (score - low)) / (high - low || 1)}%`;
  const threshold = probe?.threshold ?? null;
  return (
    <section className="card legend" aria-label="Legend" data-testid="legend">
      <div className="scale" aria-hidden="true">
        {Array.from({ length: SAMPLES }, (_, i) => low + ((high - low) * i) / (SAMPLES - 1)).map((score) => (
          <span key={score} className={stepClass(stepOf(score, { range: [low, high], signed }))} />
        ))}
        {threshold !== null && <i className="threshold" style={{ left: share(threshold) }} />}
      </div>
      <div className="scale-ends numbers">
        <span>{formatBound(low)}</span>
        <span>
          {probe?.label ?? "no background probe"}
          {threshold !== null && ` · threshold ${formatBound(threshold)}`}
        </span>
        <span>{formatBound(high)}</span>
      </div>
      <ul className="states heatmap-sample">
        <li>
          <span className="t pending">the</span> pending
        </li>
        <li>
          <span className="t never">the</span> never computed
        </li>
        <li>
          <span className="t masked">the</span> masked
        </li>
        <li>
          <span className="t">the</span> 0
        </li>
        {threshold !== null && (
          <li>
            <span className={`t s${STEPS} over`}>the</span> at or over threshold
          </li>
        )}
        {signed && (
          <li>
            <span className={`t n${STEPS} below`}>the</span> below zero
          </li>
        )}
      </ul>
    </section>
  );
}

function stepClass(step: number): string {
  if (step === 0) return "";
  return step > 0 ? `s${step}` : `n${-step}`;
}
