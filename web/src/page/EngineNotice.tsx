import { useEffect, useState } from "react";
import { useCell } from "../lib/cell";
import { checkEngine, engine, everUp, nextCheck } from "../state/engine";
import { Notice } from "../parts/Notice";

/** Shows a notice above the text while the engine cannot take requests. */
export function EngineNotice() {
  const view = useCell(engine);
  const wasUp = useCell(everUp);
  if (view.state === "waiting") {
    return wasUp ? (
      <Notice
        title="The engine has stopped."
        hint="The gateway is running and waits for an engine. The terminal of the engine has the reason. When it is started again, this page goes on."
      />
    ) : (
      <Notice
        tone="calm"
        title="The engine is not up yet."
        hint="The gateway is running and waits for the model to load. This page continues automatically."
      />
    );
  }
  if (view.state !== "lost") return null;
  return (
    <Notice
      title={view.problem.message}
      hint={
        <>
          {view.problem.hint} <Countdown />
        </>
      }
    />
  );
}

/** When the gateway is asked again, and a button to ask it now. */
function Countdown() {
  const next = useCell(nextCheck);
  const [now, setNow] = useState(() => Date.now());
  useEffect(() => {
    const timer = window.setInterval(() => setNow(Date.now()), 1_000);
    return () => window.clearInterval(timer);
  }, []);
  const seconds = next === null ? 0 : Math.max(1, Math.ceil((next - now) / 1_000));
  return (
    <>
      {/* Not read out each second: the notice is an alert. */}
      <span aria-hidden="true">{next === null ? "Trying now." : `Next try in ${seconds} s.`}</span>{" "}
      <button type="button" className="link" data-testid="try-now" onClick={() => void checkEngine()}>
        Try now
      </button>
    </>
  );
}
