/**
 * Time to append one token to a page that already holds many: main-thread milliseconds (script, style, layout,
 * paint) a token, and the frames that the reader sees. `append_ms` is wall
 * time, which other work on the machine inflates; `append_cpu_ms` is the thread's own.
 *
 *   npm run build && node bench/append.mjs [tokens=30000]
 *
 * Uses the development mock's stream of `tokens` × 8 probes, then one token every 20 ms; background, three underlines
 * and the lanes are all on. Prints one JSON object.
 */
import { spawn } from "node:child_process";
import { launch } from "../e2e/browser.mjs";

const TOKENS = Number(process.argv[2] ?? 30_000);
const SECONDS = 8;
const MOCK = new URL("../dev/mock.mjs", import.meta.url).pathname;

const mock = spawn(process.execPath, [MOCK, "6979"], { stdio: ["ignore", "pipe", "inherit"] });
const url = await new Promise((resolve) => mock.stdout.once("data", (line) => resolve(String(line).trim())));
const browser = await launch();
try {
  const page = await (await browser.newContext({ viewport: { width: 1440, height: 900 } })).newPage();
  await page.goto(url);
  const began = performance.now();
  await page.goto(new URL(`/?bg=danger&ul=joy,animal,sea&request=long-${TOKENS}`, url).href);
  await page.waitForFunction(
    (n) =>
      Number(document.querySelector('[data-testid="fact-tokens"]')?.textContent.replace(/.*\+|,/g, "")) > n,
    TOKENS,
    { timeout: 120_000 },
  );
  const fill = performance.now() - began;
  await page.waitForTimeout(2000);

  const meter = async (timeDomain) => {
    const client = await page.context().newCDPSession(page);
    await client.send("Performance.enable", { timeDomain });
    return async () => {
      const { metrics } = await client.send("Performance.getMetrics");
      return Object.fromEntries(metrics.map(({ name, value }) => [name, value]));
    };
  };
  const [read, readCpu] = [await meter("timeTicks"), await meter("threadTicks")];
  const count = () =>
    page
      .locator('[data-testid="fact-tokens"]')
      .textContent()
      .then((t) => Number(t.replace(/.*\+|,/g, "")));
  const [before, beforeCpu, from] = [await read(), await readCpu(), await count()];
  const frames = await page.evaluate(async (seconds) => {
    const gaps = [];
    const end = performance.now() + 1000 * seconds;
    for (let last = performance.now(); last < end;) {
      const now = await new Promise(requestAnimationFrame);
      gaps.push(now - last);
      last = now;
    }
    return gaps.slice(2).sort((a, b) => a - b);
  }, SECONDS);
  const [after, afterCpu, to] = [await read(), await readCpu(), await count()];
  const share = (late, early) => Number(((1000 * (late - early)) / (to - from)).toFixed(3));
  const perToken = (name) => share(after[name], before[name]);
  const at = (q) => Number((frames[Math.floor(q * (frames.length - 1))] ?? 0).toFixed(2));
  console.log(
    JSON.stringify({
      tokens: TOKENS,
      probes: 8,
      appended: to - from,
      append_ms: perToken("TaskDuration"),
      append_cpu_ms: share(afterCpu.TaskDuration, beforeCpu.TaskDuration),
      script_ms: perToken("ScriptDuration"),
      style_ms: perToken("RecalcStyleDuration"),
      layout_ms: perToken("LayoutDuration"),
      frame_p50_ms: at(0.5),
      frame_p99_ms: at(0.99),
      frame_max_ms: at(1),
      fill_ms: Math.round(fill),
      heap_mb: Math.round(after.JSHeapUsedSize / 2 ** 20),
    }),
  );
} finally {
  await browser.close();
  mock.kill();
}
