import { useCell } from "../lib/cell";
import { type EngineView, engine, engineInfo } from "../state/engine";

const WORDS: Record<EngineView["state"], string> = {
  connecting: "connecting…",
  waiting: "waiting for the engine",
  up: "engine up",
  lost: "gateway unreachable",
};

/** Shows the model and the state of the engine. */
export function EngineBadge() {
  const view = useCell(engine);
  const model = engineInfo(view)?.engine.model;
  return (
    <output className="engine" data-testid="engine" data-state={view.state}>
      <span className="dot" aria-hidden="true" />
      {model && <strong title={model}>{model}</strong>}
      <span className={view.state === "up" ? "sr-only" : "engine-word"}>{WORDS[view.state]}</span>
    </output>
  );
}
