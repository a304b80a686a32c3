import { sendFor, sendShorter, takeBack, turns } from "../state/chat";
import { draft } from "../state/draft";
import { engine, engineInfo } from "../state/engine";
import { isOpen, type Turn } from "../state/turn";
import { useCell } from "../lib/cell";
import { formatCount } from "../lib/numbers";
import type { ScopeError } from "../wire/errors";
import { Notice } from "../parts/Notice";

/** What went wrong in a turn, and, for the last one, the ways on. */
export function TurnProblem({ turn, problem }: { turn: Turn; problem: ScopeError }) {
  const list = useCell(turns);
  const limit = engineInfo(useCell(engine))?.engine.max_context ?? null;
  const last = list.at(-1)?.key === turn.key && !isOpen(turn);
  const left = limit === null || problem.promptTokens === null ? 0 : limit - problem.promptTokens;
  return (
    <Notice
      title={problem.message}
      hint={
        <>
          {problem.hint}
          {last && (
            <span className="ways">
              {problem.isTooLong && left > 0 && (
                <button
                  type="button"
                  className="quiet"
                  data-testid="answer-shorter"
                  onClick={() => sendFor(left)}
                >
                  Answer with the {formatCount(left)} tokens left
                </button>
              )}
              {problem.isTooLong && list.length > 1 && (
                <button type="button" className="quiet" data-testid="drop-oldest" onClick={sendShorter}>
                  Drop the oldest turn
                </button>
              )}
              <button
                type="button"
                className="quiet"
                data-testid="edit-message"
                onClick={() => draft.set(takeBack(turn))}
              >
                Edit the message
              </button>
            </span>
          )}
        </>
      }
    />
  );
}
