import { useCell } from "../lib/cell";
import { engine } from "../state/engine";
import { Notice } from "./Notice";

/** Shows a notice above the text while the engine cannot take requests. */
export function EngineNotice() {
  const view = useCell(engine);
  if (view.state === "waiting") {
    return (
      <Notice
        tone="calm"
        title="The engine is not up yet."
        hint="The gateway is running and waits for the model to load. This page continues automatically."
      />
    );
  }
  return view.state === "lost" ? <Notice title={view.problem.message} hint={view.problem.hint} /> : null;
}
