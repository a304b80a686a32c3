import { useEffect, useState } from "react";
import type { RequestSummary } from "../api/types";
import { useCell } from "../lib/cell";
import { turns } from "../state/chat";
import { followRequests, requests } from "../state/requests";
import { watch, watched } from "../state/watch";

const STEP = 12;

/** List of the gateway's current and recent requests, any of which can be watched. Polls only while it is open. */
export function RequestList({ opened = false }: { opened?: boolean }) {
  const [open, setOpen] = useState(opened);
  useEffect(() => (open ? followRequests() : undefined), [open]);
  return (
    <details
      className="card requests"
      data-testid="requests"
      open={open}
      onToggle={(event) => setOpen(event.currentTarget.open)}
    >
      <summary>
        All requests <span className="muted">watch any, read-only</span>
      </summary>
      {open && <Rows />}
    </details>
  );
}

function Rows() {
  const { list, problem } = useCell(requests);
  const now = useCell(watched)?.id;
  const own = new Set(useCell(turns).map(({ trace }) => trace.request));
  const [shown, setShown] = useState(STEP);
  if (problem) return <p className="muted">{problem.message}</p>;
  if (list.length === 0) return <p className="muted">None yet.</p>;
  return (
    <>
      <ul>
        {list.slice(0, shown).map((one) => (
          <Row key={one.request} one={one} own={own.has(one.request)} watched={one.request === now} />
        ))}
      </ul>
      {list.length > shown && (
        <button type="button" className="link" data-testid="more" onClick={() => setShown(shown + 4 * STEP)}>
          {list.length - shown} more
        </button>
      )}
    </>
  );
}

function Row({ one, own, watched: on }: { one: RequestSummary; own: boolean; watched: boolean }) {
  return (
    <li data-testid="request" data-request={one.request}>
      <span className="dot" data-state={one.state} title={one.state} />
      <span className="request-id numbers" title={one.request}>
        {one.request}
      </span>
      <span className="muted numbers">
        {own ? "yours · " : ""}
        {one.completion_tokens} tok
      </span>
      <button
        type="button"
        className="link"
        disabled={on}
        data-testid="watch"
        onClick={() => watch(one.request)}
      >
        {on ? "watching" : "watch"}
      </button>
    </li>
  );
}
