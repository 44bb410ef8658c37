/** Continue: one clip, and up to four takes that go on from it. */

import { leftOf, notices, openClip } from "./clip.js";
import { fields, input, mistake } from "./settings.js";
import { closeSources } from "./sources.js";
import { Take } from "./take.js";
import { MOST_TAKES } from "./takes.js";
import { askForKey, byId, inSeconds, make, say, showError, showFigures } from "./view.js";
import { Workbench } from "./workbench.js";

const form = byId("settings", HTMLFormElement);
const details = byId("details", HTMLDetailsElement);
const go = byId("go", HTMLButtonElement);
export const bench = new Workbench(form);
/** @type {import("./api.js").Api} */ let api;

/** @param {{message: string}[]} told @param {[string, () => void][]} offers */
function note(told, offers) {
  const place = byId("clip-notes", HTMLElement);
  place.hidden = !told.length;
  place.replaceChildren(...told.map(({ message }) => make("p", message)));
  for (const [text, act] of offers) {
    const button = make("button", text, { type: "button" });
    button.addEventListener("click", act);
    place.append(button);
  }
}

/** @param {import("./clip.js").Clip} clip */
export function take(clip) {
  bench.open(clip);
  const { samples, name } = clip;
  const most = bench.longestSeconds;
  /** @type {{message: string}[]} */ const told = notices(clip);
  /** @type {[string, () => void][]} */ const offers = [];
  if (clip.left) offers.push(["Use the left channel", () => take(leftOf(clip))]);
  if (bench.seconds > most) {
    told.push({ message: `The clip has ${inSeconds(bench.seconds)}; a prompt may have ${most} s. Its end is chosen: ` +
      "drag in the picture to choose another part." });
    offers.push([`Use the first ${most} s`, () => {
      bench.choose(0, most);
      bench.show(null);
    }]);
  }
  note(told, offers);
  say(samples ? `${name}: ${inSeconds(bench.seconds)}.` : `${name}: this browser cannot read it; perhaps the server can.`);
  go.disabled = false;
}

/** @param {Blob} file @param {string} name */
export async function openFile(file, name) {
  showError("");
  say("Reading the clip…");
  take(await openClip(file, name));
}

const same = (/** @type {unknown} */ one, /** @type {unknown} */ other) => JSON.stringify(one) === JSON.stringify(other);

/**
 * @param {import("./clip.js").Prompt} prompt
 * @returns {Record<string, string>} fields of /continue; a seed that was used already is counted up
 */
function wanted(prompt) {
  const given = fields(form);
  const used = () => bench.takes.all.some((other) => other.prompt === prompt && same(other.fields, given));
  while (given.seed && used()) given.seed = String(BigInt(given.seed) + 1n);
  return given;
}

/** @param {(error: unknown) => void} explain @param {import("./live.js").LiveSession} [session] that has heard the clip */
export async function continueClip(explain, session) {
  if (bench.running || !bench.clip || go.disabled) return;
  const wrong = mistake(form, bench.seconds, bench.longestSeconds);
  showError(wrong);
  if (wrong) return void (details.open = true);
  if (bench.takes.all.length >= MOST_TAKES) return showError(`${MOST_TAKES} takes are kept: remove one to make another.`);
  const prompt = bench.prompt();
  if (!prompt) return void (details.open = true);
  const [before, current] = [bench.shown, new Take(api, prompt, wanted(prompt), session)];
  bench.picture.player.wake();
  bench.picture.player.stop();
  bench.running = current;
  closeSources(true);
  go.textContent = "Stop";
  say("Waiting for the first sound…");
  /** @type {unknown} */ let failure = null;
  try {
    await current.run(
      (share) => say(share < 1 ? `Sending the prompt: ${Math.round(100 * share)} %` : "Waiting for the first sound…"),
      (samples) => {
        if (!samples) {
          bench.takes.add(current);
          return bench.show(current);
        }
        bench.picture.player.push(samples);
        if (current.pieces.length === 1) {
          bench.listen(current);
          say("Playing while it is made…");
        }
        bench.update();
      },
    );
    bench.picture.player.end();
    bench.update();
    await current.scorePrompt(); // not before: it would delay the sound, and take a second place
  } catch (error) {
    failure = error;
    if (current.pieces.length) bench.picture.player.end();
  }
  bench.running = null;
  bench.typed(); // the handles are back
  closeSources(false);
  go.textContent = "Continue";
  if (!current.pieces.length) {
    if (bench.takes.all.includes(current)) bench.takes.remove(current);
    bench.show(before);
  } else {
    bench.update();
    showFigures(current);
  }
  if (failure && !current.stopped) return explain(failure);
  askForKey(false);
  const reason = current.figures?.choices[0].finish_reason;
  if (!current.figures) say("Stopped.");
  else say(reason === "length" ? "Made." : "The server's time was up: this is what was made until then.");
}

/** @param {{max_prompt_seconds: number, max_seconds: number}} limits of the server */
export function limit({ max_prompt_seconds: longest, max_seconds: most }) {
  bench.longestSeconds = longest;
  if (Number.isFinite(most)) input(form, "seconds").max = String(most);
  if (bench.clip && !bench.running && !bench.takes.all.length) take(bench.clip); // it was opened before they were known
}

/** @param {import("./api.js").Api} given @param {(error: unknown) => void} explain */
export function prepare(given, explain) {
  api = given;
  go.addEventListener("click", () => {
    if (!bench.running) return void continueClip(explain);
    bench.picture.player.stop();
    bench.running.stop();
  });
}
