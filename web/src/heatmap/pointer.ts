let x = Number.NaN;
let y = Number.NaN;

/**
 * True when the pointer itself has moved. Text that streams or scrolls under a resting pointer makes browsers send
 * the same events, and nobody asked for a popover then.
 */
export function pointerMoved(event: { clientX: number; clientY: number }): boolean {
  return event.clientX !== x || event.clientY !== y;
}

// A real move sends `mouseover` before `mousemove`: what is kept here is always where the pointer was before.
for (const type of ["mousemove", "mousedown"] as const) {
  window.addEventListener(type, (event) => ([x, y] = [event.clientX, event.clientY]), {
    capture: true,
    passive: true,
  });
}
