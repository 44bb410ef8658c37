/** Where clips come from: the microphone, a file that is chosen or dropped, an example. */

import { Recorder, inWords, whyNot } from "./recorder.js";
import { byId, say, showError } from "./view.js";

const area = byId("source", HTMLElement);
const button = byId("record", HTMLButtonElement);
const level = byId("level", HTMLMeterElement);
const recorder = new Recorder();

/**
 * @typedef {(file: Blob, name: string) => Promise<void>} Open takes a clip
 * @typedef {(recording: boolean) => void} Busy told when the microphone begins and ends to listen
 *
 * @typedef {object} Microphone
 * @property {(rate: number) => void} begun told the rate of what is recorded, Hz
 * @property {(samples: Float32Array) => void} heard
 * @property {(file: File | null) => Promise<void>} ended told what was recorded; null when that failed
 */

/** @param {boolean} closed whether there is no changing the clip now */
export function closeSources(closed) {
  area.inert = closed;
}

/**
 * @param {Microphone} microphone
 * @param {Busy} busy
 * @param {() => number} longest seconds
 */
async function record(microphone, busy, longest) {
  if (recorder.running) return recorder.stop();
  busy(true);
  showError("");
  say("Recording. Press the button again, and it goes on.");
  level.hidden = false;
  /** @type {File | null} */ let file = null;
  try {
    file = await recorder.record(longest(), {
      begun: microphone.begun,
      heard: (samples, seconds, loudness) => {
        button.textContent = `Stop recording (${Math.floor(seconds)} s)`;
        level.value = loudness;
        microphone.heard(samples);
      },
    });
  } catch (error) {
    say("");
    showError(inWords(error));
  }
  button.textContent = "Record";
  level.hidden = true;
  busy(false);
  await microphone.ended(file);
}

/**
 * @param {string} name
 * @param {Open} open
 */
async function example(name, open) {
  const answer = await fetch(`examples/${name}`).catch(() => null);
  showError("");
  if (answer?.ok) await open(await answer.blob(), name);
  else showError("The examples are not installed on this server.");
}

/** @param {(files: File[]) => void} given */
export function takeDrops(given) {
  document.addEventListener("dragover", (event) => {
    event.preventDefault(); // else the browser leaves the page and opens the file
    document.body.classList.add("over");
  });
  document.addEventListener("dragleave", () => document.body.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    const files = [...(event.dataTransfer?.files ?? [])];
    if (files.length && !area.inert && !recorder.running) given(files);
  });
}

/**
 * @param {Open} open called with every clip that is given
 * @param {Microphone} microphone
 * @param {Busy} busy
 * @param {() => number} longest seconds that a recording may have
 */
export function listen(open, microphone, busy, longest) {
  const obstacle = whyNot();
  const note = byId("no-microphone", HTMLElement);
  note.hidden = !obstacle;
  note.textContent = obstacle;
  button.disabled = Boolean(obstacle);
  button.addEventListener("click", () => record(microphone, busy, longest));
  const input = byId("file", HTMLInputElement);
  input.addEventListener("change", () => {
    const file = input.files?.[0];
    if (file) void open(file, file.name);
    input.value = ""; // so that the same file, changed meanwhile, can be chosen again
  });
  for (const link of document.querySelectorAll("[data-example]")) {
    link.addEventListener("click", () => example(link.getAttribute("data-example") ?? "", open));
  }
}
