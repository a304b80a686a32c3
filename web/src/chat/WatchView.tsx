import { Heatmap } from "../heatmap/Heatmap";
import { stopWatching, type Watched } from "../state/watch";
import { useTraceValue } from "../trace/use-trace";
import { FINISH_WORDS } from "../parts/finish-words";
import { KeepButton } from "./KeepButton";
import { Notice } from "../parts/Notice";
import { NotRead } from "./NotRead";
import { StickyScroll } from "./StickyScroll";

/** A request of any client, read-only, in the same heatmap. */
export function WatchView({ watched }: { watched: Watched }) {
  const { id, trace, finish, problem } = watched;
  const tokens = useTraceValue(trace, (t) => t.length);
  const start = useTraceValue(trace, (t) => t.promptTokens);
  return (
    <StickyScroll label="Watched request" follow>
      <article className="turn" data-testid="watched" data-status={finish ?? "running"} data-active>
        <div className="turn-tools watch-head">
          <strong>Watching</strong>
          <code className="request-id">{id}</code>
          <span className="muted">
            read-only · {finish === null ? "live" : (FINISH_WORDS[finish] ?? finish)}
          </span>
          <KeepButton request={id} running={finish === null} />
          <NotRead trace={trace} />
          <button type="button" className="link" data-testid="stop-watching" onClick={stopWatching}>
            Back to the chat
          </button>
        </div>
        {problem && <Notice title={problem.message} hint={problem.hint} />}
        {tokens === 0 && !problem && <p className="thinking">waiting for tokens</p>}
        {start !== null && start > 0 && (
          <div className="prompt">
            <Heatmap trace={trace} from={0} to={start} label="Prompt, token by token" />
          </div>
        )}
        {start !== null && (
          <div className="said-model">
            <Heatmap trace={trace} from={start} live={finish === null} label="Answer, token by token" />
          </div>
        )}
      </article>
    </StickyScroll>
  );
}
