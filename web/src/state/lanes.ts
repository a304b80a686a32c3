import { Cell } from "../lib/cell";

/** The words by which the lanes are sought; "" shows all. */
export const soughtLane = new Cell("");

/** Shows the lanes of a name alone. */
export function showLane(name: string): void {
  soughtLane.set(name);
}
