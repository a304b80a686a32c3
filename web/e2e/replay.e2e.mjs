/**
 * Drives the page in a real browser against a replayed recording.
 *
 *   node e2e/replay.e2e.mjs <link that `actscope replay` printed> [folder for screenshots]
 *
 * Prints one line a check; exits 1 at the first that does not hold. Numbers on the page are compared with the gateway's.
 */
import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { launch } from "./browser.mjs";

const [url, folder = "scope-screenshots"] = process.argv.slice(2);
if (!url) {
  console.error("usage: node e2e/replay.e2e.mjs <link> [folder]");
  process.exit(2);
}

const id = (name) => `[data-testid="${name}"]`;
const TOKENS = `${id("watched")} .said-model ${id("token")}`;
const WAIT_MS = 60_000;
const first = new URL(url).searchParams.get("request");

async function check(name, work) {
  const began = performance.now();
  await work();
  console.log(`ok   ${name} (${Math.round(performance.now() - began)} ms)`);
}

const coloured = (page) =>
  page
    .locator(TOKENS)
    .evaluateAll(
      (spans) => spans.filter((span) => getComputedStyle(span).backgroundColor !== "rgba(0, 0, 0, 0)").length,
    );

/** A request as the gateway has it: cells by position and probe. */
async function truth(page, request) {
  const whole = await page.evaluate(async (name) => {
    const answer = await fetch(`/v1/actscope/requests/${encodeURIComponent(name)}`);
    return answer.json();
  }, request);
  const cells = new Map();
  whole.scores.rows.forEach((row, i) => {
    cells.set(whole.scores.start + i, Object.fromEntries(whole.probes.map((probe, j) => [probe.id, row[j]])));
  });
  return { whole, cells };
}

const browser = await launch();
let failed = false;
const problems = [];
try {
  await mkdir(folder, { recursive: true });
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, colorScheme: "light" });
  const page = await context.newPage();
  page.on("pageerror", (error) => problems.push(error.message));
  page.on("console", (line) => {
    if (line.type() === "error") problems.push(line.text());
  });

  await check("the printed link opens the page at the first request, which is being replayed", async () => {
    // On its whole scale: no score of this recording has to be over a threshold.
    const address = new URL(url);
    address.searchParams.set("heat", "scale");
    await page.goto(address.href);
    await page.waitForSelector(`${id("watched")}[data-status="running"]`, { timeout: WAIT_MS });
    assert.ok(!page.url().includes("token="));
    assert.equal(new URL(page.url()).searchParams.get("request"), first);
    assert.equal(await page.locator(`${id("watched")} .request-id`).textContent(), first);
  });

  await check(
    "its tokens appear one after another, with their text, and are coloured while more come",
    async () => {
      await page.waitForFunction((tokens) => document.querySelectorAll(tokens).length > 3, TOKENS);
      const early = await page.locator(TOKENS).count();
      await page.waitForFunction(
        ([tokens, n]) => document.querySelectorAll(tokens).length > n,
        [TOKENS, early],
      );
      assert.ok((await coloured(page)) > 0);
      assert.equal(await page.locator(id("watched")).getAttribute("data-status"), "running");
    },
  );

  await check("it ends by itself, and stays", async () => {
    await page.waitForSelector(`${id("watched")}:not([data-status="running"])`, { timeout: WAIT_MS });
    const { whole } = await truth(page, first);
    assert.equal(whole.state, "done");
    assert.equal(whole.final.computed, whole.final.present);
    const shown = await page.locator(TOKENS).evaluateAll((spans) => spans.map((span) => span.textContent));
    const text = whole.tokens.text.slice(whole.prompt_tokens).join("");
    assert.equal(shown.join(""), text);
    assert.ok((await page.locator(id("facts")).textContent()).includes("replay"));
  });

  await check("hovering shows the gateway's number for every probe", async () => {
    const { whole, cells } = await truth(page, first);
    const last = whole.final.present - 1;
    for (const position of [whole.prompt_tokens, Math.round((whole.prompt_tokens + last) / 2), last]) {
      await page.locator(`${id("watched")} .said-model [data-pos="${position}"]`).hover();
      await page.waitForFunction(
        ([reader, p]) => document.querySelector(reader)?.textContent.includes(`position ${p} `),
        [id("reader-position"), position],
      );
      const shown = await page
        .locator(`${id("reader")} ${id("score")}`)
        .evaluateAll((rows) =>
          rows.map((row) => [
            row.dataset.probe,
            row.dataset.score === undefined ? null : Number(row.dataset.score),
          ]),
        );
      assert.ok(shown.length > 0);
      for (const [probe, score] of shown) assert.equal(score, cells.get(position)[probe] ?? null);
    }
    await page.mouse.move(5, 5);
  });

  await check("light and dark are both complete", async () => {
    await page.screenshot({ path: join(folder, "replay-light.png") });
    await page.click(id("theme-dark"));
    await page.screenshot({ path: join(folder, "replay-dark.png") });
    await page.click(id("theme-light"));
  });

  await check("a page that comes late sees all requests, whole", async () => {
    const other = await context.newPage();
    await other.goto(new URL("/", url).href);
    const row = `${id("recorded")} ${id("request")}`;
    await other.waitForFunction((row) => document.querySelectorAll(row).length === 3, row);
    await other.screenshot({ path: join(folder, "replay-list.png") });
    await other
      .locator(`${row} ${id("watch")}`)
      .first()
      .click();
    await other.waitForSelector(`${id("watched")}:not([data-status="running"]) ${id("token")}`);
    const request = new URL(other.url()).searchParams.get("request");
    const { whole } = await truth(other, request);
    assert.equal(await other.locator(`${id("watched")} ${id("token")}`).count(), whole.final.present);
    await other.close();
  });

  await check("nothing can be asked of a recording", async () => {
    await page.click(id("stop-watching"));
    await page.waitForSelector(id("recorded"));
    assert.ok(await page.locator(id("message")).isDisabled());
    assert.ok(await page.locator(id("send")).isDisabled());
  });

  await check("nothing was written to the browser's console as an error", async () => {
    assert.deepEqual(problems, []);
  });
} catch (error) {
  failed = true;
  console.error(`FAIL ${error.stack ?? error}`);
  if (problems.length > 0) console.error(`console: ${problems.join("\n")}`);
} finally {
  await browser.close();
}
process.exit(failed ? 1 : 0);
