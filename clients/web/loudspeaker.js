/** What an avatar says over a WebSocket: pieces of sound, one for each frame, played one after the other. */

/** @import { Moment } from "./types.d.ts" */

import { loudness } from "./microphone.js";

const RATE = 48_000;
/** A piece waits so long before it is heard, so that those after it may come later than they should. */
const LEAD_S = 0.06;
const MOST_LEAD_S = 0.4;
/** Pieces after which it is known that all of them wait longer than they need to, by so much. */
const JUDGED = 125;
const SLACK_S = 0.04;
/** Root of the mean square below which a piece may be cut short. */
const SILENT = 0.002;

/** Browsers have few of them: one for all links. @type {AudioContext | null} */
let context = null;

export class Loudspeaker {
  #context = (context ??= new AudioContext({ sampleRate: RATE }));
  #gain = new GainNode(this.#context);
  #heard = false;
  /** From presentation time to the context's; NaN: nothing was played yet. */
  #offsetS = NaN;
  /** Of the last pieces, when they came. @type {number[]} */ #leads = [];
  /** What is not heard yet, or just now. @type {{ source: AudioBufferSourceNode, at: number, end: number, level: number }[]} */ #playing = [];
  /** Pieces before it are not heard. @type {Moment} */ #from = { generation: 0, frame: 0 };
  /** Interruptions of which it is not known yet where they end. */ #hushes = 0;

  constructor() {
    this.#gain.connect(this.#context.destination);
  }

  /**
   * @param {Moment} moment that the piece belongs to
   * @param {number} ptsUs
   * @param {Int16Array} pcm
   */
  push(moment, ptsUs, pcm) {
    if (this.#hushes || earlier(moment, this.#from) || this.#context.state !== "running") return;
    if (moment.generation > this.#from.generation) {
      this.#stop();
      this.#from = moment;
    }
    const buffer = new AudioBuffer({ length: pcm.length, sampleRate: RATE });
    const samples = buffer.getChannelData(0);
    pcm.forEach((each, index) => (samples[index] = each / 32768));
    const level = loudness(samples);
    this.#pace(ptsUs / 1e6, level);

    const source = new AudioBufferSourceNode(this.#context, { buffer });
    const at = ptsUs / 1e6 + this.#offsetS;
    this.#playing = this.#playing.filter(({ end }) => end > this.#hearing);
    this.#playing.push({ source, at, end: at + buffer.duration, level });
    source.connect(this.#gain);
    source.start(at);
  }

  /**
   * Pieces follow each other without a gap unless one comes too late: from there on all are heard later. What that
   * holds back without need is made good when nothing is said.
   * @param {number} ptsS
   * @param {number} level
   */
  #pace(ptsS, level) {
    const now = this.#context.currentTime;
    const lead = ptsS + this.#offsetS - now;
    if (!(lead > 0 && lead < MOST_LEAD_S)) {
      if (lead > 0) this.#stop(); // it would be heard together with this one
      this.#offsetS = now + LEAD_S - ptsS;
      this.#leads = [];
      return;
    }
    this.#leads.push(lead);
    if (this.#leads.length < JUDGED) return;
    this.#leads.shift();
    const spare = Math.min(...this.#leads) - LEAD_S;
    if (spare < SLACK_S || level > SILENT) return;
    this.#offsetS -= Math.min(spare, lead);
    this.#leads = [];
  }

  /** Whether the sound of a frame has begun; if nothing is heard, a picture waits for nothing. @param {number} ptsUs */
  reached(ptsUs) {
    const hearing = this.#hearing;
    const ahead = ptsUs / 1e6 + this.#offsetS - hearing;
    const plays = this.#heard && this.#playing.some(({ end }) => end > hearing);
    return !(plays && ahead > 0 && ahead < MOST_LEAD_S);
  }

  /** The context's time of what is heard now: what was rendered last has still to leave the device. */
  get #hearing() {
    return this.#context.currentTime - (this.#context.outputLatency || this.#context.baseLatency);
  }

  /** 0 to 1. */
  get level() {
    const now = this.#hearing;
    return this.#playing.find(({ at, end }) => at <= now && now < end)?.level ?? 0;
  }

  /** @param {boolean} heard */
  hear(heard) {
    this.#heard = heard;
    this.#gain.gain.value = heard ? 1 : 0;
    this.#context.resume();
  }

  /** Silent at once. @param {Promise<Moment>} after from which on there is something to hear again */
  async hush(after) {
    this.#hushes += 1;
    this.#stop();
    this.#from = await after.catch(() => this.#from);
    this.#hushes -= 1;
  }

  close() {
    this.#stop();
    this.#gain.disconnect();
    this.#context.suspend();
  }

  #stop() {
    for (const { source } of this.#playing) source.stop();
    this.#playing = [];
    this.#offsetS = NaN;
  }
}

/**
 * @param {Moment} a
 * @param {Moment} b
 */
function earlier(a, b) {
  return a.generation < b.generation || (a.generation === b.generation && a.frame < b.frame);
}
