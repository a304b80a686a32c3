import { type KeyboardEvent, useEffect, useRef, useState } from "react";
import { useCell } from "../lib/cell";
import { regenerate, send, stop, turns } from "../state/chat";
import { chats, engine, replays } from "../state/engine";
import { isOpen } from "../state/turn";
import { SettingsBox } from "./SettingsBox";

function placeholder(up: boolean, recorded: boolean): string {
  if (recorded) return "A recording cannot answer prompts. Watch its requests instead";
  return up ? "Ask the model something" : "The engine is not up yet";
}

export function Composer() {
  const [text, setText] = useState("");
  const area = useRef<HTMLTextAreaElement>(null);
  const last = useCell(turns).at(-1);
  const view = useCell(engine);
  const recorded = replays(view);
  const up = view.state === "up" && !recorded;
  const open = isOpen(last);

  useEffect(() => {
    const box = area.current;
    if (!box) return;
    box.style.height = "auto";
    box.style.height = `${Math.min(box.scrollHeight, 200)}px`;
  }, [text]);

  const submit = () => {
    if (open || !up || text.trim() === "") return;
    send(text);
    setText("");
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
          onChange={(event) => setText(event.target.value)}
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
        <span className="muted hint">Enter sends · Shift+Enter starts a new line</span>
      </div>
    </form>
  );
}
