/** Runs in the browser's audio thread: cuts a microphone's sound into pieces of 20 ms, PCM s16le in one channel. */

const PIECE_SAMPLES = Math.round(sampleRate / 50);

class Capture extends AudioWorkletProcessor {
  #piece = new Int16Array(PIECE_SAMPLES);
  #count = 0;

  /** @param {Float32Array[][]} inputs of the first, the first channel */
  process([channels]) {
    for (const sample of channels[0] ?? []) {
      this.#piece[this.#count++] = 32767 * Math.max(-1, Math.min(1, sample));
      if (this.#count < PIECE_SAMPLES) continue;
      this.port.postMessage(this.#piece.buffer, [this.#piece.buffer]);
      this.#piece = new Int16Array(PIECE_SAMPLES);
      this.#count = 0;
    }
    return true;
  }
}

registerProcessor("capture", Capture);
