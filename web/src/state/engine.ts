import { api, problemOf } from "../api/client";
import { asProbe, type Info } from "../api/types";
import { Cell } from "../lib/cell";
import { asScopeError, ScopeError } from "../wire/errors";
import { readRecording } from "./keep";
import { acceptProbes, learning } from "./probes";

export type EngineView =
  | { state: "connecting" }
  | { state: "waiting"; info: Info }
  | { state: "up"; info: Info }
  | { state: "lost"; problem: ScopeError };

export const engine = new Cell<EngineView>({ state: "connecting" });

/** Whether the engine has been up since the page was opened: one that waits then has stopped. */
export const everUp = new Cell(false);
engine.subscribe(() => engine.get().state === "up" && everUp.set(true));

/** Polls the engine immediately, and returns when it has answered or failed. Does nothing while the engine is not followed. */
export let checkEngine: () => Promise<void> = () => Promise.resolve();

/** When the engine is asked again, in milliseconds of `Date.now()`; null while it is up or being asked. */
export const nextCheck = new Cell<number | null>(null);

const SLOW_MS = 15_000;
const FAST_MS = 2_000;
/** What cannot be reached is asked ever less often, down to this. */
const SLOWEST_MS = 30_000;

/** Polls the engine's state at the gateway, more often while it is not up, and reads its probes when it is. */
export function followEngine(): () => void {
  let timer = 0;
  let stopped = false;
  let losses = 0;
  const tick = async () => {
    window.clearTimeout(timer);
    nextCheck.set(null);
    const view = await ask();
    engine.set(view);
    losses = view.state === "lost" ? losses + 1 : 0;
    window.clearTimeout(timer);
    if (stopped) return;
    const wait = view.state === "up" ? SLOW_MS : Math.min(SLOWEST_MS, FAST_MS * 2 ** Math.max(0, losses - 1));
    timer = window.setTimeout(now, wait);
    if (view.state === "lost") nextCheck.set(Date.now() + wait);
  };
  const now = () => void tick();
  checkEngine = tick;
  window.addEventListener("online", now);
  window.addEventListener("offline", now);
  void tick();
  return () => {
    stopped = true;
    checkEngine = () => Promise.resolve();
    window.clearTimeout(timer);
    window.removeEventListener("online", now);
    window.removeEventListener("offline", now);
  };
}

const OFFLINE = new ScopeError(
  "This browser is offline.",
  "The page goes on by itself when the network is back. What is on the screen stays.",
);

async function ask(): Promise<EngineView> {
  const local = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  if (!navigator.onLine && !local) return { state: "lost", problem: OFFLINE };
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
