/**
 * The scale of a probe that states none, in a real browser against a live gateway.
 *
 *   node e2e/ranges.e2e.mjs <url-with-token> [folder for screenshots]
 *
 * Adds a raw vector as probe `raw`, and removes it at the end. Prints one line a check; exits 1 at the first that does not hold.
 */
import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { launch } from "./browser.mjs";

const [url, folder = "scope-screenshots"] = process.argv.slice(2);
if (!url) {
  console.error("usage: node e2e/ranges.e2e.mjs <url-with-token> [folder]");
  process.exit(2);
}

const id = (name) => `[data-testid="${name}"]`;
const ANSWER = `.said-model > ${id("heatmap")} ${id("token")}`;
const WAIT = { timeout: 120_000 };

async function check(name, work) {
  const began = performance.now();
  await work();
  console.log(`ok   ${name} (${Math.round(performance.now() - began)} ms)`);
}

/** Runs in the page: adds a direction of pseudo-random numbers, without a range. */
async function addRaw() {
  const info = await (await fetch("/v1/actscope/info")).json();
  let state = 12345;
  const next = () => (state = (state * 16807) % 2147483647) / 2147483647;
  const vector = Array.from({ length: info.engine.d_model }, () => 20 * (next() + next() + next() - 1.5));
  const body = JSON.stringify({ vector, site: "layers.2.resid_post", activation: "identity" });
  const headers = { "Content-Type": "application/json" };
  return (await fetch("/v1/actscope/probes/raw", { method: "PUT", headers, body })).json();
}

const readRaw = async () =>
  (await (await fetch("/v1/actscope/probes")).json()).probes.find((probe) => probe.id === "raw");

const legendOf = (page) => page.locator(id("legend")).textContent();

async function open(browser, colorScheme) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, colorScheme });
  const page = await context.newPage();
  page.on("pageerror", (error) => problems.push(error.message));
  await page.goto(url);
  await page.waitForSelector(`${id("engine")}[data-state="up"]`, WAIT);
  return page;
}

async function ask(page, text) {
  const turns = await page.locator(id("turn")).count();
  await page.fill(id("message"), text);
  await page.press(id("message"), "Enter");
  await page.waitForFunction(
    ([turn, n]) => document.querySelectorAll(`${turn}[data-status="done"]`).length === n,
    [id("turn"), turns + 1],
    WAIT,
  );
}

const browser = await launch();
const problems = [];
let failed = false;
let page;
try {
  await mkdir(folder, { recursive: true });
  page = await open(browser, "light");

  await check("a raw vector has no scale before it has scored a token", async () => {
    const added = await page.evaluate(addRaw);
    assert.equal(added.range, null);
    assert.deepEqual(added.range_learnt, { tokens: 0, settled: false });
    await page.reload();
    await page.locator(id("background-raw")).check(WAIT);
    assert.match(
      await legendOf(page),
      /No scale yet: raw states none, so it is learnt from its scores \(0 tokens so far\)/,
    );
    await page.screenshot({ path: join(folder, "range-unknown-light.png") });
  });

  await check(
    "its tokens get colours while the answer goes on, both signs apart, most between the ends",
    async () => {
      await ask(page, "Tell me about a fox in the snow");
      await page.waitForFunction(
        (legend) => /Scale learnt from \d+ tokens so far/.test(document.querySelector(legend).textContent),
        id("legend"),
        WAIT,
      );
      const classes = await page.locator(ANSWER).evaluateAll((spans) => spans.map((span) => span.className));
      const steps = classes.flatMap((name) => (name.match(/\b[sn](\d+)\b/) ?? []).slice(1).map(Number));
      const between = steps.filter((step) => step < 32).length;
      assert.ok(between / classes.length > 0.7, `${between} of ${classes.length} between the ends`);
      assert.ok(
        classes.some((name) => / s\d/.test(name)) && classes.some((name) => / n\d+ below/.test(name)),
      );
      assert.ok(!classes.some((name) => name.includes("unscaled")));
      await page.screenshot({ path: join(folder, "range-learnt-light.png") });
    },
  );

  await check(
    "the legend's ends are the range that the API tells, and another viewer sees the same",
    async () => {
      const { range } = await page.evaluate(readRaw);
      const other = await open(browser, "dark");
      await other.locator(id("background-raw")).check(WAIT);
      const ends = (one) => one.locator(".scale-ends span").allTextContents();
      const shown = (await ends(page)).map((text) => text.replace("−", "-"));
      assert.equal(Number(shown[0]), range[0]);
      assert.equal(Number(shown[2]), range[1]);
      assert.deepEqual(await ends(other), await ends(page));
      await ask(other, "Tell me about the sea");
      await other.screenshot({ path: join(folder, "range-learnt-dark.png") });
      await other.context().close();
    },
  );

  await check("the first token is not on the scale, and its card has its value", async () => {
    await page.locator(id("show-prompt")).first().click();
    const first = page.locator(`${id("prompt-tokens")} ${id("token")}[data-pos="0"]`).first();
    await first.click();
    assert.match(await first.getAttribute("class"), /\bfirst\b/);
    const row = page.locator(`${id("reader")} ${id("score")}[data-probe="raw"]`);
    assert.equal(await row.getAttribute("data-place"), "first");
    assert.ok(Number.isFinite(Number(await row.getAttribute("data-score"))));
    await page.screenshot({ path: join(folder, "range-first-light.png") });
  });

  await check("probes with different scales have lanes of their own", async () => {
    await page.keyboard.press("Escape");
    const other = page.locator(`${id("probe")}:not([data-probe="raw"])`).first();
    await page.locator(id(`underline-${await other.getAttribute("data-probe")}`)).check();
    const scaleOf = (row) => row.locator(id("strip")).getAttribute("aria-label");
    assert.match(await scaleOf(other), /scale 0 to 1, threshold/);
    assert.match(await scaleOf(page.locator(`${id("probe")}[data-probe="raw"]`)), /learnt scale −\d/);
    await page.screenshot({ path: join(folder, "range-two-light.png") });
    await page.emulateMedia({ colorScheme: "dark" });
    await page.screenshot({ path: join(folder, "range-two-dark.png") });
  });

  assert.deepEqual(problems, []);
} catch (error) {
  failed = true;
  console.error(error);
  await page?.screenshot({ path: join(folder, "range-failed.png") }).catch(() => undefined);
} finally {
  await page?.evaluate(() => fetch("/v1/actscope/probes/raw", { method: "DELETE" })).catch(() => undefined);
  await browser.close();
}
process.exit(failed ? 1 : 0);
