let x = Number.NaN;
let y = Number.NaN;

/**
 * Returns whether the pointer itself has moved. Text that streams or scrolls under a resting pointer makes browsers
 * send the same events, which must not point at a token.
 */
export function pointerMoved(event: { clientX: number; clientY: number }): boolean {
  return event.clientX !== x || event.clientY !== y;
}

// A real move sends `mouseover` before `mousemove`, so at `mouseover` this is the pointer's previous place.
for (const type of ["mousemove", "mousedown"] as const) {
  window.addEventListener(type, (event) => ([x, y] = [event.clientX, event.clientY]), {
    capture: true,
    passive: true,
  });
}
