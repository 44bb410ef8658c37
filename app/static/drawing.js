/** The picture of a timeline: the waveform and, beneath it on the same axis, how surprising each token was. */

const WORST_NATS = 9; // the strip's top; a draw among 1024 tokens at random would be 6.9
const AXIS_PIXELS = 18;
const STRIP_SHARE = 0.32;
const QUIETEST = 0.05; // of full scale: what is below it is drawn as quiet as it is
const TICKS_SECONDS = [0.1, 0.5, 1, 2, 5, 10, 20, 60, 300, 600];

/** @typedef {import("./timeline.js").Timeline} Timeline */

export class Drawing {
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
    const scale = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight - AXIS_PIXELS;
    canvas.width = Math.round(canvas.clientWidth * scale);
    canvas.height = Math.round(canvas.clientHeight * scale);
    const context = canvas.getContext("2d");
    if (!context || !width || !timeline.frames) return;
    context.scale(scale, scale);
    const style = getComputedStyle(canvas);
    const colour = (/** @type {string} */ name) => style.getPropertyValue(name).trim();
    const strip = height * STRIP_SHARE;
    const middle = (height - strip) / 2 - 2;
    this.#axis(context, width, height, colour("--quiet"), colour("--line"));
    const parts = /** @type {const} */ ([
      [timeline.clip, 0, timeline.clipFrames, colour("--clip")],
      [timeline.made, timeline.clipFrames, timeline.frames, colour("--made")],
    ]);
    const loudest = Math.max(QUIETEST, ...parts.map(([part]) => part.peak)); // a quiet clip fills the picture, too
    for (const [part, first, last, paint] of parts) {
      for (const { x, wide, from, to } of columns(first, last, timeline.frames, width)) {
        if (from < part.low.length) {
          const low = Math.min(...part.low.slice(from, to)) / loudest;
          const high = Math.max(...part.high.slice(from, to)) / loudest;
          context.fillStyle = paint;
          context.fillRect(x, middle * (1 - high), wide, Math.max(1, middle * (high - low)));
        }
        const known = part.logprobs.slice(from, to);
        if (!known.length) continue;
        const nats = -known.reduce((sum, value) => sum + value, 0) / known.length;
        const share = Math.min(1, nats / WORST_NATS);
        const tall = Math.max(2, share * strip);
        context.fillStyle = `hsl(${215 + 170 * share} 65% ${colour("--strip-lightness")})`;
        context.fillRect(x, height - tall, wide, tall);
      }
    }
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {number} width
   * @param {number} height
   * @param {string} ink
   * @param {string} line
   */
  #axis(context, width, height, ink, line) {
    const { seconds } = this.timeline;
    const step = TICKS_SECONDS.find((each) => (each / seconds) * width >= 48) ?? 3600;
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "bottom";
    for (let count = 0; count * step <= seconds; count++) {
      const x = ((count * step) / seconds) * width;
      context.fillStyle = line;
      context.fillRect(x, 0, 1, height);
      context.fillStyle = ink;
      if (x < width - 30) context.fillText(`${Number((count * step).toFixed(1))} s`, x + 3, height + AXIS_PIXELS);
    }
    context.fillStyle = line;
    context.fillRect(0, height, width, 1);
  }
}

/**
 * Bars of at least a pixel: one for each frame, or for several where frames are narrower than that.
 * @param {number} first frame
 * @param {number} last frame, not included
 * @param {number} frames of the whole axis
 * @param {number} width of the whole axis, pixels
 * @returns {Generator<{x: number, wide: number, from: number, to: number}>} `from` and `to` count from `first`
 */
function* columns(first, last, frames, width) {
  const each = Math.max(1, Math.ceil(frames / width));
  const pixels = width / frames;
  for (let from = 0; from < last - first; from += each) {
    const to = Math.min(from + each, last - first);
    yield { x: (first + from) * pixels, wide: Math.max(1, (to - from) * pixels - (pixels > 3 ? 1 : 0)), from, to };
  }
}
