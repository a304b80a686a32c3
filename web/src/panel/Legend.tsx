import type { Learnt, Probe } from "../api/types";
import { type Heat, heatStep, type Scale, STEPS } from "../color/ramp";
import { useCell } from "../lib/cell";
import { formatBound, formatCount } from "../lib/numbers";
import { active } from "../state/focus";
import { heat } from "../state/heat";
import { knownProbe, learning, probes, selection } from "../state/probes";

const SAMPLES = 65;
const NO_PROBE: Scale = { range: [0, 1], signed: false };

/** The background's scale and how its scores become colours, where it comes from, and the meaning of tokens without a colour. */
export function Legend() {
  const { background, underlines } = useCell(selection);
  const list = useCell(probes);
  const how = useCell(heat);
  const learnt = useCell(learning).get(background ?? "");
  const column = useCell(active)?.column(background ?? "");
  const probe = background === null ? undefined : knownProbe(background, list, column?.since);
  const scale = probe ? scaleOf(probe) : background === null ? NO_PROBE : null;
  const events = how === "events" && (probe?.threshold ?? null) !== null;
  return (
    <section className="legend" aria-label="Legend" data-testid="legend">
      {scale && <Ramp scale={scale} probe={probe} how={how} />}
      {background !== null && !probe && list.length > 0 && (
        <p className="scale-note muted">No scale: the engine does not have {background}.</p>
      )}
      {probe?.learnt && <p className="scale-note muted">{sourceOf(probe, learnt)}</p>}
      <details className="marks">
        <summary>{summaryOf(probe, how)}</summary>
        {probe && <p className="scale-note muted numbers">{trustOf(probe)}</p>}
        <HeatChoice how={how} fixed={probe !== undefined && probe.threshold === null} />
        <States
          scale={scale}
          probe={probe}
          events={events}
          underlined={underlines.some((id) => id !== null)}
        />
      </details>
    </section>
  );
}

/** Says which scores have a colour. */
function summaryOf(probe: Probe | undefined, how: Heat): string {
  if (!probe) return "What the marks mean";
  if (probe.threshold === null) return `${probe.label} has no threshold: its whole scale has colour`;
  return how === "events" ? "Colour: at or over the threshold" : "Colour: the whole scale";
}

/** What decides how far a probe can be trusted. */
function trustOf({ site, threshold, fpr, auroc, controlAuroc }: Probe): string {
  const facts = [site];
  if (threshold !== null && fpr !== null)
    facts.push(`${formatBound(100 * fpr)} % of other text is over ${formatBound(threshold)}`);
  if (auroc !== null) facts.push(`AUROC ${auroc.toFixed(2)}`);
  if (controlAuroc !== null) facts.push(`with shuffled labels ${controlAuroc.toFixed(2)}`);
  return facts.join(" · ");
}

const CHOICES: readonly (readonly [Heat, string])[] = [
  ["events", "events"],
  ["scale", "whole scale"],
];

function HeatChoice({ how, fixed }: { how: Heat; fixed: boolean }) {
  return (
    <fieldset className="segments words" aria-label="Colour" disabled={fixed}>
      {CHOICES.map(([choice, words]) => (
        <button
          key={choice}
          type="button"
          aria-pressed={fixed ? choice === "scale" : how === choice}
          data-testid={`heat-${choice}`}
          onClick={() => heat.set(choice)}
        >
          {words}
        </button>
      ))}
    </fieldset>
  );
}

function scaleOf({ range, signed }: Probe): Scale | null {
  return range && { range, signed };
}

/** Says in words from what a learnt range comes. */
function sourceOf({ label, range }: Probe, learnt: Learnt | undefined): string {
  const tokens = learnt?.tokens ?? 0;
  const seen = `${formatCount(tokens)} token${tokens === 1 ? "" : "s"}`;
  if (range === null)
    return `No scale yet: ${label} states none, so it is learnt from its scores (${seen} so far).`;
  return `Scale learnt from ${seen}${learnt?.settled ? "" : " so far"}; the probe states none.`;
}

function Ramp({ scale, probe, how }: { scale: Scale; probe: Probe | undefined; how: Heat }) {
  const [low, high] = scale.range;
  const threshold = probe?.threshold ?? null;
  const share = (score: number) => (score - low) / (high - low || 1);
  const shown = threshold !== null && share(threshold) >= 0 && share(threshold) <= 1;
  return (
    <>
      <div className="scale" aria-hidden="true">
        {Array.from({ length: SAMPLES }, (_, i) => low + ((high - low) * i) / (SAMPLES - 1)).map((score) => (
          <span key={score} className={stepClass(heatStep(score, { ...scale, threshold }, how))} />
        ))}
        {shown && <i className="threshold" style={{ left: `${100 * share(threshold)}%` }} />}
      </div>
      <div className="scale-ends numbers">
        <span>{formatBound(low)}</span>
        <span>
          {probe?.label ?? "no background probe"}
          {threshold !== null && ` · threshold ${formatBound(threshold)}`}
        </span>
        <span>{formatBound(high)}</span>
      </div>
    </>
  );
}

interface StatesProps {
  scale: Scale | null;
  probe: Probe | undefined;
  events: boolean;
  underlined: boolean;
}

function States({ scale, probe, events, underlined }: StatesProps) {
  return (
    <ul className="states heatmap-sample" data-underlined={underlined || undefined}>
      <State look="pending">pending</State>
      <State look="never">never computed</State>
      <State look="masked">masked</State>
      {scale && <State look="">{events ? "below the threshold" : formatBound(plainScore(scale))}</State>}
      {!scale && <State look="unscaled">computed, no scale yet</State>}
      {probe?.learnt && <State look="first">first token, not on the scale</State>}
      {probe && scale && <State look={`s${STEPS} beyond`}>beyond the scale</State>}
      {(probe?.threshold ?? null) !== null && <State look={`s${STEPS} over`}>at or over threshold</State>}
      {scale?.signed && !events && <State look={`n${STEPS} below`}>below zero</State>}
      {underlined && <State look="a-none">underline: no number</State>}
    </ul>
  );
}

function State({ look, children }: { look: string; children: string }) {
  return (
    <li>
      <span className={`t ${look}`.trimEnd()}>the</span> {children}
    </li>
  );
}

/** Returns the score that has no colour. */
function plainScore({ range: [low, high], signed }: Scale): number {
  if (!signed) return low;
  return high <= 0 ? high : 0;
}

function stepClass(step: number): string {
  if (step === 0) return "";
  return step > 0 ? `s${step}` : `n${-step}`;
}
