/**
 * The link over a WebSocket: JPEG or H.264 frames drawn on a canvas, an avatar's sound both ways as PCM, control messages
 * as JSON text.
 */

/** @import { ClientMessage, Link, LinkEvents, Session, Voice } from "./types.d.ts" */

import { decodeJpeg, encodings, H264Decoder } from "./decoders.js";
import { Loudspeaker } from "./loudspeaker.js";
import { capture, microphoneHz } from "./microphone.js";
import { streamAddress } from "./session.js";

const OPEN_TIMEOUT_MS = 8_000;
const PROTOCOL_VERSION = 1;

/** Before picture or sound: "SG", version u8, kind u8, generation u32, frame u64, pts_us i64; little-endian. */
const HEADER_BYTES = 24;
const MAGIC = 0x4753; // "SG"
const KIND_JPEG = 1;
const KIND_H264_KEY = 2;
const KIND_H264_DELTA = 3;
const KIND_SOUND = 4;
/** Decoded pictures that may wait for their sound; decoders own few. */
const MOST_WAITING = 12;
/** A picture that is due before the next one is drawn is due now. */
const DRAW_EARLY_US = 8_000;

/** @typedef {{ kind: number, generation: number, frame: number, ptsUs: number, payload: Uint8Array<ArrayBuffer> }} Binary */

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
  const loudspeaker = session.student.speech ? new Loudspeaker() : null;
  /** @param {number} ptsUs */
  const due = (ptsUs) => !loudspeaker || loudspeaker.reached(ptsUs - DRAW_EARLY_US);
  const painter = new Painter(canvas, events, due, (error) => lose(error));
  const voice = loudspeaker && voiceOf(socket, loudspeaker);
  const stop = () => {
    painter.stop();
    loudspeaker?.close();
    voice?.speak(null);
  };
  socket.onclose = ({ code, reason }) => {
    if (closed) return; // late, over a network that was dead: what it would stop is the next link's
    stop();
    lose(new Error(reason || `the server closed the WebSocket (${code})`));
  };
  const close = () => {
    closed = true;
    stop();
    socket.close(1000);
  };

  socket.onmessage = ({ data }) => {
    counted.bytes += typeof data === "string" ? data.length : data.byteLength;
    if (typeof data === "string") return events.message(JSON.parse(data));
    const binary = unpack(data);
    if (binary?.kind !== KIND_SOUND) return binary && painter.decode(binary);
    const { buffer, byteOffset, byteLength } = binary.payload;
    loudspeaker?.push(binary, binary.ptsUs, new Int16Array(buffer, byteOffset, byteLength / 2));
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
  const hello = { type: "hello", version: PROTOCOL_VERSION, token: session.token, video, sound: voice !== null };
  if (voice) hello.microphone_hz = microphoneHz();
  socket.send(JSON.stringify(hello));

  return {
    transport: "websocket",
    lost,
    send: (text) => {
      if (socket.readyState === WebSocket.OPEN) socket.send(text);
    },
    sample: async () => ({ ...painter.counts(), bytes: counted.bytes }),
    close,
    voice,
  };
}

/**
 * @param {ArrayBuffer} message
 * @returns {Binary | null} null for what is not of this protocol
 */
function unpack(message) {
  const header = new DataView(message, 0, HEADER_BYTES);
  if (header.getUint16(0, true) !== MAGIC || header.getUint8(2) !== PROTOCOL_VERSION) return null;
  return {
    kind: header.getUint8(3),
    generation: header.getUint32(4, true),
    frame: Number(header.getBigUint64(8, true)),
    ptsUs: Number(header.getBigInt64(16, true)),
    payload: new Uint8Array(message, HEADER_BYTES),
  };
}

/**
 * @param {WebSocket} socket
 * @param {Loudspeaker} loudspeaker
 * @returns {Voice}
 */
function voiceOf(socket, loudspeaker) {
  /** @type {MediaStreamTrack | null} */
  let speaks = null;
  let stop = () => {};
  return {
    get level() {
      return loudspeaker.level;
    },
    speak: async (track) => {
      stop();
      stop = () => {};
      speaks = track;
      if (!track) return;
      const ended = await capture(track, (pcm) => socket.readyState === WebSocket.OPEN && socket.send(pcm));
      if (speaks === track) stop = ended;
      else ended(); // it was switched off meanwhile
    },
    hear: async (heard) => loudspeaker.hear(heard),
    hush: (after) => loudspeaker.hush(after),
  };
}

/** Decodes frames as they come and draws the newest that is due at the browser's next picture. */
class Painter {
  #canvas;
  #context;
  #events;
  #due;
  #onfailed;
  /** @type {H264Decoder | null} */ #h264 = null;
  /** Decoded, oldest first. @type {{ picture: ImageBitmap | VideoFrame, frame: number, ptsUs: number }[]} */ #waiting = [];
  #generation = 0;
  /** Time of the newest picture; decoding may overtake. */
  #newestUs = -1;
  #stopped = false;
  #count = 0;
  #freezes = new Freezes();

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {LinkEvents} events
   * @param {(ptsUs: number) => boolean} due whether a picture may be drawn
   * @param {(error: Error) => void} onfailed frames in this encoding cannot be decoded
   */
  constructor(canvas, events, due, onfailed) {
    this.#canvas = canvas;
    this.#context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
    this.#events = events;
    this.#due = due;
    this.#onfailed = onfailed;
  }

  /** @param {Binary} binary */
  async decode({ kind, generation, frame, ptsUs, payload }) {
    if (generation > this.#generation) this.#forget();
    this.#generation = Math.max(this.#generation, generation);
    const picture = await this.#decoded(kind, payload, ptsUs);
    if (!picture) return;
    this.#count += 1;
    if (this.#stopped || ptsUs < this.#newestUs || generation < this.#generation) {
      picture.close();
      return;
    }
    this.#newestUs = ptsUs;
    if (!this.#waiting.length) requestAnimationFrame(() => this.#draw());
    this.#waiting.push({ picture, frame, ptsUs });
    if (this.#waiting.length > MOST_WAITING) this.#waiting.shift()?.picture.close();
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
    let count = this.#waiting.length;
    while (count && !this.#due(this.#waiting[count - 1].ptsUs)) count -= 1;
    const due = this.#waiting.splice(0, count);
    if (this.#waiting.length) requestAnimationFrame(() => this.#draw());
    const newest = due.pop();
    for (const { picture } of due) picture.close();
    if (!newest) return;
    const { picture, frame, ptsUs } = newest;
    const [width, height] = "width" in picture ? [picture.width, picture.height] : [picture.displayWidth, picture.displayHeight];
    if (this.#canvas.width !== width) this.#canvas.width = width;
    if (this.#canvas.height !== height) this.#canvas.height = height;
    this.#context.drawImage(picture, 0, 0);
    picture.close();
    const at = performance.now();
    this.#freezes.shown(at);
    this.#events.shown({ mark: frame, at, ptsMs: ptsUs / 1000 });
  }

  #forget() {
    for (const { picture } of this.#waiting) picture.close();
    this.#waiting = [];
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
    this.#forget();
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
