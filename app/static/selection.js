/** A part of a timeline, between two handles: dragged by pointer, moved by keys. */

/**
 * @typedef {import("./timeline.js").Timeline} Timeline
 * @typedef {{from: number, to: number}} Range seconds
 */

const STEPS_SECONDS = new Map([
  ["ArrowLeft", -0.1], ["ArrowDown", -0.1], ["ArrowRight", 0.1], ["ArrowUp", 0.1],
  ["PageDown", -1], ["PageUp", 1],
]);
const SHORTEST_SECONDS = 0.1;

export class Selection {
  /** @type {Range | null} null: there is nothing to choose from */
  range = null;
  seconds = 0; // of what the range is a part
  longest = Infinity; // seconds that may be chosen

  /**
   * @param {HTMLElement} plot in which the handles stand
   * @param {HTMLElement} first
   * @param {HTMLElement} last
   * @param {Timeline} timeline
   * @param {(done: boolean) => void} moved called while it moves, and when it has
   */
  constructor(plot, first, last, timeline, moved) {
    this.handles = /** @type {const} */ ([[first, "from"], [last, "to"]]);
    this.plot = plot;
    this.timeline = timeline;
    this.moved = moved;
    for (const [handle, end] of this.handles) {
      handle.addEventListener("keydown", (event) => this.#key(event, end));
      handle.addEventListener("pointerdown", (event) => handle.setPointerCapture(event.pointerId));
      handle.addEventListener("pointermove", (event) => {
        if (handle.hasPointerCapture(event.pointerId)) this.#move(end, this.pointed(event), false);
      });
      handle.addEventListener("lostpointercapture", () => this.moved(true));
    }
  }

  /** @param {MouseEvent} event @returns {number} seconds at the pointer */
  pointed(event) {
    const box = this.plot.getBoundingClientRect();
    const { from, to } = this.timeline;
    return from + ((event.clientX - box.left) / box.width) * (to - from);
  }

  /** @param {Range | null} range @param {number} [seconds] */
  set(range, seconds = this.seconds) {
    this.range = range;
    this.seconds = seconds;
    this.show();
  }

  /**
   * From where a finger went down to where it is.
   * @param {number} start
   * @param {number} end
   */
  draw(start, end) {
    const [from, to] = [Math.max(0, Math.min(start, end)), Math.min(this.seconds, Math.max(start, end))];
    if (to - from < SHORTEST_SECONDS) return;
    const kept = Math.min(to - from, this.longest);
    this.range = end > start ? { from, to: from + kept } : { from: to - kept, to };
    this.show();
    this.moved(false);
  }

  /** @param {"from" | "to"} end @param {number} seconds @param {boolean} done */
  #move(end, seconds, done) {
    if (!this.range) return;
    let { from, to } = this.range;
    const rounded = Math.round(100 * Math.max(0, Math.min(seconds, this.seconds))) / 100;
    if (end === "from") {
      from = Math.min(rounded, Math.max(0, to - SHORTEST_SECONDS));
      to = Math.min(to, from + this.longest);
    } else {
      to = Math.min(this.seconds, Math.max(rounded, from + SHORTEST_SECONDS));
      from = Math.max(from, to - this.longest);
    }
    this.range = { from, to };
    this.show();
    this.moved(done);
  }

  /** @param {KeyboardEvent} event @param {"from" | "to"} end */
  #key(event, end) {
    if (!this.range || event.altKey || event.ctrlKey || event.metaKey) return;
    const step = (STEPS_SECONDS.get(event.key) ?? 0) * (event.shiftKey ? 10 : 1);
    if (step) this.#move(end, this.range[end] + step, true);
    else if (event.key === "Home") this.#move(end, 0, true);
    else if (event.key === "End") this.#move(end, this.seconds, true);
    else return;
    event.preventDefault();
  }

  show() {
    const { range, timeline, seconds } = this;
    const share = (/** @type {number} */ at) => (at - timeline.from) / (timeline.to - timeline.from || 1);
    for (const [handle, end] of this.handles) {
      const at = range?.[end] ?? 0;
      handle.hidden = !range || share(at) < -0.001 || share(at) > 1.001;
      handle.style.left = `${100 * share(at)}%`;
      handle.ariaValueMin = "0";
      handle.ariaValueMax = seconds.toFixed(2);
      handle.ariaValueNow = at.toFixed(2);
      handle.ariaValueText = `${at.toFixed(2)} seconds`;
    }
  }
}
