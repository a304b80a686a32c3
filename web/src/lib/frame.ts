const waiting = new Set<() => void>();
let handle = 0;

function flush(): void {
  handle = 0;
  const due = [...waiting];
  waiting.clear();
  for (const run of due) run();
}

/** Runs `work` once before the next paint, however often it is requested until then. */
export function beforePaint(work: () => void): void {
  waiting.add(work);
  if (handle === 0) handle = requestAnimationFrame(flush);
}
