/**
 * The reader is always of the token that was pinned, whatever happens around it: see `runChecks` of page.mjs for how to run it.
 *
 * After a click, every frame's reader, ring and lanes' cursor are compared with the clicked position. Prints the number of
 * frames that showed another token (`wrong_token_cards`).
 */
import assert from "node:assert/strict";
import { ANSWER, id, runChecks, WAIT } from "./page.mjs";

const STORY = "Tell me a scary story about a girl in the forest";

async function pinToken(scene, turn, position) {
  await scene.page.keyboard.press("Escape");
  await scene.token(turn, position).click();
  await scene.page.waitForSelector(`${id("reader")}[data-pinned]`);
  // The mouse leaves, so that nothing but the pin can be shown.
  await scene.page.mouse.move(5, 5);
  await expectCard(scene, position);
}

/** From here on every frame has to show this position. */
async function expectCard({ page }, position) {
  await page.waitForFunction(
    ([card, p]) => new RegExp(`\\b${p}\\b`).test(document.querySelector(card)?.textContent ?? ""),
    [id("reader-position"), position],
    { timeout: 10_000 },
  );
  await page.waitForSelector(`${id("lanes")}[data-cursor="${position}"]`, { timeout: 10_000 });
  await frames(page);
  await page.evaluate((p) => window.expectCard(p), position);
}

/** Lets the page draw: the faults showed a frame or two after their cause. */
const frames = (page, count = 12) =>
  page.evaluate(async (n) => {
    for (let i = 0; i < n; i++) await new Promise(requestAnimationFrame);
  }, count);

async function noWrongCards({ page }) {
  const wrong = await page.evaluate(() => {
    window.expectCard(null);
    return window.wrongCards.splice(0);
  });
  total += wrong.length;
  assert.deepEqual([...new Set(wrong)], [], "reader, cursor and rings showed");
}

async function addProbe(scene, name) {
  const info = await scene.api("GET", "/v1/actscope/info");
  const vector = Array.from({ length: info.engine.d_model }, (_, i) => Math.sin(i + 1));
  await scene.api("PUT", `/v1/actscope/probes/${name}`, {
    vector,
    site: "layers.2.resid_post",
    activation: "sigmoid",
    range: [0, 1],
  });
}

let total = 0;
process.on("exit", () => console.log(JSON.stringify({ wrong_token_cards: total })));

await runChecks("cards.e2e.mjs", {
  "a token that is pinned while the answer streams stays in the card": async (scene) => {
    await scene.open();
    await scene.allow(20);
    await scene.ask(STORY, { maxTokens: 400, until: 12 });
    const [, , , position] = await scene.positions(0);
    await pinToken(scene, 0, position);
    const before = await scene.page.locator(ANSWER).count();
    for (let event = 0; event < 40; event++) {
      await scene.allow(1); // some bring a token, some scores alone
      await frames(scene.page, 2);
    }
    await scene.tokens(before + 20);
    await scene.allow(Infinity);
    await scene.ended();
    assert.ok((await scene.page.locator(ANSWER).count()) >= before + 20, "too little streamed after the pin");
    await frames(scene.page);
    await noWrongCards(scene);
  },

  "pointing at other tokens and at the lanes leaves the pinned token in the reader, and shows them beside it":
    async (scene) => {
      const page = await scene.open();
      await scene.ask(STORY);
      const positions = await scene.positions(0);
      await pinToken(scene, 0, positions[4]);
      for (const position of [positions[9], positions[1]]) {
        await scene.token(0, position).hover();
        await page.locator(id("beside")).getByText(String(position)).waitFor(WAIT);
        await frames(page);
      }
      const strip = await page.locator(id("strip")).first().boundingBox();
      for (const share of [0.1, 0.3, 0.5])
        await page.mouse.move(strip.x + share * strip.width, strip.y + 12, { steps: 3 });
      await page.mouse.move(5, 5);
      await page.waitForSelector(id("beside"), { state: "detached" });
      await noWrongCards(scene);
    },

  "another background probe, another underline and a new probe leave the pinned card alone": async (
    scene,
  ) => {
    const page = await scene.open();
    await scene.ask(STORY);
    const positions = await scene.positions(0);
    await pinToken(scene, 0, positions[Math.floor(positions.length / 3)]);
    const names = await page.locator(id("probe")).evaluateAll((rows) => rows.map((row) => row.dataset.probe));
    for (const name of [names[1], names[2], names[0]]) {
      await page.locator(id(`background-${name}`)).check();
      await frames(page);
    }
    await page.locator(id(`underline-${names[3]}`)).check();
    await frames(page);
    await noWrongCards(scene);
  },

  "in two turns, the card is of the clicked token, by mouse and by keyboard": async (scene) => {
    const page = await scene.open();
    await scene.ask("Tell me about a fox in the snow");
    await scene.ask("What will the sailor do tomorrow?");
    for (const turn of [0, 1, 0]) {
      const positions = await scene.positions(turn);
      for (const share of [0.2, 0.7]) {
        await pinToken(scene, turn, positions[Math.floor(positions.length * share)]);
        await frames(page);
        await noWrongCards(scene);
      }
    }
    const positions = await scene.positions(1);
    await scene.token(1, positions[3]).focus();
    await page.keyboard.press("Enter");
    await expectCard(scene, positions[3]);
    await frames(page);
    await noWrongCards(scene);
    await page.keyboard.press("ArrowRight");
    await expectCard(scene, positions[4]);
    await noWrongCards(scene);
  },

  "a window that is resized, zoomed or gets the focus back keeps the pinned card": async (scene) => {
    const page = await scene.open();
    await scene.ask(STORY);
    const positions = await scene.positions(0);
    await pinToken(scene, 0, positions[5]);
    for (const width of [1100, 1280, 1440]) {
      await page.setViewportSize({ width, height: 900 });
      await frames(page);
    }
    await page.click(id("theme-dark"));
    await page.click(id("theme-light"));
    await frames(page);
    await noWrongCards(scene);
    // A click in a lane pins another token; then the window loses the focus and gets it back.
    await scene.token(0, positions[8]).focus();
    const strip = await page.locator(id("strip")).first().boundingBox();
    await page.mouse.click(strip.x + strip.width * 0.4, strip.y + 12);
    const inLanes = Number(await page.locator(id("lanes")).getAttribute("data-cursor"));
    await page.mouse.move(5, 5);
    await expectCard(scene, inLanes);
    await page.evaluate((selector) => {
      const token = document.querySelector(selector);
      token.dispatchEvent(new FocusEvent("focusin", { bubbles: true }));
      token.dispatchEvent(new FocusEvent("focusout", { bubbles: true }));
    }, `${ANSWER}[data-pos="${positions[8]}"]`);
    await frames(page);
    await page.evaluate(() => (window.wrongCards.length = 0)); // while it had the focus, it was shown
    await frames(page);
    await noWrongCards(scene);
  },

  "a link to a token opens at that token, for whoever has the link": async (scene) => {
    const page = await scene.open();
    await scene.ask("Tell me about a fox in the snow");
    const positions = await scene.positions(0);
    const position = positions[Math.floor(positions.length / 2)];
    await pinToken(scene, 0, position);
    await page.click(id("copy-link"));
    const link = new URL(await page.evaluate(() => navigator.clipboard.readText()));
    await noWrongCards(scene);
    const other = await scene.open(link.search);
    await expectCard(scene, position);
    await frames(other, 40);
    await noWrongCards(scene);
    await other.reload();
    await other.waitForSelector(id("watched"), WAIT);
    await expectCard(scene, position);
    await frames(other, 40);
    await noWrongCards(scene);
  },

  "a probe that is added while an answer streams leaves the pinned card alone": async (scene) => {
    const page = await scene.open();
    await scene.allow(20);
    await scene.ask(STORY, { maxTokens: 400, until: 12 });
    const [, , position] = await scene.positions(0);
    await pinToken(scene, 0, position);
    await addProbe(scene, "added");
    const before = await page.locator(ANSWER).count();
    await scene.allow(10);
    await scene.tokens(before + 8);
    await page.setViewportSize({ width: 1200, height: 800 });
    await scene.allow(Infinity);
    await scene.ended();
    await frames(page);
    await noWrongCards(scene);
    await scene.api("DELETE", "/v1/actscope/probes/added");
  },
});
