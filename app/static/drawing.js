/** The picture of a timeline: waveform, spectrogram and log-likelihoods on one axis of time, with their scales. */

import { height as melHeight } from "./mel.js";
import { CHANCE_NATS, LOWEST_NATS, fitted, likelihoodStrip, spectrogram, waveform } from "./rows.js";

export const GUTTER_PIXELS = 34; // for the scales, on the left
const CAPTION_PIXELS = 18; // above the lower rows
const AXIS_PIXELS = 20; // below them
const TICKS_SECONDS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600];
const TICKS_KILOHERTZ = [1, 4, 10];
const TICKS_NATS = [0, -5, LOWEST_NATS];

/**
 * @typedef {import("./timeline.js").Timeline} Timeline
 * @typedef {import("./rows.js").Box} Box
 */

/** @param {number} width @param {number} tall @returns {{wave: Box, mel: Box, strip: Box}} */
export function layout(width, tall) {
  const free = tall - 2 * CAPTION_PIXELS - AXIS_PIXELS;
  const box = (/** @type {number} */ top, /** @type {number} */ share) => {
    return { left: GUTTER_PIXELS, top, width: width - GUTTER_PIXELS, height: share * free };
  };
  const wave = box(0, 0.22);
  const mel = box(wave.height + CAPTION_PIXELS, 0.42);
  return { wave, mel, strip: box(mel.top + mel.height + CAPTION_PIXELS, 0.36) };
}

export class Drawing {
  /** What is chosen; what lies beside it is shaded. @type {import("./selection.js").Range | null} */
  chosen = null;
  #due = false;

  /**
   * @param {HTMLCanvasElement} canvas colours are its style's
   * @param {Timeline} timeline
   */
  constructor(canvas, timeline) {
    this.canvas = canvas;
    this.timeline = timeline;
    new ResizeObserver(() => this.changed()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.changed());
  }

  /** Draws with the next picture of the screen, however often it is called before. */
  changed() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      this.#draw();
    });
  }

  #draw() {
    const { canvas, timeline } = this;
    const context = fitted(canvas);
    if (!context || !canvas.clientWidth || !timeline.seconds) return;
    const style = getComputedStyle(canvas);
    const colour = (/** @type {string} */ name) => style.getPropertyValue(name).trim();
    const { wave, mel, strip } = layout(canvas.clientWidth, canvas.clientHeight);
    context.font = "12px system-ui, sans-serif";
    this.#times(context, [wave, strip], colour);
    waveform(context, timeline.tracks, timeline, wave, colour);
    spectrogram(context, timeline.tracks, timeline, mel);
    const level = (/** @type {number} */ nats) => Math.round(strip.top + (nats / LOWEST_NATS) * strip.height) + 0.5;
    const right = strip.left + strip.width;
    const across = (/** @type {string} */ ink, /** @type {number} */ y) => line(context, ink, strip.left, y, right, y);
    for (const nats of TICKS_NATS) across(colour("--line"), level(nats));
    likelihoodStrip(context, timeline.tracks, timeline, strip, colour);
    context.setLineDash([5, 4]);
    across(colour("--ink"), level(CHANCE_NATS));
    context.setLineDash([]);
    this.#shade(context, [wave, mel, strip], colour("--shade"));
    const start = timeline.tracks[1]?.start; // of the continuation
    if (start > timeline.from && start < timeline.to) {
      const x = this.#x(start, wave);
      line(context, colour("--ink"), x, wave.top, x, strip.top + strip.height);
    }
    context.fillStyle = colour("--quiet");
    context.textBaseline = "bottom";
    context.fillText("Spectrogram, kHz", mel.left, mel.top - 2);
    context.fillText("Log-likelihood of each token, nats", strip.left, strip.top - 2);
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const kilohertz of TICKS_KILOHERTZ) {
      context.fillText(String(kilohertz), GUTTER_PIXELS - 5, mel.top + mel.height * (1 - melHeight(1000 * kilohertz)));
    }
    for (const nats of TICKS_NATS) {
      context.fillText(String(nats).replace("-", "−"), GUTTER_PIXELS - 5, level(nats));
    }
  }

  /** @param {number} seconds @param {Box} box */
  #x(seconds, box) {
    const { from, to } = this.timeline;
    return box.left + ((seconds - from) / (to - from)) * box.width;
  }

  /** @param {CanvasRenderingContext2D} context @param {Box[]} rows @param {string} ink */
  #shade(context, rows, ink) {
    if (!this.chosen) return;
    const end = this.timeline.tracks[1]?.start ?? this.timeline.seconds; // of the clip
    context.fillStyle = ink;
    for (const box of rows) {
      const right = box.left + box.width;
      const inside = (/** @type {number} */ at) => Math.max(box.left, Math.min(this.#x(at, box), right));
      for (const [from, to] of [[0, this.chosen.from], [this.chosen.to, end]]) {
        if (to > from) context.fillRect(inside(from), box.top, inside(to) - inside(from), box.height);
      }
    }
  }

  /** @param {CanvasRenderingContext2D} context @param {Box[]} rows @param {(name: string) => string} colour */
  #times(context, rows, colour) {
    const { from, to } = this.timeline;
    const [row] = rows;
    const step = TICKS_SECONDS.find((each) => (each / (to - from)) * row.width >= 52) ?? 1200;
    const bottom = rows[1].top + rows[1].height;
    context.textBaseline = "bottom";
    for (let count = Math.ceil(from / step); count * step <= to; count++) {
      const x = this.#x(count * step, row);
      for (const { top, height } of rows) line(context, colour("--line"), x, top, x, top + height);
      line(context, colour("--quiet"), x, bottom, x, bottom + 4);
      context.fillStyle = colour("--quiet");
      const text = `${Number((count * step).toFixed(1))} s`;
      if (x + 3 + context.measureText(text).width < row.left + row.width) {
        context.fillText(text, x + 3, bottom + AXIS_PIXELS - 1);
      }
    }
  }
}

/** @param {CanvasRenderingContext2D} context @param {string} ink @param {...number} ends */
function line(context, ink, ...[x, y, right, bottom]) {
  context.strokeStyle = ink;
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(right, bottom);
  context.stroke();
}
