import { useMemo, useState } from "react";
import { Heatmap } from "../heatmap/Heatmap";
import { useCell } from "../lib/cell";
import { active, pinned, unpin } from "../state/focus";
import { isOpen, type Turn } from "../state/turn";
import { findInPrompt } from "../trace/find";
import type { Trace } from "../trace/trace";
import { useTraceValue } from "../trace/use-trace";
import { FINISH_WORDS } from "../parts/finish-words";
import { KeepButton } from "./KeepButton";
import { TurnProblem } from "./TurnProblem";
import { NotRead } from "./NotRead";
import { Versions } from "./Versions";

export function TurnView({ turn }: { turn: Turn }) {
  const { trace } = turn;
  const [showPrompt, setShowPrompt] = useState(false);
  const spot = useCell(pinned);
  // A pin from the lanes can be of a prompt token that is not in the text yet.
  const wanted = spot?.reveal === true && spot.trace === trace && spot.position < (trace.promptTokens ?? 0);
  if (wanted && !showPrompt) setShowPrompt(true);
  const shown = useCell(active) === trace;
  const request = useTraceValue(trace, (t) => t.request);
  const hasPrompt = useTraceValue(trace, (t) => (t.promptTokens ?? 0) > 0 && t.ids[0] !== -1 && t.length > 0);
  return (
    <article className="turn" data-testid="turn" data-status={turn.status} data-active={shown || undefined}>
      <div className="said-user">
        <UserText turn={turn} />
      </div>
      <div className="said-model">
        <div className="turn-tools">
          <button
            type="button"
            className="link"
            disabled={!hasPrompt}
            aria-pressed={showPrompt}
            data-testid="show-prompt"
            onClick={() => {
              if (wanted) unpin();
              setShowPrompt(!showPrompt);
            }}
          >
            {showPrompt ? "Hide prompt tokens" : "Show prompt tokens"}
          </button>
          {!shown && (
            <button type="button" className="link" onClick={() => active.set(trace)}>
              Show in lanes
            </button>
          )}
          <KeepButton request={request} running={isOpen(turn)} />
          <Versions turn={turn} />
          <NotRead trace={trace} />
          <span className="muted">
            {turn.finish === null ? "" : (FINISH_WORDS[turn.finish] ?? turn.finish)}
          </span>
        </div>
        {showPrompt && hasPrompt && <PromptTokens trace={trace} />}
        <Answer turn={turn} />
        {turn.problem && <TurnProblem turn={turn} problem={turn.problem} />}
      </div>
    </article>
  );
}

/** The user's message: as coloured tokens if it can be found in the prompt, else as plain text. */
function UserText({ turn: { trace, user } }: { turn: Turn }) {
  const ready = useTraceValue(trace, (t) => t.promptTokens !== null && t.length >= t.promptTokens);
  const found = useMemo(() => (ready ? findInPrompt(trace, user) : null), [ready, trace, user]);
  if (found === null) {
    return (
      <>
        <span className="plain">{user}</span>
        {ready && (
          <p className="muted not-found">Not found in the prompt as it was sent: show the prompt tokens.</p>
        )}
      </>
    );
  }
  return <Heatmap trace={trace} from={found[0]} to={found[1]} quoted label="Your message, token by token" />;
}

function PromptTokens({ trace }: { trace: Trace }) {
  return (
    <div className="prompt" data-testid="prompt-tokens">
      <Heatmap trace={trace} from={0} to={trace.promptTokens ?? 0} label="The whole prompt, token by token" />
    </div>
  );
}

function Answer({ turn }: { turn: Turn }) {
  const start = useTraceValue(turn.trace, (t) => t.promptTokens);
  if (turn.status === "waiting") return <p className="thinking">reading the prompt</p>;
  if (start === null) return <p className="plain">{turn.answer}</p>;
  return (
    <Heatmap
      trace={turn.trace}
      from={start}
      live={isOpen(turn)}
      label="Answer, token by token. Arrow keys move, Enter pins, Escape closes."
    />
  );
}
