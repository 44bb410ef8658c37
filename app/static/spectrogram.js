/** Spectrograms as the worker has them ready. */

import { BANDS } from "./mel.js";

const SLICE_SAMPLES = 240_000; // of a long clip: what is made meanwhile has its turn in between
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
/** @type {Map<number, Spectrogram>} */
const open = new Map();
let count = 0;

/** @param {MessageEvent<{id: number, columns: Uint8Array, ended: boolean}>} message */
worker.onmessage = ({ data: { id, columns, ended } }) => {
  open.get(id)?.receive(columns);
  if (ended) open.delete(id);
};

export class Spectrogram {
  frames = 0;
  /** Called whenever there is more. @type {Set<() => void>} */
  listeners = new Set();
  #id = count++;
  #levels = new Uint8Array(1024 * BANDS);

  /** @param {Float32Array} samples what comes next */
  add(samples) {
    open.set(this.#id, this);
    for (let at = 0; at < samples.length; at += SLICE_SAMPLES) {
      worker.postMessage({ id: this.#id, samples: samples.slice(at, at + SLICE_SAMPLES) });
    }
  }

  end() {
    worker.postMessage({ id: this.#id, samples: null });
  }

  /** @param {Uint8Array} columns */
  receive(columns) {
    const used = this.frames * BANDS;
    if (used + columns.length > this.#levels.length) {
      const larger = new Uint8Array(2 * (used + columns.length));
      larger.set(this.#levels.subarray(0, used));
      this.#levels = larger;
    }
    this.#levels.set(columns, used);
    this.frames += columns.length / BANDS;
    for (const listener of this.listeners) listener();
  }

  /**
   * @param {number} from frame
   * @param {number} to frame, not included
   * @param {number} band
   * @returns {number} the loudest level of these frames, 0 to 255
   */
  level(from, to, band) {
    let most = 0;
    for (let frame = from; frame < Math.min(to, this.frames); frame++) {
      most = Math.max(most, this.#levels[frame * BANDS + band]);
    }
    return most;
  }
}
