import { useCell } from "../lib/cell";
import { formatCount } from "../lib/numbers";
import { soughtLane } from "../state/lanes";
import type { Trace } from "../trace/trace";
import { useTraceValue } from "../trace/use-trace";
import type { Board } from "./board";

interface Props {
  board: Board;
  trace: Trace | null;
  count: number;
  sought: string;
}

/** From this many lanes on there is a field to find one. */
const MANY = 8;

/** Title of the lanes, and what changes their order and extent. */
export function LanesHead({ board, trace, count, sought }: Props) {
  return (
    <div className="lanes-head">
      <h2 id="lanes-title">Lanes</h2>
      {(count >= MANY || sought !== "") && (
        <input
          type="search"
          className="lanes-find"
          value={sought}
          placeholder={`Find in ${formatCount(count)}`}
          aria-label="Find a lane"
          data-testid="find-lane"
          onChange={(event) => soughtLane.set(event.target.value)}
        />
      )}
      {trace && <ExtentChoice board={board} trace={trace} />}
      <button
        type="button"
        className="quiet small"
        title="Order the lanes anew: loudest first"
        data-testid="sort-lanes"
        onClick={board.sort}
      >
        Loudest
      </button>
    </div>
  );
}

const EXTENTS = ["answer", "all"] as const;
const TITLES = { answer: "Show the answer", all: "Show prompt and answer" } as const;

function ExtentChoice({ board, trace }: { board: Board; trace: Trace }) {
  const extent = useCell(board.extent);
  const prompt = useTraceValue(trace, (t) => (t.promptTokens ?? 0) > 0);
  const zoomed = typeof extent !== "string";
  return (
    <>
      {zoomed && (
        <button
          type="button"
          className="quiet small"
          data-testid="reset-zoom"
          onClick={() => board.setExtent("answer")}
        >
          {extent[0]}–{extent[1] - 1} <span aria-hidden="true">✕</span>
          <span className="sr-only">show the whole answer again</span>
        </button>
      )}
      {prompt && (
        <fieldset className="segments words" aria-label="Positions">
          {EXTENTS.map((name) => (
            <button
              key={name}
              type="button"
              aria-pressed={extent === name}
              title={TITLES[name]}
              data-testid={`extent-${name}`}
              onClick={() => board.setExtent(name)}
            >
              {name}
            </button>
          ))}
        </fieldset>
      )}
    </>
  );
}
