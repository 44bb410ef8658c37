/** The clip that is to go on: a file and, where this browser can read it, its samples for drawing and playing. */

import { RATE_HZ, toPcm, wav } from "./wav.js";

const MAX_DECODED_BYTES = 64 * 2 ** 20; // what the server takes by default; more would only fill this tab's memory

/**
 * @typedef {object} Clip
 * @property {string} name
 * @property {Blob} file
 * @property {Float32Array | null} samples mono at 24 kHz; null when this browser cannot read the file, which the
 *   server, knowing more formats, perhaps can
 */

/**
 * @param {Blob} file
 * @param {string} name
 * @returns {Promise<Clip>}
 */
export async function openClip(file, name) {
  let samples = null;
  if (file.size <= MAX_DECODED_BYTES) {
    try {
      const context = new OfflineAudioContext(1, 1, RATE_HZ); // its rate is the one that files are decoded to
      samples = mixed(await context.decodeAudioData(await file.arrayBuffer()));
    } catch {
      samples = null;
    }
  }
  return { name, file, samples };
}

/**
 * @param {AudioBuffer} buffer
 * @returns {Float32Array} the mean of the channels, as the server takes it
 */
function mixed(buffer) {
  const mono = new Float32Array(buffer.length);
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    buffer.getChannelData(channel).forEach((sample, index) => (mono[index] += sample / buffer.numberOfChannels));
  }
  return mono;
}

/**
 * A part of a clip, as a file of its own; the clip itself when that is all of it.
 * @param {Clip} clip
 * @param {number} from seconds
 * @param {number} to seconds; infinite: its end
 * @returns {Clip}
 * @throws {RangeError} when nothing is left, or the clip cannot be cut here
 */
export function cut(clip, from, to) {
  if (from <= 0 && to === Infinity) return clip;
  if (!clip.samples) throw new RangeError("This browser cannot read the file, so it cannot cut it: clear “from” and “to”.");
  const part = clip.samples.slice(Math.round(from * RATE_HZ), to === Infinity ? undefined : Math.round(to * RATE_HZ));
  if (!part.length) throw new RangeError("Nothing of the clip lies between “from” and “to”.");
  return part.length === clip.samples.length ? clip : { name: clip.name, file: wav([toPcm(part)]), samples: part };
}
