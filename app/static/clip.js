/** The clip that is to go on: a file and, where this browser can read it, its samples for drawing and playing. */

import { Likelihoods } from "./timeline.js";
import { RATE_HZ, toPcm, wav } from "./wav.js";

const MAX_DECODED_BYTES = 64 * 2 ** 20; // more would only fill this tab's memory
const MAX_UNCUT_BYTES = 2 ** 20; // of a file of which a part is wanted: a larger one is cut here, to send less
const SILENT = 1e-4; // -80 dB of full scale, as the server has it
const QUIET = 0.02; // -34 dB
const INVERTED = 0.01; // of the channels' power is left in their mean

/**
 * @typedef {object} Clip
 * @property {string} name
 * @property {Blob} file
 * @property {Float32Array | null} samples mono at 24 kHz; null when this browser cannot read the file, which the
 *   server, knowing more formats, perhaps can
 * @property {Float32Array} [left] the first channel by itself, where the two cancel each other
 *
 * @typedef {{code: string, message: string}} Notice
 *
 * @typedef {object} Prompt a part of a clip, or all of it
 * @property {Clip} clip
 * @property {number} from seconds
 * @property {number} to seconds; infinite: its end
 * @property {Record<string, string>} cut the fields of the interface that name it; empty for all of the clip
 * @property {import("./api.js").Upload} upload
 * @property {import("./api.js").Upload | null} scored what /score reads, which cuts nothing; null: it cannot
 * @property {Likelihoods} likelihoods of its tokens, once they are known
 */

/**
 * @param {Blob} file
 * @param {string} name
 * @returns {Promise<Clip>}
 */
export async function openClip(file, name) {
  /** @type {Clip} */
  const clip = { name, file, samples: null };
  if (file.size > MAX_DECODED_BYTES) return clip;
  try {
    const context = new OfflineAudioContext(1, 1, RATE_HZ); // its rate is the one that files are decoded to
    const buffer = await context.decodeAudioData(await file.arrayBuffer());
    const samples = mixed(buffer);
    const powers = Array.from({ length: buffer.numberOfChannels }, (_, channel) => power(buffer.getChannelData(channel)));
    const whole = powers.reduce((sum, each) => sum + each, 0) / powers.length;
    if (whole > SILENT ** 2 && power(samples) < INVERTED * whole) clip.left = buffer.getChannelData(0).slice();
    clip.samples = samples;
  } catch {
    clip.samples = null;
  }
  return clip;
}

/** @param {Float32Array} samples */
function power(samples) {
  let sum = 0;
  for (let at = 0; at < samples.length; at++) sum += samples[at] * samples[at]; // `reduce` is ten times slower
  return sum / (samples.length || 1);
}

/**
 * @param {AudioBuffer} buffer
 * @returns {Float32Array} the mean of the channels, as the server takes it
 */
function mixed(buffer) {
  const mono = new Float32Array(buffer.length);
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    const samples = buffer.getChannelData(channel);
    for (let at = 0; at < samples.length; at++) mono[at] += samples[at] / buffer.numberOfChannels;
  }
  return mono;
}

/**
 * @param {Clip} clip
 * @returns {Notice[]} what is likely wrong with it; codes as those of the server's `warnings`
 */
export function notices({ samples, left }) {
  if (left) {
    const message = "The two channels cancel each other (phase-inverted stereo): little of their mean, which is used, is left.";
    return [{ code: "phase_inverted", message }];
  }
  if (!samples?.length) return [];
  let peak = 0;
  for (let at = 0; at < samples.length; at++) peak = Math.max(peak, Math.abs(samples[at]));
  if (peak < SILENT) return [{ code: "silent_clip", message: "The clip is silent." }];
  const level = `${(20 * Math.log10(peak)).toFixed(0).replace("-", "−")} dB`;
  const message = `The clip is very quiet (its peak is ${level} of full scale): the continuation may be noise.`;
  return peak < QUIET ? [{ code: "quiet_clip", message }] : [];
}

/** @param {Clip} clip @returns {Clip} its left channel alone */
export function leftOf({ name, left }) {
  if (!left) throw new TypeError("the clip has no channel to take");
  return { name: `${stem(name)}-left.wav`, file: wav([toPcm(left)]), samples: left };
}

/** @param {string} name of a file @returns {string} without its ending */
export function stem(name) {
  return name.replace(/\.[^.]*$/, "");
}

/**
 * @param {Clip} clip
 * @param {number} from seconds
 * @param {number} to seconds; infinite: its end
 * @returns {Prompt}
 * @throws {RangeError} when nothing is left
 */
export function promptOf(clip, from, to) {
  const { name, file, samples } = clip;
  const seconds = (samples?.length ?? Infinity) / RATE_HZ;
  const likelihoods = new Likelihoods();
  likelihoods.start = from;
  if (from >= Math.min(to, seconds)) throw new RangeError("Nothing of the clip lies between “from” and “to”.");
  if (from <= 0 && (to === Infinity || to >= seconds)) {
    const upload = { file, name, fields: {} };
    return { clip, from: 0, to: Infinity, cut: {}, upload, scored: upload, likelihoods };
  }
  const cut = { prompt_start: String(from), ...(to < seconds ? { prompt_end: String(to) } : {}) };
  const part = samples?.slice(Math.round(from * RATE_HZ), to < seconds ? Math.round(to * RATE_HZ) : undefined);
  const scored = part ? { file: wav([toPcm(part)]), name, fields: {} } : null;
  const upload = scored && file.size > MAX_UNCUT_BYTES ? scored : { file, name, fields: cut };
  return { clip, from, to, cut, upload, scored, likelihoods };
}
