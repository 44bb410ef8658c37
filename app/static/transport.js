/** Play and pause, the playhead, and seeking by pointer and keys. Seconds here are the timeline's. */

import { inNats, inSeconds } from "./view.js";

/**
 * @typedef {import("./player.js").Player} Player
 * @typedef {import("./timeline.js").Timeline} Timeline
 * @typedef {{slider: HTMLElement, playhead: HTMLElement, button: HTMLButtonElement, readout: HTMLElement}} Elements
 */

const STEPS_SECONDS = new Map([
  ["ArrowLeft", -0.5], ["ArrowDown", -0.5], ["ArrowRight", 0.5], ["ArrowUp", 0.5],
  ["PageDown", -5], ["PageUp", 5],
]);

export class Transport {
  #start = 0; // where the sound begins: after the clip, when that is not part of it
  #position = 0;
  #turning = false;
  /** Called when the sound begins and when it ends. */
  flipped = () => {};

  /**
   * @param {Elements} elements
   * @param {Player} player
   * @param {Timeline} timeline
   * @param {(seconds: number) => void} reached told where the sound is
   */
  constructor(elements, player, timeline, reached) {
    this.elements = elements;
    this.player = player;
    this.timeline = timeline;
    this.reached = reached;
    const { slider, button } = elements;
    button.addEventListener("click", () => this.toggle());
    slider.addEventListener("keydown", (event) => this.#key(event));
    this.read(null);
  }

  toggle() {
    if (this.player.playing) {
      this.player.stop();
    } else {
      const atEnd = this.#position > this.#end - 0.02;
      this.player.play(atEnd ? 0 : this.#position - this.#start);
    }
    this.changed(this.#start);
  }

  /** Another sound: it begins at its beginning. */
  reset() {
    this.#position = 0;
  }

  /** @param {number} [start] where the sound begins on the timeline */
  changed(start = this.#start) {
    this.#start = start;
    this.#position = Math.max(start, this.#position);
    if (!this.#turning) this.#turn();
  }

  get #end() {
    return this.#start + this.player.seconds;
  }

  /** Follows the sound, once for every picture of the screen. */
  #turn() {
    const { playing } = this.player;
    if (playing || this.#turning) this.#position = this.#start + this.player.position;
    const flips = playing !== this.#turning;
    this.#turning = playing;
    if (flips) this.flipped();
    if (playing) this.reached(this.#position);
    this.#show();
    if (playing) requestAnimationFrame(() => this.#turn());
  }

  #show() {
    const { player, timeline, elements } = this;
    const { slider, playhead, button } = elements;
    const known = player.seconds > 0 && timeline.seconds > 0;
    const atEnd = known && this.#position > this.#end - 0.02;
    button.disabled = !known;
    button.textContent = player.playing ? "Pause" : atEnd ? "Play again" : "Play";
    const share = (this.#position - timeline.from) / (timeline.to - timeline.from || 1);
    playhead.hidden = !known || share < -0.001 || share > 1.001;
    playhead.style.left = `${Math.max(0, Math.min(100, 100 * share))}%`;
    slider.ariaValueMin = this.#start.toFixed(1);
    slider.ariaValueMax = this.#end.toFixed(1);
    slider.ariaValueNow = this.#position.toFixed(1);
    const token = player.playing ? "" : this.#told(this.#position); // it would be old before it is read out
    const where = `${this.#position.toFixed(1)} of ${this.#end.toFixed(1)} seconds`;
    slider.ariaValueText = known ? where + (token && `, ${token}`) : "nothing to play";
  }

  /** @param {number} seconds */
  seek(seconds) {
    if (!this.player.seconds) return;
    this.#position = Math.max(this.#start, Math.min(seconds, this.#end));
    if (this.player.playing) this.player.play(this.#position - this.#start);
    this.#show();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const step = STEPS_SECONDS.get(event.key);
    if (step) this.seek(this.#position + step);
    else if (event.key === "Home") this.seek(this.#start);
    else if (event.key === "End") this.seek(this.#end);
    else if (event.key === " " || event.key === "Enter") this.toggle();
    else return;
    event.preventDefault();
  }

  /**
   * @param {number} seconds
   * @returns {string} what the model thought there; empty when that is not known
   */
  #told(seconds) {
    const known = this.timeline.at(seconds);
    return known ? `token ${known.token}, log-likelihood ${inNats(known.logprob)}` : "";
  }

  /** @param {number | null} seconds what the pointer is on; null: nothing */
  read(seconds) {
    const told = seconds === null ? "" : this.#told(seconds);
    this.elements.readout.textContent = told
      ? `${inSeconds(seconds ?? 0)}: ${told}`
      : "Point at the picture to read a token.";
  }
}
