import { api, problemOf } from "../api/client";
import { asProbe, type Info } from "../api/types";
import { Cell } from "../lib/cell";
import { asScopeError, type ScopeError } from "../wire/errors";
import { readRecording } from "./keep";
import { acceptProbes, learning } from "./probes";

export type EngineView =
  | { state: "connecting" }
  | { state: "waiting"; info: Info }
  | { state: "up"; info: Info }
  | { state: "lost"; problem: ScopeError };

export const engine = new Cell<EngineView>({ state: "connecting" });

/** Polls the engine immediately. Does nothing while the engine is not followed. */
export let recheckEngine: () => void = () => undefined;

const SLOW_MS = 15_000;
const FAST_MS = 2_000;

/** Polls the engine's state at the gateway, more often while it is not up, and reads its probes when it is. */
export function followEngine(): () => void {
  let timer = 0;
  let stopped = false;
  const tick = async () => {
    engine.set(await ask());
    window.clearTimeout(timer);
    if (!stopped) timer = window.setTimeout(now, engine.get().state === "up" ? SLOW_MS : FAST_MS);
  };
  const now = () => void tick();
  recheckEngine = now;
  window.addEventListener("online", now);
  window.addEventListener("offline", now);
  void tick();
  return () => {
    stopped = true;
    recheckEngine = () => undefined;
    window.clearTimeout(timer);
    window.removeEventListener("online", now);
    window.removeEventListener("offline", now);
  };
}

async function ask(): Promise<EngineView> {
  try {
    const { data, error, response } = await api.GET("/v1/actscope/info");
    if (!data) return { state: "lost", problem: problemOf(error, response) };
    if (data.engine.state === "waiting") return { state: "waiting", info: data };
    await Promise.all([readProbes(), readRecording()]);
    return { state: "up", info: data };
  } catch (error) {
    return { state: "lost", problem: asScopeError(error) };
  }
}

export async function readProbes(): Promise<void> {
  const { data } = await api.GET("/v1/actscope/probes");
  if (!data) return;
  acceptProbes(data.probes.map(asProbe));
  learning.set(
    new Map(data.probes.flatMap(({ id, range_learnt: learnt }) => (learnt ? [[id, learnt]] : []))),
  );
}

export function engineInfo(view: EngineView): Info | null {
  return view.state === "up" || view.state === "waiting" ? view.info : null;
}

/** Returns false if the model has no chat template, so that it can only continue a text. */
export function chats(view: EngineView): boolean {
  return engineInfo(view)?.engine.has_chat_template !== false;
}

/** Returns whether the engine has an SAE, whose features can be requested. */
export function hasFeatures(view: EngineView): boolean {
  return Boolean(engineInfo(view)?.engine.sae);
}

/** Returns whether the engine replays a recording, whose requests can be watched but which takes no prompts. */
export function replays(view: EngineView): boolean {
  return engineInfo(view)?.engine.kind === "replay";
}
