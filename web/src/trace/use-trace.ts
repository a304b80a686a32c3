import { useCallback, useSyncExternalStore } from "react";
import type { Trace } from "./trace";

/** Hook that follows one value of a trace. The component renders again only when that value changes. */
export function useTraceValue<T extends string | number | boolean | null>(
  trace: Trace,
  read: (trace: Trace) => T,
): T {
  const subscribe = useCallback((listener: () => void) => trace.subscribe(listener), [trace]);
  return useSyncExternalStore(subscribe, () => read(trace));
}
