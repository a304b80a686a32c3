import { useCell } from "../lib/cell";
import { send } from "../state/chat";
import { engine, replays } from "../state/engine";
import { unknownChat } from "../state/session";
import { EarlierChats } from "./EarlierChats";
import { RequestList } from "./RequestList";

const STARTERS = [
  "Tell me about a fox in the snow",
  "Tell me a scary story about a girl in the forest",
  "What will the sailor do tomorrow?",
  "Count to ten",
];

export function EmptyState() {
  const view = useCell(engine);
  const unknown = useCell(unknownChat);
  const up = view.state === "up";
  if (replays(view)) return <Recorded />;
  return (
    <section className="empty" data-testid="empty">
      <h2>See a model’s probe scores while it answers</h2>
      <p>
        Every token is coloured by a probe’s score as it streams. Ask anything, or start with one of these:
      </p>
      <ul>
        {STARTERS.map((text) => (
          <li key={text}>
            <button
              type="button"
              className="starter"
              disabled={!up}
              data-testid="starter"
              onClick={() => send(text)}
            >
              {text}
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
