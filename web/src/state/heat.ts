import type { Heat } from "../color/ramp";
import { Cell } from "../lib/cell";
import { readView, writeView } from "./view-url";

/** How scores become colours. */
export const heat = new Cell<Heat>(readView().heat === "scale" ? "scale" : "events");

heat.subscribe(() => writeView({ heat: heat.get() === "scale" ? "scale" : null }));
