import { useCell } from "../lib/cell";
import { engine } from "../state/engine";
import { Notice } from "./Notice";

/** Says so, at the top of the text, while nothing can be asked. */
export function EngineNotice() {
  const view = useCell(engine);
  if (view.state === "waiting") {
    return (
      <Notice
        tone="calm"
        title="The engine is not up yet."
        hint="The gateway runs and waits for the model. This page goes on by itself when it is loaded."
      />
    );
  }
  return view.state === "lost" ? <Notice title={view.problem.message} hint={view.problem.hint} /> : null;
}
