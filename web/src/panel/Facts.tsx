import { useCell } from "../lib/cell";
import { formatCount } from "../lib/numbers";
import { turns } from "../state/chat";
import { engine, engineInfo } from "../state/engine";
import type { Turn } from "../state/turn";
import type { Trace } from "../trace/trace";
import { useTraceValue } from "../trace/use-trace";

/** Facts about the request on screen. */
export function Facts({ trace }: { trace: Trace | null }) {
  const { engine: core } = engineInfo(useCell(engine)) ?? {};
  const runs = [core?.kind, core?.device, core?.dtype].filter(Boolean).join(" · ");
  return (
    <details className="card facts-card">
      <summary>Request {trace && <Headline trace={trace} />}</summary>
      <dl className="facts numbers" data-testid="facts">
        {trace && <RequestFacts trace={trace} />}
        <dt>engine</dt>
        <dd>{runs || "—"}</dd>
        <dt>context</dt>
        <dd>{core?.max_context ? `${formatCount(core.max_context)} tokens` : "—"}</dd>
      </dl>
    </details>
  );
}

/** Length and speed of an answer that has ended: while it streams, a text that changes with each token costs a layout. */
function Headline({ trace }: { trace: Trace }) {
  const turn = useCell(turns).find((one) => one.trace === trace);
  const total = useTraceValue(trace, (t) => (t.final !== null || t.closed ? t.length : null));
  if (total === null) return <span className="muted">running</span>;
  const tokens = Math.max(0, total - (trace.promptTokens ?? 0));
  return (
    <span className="muted numbers">
      {formatCount(tokens)} tokens{turn && ` · ${speedOf(turn, tokens).split(" · ")[0]}`}
    </span>
  );
}

function RequestFacts({ trace }: { trace: Trace }) {
  const turn = useCell(turns).find((one) => one.trace === trace);
  const id = useTraceValue(trace, (t) => t.request);
  const prompt = useTraceValue(trace, (t) => t.promptTokens ?? 0);
  const total = useTraceValue(trace, (t) => t.length);
  const coverage = useTraceValue(trace, coverageOf);
  return (
    <>
      <dt>tokens</dt>
      <dd data-testid="fact-tokens">
        {formatCount(prompt)} + {formatCount(Math.max(0, total - prompt))}
      </dd>
      {turn && (
        <>
          <dt>speed</dt>
          <dd data-testid="fact-speed">{speedOf(turn, total - prompt)}</dd>
        </>
      )}
      <dt>coverage</dt>
      <dd data-testid="fact-coverage">{coverage}</dd>
      <dt>id</dt>
      <dd className="request-id" data-testid="fact-request">
        {id || "—"}
      </dd>
    </>
  );
}

function coverageOf({ final }: Trace): string {
  if (!final) return "when it ends";
  const share = final.present === 0 ? 0 : (100 * final.computed) / final.present;
  const cached = final.cached ? `, ${formatCount(final.cached)} cached` : "";
  return `${share.toFixed(1)} % (${final.computed} of ${final.present}${cached})`;
}

function speedOf({ timing: { sent, first, last } }: Turn, tokens: number): string {
  if (first === null || last === null) return "—";
  const wait = `first after ${Math.round(first - sent)} ms`;
  if (tokens < 2 || last <= first) return wait;
  return `${((1000 * (tokens - 1)) / (last - first)).toFixed(1)} tok/s · ${wait}`;
}
