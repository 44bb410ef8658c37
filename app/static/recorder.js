/** The microphone: one recording at a time, whose samples are handed on as they come. */

import { RATE_HZ, toPcm, wav } from "./wav.js";

const LATE_SECONDS = 0.2; // a recorder stops a little late

/** @returns {string} why this browser cannot record here; empty when it can */
export function whyNot() {
  if (!navigator.mediaDevices?.getUserMedia) {
    return window.isSecureContext
      ? "This browser offers no microphone: choose a file."
      : "Browsers lend the microphone only to pages from https:// or localhost. Choose a file, or open this page that way.";
  }
  return window.AudioWorkletNode ? "" : "This browser cannot record: choose a file.";
}

/**
 * @param {unknown} error what getUserMedia threw
 * @returns {string}
 */
export function inWords(error) {
  const name = error instanceof DOMException ? error.name : "";
  if (name === "NotAllowedError") return "The browser does not allow the microphone: allow it for this page, or choose a file.";
  if (name === "NotFoundError") return "There is no microphone. Choose a file.";
  if (name === "NotReadableError") return "The microphone is in use by something else.";
  return "The recording failed.";
}

/**
 * @typedef {object} Listener
 * @property {(rate: number) => void} begun told the rate of what it will hear, Hz
 * @property {(samples: Float32Array, seconds: number, level: number) => void} heard told of each block, how much there
 *   is with it, and how loud it is: 0, at -60 dB or less, to 1, at full scale
 */

export class Recorder {
  /** @type {(() => void) | null} */
  #stop = null;

  get running() {
    return this.#stop !== null;
  }

  /**
   * Records until `stop`, or nearly as long as a prompt may be.
   * @param {number} longest seconds
   * @param {Listener} listener
   * @returns {Promise<File>} sample by sample what the listener heard, in 16 bits
   */
  async record(longest, listener) {
    // Speech filters off: the model hears what was played, music included.
    const raw = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    const stream = await navigator.mediaDevices.getUserMedia({ audio: raw });
    const [context, source] = opened(stream);
    try {
      await context.audioWorklet.addModule(new URL("./microphone.js", import.meta.url));
      const node = new AudioWorkletNode(context, "microphone");
      this.#stop = () => node.port.postMessage(null);
      /** @type {Int16Array[]} */
      const pieces = [];
      let count = 0;
      listener.begun(context.sampleRate);
      await new Promise((done) => {
        node.port.onmessage = ({ data }) => {
          if (!data) return done(null);
          pieces.push(toPcm(data));
          count += data.length;
          const peak = data.reduce((/** @type {number} */ most, /** @type {number} */ sample) => Math.max(most, Math.abs(sample)), 1e-3);
          listener.heard(data, count / context.sampleRate, Math.min(1, 1 + Math.log10(peak) / 3));
          if (count / context.sampleRate >= longest - LATE_SECONDS) this.stop();
        };
        source.connect(node).connect(context.destination); // it gives no sound; without an end it would not run
      });
      return new File([wav(pieces, context.sampleRate)], "recording.wav", { type: "audio/wav" });
    } finally {
      this.#stop = null;
      void context.close();
      for (const track of stream.getTracks()) track.stop(); // the browser's sign of a microphone in use goes out
    }
  }

  stop() {
    this.#stop?.();
  }
}

/** @param {MediaStream} stream @returns {[AudioContext, MediaStreamAudioSourceNode]} at the model's rate where it can be */
function opened(stream) {
  const context = new AudioContext({ sampleRate: RATE_HZ });
  try {
    return [context, context.createMediaStreamSource(stream)];
  } catch {
    void context.close(); // Firefox resamples no microphone: at its own rate then
    const own = new AudioContext();
    return [own, own.createMediaStreamSource(stream)];
  }
}
