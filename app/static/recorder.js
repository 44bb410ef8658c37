/** The microphone: one recording at a time, in whatever format the browser writes. */

const FORMATS = ["audio/webm;codecs=opus", "audio/ogg;codecs=opus", "audio/mp4"];
const LATE_SECONDS = 1; // a recorder stops a little late

/** @returns {string} why this browser cannot record here; empty when it can */
export function whyNot() {
  if (!navigator.mediaDevices?.getUserMedia) {
    return window.isSecureContext
      ? "This browser offers no microphone: choose a file."
      : "Browsers lend the microphone only to pages from https:// or localhost. Choose a file, or open this page that way.";
  }
  return window.MediaRecorder ? "" : "This browser cannot record: choose a file.";
}

/**
 * @param {unknown} error what getUserMedia threw
 * @returns {string}
 */
export function inWords(error) {
  const name = error instanceof DOMException ? error.name : "";
  if (name === "NotAllowedError") return "The browser does not allow the microphone: allow it for this page, or choose a file.";
  if (name === "NotFoundError") return "There is no microphone. Choose a file.";
  if (name === "NotReadableError") return "The microphone is in use by something else.";
  return "The recording failed.";
}

export class Recorder {
  /** @type {MediaRecorder | null} */
  #recorder = null;

  get running() {
    return this.#recorder !== null;
  }

  /**
   * Records until `stop`, or nearly as long as a prompt may be.
   * @param {number} longest seconds
   * @param {(seconds: number, level: number) => void} progress the level: 0 to 1
   * @returns {Promise<File>}
   */
  async record(longest, progress) {
    // Speech filters off: the model hears what was played, music included.
    const raw = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    const stream = await navigator.mediaDevices.getUserMedia({ audio: raw });
    const meter = new Meter(stream);
    try {
      const recorder = new MediaRecorder(stream, { mimeType: FORMATS.find((type) => MediaRecorder.isTypeSupported(type)) });
      this.#recorder = recorder;
      /** @type {Blob[]} */
      const parts = [];
      recorder.ondataavailable = (event) => parts.push(event.data);
      const started = performance.now();
      const timer = setInterval(() => {
        const seconds = (performance.now() - started) / 1000;
        progress(seconds, meter.level());
        if (seconds >= longest - LATE_SECONDS) this.stop();
      }, 50);
      await new Promise((done, failed) => {
        recorder.onstop = done;
        recorder.onerror = failed;
        recorder.start();
      }).finally(() => clearInterval(timer));
      const type = recorder.mimeType.split(";")[0];
      return new File(parts, `recording.${type.split("/")[1]}`, { type });
    } finally {
      this.#recorder = null;
      meter.close();
      for (const track of stream.getTracks()) track.stop(); // the browser's sign of a microphone in use goes out
    }
  }

  stop() {
    if (this.#recorder?.state === "recording") this.#recorder.stop();
  }
}

/** How loud a stream is, so that a person sees that the microphone hears. */
class Meter {
  #context = new AudioContext();
  #analyser = this.#context.createAnalyser();
  #samples = new Float32Array(this.#analyser.fftSize);

  /** @param {MediaStream} stream */
  constructor(stream) {
    this.#context.createMediaStreamSource(stream).connect(this.#analyser);
  }

  /** @returns {number} 0: -60 dB or less, 1: full scale */
  level() {
    this.#analyser.getFloatTimeDomainData(this.#samples);
    const peak = this.#samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 1e-3);
    return Math.min(1, 1 + Math.log10(peak) / 3);
  }

  close() {
    void this.#context.close();
  }
}
