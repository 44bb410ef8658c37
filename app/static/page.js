/** The page: what a person does, and what it sets off. */

import { Api, ApiError } from "./api.js";
import { cut, openClip } from "./clip.js";
import { Drawing } from "./drawing.js";
import { Player } from "./player.js";
import { cutTimes, fields } from "./settings.js";
import { closeSources, listen } from "./sources.js";
import { Take } from "./take.js";
import { Timeline } from "./timeline.js";
import { Transport } from "./transport.js";
import { askForKey, byId, inSeconds, save, say, showError, showFigures } from "./view.js";
import { RATE_HZ, wav } from "./wav.js";

const api = new Api();
const player = new Player();
const timeline = new Timeline();
const drawing = new Drawing(byId("canvas", HTMLCanvasElement), timeline);
const transport = new Transport(player, timeline);
const form = byId("settings", HTMLFormElement);
const details = byId("details", HTMLDetailsElement);
const go = byId("go", HTMLButtonElement);
const download = byId("download", HTMLButtonElement);

/** @type {import("./clip.js").Clip | null} as it was given; the settings may take a part of it */
let given = null;
/** @type {Take | null} the last one */
let take = null;
let running = false;

const input = (/** @type {string} */ name) => /** @type {HTMLInputElement} */ (form.elements.namedItem(name));

function changed() {
  drawing.changed();
  transport.changed(take?.startSeconds ?? 0);
}

/** @returns {import("./clip.js").Clip | null} what the settings take of the given clip, drawn and ready to be played */
function prepare() {
  if (!given) return null;
  let clip = given;
  try {
    clip = cut(given, ...cutTimes(form));
  } catch (error) {
    details.open = true;
    showError(error instanceof Error ? error.message : String(error));
    return null;
  }
  take = null;
  download.disabled = true;
  showFigures(null, "");
  player.clear();
  if (clip.samples) player.push(clip.samples);
  player.end();
  timeline.open(clip.samples);
  transport.reset();
  changed();
  return clip;
}

/**
 * @param {Blob} file
 * @param {string} name
 */
async function open(file, name) {
  showError("");
  say("Reading the clip…");
  for (const field of ["from", "to"]) input(field).value = ""; // they were the last clip's
  given = await openClip(file, name);
  prepare();
  const { samples } = given;
  say(
    samples
      ? `${name}: ${inSeconds(samples.length / RATE_HZ)}.`
      : `${name}: this browser cannot read it; perhaps the server can.`,
  );
  go.disabled = false;
}

/** @param {unknown} error what ended a take */
function explain(error) {
  say("");
  showError(error instanceof ApiError ? error.message : "This page is at fault; its console tells more.");
  if (!(error instanceof ApiError)) throw error;
  if (error.code === "invalid_api_key") askForKey(true);
  if (error.code === "audio_too_long" || error.code === "invalid_parameter") details.open = true;
}

async function continueClip() {
  details.open ||= !form.checkValidity();
  if (!form.reportValidity()) return;
  showError("");
  const clip = prepare();
  if (!clip) return;
  player.wake();
  const current = (take = new Take(api, clip, fields(form)));
  running = true;
  closeSources(true);
  go.textContent = "Stop";
  say("Waiting for the first sound…");
  try {
    await current.run(player, timeline, () => {
      if (current.pieces.length === 1) say("Playing while it is made…");
      changed();
    });
    askForKey(false);
    showFigures(current.figures, current.seed);
    const [choice] = current.figures.choices;
    say(choice.finish_reason === "length" ? "Made." : "The server's time was up: this is what was made until then.");
  } catch (error) {
    if (!current.pieces.length) prepare();
    if (current.stopped) say("Stopped.");
    else explain(error);
  } finally {
    running = false;
    closeSources(false);
    go.textContent = "Continue";
    download.disabled = !current.pieces.length;
  }
}

go.addEventListener("click", () => {
  if (!running) return void continueClip();
  player.stop();
  take?.stop();
});

download.addEventListener("click", () => {
  if (take) save(wav(take.pieces), `${take.clip.name.replace(/\.[^.]*$/, "")}-continued.wav`);
});

byId("key-form", HTMLFormElement).addEventListener("submit", (event) => {
  event.preventDefault();
  api.key = byId("key", HTMLInputElement).value.trim();
  if (!running) void continueClip();
});

byId("keep-seed", HTMLButtonElement).addEventListener("click", () => {
  input("seed").value = take?.seed ?? "";
  details.open = true;
});

form.addEventListener("submit", (event) => event.preventDefault()); // Enter in a field
for (const field of ["from", "to"]) input(field).addEventListener("change", () => running || prepare());

listen(open, (recording) => {
  if (recording) player.stop();
  go.disabled = recording || !given;
});
