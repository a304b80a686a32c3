import { readProbes } from "./engine";
import { active } from "./focus";
import { isLearning } from "./probes";

const READ_MS = 1_000;

/** Reads the probes again while new scores come and a range is still being learnt, at most once a second. */
export function followRanges(): () => void {
  let timer = 0;
  let leave: () => void = () => undefined;
  const read = () => {
    timer = 0;
    void readProbes().catch(() => undefined); // the poll of the engine tells when the gateway is gone
  };
  const soon = () => {
    if (timer === 0 && isLearning()) timer = window.setTimeout(read, READ_MS);
  };
  const follow = () => {
    leave();
    leave = active.get()?.subscribe(soon) ?? (() => undefined);
  };
  const stop = active.subscribe(follow);
  follow();
  return () => {
    stop();
    leave();
    window.clearTimeout(timer);
  };
}
