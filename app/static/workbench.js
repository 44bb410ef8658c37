/** A clip, the part of it that is the prompt, and the takes that go on from it: what is shown and what is heard. */

import { promptOf } from "./clip.js";
import { Picture } from "./picture.js";
import { cutTimes, input } from "./settings.js";
import { Takes } from "./takes.js";
import { Part } from "./timeline.js";
import { byId, inSeconds, say, showError, showFigures } from "./view.js";
import { RATE_HZ, toFloat } from "./wav.js";

const LEAD_IN_SECONDS = 3; // of the clip are heard before its continuation: enough to know where one is

/**
 * @typedef {import("./take.js").Take} Take
 * @typedef {import("./clip.js").Clip} Clip
 * @typedef {import("./clip.js").Prompt} Prompt
 */

export class Workbench {
  picture = new Picture(byId("picture", HTMLElement), "", "Prompt");
  /** @type {Clip | null} */ clip = null;
  /** @type {Take | null} null: the clip by itself */ shown = null;
  /** @type {Take | null} */ running = null;
  longestSeconds = Infinity; // of a prompt
  #part = new Part();
  /** @type {Map<string, Prompt>} */ #prompts = new Map();

  /** @param {HTMLFormElement} form whose fields “from” and “to” say which part is the prompt */
  constructor(form) {
    this.form = form;
    this.takes = new Takes(byId("takes", HTMLElement), {
      show: (take, heard) => this.#hear(take, heard),
      remove: (take) => this.show(take === this.shown ? null : this.shown),
    });
    this.picture.transport.flipped = () => this.update();
    this.picture.chosen = ({ from, to }, done) => {
      this.choose(from, to);
      if (done && !this.running) this.shown ? this.show(null) : this.#reload();
    };
  }

  get seconds() {
    return (this.clip?.samples?.length ?? 0) / RATE_HZ;
  }

  /** @param {Clip} clip the takes of the last one go */
  open(clip) {
    this.clip = clip;
    this.#prompts.clear();
    this.takes.clear();
    this.#part = new Part();
    if (clip.samples) this.#part.add(clip.samples);
    this.#part.mel.end();
    this.picture.selection.longest = this.longestSeconds;
    this.picture.selection.set(clip.samples ? { from: 0, to: this.seconds } : null, this.seconds);
    this.picture.timeline.open(null);
    this.choose(this.seconds - this.longestSeconds, Infinity); // it goes on where the clip ends
    this.show(null);
  }

  /** @param {number} from seconds @param {number} to */
  choose(from, to) {
    const text = (/** @type {number} */ seconds) => String(Number(seconds.toFixed(2)));
    input(this.form, "from").value = from > 0 ? text(Math.ceil(100 * from - 0.01) / 100) : "";
    input(this.form, "to").value = to < (this.seconds || Infinity) - 0.005 ? text(to) : "";
    this.typed();
  }

  /** The fields have changed: the handles stand where they say. */
  typed() {
    const [from, to] = cutTimes(this.form);
    const range = { from: Math.min(from, this.seconds), to: Math.min(to, this.seconds) };
    if (!this.clip?.samples) return;
    this.picture.selection.set(this.running ? null : range);
    const length = inSeconds(Math.max(0, range.to - range.from));
    if (!this.running) say(`Prompt: ${range.from.toFixed(2)} s to ${range.to.toFixed(2)} s, ${length}.`);
  }

  /** @returns {Prompt | null} null after an error that was shown */
  prompt() {
    if (!this.clip) return null;
    const [from, to] = cutTimes(this.form);
    const key = `${from} ${to}`;
    try {
      const prompt = this.#prompts.get(key) ?? promptOf(this.clip, from, to);
      this.#prompts.set(key, prompt);
      return prompt;
    } catch (error) {
      showError(error instanceof Error ? error.message : String(error));
      return null;
    }
  }

  /** @param {Take | null} take null: the clip by itself */
  show(take) {
    this.shown = take;
    if (take) this.choose(take.prompt.from, take.prompt.to);
    this.#reload();
    showFigures(take);
  }

  /** What is shown becomes what is heard and drawn. */
  #reload() {
    const { picture, shown } = this;
    picture.clear();
    if (shown) for (const piece of shown.pieces) picture.player.push(toFloat(piece));
    const { range } = picture.selection;
    const samples = this.clip?.samples;
    if (!shown && range && samples) picture.player.push(samples.slice(range.from * RATE_HZ, range.to * RATE_HZ));
    if (!shown || shown !== this.running) picture.player.end();
    this.update();
  }

  /** Draws what is known by now. */
  update() {
    const { picture, shown, clip } = this;
    const { timeline, selection } = picture;
    if (shown) {
      const { likelihoods, prompt, made, expectedSeconds, heard } = shown;
      const here = clip?.samples ? { part: this.#part, start: 0 } : { part: heard, start: prompt.from };
      const before = { ...here, end: likelihoods.start, likelihoods: prompt.likelihoods };
      timeline.show(before, made, likelihoods, expectedSeconds);
    } else {
      const [from, to] = cutTimes(this.form);
      timeline.open(clip?.samples ? this.#part : null, this.#prompts.get(`${from} ${to}`)?.likelihoods);
    }
    selection.seconds = this.seconds;
    picture.changed(shown?.start ?? selection.range?.from ?? 0);
    this.takes.update(shown, picture.player.playing, this.running !== null);
  }

  /** It is heard from shortly before the continuation on. @param {Take} take */
  listen(take) {
    this.picture.player.play(take.likelihoods.start - LEAD_IN_SECONDS - take.start);
  }

  /** @param {Take} take @param {boolean} heard */
  #hear(take, heard) {
    showError("");
    const { transport } = this.picture;
    if (take !== this.shown) this.show(take);
    else if (heard) return transport.toggle();
    if (heard) this.listen(take);
    this.update();
  }
}
