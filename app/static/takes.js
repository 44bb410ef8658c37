/** The continuations that are kept, as cards side by side. */

import { thumbnail } from "./rows.js";
import { inNats, inSeconds, make } from "./view.js";

export const MOST_TAKES = 4;

/**
 * @typedef {import("./take.js").Take} Take
 * @typedef {{take: Take, card: HTMLElement, show: HTMLElement, play: HTMLElement, told: HTMLElement, badge: HTMLElement,
 *   canvas: HTMLCanvasElement}} Entry
 */

export class Takes {
  /** @type {Entry[]} */
  #entries = [];
  #count = 0;

  /**
   * @param {HTMLElement} list
   * @param {object} on
   * @param {(take: Take, heard: boolean) => void} on.show
   * @param {(take: Take) => void} on.remove
   */
  constructor(list, on) {
    this.list = list;
    this.on = on;
    const draw = () => this.#entries.forEach((entry) => this.#draw(entry));
    new ResizeObserver(draw).observe(list);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  }

  get all() {
    return this.#entries.map(({ take }) => take);
  }

  /** @param {Take} take */
  add(take) {
    const title = `Take ${++this.#count}`;
    const card = make("li", "", { class: "take" });
    const show = make("button", title, { type: "button", class: "title" });
    const badge = make("span", "most likely", { class: "badge", hidden: "" });
    const play = make("button", "Play", { type: "button", "aria-label": `Play ${title.toLowerCase()}` });
    const remove = make("button", "Remove", { type: "button", "aria-label": `Remove ${title.toLowerCase()}` });
    const told = make("p", "", { class: "quiet" });
    const canvas = /** @type {HTMLCanvasElement} */ (make("canvas", "", { "aria-hidden": "true" }));
    const [head, row] = [make("div", "", { class: "take-head" }), make("div", "", { class: "row" })];
    head.append(show, badge);
    row.append(play, remove);
    card.append(head, canvas, told, row);
    show.addEventListener("click", () => this.on.show(take, false));
    play.addEventListener("click", () => this.on.show(take, true));
    remove.addEventListener("click", () => this.remove(take));
    this.list.append(card);
    const entry = { take, card, show, play, told, badge, canvas };
    this.#entries.push(entry);
    take.made.mel.listeners.add(() => this.#draw(entry));
  }

  /** @param {Take} take */
  remove(take) {
    this.#entries.find((entry) => entry.take === take)?.card.remove();
    this.#entries = this.#entries.filter((entry) => entry.take !== take);
    this.on.remove(take);
  }

  clear() {
    this.list.replaceChildren();
    this.#entries = [];
    this.#count = 0;
  }

  /** @param {Take | null} shown @param {boolean} playing @param {boolean} running */
  update(shown, playing, running) {
    const means = this.#entries.map(({ take }) => take.likelihoods.mean);
    const best = Math.max(...means.filter((mean) => Number.isFinite(mean)));
    this.list.hidden = !this.#entries.length;
    this.list.inert = running;
    this.#entries.forEach(({ take, card, show, play, told, badge }, index) => {
      const { likelihoods, made, seed } = take;
      card.classList.toggle("shown", take === shown);
      show.ariaPressed = String(take === shown);
      play.textContent = take === shown && playing ? "Pause" : "Play";
      badge.hidden = running || this.#entries.length < 2 || means[index] !== best;
      const mean = likelihoods.tokens.length ? `${inNats(likelihoods.mean)} per token` : "";
      told.replaceChildren(make("strong", mean), make("br"), `${inSeconds(made.seconds)}, seed ${seed}`);
    });
  }

  /** @param {Entry} entry */
  #draw({ take, canvas }) {
    const { made, likelihoods, expectedSeconds } = take;
    const { start } = likelihoods;
    thumbnail(canvas, { part: made, start, end: start + expectedSeconds, likelihoods, paint: "--made" });
  }
}
