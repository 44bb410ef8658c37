/** A recording: what is shown while it is made, as a session tells, and its going on. */

import { bench, continueClip, openFile } from "./continuing.js";
import { Drawing } from "./drawing.js";
import { LiveSession } from "./live.js";
import { fields, mistake } from "./settings.js";
import { Part, Timeline } from "./timeline.js";
import { byId, inNats } from "./view.js";
import { RATE_HZ } from "./wav.js";

const AXIS_SECONDS = 5; // of the picture at first
const place = byId("heard", HTMLElement);
const told = byId("heard-told", HTMLElement);
const form = byId("settings", HTMLFormElement);

export class Hearing {
  #timeline = new Timeline();
  #drawing = new Drawing(byId("heard-canvas", HTMLCanvasElement), this.#timeline);
  #part = new Part();
  #rate = RATE_HZ;
  /** @type {LiveSession | null} */
  session = null;

  /** @param {() => string} key of the server's */
  constructor(key) {
    this.key = key;
  }

  /** @param {number} rate of what will be heard, Hz */
  begun(rate) {
    this.#rate = rate;
    this.#part = new Part();
    this.#part.mel.listeners.add(() => this.#drawing.changed());
    try {
      this.session = new LiveSession(this.key(), rate, () => this.#show());
    } catch {
      this.session = null; // a key of letters that no key has, or a browser that allows no WebSocket: it is uploaded
    }
    place.hidden = false;
    this.#show();
  }

  /** @param {Float32Array} samples */
  heard(samples) {
    this.session?.hear(samples);
    const step = this.#rate / RATE_HZ;
    const length = Math.floor(samples.length / step);
    this.#part.add(step === 1 ? samples : Float32Array.from({ length }, (_, at) => samples[Math.floor(at * step)]));
    this.#show();
  }

  #show() {
    const { session } = this;
    this.#timeline.listen(this.#part, session?.likelihoods, AXIS_SECONDS);
    this.#drawing.changed();
    const known = session?.likelihoods.tokens.length;
    told.textContent = session && known ? `Log-likelihood so far: ${inNats(session.likelihoods.mean)} per token` : "";
  }

  /** @returns {LiveSession | null} that has heard it, if there is one */
  ended() {
    const { session } = this;
    this.session = null;
    place.hidden = true;
    this.#part.mel.end();
    return session;
  }
}

/**
 * A recording goes on, at once where a session has heard it.
 * @param {File | null} file null: it failed
 * @param {LiveSession | null} session
 * @param {(error: unknown) => void} explain
 */
export async function goOn(file, session, explain) {
  const wrong = mistake(form, 0, Infinity);
  const heard = session?.commit(file && !wrong ? fields(form) : null);
  if (!file) return;
  await openFile(file, file.name);
  if (session && (await heard) && bench.clip?.samples) {
    session.clip = bench.clip.samples;
    const prompt = bench.prompt();
    prompt?.likelihoods.add(session.likelihoods.tokens, session.likelihoods.logprobs);
    await continueClip(explain, session);
  } else {
    session?.close();
    await continueClip(explain);
  }
}
