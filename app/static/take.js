/** One continuation, from the request to its last sample: it feeds the player and the timeline as it comes. */

import { toFloat } from "./wav.js";
import { Part } from "./timeline.js";

const LEAD_IN_SECONDS = 3; // of the clip are heard before its continuation: enough to know where one is

/**
 * @typedef {import("./api.js").Api} Api
 * @typedef {import("./clip.js").Clip} Clip
 * @typedef {import("./player.js").Player} Player
 * @typedef {import("./timeline.js").Timeline} Timeline
 */

export class Take {
  /** @type {Int16Array[]} the sound, as it is downloaded */
  pieces = [];
  seed = "";
  /** @type {any} the figures of `audio.done`; null until it has come */
  figures = null;
  startSeconds = 0; // where on the timeline the sound begins
  #stopper = new AbortController();

  /**
   * @param {Api} api
   * @param {Clip} clip
   * @param {Record<string, string>} fields of POST /continue
   */
  constructor(api, clip, fields) {
    this.api = api;
    this.clip = clip;
    this.fields = fields;
  }

  /** Ends the request, and thereby the server's work; what came is kept. */
  stop() {
    this.#stopper.abort();
  }

  get stopped() {
    return this.#stopper.signal.aborted;
  }

  /**
   * @param {Player} player
   * @param {Timeline} timeline
   * @param {() => void} changed called whenever there is more
   * @returns {Promise<void>} when all has come
   * @throws {import("./api.js").ApiError} or, when it was stopped, an AbortError
   */
  async run(player, timeline, changed) {
    const { signal } = this.#stopper;
    const withClip = this.fields.include_prompt === "true";
    player.clear();
    try {
      for await (const event of this.api.continuation(this.clip, this.fields, signal)) {
        if (event.kind === "started") {
          this.seed = event.seed;
          timeline.begin(event.promptTokens, Number(this.fields.seconds));
          if (withClip) timeline.clip = new Part(); // drawn from what the server sends: the axis is then its own
          this.startSeconds = withClip ? 0 : timeline.clipSeconds;
        } else if (event.kind === "piece") {
          const samples = toFloat(event.samples);
          this.pieces.push(event.samples);
          (event.tokens.length ? timeline.made : timeline.clip).add(samples);
          timeline.made.know(event.tokens, event.logprobs);
          player.push(samples);
          if (this.pieces.length === 1) player.play(timeline.clipSeconds - LEAD_IN_SECONDS - this.startSeconds);
        } else {
          this.figures = event.figures;
        }
        changed();
      }
    } finally {
      player.end();
      timeline.end();
      changed();
    }
    await this.#score(timeline, changed); // not before: it would delay the sound, and take a second place
  }

  /**
   * The likelihoods of the clip's own tokens, which /continue does not send.
   * @param {Timeline} timeline
   * @param {() => void} changed
   */
  async #score(timeline, changed) {
    const { clip } = timeline;
    try {
      const { codes, logprobs } = await this.api.score(this.clip, this.#stopper.signal);
      clip.know(codes, logprobs);
      changed();
    } catch {
      // A busy server, most likely. The strip begins with the continuation then; nothing else is missing.
    }
  }
}
