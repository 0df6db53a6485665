/** What the page measures: rate, freezes, how old a frame is, and how long an input takes to be seen. */

/** @import { Ack, Pong, Sample, Shown, Status } from "./types.d.ts" */

/** Presented frames kept, because an acknowledgement may come after the frame that it names was shown. */
const SHOWN_KEPT = 256;
const LATENCIES_KEPT = 512;
const TRIPS_KEPT = 16;
const ANCHORS_KEPT = 32;
const ANCHORS_WANTED = 8;
const RTP_TICKS_PER_MS = 90;
const INPUT_TIMEOUT_MS = 5_000;
/** Rates are means over this many seconds. */
const RATE_SAMPLES = 3;

/**
 * Whether mark a is b or later. Marks are RTP timestamps or frame numbers, compared modulo 2^32.
 * @param {number} a
 * @param {number} b
 */
const reached = (a, b) => ((a - b) | 0) >= 0;

export class Meter {
  fps = 0;
  bitrateKbps = 0;
  framesDecoded = 0;
  freezes = 0;
  freezeSeconds = 0;
  /** @type {number | null} */ firstFrameMs = null;
  /** From each input to the frame that shows it, oldest first. @type {number[]} */ inputToPhotonMs = [];
  /** @type {number | null} */ frameAgeMs = null;
  /** @type {number | null} */ roundTripMs = null;
  /** @type {Status | null} */ status = null;

  /** @type {number | null} */ #clickedAt = null;
  /** Messages that no acknowledgement has named yet. @type {Map<number, { at: number, sentAt: number, input: boolean }>} */ #sent = new Map();
  /** Inputs whose frame is known and not yet shown. @type {{ mark: number, at: number }[]} */ #owed = [];
  /** @type {Shown[]} */ #shown = [];
  /** Of the last pings. @type {number[]} */ #tripsMs = [];
  /**
   * Frames whose hand-over on the server is known in our time. offsetMs: our clock less the media clock.
   * @type {{ mark: number, ptsMs: number, offsetMs: number }[]}
   */
  #anchors = [];
  /** The link's counters, newest last. @type {{ sample: Sample, at: number }[]} */ #samples = [];
  /** The picture stood still because somebody wanted it to. */ #still = false;

  /** @param {number} at when the person asked for the picture */
  clicked(at) {
    this.#clickedAt = at;
    this.firstFrameMs = null;
  }

  /** A new link counts from zero, and its marks are others. */
  linked() {
    this.#samples = [];
    this.#tripsMs = [];
    this.#anchors = [];
    this.restarted();
  }

  /** The stream stood still or began anew: what is under way will not be seen, and the gap is no freeze. */
  restarted() {
    this.#still = true;
    this.#sent.clear();
    this.#owed = [];
    this.#shown = [];
    this.frameAgeMs = null;
  }

  /**
   * An input or release was sent.
   * @param {number} seq
   * @param {number} at when the event happened
   * @param {boolean} input whether it is one that a person waits to see
   */
  sent(seq, at, input) {
    const sentAt = performance.now();
    for (const [old, message] of this.#sent) if (sentAt - message.sentAt > INPUT_TIMEOUT_MS) this.#sent.delete(old);
    this.#sent.set(seq, { at, sentAt, input });
  }

  /** @param {Ack} ack */
  acked({ seq, rtp, frame, pts_us, server_ms }) {
    const message = this.#sent.get(seq);
    if (!message) return;
    this.#sent.delete(seq);
    const { at, sentAt, input } = message;
    const mark = rtp ?? frame;
    if (this.#tripsMs.length) {
      // Half of the shortest round trip is the way there; a late hand-over only makes an offset larger.
      const handedOverAt = sentAt + Math.min(...this.#tripsMs) / 2 + server_ms;
      this.#anchors.push({ mark, ptsMs: pts_us / 1000, offsetMs: handedOverAt - pts_us / 1000 });
      if (this.#anchors.length > ANCHORS_KEPT) this.#anchors.shift();
    }
    if (!input) return;
    const shown = this.#shown.find((each) => reached(each.mark, mark));
    if (shown) this.#seen(at, shown);
    else this.#owed.push({ mark, at });
  }

  /** @param {Shown} shown */
  shown(shown) {
    if (this.firstFrameMs === null && this.#clickedAt !== null) this.firstFrameMs = shown.at - this.#clickedAt;
    this.#date(shown);
    this.#shown.push(shown);
    if (this.#shown.length > SHOWN_KEPT) this.#shown.shift();
    this.#owed = this.#owed.filter(({ mark, at }) => {
      if (!reached(shown.mark, mark)) return true;
      this.#seen(at, shown);
      return false;
    });
  }

  /** How long ago the frame was due on the server. @param {Shown} shown */
  #date({ mark, at, ptsMs }) {
    const anchor = this.#anchors.at(-1);
    if (!anchor) return;
    const pts = ptsMs ?? anchor.ptsMs + ((mark - anchor.mark) | 0) / RTP_TICKS_PER_MS;
    const age = at - pts - Math.min(...this.#anchors.map(({ offsetMs }) => offsetMs));
    this.frameAgeMs = this.frameAgeMs === null ? age : this.frameAgeMs + (age - this.frameAgeMs) / 8;
  }

  /**
   * @param {number} at
   * @param {Shown} shown
   */
  #seen(at, shown) {
    this.inputToPhotonMs.push(shown.at - at);
    if (this.inputToPhotonMs.length > LATENCIES_KEPT) this.inputToPhotonMs.shift();
  }

  /**
   * @param {Pong} pong
   * @param {number} now
   */
  ponged({ t, server_ms }, now) {
    this.roundTripMs = now - t - server_ms;
    this.#tripsMs.push(this.roundTripMs);
    if (this.#tripsMs.length > TRIPS_KEPT) this.#tripsMs.shift();
  }

  /**
   * Once a second, with the link's counters.
   * @param {Sample} sample
   * @param {number} at
   */
  sampled(sample, at) {
    const last = this.#samples.at(-1)?.sample;
    if (last) {
      const first = this.#samples[0];
      const seconds = (at - first.at) / 1000;
      this.fps = (sample.framesDecoded - first.sample.framesDecoded) / seconds;
      this.bitrateKbps = ((sample.bytes - first.sample.bytes) * 8) / 1000 / seconds;
      const frames = sample.framesDecoded - last.framesDecoded;
      this.framesDecoded += frames;
      if (!this.#still) {
        this.freezes += sample.freezes - last.freezes;
        this.freezeSeconds += sample.freezeSeconds - last.freezeSeconds;
      }
      if (frames > 0) this.#still = false;
    }
    this.#samples.push({ sample, at });
    if (this.#samples.length > RATE_SAMPLES) this.#samples.shift();
  }

  /** Whether more acknowledgements would tell the frames' age better. */
  get wantsAnchors() {
    return this.#anchors.length < ANCHORS_WANTED;
  }

  get lastLatencyMs() {
    return this.inputToPhotonMs.at(-1) ?? null;
  }

  get medianLatencyMs() {
    const sorted = [...this.inputToPhotonMs].sort((a, b) => a - b);
    return sorted.length ? sorted[sorted.length >> 1] : null;
  }
}
