/** Plays sound while it still arrives: each piece is scheduled where the one before it ends, to the sample. */

import { RATE_HZ } from "./wav.js";

const LEAD_SAMPLES = RATE_HZ / 10; // held back at the start, and after the sound ran dry: 100 ms

export class Player {
  /** @type {AudioContext | null} */
  #context = null;
  /** @type {{start: number, samples: Float32Array}[]} in samples from the sound's start */
  #pieces = [];
  /** @type {Set<AudioBufferSourceNode>} */
  #nodes = new Set();
  /** @type {{at: number, position: number}[]} from sample `at` of the context on, `position` of the sound is heard */
  #marks = [];
  #from = 0; // the sample that is heard first
  #next = 0; // the context's sample at which the next piece starts
  #length = 0;
  #whole = true;
  #on = false;

  /** Has to be called by a click or a key: browsers keep pages silent until then. */
  wake() {
    this.#context ??= new AudioContext({ sampleRate: RATE_HZ }); // no AudioWorklet: it is missing on plain http
    void this.#context.resume();
  }

  /** Forgets the sound; a new one begins. */
  clear() {
    this.stop();
    this.#pieces = [];
    this.#marks = [];
    this.#length = 0;
    this.#whole = false;
  }

  /** @param {Float32Array} samples what comes next, 24 kHz */
  push(samples) {
    if (!samples.length) return;
    const piece = { start: this.#length, samples };
    this.#pieces.push(piece);
    this.#length += samples.length;
    if (this.#on) this.#schedule(piece);
  }

  /** Nothing more comes. */
  end() {
    this.#whole = true;
  }

  /** @param {number} [from] seconds into the sound; it may not have come that far yet */
  play(from = 0) {
    this.stop();
    this.wake();
    this.#on = true;
    this.#from = Math.round(Math.max(0, from) * RATE_HZ);
    this.#next = this.#soon();
    this.#marks = [{ at: this.#next, position: this.#from }];
    for (const piece of this.#pieces) this.#schedule(piece);
  }

  stop() {
    this.#on = false;
    for (const node of this.#nodes) node.stop();
    this.#nodes.clear();
  }

  /** @returns {boolean} whether it is heard, or will be as soon as there is more */
  get playing() {
    return this.#on && (!this.#whole || this.#now() < this.#next);
  }

  /** @returns {number} seconds into the sound that are heard now */
  get position() {
    const now = this.#now();
    const index = Math.max(0, this.#marks.findLastIndex((mark) => mark.at <= now));
    const mark = this.#marks[index];
    if (!mark) return 0;
    const bound = this.#marks[index + 1]?.position ?? this.#length; // it waits there for what comes late
    return Math.min(mark.position + Math.max(0, now - mark.at), bound) / RATE_HZ;
  }

  /** @returns {number} seconds of sound so far */
  get seconds() {
    return this.#length / RATE_HZ;
  }

  #now() {
    return this.#context ? Math.round(this.#context.currentTime * RATE_HZ) : 0;
  }

  #soon() {
    return this.#now() + LEAD_SAMPLES;
  }

  /** @param {{start: number, samples: Float32Array}} piece */
  #schedule(piece) {
    const context = /** @type {AudioContext} */ (this.#context);
    const skipped = Math.max(0, this.#from - piece.start);
    if (skipped >= piece.samples.length) return;
    if (this.#next < this.#now()) {
      this.#next = this.#soon();
      this.#marks.push({ at: this.#next, position: piece.start + skipped });
    }
    const buffer = context.createBuffer(1, piece.samples.length, RATE_HZ);
    buffer.getChannelData(0).set(piece.samples);
    const node = context.createBufferSource();
    node.buffer = buffer;
    node.connect(context.destination);
    node.onended = () => this.#nodes.delete(node);
    node.start(this.#next / RATE_HZ, skipped / RATE_HZ);
    this.#nodes.add(node);
    this.#next += piece.samples.length - skipped;
  }
}
