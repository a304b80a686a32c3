import { type KeyboardEvent, useEffect, useRef } from "react";
import { useCell } from "../lib/cell";
import { formatCount } from "../lib/numbers";
import { regenerate, send, stop, turns } from "../state/chat";
import { draft } from "../state/draft";
import { chats, engine, engineInfo, replays } from "../state/engine";
import { forgetful } from "../state/memory";
import { isOpen } from "../state/turn";
import type { Trace } from "../trace/trace";
import { useTraceValue } from "../trace/use-trace";
import { SettingsBox } from "./SettingsBox";

function placeholder(up: boolean, recorded: boolean): string {
  if (recorded) return "A recording cannot answer prompts. Watch its requests instead";
  return up ? "Ask the model something" : "The engine is not up yet";
}

/** How much of the model's context the conversation takes. */
function ContextMeter() {
  const last = useCell(turns).at(-1);
  const limit = engineInfo(useCell(engine))?.engine.max_context ?? null;
  if (!last || limit === null) return null;
  return <UsedTokens trace={last.trace} limit={limit} />;
}

function UsedTokens({ trace, limit }: { trace: Trace; limit: number }) {
  const used = useTraceValue(trace, (t) => t.length);
  if (used === 0) return null;
  return (
    <span
      className="muted numbers meter"
      data-testid="context-meter"
      data-full={used > 0.9 * limit || undefined}
      title="Tokens of the conversation, of the most that the model can hold"
    >
      {formatCount(used)} / {formatCount(limit)}
    </span>
  );
}

export function Composer() {
  const text = useCell(draft);
  const area = useRef<HTMLTextAreaElement>(null);
  const last = useCell(turns).at(-1);
  const view = useCell(engine);
  const recorded = replays(view);
  const up = view.state === "up" && !recorded;
  const open = isOpen(last);
  const cannotKeep = useCell(forgetful);

  useEffect(() => {
    const box = area.current;
    if (!box) return;
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight, 200)}px`;
  }, [text]);

  const submit = () => {
    if (open || !up || text.trim() === "") return;
    send(text);
    draft.set("");
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing) return;
    event.preventDefault();
    submit();
  };

  return (
    <form
      className="composer"
      onSubmit={(event) => {
        event.preventDefault();
        submit();
      }}
    >
      <div className="composer-box">
        <textarea
          ref={area}
          rows={1}
          value={text}
          aria-label="Message"
          placeholder={placeholder(up, recorded)}
          disabled={recorded}
          data-testid="message"
          onChange={(event) => draft.set(event.target.value)}
          onKeyDown={onKeyDown}
        />
        {open ? (
          <button type="button" className="primary stop" data-testid="stop" onClick={stop}>
            Stop
          </button>
        ) : (
          <button type="submit" className="primary" data-testid="send" disabled={!up || text.trim() === ""}>
            Send
          </button>
        )}
      </div>
      {!chats(view) && (
        <p className="muted composer-note" data-testid="no-chat-template">
          This model has no chat template: it continues your text and does not see the turns before.
        </p>
      )}
      {cannotKeep !== null && (
        <p className="muted composer-note" data-testid="forgetful">
          This browser does not keep chats ({cannotKeep}): a reload loses them.
        </p>
      )}
      <div className="composer-foot">
        <SettingsBox />
        <button
          type="button"
          className="quiet"
          data-testid="regenerate"
          disabled={open || !last || !up}
          onClick={regenerate}
        >
          Regenerate
        </button>
        <ContextMeter />
        <span className="muted hint">Enter sends · Shift+Enter starts a new line</span>
      </div>
    </form>
  );
}
