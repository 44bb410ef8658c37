/** The rows of a picture, each in a box of its own: waveform, log-mel spectrogram, log-likelihoods. */

import { BANDS } from "./mel.js";
import { FRAME_RATE_HZ } from "./timeline.js";

export const LOWEST_NATS = -10; // the strip's bottom
export const CHANCE_NATS = -Math.log(1024); // of one token drawn among all
const QUIETEST = 0.05; // of full scale: what is below it is drawn as quiet as it is
const SHADES = [[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]]; // magma, roughly

/**
 * @typedef {import("./timeline.js").Track} Track
 * @typedef {{left: number, top: number, width: number, height: number}} Box
 * @typedef {{from: number, to: number}} View seconds
 * @typedef {(name: string) => string} Colour of the style sheet
 */

/** Red, green and blue of the levels 0 to 255. */
const PALETTE = Array.from({ length: 256 }, (_, level) => {
  const at = (level / 255) * (SHADES.length - 1);
  const below = Math.min(Math.floor(at), SHADES.length - 2);
  return SHADES[below].map((value, index) => value + (SHADES[below + 1][index] - value) * (at - below));
});

/**
 * Bars of at least a pixel: one for each frame, or for several where frames are narrower than that.
 * @param {number} start seconds at which the frames begin
 * @param {number} end seconds at which what is shown of them ends
 * @param {View} view
 * @param {Box} box
 * @returns {Generator<{x: number, wide: number, first: number, last: number}>} frames `first` to before `last`
 */
function* bars(start, end, view, box) {
  const pixels = box.width / (view.to - view.from) / FRAME_RATE_HZ; // of a frame
  const each = Math.max(1, Math.ceil(1 / pixels));
  const seen = Math.max(0, Math.floor((view.from - start) * FRAME_RATE_HZ));
  const stop = Math.ceil((Math.min(end, view.to) - start) * FRAME_RATE_HZ - 1e-3);
  for (let first = seen - (seen % each); first < stop; first += each) {
    const last = Math.min(first + each, stop);
    const x = box.left + ((start - view.from) * FRAME_RATE_HZ + first) * pixels;
    const visible = Math.max(x, box.left);
    const right = Math.min(x + (last - first) * pixels, box.left + box.width);
    yield { x: visible, wide: Math.max(1, right - visible - (pixels > 3 ? 1 : 0)), first, last };
  }
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Track[]} tracks
 * @param {View} view
 * @param {Box} box
 * @param {Colour} colour
 */
export function waveform(context, tracks, view, box, colour) {
  const loudest = Math.max(QUIETEST, ...tracks.map(({ part }) => part.peak)); // a quiet clip fills the row, too
  const middle = box.height / 2;
  for (const { part, start, end, paint } of tracks) {
    context.fillStyle = colour(paint);
    for (const { x, wide, first, last } of bars(start, Math.min(end, start + part.seconds), view, box)) {
      const low = Math.min(...part.low.slice(first, last)) / loudest;
      const high = Math.max(...part.high.slice(first, last)) / loudest;
      const tall = Math.max(2, middle * (high - low)); // silence is a line
      if (high >= low) context.fillRect(x, box.top + middle - (middle * (high + low)) / 2 - tall / 2, wide, tall);
    }
  }
}

/** @param {CanvasRenderingContext2D} context @param {Track[]} tracks @param {View} view @param {Box} box */
export function spectrogram(context, tracks, view, box) {
  const width = Math.max(1, Math.round(box.width));
  const picture = new ImageData(width, BANDS);
  const each = (view.to - view.from) / width;
  for (let x = 0; x < width; x++) {
    const seconds = view.from + x * each;
    const track = tracks.findLast(({ start }) => seconds + each > start);
    if (!track || seconds >= track.end) continue;
    const first = Math.max(0, Math.floor((seconds - track.start) * FRAME_RATE_HZ));
    if (first >= track.part.mel.frames) continue;
    const last = Math.max(first + 1, Math.floor((seconds + each - track.start) * FRAME_RATE_HZ));
    for (let band = 0; band < BANDS; band++) {
      const shade = PALETTE[track.part.mel.level(first, last, band)];
      const at = 4 * ((BANDS - 1 - band) * width + x);
      picture.data.set(shade, at);
      picture.data[at + 3] = 255;
    }
  }
  const small = new OffscreenCanvas(width, BANDS);
  small.getContext("2d")?.putImageData(picture, 0, 0);
  context.drawImage(small, box.left, box.top, box.width, box.height);
}

/**
 * Bars that hang from 0, the likeliest, as far as a token was unlikely.
 * @param {CanvasRenderingContext2D} context
 * @param {Track[]} tracks
 * @param {View} view
 * @param {Box} box
 * @param {Colour} colour
 */
export function likelihoodStrip(context, tracks, view, box, colour) {
  for (const { likelihoods, end, paint } of tracks) {
    const { start, logprobs } = likelihoods;
    context.fillStyle = colour(paint);
    for (const { x, wide, first, last } of bars(start, end, view, box)) {
      const known = logprobs.slice(first, last);
      if (!known.length) continue;
      const nats = known.reduce((sum, value) => sum + value, 0) / known.length;
      context.fillRect(x, box.top, wide, Math.max(2, Math.min(1, nats / LOWEST_NATS) * box.height));
    }
  }
}

/**
 * A small picture without axes: spectrogram and strip.
 * @param {HTMLCanvasElement} canvas
 * @param {Track} track
 */
export function thumbnail(canvas, track) {
  const context = fitted(canvas);
  const { clientWidth: width, clientHeight: tall } = canvas;
  if (!context || !width || track.end <= track.start) return;
  const view = { from: track.start, to: track.end };
  const style = getComputedStyle(canvas);
  spectrogram(context, [track], view, { left: 0, top: 0, width, height: tall / 2 - 1 });
  const strip = { left: 0, top: tall / 2 + 1, width, height: tall / 2 - 1 };
  likelihoodStrip(context, [track], view, strip, (name) => style.getPropertyValue(name).trim());
}

/**
 * @param {HTMLCanvasElement} canvas
 * @returns {CanvasRenderingContext2D | null} empty, in the units of the style sheet, as sharp as the screen
 */
export function fitted(canvas) {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * scale);
  canvas.height = Math.round(canvas.clientHeight * scale);
  const context = canvas.getContext("2d");
  context?.scale(scale, scale);
  return context;
}
