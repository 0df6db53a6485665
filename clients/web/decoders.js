/** Pictures of binary frames: JPEG by the browser's own decoder, H.264 through WebCodecs. */

/** Constrained baseline, level 3.1, as the server says in its schema. Annex B: no description. */
const H264 = { codec: "avc1.42E01F", optimizeForLatency: true };
/**
 * From here on H.264 needs half of JPEG's bytes or less. Pictures of half this size are sharper as JPEG for the same bytes,
 * at a tenth of the cost to the server.
 */
const H264_FROM_PIXELS = 256 * 192;

/** Frames that may wait for the decoder; with more it leaves out the rest until the next key frame, some seconds at most. */
const MOST_WAITING = 8;

/** A decoder that has failed once is not tried again. */
let h264Failed = false;

/**
 * The encodings to ask the server for, the best one first.
 * @param {number} pixels of the student's frame
 * @param {string | null} wanted by the person, before all others
 * @returns {Promise<string[]>}
 */
export async function encodings(pixels, wanted) {
  const h264 = !h264Failed && window.isSecureContext && "VideoDecoder" in window && (await decodesH264());
  if (!h264) return ["jpeg"];
  return (wanted ? wanted === "h264" : pixels >= H264_FROM_PIXELS) ? ["h264", "jpeg"] : ["jpeg", "h264"];
}

async function decodesH264() {
  const { supported } = await VideoDecoder.isConfigSupported(H264).catch(() => ({ supported: false }));
  return supported ?? false;
}

/**
 * @param {Uint8Array<ArrayBuffer>} data
 * @returns {Promise<ImageBitmap | null>} null for a broken picture: the next one follows
 */
export function decodeJpeg(data) {
  return createImageBitmap(new Blob([data], { type: "image/jpeg" })).catch(() => null);
}

/** One link's decoder of H.264. */
export class H264Decoder {
  #decoder;
  #behind = false;
  #gave = false;
  /** Frames that are being decoded, by their time. @type {Map<number, (picture: VideoFrame | null) => void>} */ #waiting = new Map();

  /** @param {(error: Error) => void} onfailed nothing more will be decoded here */
  constructor(onfailed) {
    /** @param {Error} error */
    const fail = (error) => {
      h264Failed ||= error.name !== "QuotaExceededError"; // taken back by the browser, from a page that nobody sees
      this.close();
      onfailed(error);
    };
    /** @param {VideoFrame} picture */
    const output = (picture) => {
      this.#gave = true;
      this.#settle(picture.timestamp, picture);
    };
    this.#decoder = new VideoDecoder({ output, error: fail });
    this.#decoder.configure(H264);
  }

  /**
   * @param {Uint8Array<ArrayBuffer>} data
   * @param {boolean} key
   * @param {number} ptsUs
   * @returns {Promise<VideoFrame | null>} null when the decoder is behind, was closed or has failed
   */
  decode(data, key, ptsUs) {
    this.#behind = this.#decoder.decodeQueueSize > MOST_WAITING || (this.#behind && !key);
    if (this.#behind || this.#decoder.state !== "configured") return Promise.resolve(null);
    this.#decoder.decode(new EncodedVideoChunk({ type: key ? "key" : "delta", timestamp: ptsUs, data }));
    return new Promise((resolve) => this.#waiting.set(ptsUs, resolve));
  }

  close() {
    if (!this.#gave && this.#waiting.size > MOST_WAITING) h264Failed = true; // it took frames and said nothing
    if (this.#decoder.state !== "closed") this.#decoder.close();
    for (const ptsUs of this.#waiting.keys()) this.#settle(ptsUs, null);
  }

  /**
   * @param {number} ptsUs
   * @param {VideoFrame | null} picture
   */
  #settle(ptsUs, picture) {
    const resolve = this.#waiting.get(ptsUs);
    this.#waiting.delete(ptsUs);
    if (resolve) resolve(picture);
    else picture?.close();
  }
}
