import { useCell } from "../lib/cell";
import { engine, replays } from "../state/engine";
import { unknownChat } from "../state/session";
import { probes } from "../state/probes";
import { EarlierChats } from "./EarlierChats";
import { begin, probeOf, type Starter, STARTERS } from "./starters";
import { RequestList } from "../panel/RequestList";

export function EmptyState() {
  const view = useCell(engine);
  const unknown = useCell(unknownChat);
  const up = view.state === "up";
  if (replays(view)) return <Recorded />;
  return (
    <section className="empty" data-testid="empty">
      <h2>See a model’s probe scores while it answers</h2>
      <p>
        Tokens at or over a probe’s threshold are coloured as they stream. Ask anything, or start with one of
        these:
      </p>
      <ul>
        {STARTERS.map((starter) => (
          <li key={starter.text}>
            <button
              type="button"
              className="starter"
              disabled={!up}
              data-testid="starter"
              onClick={() => begin(starter)}
            >
              <span data-testid="starter-text">{starter.text}</span>
              <Watches starter={starter} />
            </button>
          </li>
        ))}
      </ul>
      {unknown && (
        <p role="status" data-testid="unknown-chat">
          The chat of this address is not in this browser.
        </p>
      )}
      <EarlierChats />
    </section>
  );
}

/** Names the probe that a starter brings. */
function Watches({ starter }: { starter: Starter }) {
  const probe = probeOf(starter, useCell(probes));
  if (!probe) return null;
  return <span className="starter-probe muted">{probe.label}</span>;
}

function Recorded() {
  return (
    <section className="empty" data-testid="recorded">
      <h2>A recording is playing</h2>
      <p>
        Its scores are computed from the recorded rows. It cannot answer prompts; choose a request to watch.
      </p>
      <RequestList opened />
    </section>
  );
}
