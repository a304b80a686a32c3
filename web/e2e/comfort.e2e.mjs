/**
 * The page can be used: at any zoom, by keyboard and screen reader, with many probes, and when something goes wrong. See
 * `runChecks` of page.mjs for how to run it.
 */
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { ANSWER, id, runChecks, WAIT } from "./page.mjs";

const FOX = "Tell me about a fox in the snow";
const AXE = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** What axe-core finds wrong on the page as it is. Contrast of the tokens is tested apart (tests/color.test.ts). */
async function violations(page) {
  await page.evaluate(AXE);
  const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  return found.violations.map(
    ({ id: rule, nodes }) => `${rule}: ${nodes.map(({ html }) => html.slice(0, 120)).join(" | ")}`,
  );
}

/** Widens the page's answer to `GET /v1/actscope/probes` and its streams to many probes with long labels. */
async function withManyProbes(scene, count) {
  await scene.context.route("**/v1/actscope/probes", async (route) => {
    const response = await route.fetch();
    const body = await response.json();
    const labels = body.probes.map((probe) => ({
      ...probe,
      label: `${probe.id}: expressions of strong ${probe.id} and words that go with it in stories and in dialogue`,
    }));
    await route.fulfill({ response, json: { ...body, probes: labels } });
  });
  await scene.page.addInitScript((n) => {
    const parse = JSON.parse;
    JSON.parse = (text, ...rest) => {
      const value = parse(text, ...rest);
      const part = value?.choices?.[0]?.actscope;
      const more = n - 14;
      if (part?.probes) {
        for (let i = 0; i < more; i++)
          part.probes.push({ id: `more ${i}: ${"a long label ".repeat(9)}`, site: "s", since: 1 });
      }
      for (const row of part?.scores?.rows ?? []) for (let i = 0; i < more; i++) row.push(i / more);
      if (part?.scores?.states) part.scores.states = part.scores.states.map((row) => row + "c".repeat(more));
      return value;
    };
  }, count);
  await scene.page.reload();
  await scene.page.waitForSelector(`${id("engine")}[data-state="up"]`, WAIT);
}

await runChecks("comfort.e2e.mjs", {
  "with 60 probes the reader stays in its place and shows six, the farthest above their thresholds first":
    async (scene) => {
      const page = await scene.open();
      await withManyProbes(scene, 60);
      await scene.ask(FOX);
      const [, , , position] = await scene.positions(0);
      await scene.token(0, position).click();
      await page.waitForSelector(`${id("reader")}[data-pinned]`);
      assert.equal(await page.locator(`${id("reader")} ${id("score")}`).count(), 6);
      const fits = () =>
        page.locator(id("reader")).evaluate((card) => {
          const { top, left, right, bottom, height } = card.getBoundingClientRect();
          const cells = [...card.querySelectorAll("td")].every(
            (cell) => cell.getBoundingClientRect().right <= right,
          );
          const { scrollWidth, scrollHeight, clientWidth, clientHeight } = document.documentElement;
          const still = scrollWidth <= clientWidth && scrollHeight <= clientHeight;
          return {
            inside: top >= 0 && left >= 0 && right <= innerWidth && bottom <= innerHeight,
            cells,
            still,
            height,
          };
        });
      const { height, ...before } = await fits();
      assert.deepEqual(before, { inside: true, cells: true, still: true });
      await page.click(id("more-scores"));
      assert.equal(await page.locator(`${id("reader")} ${id("score")}`).count(), 60);
      await scene.shot("comfort-card-60");
      assert.deepEqual(await fits(), { inside: true, cells: true, still: true, height });
      const rises = await page
        .locator(`${id("reader")} ${id("score")}[data-state="computed"]`)
        .evaluateAll((rows) => rows.map((row) => Number(row.dataset.rise)));
      assert.deepEqual(
        rises,
        [...rises].sort((a, b) => b - a),
      );
    },

  "at 200 % and at 400 % the text has most of the window, or the page scrolls": async (scene) => {
    const page = await scene.open();
    await scene.ask(FOX);
    for (const [name, width, height, least] of [
      ["200", 720, 450, 150],
      ["phone", 390, 844, 500],
    ]) {
      await page.setViewportSize({ width, height });
      const box = await page.locator(".scroll").boundingBox();
      await scene.shot(`comfort-${name}`);
      const scrolls = await page.evaluate(() => document.documentElement.scrollHeight > innerHeight);
      assert.ok(box.height >= least || scrolls, `${name}: the text has ${box.height} px of ${height}`);
      assert.ok(
        await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth),
        `${name}: too wide`,
      );
    }
    await page.setViewportSize({ width: 360, height: 225 });
    await page.locator(ANSWER).first().scrollIntoViewIfNeeded();
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "400: too wide");
    const shown = await page.locator(ANSWER).first().boundingBox();
    assert.ok(shown.y >= 0 && shown.y < 225, "the answer cannot be scrolled to");
    await scene.shot("comfort-400");
    await page.click(id("sheet"));
    await page.locator(id("probe")).first().scrollIntoViewIfNeeded();
    assert.ok(await page.locator(id("probe")).first().isVisible());
  },

  "a click on the prompt in the lanes shows that token in the text": async (scene) => {
    const page = await scene.open();
    await scene.ask(FOX);
    await scene.ask("What will the sailor do tomorrow?");
    await page.click(id("extent-all"));
    const strip = await page.locator(id("strip")).first().boundingBox();
    await page.mouse.click(strip.x + strip.width * 0.1, strip.y + 12);
    await page.waitForSelector(`${id("reader")}[data-pinned]`, WAIT);
    const position = Number(await page.locator(id("lanes")).getAttribute("data-cursor"));
    assert.match(await page.locator(id("reader-position")).textContent(), new RegExp(`\\b${position}\\b`));
    const span = page.locator(`${id("turn")}:last-of-type [data-pos="${position}"]`).last();
    const { y } = await span.boundingBox();
    assert.ok(y > 0 && y < 900, "the token is not in the window");
  },

  "the lanes are used by keyboard: arrows choose, u underlines, digits choose by number": async (scene) => {
    const page = await scene.open();
    await scene.ask(FOX);
    const slots = () =>
      page
        .locator(id("probe"))
        .evaluateAll((rows) => rows.map(({ dataset }) => dataset.slot ?? "-").join(""));
    await page.locator(`${id("probe")}[data-slot="0"] input[type=radio]`).focus();
    await page.keyboard.press("2");
    assert.match(await slots(), /^-0/);
    await page.locator(`${id("probe")}[data-slot="0"] input[type=radio]`).focus();
    await page.keyboard.press("ArrowDown");
    assert.match(await slots(), /^--0/);
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("ArrowUp");
    assert.match(await slots(), /^--0/);
    await page.locator(`${id("probe")}:nth-child(1) input[type=radio]`).press("u");
    assert.match(await slots(), /^1-0/);
  },

  "dragging over a strip shows that part alone, and a chip or a double click all of it again": async (
    scene,
  ) => {
    const page = await scene.open();
    await scene.ask(FOX);
    const strip = await page.locator(id("strip")).first().boundingBox();
    await page.mouse.move(strip.x + 20, strip.y + 12);
    await page.mouse.down();
    await page.mouse.move(strip.x + 120, strip.y + 12, { steps: 5 });
    await page.mouse.up();
    assert.match(await page.locator(id("reset-zoom")).textContent(), /\d+–\d+/);
    assert.equal(await page.locator(`${id("reader")}[data-pinned]`).count(), 0, "a drag has pinned a token");
    await page.click(id("reset-zoom"));
    await page.waitForSelector(id("reset-zoom"), { state: "detached" });
  },

  "with thousands of lanes only those near the window are in the page, and one is found by its name": async (
    scene,
  ) => {
    const page = await scene.open();
    await withManyProbes(scene, 5_000);
    await scene.ask("Count to ten");
    await page.waitForFunction(
      (lanes) => Number(document.querySelector(lanes).getAttribute("aria-label").replace(/\D/g, "")) >= 5_000,
      `${id("lanes")} ul`,
      WAIT,
    );
    assert.ok((await page.locator(id("probe")).count()) < 60);
    await page.fill(id("find-lane"), "more 4321:");
    await page.waitForFunction((row) => document.querySelectorAll(row).length === 1, id("probe"), WAIT);
    await scene.shot("comfort-lane-found");
    await page.fill(id("find-lane"), "");
    await page.locator(id("lanes")).evaluate((box) => (box.scrollTop = box.scrollHeight));
    await page.waitForSelector(`${id("lanes")} [aria-posinset="5000"]`, { state: "attached", ...WAIT });
    assert.ok((await page.locator(id("probe")).count()) < 60);
    await scene.shot("comfort-lanes-5000");
  },

  "the lanes are of the newest turn, and of an earlier one when its token is pinned": async (scene) => {
    const page = await scene.open("bg=number");
    const first = page.locator(`${id("probe")}[data-probe="number"]`);
    await scene.ask("Count to ten");
    await first.getByText(/\d\d over/).waitFor(WAIT);
    await scene.ask("What will the sailor do tomorrow?");
    await page.waitForFunction(
      (row) => !/\d\d over/.test(document.querySelector(row).textContent),
      `${id("probe")}[data-probe="number"] .lane-count`,
    );
    assert.match(await first.locator(id("strip")).getAttribute("aria-label"), /scale 0 to 1/);
    await first.getByText(/max \d/).waitFor(WAIT);
    const [position] = await scene.positions(0);
    await scene.token(0, position).click();
    await first.getByText(/\d\d over/).waitFor(WAIT);
  },

  "the reader says how likely a token was, and what was likely in its place": async (scene) => {
    const page = await scene.open();
    await scene.ask(FOX);
    const [first] = await scene.positions(0);
    await scene.token(0, first).click();
    assert.match(await page.locator(id("chances")).textContent(), /p .*entropy ≥ \d/);
    assert.ok((await page.locator(`${id("alternatives")} q`).count()) >= 3);
  },

  "colour shows what is at or over the threshold, or the whole scale on demand": async (scene) => {
    const page = await scene.open("bg=past");
    await scene.ask(FOX);
    const classes = () => page.locator(ANSWER).evaluateAll((spans) => spans.map((span) => span.className));
    const events = await classes();
    assert.ok(
      events.every((name) => / s\d/.test(name) === / over/.test(name)),
      events.join(", "),
    );
    assert.ok(events.some((name) => name.includes("over")));
    await page.evaluate(() => (document.querySelector(".marks").open = true));
    await page.click(id("heat-scale"));
    const whole = await classes();
    assert.ok(
      whole.filter((name) => / s\d/.test(name)).length > events.filter((name) => / s\d/.test(name)).length,
    );
    assert.match(page.url(), /heat=scale/);
  },

  "a starter brings the probe that has something to say of its answer": async (scene) => {
    const page = await scene.open();
    const starter = page.locator(id("starter")).first();
    const name = await starter.locator(".starter-probe").textContent();
    await starter.click();
    await page.waitForSelector(`${id("probe")}[data-probe="${name}"][data-slot="0"]`, WAIT);
    await scene.ended();
    assert.ok((await page.locator(`${ANSWER}.over`).count()) > 0, "no token is over the threshold");
  },

  "a message with white space at its ends keeps its colours": async (scene) => {
    const page = await scene.open();
    await scene.ask("  Tell me about a fox in the snow ");
    assert.ok((await page.locator(`.said-user ${id("token")}`).count()) > 3);
  },

  "what is typed into Max tokens is what is sent, within the model's context": async (scene) => {
    const page = await scene.open();
    await page.locator(`${id("settings")} summary`).click();
    await page.click(id("max-tokens"));
    await page.keyboard.press("Control+a");
    await page.keyboard.press("Backspace");
    await page.keyboard.type("500");
    assert.equal(await page.inputValue(id("max-tokens")), "500");
    await page.keyboard.press("Enter");
    assert.match(await page.locator(`${id("settings")} summary`).textContent(), /500 tokens/);
    const { engine } = await scene.api("GET", "/v1/actscope/info");
    await scene.setMaxTokens(100_000);
    assert.equal(await page.inputValue(id("max-tokens")), String(engine.max_context));
  },

  "a conversation that is too long has a meter, and ways on": async (scene) => {
    const page = await scene.open();
    const { engine } = await scene.api("GET", "/v1/actscope/info");
    await scene.ask(FOX);
    assert.match(await page.locator(id("context-meter")).textContent(), /\d+ \/ [\d,]+/);
    await scene.ask("Count to ten", { maxTokens: engine.max_context });
    assert.equal(await page.locator(id("turn")).last().getAttribute("data-status"), "failed");
    await scene.shot("comfort-too-long");
    await page.click(id("edit-message"));
    assert.equal(await page.inputValue(id("message")), "Count to ten");
    await page.press(id("message"), "Enter");
    await page.waitForSelector(`${id("turn")}[data-status="failed"]`, WAIT);
    await page.click(id("answer-shorter"));
    await page.waitForSelector(`${id("turn")}:nth-of-type(2)[data-status="done"]`, WAIT);
    scene.problems = scene.problems.filter((text) => !text.includes("400"));
  },

  "from a pinned token, Tab goes into the reader, Escape back to the token, and c copies the link": async (
    scene,
  ) => {
    const page = await scene.open();
    await scene.ask(FOX);
    const positions = await scene.positions(0);
    await scene.token(0, positions[2]).focus();
    await page.keyboard.press("Enter");
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.closest(".reader") !== null), true);
    await page.keyboard.press("Escape");
    assert.equal(await page.evaluate(() => document.activeElement.dataset.pos), String(positions[2]));
    await page.keyboard.press("Enter");
    await page.keyboard.press("c");
    await page.locator(id("copy-link")).getByText("Link copied").waitFor(WAIT);
    assert.match(
      await page.evaluate(() => navigator.clipboard.readText()),
      new RegExp(`pos=${positions[2]}$`),
    );
  },

  "high contrast and print keep the scores' colours": async (scene) => {
    const page = await scene.open("heat=scale");
    await scene.ask(FOX);
    const colours = () =>
      page
        .locator(ANSWER)
        .evaluateAll((all) => new Set(all.map((s) => getComputedStyle(s).backgroundColor)).size);
    const before = await colours();
    await page.emulateMedia({ forcedColors: "active" });
    assert.ok((await colours()) >= before, "high contrast");
    await scene.shot("comfort-forced-colours");
    await page.emulateMedia({ forcedColors: "none", media: "print" });
    assert.ok((await colours()) >= before, "print");
    assert.equal(await page.locator(id("message")).isVisible(), false);
    await page.emulateMedia({ media: "screen" });
  },

  "axe-core finds nothing in any state, in both themes": async (scene) => {
    const page = await scene.open();
    const found = {};
    const look = async (state) => {
      for (const theme of ["light", "dark"]) {
        await page.click(id(`theme-${theme}`));
        for (const one of await violations(page)) (found[one] ??= []).push(`${state} ${theme}`);
      }
    };
    await look("empty");
    await scene.ask(FOX);
    await look("answered");
    const [, , position] = await scene.positions(0);
    await scene.token(0, position).click();
    await look("pinned");
    await page.keyboard.press("Escape");
    await page.click(id("show-prompt"));
    await page.evaluate(() => document.querySelectorAll("details").forEach((box) => (box.open = true)));
    await page.locator(id("request")).first().waitFor(WAIT);
    await look("all open");
    await page.fill(id("find-lane"), "no such lane");
    await page.locator(".lanes").getByText("No lane has this name").waitFor(WAIT);
    await look("no lane found");
    await page.fill(id("find-lane"), "");
    await page
      .locator(`${id("request")} ${id("watch")}`)
      .first()
      .click();
    await page.waitForSelector(`${id("watched")} ${id("token")}`, WAIT);
    await look("watched");
    await page.setViewportSize({ width: 390, height: 844 });
    await look("narrow");
    assert.deepEqual(found, {});
  },
});
