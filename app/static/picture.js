/** A picture that one can listen to, zoom, scroll, read and choose a part of. It is made from the page's template. */

import { Drawing } from "./drawing.js";
import { Player } from "./player.js";
import { Selection } from "./selection.js";
import { Timeline } from "./timeline.js";
import { Transport } from "./transport.js";

const DRAG_PIXELS = 6; // less is a click
const ZOOM = 1.6;

/** @typedef {import("./selection.js").Range} Range */

export class Picture {
  timeline = new Timeline();
  player = new Player();
  /** Called when a person moves the handles; `done` when they let go. @type {(range: Range, done: boolean) => void} */
  chosen = () => {};
  #redraw = () => this.drawing.changed();

  /**
   * @param {HTMLElement} place empty; it is filled
   * @param {string} prefix of the ids
   * @param {string} subject of the handles' names
   */
  constructor(place, prefix, subject) {
    const template = /** @type {HTMLTemplateElement} */ (document.getElementById("picture-template"));
    place.append(template.content.cloneNode(true));
    const part = (/** @type {string} */ name) => {
      const element = /** @type {HTMLElement} */ (place.querySelector(`[data-part="${name}"]`));
      element.id = prefix + name;
      return element;
    };
    this.place = place;
    this.plot = part("plot");
    const slider = part("timeline");
    slider.setAttribute("aria-describedby", part("legend").id);
    this.scroller = /** @type {HTMLInputElement} */ (part("scroll"));
    this.drawing = new Drawing(/** @type {HTMLCanvasElement} */ (part("canvas")), this.timeline);
    const [from, to] = [part("handle-from"), part("handle-to")];
    from.ariaLabel = `${subject} start`;
    to.ariaLabel = `${subject} end`;
    this.selection = new Selection(this.plot, from, to, this.timeline, (done) => {
      this.#redrawn();
      if (this.selection.range) this.chosen(this.selection.range, done);
    });
    const button = /** @type {HTMLButtonElement} */ (part("play"));
    const elements = { slider, playhead: part("playhead"), button, readout: part("readout") };
    this.transport = new Transport(elements, this.player, this.timeline, (seconds) => this.#follow(seconds));
    this.buttons = /** @type {HTMLButtonElement[]} */ ([part("zoom-in"), part("zoom-out"), part("zoom-whole")]);
    [1 / ZOOM, ZOOM, Infinity].forEach((factor, index) => {
      this.buttons[index].addEventListener("click", () => this.#zoom(factor));
    });
    this.scroller.addEventListener("input", () => this.#scroll(Number(this.scroller.value)));
    this.#listen(slider);
  }

  /** @param {HTMLElement} slider */
  #listen(slider) {
    const { selection, transport } = this;
    let start = 0;
    let dragging = false;
    slider.addEventListener("pointerdown", (event) => {
      start = event.clientX;
      dragging = false;
      slider.setPointerCapture(event.pointerId);
    });
    slider.addEventListener("pointermove", (event) => {
      transport.read(selection.pointed(event));
      if (!slider.hasPointerCapture(event.pointerId)) return;
      dragging ||= Math.abs(event.clientX - start) > DRAG_PIXELS && selection.range !== null;
      if (dragging) selection.draw(selection.pointed(new MouseEvent("", { clientX: start })), selection.pointed(event));
    });
    slider.addEventListener("pointerup", (event) => {
      if (dragging) return selection.moved(true);
      transport.seek(selection.pointed(event));
      transport.read(selection.pointed(event)); // a finger does not hover
    });
    slider.addEventListener("pointerleave", () => transport.read(null));
    slider.addEventListener("keydown", (event) => {
      if (event.key === "+" || event.key === "=") this.#zoom(1 / ZOOM);
      if (event.key === "-") this.#zoom(ZOOM);
    });
    this.plot.addEventListener("wheel", (event) => {
      const { timeline } = this;
      const across = event.shiftKey ? event.deltaY : event.deltaX;
      if (event.ctrlKey) this.#zoom(event.deltaY > 0 ? ZOOM : 1 / ZOOM, selection.pointed(event));
      else if (across && timeline.zoomed) this.#scroll(timeline.from + (across / 1000) * (timeline.to - timeline.from));
      else return;
      event.preventDefault();
    }, { passive: false });
  }

  /** Another sound is shown: the caller fills timeline and player, and then calls `changed`. */
  clear() {
    this.player.clear();
    this.transport.reset();
  }

  /** @param {number} [start] where the sound begins on the axis */
  changed(start) {
    const { timeline } = this;
    this.place.hidden = !timeline.seconds;
    for (const { part } of timeline.tracks) part.mel.listeners.add(this.#redraw);
    this.#redrawn();
    this.transport.changed(start);
    this.selection.show();
    const [nearer, farther, whole] = this.buttons;
    nearer.disabled = timeline.to - timeline.from <= 0.5;
    farther.disabled = whole.disabled = !timeline.zoomed;
    this.scroller.hidden = !timeline.zoomed;
    this.scroller.max = String(timeline.seconds - (timeline.to - timeline.from));
    this.scroller.value = String(timeline.from);
    this.scroller.ariaValueText = `${timeline.from.toFixed(1)} to ${timeline.to.toFixed(1)} seconds`;
  }

  #redrawn() {
    this.drawing.chosen = this.selection.range;
    this.drawing.changed();
  }

  /** @param {number} factor @param {number} [centre] seconds */
  #zoom(factor, centre) {
    const { timeline, selection } = this;
    const { from, to } = selection.range ?? { from: 0, to: timeline.seconds };
    if (factor === Infinity) timeline.scroll(0, timeline.seconds);
    else timeline.zoom(factor, centre ?? Math.max(timeline.from, Math.min((from + to) / 2, timeline.to)));
    this.changed();
  }

  /** @param {number} from seconds */
  #scroll(from) {
    this.timeline.scroll(from);
    this.changed();
  }

  /** Turns the page when the sound leaves the view. @param {number} seconds */
  #follow(seconds) {
    const { from, to, zoomed } = this.timeline;
    if (zoomed && (seconds > to || seconds < from)) this.#scroll(seconds);
  }
}
