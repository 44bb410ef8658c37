/** One clip among many that are scored. */

import { openClip } from "./clip.js";
import { Likelihoods, Part } from "./timeline.js";

/**
 * @typedef {object} Row
 * @property {File} file
 * @property {string} name
 * @property {Float32Array | null} samples
 * @property {Float32Array} [left]
 * @property {Part} part
 * @property {number} seconds
 * @property {Likelihoods} likelihoods
 * @property {any} result of /score; null: not yet, or there is none
 * @property {string} told what goes on with it, or went wrong
 * @property {boolean} failed
 * @property {boolean} due whether it waits to be scored
 * @property {HTMLElement} line of the table
 */

/** @param {File} file @returns {Promise<Row>} drawn, and not scored yet */
export async function openRow(file) {
  const clip = await openClip(file, file.name);
  const part = new Part();
  if (clip.samples) part.add(clip.samples);
  part.mel.end();
  const still = { result: null, told: "waits", failed: false, due: true, line: document.createElement("tr") };
  return { ...clip, file, part, seconds: part.seconds, likelihoods: new Likelihoods(), ...still };
}

/** @param {Row} row @param {any} result of /score */
export function keepResult(row, result) {
  const likelihoods = new Likelihoods();
  likelihoods.add(result.codes, result.logprobs);
  const told = (result.warnings ?? []).map((/** @type {{message: string}} */ { message }) => message).join("; ");
  Object.assign(row, { result, likelihoods, told, seconds: row.seconds || result.seconds, due: false, failed: false });
}

/** @param {import("./selection.js").Range} range @returns {Record<string, string>} fields of /score */
export function windowOf({ from, to }) {
  const seconds = Math.max(0.02, to - from - 0.005).toFixed(2); // not beyond the clip's last frame
  return { window_start: from.toFixed(2), window_seconds: seconds };
}
