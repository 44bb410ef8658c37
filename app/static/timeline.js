/** What is drawn: the clip, the continuation after the prompt, and the log-likelihood of each token. Seconds throughout. */

import { Spectrogram } from "./spectrogram.js";

export const FRAME_RATE_HZ = 75; // one token a frame
export const FRAME_SAMPLES = 320;
const SHORTEST_VIEW_SECONDS = 0.5;

/** A sound: the extremes of each frame, and its spectrogram. */
export class Part {
  /** @type {number[]} */ low = [];
  /** @type {number[]} */ high = [];
  peak = 0;
  mel = new Spectrogram();
  #samples = 0;

  /** @param {Float32Array} samples of any number */
  add(samples) {
    for (let at = 0; at < samples.length; ) {
      const frame = Math.floor(this.#samples / FRAME_SAMPLES);
      const end = Math.min(samples.length, at + (frame + 1) * FRAME_SAMPLES - this.#samples);
      let [low, high] = [this.low[frame] ?? 0, this.high[frame] ?? 0];
      this.#samples += end - at;
      for (; at < end; at++) {
        const sample = samples[at];
        if (sample < low) low = sample;
        else if (sample > high) high = sample;
      }
      this.low[frame] = low;
      this.high[frame] = high;
      this.peak = Math.max(this.peak, high, -low);
    }
    this.mel.add(samples);
  }

  get seconds() {
    return this.#samples / FRAME_SAMPLES / FRAME_RATE_HZ;
  }
}

/** What the model thought of the tokens from `start` on. */
export class Likelihoods {
  start = 0;
  /** @type {number[]} */ tokens = [];
  /** @type {number[]} */ logprobs = [];

  /**
   * @param {number[]} tokens
   * @param {number[]} logprobs
   */
  add(tokens, logprobs) {
    for (const token of tokens) this.tokens.push(token);
    for (const logprob of logprobs) this.logprobs.push(logprob);
  }

  clear() {
    [this.tokens, this.logprobs] = [[], []];
  }

  /** @returns {number} mean log-likelihood, nats per token; NaN without tokens */
  get mean() {
    return this.logprobs.reduce((sum, value) => sum + value, 0) / this.logprobs.length;
  }
}

/** @typedef {{part: Part, start: number, end: number, likelihoods: Likelihoods, paint: "--clip" | "--made"}} Track */

export class Timeline {
  /** @type {Track[]} the clip and, where one is shown, the continuation */
  tracks = [];
  seconds = 0; // how long the axis is
  from = 0; // the view: all of the axis, or a part of it
  to = 0;

  /** @param {Part | null} part a clip by itself @param {Likelihoods} [likelihoods] */
  open(part, likelihoods = new Likelihoods()) {
    this.tracks = part ? [{ part, start: 0, end: part.seconds, likelihoods, paint: "--clip" }] : [];
    this.#lengthen(part?.seconds ?? 0);
  }

  /**
   * A clip that still comes.
   * @param {Part} part
   * @param {Likelihoods | undefined} likelihoods
   * @param {number} seconds that the axis has at least
   */
  listen(part, likelihoods, seconds) {
    this.open(part, likelihoods);
    this.#lengthen(Math.max(seconds, part.seconds));
  }

  /**
   * A clip up to the end of its prompt, and what was made after that.
   * @param {Omit<Track, "paint">} clip
   * @param {Part} part
   * @param {Likelihoods} likelihoods
   * @param {number} seconds that are expected
   */
  show(clip, part, likelihoods, seconds) {
    const end = likelihoods.start + Math.max(seconds, part.seconds);
    this.tracks = [
      { ...clip, paint: "--clip" },
      { part, start: likelihoods.start, end, likelihoods, paint: "--made" },
    ];
    this.#lengthen(end);
  }

  /** @param {number} seconds the view stays, if it was a part of the axis and still is */
  #lengthen(seconds) {
    if (!this.zoomed || this.to > seconds) [this.from, this.to] = [0, seconds];
    this.seconds = seconds;
  }

  get zoomed() {
    return this.to - this.from < this.seconds - 1e-6;
  }

  /**
   * @param {number} factor below 1: nearer
   * @param {number} [centre] what stays where it is
   */
  zoom(factor, centre = (this.from + this.to) / 2) {
    const now = this.to - this.from;
    const next = Math.min(this.seconds, Math.max(Math.min(SHORTEST_VIEW_SECONDS, this.seconds), now * factor));
    this.scroll(centre - ((centre - this.from) * next) / now, next);
  }

  /**
   * @param {number} from
   * @param {number} [length]
   */
  scroll(from, length = this.to - this.from) {
    this.from = Math.max(0, Math.min(from, this.seconds - length));
    this.to = this.from + length;
  }

  /**
   * @param {number} seconds
   * @returns {{token: number, logprob: number} | null} what the model thought there, if it is known
   */
  at(seconds) {
    const track = this.tracks.findLast(({ start }) => seconds >= start);
    if (!track) return null;
    const { start, tokens, logprobs } = track.likelihoods;
    const index = Math.floor((seconds - start) * FRAME_RATE_HZ + 1e-6);
    return index in logprobs ? { token: tokens[index], logprob: logprobs[index] } : null;
  }
}
