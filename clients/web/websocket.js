/** The link over a WebSocket: JPEG or H.264 frames drawn on a canvas, control messages as JSON text. */

/** @import { ClientMessage, Link, LinkEvents, Session } from "./types.d.ts" */

import { decodeJpeg, encodings, H264Decoder } from "./decoders.js";
import { streamAddress } from "./session.js";

const OPEN_TIMEOUT_MS = 8_000;
const PROTOCOL_VERSION = 1;

/** Before the picture: "SG", version u8, kind u8, generation u32, frame u64, pts_us i64; little-endian. */
const HEADER_BYTES = 24;
const MAGIC = 0x4753; // "SG"
const KIND_JPEG = 1;
const KIND_H264_KEY = 2;
const KIND_H264_DELTA = 3;

/**
 * @param {Session} session
 * @param {HTMLCanvasElement} canvas shows the picture
 * @param {LinkEvents} events
 * @param {string | null} encoding wanted before the others, "h264" or "jpeg"
 * @returns {Promise<Link>} once the socket is open
 */
export async function openWebSocket(session, canvas, events, encoding) {
  const { width, height } = session.student;
  const video = await encodings(width * height, encoding);
  const socket = new WebSocket(streamAddress(session));
  socket.binaryType = "arraybuffer";
  const counted = { bytes: 0 };
  let closed = false;
  /** @type {(error: Error) => void} */
  let lose = () => {};

  /** @type {Promise<Error>} */
  const lost = new Promise((resolve) => (lose = (error) => !closed && resolve(error)));
  const painter = new Painter(canvas, events, (error) => lose(error));
  socket.onclose = ({ code, reason }) => {
    painter.stop();
    lose(new Error(reason || `the server closed the WebSocket (${code})`));
  };
  const close = () => {
    closed = true;
    painter.stop();
    socket.close(1000);
  };

  socket.onmessage = ({ data }) => {
    counted.bytes += typeof data === "string" ? data.length : data.byteLength;
    if (typeof data === "string") events.message(JSON.parse(data));
    else painter.decode(data);
  };

  try {
    await new Promise((resolve, reject) => {
      socket.onopen = resolve;
      lost.then(reject);
      setTimeout(() => reject(new Error("the WebSocket did not open in time")), OPEN_TIMEOUT_MS);
    });
  } catch (error) {
    close();
    throw error;
  }
  /** @type {ClientMessage} */
  const hello = { type: "hello", version: PROTOCOL_VERSION, token: session.token, video };
  socket.send(JSON.stringify(hello));

  return {
    transport: "websocket",
    lost,
    send: (text) => {
      if (socket.readyState === WebSocket.OPEN) socket.send(text);
    },
    sample: async () => ({ ...painter.counts(), bytes: counted.bytes }),
    close,
  };
}

/** Decodes frames as they come and draws the newest at the browser's next picture. */
class Painter {
  #canvas;
  #context;
  #events;
  #onfailed;
  /** @type {H264Decoder | null} */ #h264 = null;
  /** @type {{ picture: ImageBitmap | VideoFrame, frame: number, ptsUs: number } | null} */ #next = null;
  #generation = 0;
  /** Time of the newest picture; decoding may overtake. */
  #newestUs = -1;
  #stopped = false;
  #count = 0;
  #freezes = new Freezes();

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {LinkEvents} events
   * @param {(error: Error) => void} onfailed frames in this encoding cannot be decoded
   */
  constructor(canvas, events, onfailed) {
    this.#canvas = canvas;
    this.#context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
    this.#events = events;
    this.#onfailed = onfailed;
  }

  /** @param {ArrayBuffer} message */
  async decode(message) {
    const header = new DataView(message, 0, HEADER_BYTES);
    if (header.getUint16(0, true) !== MAGIC || header.getUint8(2) !== PROTOCOL_VERSION) return;
    const generation = header.getUint32(4, true);
    const ptsUs = Number(header.getBigInt64(16, true));
    this.#generation = Math.max(this.#generation, generation);
    const picture = await this.#decoded(header.getUint8(3), new Uint8Array(message, HEADER_BYTES), ptsUs);
    if (!picture) return;
    this.#count += 1;
    if (this.#stopped || ptsUs < this.#newestUs || generation < this.#generation) {
      picture.close();
      return;
    }
    this.#newestUs = ptsUs;
    if (this.#next) this.#next.picture.close();
    else requestAnimationFrame(() => this.#draw());
    this.#next = { picture, frame: Number(header.getBigUint64(8, true)), ptsUs };
  }

  /**
   * @param {number} kind
   * @param {Uint8Array<ArrayBuffer>} data
   * @param {number} ptsUs
   * @returns {Promise<ImageBitmap | VideoFrame | null>}
   */
  async #decoded(kind, data, ptsUs) {
    if (kind === KIND_JPEG) return decodeJpeg(data);
    if (kind !== KIND_H264_KEY && kind !== KIND_H264_DELTA) return null;
    this.#h264 ??= new H264Decoder(this.#onfailed);
    return this.#h264.decode(data, kind === KIND_H264_KEY, ptsUs);
  }

  #draw() {
    if (!this.#next) return; // stopped
    const { picture, frame, ptsUs } = this.#next;
    this.#next = null;
    const [width, height] = "width" in picture ? [picture.width, picture.height] : [picture.displayWidth, picture.displayHeight];
    if (this.#canvas.width !== width) this.#canvas.width = width;
    if (this.#canvas.height !== height) this.#canvas.height = height;
    this.#context.drawImage(picture, 0, 0);
    picture.close();
    const at = performance.now();
    this.#freezes.shown(at);
    this.#events.shown({ mark: frame, at, ptsMs: ptsUs / 1000 });
  }

  counts() {
    return {
      framesDecoded: this.#count,
      freezes: this.#freezes.count,
      freezeSeconds: this.#freezes.seconds,
    };
  }

  stop() {
    this.#stopped = true;
    this.#h264?.close();
    this.#next?.picture.close();
    this.#next = null;
  }
}

/** Freezes as WebRTC's getStats counts them: a gap above max(3 mean gaps, mean gap + 150 ms) over the last 30 frames. */
class Freezes {
  count = 0;
  seconds = 0;
  /** @type {number[]} */ #gaps = [];
  #last = 0;

  /** @param {number} at */
  shown(at) {
    const gap = at - this.#last;
    if (this.#last && this.#gaps.length >= 5) {
      const mean = this.#gaps.reduce((sum, each) => sum + each, 0) / this.#gaps.length;
      if (gap > Math.max(3 * mean, mean + 150)) {
        this.count += 1;
        this.seconds += gap / 1000;
      }
    }
    if (this.#last) this.#gaps = [...this.#gaps, gap].slice(-30);
    this.#last = at;
  }
}
