/** The server: requests that carry the key, refusals as the messages of its envelope, the stream of a continuation. */

import { events } from "./events.js";
import { samplesFromBase64 } from "./wav.js";

/**
 * @typedef {{kind: "started", seed: string, promptTokens: number}} Started
 * @typedef {{kind: "piece", samples: Int16Array, tokens: number[], logprobs: number[]}} Piece
 *   320 samples a token; without tokens it is a part of the prompt
 * @typedef {{kind: "done", figures: any}} Done docs/api.md has the fields
 */

/** What the server refused, in its own words, or that it is not there. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {string} code
   */
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

const CUT = new ApiError("The connection to the server was cut.", "network");

/**
 * @param {Response} answer
 * @returns {Promise<ApiError>}
 */
async function refusal(answer) {
  const envelope = (await answer.json().catch(() => null))?.error; // a proxy in between may answer with a page
  const message = envelope?.message ?? `The server answered with status ${answer.status}.`;
  const wait = answer.headers.get("retry-after");
  const sentence = /[.!?]$/.test(message) ? message : `${message}.`;
  const first = sentence[0].toUpperCase() + sentence.slice(1);
  return new ApiError(wait ? `${first} Try again in ${wait} s.` : first, envelope?.code ?? "");
}

/** Fields that are sent beside the file. @typedef {Record<string, string>} Fields */

export class Api {
  key = "";

  /**
   * @param {string} path relative, so that a proxy may serve the page below a folder
   * @param {File | Blob} file
   * @param {string} name of the file
   * @param {Fields} fields
   * @param {AbortSignal} signal
   * @returns {Promise<Response>} of status 200
   * @throws {ApiError} or, when the signal fired, what `fetch` throws then
   */
  async #post(path, file, name, fields, signal) {
    if (/[^\x20-\x7e]/.test(this.key)) throw new ApiError("No key has such characters.", "invalid_api_key");
    const form = new FormData();
    for (const [field, value] of Object.entries(fields)) form.set(field, value);
    form.set("file", file, name);
    /** @type {Record<string, string>} */
    const headers = this.key ? { authorization: `Bearer ${this.key}` } : {};
    const answer = await fetch(path, { method: "POST", body: form, headers, signal }).catch((error) => {
      if (signal.aborted) throw error;
      throw new ApiError("The server does not answer, or did not take the whole file.", "network");
    });
    if (!answer.ok) throw await refusal(answer);
    return answer;
  }

  /**
   * The continuation while it is made; a `Started` first, a `Done` last.
   * @param {import("./clip.js").Clip} clip
   * @param {Fields} fields
   * @param {AbortSignal} signal ends the server's work as well
   * @returns {AsyncGenerator<Started | Piece | Done>}
   */
  async *continuation(clip, fields, signal) {
    const answer = await this.#post("continue", clip.file, clip.name, { ...fields, stream: "true" }, signal);
    const told = (/** @type {string} */ name) => answer.headers.get(`x-whispergpt-${name}`) ?? "";
    yield { kind: "started", seed: told("seed"), promptTokens: Number(told("prompt-tokens")) };
    if (!answer.body) throw CUT;
    try {
      for await (const { name, data } of events(answer.body)) {
        if (name === "audio.delta") yield { kind: "piece", ...data, samples: samplesFromBase64(data.audio) };
        if (name === "audio.error") throw new ApiError(data.error.message, data.error.code);
        if (name === "audio.done") return yield { kind: "done", figures: data };
      }
    } catch (error) {
      throw signal.aborted || error instanceof ApiError ? error : CUT;
    }
    throw CUT;
  }

  /**
   * The likelihood of each token of a clip.
   * @param {import("./clip.js").Clip} clip
   * @param {AbortSignal} signal
   * @returns {Promise<{logprobs: number[], codes: number[]}>}
   */
  async score(clip, signal) {
    const answer = await this.#post("score", clip.file, clip.name, { detail: "tokens" }, signal);
    return (await answer.json()).results[0];
  }
}
