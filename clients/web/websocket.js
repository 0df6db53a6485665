/** The link over a WebSocket: JPEG frames drawn on a canvas, control messages as JSON text. */

/** @import { Link, LinkEvents, Session } from "./types.d.ts" */

import { streamAddress } from "./session.js";

const OPEN_TIMEOUT_MS = 8_000;
const PROTOCOL_VERSION = 1;

/** Before the JPEG: "SG", version u8, kind u8, generation u32, frame u64, pts_us i64; little-endian. */
const HEADER_BYTES = 24;
const MAGIC = 0x4753; // "SG"
const KIND_JPEG = 1;

/** The socket was closed by the server; `code` as RFC 6455 has it. */
export class SocketClosed extends Error {
  /** @param {CloseEvent} event */
  constructor({ code, reason }) {
    super(reason || `the server closed the WebSocket (${code})`);
    this.code = code;
  }
}

/**
 * @param {Session} session
 * @param {HTMLCanvasElement} canvas shows the picture
 * @param {LinkEvents} events
 * @returns {Promise<Link>} once the socket is open
 */
export async function openWebSocket(session, canvas, events) {
  const socket = new WebSocket(streamAddress(session));
  socket.binaryType = "arraybuffer";
  const painter = new Painter(canvas, events);
  const counted = { bytes: 0 };
  let closed = false;

  /** @type {Promise<Error>} */
  const lost = new Promise((resolve) => {
    socket.onclose = (event) => {
      painter.stop();
      if (!closed) resolve(new SocketClosed(event));
    };
  });
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
  socket.send(JSON.stringify({ type: "hello", version: PROTOCOL_VERSION, token: session.token }));

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
  /** @type {{ bitmap: ImageBitmap, frame: number, ptsMs: number } | null} */ #next = null;
  #generation = 0;
  /** Order in which frames came; decoding may overtake. */
  #arrived = 0;
  #newest = 0;
  #stopped = false;
  #decoded = 0;
  #freezes = new Freezes();

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {LinkEvents} events
   */
  constructor(canvas, events) {
    this.#canvas = canvas;
    this.#context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
    this.#events = events;
  }

  /** @param {ArrayBuffer} message */
  async decode(message) {
    const header = new DataView(message, 0, HEADER_BYTES);
    if (header.getUint16(0, true) !== MAGIC || header.getUint8(2) !== PROTOCOL_VERSION || header.getUint8(3) !== KIND_JPEG) return;
    const generation = header.getUint32(4, true);
    if (generation < this.#generation) return;
    this.#generation = generation;
    const order = ++this.#arrived;
    const jpeg = new Blob([new Uint8Array(message, HEADER_BYTES)], { type: "image/jpeg" });
    const bitmap = await createImageBitmap(jpeg).catch(() => null);
    if (!bitmap) return; // a broken picture: the next one follows
    this.#decoded += 1;
    if (this.#stopped || order < this.#newest || generation < this.#generation) {
      bitmap.close();
      return;
    }
    this.#newest = order;
    if (this.#next) this.#next.bitmap.close();
    else requestAnimationFrame(() => this.#draw());
    this.#next = { bitmap, frame: Number(header.getBigUint64(8, true)), ptsMs: Number(header.getBigInt64(16, true)) / 1000 };
  }

  #draw() {
    if (!this.#next) return; // stopped
    const { bitmap, frame, ptsMs } = this.#next;
    this.#next = null;
    if (this.#canvas.width !== bitmap.width) this.#canvas.width = bitmap.width;
    if (this.#canvas.height !== bitmap.height) this.#canvas.height = bitmap.height;
    this.#context.drawImage(bitmap, 0, 0);
    bitmap.close();
    const at = performance.now();
    this.#freezes.shown(at);
    this.#events.shown({ mark: frame, at, ptsMs });
  }

  counts() {
    return {
      framesDecoded: this.#decoded,
      freezes: this.#freezes.count,
      freezeSeconds: this.#freezes.seconds,
    };
  }

  stop() {
    this.#stopped = true;
    this.#next?.bitmap.close();
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
