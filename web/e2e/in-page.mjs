/** Functions that the browser test runs inside the page: each stands alone. */

/** Runs in the page: keeps a copy of every completion stream as it was received. */
export function recordStreams() {
  window.recorded = [];
  const real = window.fetch;
  window.fetch = async (...args) => {
    const response = await real(...args);
    if (!String(args[0]).endsWith("/v1/chat/completions") || !response.body) return response;
    const [ours, theirs] = response.body.tee();
    const index = window.recorded.push("") - 1;
    const reader = ours.pipeThrough(new TextDecoderStream()).getReader();
    const drain = () =>
      reader.read().then(({ done, value }) => {
        if (done) return;
        window.recorded[index] += value;
        return drain();
      });
    drain().catch(() => undefined);
    return new Response(theirs, { status: response.status, headers: response.headers });
  };
}

/** Runs in the page: notes how many tokens were on screen each time one of them was coloured in a streaming answer. */
export function watchColours([tokens]) {
  window.seen = [];
  new MutationObserver(() => {
    const spans = [...document.querySelectorAll(tokens)];
    if (spans.some((span) => /(^| )(s|n)\d+( |$)/.test(span.className))) window.seen.push(spans.length);
  }).observe(document.body, { subtree: true, childList: true, attributes: true, attributeFilter: ["class"] });
}

/** Runs in the page: presses Stop as soon as an answer has three tokens, sooner than a fast model can end it. */
export function stopEarly([tokens, button]) {
  const observer = new MutationObserver(() => {
    if (document.querySelectorAll(tokens).length < 3) return;
    observer.disconnect();
    document.querySelector(button)?.click();
  });
  observer.observe(document.body, { subtree: true, childList: true });
}
