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
 * @param {{message?: string, code?: string} | undefined} error of the server's envelope
 * @param {string} otherwise what is said without one
 * @returns {ApiError} its message as a sentence
 */
function refusal(error, otherwise) {
  const message = error?.message || otherwise;
  const ended = /[.!?]$/.test(message) ? message : `${message}.`;
  return new ApiError(ended[0].toUpperCase() + ended.slice(1), error?.code ?? "");
}

/**
 * @param {Response} answer of a status other than 200
 * @returns {Promise<ApiError>}
 */
async function refused(answer) {
  const body = await answer.json().catch(() => null); // a proxy in between may answer with a page
  const error = refusal(body?.error, `The server answered with status ${answer.status}`);
  const wait = answer.headers.get("retry-after");
  if (wait) error.message += ` Try again in ${wait} s.`;
  return error;
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
    if (!answer.ok) throw await refused(answer);
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
        if (name === "audio.error") throw refusal(data.error, "The server broke off");
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
