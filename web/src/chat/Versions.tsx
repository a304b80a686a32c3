import { useCell } from "../lib/cell";
import { answers, showAnswer, turns } from "../state/chat";
import { isOpen, type Turn } from "../state/turn";

/** Steps through the answers to one question. Only the last question's can be changed: later turns build on the others. */
export function Versions({ turn }: { turn: Turn }) {
  const all = useCell(answers).filter(({ slot }) => slot === turn.slot);
  const last = useCell(turns).at(-1);
  const at = all.findIndex(({ key }) => key === turn.key);
  if (all.length < 2) return null;
  const fixed = last?.slot !== turn.slot || isOpen(turn);
  const step = (by: number, words: string) => {
    const other = all[at + by];
    return (
      <button
        type="button"
        className="link step"
        aria-label={words}
        disabled={fixed || !other}
        data-testid={by < 0 ? "earlier-answer" : "later-answer"}
        onClick={() => other && showAnswer(other)}
      >
        {by < 0 ? "‹" : "›"}
      </button>
    );
  };
  return (
    <span
      className="versions numbers"
      data-testid="versions"
      title={fixed ? "Later turns build on this answer" : "Answers to this question"}
    >
      {step(-1, "Earlier answer")} {at + 1} / {all.length} {step(1, "Later answer")}
    </span>
  );
}
